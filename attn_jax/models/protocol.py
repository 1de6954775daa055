"""What training, decoding and every model family agree on: the batch, the decoding state, the special ids."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import flax.struct
import jax

Array = jax.Array

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
"""Ids of padding, begin of sentence, end of sentence and unknown piece, in every vocabulary of this library."""


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
        once,
        filled up with ``batch * tgt_len`` (one past the end). With it the loss computes logits for real tokens only.
    """

    src: Array
    src_mask: Array
    tgt: Array | None = None
    tgt_mask: Array | None = None
    tgt_index: Array | None = None


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
        """Encodes the source. Dynamic leaves come with ``beam = 1``; ``max_len`` bounds the number of later steps."""
        ...

    def step(self, tokens: Array, state: DecodeState) -> StepOutput:
        """Feeds ``tokens [batch, beam]`` (the first are ``BOS_ID``) and gives the logits of the next ones."""
        ...
