"""Coverage, repeated n-grams, prefixes and groups: by hand, by brute force, against a plain beam, with attention."""

from __future__ import annotations

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_jax.decoding import (
    IMPOSSIBLE,
    Rules,
    beam_nodes,
    beam_search,
    coverage_penalty,
    forced_decode,
    greedy,
    sample,
)
from attn_jax.decoding.constraints import block_repeats, force_prefix
from attn_jax.models.protocol import EOS_ID, DecodeState
from tests.reference_search import MAX_LEN, VOCAB, brute_force, outcomes, plain_beam
from tests.toy_decoder import ToyDecoder, random_batch, random_tables

WIDE = 27 + 81
PREFIX = np.array([[4, 4], [5, 0], [0, 0]], np.int32)
ALL = {"coverage": 0.7, "ngram": 2, "prefix": PREFIX, "min_len": 2}
CLOSED = {"forced_end": True, "renormalize": True}  # these two change log-probabilities
RULES = {
    "coverage": {"coverage": 0.7},
    "no word twice": {"ngram": 1},
    "no pair twice": {"ngram": 2},
    "prefix": {"prefix": PREFIX},
    "all": ALL,
    "closed": CLOSED,
    "all, closed": ALL | CLOSED,
}
seeds = st.integers(0, 2**32 - 1)


@cache
def jitted(search, rules, **options):
    """One compiled search for these rules; tables, length penalty, strength of coverage and limits vary."""
    given = RULES[rules] if rules else {}

    @jax.jit
    def run(tables, batch, penalty, offset, beta, limits, *rest):
        toy = ToyDecoder(tables)
        found = search(
            toy.step,
            toy.start(batch, options["max_len"]),
            *rest,
            length_penalty=penalty,
            length_offset=offset,
            coverage_penalty=beta if "coverage" in given else None,
            src_mask=batch.src_mask,
            no_repeat_ngram=given.get("ngram", 0),
            prefix=given.get("prefix"),
            min_len=given.get("min_len", 1),
            forced_end=given.get("forced_end", False),
            renormalize=given.get("renormalize", False),
            row_max_len=limits,
            **options,
        )
        return found, forced_decode(toy.step, toy.start(batch, options["max_len"]), found.tokens)

    def search_with(tables, batch, penalty, limits, *rest):
        average = penalty == "average"  # GNMT's formula gives it too, so that no penalty compiles anything
        alpha, offset = (1.0, 0.0) if average else (penalty, 5.0)
        return jax.device_get(run(tables, batch, alpha, offset, given.get("coverage", 0.0), limits, *rest))

    return search_with


def of_row(rules, row):
    given = RULES[rules] if rules else {}
    return {name: value[row] if name == "prefix" else value for name, value in given.items()}


def assert_same(found, expected):
    assert [one[0] for one in found] == [one[0] for one in expected]
    assert [one[3] for one in found] == [one[3] for one in expected]
    np.testing.assert_allclose([one[1:3] for one in found], [one[1:3] for one in expected], atol=3e-5)


def assert_exact(found, forced, rules=None):
    """Attention is that of forced decoding, and so are log-probabilities but for rules that change them."""
    exists = found.lengths > 0
    np.testing.assert_allclose(found.weights, forced.weights, atol=1e-5)
    if rules not in {"closed", "all, closed"}:
        np.testing.assert_allclose(found.log_probs[exists], forced.log_probs[exists], atol=2e-5)


# ------------------------------------------------------------------------------------------------------------ by hand


def test_coverage_by_hand():
    coverage = jnp.array([[[0.5, 2.0, 0.25], [1.0, 1.0, 0.0]]])
    mask = jnp.array([[True, True, True]])
    found = coverage_penalty(coverage, mask, 0.5)
    np.testing.assert_allclose(found, 0.5 * np.log([[0.5 * 0.25, 1e-6]]), rtol=1e-6)
    np.testing.assert_allclose(coverage_penalty(coverage, mask.at[0, 2].set(False), 0.5), [[0.5 * np.log(0.5), 0]])


