import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.models import seq2seq
from attn_jax.models.protocol import Batch, search_variables, shift_right
from attn_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from attn_jax.nn.attention import ATTENTIONS
from attn_jax.training.step import OptimizerConfig, batch_loss, init_state, make_optimizer, make_train_step
from tests.random_params import random_params

VOCAB = 20


def make_batch(rows=3, src_len=6, tgt_len=5, seed=0):
    rng = np.random.default_rng(seed)
    lengths = lambda n: np.concatenate([[n], rng.integers(2, n + 1, rows - 1)])  # noqa: E731
    mask = lambda n: np.arange(n) < lengths(n)[:, None]  # noqa: E731
    tokens = lambda n: rng.integers(4, VOCAB, (rows, n)).astype(np.int32)  # noqa: E731
    return Batch(src=tokens(src_len), src_mask=mask(src_len), tgt=tokens(tgt_len), tgt_mask=mask(tgt_len))


def make_config(**settings):
    small = {
        "src_vocab_size": VOCAB,
        "tgt_vocab_size": VOCAB,
        "embed_dim": 8,
        "encoder_hidden": 6,
        "decoder_hidden": 12,
    }
    return Seq2SeqConfig(**(small | settings))


KINDS = {
    "luong": {},
    "none": {"attention": None},
    "none_state": {"attention": None, "readout": "state", "input_feeding": False, "decoder_cell": "rnn"},
    "bahdanau": {"attention": "additive", "attend_first": True, "input_feeding": False, "readout": "concat"},
    "tutorial": {
        "attention": "location",
        "attend_first": True,
        "query_with_input": True,
        "input_feeding": False,
        "readout": "state",
        "encoder_cell": "gru",
        "decoder_cell": "gru",
        "squeeze": 5,
    },
    "hoisted": {"attention": "concat", "input_feeding": False},
    "both": {"attention": "scaled_dot", "attend_first": True, "input_feeding": True},
    "local": {"attention": "local", "attention_options": {"window": 2}},
    "multihead": {"attention": "multihead", "decoder_layers": 2, "encoder_layers": 2, "residual": True},
    "tied": {"tie_embeddings": True, "share_embeddings": True, "encoder_cell": "lstm", "variational": True},
    "dot_copy": {"attention": "dot", "bridge": "copy", "decoder_cell": "gru"},
    "sparse": {"attention": "dot", "attention_options": {"normalizer": "sparsemax"}, "bidirectional": False,
               "encoder_hidden": 12, "bridge": "zero"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_equals_the_scan(kind, rng):
    model, batch = Seq2Seq(make_config(**KINDS[kind])), make_batch()
    variables = {"params": random_params(model, batch)}
    logits, weights = jax.jit(model.apply)(variables, batch)
    state = jax.jit(lambda v, b: model.apply(v, b, 8, method="start"))(variables, batch)
    step = jax.jit(lambda v, tokens, state: model.apply(v, tokens, state, method="step"))
    for leaf in jax.tree.leaves(state.dynamic):
        assert leaf.shape[:2] == (3, 1)
    inputs = shift_right(batch.tgt)
    for position in range(batch.tgt.shape[1]):
        out = step(variables, inputs[:, position, None], state)
        np.testing.assert_allclose(out.logits[:, 0], logits[:, position], atol=1e-5)
        if weights is not None:
            whole = weights.mean(axis=1) if weights.ndim == 4 else weights
            np.testing.assert_allclose(out.weights[:, 0], whole[:, position], atol=1e-6)
            if kind != "local":
                np.testing.assert_allclose(out.weights.sum(-1), 1, atol=1e-5)
            assert (np.asarray(out.weights[:, 0])[~np.asarray(batch.src_mask)] == 0).all()
        state = out.state
    assert (weights is None) == (model.config.attention is None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_the_folded_embedding_is_the_same(kind):
    model, batch = Seq2Seq(make_config(**KINDS[kind])), make_batch()
    params = random_params(model, batch)
    folded = search_variables(model, params)
    assert folded["folded"]["gates"].shape[0] == VOCAB
    start = jax.jit(lambda v: model.apply(v, batch, 8, np.array([[1, 5]] * 3), method="start"))
    step = jax.jit(lambda v, state: model.apply(v, np.array([[7], [8], [9]]), state, method="step"))
    plain, quick = ({"params": params}, start({"params": params})), (folded, start(folded))
    chex.assert_trees_all_close(step(*plain), step(*quick), atol=1e-5)
    products = [len(re.findall("dot_general", str(jax.make_jaxpr(step)(*given)))) for given in (plain, quick)]
    assert products[0] == products[1] + 1


def test_what_is_not_folded(monkeypatch):
    model, batch = Seq2Seq(make_config(embed_dim=7)), make_batch()  # a model that no other test folds
    params = random_params(model, batch)
    monkeypatch.setattr(seq2seq, "FOLDED_BYTES", VOCAB * 4 * 12 * 4 - 1)  # gates of 12 units, float32
    assert search_variables(model, params)["folded"] == {}
    continuous = make_config(tgt_vocab_size=0, tgt_features=4)
    floats = batch.replace(tgt=np.zeros((3, 5, 4), np.float32))
    model = Seq2Seq(continuous)
    assert search_variables(model, random_params(model, floats))["folded"] == {}


@pytest.mark.parametrize("kind", ["luong", "bahdanau", "tutorial", "hoisted", "multihead", "sparse"])
def test_padding_changes_neither_loss_nor_gradient(kind, x64):
    model, batch = Seq2Seq(make_config(**KINDS[kind])), make_batch()
    params = random_params(model, batch)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    padded = Batch(
        src=np.pad(batch.src, ((0, 2), (0, 3)), constant_values=7),
        src_mask=np.pad(batch.src_mask, ((0, 2), (0, 3))),
        tgt=np.pad(batch.tgt, ((0, 2), (0, 2)), constant_values=9),
        tgt_mask=np.pad(batch.tgt_mask, ((0, 2), (0, 2))),
    )
    value = jax.jit(jax.value_and_grad(lambda params, batch: batch_loss(model, params, batch, smoothing=0.1).loss))
    (loss, grads), (padded_loss, padded_grads) = value(params, batch), value(params, padded)
    np.testing.assert_allclose(loss, padded_loss, rtol=1e-10)
    chex.assert_trees_all_close(grads, padded_grads, atol=1e-9)
    chex.assert_tree_all_finite(grads)
    learnt = grads["decoder"]["recurrent_0"], grads["decoder"].get("attention", {})
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(learnt) if g.size > 1)  # one bias moves all scores


def test_every_mechanism_is_among_them():
    assert {settings.get("attention", "general") for settings in KINDS.values()} == {None, *ATTENTIONS}


def test_padding_past_what_location_attention_knows(rng):
    batch = make_batch(rows=1, src_len=9)
    padded = batch.replace(src=np.pad(batch.src, ((0, 0), (0, 3))), src_mask=np.pad(batch.src_mask, ((0, 0), (0, 3))))
    model = Seq2Seq(make_config(attention="location", attention_options={"max_len": 10}))
    variables = {"params": random_params(model, batch)}

    @jax.jit
    def run(batch):
        value, grads = jax.value_and_grad(lambda v: batch_loss(model, v["params"], batch).loss)(variables)
        state = model.apply(variables, batch, 4, method="start")
        out = model.apply(variables, jnp.full((1, 1), 1, jnp.int32), state, method="step")
        return value, grads, out.logits, out.weights[..., :9]

    chex.assert_trees_all_close(run(padded), run(batch), atol=1e-6)


@pytest.mark.parametrize("kind", ["luong", "none", "tutorial", "hoisted", "local", "multihead", "tied"])
def test_packed_targets_give_the_same_loss_and_gradient(kind, x64):
    check_packed(kind, jnp.float64, 1e-10)


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"teacher_forcing": 0.5}, {"filled": 0}])
def test_packed_targets_under_other_conditions(options):
    check_packed("luong", jnp.float32, 1e-4, **options)


