"""Sampling: truncation by hand, frequencies, and draws that belong to a sentence."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.decoding import IMPOSSIBLE, forced_decode, greedy, sample, truncate
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, DecodeState
from tests.toy_decoder import ToyDecoder, random_batch, random_tables

MAX_LEN = 6
TABLES, BATCH = random_tables(0, vocab=9, positions=6), random_batch(0, rows=4)
IDS = np.array([10, 11, 12, 13])


@jax.jit
@chex.assert_max_traces(n=2)  # as it is, and with more padding
def run(rng, batch, ids, cut):
    toy = ToyDecoder(TABLES)
    found = sample(
        toy.step, toy.start(batch, MAX_LEN), rng, max_len=MAX_LEN, sentence_ids=ids, num_samples=3, min_len=2, **cut
    )
    return found, forced_decode(toy.step, toy.start(batch, MAX_LEN), found.tokens)


def draw(seed, batch=BATCH, ids=IDS, **cut):
    cut = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0} | cut
    return jax.device_get(run(jax.random.key(seed), batch, ids, cut))


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"top_k": 2}, [1, 0, 0, 1, 0]),
        ({"top_k": 3}, [1, 1, 0, 1, 1]),  # a tie with the last one kept is kept
        ({"top_k": 99}, [1, 1, 1, 1, 1]),
        ({"top_p": 0.39}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.41}, [1, 0, 0, 1, 0]),
        ({"top_p": 1.0}, [1, 1, 1, 1, 1]),
        ({"top_p": 1e-9}, [1, 0, 0, 0, 0]),
        ({"min_p": 0.0}, [1, 1, 1, 1, 1]),
        ({"min_p": 0.3}, [1, 1, 0, 1, 1]),
        ({"min_p": 0.6}, [1, 0, 0, 1, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.61}, [1, 0, 0, 0, 0]),  # after top-k the first has 0.4 / 0.65 = 0.615
        ({"top_k": 2, "top_p": 0.62}, [1, 0, 0, 1, 0]),
    ],
)
def test_what_truncation_keeps(cut, kept):
    logits = jnp.log(jnp.array([0.4, 0.15, 0.05, 0.25, 0.15]))
    cut_logits = truncate(logits, **cut)
    assert (cut_logits > IMPOSSIBLE).tolist() == [bool(k) for k in kept]
    np.testing.assert_array_equal(cut_logits, np.where(kept, logits, IMPOSSIBLE))


def test_a_sentence_gets_the_same_samples_in_any_batch():
    whole, _ = draw(1)
    rows = [2, 0, 0, 3]
    part, _ = draw(1, jax.tree.map(lambda leaf: leaf[rows], BATCH), IDS[rows])
    chex.assert_trees_all_close(part, jax.tree.map(lambda leaf: leaf[rows], whole), atol=1e-5)
    wider, _ = draw(1, jax.tree.map(lambda leaf: np.pad(leaf, ((0, 0), (0, 3))), BATCH))
    assert not wider.weights[..., -3:].any()
    chex.assert_trees_all_close(wider.replace(weights=wider.weights[..., :-3]), whole, atol=1e-5)


def test_seed_sentence_and_sample_each_change_the_draw():
    same_source = jax.tree.map(lambda leaf: leaf[[1, 1, 1, 1]], BATCH)
    one, other = draw(1, same_source)[0].tokens, draw(2, same_source)[0].tokens
    assert len({tuple(tokens) for tokens in one.reshape(12, -1).tolist()}) > 6
    assert (one != other).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(one, draw(1, same_source)[0].tokens)


def test_first_samples_do_not_depend_on_how_many_are_drawn():
    toy = ToyDecoder(TABLES)

    def few(rng, ids):
        return sample(toy.step, toy.start(BATCH, MAX_LEN), rng, max_len=MAX_LEN, sentence_ids=ids, min_len=2)

    np.testing.assert_array_equal(jax.jit(few)(jax.random.key(1), IDS).tokens, draw(1)[0].tokens[:, :1])


def test_log_probabilities_and_attention_are_those_of_the_model():
    found, forced = draw(3, temperature=1.7, top_p=0.9)
    np.testing.assert_allclose(found.log_probs, forced.log_probs, atol=1e-5)
    np.testing.assert_allclose(found.weights, forced.weights, atol=1e-6)
    assert (found.lengths >= 2).all()
    assert (((found.tokens == EOS_ID).sum(-1) == 1) == found.finished).all()
    assert ((found.tokens != PAD_ID).sum(-1) == found.lengths).all() and found.finished.any()


def test_what_leaves_one_token_is_greedy():
    toy = ToyDecoder(TABLES)
    best = jax.jit(lambda batch: greedy(toy.step, toy.start(batch, MAX_LEN), max_len=MAX_LEN, min_len=2))(BATCH)
    for cut in ({"temperature": 1e-4}, {"temperature": 1e-30, "top_p": 0.3}, {"top_p": 1e-6}, {"min_p": 1.0}):
        np.testing.assert_array_equal(draw(0, **cut)[0].tokens, np.repeat(best.tokens, 3, axis=1))


def test_no_temperature_draws_what_is_forbidden():
    """So hot that all tokens are equally likely, but neither padding nor the begin of sentence, nor an early end."""
    for temperature in (1e9, 1e30):
        found, _ = draw(4, temperature=temperature)
        written = np.arange(MAX_LEN) < found.lengths[..., None]
        assert (found.lengths >= 2).all() and (found.log_probs > IMPOSSIBLE / 2).all()
        assert not np.isin(found.tokens[written], [PAD_ID, BOS_ID]).any() and len(set(found.tokens[written])) > 4


def test_frequencies_are_the_probabilities():
    """10,000 draws of two tokens: the frequency of each pair within 5 standard deviations, those cut off never."""
    probs = np.array([0.2, 0.3, 0.5])

    def step(tokens, state):
        return jnp.broadcast_to(jnp.log(jnp.array([0, 0, 0, *probs])), (*tokens.shape, 6)), None, state

    @jax.jit
    def draw_pairs(temperature, min_p):
        state = DecodeState(None, jnp.zeros((100, 1)))
        options = {"max_len": 2, "num_samples": 100, "temperature": temperature, "min_p": min_p}
        return sample(step, state, jax.random.key(0), **options).tokens.reshape(-1, 2) - 3

    for temperature, min_p in ((1.0, 0.0), (0.5, 0.0), (1.0, 0.5)):
        each = probs ** (1 / temperature)
        each = np.where(each >= min_p * each.max(), each, 0) / each.sum(where=each >= min_p * each.max())
        expected = each[:, None] * each
        found = np.zeros((3, 3))
        np.add.at(found, tuple(np.asarray(draw_pairs(temperature, min_p)).T), 1e-4)
        assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 10_000)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, found 0.0; for the most likely token use greedy"),
        ({"top_k": 0}, "top_k must be at least 1, found 0"),
        ({"top_p": 1.5}, r"top_p must be within \(0, 1\], found 1.5"),
        ({"min_p": -0.1}, r"min_p must be within \[0, 1\], found -0.1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(None, DecodeState(None, jnp.zeros((1, 1))), jax.random.key(0), max_len=3, **options)
