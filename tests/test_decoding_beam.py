"""Beam search: brute force, a plain reference, invariance, exact attention, safe and real early exit."""

from __future__ import annotations

import itertools
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_jax.decoding import IMPOSSIBLE, Hypotheses, beam_search, forced_decode, greedy
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, Batch, DecodeState
from tests.reference_search import brute_force, outcomes, plain_beam
from tests.toy_decoder import Tables, ToyDecoder, random_batch, random_tables

VOCAB, MAX_LEN = 6, 4
WIDE = 27 + 81  # at the last step: 27 prefixes of 3 words, each may end or go on with one of 3
PENALTIES = (0.0, 0.6, 1.0, 2.0, -1.0, "average")
seeds = st.integers(0, 2**32 - 1)


USUAL = {"max_len": 8, "beam": 4, "n_best": 4}  # most tests share this search, 4 rows and 9 words: one compilation


@cache
def jitted(search=beam_search, memory_of_past=0.1, **options):
    """One compiled search for all tests with these options and shapes: limits, and a penalty that is a number, vary."""

    @jax.jit
    def run(tables, batch, penalty, active, row_max_len):
        toy = ToyDecoder(tables, memory_of_past)
        limits = {"active": active, "row_max_len": row_max_len}
        alpha = {} if "length_penalty" in options else {"length_penalty": penalty}
        return search(toy.step, toy.start(batch, options["max_len"]), **limits, **alpha, **options)

    def search_with(tables: Tables, batch: Batch, penalty=0.0, active=None, row_max_len=None) -> Hypotheses:
        rows = batch.src.shape[0]
        active = np.ones(rows, bool) if active is None else active
        row_max_len = np.full(rows, options["max_len"]) if row_max_len is None else row_max_len
        return jax.device_get(run(tables, batch, float(penalty), active, row_max_len))

    return search_with


def compiled(search, step, state, **options) -> Hypotheses:
    """NumPy, like the above: looking at results must not compile anything."""
    return jax.device_get(jax.jit(lambda state: search(step, state, **options))(state))


def run_with_penalty(penalty, tables, batch, row_max_len=None, **options):
    if isinstance(penalty, str):
        return jitted(length_penalty=penalty, **options)(tables, batch, row_max_len=row_max_len)
    return jitted(**options)(tables, batch, penalty, row_max_len=row_max_len)


def assert_same(found, expected):
    assert [one[0] for one in found] == [one[0] for one in expected]
    assert [one[3] for one in found] == [one[3] for one in expected]
    np.testing.assert_allclose([one[1:3] for one in found], [one[1:3] for one in expected], atol=2e-5)


def assert_close(a: Hypotheses, b: Hypotheses, atol=1e-5):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    np.testing.assert_array_equal(a.finished, b.finished)
    chex.assert_trees_all_close((a.scores, a.log_probs, a.weights), (b.scores, b.log_probs, b.weights), atol=atol)


def test_numbers_by_hand():
    """After begin: 3 with 0.6, 4 with 0.4. After 3: end with 0.3. After 4: end with 0.9."""
    table = jnp.log(jnp.array([[0, 0, 0, 0.6, 0.4], [0, 0, 0.3, 0.3, 0.4], [0, 0, 0.9, 0, 0.1]]))
    row = jnp.array([0, 0, 0, 1, 2])

    def step(tokens, state):
        return table[row[tokens]], None, state

    state = DecodeState(None, jnp.zeros((1, 1)))
    narrow = compiled(beam_search, step, state, max_len=3, beam=1)
    assert narrow.tokens[0, 0].tolist() == [3, 4, EOS_ID]  # 0.6 * 0.4 * 0.9
    np.testing.assert_allclose(narrow.log_probs, np.log([[0.216]]), rtol=1e-6)
    wide = compiled(beam_search, step, state, max_len=3, beam=3, n_best=3, length_penalty=1.0)
    assert wide.tokens[0].tolist() == [[4, EOS_ID, PAD_ID], [3, 4, EOS_ID], [3, EOS_ID, PAD_ID]]
    np.testing.assert_allclose(wide.scores, np.log([[0.36, 0.216, 0.18]]) / [[7 / 6, 8 / 6, 7 / 6]], rtol=1e-6)
    assert wide.lengths.tolist() == [[2, 3, 2]] and wide.finished.all() and wide.weights is None