@pytest.mark.parametrize("index", [np.zeros((2, 2), np.int32), np.zeros(3)])
def test_a_packed_index_is_a_vector_of_integers(index):
    model, batch = Seq2Seq(make_config()), make_batch()
    with pytest.raises(AssertionError, match=r"rank|type"):
        jax.eval_shape(model.init, jax.random.key(0), batch.replace(tgt_index=index))


def check_packed(kind, dtype, tolerance, *, precision="float32", teacher_forcing=None, filled=3):
    """Loss, gradients, features and weights of a batch, with and without the index of its real targets."""
    model = Seq2Seq(make_config(**KINDS[kind], dropout=0.2, precision=precision))
    batch = make_batch() if filled else make_batch(rows=1)  # a single sentence has no padding
    params = jax.tree.map(lambda p: p.astype(dtype), random_params(model, batch))
    real = np.flatnonzero(batch.tgt_mask)
    packed = batch.replace(tgt_index=np.concatenate([real, [batch.tgt.size] * filled]).astype(np.int32))
    options = {"smoothing": 0.1, "teacher_forcing": teacher_forcing}

    @jax.jit
    def outcome(params, batch):
        rng = jax.random.key(3)

        def loss(params):
            found = batch_loss(model, params, batch, rng, **options)
            return found.loss, found

        grads, found = jax.grad(loss, has_aux=True)(params)
        return found, grads, model.apply({"params": params}, batch, method="features")

    (*whole, (features, weights)), (*part, (packed_features, packed_weights)) = map(
        partial(outcome, params), (batch, packed)
    )
    chex.assert_trees_all_close(whole, part, atol=tolerance)
    assert float(part[0].count) == batch.tgt_mask.sum()
    counts = batch.tgt_mask[..., None]
    np.testing.assert_allclose(packed_features, np.where(counts, features, 0), atol=tolerance)
    if weights is not None:
        counts = counts if weights.ndim == 3 else counts[:, None]
        np.testing.assert_allclose(packed_weights, np.where(counts, weights, 0), atol=tolerance)


