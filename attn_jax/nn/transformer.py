"""Transformer blocks: feed-forward, encoder block, decoder block, with the norm before or after each sublayer.

A block is a few sublayers, each ``norm(x + f(x))`` (Vaswani et al., 2017) or, with ``norm_first``, ``x + f(norm(x))``
(Xiong et al., 2020). Nothing is stored on a block: attention weights and caches are returned. A decoder block runs a
whole sequence under a causal mask, or one step against a cache; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Integer

from attn_jax.functional.masks import causal_mask, expand_mask
from attn_jax.functional.products import PRECISIONS
from attn_jax.nn.attention import Memory, MultiHeadAttention
from attn_jax.nn.dropout import Dropout, dropout_mask
from attn_jax.nn.settings import check_one_of, check_share

Array = jax.Array | np.ndarray

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu_exact": partial(jax.nn.gelu, approximate=False),
    "swish": jax.nn.swish,
}
"""The non-linearities of the feed-forward layer by name; ``gelu`` is the tanh approximation of ``gelu_exact``."""


class FeedForward(nn.Module):
    """The position-wise feed-forward layer, ``W_2 activation(W_1 x + b_1) + b_2`` (Vaswani et al., 2017, section 3.3).

    Attributes:
      hidden: units between the two products.
      activation: a name of `ACTIVATIONS`.
      dropout: share of the hidden units dropped.
      precision: ``float32``, or ``bfloat16`` for the operands of the products.
    """

    hidden: int
    activation: str = "relu"
    dropout: float = 0.0
    precision: str = "float32"

    def __post_init__(self):
        """Checks names."""
        check_one_of("activation", self.activation, ACTIVATIONS)
        check_one_of("precision", self.precision, PRECISIONS)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch time d"], *, deterministic: bool = True
    ) -> Float[Array, "batch time d"]:
        """Applies the layer to each position of ``inputs [batch, time, d]`` and returns the same shape."""
        chex.assert_rank(inputs, 3)
        einsum, width = PRECISIONS[self.precision], inputs.shape[-1]
        glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros
        hidden = einsum("bti,io->bto", inputs, self.param("in_kernel", glorot, (width, self.hidden)))
        hidden = ACTIVATIONS[self.activation](hidden + self.param("in_bias", zeros, (self.hidden,)))
        hidden = Dropout(self.dropout)(hidden, deterministic=deterministic)
        outputs = einsum("bti,io->bto", hidden, self.param("out_kernel", glorot, (self.hidden, width)))
        return outputs + self.param("out_bias", zeros, (width,))


class Cache(NamedTuple):
    """Keys and values of the steps a decoder block has seen: both ``[batch, beam, max_len, heads, head_dim]``."""

    keys: Array
    values: Array


class DecoderWeights(NamedTuple):
    """Where a decoder block looks.

    Attributes:
      own: at its own past, ``[batch, heads, q_len, q_len]``; None for a block without self-attention.
      cross: at the source, ``[batch, heads, q_len, src_len]``.
    """

    own: Array | None
    cross: Array


class TransformerBlock(nn.Module):
    """What encoder and decoder blocks share.

    Attributes:
      features: width of the inputs and outputs, the paper's ``d_model``.
      num_heads: must divide ``features``.
      ffn_dim: hidden units of the feed-forward layer.
      activation: a name of `ACTIVATIONS`.
      norm_first: normalises the input of each sublayer (Xiong et al., 2020, arXiv:2002.04745) instead of the sum after
        it (Vaswani et al., 2017, arXiv:1706.03762). The last block then leaves its outputs unnormalised.
      norm_epsilon: added to the variance in the layer norms.
      dropout: share dropped from each sublayer's output before it is added, and inside the feed-forward layer.
      attention_dropout: share of the attention weights dropped; the weights returned are those before dropout.
      precision: ``float32``, or ``bfloat16`` for the operands of the products.
    """

    features: int
    num_heads: int
    ffn_dim: int
    activation: str = "relu"
    norm_first: bool = False
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    precision: str = "float32"

    def __post_init__(self):
        """Checks names and ranges."""
        check_one_of("activation", self.activation, ACTIVATIONS)
        check_one_of("precision", self.precision, PRECISIONS)
        check_share("attention_dropout", self.attention_dropout)
        super().__post_init__()

    def setup(self):
        """Builds the sublayers."""
        self.attention = self.new_attention()
        self.attention_norm = nn.LayerNorm(self.norm_epsilon)
        self.ffn = FeedForward(self.ffn_dim, self.activation, self.dropout, self.precision)
        self.ffn_norm = nn.LayerNorm(self.norm_epsilon)
        self.drop = Dropout(self.dropout)

    def new_attention(self) -> MultiHeadAttention:
        """A multi-head attention of this block's width."""
        return MultiHeadAttention(features=self.features, num_heads=self.num_heads, precision=self.precision)

    def sublayer(
        self, norm: nn.LayerNorm, inputs: Array, function: Callable[[Array], tuple[Array, Any]], deterministic: bool
    ) -> tuple[Array, Any]:
        """``norm(x + f(x))``, or ``x + f(norm(x))``; ``f`` returns its output and something to hand on."""
        outputs, extra = function(norm(inputs) if self.norm_first else inputs)
        outputs = inputs + self.drop(outputs, deterministic=deterministic)
        return (outputs if self.norm_first else norm(outputs)), extra

    def attend(
        self,
        attention: MultiHeadAttention,
        query: Float[Array, "batch q_len features"],
        memory: Memory,
        deterministic: bool,
        return_weights: bool = True,
    ) -> tuple[Float[Array, "batch q_len features"], Float[Array, "batch heads q_len kv_len"] | None]:
        """Attends with dropout on the weights; without ``return_weights`` their place is taken by None."""
        kept = None
        if self.attention_dropout and not deterministic:
            shape = (query.shape[0], self.num_heads, query.shape[1], memory.keys.shape[1])
            kept = dropout_mask(self.make_rng("dropout"), self.attention_dropout, shape, query.dtype)
        return attention.attend(query, memory, kept=kept, return_weights=return_weights)

    def feed_forward(self, inputs: Array, deterministic: bool) -> Array:
        """The last sublayer of every block."""
        feed = lambda x: (self.ffn(x, deterministic=deterministic), None)  # noqa: E731
        return self.sublayer(self.ffn_norm, inputs, feed, deterministic)[0]

    def memory(self, attention: MultiHeadAttention, keys: Array, mask: Array | None) -> Memory:
        """What ``attention`` keeps of ``keys [batch, kv_len, d]``; in ``init`` this creates its parameters."""
        if self.is_initializing():
            attention(jnp.zeros((keys.shape[0], 1, self.features), keys.dtype), keys)
        return attention.prepare(keys, mask=mask)


