"""Posterior attention: Bayes' rule, word by word, against one step at a time with all but one word masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.models.posterior import posterior_attention
from attn_jax.models.protocol import Batch, DecodeState, shift_right
from attn_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tests.random_params import random_params

SIZES = {"src_vocab_size": 9, "tgt_vocab_size": 8, "embed_dim": 4, "encoder_hidden": 3, "decoder_hidden": 6}
MODELS = {
    "luong": {"attention": "general"},
    "bahdanau": {"attention": "additive", "attend_first": True, "readout": "concat", "decoder_cell": "gru"},
    "recur, then concat": {"attention": "general", "readout": "concat", "decoder_layers": 2},
    "heads": {"attention": "multihead", "attention_options": {"num_heads": 2}, "tie_embeddings": True},
    "location": {"attention": "location", "attention_options": {"max_len": 6}},
    "sparsemax": {"attention": "general", "attention_options": {"normalizer": "sparsemax"}},
    "query with input": {
        "attention": "additive",
        "query_with_input": True,
        "attend_first": True,
        "residual": True,
        "decoder_layers": 2,
    },
    "heads first": {
        "attention": "multihead",
        "attention_options": {"num_heads": 2},
        "attend_first": True,
        "readout": "concat",
        "decoder_cell": "rnn",
    },
    "tutorial": {"attention": "dot", "squeeze": 5, "attend_first": True, "readout": "state", "input_feeding": False},
}
SRC = np.array([[5, 6, 7, 2], [8, 2, 0, 0], [0, 0, 0, 0]])  # the last sentence only fills a batch up
TGT = np.array([[4, 5, 2], [7, 2, 0], [0, 0, 0]])
BATCH = Batch(SRC, SRC > 0, TGT, TGT > 0)


def model_of(**settings):
    model = Seq2Seq(Seq2SeqConfig(**SIZES | {"readout_features": 4 if "tie_embeddings" in settings else 0} | settings))
    params = random_params(model, BATCH)
    return model, jax.tree.map(lambda x: 2 * x + 0.1, params)  # far from uniform


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_bayes_rule_over_single_words(settings):
    model, params = model_of(**settings)
    step = jax.jit(lambda tokens, state: model.apply({"params": params}, tokens, state, method="step"))

    @jax.jit
    def run():
        state = model.apply({"params": params}, BATCH, 9, method="start")
        return state, posterior_attention(model, params, BATCH), model.apply({"params": params}, BATCH)[1]

    state, found, prior = run()
    inputs, expected = shift_right(jnp.asarray(TGT)), np.zeros((3, 3, 4))
    for i in range(3):
        usual = step(inputs[:, i, None], state)
        for j in range(4):
            alone = state.memory._replace(mask=np.tile(np.arange(4) == j, (3, 1, 1)))
            logits = np.asarray(step(inputs[:, i, None], DecodeState(alone, state.dynamic)).logits[:, 0])
            likelihood = np.exp(logits[range(3), TGT[:, i]]) / np.exp(logits).sum(-1)
            expected[:, i, j] = usual.weights[:, 0, j] * likelihood
        state = usual.state
    expected[:2] /= expected[:2].sum(-1, keepdims=True)
    expected[2] = 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (np.asarray(found)[1, :, 2:] == 0).all()
    assert np.abs(np.asarray(prior).reshape(3, -1, 3, 4).mean(1) - expected)[TGT > 0].max() > 0.02


def test_what_has_no_posterior():
    model, params = model_of(attention=None)
    with pytest.raises(ValueError, match="a model of words with attention"):
        posterior_attention(model, params, BATCH)


def test_memory_holds_the_logits_of_one_position_at_a_time():
    model, params = model_of(attention="general", tgt_vocab_size=2000)
    lowered = jax.jit(posterior_attention, static_argnums=0).lower(model, params, BATCH)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 3 * 4 * 2000 * 4 * 0.9  # [batch, src_len, vocab]