@pytest.mark.parametrize("kind", ["hoisted", "multihead"])
def test_scheduled_sampling_bounds(kind, rng):
    model, batch = Seq2Seq(make_config(**KINDS[kind], dropout=0.2)), make_batch()
    variables = {"params": random_params(model, batch)}
    run = jax.jit(
        lambda p, r: model.apply(
            variables, batch, deterministic=False, teacher_forcing=p, rngs={"dropout": r, "sampling": rng}
        )[0]
    )
    plain = jax.jit(
        lambda: model.apply(variables, batch, deterministic=False, rngs={"dropout": rng, "sampling": rng})[0]
    )()
    np.testing.assert_allclose(run(1.0, rng), plain, atol=1e-5)  # always the true token
    free = run(0.0, rng)
    np.testing.assert_allclose(free[:, 0], plain[:, 0], atol=1e-5)  # the first input is the start token either way
    assert np.abs(free - plain).max() > 1e-4


def test_never_teaching_is_greedy_decoding(rng):
    model, batch = Seq2Seq(make_config()), make_batch()
    variables = {"params": random_params(model, batch)}
    logits, _ = jax.jit(lambda p: model.apply(variables, batch, teacher_forcing=p, rngs={"sampling": rng}))(0.0)
    step = jax.jit(lambda tokens, state: model.apply(variables, tokens, state, method="step"))
    state, token = jax.jit(lambda: model.apply(variables, batch, 8, method="start"))(), jnp.full((3, 1), 1, jnp.int32)
    for position in range(batch.tgt.shape[1]):
        out = step(token, state)
        np.testing.assert_allclose(out.logits[:, 0], logits[:, position], atol=1e-5)
        state, token = out.state, jnp.argmax(out.logits, -1).astype(jnp.int32)


def test_continuous_sequences(rng):
    config = Seq2SeqConfig(
        src_features=10, tgt_features=10, embed_dim=8, encoder_hidden=32, decoder_hidden=32, bidirectional=False,
        attention=None, input_feeding=False, readout="state", encoder_cell="lstm", bridge="copy",
    )  # fmt: skip
    src, tgt = jax.random.normal(rng, (2, 15, 10)), jnp.ones((2, 15, 10))
    ones = jnp.ones((2, 15), bool)
    batch = Batch(src=src, src_mask=ones, tgt=tgt, tgt_mask=ones)
    model = Seq2Seq(config)
    variables = {"params": random_params(model, batch)}
    run = jax.jit(lambda variables: (model.apply(variables, batch), batch_loss(model, variables["params"], batch)))
    (outputs, weights), loss = run(variables)
    chex.assert_shape(outputs, (2, 15, 10))
    assert weights is None
    np.testing.assert_allclose(loss.loss / loss.count, jnp.mean((outputs - tgt) ** 2), rtol=1e-5)
    jax.eval_shape(lambda: model.apply(variables, batch, teacher_forcing=0.5, rngs={"sampling": rng}))


