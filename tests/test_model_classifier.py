"""Sequence classifiers: the notebooks' models, pooling, padding and what they can learn."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax.models.classifier import (
    POOLINGS,
    ClassifierHead,
    RecurrentClassifier,
    RecurrentClassifierConfig,
    TransformerClassifier,
    TransformerClassifierConfig,
    pool,
)
from tests.jaxprs import assert_products_accumulate_in_float32

LENGTHS = np.array([6, 3, 1])
MASK = np.arange(6) < LENGTHS[:, None]


def recurrent(**options):
    return RecurrentClassifier(
        RecurrentClassifierConfig(**({"num_outputs": 2, "vocab_size": 5, "hidden": 4} | options))
    )


def transformer(**options):
    sizes = {"num_outputs": 2, "vocab_size": 5, "d_model": 8, "ffn_dim": 16}
    return TransformerClassifier(TransformerClassifierConfig(**(sizes | options)))


FAMILIES = pytest.mark.parametrize("make", [recurrent, transformer])


def tokens():
    return np.random.default_rng(0).integers(1, 5, (3, 6))


def random_variables(module, *inputs):
    """Random parameters in the precision of the test."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    leaves, treedef = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    draw = np.random.default_rng(1)
    return jax.tree.unflatten(treedef, [draw.normal(size=leaf.shape).astype(dtype) * 0.5 for leaf in leaves])


@partial(jax.jit, static_argnums=0)
def jitted(model, variables, inputs, mask):
    return model.apply(variables, inputs, mask)


def apply(model, variables, inputs, mask=None):
    return jax.device_get(jitted(model, variables, inputs, mask))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# ------------------------------------------------------------------------------------------------------ the notebooks'


@pytest.mark.parametrize("pooling", ["steps", "last", "mean", "max"])
def test_the_notebooks_bidirectional_rnn(pooling):
    # 769 parameters in PyTorch, which has two biases where one does the same: 2 * 16 fewer here.
    model = recurrent(num_outputs=1, vocab_size=0, input_features=5, hidden=16, pooling=pooling)
    (logits, weights), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), np.zeros((7, 10, 5)))
    assert count(variables) == 769 - 2 * 16
    assert logits.shape == ((7, 10, 1) if pooling == "steps" else (7, 1))
    assert weights is None


def test_the_notebooks_transformer_block_classifier():
    model = transformer(vocab_size=5, num_outputs=5, d_model=32, ffn_dim=64, num_heads=2, pooling="last")
    (logits, weights), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), np.zeros((3, 20), int))
    assert (logits.shape, weights.shape) == ((3, 5), (3, 1, 2, 20, 20))
    block = 4 * (32 * 32 + 32) + 32 * 64 + 64 + 64 * 32 + 32 + 4 * 32
    assert count(variables) == 5 * 32 + block + 32 * 5 + 5


def test_hidden_states_are_there_to_be_drawn():
    model = recurrent(hidden=16)
    variables = random_variables(model, tokens())
    states = model.apply(variables, tokens(), MASK, method="states")
    assert states.shape == (3, 6, 32)
    assert not np.asarray(states)[~MASK].any()


def test_at_the_last_step_the_backward_direction_has_read_one_step():
    model = recurrent(pooling="last")
    variables = random_variables(model, tokens())
    other = tokens()
    other[0, :-1] = other[0, :-1] % 4 + 1  # every step but the last
    backward = lambda x: np.asarray(model.apply(variables, x, method="states"))[0, -1, 4:]  # noqa: E731
    np.testing.assert_array_equal(backward(other), backward(tokens()))
    assert not np.array_equal(apply(model, variables, other)[0][0], apply(model, variables, tokens())[0][0])


# ------------------------------------------------------------------------------------------------------------- pooling


