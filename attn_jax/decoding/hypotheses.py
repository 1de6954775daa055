"""What every search returns, and what they all need to read a decoder: log-probabilities, widths, first tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp

from attn_jax.models.protocol import BOS_ID, IMPOSSIBLE, DecodeState

Array = jax.Array
Step = Callable[[Array, DecodeState], tuple[Array, Array | None, DecodeState]]


@flax.struct.dataclass
class Hypotheses:
    """The best hypotheses of each sentence of a batch, best first, each with its exact attention.

    A hypothesis that met its length limit before ``EOS_ID`` is returned as it is, with ``finished`` False, and a beam
    search ranks it after every finished one, whatever its score: it is not a sentence, so the scores do not compare. A
    search that finds fewer hypotheses than asked leaves empty slots: length 0, all ``PAD_ID``, scores ``IMPOSSIBLE``,
    not finished.

    Attributes:
      tokens: ``[batch, n_best, max_len]`` int32, ending with ``EOS_ID`` (if finished), then ``PAD_ID``.
      lengths: ``[batch, n_best]`` int32, number of tokens with ``EOS_ID``.
      log_probs: ``[batch, n_best]``, the model's log-probability of the tokens, in nats.
      scores: ``[batch, n_best]``, ``log_probs`` over the length penalty, less the coverage penalty if any; falling,
        apart for finished and unfinished.
      finished: ``[batch, n_best]`` bool, whether the hypothesis ends with ``EOS_ID``.
      weights: ``[batch, n_best, max_len, src_len]``, row t is the attention that chose token t; 0 after the end. None
        when the decoder gives no weights.
      settled: ``[batch, n_best]`` bool, False where the search ran out of room (`Rules.room`) before it was done.
      tree: what a beam search went through, if asked for; see `attn_jax.decoding.history.BeamTree`.
    """

    tokens: Array
    lengths: Array
    log_probs: Array
    scores: Array
    finished: Array
    weights: Array | None = None
    settled: Array | None = None
    tree: Any = None


def log_probabilities(logits: Array) -> Array:
    """``log softmax(logits)`` over the last axis, in float32 (float64 for float64), within ``[IMPOSSIBLE, 0]``.

    Never above 0, so a longer hypothesis is never more likely: the safe early exit of the beam search stands on that.

    Args:
      logits: ``[..., vocab]``, any float type; ``-inf`` is allowed beside finite values.

    Returns:
      ``[..., vocab]`` log-probabilities in nats.

    >>> [round(float(p), 4) for p in jnp.exp(log_probabilities(jnp.log(jnp.array([1.0, 3.0, 0.0]))))]
    [0.25, 0.75, 0.0]
    """
    return jnp.clip(jax.nn.log_softmax(logits.astype(score_dtype(logits))), IMPOSSIBLE, 0.0)


def score_dtype(logits: Any) -> Any:
    """float32, or float64 for float64 ``logits``.

    >>> score_dtype(jnp.zeros(3, jnp.bfloat16)).name
    'float32'
    """
    return jnp.promote_types(logits.dtype, jnp.float32)


def widen(dynamic: Any, width: int) -> Any:
    """Repeats the leaves ``[batch, 1, ...]`` of a fresh state over ``width`` hypotheses: ``[batch, width, ...]``.

    Raises:
      ValueError: when a leaf is not ``[batch, 1, ...]``.

    >>> widen({"position": jnp.zeros((2, 1))}, 3)["position"].shape
    (2, 3)
    """

    def repeat(leaf: Array) -> Array:
        if leaf.ndim < 2 or leaf.shape[1] != 1:
            raise ValueError(
                f"state.dynamic must be fresh from start, leaves [batch, 1, ...], found shape {leaf.shape}"
            )
        return jnp.broadcast_to(leaf, (leaf.shape[0], width, *leaf.shape[2:]))

    return jax.tree.map(repeat, dynamic)


def first_tokens(batch: int, width: int, first: Array | None) -> Array:
    """What is fed first: ``BOS_ID``, or what a caller forces after a prefix.

    Args:
      batch: number of rows.
      width: hypotheses a row.
      first: ``[batch]`` ids; None: ``BOS_ID``.

    Returns:
      ``[batch, width]`` int32.

    >>> first_tokens(2, 3, None).tolist(), first_tokens(2, 1, jnp.array([7, 8])).tolist()
    ([[1, 1, 1], [1, 1, 1]], [[7], [8]])
    """
    if first is None:
        return jnp.full((batch, width), BOS_ID, jnp.int32)
    chex.assert_type(first, int)
    chex.assert_shape(first, (batch,))
    return jnp.broadcast_to(jnp.asarray(first, jnp.int32)[:, None], (batch, width))


def batch_size(state: DecodeState) -> int:
    """Number of sentences of a decoding state.

    >>> batch_size(DecodeState(memory=None, dynamic=jnp.zeros((4, 1))))
    4
    """
    return jax.tree.leaves((state.dynamic, state.memory))[0].shape[0]