class EncoderBlock(TransformerBlock):
    """Self-attention, then feed-forward. Attributes: see `TransformerBlock`."""

    def __call__(
        self,
        inputs: Float[Array, "batch time features"],
        mask: Bool[Array, "batch time"] | Bool[Array, "batch time time"] | None = None,
        *,
        deterministic: bool = True,
        return_weights: bool = True,
    ) -> tuple[Float[Array, "batch time features"], Float[Array, "batch heads time time"] | None]:
        """Runs the block.

        Args:
          inputs: ``[batch, time, features]``.
          mask: ``[batch, time]``, or ``[batch, time, time]`` for every query its own; bool, True = may be attended.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.
          return_weights: whether to return the attention weights.

        Returns:
          ``outputs [batch, time, features]``, and ``weights [batch, heads, time, time]`` or None.
        """
        chex.assert_shape(inputs, (None, None, self.features))

        def look(x: Array) -> tuple[Array, Array | None]:
            return self.attend(self.attention, x, self.memory(self.attention, x, mask), deterministic, return_weights)

        outputs, weights = self.sublayer(self.attention_norm, inputs, look, deterministic)
        return self.feed_forward(outputs, deterministic), weights


def run_blocks(
    blocks: Sequence[TransformerBlock],
    outputs: Float[Array, "batch time features"],
    *arrays: Array | None,
    remat: bool,
    rng: Array | None,
    **options: bool,
) -> tuple[Float[Array, "batch time features"], list[Any]]:
    """Runs blocks one after the other.

    Args:
      blocks: alike, and bound.
      outputs: of what comes before the blocks, ``[batch, time, features]``.
      arrays: what every block is given beside it.
      remat: runs one loop over the stacked parameters instead, which keeps only each block's inputs; backward computes
        the block once more. One block is compiled, whatever their number.
      rng: of the dropout of that loop; None without dropout.
      options: of every block.

    Returns:
      ``outputs [batch, time, features]``, and the weights of each block.

    References:
      Chen et al., Training deep nets with sublinear memory cost, 2016, arXiv:1604.06174.
    """
    if not remat or blocks[0].is_initializing():
        weights = []
        for block in blocks:
            outputs, looked = block(outputs, *arrays, **options)
            weights.append(looked)
        return outputs, weights
    pure = blocks[0].clone(parent=None, name=None)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(block.variables["params"] for block in blocks))
    keys = None if rng is None else jax.random.split(rng, len(blocks))

    @jax.checkpoint
    def one_block(outputs: Array, of_block: tuple[Any, Array | None]) -> tuple[Array, Any]:
        params, key = of_block
        rngs = None if key is None else {"dropout": key}
        return pure.apply({"params": params}, outputs, *arrays, rngs=rngs, **options)

    outputs, weights = lax.scan(one_block, outputs, (params, keys))
    return outputs, [jax.tree.map(lambda leaf, i=i: leaf[i], weights) for i in range(len(blocks))]