def test_pooling_by_hand():
    states = np.array([[[1.0, -3.0], [5.0, -2.0], [9.0, 9.0]], [[7.0, 1.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = np.array([[True, True, False], [True, False, False]])
    expected = {"last": [[5, -2], [7, 1]], "max": [[5, -2], [7, 1]], "mean": [[3, -2.5], [7, 1]]}
    assert {name: pool(states, mask, name).tolist() for name in expected} == expected
    assert pool(states, mask, "steps") is states
    for name in expected:
        assert not np.asarray(pool(states, np.zeros((2, 3), bool), name)).any()


def test_the_last_real_step_need_not_follow_a_row_of_real_steps():
    states, mask = np.arange(4.0).reshape(1, 4, 1), np.array([[True, False, True, False]])
    assert pool(states, mask, "last").item() == 2


def test_attention_pooling_by_hand():
    params = {"key_kernel": np.eye(2), "query": np.array([0.5, 0.0]), "v": np.array([2.0, 1.0])}
    params |= {"kernel": np.array([[1.0], [10.0]]), "bias": np.array([0.5])}
    states = np.array([[[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]]])
    head = ClassifierHead(1, pooling="attention")
    logits, weights = head.apply({"params": params}, states, np.array([[True, True, False]]))
    scores = np.array([2 * np.tanh(1.5), 2 * np.tanh(0.5) + np.tanh(1)])
    expected = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(weights[0], [*expected, 0], rtol=1e-5)
    np.testing.assert_allclose(logits[0, 0], expected @ [1, 10] + 0.5, rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@FAMILIES
class TestEveryPooling:
    def test_padding_and_the_rest_of_the_batch_never_matter(self, x64, make, pooling):
        model = make(pooling=pooling)
        variables = random_variables(model, tokens())
        logits, _ = apply(model, variables, tokens(), MASK)
        garbage, _ = apply(model, variables, np.where(MASK, tokens(), 0), MASK)
        real = MASK if pooling == "steps" else slice(None)
        np.testing.assert_array_equal(garbage[real], logits[real])
        alone, _ = apply(model, variables, tokens()[1:2, :3])
        expected = logits[1, :3] if pooling == "steps" else logits[1]
        np.testing.assert_allclose(alone[0], expected, atol=1e-12)

    def test_gradients_of_an_empty_sequence_are_finite(self, make, pooling):
        model = make(pooling=pooling)
        variables = random_variables(model, tokens())
        mask = MASK & (np.arange(3) != 1)[:, None]
        grads = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, tokens(), mask)[0])))(variables)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_weights_say_where_it_looked():
    model = recurrent(pooling="attention")
    weights = apply(model, random_variables(model, tokens()), tokens(), MASK)[1]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert not weights[~MASK].any()
    model = transformer(num_layers=2)
    weights = apply(model, random_variables(model, tokens()), tokens(), MASK)[1]
    assert weights.shape == (3, 2, 2, 6, 6)
    assert not weights[~np.broadcast_to(MASK[:, None, None, None], weights.shape)].any()


@FAMILIES
def test_continuous_inputs(make):
    model = make(vocab_size=0, input_features=3)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), np.zeros((2, 4, 3)))[0]
    assert logits.shape == (2, 2)


@pytest.mark.parametrize("positions", [True, False])
def test_without_positions_order_is_invisible(x64, positions):
    model = transformer(positions=positions, pooling="mean", num_layers=2)
    variables = random_variables(model, tokens())
    logits, mixed = (apply(model, variables, x)[0] for x in (tokens(), tokens()[:, ::-1]))
    assert np.allclose(logits, mixed, atol=1e-12) != positions


# ---------------------------------------------------------------------------------------- dropout, precision, learning


@FAMILIES
def test_dropout_draws_from_its_stream_and_can_be_turned_off(make):
    plain, model = make(num_layers=2), make(num_layers=2, dropout=0.5)
    variables = random_variables(plain, tokens())
    run = jax.jit(lambda rng: model.apply(variables, tokens(), deterministic=False, rngs={"dropout": rng})[0])
    assert not np.array_equal(run(jax.random.key(0)), run(jax.random.key(1)))
    np.testing.assert_array_equal(apply(model, variables, tokens())[0], apply(plain, variables, tokens())[0])


