"""Greedy decoding, and the loop it shares with sampling."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest

from attn_jax.decoding import IMPOSSIBLE, forced_decode, greedy, rollout
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, DecodeState
from tests.toy_decoder import ToyDecoder, random_batch, random_tables

MAX_LEN = 8


@jax.jit
@chex.assert_max_traces(n=1)
def run(tables, batch, active, limits):
    toy = ToyDecoder(tables)
    options = {"max_len": MAX_LEN, "min_len": 2, "length_penalty": "average"}
    found = greedy(toy.step, toy.start(batch, MAX_LEN), active=active, row_max_len=limits, **options)
    return found, forced_decode(toy.step, toy.start(batch, MAX_LEN), found.tokens)


EVERY, FREE = np.ones(4, bool), np.full(4, MAX_LEN)


def decode(seed, active=EVERY, limits=FREE, rows=slice(None)):
    tables, batch = random_tables(seed, vocab=9, positions=8), random_batch(seed, rows=4)
    tables.logits[..., [PAD_ID, BOS_ID]] += 3
    batch = jax.tree.map(lambda leaf: leaf[rows], batch)
    return ToyDecoder(tables), batch, *jax.device_get(run(tables, batch, active, limits))


@pytest.mark.parametrize("seed", range(4))
def test_every_token_is_the_most_likely(seed):
    toy, batch, found, _ = decode(seed)
    for row in range(4):
        prefix, total = [], 0.0
        while EOS_ID not in prefix and len(prefix) < MAX_LEN:
            following = toy.log_probs_after(batch.src[row], batch.src_mask[row], prefix)
            following[[PAD_ID, BOS_ID] + [EOS_ID] * (not prefix)] = -np.inf  # min_len is 2
            prefix.append(int(following.argmax()))
            total += following.max()
        assert found.tokens[row, 0].tolist() == prefix + [PAD_ID] * (MAX_LEN - len(prefix))
        assert found.lengths[row, 0] == len(prefix) and found.finished[row, 0] == (prefix[-1] == EOS_ID)
        np.testing.assert_allclose(found.log_probs[row, 0], total, atol=2e-5)
        np.testing.assert_allclose(found.scores[row, 0], total / len(prefix), atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_the_attention_is_that_of_forced_decoding(seed):
    _, _, found, forced = decode(seed)
    np.testing.assert_allclose(found.weights, forced.weights, atol=1e-6)
    np.testing.assert_allclose(found.log_probs, forced.log_probs, atol=1e-5)
    np.testing.assert_allclose(found.weights.sum(-1), np.arange(MAX_LEN) < found.lengths[..., None], atol=1e-6)


def test_the_batch_changes_nothing():
    rows, limits = [3, 1, 1, 0], np.array([8, 3, 8, 5])
    whole, part = decode(0, limits=limits)[2], decode(0, limits=limits[rows], rows=rows)[2]
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[rows], whole), part, atol=1e-5)


def test_padding_rows_and_limits():
    free, found = decode(1)[2], decode(1, np.array([True, False, True, True]), np.array([8, 8, 0, 1]))[2]
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[0], one) for one in (free, found)))
    assert found.lengths[:, 0].tolist()[1:] == [0, 0, 1] and not found.finished[1:].any()
    assert not found.tokens[1:3].any() and not found.weights[1:3].any()
    assert (found.log_probs[1:3] == IMPOSSIBLE).all() and (found.scores[1:3] == IMPOSSIBLE).all()
    assert found.tokens[3, 0, 0] == free.tokens[3, 0, 0] and not found.tokens[3, 0, 1:].any()


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="width must be at least 1, found 0"):
        rollout(None, DecodeState(None, None), None, max_len=3, width=0)
