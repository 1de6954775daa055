"""Decoding where no hypothesis ever overtakes another: the loop under greedy decoding and sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attn_jax.decoding.hypotheses import IMPOSSIBLE, Hypotheses, Step, log_probabilities
from attn_jax.decoding.rules import Rules, begin
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
    **rules: Any,
) -> Hypotheses:
    """Decodes ``width`` independent hypotheses a sentence, one chosen token after another, until all have ended.

    Args:
      step: as in ``beam_search``.
      state: fresh from ``start``.
      choose: ``(log_probs [batch, width, vocab], position) -> tokens [batch, width]``; what must not be generated has
        the log-probability ``IMPOSSIBLE``.
      max_len: most tokens of a hypothesis, with end of sentence.
      width: hypotheses a sentence.
      **rules: scores, lengths and constraints, see `attn_jax.decoding.rules.Rules`.

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
    rules = Rules(**rules)
    start = begin(step, state, rules, width=width, max_len=max_len)
    batch, limits, room = start.tokens.shape[0], start.limits[:, None], rules.room or max_len

    def advance(now: _Rollout) -> _Rollout:
        logits, weights, after = step(now.last, state.replace(dynamic=now.dynamic))
        past = jnp.moveaxis(now.tokens, 0, -1) if rules.no_repeat_ngram else None
        log_probs = rules.allowed(log_probabilities(logits), now.position, past, start.limits)
        tokens = choose(log_probs, now.position).astype(jnp.int32)
        chosen = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1, mode="clip")[..., 0]
        tokens = jnp.where(now.done, PAD_ID, tokens)
        lengths = jnp.where(now.done, now.lengths, now.position + 1)
        total = jnp.where(now.done, now.log_probs, now.log_probs + chosen)
        if now.weights is not None:
            weights = jnp.where(now.done[..., None], 0, weights)
            weights = lax.dynamic_update_index_in_dim(now.weights, weights, now.position, 0)
        return _Rollout(
            position=now.position + 1,
            last=tokens,
            dynamic=after.dynamic,
            done=now.done | (tokens == EOS_ID) | (lengths >= limits) | (total < IMPOSSIBLE / 2),
            lengths=lengths,
            log_probs=total,
            tokens=lax.dynamic_update_index_in_dim(now.tokens, tokens, now.position, 0),
            weights=weights,
        )

    def unfinished(now: _Rollout) -> Array:
        return (now.position < room) & ~jnp.all(now.done)

    looked = start.weights
    end = _Rollout(
        position=jnp.zeros((), jnp.int32),
        last=start.tokens,
        dynamic=start.dynamic,
        done=jnp.broadcast_to(limits == 0, (batch, width)),
        lengths=jnp.zeros((batch, width), jnp.int32),
        log_probs=jnp.zeros((batch, width), start.dtype),
        tokens=jnp.full((room, batch, width), PAD_ID, jnp.int32),
        weights=None if looked is None else jnp.zeros((room, *looked.shape), looked.dtype),
    )
    end = lax.while_loop(unfinished, advance, end)
    exists = (end.lengths > 0) & (end.log_probs > IMPOSSIBLE / 2)  # constraints may leave nothing to choose from
    log_probs, lengths = jnp.where(exists, end.log_probs, IMPOSSIBLE), jnp.where(exists, end.lengths, 0)
    tokens, weights = jnp.where(exists, end.tokens, PAD_ID), end.weights
    if weights is not None:
        weights = jnp.where(exists[..., None], weights, 0)
    return Hypotheses(
        tokens=jnp.moveaxis(tokens, 0, 2),
        lengths=lengths,
        log_probs=log_probs,
        scores=rules.score(log_probs, start.divisors[lengths], weights.sum(0) if rules.covers else None),
        finished=jnp.any(tokens == EOS_ID, axis=0),
        weights=None if weights is None else jnp.moveaxis(weights, 0, 2),
        settled=end.done,
    )