@pytest.mark.parametrize("penalty", PENALTIES)
@given(seed=seeds, spread=st.sampled_from([0.3, 1.0, 3.0]))
@settings(max_examples=6, deadline=None)
def test_a_wide_beam_is_brute_force(penalty, seed, spread):
    tables, batch = random_tables(seed, vocab=VOCAB, positions=MAX_LEN, spread=spread), random_batch(seed)
    found = run_with_penalty(penalty, tables, batch, max_len=MAX_LEN, beam=WIDE, n_best=25)
    for row in range(3):
        expected = brute_force(ToyDecoder(tables), batch, row, penalty)
        assert_same(outcomes(found, row), expected[:25])


@given(levels=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=20, max_size=20), seed=seeds)
@settings(max_examples=10, deadline=None)
def test_a_wide_beam_is_brute_force_with_ties(levels, seed):
    rng = np.random.default_rng(seed)
    logits = rng.choice(np.float32(levels), (1, 3, 5, 5, 5))
    tables = random_tables(0, vocab=5, positions=3)._replace(logits=logits)
    batch = random_batch(0, rows=1)
    found = jitted(memory_of_past=0.0, max_len=3, beam=12, n_best=8)(tables, batch, 0.7)
    expected = brute_force(ToyDecoder(tables, 0.0), batch, 0, 0.7, max_len=3, vocab=5)[:8]
    np.testing.assert_allclose(found.scores[0], [one[2] for one in expected], atol=1e-5)
    assert len({tuple(one[0]) for one in outcomes(found, 0)}) == 8


@pytest.mark.parametrize("penalty", PENALTIES)
@given(seed=seeds, spread=st.sampled_from([0.5, 2.0, 4.0]))
@settings(max_examples=6, deadline=None)
def test_a_narrow_beam_loses_nothing_by_stopping_early(penalty, seed, spread):
    tables, batch = random_tables(seed, vocab=8, positions=7, spread=spread), random_batch(seed)
    limits = np.array([7, *np.random.default_rng(seed).integers(1, 8, 2)])
    found = run_with_penalty(penalty, tables, batch, row_max_len=limits, max_len=7, beam=3, n_best=2)
    for row, limit in enumerate(limits):
        expected = plain_beam(ToyDecoder(tables), batch, row, penalty, max_len=limit, vocab=8, beam=3, n_best=2)
        assert_same(outcomes(found, row), expected)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_fewer_hypotheses_are_the_best_of_more(penalty):
    tables, batch = random_tables(5, vocab=9, positions=8), random_batch(5, rows=4)
    one, four = (jitted(**{**USUAL, "n_best": n})(tables, batch, penalty) for n in (1, 4))
    assert_close(one, jax.tree.map(lambda leaf: leaf[:, :1], four))


@given(seed=seeds, penalty=st.sampled_from([0.0, 1.0]))
@settings(max_examples=10, deadline=None)
def test_a_beam_of_one_is_greedy(seed, penalty):
    tables, batch = random_tables(seed, vocab=8, positions=7), random_batch(seed, rows=4)
    assert_close(
        jitted(max_len=7, beam=1)(tables, batch, penalty), jitted(greedy, max_len=7)(tables, batch, penalty), atol=1e-6
    )


