"""Beam search over the decoding protocol, with the exact attention of every hypothesis.

Two sets of hypotheses a sentence: ``beam`` live ones, which a step extends, and a pool of the ``n_best`` best finished
ones. Nothing but the model's own state moves when hypotheses overtake each other: tokens, attention rows and
back-pointers are written once a step, and one walk back along the pointers reads the result at the end.

With several groups each has its own slots and its own pool; they share the steps of the model, and a group is searched
as if it were a sentence of its own, but that it avoids the tokens of the groups before it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attn_jax.decoding import topk
from attn_jax.decoding.history import Ends, History, Tried, traceback, write
from attn_jax.decoding.hypotheses import IMPOSSIBLE, Hypotheses, Step, log_probabilities
from attn_jax.decoding.penalties import token_counts
from attn_jax.decoding.rules import Begin, Rules, begin
from attn_jax.models.protocol import EOS_ID, DecodeState
from attn_jax.search_config import check_beam, check_stop

Array = jax.Array


class _Carried(NamedTuple):
    """What belongs to a live hypothesis and moves with it: leaves ``[batch, beam, ...]``."""

    dynamic: Any  # the model's
    coverage: Array | None  # [batch, beam, src_len], the sum of its attention
    past: Array | None  # [batch, beam, max_len], its tokens


class _Search(NamedTuple):
    """The carry of the loop."""

    position: Array  # tokens generated so far
    tokens: Array  # [batch, beam], the last ones
    log_probs: Array  # [batch, beam], of the live hypotheses
    carried: _Carried
    done: Array  # [batch]
    pool: Ends  # [batch * groups, n_best // groups]
    history: History


def beam_search(
    step: Step,
    state: DecodeState,
    *,
    max_len: int,
    beam: int = 5,
    n_best: int = 1,
    groups: int = 1,
    diversity: float | Array = 0.5,
    stop: str = "safe",
    return_tree: bool = False,
    **rules: Any,
) -> Hypotheses:
    """The ``n_best`` finished hypotheses with the highest scores that a beam finds.

    The ``beam`` most likely continuations of a sentence that do not end go on; an ending counts when it is among the
    ``beam`` most likely of all. A sentence is done when nothing it may still find can enter its pool: the most likely
    live hypothesis, were it to lose no more probability and to end at its most favourable length with all of its source
    covered (no penalty, which is at most 0), does not beat the worst of a full pool. No log-probability is above 0,
    that of a forced end and those renormalised included, so this holds under every rule. (With ``beam=1`` it is done at
    the first end: that is greedy decoding, whatever the penalty.) A sentence that is done no longer changes, and the
    loop ends when all are. So neither padding nor the other sentences change a result.

    Diverse groups: the beam is divided evenly, and at each step a group ranks its continuations as if each were less
    likely by ``diversity`` for every hypothesis of the groups before it that goes on with the same token. Only the
    ranking knows of it: log-probabilities and scores are those of the model. Each group gives ``n_best / groups``
    hypotheses, and two groups may find the same one; a sentence is done when all its groups are.

    Other toolkits stop earlier, and may lose hypotheses: ``stop="full"`` as soon as a pool of ``beam`` is full;
    ``stop="current"`` when it is and the most likely live hypothesis, were it to end at its present length, does not
    beat the worst of it.

    Pure; jit it together with ``start`` and a model's parameters. It compiles once for each shape.

    Args:
      step: ``(tokens [batch, beam], state)`` to ``logits [batch, beam, vocab]``, ``weights [batch, beam, src_len]`` or
        None, and the next state.
      state: fresh from ``start``, made for at least ``max_len`` steps. Its memory is neither tiled nor gathered.
      max_len: most tokens of a hypothesis, with end of sentence.
      beam: live hypotheses a sentence.
      n_best: hypotheses to return, at most ``beam``.
      groups: divides ``beam`` and ``n_best``.
      diversity: strength, not negative, in nats; for several groups.
      stop: ``"safe"``, ``"current"`` or ``"full"``.
      return_tree: keeps all that the search went through, in ``Hypotheses.tree``.
      **rules: scores, lengths and constraints, see `attn_jax.decoding.rules.Rules`.

    Returns:
      ``Hypotheses``, ``[batch, n_best, ...]``.

    Raises:
      ValueError: for numbers out of range.

    References:
      Wu et al. 2016, Google's Neural Machine Translation System, section 7, arXiv:1609.08144. Huang, Zhao, Ma 2017,
      When to Finish? Optimal Beam Search for Neural Text Generation, arXiv:1809.00069 (stopping that loses nothing).
      Vijayakumar et al. 2016, Diverse Beam Search, equation 5 with Hamming diversity, arXiv:1610.02424.

    >>> table = jnp.log(jnp.array([[0, 0, 0, 0.6, 0.4], [0, 0, 0.3, 0.3, 0.4], [0, 0, 0.9, 0, 0.1]]))
    >>> row = jnp.array([0, 0, 0, 1, 2])  # after a 3: 0.3 to end; after a 4: 0.9
    >>> step = lambda tokens, state: (table[row[tokens]], None, state)
    >>> found = beam_search(step, DecodeState(None, jnp.zeros((1, 1))), max_len=3, beam=2, n_best=2)
    >>> found.tokens[0].tolist(), [round(float(p), 3) for p in jnp.exp(found.log_probs[0])]
    ([[4, 2, 0], [3, 4, 2]], [0.36, 0.216])
    """
    check_beam(beam, n_best, groups, diversity)
    check_stop(stop)
    rules = Rules(**rules)
    start = begin(step, state, rules, width=beam, max_len=max_len)
    batch, width, room = start.tokens.shape[0], beam // groups, rules.room or max_len
    pool_size = n_best // groups if stop == "safe" else width
    as_rows = partial(jnp.reshape, shape=(batch * groups, width))  # a group a row

    def each_group(of_sentence: Array, axis: int) -> Array:
        return of_sentence if groups == 1 else jnp.repeat(of_sentence, groups, axis=axis)

    most_favourable = each_group(_largest_ahead(start.divisors, start.limits), axis=1)

    def advance(search: _Search) -> _Search:
        dynamic, coverage, past = search.carried
        logits, weights, after = step(search.tokens, state.replace(dynamic=dynamic))
        length = search.position + 1
        next_log_probs = rules.allowed(log_probabilities(logits), search.position, past, start.limits)
        live, parents, tokens, ended = _extend(search.log_probs, next_log_probs, groups, diversity)

        coverage = None if coverage is None else coverage + weights
        scores = rules.score(ended, start.divisors[length], coverage)
        slots = jnp.broadcast_to(jnp.arange(beam, dtype=jnp.int32), (batch, beam))
        new = Ends(scores, ended, jnp.full_like(slots, length), jnp.full_like(slots, EOS_ID), slots)
        pool = _best(_concatenate(search.pool, jax.tree.map(as_rows, new)), pool_size)

        worst, best_live = pool.scores[:, -1], live[:, 0] if groups == 1 else as_rows(live).max(-1)
        is_full = worst > IMPOSSIBLE / 2
        if beam == 1 or stop == "full":
            hopeless = is_full
        elif stop == "current":
            hopeless = is_full & (best_live / start.divisors[length] <= worst)
        else:
            hopeless = best_live / most_favourable[length] <= worst
        hopeless |= best_live < IMPOSSIBLE / 2

        carried = _Carried(after.dynamic, coverage, past)
        carried = _gather(carried, parents) if beam > 1 else carried
        still = search.done[:, None]  # what is done stays as it is
        pool_still = each_group(still, axis=0)
        if coverage is not None:
            carried = carried._replace(coverage=jnp.where(still[..., None], search.carried.coverage, carried.coverage))
        if past is not None:
            carried = carried._replace(past=carried.past.at[:, :, search.position].set(tokens))
        tried = None
        if return_tree:
            tried = Tried(*(jnp.where(still, IMPOSSIBLE, each) for each in (live, ended, scores)))
        return _Search(
            position=length,
            tokens=tokens,
            log_probs=jnp.where(still, search.log_probs, live),
            carried=carried,
            done=search.done | hopeless.reshape(batch, groups).all(-1) | (length >= start.limits),
            pool=jax.tree.map(partial(jnp.where, pool_still), search.pool, pool),
            history=write(search.history, search.position, History(tokens, parents, weights, tried)),
        )

    def unfinished(search: _Search) -> Array:
        return (search.position < room) & ~jnp.all(search.done)

    search = _first(start, rules, room=room, n=pool_size, groups=groups, return_tree=return_tree)
    search = lax.while_loop(unfinished, advance, search)
    truncated = jax.tree.map(as_rows, _truncated(search, rules, start, room))
    found = _ranked(_concatenate(search.pool, truncated), n_best // groups)
    if groups > 1:
        found = _ranked(jax.tree.map(lambda leaf: leaf.reshape(batch, n_best), found), n_best)
    settled = jnp.broadcast_to(search.done[:, None], found.scores.shape)
    return traceback(found, search.history).replace(settled=settled)


def _first(start: Begin, rules: Rules, *, room: int, n: int, groups: int, return_tree: bool) -> _Search:
    """One live hypothesis a group, before its first token; the other slots of the beam are impossible."""
    batch, beam = start.tokens.shape
    is_first = (jnp.arange(beam) % (beam // groups) == 0) & (start.limits > 0)[:, None]

    nothing = jnp.full((batch * groups, n), IMPOSSIBLE, start.dtype)
    none = jnp.zeros((batch * groups, n), jnp.int32)
    past = jnp.zeros((room, batch, beam), jnp.int32)
    looked = start.weights
    tried = jnp.full((room, batch, beam), IMPOSSIBLE, start.dtype)
    return _Search(
        position=jnp.zeros((), jnp.int32),
        tokens=start.tokens,
        log_probs=jnp.where(is_first, 0.0, IMPOSSIBLE).astype(start.dtype),
        carried=_Carried(
            dynamic=start.dynamic,
            coverage=jnp.zeros(looked.shape, looked.dtype) if rules.covers else None,
            past=jnp.zeros((batch, beam, room), jnp.int32) if rules.no_repeat_ngram else None,
        ),
        done=start.limits == 0,
        pool=Ends(nothing, nothing, none, none, none),
        history=History(
            tokens=past,
            parents=past,
            weights=None if looked is None else jnp.zeros((room, *looked.shape), looked.dtype),
            tried=Tried(tried, tried, tried) if return_tree else None,
        ),
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


def _extend(
    log_probs: Array, next_log_probs: Array, groups: int, diversity: float | Array
) -> tuple[Array, Array, Array, Array]:
    """The best continuations of live hypotheses, group by group.

    Args:
      log_probs: ``[batch, beam]``.
      next_log_probs: ``[batch, beam, vocab]``.
      groups: how many share the beam.
      diversity: what a continuation loses for each earlier group's hypothesis that goes on with the same token.

    Returns:
      ``log_probs``, ``parents``, ``tokens`` of the hypotheses that go on; and for each slot the log-probability with an
      end, ``IMPOSSIBLE`` when that is not among the best continuations of its group. All ``[batch, beam]``.
    """
    width, vocab = log_probs.shape[1] // groups, next_log_probs.shape[-1]
    found, lost = [], None
    for group in range(groups):
        slots = slice(group * width, (group + 1) * width)
        live, parents, tokens, ended = _extend_group(log_probs[:, slots], next_log_probs[:, slots], lost)
        found.append((live, parents + group * width, tokens, ended))
        if group + 1 < groups:
            more = diversity * token_counts(tokens, live > IMPOSSIBLE / 2, vocab)
            lost = more if lost is None else lost + more
    return found[0] if groups == 1 else tuple(jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))


def _extend_group(log_probs: Array, next_log_probs: Array, lost: Array | None) -> tuple[Array, Array, Array, Array]:
    """`_extend` for one group, whose continuations rank lower by ``lost [batch, vocab]``.

    Sums are ranked relative to the best live hypothesis, so that float32 tells continuations apart as well after a
    hundred tokens as after one, and a beam of one ranks exactly as greedy decoding does.
    """
    batch, width, vocab = next_log_probs.shape
    best = log_probs[:, :1] if lost is None else log_probs.max(-1, keepdims=True)
    behind = log_probs - best
    ends = behind + next_log_probs[..., EOS_ID]
    goes_on = behind[..., None] + jnp.where(jnp.arange(vocab) == EOS_ID, IMPOSSIBLE, next_log_probs)
    goes_on = goes_on.reshape(batch, width * vocab)
    ranked = goes_on if lost is None else goes_on - jnp.tile(lost.astype(goes_on.dtype), (1, width))
    live, index = topk.top_k(ranked, width)

    last_that_counts = lax.top_k(jnp.concatenate([ends, live], -1), width)[0][:, -1:]
    ended = jnp.where(ends >= last_that_counts, best + ends, IMPOSSIBLE)
    if lost is not None:
        live = jnp.take_along_axis(goes_on, index, axis=-1, mode="promise_in_bounds")
    return best + live, index // vocab, index % vocab, ended


def _gather(tree: Any, index: Array) -> Any:
    """``leaf[row, index[row, i]]`` for every leaf ``[batch, n, ...]``: one gather along the second axis."""
    rows = jnp.arange(index.shape[0])[:, None]
    return jax.tree.map(lambda leaf: leaf.at[rows, index].get(mode="promise_in_bounds"), tree)


def _concatenate(first: Ends, second: Ends) -> Ends:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, second)


def _best(ends: Ends, n: int) -> Ends:
    """The ``n`` with the highest scores, falling; the first one in a tie."""
    return _gather(ends, lax.top_k(ends.scores, n)[1])


def _truncated(search: _Search, rules: Rules, start: Begin, room: int) -> Ends:
    """The live hypotheses that met the limit, ``[batch, beam]``.

    A row that was done before has live ones too, and whatever was written last for them, which may be an end of
    sentence; no live hypothesis has one.
    """
    limits = jnp.minimum(start.limits, room)
    last = jnp.maximum(limits - 1, 0), jnp.arange(limits.shape[0])
    tokens = search.history.tokens[last]
    log_probs = jnp.where(tokens == EOS_ID, IMPOSSIBLE, search.log_probs)
    lengths = jnp.broadcast_to(limits[:, None], log_probs.shape)
    return Ends(
        scores=rules.score(log_probs, start.divisors[lengths], search.carried.coverage),
        log_probs=log_probs,
        lengths=lengths,
        tokens=tokens,
        parents=search.history.parents[last],
    )


def _ranked(ends: Ends, n: int) -> Ends:
    """The first ``n`` of all that exist: finished ones before those that met the limit, each by falling score."""
    absent = ends.scores <= IMPOSSIBLE / 2
    return _gather(ends, jnp.lexsort((-ends.scores, ends.tokens != EOS_ID, absent))[:, :n])