def test_what_would_repeat_an_n_gram():
    past = np.array([[[3, 4, 3, 5, 3, 4, 3, 3], [6, 6, 6, 6, 6, 6, 6, 6]]])  # what comes later does not count
    run = jax.jit(block_repeats, static_argnums=3)
    for n, position, blocked in [
        (1, 5, [3, 4, 5]),
        (1, 0, []),
        (2, 5, [4, 5]),
        (2, 2, []),
        (2, 0, []),
        (3, 5, []),
        (3, 6, [3]),
        (9, 6, []),
    ]:
        found = run(np.full((1, 2, 8), -2.0), past, position, n)
        assert np.flatnonzero(found[0, 0] == IMPOSSIBLE).tolist() == blocked
        assert np.isin(found, [-2, IMPOSSIBLE]).all()


def test_a_prefix_may_hold_what_is_forbidden():
    raw, free = jnp.full((2, 1, 6), -1.0), jnp.full((2, 1, 6), IMPOSSIBLE)
    found = force_prefix(raw, free, 0, jnp.array([[5], [0]]))
    assert found[0, 0].tolist() == [IMPOSSIBLE] * 5 + [-1.0] and (found[1] == IMPOSSIBLE).all()
    assert (force_prefix(raw, free, 7, jnp.array([[5], [5]])) == IMPOSSIBLE).all()  # past its end


def test_groups_by_hand():
    """Both groups like 3 (0.5) better than 4 (0.4); the second takes 4 as soon as 3 costs it log(5 / 4)."""
    probs = jnp.log(jnp.array([[0, 0, 0.0, 0.5, 0.4, 0.1], [0, 0, 1.0, 0, 0, 0]]))

    def step(tokens, state):
        return probs[(tokens > 1).astype(int)], None, state

    state = DecodeState(None, jnp.zeros((1, 1)))
    run = jax.jit(lambda state, d: beam_search(step, state, max_len=2, beam=2, n_best=2, groups=2, diversity=d))
    assert run(state, 0.22).tokens[0].tolist() == [[3, EOS_ID], [3, EOS_ID]]  # the same twice
    far = run(state, 0.23)
    assert far.tokens[0].tolist() == [[3, EOS_ID], [4, EOS_ID]]
    np.testing.assert_allclose(far.log_probs, np.log([[0.5, 0.4]]), rtol=1e-5)


# --------------------------------------------------------------------------------------------------- all there is


@pytest.mark.parametrize("rules", RULES)
@given(seed=seeds, spread=st.sampled_from([0.3, 1.0, 3.0]), penalty=st.sampled_from([0.0, 0.6, 1.0, -1.0, "average"]))
@settings(max_examples=6, deadline=None)
def test_a_wide_beam_is_brute_force(rules, seed, spread, penalty):
    tables, batch = random_tables(seed, vocab=VOCAB, positions=MAX_LEN, spread=spread), random_batch(seed)
    search = jitted(beam_search, rules, max_len=MAX_LEN, beam=WIDE, n_best=25)
    found, forced = search(tables, batch, penalty, np.full(3, MAX_LEN))
    assert_exact(found, forced, rules)
    for row in range(3):
        expected = brute_force(ToyDecoder(tables), batch, row, penalty, **of_row(rules, row))
        assert_same(outcomes(found, row), expected[:25])


NARROW = [("coverage", 1), ("all", 1), ("all", 2), (None, 2), ("closed", 1), ("all, closed", 2)]


