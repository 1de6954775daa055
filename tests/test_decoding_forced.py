"""Forced decoding against the tables it reads."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest

from attn_jax.decoding import forced_decode
from attn_jax.models.protocol import PAD_ID, DecodeState
from tests.toy_decoder import ToyDecoder, random_batch, random_tables

TABLES, BATCH = random_tables(0, vocab=9, positions=6), random_batch(0, rows=3)
TGT = np.array([[4, 5, 2, 0, 0], [8, 8, 3, 7, 2], [2, 0, 0, 0, 0]], np.int32)


@jax.jit
@chex.assert_max_traces(n=4)
def run(batch, tgt, mask=None):
    toy = ToyDecoder(TABLES)
    return forced_decode(toy.step, toy.start(batch, 6), tgt, mask)


def test_log_probabilities_are_those_of_the_tables():
    forced, toy = jax.device_get(run(BATCH, TGT)), ToyDecoder(TABLES)
    assert forced.token_log_probs.shape == (3, 5) and forced.weights.shape == (3, 5, 5)
    for row, tokens in enumerate(TGT.tolist()):
        for t, token in enumerate(tokens):
            expected = toy.log_probs_after(BATCH.src[row], BATCH.src_mask[row], tokens[:t])[token]
            np.testing.assert_allclose(forced.token_log_probs[row, t], expected if token else 0, atol=1e-5)
    np.testing.assert_allclose(forced.log_probs, forced.token_log_probs.sum(-1), atol=1e-5)


def test_attention_is_that_of_single_steps():
    toy = ToyDecoder(TABLES)
    state, tokens = toy.start(BATCH, 6), np.ones((3, 1), np.int32)
    forced = jax.device_get(run(BATCH, TGT))
    step = jax.jit(lambda tokens, state: ToyDecoder(TABLES).step(tokens, state))
    for t in range(5):
        _, weights, state = step(tokens, state)
        np.testing.assert_allclose(forced.weights[:, t], weights[:, 0] * (TGT[:, t] != PAD_ID)[:, None], atol=1e-6)
        tokens = TGT[:, t : t + 1]


def test_several_targets_a_sentence_are_each_as_alone():
    both = jax.device_get(run(BATCH, np.stack([TGT, TGT[::-1]], axis=1)))
    first, second = jax.device_get((run(BATCH, TGT), run(BATCH, TGT[::-1])))
    for i, alone in enumerate((first, second)):
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[:, i], both), alone, atol=1e-6)


def test_padding_changes_nothing():
    longer = jax.device_get(run(BATCH, np.pad(TGT, ((0, 0), (0, 1)))))
    forced = jax.device_get(run(BATCH, TGT))
    assert not longer.token_log_probs[:, 5].any() and not longer.weights[:, 5].any()
    np.testing.assert_allclose(longer.token_log_probs[:, :5], forced.token_log_probs, atol=1e-6)
    np.testing.assert_allclose(longer.weights[:, :5], forced.weights, atol=1e-6)


def test_a_mask_says_what_counts():
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    masked = jax.device_get(run(BATCH, TGT, mask))
    assert (masked.token_log_probs != 0).tolist() == mask.tolist()  # padding too, where the mask says so
    assert (masked.weights.sum(-1) > 0.99).tolist() == mask.tolist()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(AssertionError, match="shape"):
        forced_decode(None, DecodeState(None, None), TGT, np.ones((3, 4), bool))


def test_alternatives_at_each_step():
    toy = ToyDecoder(TABLES)
    top = jax.jit(lambda batch, tgt: forced_decode(toy.step, toy.start(batch, 6), tgt, top_k=3))
    forced, plain = jax.device_get((top(BATCH, TGT), run(BATCH, TGT)))
    assert plain.top_tokens is None and forced.top_tokens.shape == forced.top_log_probs.shape == (3, 5, 3)
    np.testing.assert_allclose(forced.token_log_probs, plain.token_log_probs, atol=1e-6)
    for row, tokens in enumerate(TGT.tolist()):
        for t, token in enumerate(tokens):
            expected = toy.log_probs_after(BATCH.src[row], BATCH.src_mask[row], tokens[:t])
            best = 2 + np.argsort(-expected[2:])[:3] if token else np.zeros(3, int)  # neither padding nor a begin
            assert forced.top_tokens[row, t].tolist() == best.tolist()
            np.testing.assert_allclose(forced.top_log_probs[row, t], expected[best] if token else 0, atol=1e-5)


@pytest.mark.parametrize("top_k", [-1, 10])
def test_more_alternatives_than_words_are_refused(top_k):
    toy = ToyDecoder(TABLES)
    with pytest.raises(ValueError, match=f"top_k must be within 0 and the 9 words there are, found {top_k}"):
        jax.eval_shape(lambda tgt: forced_decode(toy.step, toy.start(BATCH, 6), tgt, top_k=top_k), TGT)