@FAMILIES
def test_jit_equals_eager(make):
    model = make(pooling="attention")
    variables = random_variables(model, tokens())
    for found, expected in zip(
        apply(model, variables, tokens(), MASK), model.apply(variables, tokens(), MASK), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@FAMILIES
def test_bfloat16_products_accumulate_in_float32(make):
    model = make(precision="bfloat16", pooling="attention")
    variables = random_variables(model, tokens())
    assert (
        assert_products_accumulate_in_float32(jax.grad(lambda v: jnp.sum(model.apply(v, tokens())[0])), variables) > 8
    )


@FAMILIES
def test_it_learns_which_symbol_came_first(rng, make):
    data = np.random.default_rng(3).integers(1, 5, (64, 6))
    model = (
        make(num_outputs=5, pooling="last", d_model=16)
        if make is transformer
        else make(num_outputs=5, pooling="last", cell="lstm", hidden=16, bidirectional=False)
    )
    optimizer = optax.adam(0.02)

    def loss(variables):
        logits, _ = model.apply(variables, data)
        return optax.softmax_cross_entropy_with_integer_labels(logits, data[:, 0]).mean()

    @jax.jit
    def fit(variables):
        def update(_, state):
            updates, moments = optimizer.update(jax.grad(loss)(state[0]), state[1])
            return optax.apply_updates(state[0], updates), moments

        return loss(jax.lax.fori_loop(0, 150, update, (variables, optimizer.init(variables)))[0])

    assert fit(jax.jit(model.init)(rng, data)) < 0.1


# -------------------------------------------------------------------------------------------------------- wrong inputs


def test_configs_round_trip_through_json():
    for config in (
        RecurrentClassifierConfig(num_outputs=3, vocab_size=7, cell="gru"),
        TransformerClassifierConfig(num_outputs=3, input_features=7, positions=False),
    ):
        assert type(config)(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (recurrent, {"pooling": "first"}, "pooling must be one of attention, last, max, mean, steps; found 'first'"),
        (recurrent, {"cell": "sru"}, "cell must be one of gru, lstm, rnn; found 'sru'"),
        (recurrent, {"hidden": 0}, "hidden must be at least 1, found 0"),
        (recurrent, {"input_features": 3}, "give either vocab_size .* found 5 and 3"),
        (recurrent, {"vocab_size": 0}, "give either vocab_size .* found 0 and 0"),
        (recurrent, {"dropout": -0.1}, r"in \[0, 1\); found -0.1"),
        (recurrent, {"num_outputs": 0}, "num_outputs must be at least 1, found 0"),
        (transformer, {"num_heads": 3}, "8 units cannot be shared by 3 heads"),
        (transformer, {"d_model": 7, "num_heads": 1}, "positions need an even d_model.*found 7"),
        (transformer, {"activation": "tanh"}, "activation must be one of gelu, gelu_exact, relu, swish; found 'tanh'"),
        (transformer, {"precision": "fp8"}, "precision must be one of bfloat16, float32; found 'fp8'"),
    ],
)
def test_what_a_wrong_config_says(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_heads_mask_must_be_boolean():
    with pytest.raises(AssertionError, match=r"(?s)type int.* bool"):
        jax.eval_shape(ClassifierHead(3).init, jax.random.key(0), np.zeros((2, 4, 5)), np.ones((2, 4), int))


@FAMILIES
@pytest.mark.parametrize(
    ("options", "inputs", "mask", "message"),
    [
        ({}, np.zeros((2, 4, 3), int), None, "rank 3 .* but expected 2"),
        ({}, np.zeros((2, 4)), None, "type"),
        ({"vocab_size": 0, "input_features": 3}, np.zeros((2, 4, 5)), None, r"\(2, 4, 5\).*\(None, None, 3\)"),
        ({}, np.zeros((2, 4), int), np.ones((2, 5), bool), r"\(2, 5\).*\(2, 4\)"),
    ],
)
def test_what_a_wrong_shape_says(make, options, inputs, mask, message):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        jax.eval_shape(make(**options).init, jax.random.key(0), inputs, mask)
