"""The Transformer encoder-decoder (Vaswani et al., 2017, arXiv:1706.03762)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from attn_jax.functional.positions import sinusoidal_positions
from attn_jax.functional.products import PRECISIONS
from attn_jax.models.protocol import Batch, DecodeState, StepOutput, check_source, check_target, shift_right
from attn_jax.nn.dropout import Dropout
from attn_jax.nn.settings import check_at_least_one, check_one_of, check_share
from attn_jax.nn.transformer import ACTIVATIONS, DecoderBlock, TransformerEncoder, run_blocks

Array = jax.Array | np.ndarray

POSITIONS = {
    "interleaved": {},
    "halves": {"interleaved": False},
    "marian": {"interleaved": False, "inclusive": True},
}
"""Orders of sines and cosines: the paper's; sines first, as Marian at Hugging Face; and as Marian's own code has it.

Options of `attn_jax.functional.positions.sinusoidal_positions`.
"""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A Transformer encoder-decoder. Positions are sinusoidal: no sentence is too long for it.

    Attributes:
      src_vocab_size: source words.
      tgt_vocab_size: target words.
      d_model: width of embeddings and blocks; even.
      num_heads: attention heads of each block; must divide ``d_model``.
      ffn_dim: hidden units of the feed-forward layers.
      decoder_num_heads, decoder_ffn_dim: the same for the decoder's blocks; None: as in the encoder.
      encoder_layers, decoder_layers: blocks.
      activation: of the feed-forward layers, a name of `attn_jax.nn.transformer.ACTIVATIONS`.
      norm_first: normalises before each sublayer (trains without warm-up) instead of after it (the paper's).
      norm_epsilon: added to the variance in the layer norms.
      dropout: share of units dropped from embeddings, sublayer outputs, and inside the feed-forward layers.
      attention_dropout: share of attention weights dropped.
      tie_embeddings: the target embedding is the output layer too (Press and Wolf, 2017, arXiv:1608.05859).
      share_embeddings: one embedding for source and target (they share a vocabulary).
      scale_embeddings: multiplies embeddings by ``sqrt(d_model)``, so that they have unit variance.
      positions: the order of sines and cosines, a name of `POSITIONS`.
      max_src_len: tokens of the longest source; None: any length.
      alignment_layer: the decoder block whose cross-attention, averaged over its heads, is the map that decoding
        reports; None averages over all blocks too. That had the lowest alignment error on the bundled grammar: 13.5 %,
        and 19.4, 15.9 and 15.1 % for each of three blocks alone. (Garg et al., 2019, arXiv:1909.02074, find the last
        but one best in deep models.)
      precision: ``float32``, or ``bfloat16`` for the operands of the products.
      remat: trains by one loop over the blocks that keeps only their inputs for backward, which computes each block
        once more: less memory for more time, and the compilation of one block a side.
    """

    src_vocab_size: int
    tgt_vocab_size: int
    d_model: int = 256
    num_heads: int = 4
    ffn_dim: int = 1024
    decoder_num_heads: int | None = None
    decoder_ffn_dim: int | None = None
    encoder_layers: int = 3
    decoder_layers: int = 3
    activation: str = "relu"
    norm_first: bool = True
    norm_epsilon: float = 1e-6
    dropout: float = 0.1
    attention_dropout: float = 0.0
    tie_embeddings: bool = True
    share_embeddings: bool = False
    scale_embeddings: bool = True
    positions: str = "interleaved"
    max_src_len: int | None = None
    alignment_layer: int | None = None
    precision: str = "float32"
    remat: bool = False

    def __post_init__(self):
        """Checks names and ranges."""
        check_one_of("activation", self.activation, ACTIVATIONS)
        check_one_of("precision", self.precision, PRECISIONS)
        check_one_of("positions", self.positions, POSITIONS)
        blocks = ("num_heads", "ffn_dim", "encoder_layers", "decoder_layers")
        own = ("decoder_num_heads", "decoder_ffn_dim", "max_src_len")
        given = [name for name in own if getattr(self, name) is not None]
        check_at_least_one(self, "src_vocab_size", "tgt_vocab_size", "d_model", *blocks, *given)
        check_share("dropout", self.dropout)
        check_share("attention_dropout", self.attention_dropout)
        for heads in (self.num_heads, self.decoder_num_heads or self.num_heads):
            if self.d_model % heads:
                raise ValueError(
                    f"num_heads must divide d_model: {self.d_model} units cannot be shared by {heads} heads"
                )
        if self.d_model % 2:
            raise ValueError(f"d_model must be even, half sines and half cosines of the position; found {self.d_model}")
        layer = self.alignment_layer
        if layer is not None and not -self.decoder_layers <= layer < self.decoder_layers:
            raise ValueError(
                f"alignment_layer must be None or name one of {self.decoder_layers} decoder blocks, found {layer}"
            )
        if self.share_embeddings and self.src_vocab_size != self.tgt_vocab_size:
            raise ValueError(
                "share_embeddings needs one vocabulary for both sides, found "
                f"{self.src_vocab_size} and {self.tgt_vocab_size} words"
            )

    @property
    def block(self) -> dict[str, Any]:
        """The settings of one block of the encoder."""
        names = ("num_heads", "ffn_dim", "activation", "norm_first", "norm_epsilon", "dropout", "attention_dropout")
        return {"features": self.d_model, "precision": self.precision} | {name: getattr(self, name) for name in names}

    @property
    def decoder_block(self) -> dict[str, Any]:
        """The settings of one block of the decoder."""
        own = {"num_heads": self.decoder_num_heads, "ffn_dim": self.decoder_ffn_dim}
        return self.block | {name: value for name, value in own.items() if value is not None}

    def encodings(self, length: int) -> Float[Array, "length d_model"]:
        """What is added to the embeddings of so many positions."""
        return sinusoidal_positions(length, self.d_model, **POSITIONS[self.positions])