class TransformerEncoder(nn.Module):
    """Encoder blocks on top of each other, and with ``norm_first`` a last norm.

    Attributes:
      num_layers: how many blocks.
      block: their settings, the attributes of `TransformerBlock` by name.
      remat: see `run_blocks`.
    """

    num_layers: int
    block: Mapping[str, Any]
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch time features"],
        mask: Bool[Array, "batch time"] | None = None,
        *,
        deterministic: bool = True,
        return_weights: bool = True,
    ) -> tuple[Float[Array, "batch time features"], Float[Array, "batch layers heads time time"] | None]:
        """Runs the blocks.

        Args:
          inputs: ``[batch, time, features]``.
          mask: ``[batch, time]`` bool, True = a real position; None: all are.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.
          return_weights: whether to return the attention weights.

        Returns:
          ``outputs [batch, time, features]``, and ``weights [batch, layers, heads, time, time]`` or None.
        """
        blocks = [EncoderBlock(**self.block, name=f"block_{index}") for index in range(self.num_layers)]
        rng = self.make_rng("dropout") if self.remat and not deterministic else None
        options = {"deterministic": deterministic, "return_weights": return_weights}
        outputs, weights = run_blocks(blocks, inputs, mask, remat=self.remat, rng=rng, **options)
        if self.block.get("norm_first"):
            outputs = nn.LayerNorm(self.block.get("norm_epsilon", EncoderBlock.norm_epsilon), name="norm")(outputs)
        return outputs, jnp.stack(weights, axis=1) if return_weights else None