@pytest.mark.parametrize(("rules", "groups"), NARROW)
@given(seed=seeds, spread=st.sampled_from([0.5, 2.0, 4.0]), penalty=st.sampled_from([0.0, 1.0, 2.0, "average"]))
@settings(max_examples=4, deadline=None)
def test_a_narrow_beam_loses_nothing_by_stopping_early(rules, groups, seed, spread, penalty):
    tables, batch = random_tables(seed, vocab=8, positions=7, spread=spread), random_batch(seed)
    limits = np.array([7, *np.random.default_rng(seed).integers(2, 8, 2)])
    options = {"max_len": 7, "beam": 4, "n_best": 2, "groups": groups, "diversity": 0.8}
    found, forced = jitted(beam_search, rules, **options)(tables, batch, penalty, limits)
    assert_exact(found, forced, rules)
    for row, limit in enumerate(limits):
        given = {**options, "max_len": limit, "vocab": 8, **of_row(rules, row)}
        assert_same(outcomes(found, row), plain_beam(ToyDecoder(tables), batch, row, penalty, **given))


@pytest.mark.parametrize("rules", ["coverage", "all"])
@given(seed=seeds, penalty=st.sampled_from([0.0, 1.0]))
@settings(max_examples=5, deadline=None)
def test_a_beam_of_one_is_greedy(rules, seed, penalty):
    tables, batch, limits = random_tables(seed, vocab=8, positions=7), random_batch(seed), np.full(3, 7)
    narrow, _ = jitted(beam_search, rules, max_len=7, beam=1)(tables, batch, penalty, limits)
    plain, forced = jitted(greedy, rules, max_len=7)(tables, batch, penalty, limits)
    np.testing.assert_array_equal(narrow.tokens, plain.tokens)
    np.testing.assert_allclose(narrow.scores, plain.scores, atol=1e-5)
    np.testing.assert_allclose(narrow.weights, plain.weights, atol=1e-6)
    assert_exact(plain, forced)


def test_rules_that_leave_nothing_find_nothing():
    """Of three words none may occur twice, and a sentence must have six."""
    tables, batch = random_tables(0, vocab=VOCAB, positions=MAX_LEN), random_batch(0)

    @jax.jit
    def run(batch):
        toy = ToyDecoder(tables)
        rules = {"no_repeat_ngram": 1, "min_len": 6, "max_len": 7}
        return [search(toy.step, toy.start(batch, 7), **rules) for search in (beam_search, greedy)]

    for found in jax.device_get(run(batch)):
        assert not found.lengths.any() and not found.tokens.any() and not found.weights.any()
        assert not found.finished.any() and (found.scores == IMPOSSIBLE).all()


def test_samples_obey():
    tables, batch = random_tables(0, vocab=8, positions=7), random_batch(0)
    search = jitted(sample, "all", max_len=7, num_samples=9)
    found, forced = search(tables, batch, 0.0, np.full(3, 7), jax.random.key(0))
    assert_exact(found, forced)
    for row in range(3):
        prefix = [token for token in PREFIX[row] if token]
        for tokens, *_ in outcomes(found, row):
            pairs = list(itertools.pairwise(tokens))[max(len(prefix) - 1, 0) :]
            assert tokens[: len(prefix)] == prefix and len(set(pairs)) == len(pairs) and len(tokens) >= 2


def test_neither_padding_nor_the_other_sentences_change_a_result():
    tables, batch = random_tables(1, vocab=9, positions=8), random_batch(1)
    options = {"max_len": 8, "beam": 4, "n_best": 4, "groups": 2, "min_len": 2, "no_repeat_ngram": 2}

    @jax.jit
    def run(batch, prefix):
        toy = ToyDecoder(tables)
        given = {"coverage_penalty": 0.5, "src_mask": batch.src_mask, "prefix": prefix}
        return beam_search(toy.step, toy.start(batch, 8), **options, **given)

    rows = np.array([2, 0, 0])
    wide = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 0), (0, 3))), batch)
    whole = jax.device_get(run(batch, PREFIX))
    part = jax.device_get(run(jax.tree.map(lambda leaf: leaf[rows], batch), PREFIX[rows]))
    wider = jax.device_get(run(wide, PREFIX))
    for other, place, row in ((part, 0, 2), (part, 2, 0), *((wider, row, row) for row in range(3))):
        np.testing.assert_array_equal(other.tokens[place], whole.tokens[row])
        np.testing.assert_allclose(other.scores[place], whole.scores[row], atol=1e-5)
        np.testing.assert_allclose(other.weights[place, ..., :5], whole.weights[row], atol=1e-5)