def test_a_beam_of_one_is_greedy_where_tokens_tie_and_sums_round():
    """3 and 4 differ by less than float32 resolves in the sum: ranking sums would take 3, the lower id."""
    only_3 = jnp.array([0.0, -1e9, -1e9, -60.0, -1e9])  # padding takes the rest
    nearly_even = jnp.array([-1e9, -1e9, -1e9, 0.0, 2e-7])

    def step(tokens, state):
        logits = jnp.where(state.dynamic[..., None] == 0, only_3, nearly_even)
        return logits, None, state.replace(dynamic=state.dynamic + 1)

    state = DecodeState(None, jnp.zeros((1, 1), jnp.int32))
    for search, wide in ((beam_search, {"beam": 1}), (greedy, {})):
        found = compiled(search, step, state, max_len=3, **wide)
        assert found.tokens[0, 0].tolist() == [3, 4, 4]
        assert float(found.log_probs[0, 0]) < -60


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_neither_padding_nor_the_other_sentences_change_a_result(penalty):
    tables, batch = random_tables(1, vocab=9, positions=8), random_batch(1, rows=4)
    limits = np.array([8, 3, 5, 7])
    whole = jitted(**USUAL)(tables, batch, penalty, row_max_len=limits)
    for rows in ([2], [3, 2, 1, 0], [3, 3, 1, 3]):
        part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (batch, limits, whole))
        assert_close(jitted(**USUAL)(tables, part[0], penalty, row_max_len=part[1]), part[2])
    padded = Batch(src=np.pad(batch.src, ((0, 0), (0, 3))), src_mask=np.pad(batch.src_mask, ((0, 0), (0, 3))))
    wider = jitted(**USUAL)(tables, padded, penalty, row_max_len=limits)
    assert not wider.weights[..., -3:].any()
    assert_close(wider.replace(weights=wider.weights[..., :-3]), whole)


def test_a_longer_limit_for_others_changes_nothing():
    tables, batch = random_tables(2, vocab=9, positions=8), random_batch(2, rows=4)
    limits = np.array([4, 5, 3, 5])
    short, long = (jitted(**{**USUAL, "max_len": n})(tables, batch, 1.0, row_max_len=limits) for n in (5, 8))
    np.testing.assert_array_equal(long.tokens[..., 5:], PAD_ID)
    assert_close(long.replace(tokens=long.tokens[..., :5], weights=long.weights[:, :, :5]), short)


@pytest.mark.parametrize("seed", range(3))
def test_the_attention_of_every_hypothesis_is_that_of_forced_decoding(seed):
    tables, batch = random_tables(seed, vocab=9, positions=8), random_batch(seed, rows=4)
    found = jitted(**USUAL)(tables, batch, 0.8)
    toy = ToyDecoder(tables)
    forced = jax.jit(lambda batch, tgt: forced_decode(toy.step, toy.start(batch, 8), tgt))(batch, found.tokens)
    assert found.finished.any() and (found.lengths > 3).any()
    np.testing.assert_allclose(found.weights, forced.weights, atol=1e-6)
    np.testing.assert_allclose(found.log_probs, forced.log_probs, atol=1e-5)
    rows = np.arange(8) < found.lengths[..., None]
    np.testing.assert_allclose(found.weights.sum(-1), rows, atol=1e-6)


def eos_after(lengths: list[int], seen=lambda position: None):
    """A step that ends row i with near certainty after ``lengths[i]`` tokens, and shows each position to ``seen``."""
    ends = jnp.array(lengths)[:, None]

    def step(tokens, state):
        jax.debug.callback(seen, state.dynamic[0, 0])
        end = (state.dynamic + 1 >= ends)[..., None]
        ids = jnp.arange(7)
        logits = jnp.where(ids == EOS_ID, jnp.where(end, 20.0, -20.0), -0.1 * ids)
        return logits, None, state.replace(dynamic=state.dynamic + 1)

    return step, DecodeState(None, jnp.zeros((len(lengths), 1), jnp.int32))


@pytest.mark.parametrize("search", [beam_search, greedy])
def test_the_loop_ends_with_the_last_sentence(search):
    steps = []
    step, state = eos_after([2, 4, 6], steps.append)
    wide = {"beam": 3} if search is beam_search else {}
    run = jax.jit(lambda active, limits: search(step, state, max_len=50, active=active, row_max_len=limits, **wide))
    for active, limits, lengths in [
        ([True, True, True], [50, 50, 50], [2, 4, 6]),
        ([True, True, False], [50, 50, 50], [2, 4, 0]),
        ([True, True, True], [9, 9, 3], [2, 4, 3]),
        ([False, False, False], [50, 50, 50], [0, 0, 0]),
    ]:
        steps.clear()
        found = jax.device_get(run(np.array(active), np.array(limits)))
        assert found.lengths[:, 0].tolist() == lengths
        jax.effects_barrier()
        assert len(steps) == max(lengths)


