"""Beam search over the decoding protocol, with the exact attention of every hypothesis.

Two sets of hypotheses a sentence: ``beam`` live ones, which a step extends, and a pool of the ``n_best`` best finished
ones. Nothing but the model's own state moves when hypotheses overtake each other: tokens, attention rows and
back-pointers are written once a step, and one walk back along the pointers reads the result at the end.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from attn_jax.decoding import topk
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


class _Ends(NamedTuple):
    """Last tokens of hypotheses, each ``[batch, n]``: enough to walk back from."""

    scores: Array  # over the length penalty
    log_probs: Array
    lengths: Array
    tokens: Array  # the last token
    parents: Array  # the slot it extends


class _History(NamedTuple):
    """What each step wrote: tokens and parents of the slots after the step, weights of the slots before it."""

    tokens: Array  # [max_len, batch, beam]
    parents: Array  # [max_len, batch, beam]
    weights: Array | None  # [max_len, batch, beam, src_len]


class _Search(NamedTuple):
    """The carry of the loop."""

    position: Array  # tokens generated so far
    tokens: Array  # [batch, beam], the last ones
    log_probs: Array  # [batch, beam], of the live hypotheses, falling
    dynamic: Any  # leaves [batch, beam, ...]
    done: Array  # [batch]
    pool: _Ends  # [batch, n_best]
    history: _History


def beam_search(
    step: Step,
    state: DecodeState,
    *,
    max_len: int,
    beam: int = 5,
    n_best: int = 1,
    length_penalty: float | Array | str = 0.0,
    min_len: int = 1,
    active: Array | None = None,
    row_max_len: Array | None = None,
    first: Array | None = None,
) -> Hypotheses:
    """The ``n_best`` hypotheses with the highest ``log_prob / divisor(length)`` that a beam finds.

    An ending counts when it is among the ``beam`` best continuations of its sentence; the ``beam`` best continuations
    that do not end go on. A sentence is done when nothing it may still find can enter its pool: the best live
    hypothesis, were it to lose no more probability and to end at its most favourable length, does not beat the worst of
    a full pool. (With ``beam=1`` it is done at the first end: that is greedy decoding, whatever the penalty.) A
    sentence that is done no longer changes, and the loop ends when all are. So neither padding nor the other sentences
    change a result.

    Pure; jit it together with ``start`` and a model's parameters. It compiles once for each shape.

    Args:
      step: ``(tokens [batch, beam], state)`` to ``logits [batch, beam, vocab]``, ``weights [batch, beam, src_len]`` or
        None, and the next state.
      state: fresh from ``start``, made for at least ``max_len`` steps. Its memory is neither tiled nor gathered.
      max_len: most tokens of a hypothesis, with end of sentence.
      beam: live hypotheses a sentence.
      n_best: hypotheses to return, at most ``beam``.
      length_penalty: alpha of ``((5 + length) / 6) ** alpha`` (0: none), or ``"average"``; see ``length_divisor``.
      min_len: least tokens of a hypothesis, with end of sentence.
      active: ``[batch]`` bool; rows with False are empty slots and cost no step.
      row_max_len: ``[batch]`` int, a limit for each row below ``max_len``. A limit that grows with the sentence belongs
        here: ``max_len`` is one for the batch, so it would make a result depend on the other sentences.
      first: ``[batch]`` ids to feed first, for a state that has read a ``prefix`` (see
        `attn_jax.models.protocol.Decoder.start`): the last forced token. None: ``BOS_ID``. Neither is part of a result.

    Returns:
      ``Hypotheses``, ``[batch, n_best, ...]``.

    Raises:
      ValueError: for numbers out of range.

    References:
      Wu et al. 2016, Google's Neural Machine Translation System, section 7, arXiv:1609.08144. Huang, Zhao, Ma 2017,
      When to Finish? Optimal Beam Search for Neural Text Generation, arXiv:1809.00069 (stopping that loses nothing).

    >>> table = jnp.log(jnp.array([[0, 0, 0, 0.6, 0.4], [0, 0, 0.3, 0.3, 0.4], [0, 0, 0.9, 0, 0.1]]))
    >>> row = jnp.array([0, 0, 0, 1, 2])  # after a 3: 0.3 to end; after a 4: 0.9
    >>> step = lambda tokens, state: (table[row[tokens]], None, state)
    >>> found = beam_search(step, DecodeState(None, jnp.zeros((1, 1))), max_len=3, beam=2, n_best=2)
    >>> found.tokens[0].tolist(), [round(float(p), 3) for p in jnp.exp(found.log_probs[0])]
    ([[4, 2, 0], [3, 4, 2]], [0.36, 0.216])
    """
    _check(beam, n_best, max_len, min_len)
    batch = batch_size(state)
    limits = length_limits(batch, max_len, active, row_max_len)
    divisors = length_divisor(jnp.arange(max_len + 1), length_penalty)  # [max_len + 1]
    most_favourable = _largest_ahead(divisors, limits)  # [max_len + 1, batch]

    def advance(search: _Search) -> _Search:
        logits, weights, after = step(search.tokens, state.replace(dynamic=search.dynamic))
        length = search.position + 1
        live, parents, tokens, ended = _extend(search.log_probs, logits, search.position, min_len)

        scores = jnp.where(ended > IMPOSSIBLE / 2, ended / divisors[length], IMPOSSIBLE)
        slots = jnp.broadcast_to(jnp.arange(beam, dtype=jnp.int32), (batch, beam))
        new = _Ends(scores, ended, jnp.full_like(slots, length), jnp.full_like(slots, EOS_ID), slots)
        pool = _best(_concatenate(search.pool, new), n_best)

        worst = pool.scores[:, -1]
        hopeless = live[:, 0] / most_favourable[length] <= worst
        if beam == 1:
            hopeless = worst > IMPOSSIBLE / 2
        none_left = live[:, 0] < IMPOSSIBLE / 2

        still = partial(jnp.where, search.done[:, None])  # what is done stays as it is
        return _Search(
            position=length,
            tokens=tokens,
            log_probs=still(search.log_probs, live),
            dynamic=_gather(after.dynamic, parents) if beam > 1 else after.dynamic,
            done=search.done | hopeless | none_left | (length >= limits),
            pool=jax.tree.map(still, search.pool, pool),
            history=_write(search.history, search.position, tokens, parents, weights),
        )

    def unfinished(search: _Search) -> Array:
        return (search.position < max_len) & ~jnp.all(search.done)

    begin = _begin(step, state, limits, first, beam=beam, n_best=n_best, max_len=max_len)
    search = lax.while_loop(unfinished, advance, begin)
    return _traceback(_with_truncated(search, limits, divisors), search.history)


def _check(beam: int, n_best: int, max_len: int, min_len: int) -> None:
    if beam < 1:
        raise ValueError(f"beam must be at least 1, found {beam}")
    if not 1 <= n_best <= beam:
        raise ValueError(f"n_best must be between 1 and beam = {beam}, found {n_best}; widen the beam")
    check_lengths(max_len, min_len)


def _begin(
    step: Step, state: DecodeState, limits: Array, first: Array | None, *, beam: int, n_best: int, max_len: int
) -> _Search:
    """One live hypothesis a sentence, before its first token; the other slots of the beam are impossible."""
    batch = limits.shape[0]
    dynamic = widen(state.dynamic, beam)
    tokens = first_tokens(batch, beam, first)
    logits, weights, _ = jax.eval_shape(step, tokens, state.replace(dynamic=dynamic))
    chex.assert_shape(logits, (batch, beam, None))
    dtype = score_dtype(logits)
    is_first = (jnp.arange(beam) == 0) & (limits > 0)[:, None]

    nothing = jnp.full((batch, n_best), IMPOSSIBLE, dtype)
    none = jnp.zeros((batch, n_best), jnp.int32)
    past = jnp.zeros((max_len, batch, beam), jnp.int32)
    return _Search(
        position=jnp.zeros((), jnp.int32),
        tokens=tokens,
        log_probs=jnp.where(is_first, 0.0, IMPOSSIBLE).astype(dtype),
        dynamic=dynamic,
        done=limits == 0,
        pool=_Ends(nothing, nothing, none, none, none),
        history=_History(past, past, None if weights is None else jnp.zeros((max_len, *weights.shape), weights.dtype)),
    )


def _largest_ahead(divisors: Array, limits: Array) -> Array:
    """The largest divisor that a hypothesis of ``length`` tokens can still end with, ``[max_len + 1 (length), batch]``.

    Log-probabilities are not positive, so with the largest divisor a score is highest.
    """
    lengths = jnp.arange(divisors.shape[0])
    reachable = jnp.where(lengths[:, None] <= limits, divisors[:, None], 0.0)
    ahead = lax.cummax(reachable, axis=0, reverse=True)[1:]
    # Where nothing is ahead, the limit ends the row; a tiny divisor only avoids 0 / 0.
    return jnp.maximum(jnp.pad(ahead, ((0, 1), (0, 0))), jnp.finfo(ahead.dtype).tiny)


def _extend(log_probs: Array, logits: Array, position: Array, min_len: int) -> tuple[Array, Array, Array, Array]:
    """The best continuations of live hypotheses.

    Sums are ranked relative to the best live hypothesis, so that float32 tells continuations apart as well after a
    hundred tokens as after one, and a beam of one ranks exactly as greedy decoding does.

    Args:
      log_probs: ``[batch, beam]``, falling.
      logits: ``[batch, beam, vocab]``.
      position: tokens so far.
      min_len: least tokens of a hypothesis.

    Returns:
      ``log_probs``, ``parents``, ``tokens`` of the hypotheses that go on; and for each slot the log-probability with an
      end, ``IMPOSSIBLE`` when that is not among the ``beam`` best continuations. All ``[batch, beam]``.
    """
    batch, beam, vocab = logits.shape
    best = log_probs[:, :1]
    behind = log_probs - best
    next_log_probs = forbid(log_probabilities(logits), position, min_len)
    ends = behind + next_log_probs[..., EOS_ID]
    goes_on = behind[..., None] + jnp.where(jnp.arange(vocab) == EOS_ID, IMPOSSIBLE, next_log_probs)
    live, index = topk.top_k(goes_on.reshape(batch, beam * vocab), beam)

    last_that_counts = lax.top_k(jnp.concatenate([ends, live], -1), beam)[0][:, -1:]
    ended = jnp.where(ends >= last_that_counts, best + ends, IMPOSSIBLE)
    return best + live, index // vocab, index % vocab, ended


def _write(history: _History, position: Array, tokens: Array, parents: Array, weights: Array | None) -> _History:
    new = _History(tokens, parents, weights)
    return jax.tree.map(lambda past, now: lax.dynamic_update_index_in_dim(past, now, position, 0), history, new)


def _gather(tree: Any, index: Array) -> Any:
    """``leaf[row, index[row, i]]`` for every leaf ``[batch, n, ...]``: one gather along the second axis."""
    rows = jnp.arange(index.shape[0])[:, None]
    return jax.tree.map(lambda leaf: leaf.at[rows, index].get(mode="promise_in_bounds"), tree)


def _concatenate(first: _Ends, second: _Ends) -> _Ends:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, second)


def _best(ends: _Ends, n: int) -> _Ends:
    """The ``n`` with the highest scores, falling; the first one in a tie."""
    return _gather(ends, lax.top_k(ends.scores, n)[1])


def _with_truncated(search: _Search, limits: Array, divisors: Array) -> _Ends:
    """The pool, its empty slots filled with the live hypotheses that met the limit."""
    last = jnp.maximum(limits - 1, 0)
    lengths = jnp.broadcast_to(limits[:, None], search.log_probs.shape)
    truncated = _Ends(
        scores=jnp.where(search.log_probs > IMPOSSIBLE / 2, search.log_probs / divisors[lengths], IMPOSSIBLE),
        log_probs=search.log_probs,
        lengths=lengths,
        tokens=search.history.tokens[last, jnp.arange(last.shape[0])],
        parents=search.history.parents[last, jnp.arange(last.shape[0])],
    )
    both = _concatenate(search.pool, truncated)
    exists = (both.scores > IMPOSSIBLE / 2).astype(jnp.int32)
    return _gather(both, lax.top_k(exists, search.pool.scores.shape[1])[1])  # keeps the order of those that exist


def _traceback(ends: _Ends, history: _History) -> Hypotheses:
    """Walks from the last tokens back along the pointers, and reads tokens and attention on the way."""
    exists = ends.scores > IMPOSSIBLE / 2  # [batch, n_best]
    lengths = jnp.where(exists, ends.lengths, 0)
    rows = jnp.arange(lengths.shape[0])[:, None]

    def back(slots: Array, position: Array) -> tuple[Array, tuple[Array, Array]]:
        inside = position < lengths - 1
        here = (position, rows, slots)
        tokens = jnp.where(inside, history.tokens[here], jnp.where(position < lengths, ends.tokens, PAD_ID))
        slots = jnp.where(inside, history.parents[here], slots)
        return slots, (tokens, slots)

    positions = jnp.arange(history.tokens.shape[0])
    _, (tokens, slots) = lax.scan(back, ends.parents, positions, reverse=True)  # [max_len, batch, n_best]

    weights = history.weights
    if weights is not None:
        weights = weights[positions[:, None, None], rows, slots]  # [max_len, batch, n_best, src_len]
        weights = jnp.where((positions[:, None, None] < lengths)[..., None], weights, 0)
        weights = jnp.moveaxis(weights, 0, 2)
    return Hypotheses(
        tokens=jnp.moveaxis(tokens, 0, 2),
        lengths=lengths,
        log_probs=jnp.where(exists, ends.log_probs, IMPOSSIBLE),
        scores=ends.scores,
        finished=exists & (ends.tokens == EOS_ID),
        weights=weights,
    )