class DecoderBlock(TransformerBlock):
    """Self-attention over the past, attention over the source, feed-forward. Attributes: see `TransformerBlock`.

    What a block remembers of the past is in three methods: `empty_cache`, `look_back` and `look_back_step`.
    """

    def setup(self):
        """Builds the sublayers, with one more in the middle."""
        super().setup()
        self.cross_attention = self.new_attention()
        self.cross_norm = nn.LayerNorm(self.norm_epsilon)

    def __call__(
        self,
        inputs: Float[Array, "batch tgt_len features"],
        source: Float[Array, "batch src_len d"],
        mask: Bool[Array, "batch tgt_len"] | None = None,
        source_mask: Bool[Array, "batch src_len"] | None = None,
        *,
        deterministic: bool = True,
        return_weights: bool = True,
    ) -> tuple[Float[Array, "batch tgt_len features"], DecoderWeights | None]:
        """Runs the block over a whole sequence; position ``t`` sees positions up to ``t``.

        Args:
          inputs: ``[batch, tgt_len, features]``.
          source: the encoder's outputs, ``[batch, src_len, d]``.
          mask: ``[batch, tgt_len]`` bool, True = a real position; None: all are.
          source_mask: ``[batch, src_len]`` bool, True = may be attended; None: everywhere.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.
          return_weights: whether to return the attention weights.

        Returns:
          ``outputs [batch, tgt_len, features]``, and the weights or None.
        """
        chex.assert_shape(inputs, (None, None, self.features))
        chex.assert_equal_shape_prefix([inputs, source], 1)
        memory = self.prepare(source, source_mask)
        outputs, own = self.look_back(inputs, mask, deterministic, return_weights)
        outputs, cross = self._look_at_source(outputs, memory, deterministic, return_weights)
        return self.feed_forward(outputs, deterministic), DecoderWeights(own, cross) if return_weights else None

    def look_back(
        self, inputs: Array, mask: Array | None, deterministic: bool, return_weights: bool
    ) -> tuple[Float[Array, "batch tgt_len features"], Float[Array, "batch heads tgt_len tgt_len"] | None]:
        """The first sublayer, over a whole sequence; the weights, or None."""
        batch, time = inputs.shape[:2]
        past = jnp.broadcast_to(causal_mask(time), (batch, time, time))  # [batch, q_len, kv_len]
        past = past if mask is None else past & expand_mask(mask)

        def look(x: Array) -> tuple[Array, Array | None]:
            return self.attend(self.attention, x, self.memory(self.attention, x, past), deterministic, return_weights)

        return self.sublayer(self.attention_norm, inputs, look, deterministic)

    def _look_at_source(
        self, inputs: Array, memory: Memory, deterministic: bool, return_weights: bool = True
    ) -> tuple[Array, Array | None]:
        look = lambda x: self.attend(self.cross_attention, x, memory, deterministic, return_weights)  # noqa: E731
        return self.sublayer(self.cross_norm, inputs, look, deterministic)

    # ------------------------------------------------------------------------------------------------- step by step

    def prepare(
        self, source: Float[Array, "batch src_len d"], source_mask: Bool[Array, "batch src_len"] | None = None
    ) -> Memory:
        """Keys and values of the source, once a sentence, for `step`."""
        return self.memory(self.cross_attention, source, source_mask)

    def empty_cache(self, batch: int, max_len: int, dtype: Any = jnp.float32) -> Cache:
        """The cache before the first of ``max_len`` steps, with a beam of 1."""
        zeros = jnp.zeros((batch, 1, max_len, self.num_heads, self.features // self.num_heads), dtype)
        return Cache(zeros, zeros)

    def step(
        self,
        inputs: Float[Array, "batch beam features"],
        cache: Cache,
        position: Integer[Array, "batch beam"],
        memory: Memory,
    ) -> tuple[Float[Array, "batch beam features"], Float[Array, "batch heads beam src_len"], Cache]:
        """One step of every hypothesis; equal to column ``position`` of the whole sequence.

        Args:
          inputs: ``[batch, beam, features]``.
          cache: the past of each hypothesis.
          position: ``[batch, beam]`` int, the number of steps taken before this one, below ``max_len``.
          memory: of the source, from `prepare`, without a beam axis: the beam is the query's axis of time.

        Returns:
          ``outputs [batch, beam, features]``, ``weights [batch, heads, beam, src_len]`` over the source, the new cache.
        """
        chex.assert_shape(inputs, (None, None, self.features))
        chex.assert_shape(position, inputs.shape[:2])
        outputs, cache = self.look_back_step(inputs, cache, position)
        outputs, weights = self._look_at_source(outputs, memory, True)
        return self.feed_forward(outputs, True), weights, cache

    def look_back_step(
        self, inputs: Array, cache: Cache, position: Array
    ) -> tuple[Float[Array, "batch beam features"], Cache]:
        """The first sublayer, one step; the new cache."""
        batch, beam, _ = inputs.shape
        max_len = cache.keys.shape[2]
        chex.assert_shape(cache.keys, (batch, beam, max_len, self.num_heads, None))
        slots = jnp.arange(max_len)
        here, past = slots == position[..., None], slots <= position[..., None]  # [batch, beam, max_len]

        def own_past(x: Array) -> tuple[Array, Cache]:
            new = self.attention.prepare(x)  # keys and values [batch, beam, heads, head_dim]
            grown = Cache(
                *(jnp.where(here[..., None, None], n[:, :, None], old) for n, old in zip(new[:2], cache, strict=True))
            )
            # Each hypothesis has a past of its own, so here (and only here) the beam joins the batch.
            flat = jax.tree.map(lambda leaf: leaf.reshape(batch * beam, *leaf.shape[2:]), grown)
            outputs, _ = self.attention.attend(
                x.reshape(batch * beam, 1, -1), Memory(*flat, past.reshape(batch * beam, 1, max_len))
            )
            return outputs.reshape(batch, beam, -1), grown

        return self.sublayer(self.attention_norm, inputs, own_past, True)
