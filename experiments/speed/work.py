"""The model and the data of the translation rows: the same numbers for everybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from attn_jax import Batch, OptimizerConfig, Seq2Seq, Seq2SeqConfig
from attn_jax.models.protocol import EOS_ID
from attn_jax.training.step import batch_loss, init_state, make_optimizer, make_train_step
from experiments.speed.measure import Work, compile_for, count_operations
from experiments.speed.memory import MB, executable_mb

SMOOTHING = 0.1
LEARNING_RATE = 1e-3
CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A translator: bidirectional GRU encoder, LSTM decoder with input feeding, and one batch for it.

    Attributes:
      batch: sentence pairs.
      src_len, tgt_len: padded lengths in tokens; real ones spread between 40 % of it and all.
      vocab: words on each side.
      embed: width of the embeddings.
      encoder: units of each direction.
      decoder: units of the decoder, the readout and additive attention.
      layers: of the encoder and of the decoder; peers have one.
      attention: ``general`` (Luong) or ``additive`` (Bahdanau).
      precision: ``float32``, or ``bfloat16`` for the operands of the products.
    """

    batch: int = 64
    src_len: int = 20
    tgt_len: int = 20
    vocab: int = 8000
    embed: int = 256
    encoder: int = 256
    decoder: int = 512
    layers: int = 1
    attention: str = "general"
    precision: str = "float32"

    def __str__(self) -> str:
        shape = f"{self.batch} x {self.src_len} x {self.tgt_len}"
        return f"{shape}, {self.vocab:,} words, widths {self.encoder}/{self.decoder}, {self.attention} attention"


TINY = {"batch": 4, "src_len": 5, "tgt_len": 4, "vocab": 40, "embed": 8, "encoder": 8, "decoder": 16}
"""Sizes of a quick run."""


class Data(NamedTuple):
    """One batch as NumPy arrays, for any framework; ``index`` are the flat positions of the real targets."""

    src: np.ndarray
    src_lengths: np.ndarray
    tgt: np.ndarray
    tgt_lengths: np.ndarray
    index: np.ndarray

    @property
    def src_mask(self) -> np.ndarray:
        """``[batch, src_len]`` bool, True at real words."""
        return np.arange(self.src.shape[1]) < self.src_lengths[:, None]

    @property
    def tgt_mask(self) -> np.ndarray:
        """``[batch, tgt_len]`` bool, True at real words."""
        return np.arange(self.tgt.shape[1]) < self.tgt_lengths[:, None]

    @property
    def tokens(self) -> int:
        """Real target tokens."""
        return len(self.index)

    def as_batch(self) -> Batch:
        """For our models, on the device."""
        arrays = Batch(self.src, self.src_mask, self.tgt, self.tgt_mask, self.index)
        return jax.device_put(arrays)


def draw(sizes: Sizes, seed: int = 0) -> Data:
    """A batch of random words: the lengths of a bucket, triangular with most sentences at three quarters."""
    rng = np.random.default_rng(seed)

    def side(longest: int) -> tuple[np.ndarray, np.ndarray]:
        least = max(1, int(0.4 * longest))
        lengths = np.rint(rng.triangular(least, 0.75 * longest, longest, sizes.batch)).astype(np.int32)
        lengths[0] = longest
        words = rng.integers(4, sizes.vocab, (sizes.batch, longest), dtype=np.int32)
        words[np.arange(sizes.batch), lengths - 1] = EOS_ID
        return np.where(np.arange(longest) < lengths[:, None], words, 0), lengths

    (src, src_lengths), (tgt, tgt_lengths) = side(sizes.src_len), side(sizes.tgt_len)
    real = np.arange(sizes.tgt_len) < tgt_lengths[:, None]
    return Data(src, src_lengths, tgt, tgt_lengths, np.flatnonzero(real).astype(np.int32))


def our_config(sizes: Sizes) -> Seq2SeqConfig:
    """The model of `Sizes` in our words."""
    return Seq2SeqConfig(
        src_vocab_size=sizes.vocab,
        tgt_vocab_size=sizes.vocab,
        embed_dim=sizes.embed,
        encoder_hidden=sizes.encoder,
        decoder_hidden=sizes.decoder,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.layers,
        attention=sizes.attention,
        dropout=0.0,
        precision=sizes.precision,
    )


def our_optimizer() -> optax.GradientTransformation:
    """Adam with the rate and the clipping that everybody has."""
    return make_optimizer(OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant", clip=CLIP), 1000)


def our_training(sizes: Sizes, data: Data, *, model: Any = None, mesh: Mesh | None = None) -> Work:
    """Our training step: a gradient and an update, as `attn_jax.training.step.make_train_step` runs them.

    Args:
      sizes: of the model.
      data: the batch.
      model: another one than the translator of ``sizes``.
      mesh: devices, on one axis, that share the sentences of the batch; None: one device.
    """
    model, batch = model or Seq2Seq(our_config(sizes)), data.as_batch()
    optimizer = our_optimizer()
    state, rng = init_state(model, optimizer, batch, jax.random.key(0)), jax.random.key(1)
    if mesh is not None:
        everywhere, by_sentence = NamedSharding(mesh, P()), NamedSharding(mesh, P(*mesh.axis_names))
        state, rng, index = jax.device_put((state, rng, batch.tgt_index), everywhere)
        batch = jax.device_put(batch.replace(tgt_index=None), by_sentence).replace(tgt_index=index)
    gradient, update = make_train_step(model, optimizer, smoothing=SMOOTHING).jitted
    gradient, seconds = compile_for(gradient, state.params, state.step, batch, rng, None, None)
    update, more = compile_for(update, state, gradient.out_info[0])

    def call() -> None:
        nonlocal state
        grads, found = gradient(state.params, state.step, batch, rng, None, None)
        state, norm = update(state, grads)
        jax.block_until_ready((state, found, norm))

    given = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)) / MB  # the gradient, in the memory of the update
    memory_mb = max(executable_mb(gradient), executable_mb(update) + given)
    return Work(call, memory_mb, seconds + more, ready=True)


def training_operations(sizes: Sizes, data: Data) -> float:
    """Operations of the products that one update needs: forward and backward, real targets only, nothing twice."""
    model, batch = Seq2Seq(our_config(sizes)), data.as_batch()
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    loss = lambda params, batch: batch_loss(model, params, batch).loss  # noqa: E731
    return 3 * count_operations(loss, shapes, batch)  # backward: one product for each of the two operands