class DecoderCaches(NamedTuple):
    """What a hypothesis carries along: the number of steps taken ``[batch, beam]``, and one cache a block."""

    position: Array
    blocks: tuple[Any, ...]


class Transformer(nn.Module):
    """A Transformer encoder-decoder, from ids to features, logits and attention weights.

    Attributes:
      config: see `TransformerConfig`.
    """

    config: TransformerConfig

    block_type = DecoderBlock
    """Of the decoder."""

    def setup(self):
        """Builds the parts."""
        c = self.config
        embedding = nn.initializers.normal(c.d_model**-0.5)
        self.src_embed = nn.Embed(c.src_vocab_size, c.d_model, embedding_init=embedding)
        self.tgt_embed = (
            self.src_embed if c.share_embeddings else nn.Embed(c.tgt_vocab_size, c.d_model, embedding_init=embedding)
        )
        self.encoder = TransformerEncoder(c.encoder_layers, c.block, c.remat)
        self.decoder = [self.block_type(**c.decoder_block) for _ in range(c.decoder_layers)]
        if c.norm_first:
            self.decoder_norm = nn.LayerNorm(c.norm_epsilon)
        self.drop = Dropout(c.dropout)
        if not c.tie_embeddings:
            kernel_shape = (c.d_model, c.tgt_vocab_size)
            self.output_kernel = self.param("output_kernel", nn.initializers.glorot_uniform(), kernel_shape)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (c.tgt_vocab_size,))

    def __call__(
        self, batch: Batch, *, deterministic: bool = True, teacher_forcing: Float[ArrayLike, ""] | None = None
    ) -> tuple[Array, Array]:
        """Predicts every target position from the source and the true targets before it.

        Args:
          batch: with targets.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.
          teacher_forcing: must be None, see `features`.

        Returns:
          ``logits [batch, tgt_len, vocab]`` and ``weights [batch, tgt_len, src_len]``.
        """
        features, weights = self.features(batch, deterministic=deterministic, teacher_forcing=teacher_forcing)
        return self.project(features), weights

    def features(
        self, batch: Batch, *, deterministic: bool = True, teacher_forcing: Float[ArrayLike, ""] | None = None
    ) -> tuple[Float[Array, "batch tgt_len d_model"], Float[Array, "batch tgt_len src_len"]]:
        """The decoder's features before the output layer.

        Args:
          batch: with targets.
          deterministic: turns dropout off.
          teacher_forcing: must be None: a Transformer reads all true targets at once.

        Returns:
          ``features [batch, tgt_len, d_model]``, and ``weights [batch, tgt_len, src_len]``: the cross-attention,
          averaged as ``alignment_layer`` says.

        Raises:
          ValueError: if a teacher-forcing probability is given.
        """
        if teacher_forcing is not None:
            raise ValueError(
                "a Transformer reads all true targets at once, so it has no teacher-forcing probability; "
                "use the constant schedule 1, or a recurrent model"
            )
        features, maps = self._run(batch, deterministic)
        return features, self._reduced(maps["cross"])

    def attention_maps(self, batch: Batch) -> dict[str, Array]:
        """Every attention map for given pairs; row ``t`` of a target's map is the one that predicts token ``t``.

        Returns:
          ``encoder [batch, layers, heads, src_len, src_len]``, ``decoder [batch, layers, heads, tgt_len, tgt_len]`` and
          ``cross [batch, layers, heads, tgt_len, src_len]``; rows of padding are 0.
        """
        _, maps = self._run(batch, deterministic=True)
        rows = {"encoder": batch.src_mask, "decoder": batch.tgt_mask, "cross": batch.tgt_mask}
        return {
            name: jnp.where(rows[name][:, None, None, :, None], jnp.stack(layers, axis=1), 0)
            for name, layers in maps.items()
        }

    def _run(self, batch: Batch, deterministic: bool) -> tuple[Array, dict[str, list[Array]]]:
        """Features, and the weights of every block by kind."""
        check_target(batch, rank=2)
        source, encoder_weights = self.encode(batch, deterministic=deterministic)
        inputs = shift_right(batch.tgt)
        positions = self.config.encodings(inputs.shape[1])
        outputs = self._embed(self.tgt_embed, inputs, positions, deterministic)
        rng = self.make_rng("dropout") if self.config.remat and not deterministic else None
        arrays, options = (source, batch.tgt_mask, batch.src_mask), {"deterministic": deterministic}
        outputs, weights = run_blocks(self.decoder, outputs, *arrays, remat=self.config.remat, rng=rng, **options)
        maps = {"encoder": list(jnp.moveaxis(encoder_weights, 1, 0))}
        if weights[0].own is not None:
            maps["decoder"] = [w.own for w in weights]
        maps["cross"] = [w.cross for w in weights]
        return self._normed(outputs), maps

    def _reduced(self, cross: list[Array]) -> Array:
        """One map ``[batch, q_len, src_len]`` from every block's cross-attention ``[batch, heads, q_len, src_len]``."""
        layer = self.config.alignment_layer
        return jnp.mean(jnp.stack(cross if layer is None else [cross[layer]]), axis=(0, 2))

    def encode(
        self, batch: Batch, *, deterministic: bool = True
    ) -> tuple[Float[Array, "batch src_len d_model"], Float[Array, "batch layers heads src_len src_len"]]:
        """Encodes the source.

        Returns:
          Outputs ``[batch, src_len, d_model]`` and the encoder's weights ``[batch, layers, heads, src_len, src_len]``.
        """
        check_source(batch, rank=2)
        positions = self.config.encodings(batch.src.shape[1])
        embedded = self._embed(self.src_embed, batch.src, positions, deterministic)
        return self.encoder(embedded, batch.src_mask, deterministic=deterministic)

    def _next_encoding(self, caches: DecoderCaches) -> Float[Array, "batch beam d_model"]:
        """The encoding of the position that comes next."""
        return self.config.encodings(caches.blocks[0].keys.shape[2])[caches.position]

    def _embed(self, embed: nn.Embed, tokens: Array, positions: Array, deterministic: bool) -> Array:
        """Embeddings, scaled, plus the encodings of their positions ``[..., time, d_model]``."""
        embedded = embed(tokens) * (math.sqrt(self.config.d_model) if self.config.scale_embeddings else 1.0)
        return self.drop(embedded + positions.astype(embedded.dtype), deterministic=deterministic)

    def _normed(self, outputs: Array) -> Array:
        return self.decoder_norm(outputs) if self.config.norm_first else outputs

    def output_weights(self) -> tuple[Array, Array, bool]:
        """The output layer's kernel, its bias, whether the kernel is ``[vocab, width]`` (tied) or its transpose."""
        if self.config.tie_embeddings:
            return self.tgt_embed.variables["params"]["embedding"], self.output_bias, True
        return self.output_kernel, self.output_bias, False

    def project(self, features: Float[Array, "*batch d_model"]) -> Float[Array, "*batch vocab"]:
        """Logits over the target vocabulary of ``features [..., d_model]``."""
        kernel, bias, vocab_first = self.output_weights()
        equation = "...i,oi->...o" if vocab_first else "...i,io->...o"
        return PRECISIONS[self.config.precision](equation, features, kernel) + bias

    # ------------------------------------------------------------------------------------------- the decoding protocol

    def start(self, batch: Batch, max_len: int, prefix: Array | None = None) -> DecodeState:
        """Encodes the source; see `attn_jax.models.protocol.Decoder`.

        ``memory`` holds each block's keys and values of the source, ``dynamic`` a `DecoderCaches` with room for
        ``max_len`` steps after the ``prefix [batch, prefix_len]``.
        """
        source, _ = self.encode(batch)
        rows, prefix_len = batch.src.shape[0], 0 if prefix is None else prefix.shape[1]
        memory = tuple(block.prepare(source, batch.src_mask) for block in self.decoder)
        caches = tuple(block.empty_cache(rows, prefix_len + max_len, source.dtype) for block in self.decoder)
        state = DecodeState(memory, DecoderCaches(jnp.zeros((rows, 1), jnp.int32), caches))
        for position in range(prefix_len):
            state = self.step(prefix[:, position, None], state).state
        return state

    def fold(self) -> dict[str, Any]:
        """Nothing: each product depends on the words before; see `attn_jax.models.protocol.Decoder`."""
        return {}

    def step(self, tokens: Array, state: DecodeState) -> StepOutput:
        """One decoding step; see `attn_jax.models.protocol.Decoder`."""
        chex.assert_rank(tokens, 2)
        chex.assert_tree_shape_prefix(state.dynamic, tokens.shape)
        position, caches, looked = state.dynamic.position, [], []
        outputs = self._embed(self.tgt_embed, tokens, self._next_encoding(state.dynamic), deterministic=True)
        for block, cache, memory in zip(self.decoder, state.dynamic.blocks, state.memory, strict=True):
            outputs, weights, grown = block.step(outputs, cache, position, memory)
            caches.append(grown)
            looked.append(weights)
        logits = self.project(self._normed(outputs))
        return StepOutput(
            logits, self._reduced(looked), DecodeState(state.memory, DecoderCaches(position + 1, tuple(caches)))
        )