def test_stopping_waits_for_a_longer_hypothesis_that_wins():
    """The end has 0.6 at once; 4 goes on with certainty, and under an average over its length it wins in the end."""

    def step(tokens, state):
        position = state.dynamic[..., None]
        ids = jnp.arange(5)
        probs = jnp.where(
            position == 0, jnp.array([0, 0, 0.6, 0, 0.4]), jnp.where(position < 5, ids == 4, ids == EOS_ID)
        )
        return jnp.log(probs), None, state.replace(dynamic=state.dynamic + 1)

    state = DecodeState(None, jnp.zeros((1, 1), jnp.int32))
    short = compiled(beam_search, step, state, max_len=9, beam=2)
    long = compiled(beam_search, step, state, max_len=9, beam=2, length_penalty="average")
    first = compiled(beam_search, step, state, max_len=9, beam=1, length_penalty="average")
    assert (short.lengths.item(), long.lengths.item(), first.lengths.item()) == (1, 6, 1)
    np.testing.assert_allclose(long.scores.item(), np.log(0.4) / 6, rtol=1e-6)


def test_padding_rows_are_empty_and_the_others_as_without_them():
    tables, batch = random_tables(3, vocab=9, positions=8), random_batch(3, rows=4)
    empty = jax.tree.map(lambda leaf: leaf * np.array([[1], [0], [1], [1]], leaf.dtype), batch)
    found = jitted(**USUAL)(tables, empty, active=empty.src_mask.any(-1))
    assert not found.lengths[1].any() and not found.finished[1].any() and not found.tokens[1].any()
    assert (found.scores[1] == IMPOSSIBLE).all() and (found.log_probs[1] == IMPOSSIBLE).all()
    assert not found.weights[1].any()
    others = np.array([0, 2, 3])
    without = jitted(**USUAL)(tables, batch)
    assert_close(*(jax.tree.map(lambda leaf: leaf[others], both) for both in (found, without)))


def test_what_meets_the_limit_is_returned_unfinished_after_the_finished():
    step, state = eos_after([2, 9])
    found = compiled(beam_search, step, state, max_len=4, beam=3, n_best=3, length_penalty=1.0)
    assert not found.finished[1].any() and found.lengths[1].tolist() == [4, 4, 4]
    assert found.tokens[1, 0].tolist() == [3, 3, 3, 3]
    assert (np.diff(found.scores[1]) <= 0).all()

    def hardly_ends(tokens, state):  # ends with 1 % after one token, never later: far worse than any that goes on
        first = jnp.log(jnp.array([0, 0, 0.01, 0.99, 0]))
        return (
            jnp.where(state.dynamic[..., None] == 0, first, jnp.log(jnp.array([0, 0, 0, 1.0, 0]))),
            None,
            state.replace(dynamic=state.dynamic + 1),
        )

    state = DecodeState(None, jnp.zeros((1, 1), jnp.int32))
    found = compiled(beam_search, hardly_ends, state, max_len=4, beam=2, n_best=2)
    assert found.tokens[0].tolist() == [[EOS_ID, 0, 0, 0], [3, 3, 3, 3]]
    assert found.finished[0].tolist() == [True, False] and found.scores[0, 0] < found.scores[0, 1]


def test_min_len():
    tables, batch = random_tables(4, vocab=VOCAB, positions=MAX_LEN), random_batch(4)
    tables.logits[..., EOS_ID] += 2
    found = jitted(max_len=MAX_LEN, beam=WIDE, n_best=20, min_len=3)(tables, batch)
    assert int(found.lengths.min()) == 3
    for row in range(3):
        expected = brute_force(ToyDecoder(tables), batch, row, 0.0, min_len=3)
        assert_same(outcomes(found, row), expected[:20])