# ------------------------------------------------------------------------------------------------------ the beam's tree


@pytest.mark.parametrize(("groups", "seed"), [(1, 0), (1, 1), (2, 0)])
def test_the_tree_is_all_that_a_plain_beam_goes_through(groups, seed):
    tables, batch, limits = random_tables(seed, vocab=8, positions=6), random_batch(seed), np.array([6, 4, 5])
    options = {"max_len": 6, "beam": 4, "n_best": 4, "groups": groups, "diversity": 0.8}
    found, _ = jitted(beam_search, None, return_tree=True, **options)(tables, batch, 1.0, limits)
    for row, limit in enumerate(limits):
        nodes, paths = beam_nodes(found.tree, row), []
        for node in nodes:
            before = paths[node.parent] if node.parent >= 0 else ()
            assert len(before) == node.step and EOS_ID not in before
            assert (node.score is not None) == (node.token == EOS_ID)
            paths.append((*before, node.token))
        went_through: list = []
        given = {**options, "max_len": limit, "vocab": 8}
        plain_beam(ToyDecoder(tables), batch, row, 1.0, tree=went_through, **given)
        steps = 1 + max(node.step for node in nodes)
        expected = sorted(one for one in went_through if len(one[0]) <= steps)
        assert sorted(paths) == [path for path, _ in expected]
        both = sorted(zip(paths, [node.log_prob for node in nodes], strict=True))
        np.testing.assert_allclose([p for _, p in both], [p for _, p in expected], atol=3e-5)
        for tokens, log_prob, score, finished in outcomes(found, row):
            node = nodes[paths.index(tuple(tokens))]
            assert node.log_prob == pytest.approx(log_prob) and (not finished or node.score == pytest.approx(score))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"coverage_penalty": -0.1}, "coverage_penalty must not be negative, found -0.1"),
        ({"coverage_penalty": 0.1}, "coverage_penalty needs src_mask, the real source positions; found None"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must not be negative, found -1; 0 allows repeats"),
        ({"coverage_penalty": 0.1, "src_mask": np.ones((1, 3), bool)}, "has no attention.* leave coverage_penalty off"),
        ({"beam": 4, "groups": 3}, "groups must divide beam = 4 and n_best = 1, found 3"),
        ({"beam": 4, "n_best": 2, "groups": 4}, "groups must divide beam = 4 and n_best = 2, found 4"),
        ({"diversity": -1.0}, "diversity must not be negative, found -1.0"),
    ],
)
def test_what_is_refused(rules, message):
    def step(tokens, state):
        return jnp.zeros((*tokens.shape, 5)), None, state

    with pytest.raises(ValueError, match=message):
        beam_search(step, DecodeState(None, jnp.zeros((1, 1))), max_len=3, **rules)


def test_what_is_off_is_not_traced():
    assert not Rules().covers and not Rules(coverage_penalty=0.0).covers
    table = jnp.zeros((3, 6))

    def program(**rules):
        def step(tokens, state):
            return table[tokens % 3], jnp.ones((*tokens.shape, 4)), state

        state = DecodeState(None, jnp.zeros((2, 1)))
        return str(jax.make_jaxpr(lambda state: beam_search(step, state, max_len=3, **rules).replace(tree=None))(state))

    off = {"coverage_penalty": 0.0, "no_repeat_ngram": 0, "prefix": None, "groups": 1, "diversity": 0.9}
    assert program() == program(**off)
    mask = np.ones((2, 4), bool)
    for on in ({"coverage_penalty": 0.1, "src_mask": mask}, {"no_repeat_ngram": 2}, {"prefix": mask * 3}):
        assert program() != program(**on)
