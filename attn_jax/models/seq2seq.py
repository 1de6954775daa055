"""The recurrent encoder-decoder, with any attention or none, for words and for continuous sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from attn_jax.functional.products import PRECISIONS
from attn_jax.functional.recurrence import CELLS, hidden_of
from attn_jax.models.protocol import Batch, DecodeState, StepOutput, check_source, check_target, shift_right
from attn_jax.nn.attention import ATTENTIONS, Attention, make_attention
from attn_jax.nn.decoder import READOUTS, AttentionDecoder
from attn_jax.nn.dropout import Dropout
from attn_jax.nn.recurrent import RecurrentStack
from attn_jax.nn.settings import check_at_least_one, check_one_of, check_share

Array = jax.Array | np.ndarray

BRIDGES = ("dense", "copy", "zero")

FOLDED_BYTES = 2**28
"""A larger table of projected embeddings is not made: 32,768 words for an LSTM of 512 units."""


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """A recurrent encoder-decoder.

    Attributes:
      src_vocab_size: source words; 0: the source is continuous, ``[batch, time, src_features]``.
      tgt_vocab_size: target words; 0: the target is continuous, ``[batch, time, tgt_features]``.
      src_features, tgt_features: widths of continuous sequences.
      embed_dim: width of the embeddings.
      encoder_cell, decoder_cell: ``rnn``, ``gru`` or ``lstm``.
      encoder_hidden: units of each encoder layer and direction.
      decoder_hidden: units of each decoder layer.
      encoder_layers, decoder_layers: how many.
      bidirectional: reads the source in both directions.
      attention: a name of `attn_jax.nn.attention.ATTENTIONS`, or None.
      attention_features: width of the mechanisms that have one (additive, concat, multi-head); 0: ``decoder_hidden``.
      attention_options: further settings of the mechanism, for example ``{"num_heads": 4}`` or ``{"normalizer":
        "sparsemax"}``.
      attend_first: attends with the previous state and feeds the context (Bahdanau); else recurs first (Luong).
      query_with_input: attends with ``[embedding; state]``.
      squeeze: units of a ReLU layer between ``[embedding; context]`` and the first decoder layer (0: none).
      input_feeding: feeds the last features back (Luong).
      readout: ``attentional``, ``concat`` or ``state``, see `attn_jax.nn.decoder.AttentionDecoder`.
      readout_features: width of the attentional readout; 0: ``decoder_hidden``, with ``tie_embeddings`` ``embed_dim``.
      bridge: encoder to decoder state: ``dense`` projects it, ``copy`` hands it over (equal widths), ``zero`` does not.
      tie_embeddings: the target embedding is the output layer too (Press and Wolf, 2017, arXiv:1608.05859).
      share_embeddings: one embedding for source and target (they share a vocabulary).
      dropout: share of units dropped from embeddings, between layers, from the encoder's outputs and the features.
      recurrent_dropout: share dropped on the way into the next encoder step, the same at all steps of a sentence.
      variational: drops the same units at every step of a sentence.
      residual: residual connections around the layers of both stacks.
      precision: ``float32``, or ``bfloat16`` for the operands of the products.
    """

    src_vocab_size: int = 0
    tgt_vocab_size: int = 0
    src_features: int = 0
    tgt_features: int = 0
    embed_dim: int = 256
    encoder_cell: str = "gru"
    decoder_cell: str = "lstm"
    encoder_hidden: int = 256
    decoder_hidden: int = 512
    encoder_layers: int = 1
    decoder_layers: int = 1
    bidirectional: bool = True
    attention: str | None = "general"
    attention_features: int = 0
    attention_options: dict[str, Any] = field(default_factory=dict, hash=False)  # a module must be hashable
    attend_first: bool = False
    query_with_input: bool = False
    squeeze: int = 0
    input_feeding: bool = True
    readout: str = "attentional"
    readout_features: int = 0
    bridge: str = "dense"
    tie_embeddings: bool = False
    share_embeddings: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    variational: bool = False
    residual: bool = False
    precision: str = "float32"

    def __post_init__(self):
        """Checks names, ranges, and what does not go together; builds the attention once, for what it refuses."""
        for name, value, known in (
            ("encoder_cell", self.encoder_cell, CELLS),
            ("decoder_cell", self.decoder_cell, CELLS),
            ("attention", self.attention, {None, *ATTENTIONS}),
            ("readout", self.readout, READOUTS),
            ("bridge", self.bridge, BRIDGES),
            ("precision", self.precision, PRECISIONS),
        ):
            check_one_of(name, value, known)
        for side in ("src", "tgt"):
            sizes = getattr(self, f"{side}_vocab_size"), getattr(self, f"{side}_features")
            if (sizes[0] > 0) == (sizes[1] > 0):
                raise ValueError(
                    f"give either {side}_vocab_size (words) or {side}_features (continuous), "
                    f"found {sizes[0]} and {sizes[1]}"
                )
        sizes = ("src_vocab_size", "tgt_vocab_size", "src_features", "tgt_features")
        for name in (*sizes, "attention_features", "readout_features", "squeeze"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        check_at_least_one(self, "embed_dim", "encoder_hidden", "decoder_hidden", "encoder_layers", "decoder_layers")
        check_share("dropout", self.dropout)
        check_share("recurrent_dropout", self.recurrent_dropout)
        if self.attention is None and self.attend_first:
            raise ValueError("attend_first needs an attention; name one, or leave attend_first off")
        if self.attention is not None and self.readout == "state" and not self.attend_first:
            raise ValueError(
                "readout='state' ignores the context of recur-then-attend; use concat or attentional, or attend_first"
            )
        if self.tie_embeddings and not self.tgt_vocab_size:
            raise ValueError("tie_embeddings needs target words, found continuous targets (tgt_features); turn it off")
        if self.share_embeddings and not (self.src_vocab_size and self.tgt_vocab_size):
            raise ValueError("share_embeddings needs words on both sides, found continuous sequences; turn it off")
        if self.share_embeddings and self.src_vocab_size != self.tgt_vocab_size:
            raise ValueError(
                "share_embeddings needs one vocabulary for both sides, found "
                f"{self.src_vocab_size} and {self.tgt_vocab_size} words"
            )
        if self.tie_embeddings and (self.readout != "attentional" or self.readout_width != self.embed_dim):
            raise ValueError(
                "tie_embeddings needs readout='attentional' with readout_features equal to embed_dim "
                f"({self.embed_dim}); found {self.readout!r} with {self.readout_width}"
            )
        encoder_width = self.encoder_hidden * (2 if self.bidirectional else 1)
        if self.bridge == "copy" and encoder_width != self.decoder_hidden:
            raise ValueError(
                f"bridge='copy' needs an encoder state as wide as the decoder's: {encoder_width} and "
                f"{self.decoder_hidden}; use bridge='dense'"
            )
        self.make_mechanism()

    @property
    def readout_width(self) -> int:
        """Width of the attentional readout."""
        return self.readout_features or (self.embed_dim if self.tie_embeddings else self.decoder_hidden)

    @property
    def max_src_len(self) -> int | None:
        """The longest source that its attention can see, in tokens; None: any."""
        return getattr(self.make_mechanism(), "max_len", None)

    def make_mechanism(self) -> Attention | None:
        """The attention with its settings, or None without one."""
        if self.attention is None:
            return None
        options = {"precision": self.precision} | self.attention_options
        return make_attention(self.attention, self.attention_features or self.decoder_hidden, **options)


class Seq2Seq(nn.Module):
    """A recurrent encoder-decoder with attention (Bahdanau et al., 2015; Luong et al., 2015).

    Attributes:
      config: see `Seq2SeqConfig`.
    """

    config: Seq2SeqConfig

    def setup(self):
        """Builds embeddings, stacks, the bridge and the output layer from the config."""
        c = self.config
        embedding = nn.initializers.normal(c.embed_dim**-0.5)
        self.src_embed = (
            nn.Embed(c.src_vocab_size, c.embed_dim, embedding_init=embedding)
            if c.src_vocab_size
            else nn.Dense(c.embed_dim)
        )
        if c.share_embeddings:
            self.tgt_embed = self.src_embed
        elif c.tgt_vocab_size:
            self.tgt_embed = nn.Embed(c.tgt_vocab_size, c.embed_dim, embedding_init=embedding)
        else:
            self.tgt_embed = nn.Dense(c.embed_dim)
        self.encoder = RecurrentStack(
            c.encoder_hidden,
            c.encoder_layers,
            cell=c.encoder_cell,
            bidirectional=c.bidirectional,
            dropout=c.dropout,
            recurrent_dropout=c.recurrent_dropout,
            variational=c.variational,
            residual=c.residual,
            precision=c.precision,
        )
        self.decoder = AttentionDecoder(
            c.decoder_hidden,
            c.readout_width,
            c.make_mechanism(),
            cell=c.decoder_cell,
            num_layers=c.decoder_layers,
            attend_first=c.attend_first,
            input_feeding=c.input_feeding,
            readout=c.readout,
            query_with_input=c.query_with_input,
            squeeze=c.squeeze,
            dropout=c.dropout,
            variational=c.variational,
            residual=c.residual,
            precision=c.precision,
        )
        if c.bridge == "dense":
            names = ("cell", "hidden") if CELLS[c.decoder_cell].paired else ("hidden",)
            self.bridges = [{name: nn.Dense(c.decoder_hidden) for name in names} for _ in range(c.decoder_layers)]
        self.drop = Dropout(c.dropout, broadcast_dims=(1,) if c.variational else ())
        if not c.tie_embeddings:
            width = self.decoder.width(c.encoder_hidden * (2 if c.bidirectional else 1))
            outputs = c.tgt_vocab_size or c.tgt_features
            self.output_kernel = self.param(
                "output_kernel", nn.initializers.glorot_uniform(), (width, outputs), jnp.float32
            )
        self.output_bias = self.param(
            "output_bias", nn.initializers.zeros, (c.tgt_vocab_size or c.tgt_features,), jnp.float32
        )

    def __call__(
        self, batch: Batch, *, deterministic: bool = True, teacher_forcing: Float[ArrayLike, ""] | None = None
    ) -> tuple[Array, Array | None]:
        """Predicts every target position from the source and the true targets before it.

        Args:
          batch: with targets.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.
          teacher_forcing: see `features`.

        Returns:
          ``logits [batch, tgt_len, vocab]`` (continuous targets: predictions ``[batch, tgt_len, tgt_features]``), and
          ``weights [batch, (heads,) tgt_len, src_len]`` or None.
        """
        features, weights = self.features(batch, deterministic=deterministic, teacher_forcing=teacher_forcing)
        return self.project(features), weights

    def encode(self, batch: Batch, *, deterministic: bool = True) -> tuple[Float[Array, "batch src_len width"], tuple]:
        """Encodes the source.

        Returns:
          Outputs ``[batch, src_len, width]`` and the decoder's first carries, one a layer.
        """
        config = self.config
        check_source(batch, rank=2 if config.src_vocab_size else 3)
        embedded = self.drop(self.src_embed(batch.src), deterministic=deterministic)
        outputs, carries = self.encoder(embedded, batch.src_mask, deterministic=deterministic)
        return self.drop(outputs, deterministic=deterministic), self._bridge(carries)

    def _bridge(self, carries: tuple) -> tuple:
        config = self.config
        paired = CELLS[config.decoder_cell].paired
        states = []
        for layer in range(config.decoder_layers):
            last = carries[min(layer, len(carries) - 1)]
            directions = last if config.bidirectional else (last,)
            hidden = jnp.concatenate([hidden_of(carry) for carry in directions], axis=-1)
            cell = jnp.concatenate([carry[0] if isinstance(carry, tuple) else carry for carry in directions], axis=-1)
            if config.bridge == "zero":
                hidden = cell = jnp.zeros((hidden.shape[0], config.decoder_hidden), hidden.dtype)
            elif config.bridge == "dense":
                hidden = jnp.tanh(self.bridges[layer]["hidden"](hidden))
                cell = self.bridges[layer]["cell"](cell) if paired else hidden
            states.append((cell, hidden) if paired else hidden)
        return tuple(states)

    def features(
        self, batch: Batch, *, deterministic: bool = True, teacher_forcing: Float[ArrayLike, ""] | None = None
    ) -> tuple[Float[Array, "batch tgt_len width"], Float[Array, "batch *heads tgt_len src_len"] | None]:
        """The decoder's features before the output layer.

        Args:
          batch: with targets.
          deterministic: turns dropout off.
          teacher_forcing: the probability, a traced scalar, that a position is fed the true token before it; otherwise
            it is fed the model's own. One coin a token, from the ``sampling`` stream. A gradient-free scan draws the
            mixed inputs first, with the same dropout. None: always the true one, and no such scan (Bengio et al., 2015,
            arXiv:1506.03099).

        Returns:
          ``features [batch, tgt_len, width]``, and ``weights [batch, (heads,) tgt_len, src_len]`` or None.
        """
        check_target(batch, rank=2 if self.config.tgt_vocab_size else 3)
        keys, carry = self.encode(batch, deterministic=deterministic)
        rows, time = batch.tgt.shape[:2]
        masks = input_mask = None
        if not deterministic and self.config.dropout:
            masks = self.decoder.draw_masks(self.make_rng("dropout"), rows, time, keys.shape[-1])
            ones = jnp.ones((rows, time, self.config.embed_dim), keys.dtype)
            input_mask = self.drop(ones, deterministic=False)
        inputs = shift_right(batch.tgt)
        if teacher_forcing is not None:
            inputs = self._mixed_inputs(inputs, teacher_forcing, keys, batch.src_mask, carry, masks, input_mask)
        embedded = self.tgt_embed(inputs)
        embedded = embedded if input_mask is None else embedded * input_mask
        return self.decoder(embedded, keys, batch.src_mask, carry, masks=masks, index=batch.tgt_index)

    def attention_maps(self, batch: Batch) -> dict[str, Array]:
        """Every attention map for given pairs, as `attn_jax.models.transformer.Transformer.attention_maps` gives them.

        Returns:
          ``cross [batch, 1, heads, tgt_len, src_len]``, rows of padding are 0; nothing without attention.
        """
        _, weights = self.features(batch)
        if weights is None:
            return {}
        weights = weights if weights.ndim == 4 else weights[:, None]
        return {"cross": jnp.where(batch.tgt_mask[:, None, :, None], weights, 0)[:, None]}

    def _mixed_inputs(self, inputs, probability, keys, src_mask, carry, masks, input_mask) -> Array:
        """Each input is the true one or, if its coin falls so, what the model says after the inputs before it."""
        pure, einsum = self.decoder.clone(parent=None), PRECISIONS[self.config.precision]
        *output_layer, vocab_first = self.output_weights()
        params, embed, (kernel, bias) = jax.lax.stop_gradient(
            (self.decoder.raw_params(), self.tgt_embed.variables["params"], output_layer)
        )
        continuous = not self.config.tgt_vocab_size

        def embed_tokens(tokens: Array) -> Array:
            return tokens @ embed["kernel"] + embed["bias"] if continuous else embed["embedding"][tokens]

        true_coin = jax.random.bernoulli(self.make_rng("sampling"), probability, inputs.shape[:2])
        memory, state = jax.lax.stop_gradient(self.decoder.start(keys, src_mask, carry))
        inputs, input_mask, masks = jax.lax.stop_gradient((inputs, input_mask, masks))
        by_time = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (inputs, true_coin, input_mask))
        if masks is not None:
            masks = jax.tree.map(lambda m: jnp.broadcast_to(m, (inputs.shape[1], *m.shape[1:])), masks)

        def step(loop, x):
            state, own = loop
            (true, coin, input_mask), step_masks = x
            token = jnp.where(coin[:, None] if continuous else coin, true, own)
            embedded = embed_tokens(token)
            embedded = (embedded if input_mask is None else embedded * input_mask)[:, None]
            x = pure.project_input(einsum, params, embedded)._replace(masks=step_masks)
            state, output = pure.step_fn(einsum, params, memory, state, x)
            dropped = None if step_masks is None else step_masks.features
            output = pure.complete(einsum, params, memory, output, embedded, dropped)
            logits = einsum("bi,oi->bo" if vocab_first else "bi,io->bo", output.features[:, 0], kernel) + bias
            return (state, logits if continuous else jnp.argmax(logits, -1).astype(true.dtype)), token

        _, tokens = jax.lax.scan(step, (state, inputs[:, 0]), (by_time, masks))
        return jnp.swapaxes(tokens, 0, 1)

    def output_weights(self) -> tuple[Array, Array, bool]:
        """The output layer: kernel, bias, and whether the kernel is ``[vocab, width]`` (tied) or ``[width, vocab]``."""
        if self.config.tie_embeddings:
            return self.tgt_embed.variables["params"]["embedding"], self.output_bias, True
        return self.output_kernel, self.output_bias, False

    def project(self, features: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
        """Logits over the target vocabulary (continuous targets: the prediction) of ``features [..., width]``."""
        kernel, bias, vocab_first = self.output_weights()
        return (
            PRECISIONS[self.config.precision]("...i,oi->...o" if vocab_first else "...i,io->...o", features, kernel)
            + bias
        )

    # ------------------------------------------------------------------------------------------- the decoding protocol

    def start(self, batch: Batch, max_len: int, prefix: Array | None = None) -> DecodeState:
        """Encodes the source; see `attn_jax.models.protocol.Decoder`."""
        del max_len
        keys, carry = self.encode(batch)
        memory, dynamic = self.decoder.start(keys, batch.src_mask, carry)
        state = DecodeState(memory, dynamic)
        for position in range(0 if prefix is None else prefix.shape[1]):
            state = self.step(prefix[:, position, None], state).state
        return state

    def fold(self) -> dict[str, Any]:
        """The projected embedding of every target word; see `attn_jax.models.protocol.Decoder`."""
        if not self.config.tgt_vocab_size:
            return {}
        embedding = self.tgt_embed.variables["params"]["embedding"]
        table = jax.eval_shape(self.decoder.input_gates, embedding)
        fits = table.size * table.dtype.itemsize <= FOLDED_BYTES
        return {"gates": self.decoder.input_gates(embedding)} if fits else {}

    def step(self, tokens: Array, state: DecodeState) -> StepOutput:
        """One decoding step; see `attn_jax.models.protocol.Decoder`."""
        chex.assert_rank(tokens, 2 if self.config.tgt_vocab_size else 3)
        chex.assert_tree_shape_prefix(state.dynamic, tokens.shape[:2])
        table = self.get_variable("folded", "gates")
        gates = None if table is None else table[tokens]
        dynamic, features, weights = self.decoder.step(self.tgt_embed(tokens), state.memory, state.dynamic, gates)
        if weights is not None and weights.ndim == 4:
            weights = weights.mean(axis=1)
        return StepOutput(self.project(features), weights, DecodeState(state.memory, dynamic))