@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_sorted_distinct_and_well_formed(seed):
    tables, batch = random_tables(seed, vocab=9, positions=8), random_batch(seed, rows=4)
    tables.logits[..., [PAD_ID, BOS_ID]] += 5  # what a bad model likes best is still not generated
    found = jitted(**USUAL)(tables, batch, 1.0)
    for row, i in itertools.product(range(4), range(4)):
        tokens, length = found.tokens[row, i].tolist(), int(found.lengths[row, i])
        assert PAD_ID not in tokens[:length] and BOS_ID not in tokens and not any(tokens[length:])
        assert tokens[:length].count(EOS_ID) == bool(found.finished[row, i])
        assert not found.finished[row, i] or tokens[length - 1] == EOS_ID
    falling = np.diff(found.scores, axis=1) <= 0
    boundary = found.finished[:, :-1] & ~found.finished[:, 1:]
    assert (falling | boundary).all()
    np.testing.assert_allclose(found.scores, found.log_probs / ((5 + found.lengths) / 6), rtol=1e-6)
    assert all(len(set(map(tuple, row))) == 4 for row in found.tokens.tolist())


def test_fewer_sequences_than_asked_leave_empty_slots():
    def step(tokens, state):  # 3, then the end: one sequence, with certainty
        certain = jnp.where(tokens == 3, EOS_ID, 3)
        return jnp.log(jax.nn.one_hot(certain, 4)), None, state

    state, limits = DecodeState(None, jnp.zeros((2, 1))), np.array([5, 1])
    found = compiled(beam_search, step, state, max_len=5, beam=4, n_best=3, row_max_len=limits)
    assert found.tokens.tolist() == [[tokens, [0] * 5, [0] * 5] for tokens in ([3, EOS_ID, 0, 0, 0], [3, 0, 0, 0, 0])]
    assert found.lengths.tolist() == [[2, 0, 0], [1, 0, 0]]
    assert found.finished.tolist() == [[True, False, False], [False] * 3]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_jit_is_eager():
    step, state = eos_after([2, 9])
    options = {"max_len": 4, "beam": 3, "n_best": 2, "length_penalty": 0.6}
    assert_close(compiled(beam_search, step, state, **options), beam_search(step, state, **options), atol=1e-6)


def test_one_trace_for_all_batches_of_a_shape():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(tables, batch, penalty, row_max_len):
        toy = ToyDecoder(tables)
        active = batch.src_mask.any(-1)
        return beam_search(
            toy.step,
            toy.start(batch, 5),
            max_len=5,
            beam=3,
            length_penalty=penalty,
            active=active,
            row_max_len=row_max_len,
        )

    for seed in range(3):
        run(random_tables(seed, vocab=7, positions=4), random_batch(seed), 0.5 * seed, np.array([5, 4, seed]))


@pytest.mark.parametrize(("of_logits", "of_scores"), [("bfloat16", "float32"), ("float64", "float64")])
def test_scores_are_float32_or_better(of_logits, of_scores, x64):
    logits = np.array([0, 0, -9, 1, 1.5])

    def step(tokens, state):
        return jnp.broadcast_to(jnp.asarray(logits, of_logits), (*tokens.shape, 5)), None, state

    found = compiled(beam_search, step, DecodeState(None, jnp.zeros((2, 1))), max_len=30, beam=2)
    each = 1.5 - np.log(np.exp(logits).sum())
    assert found.scores.dtype == of_scores and found.tokens.dtype == jnp.int32
    np.testing.assert_allclose(found.log_probs, np.full((2, 1), 30 * each), rtol=30 * np.finfo(of_scores).eps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam must be at least 1, found 0"),
        ({"beam": 2, "n_best": 3}, "n_best must be between 1 and beam = 2, found 3"),
        ({"max_len": 0}, "max_len must be a whole number"),
        ({"min_len": 6}, "min_len must be at most max_len = 5, found 6"),
        ({"length_penalty": "mean"}, "must be a number .* or 'average', found 'mean'"),
    ],
)
def test_what_is_refused(options, message):
    step, state = eos_after([2])
    with pytest.raises(ValueError, match=message):
        beam_search(step, state, **{"max_len": 5, **options})


def test_a_used_state_is_refused():
    step, _ = eos_after([2])
    with pytest.raises(ValueError, match=r"fresh from start.*found shape \(1, 3\)"):
        beam_search(step, DecodeState(None, jnp.zeros((1, 3))), max_len=5)