@pytest.mark.slow
def test_learns_to_reverse():
    rng = np.random.default_rng(0)
    src = rng.integers(4, 12, (64, 6)).astype(np.int32)
    tgt, mask = src[:, ::-1].copy(), np.ones((64, 6), bool)
    batch = Batch(src=src, src_mask=mask, tgt=tgt, tgt_mask=mask)
    model = Seq2Seq(
        make_config(src_vocab_size=12, tgt_vocab_size=12, encoder_hidden=24, decoder_hidden=32, embed_dim=16)
    )
    optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-2, warmup=10, schedule="constant"), 150)
    state = init_state(model, optimizer, batch, jax.random.key(0))
    step = make_train_step(model, optimizer)
    for _ in range(150):
        state, metrics = step(state, batch, jax.random.key(1))
    assert metrics.correct / metrics.tokens > 0.95
    assert [f._cache_size() for f in step.jitted] == [1, 1]


def test_what_a_wrong_shape_says(rng):
    batch = make_batch()
    model = Seq2Seq(make_config())
    for changes, message in (
        ({"src": np.zeros((3, 6, 2), np.float32)}, "rank 3 .* but expected 2"),
        ({"src_mask": np.ones((3, 4), bool)}, r"shape \(3, 4\) but expected \(3, 6\)"),
        ({"src_mask": np.ones((3, 6))}, "type float.* bool"),
        ({"tgt": np.zeros((3, 5, 2))}, "rank 3 .* but expected 2"),
        ({"tgt_mask": np.ones((3, 4), bool)}, r"shape \(3, 4\) but expected \(3, 5\)"),
        ({"tgt_mask": np.ones((3, 5))}, "type float.* bool"),
        ({"tgt": np.zeros((2, 5), int), "tgt_mask": np.ones((2, 5), bool)}, r"prefixes: \[\(3,\), \(2,\)\]"),
    ):
        with pytest.raises(AssertionError, match=f"(?s){message}"):
            jax.eval_shape(model.init, rng, batch.replace(**changes))
    variables = {"params": random_params(model, batch)}
    state = jax.jit(lambda: model.apply(variables, batch, 8, method="start"))()
    for tokens, message in (
        (np.zeros(3, int), "rank 1 .* but expected 2"),
        (np.zeros((3, 2), int), r"\(3, 1\).*\(3, 2\)"),
        (np.zeros((2, 1), int), r"\(3, 1\).*\(2, 1\)"),
    ):
        with pytest.raises(AssertionError, match=f"(?s){message}"):
            model.apply(variables, tokens, state, method="step")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "magic"}, "attention must be one of"),
        ({"src_vocab_size": 0}, "either src_vocab_size"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
        ({"tie_embeddings": True, "readout_features": 12}, "readout_features equal to embed_dim"),
        ({"bridge": "copy", "encoder_hidden": 5}, "use bridge='dense'"),
        ({"share_embeddings": True, "tgt_vocab_size": 30}, "one vocabulary"),
        ({"attention": None, "attend_first": True}, "needs an attention"),
        ({"decoder_layers": 0}, "at least 1"),
        ({"attention_features": -1}, "attention_features must not be negative, found -1"),
        ({"squeeze": -1}, "squeeze must not be negative, found -1"),
        ({"readout": "state"}, "readout='state' ignores the context of recur-then-attend"),
        ({"tie_embeddings": True, "tgt_vocab_size": 0, "tgt_features": 3}, "tie_embeddings needs target words"),
        (
            {"share_embeddings": True, "src_vocab_size": 0, "tgt_vocab_size": 0, "src_features": 3, "tgt_features": 3},
            "share_embeddings needs words on both sides",
        ),
        ({"share_embeddings": True, "tgt_vocab_size": 0, "tgt_features": 3}, "share_embeddings needs words"),
        ({"attention_options": {"num_heads": 2}}, "general attention has no option 'num_heads'"),
        ({"attention_options": {"normalizer": "hardmax"}}, "normalizer must be one of entmax15, softmax, sparsemax"),
        ({"attention": "multihead", "attention_options": {"num_heads": 5}}, "12 units cannot be shared by 5 heads"),
        ({"attention": "multihead", "attention_options": {"num_heads": "2"}}, "num_heads must be of type int"),
        ({"attention": "magic"}, "attention must be one of additive, concat, dot, general, local, location"),
    ],
)
def test_config_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(**settings)
