"""What training, decoding and every model family agree on: the batch, the decoding state, the special ids."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import chex
import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
"""Ids of padding, begin of sentence, end of sentence and unknown piece, in every vocabulary of this library."""

IMPOSSIBLE = -1e9
"""Log-probability or logit of what must not happen: its share of a softmax is 0 exactly. Finite, so that sums and
differences of it, and gradients, never turn into NaN."""


@flax.struct.dataclass
class Batch:
    """Source and target sequences of one batch, padded, with explicit masks (True = a real position).

    Attributes:
      src: ``[batch, src_len]`` int32 ids, ending with ``EOS_ID``; or ``[batch, src_len, features]`` floats.
      src_mask: ``[batch, src_len]`` bool.
      tgt: ``[batch, tgt_len]`` int32 ids, ending with ``EOS_ID`` and without ``BOS_ID``; or floats as ``src``.
        None when there is nothing to compare with (decoding).
      tgt_mask: ``[batch, tgt_len]`` bool, or None with ``tgt``.
      tgt_index: ``[capacity]`` int32, the flat positions ``row * tgt_len + column`` of the real target tokens, each
        once, filled up with ``batch * tgt_len`` (one past the end). With it models leave out padding, which must follow
        the last real token of its row: the loss computes no logits for it, a recurrent decoder multiplies no input.
      links: ``[capacity, 3]`` int32, known alignments for guided training: row, target and source position of tokens
        that belong together, filled up with ``(batch, 0, 0)``. None: nothing is known.
    """

    src: Array
    src_mask: Array
    tgt: Array | None = None
    tgt_mask: Array | None = None
    tgt_index: Array | None = None
    links: Array | None = None


@flax.struct.dataclass
class DecodeState:
    """What a model remembers between two decoding steps.

    Attributes:
      memory: a pytree with leaves ``[batch, ...]``: what the source says. Never gathered, never tiled over the beam.
      dynamic: a pytree with leaves ``[batch, beam, ...]``: carries, caches, positions, fed contexts. A search gathers
        them along the beam axis at each step.
    """

    memory: Any
    dynamic: Any


class StepOutput(NamedTuple):
    """One decoding step: ``logits [batch, beam, vocab]``, ``weights [batch, beam, src_len]`` or None, and the state."""

    logits: Array
    weights: Array | None
    state: DecodeState


class Decoder(Protocol):
    """The decoding protocol: every model family provides it, every search uses nothing else."""

    def start(self, batch: Batch, max_len: int, prefix: Array | None = None) -> DecodeState:
        """Encodes the source. Dynamic leaves come with ``beam = 1``; ``max_len`` bounds the number of later steps.

        ``prefix [batch, prefix_len]`` is fed before those steps, and its logits are thrown away: ``BOS_ID`` and the
        tokens *before* the one that is fed next. So a translation that must begin with ``y1 y2 y3`` starts with the
        prefix ``BOS_ID y1 y2``, and the first step is fed ``y3`` (``first`` of the searches in `attn_jax.decoding`).
        None: nothing has been fed, and the first step is fed ``BOS_ID``.
        """
        ...

    def step(self, tokens: Array, state: DecodeState) -> StepOutput:
        """Feeds ``tokens [batch, beam]`` (first ``BOS_ID``, without a prefix) and gives the logits of the next ones."""
        ...

    def fold(self) -> dict[str, Any]:
        """What every step of a search would compute again although it depends on the parameters alone; may be empty."""
        ...


def search_variables(model: Any, params: Any) -> dict[str, Any]:
    """The variables for ``start`` and ``step`` of a search: the parameters, and what `Decoder.fold` makes of them.

    ``{"params": params}`` alone does too, and its steps take longer.

    Args:
      model: with the decoding protocol.
      params: its parameters.

    Returns:
      ``{"params": params, "folded": ...}``.
    """
    return {"params": params, "folded": _fold(model, params)}


@partial(jax.jit, static_argnums=0)
def _fold(model: Any, params: Any) -> dict[str, Any]:
    return model.apply({"params": params}, method="fold")


def check_source(batch: Batch, rank: int) -> None:
    """The tensor contract of a batch's source, checked when it is traced.

    Args:
      batch: any.
      rank: of the source, 2 for ids and 3 for continuous sequences.

    Raises:
      AssertionError: from chex, with what was expected and found.
    """
    chex.assert_rank(batch.src, rank)
    chex.assert_type(batch.src_mask, bool)
    chex.assert_shape(batch.src_mask, batch.src.shape[:2])


def check_target(batch: Batch, rank: int) -> None:
    """The tensor contract of a batch's target: as `check_source`, and a row for every source."""
    chex.assert_rank(batch.tgt, rank)
    chex.assert_type(batch.tgt_mask, bool)
    chex.assert_shape(batch.tgt_mask, batch.tgt.shape[:2])
    chex.assert_equal_shape_prefix([batch.src, batch.tgt], 1)
    if batch.tgt_index is not None:
        chex.assert_rank(batch.tgt_index, 1)
        chex.assert_type(batch.tgt_index, int)


def shift_right(tgt: Array) -> Array:
    """The decoder's inputs: the targets one step later, after ``BOS_ID`` (continuous targets: after zeros).

    Example:
      >>> shift_right(jnp.array([[5, 6, 2]])).tolist()
      [[1, 5, 6]]
    """
    first = jnp.zeros_like(tgt[:, :1]) if tgt.ndim == 3 else jnp.full_like(tgt[:, :1], BOS_ID)
    return jnp.concatenate([first, tgt[:, :-1]], axis=1)
