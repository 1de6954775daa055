"""Decoding where no hypothesis ever overtakes another: the loop under greedy decoding and sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from attn_jax.decoding.hypotheses import (
    IMPOSSIBLE,
    Hypotheses,
    Step,
    batch_size,
    check_lengths,
    first_tokens,
    forbid,
    length_divisor,
    length_limits,
    log_probabilities,
    score_dtype,
    widen,
)
from attn_jax.models.protocol import EOS_ID, PAD_ID, DecodeState

Array = jax.Array


class _Rollout(NamedTuple):
    """The carry of the loop."""

    position: Array
    last: Array  # [batch, width]
    dynamic: Any  # leaves [batch, width, ...]
    done: Array  # [batch, width]
    lengths: Array  # [batch, width]
    log_probs: Array  # [batch, width]
    tokens: Array  # [max_len, batch, width]
    weights: Array | None  # [max_len, batch, width, src_len]


def rollout(
    step: Step,
    state: DecodeState,
    choose: Callable[[Array, Array], Array],
    *,
    max_len: int,
    width: int = 1,
    length_penalty: float | Array | str = 0.0,
    min_len: int = 1,
    active: Array | None = None,
    row_max_len: Array | None = None,
    first: Array | None = None,
) -> Hypotheses:
    """Decodes ``width`` independent hypotheses a sentence, one chosen token after another, until all have ended.

    Args:
      step: as in ``beam_search``.
      state: fresh from ``start``.
      choose: ``(log_probs [batch, width, vocab], position) -> tokens [batch, width]``; what must not be generated has
        the log-probability ``IMPOSSIBLE``.
      max_len: most tokens of a hypothesis, with end of sentence.
      width: hypotheses a sentence.
      length_penalty: for the scores only; see ``length_divisor``.
      min_len: least tokens of a hypothesis, with end of sentence.
      active: ``[batch]`` bool; rows with False are empty slots and cost no step.
      row_max_len: ``[batch]`` int, a limit for each row below ``max_len``.
      first: ``[batch]`` ids to feed first, for a state that has read a ``prefix`` (see
        `attn_jax.models.protocol.Decoder.start`): the last forced token. None: ``BOS_ID``. Neither is part of a result.

    Returns:
      ``Hypotheses``, ``[batch, width, ...]``, in the order of the slots.

    Raises:
      ValueError: for numbers out of range.

    >>> step = lambda tokens, state: (10.0 * jax.nn.one_hot(tokens + 2, 6), None, state)
    >>> always_next = lambda log_probs, position: jnp.where(position == 2, 2, log_probs.argmax(-1))
    >>> rollout(step, DecodeState(None, jnp.zeros((1, 1))), always_next, max_len=4).tokens.tolist()
    [[[3, 5, 2, 0]]]
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, found {width}")
    check_lengths(max_len, min_len)
    batch = batch_size(state)
    limits = length_limits(batch, max_len, active, row_max_len)[:, None]
    first = first_tokens(batch, width, first)
    dynamic = widen(state.dynamic, width)
    logits, weights, _ = jax.eval_shape(step, first, state.replace(dynamic=dynamic))
    chex.assert_shape(logits, (batch, width, None))

    def advance(now: _Rollout) -> _Rollout:
        logits, weights, after = step(now.last, state.replace(dynamic=now.dynamic))
        log_probs = forbid(log_probabilities(logits), now.position, min_len)
        tokens = choose(log_probs, now.position).astype(jnp.int32)
        chosen = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1, mode="clip")[..., 0]
        tokens = jnp.where(now.done, PAD_ID, tokens)
        lengths = jnp.where(now.done, now.lengths, now.position + 1)
        if now.weights is not None:
            weights = jnp.where(now.done[..., None], 0, weights)
            weights = lax.dynamic_update_index_in_dim(now.weights, weights, now.position, 0)
        return _Rollout(
            position=now.position + 1,
            last=tokens,
            dynamic=after.dynamic,
            done=now.done | (tokens == EOS_ID) | (lengths >= limits),
            lengths=lengths,
            log_probs=jnp.where(now.done, now.log_probs, now.log_probs + chosen),
            tokens=lax.dynamic_update_index_in_dim(now.tokens, tokens, now.position, 0),
            weights=weights,
        )

    def unfinished(now: _Rollout) -> Array:
        return (now.position < max_len) & ~jnp.all(now.done)

    begin = _Rollout(
        position=jnp.zeros((), jnp.int32),
        last=first,
        dynamic=dynamic,
        done=jnp.broadcast_to(limits == 0, (batch, width)),
        lengths=jnp.zeros((batch, width), jnp.int32),
        log_probs=jnp.zeros((batch, width), score_dtype(logits)),
        tokens=jnp.full((max_len, batch, width), PAD_ID, jnp.int32),
        weights=None if weights is None else jnp.zeros((max_len, *weights.shape), weights.dtype),
    )
    end = lax.while_loop(unfinished, advance, begin)
    exists = end.lengths > 0
    return Hypotheses(
        tokens=jnp.moveaxis(end.tokens, 0, 2),
        lengths=end.lengths,
        log_probs=jnp.where(exists, end.log_probs, IMPOSSIBLE),
        scores=jnp.where(exists, end.log_probs / length_divisor(end.lengths, length_penalty), IMPOSSIBLE),
        finished=jnp.any(end.tokens == EOS_ID, axis=0),
        weights=None if end.weights is None else jnp.moveaxis(end.weights, 0, 2),
    )
