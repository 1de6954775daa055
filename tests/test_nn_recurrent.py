"""Recurrent layers against PyTorch, their own halves, and what padding must never do."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.convert.torch import carry_to_torch
from attn_jax.convert.torch_layouts import recurrent_stack
from attn_jax.functional.recurrence import CELLS
from attn_jax.nn.recurrent import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    RecurrentLayer,
    RecurrentStack,
    cell_bias,
    gate_orthogonal,
    zero_carry,
)
from tests.jaxprs import assert_products_accumulate_in_float32
from tests.torch_parity import load

BATCH, TIME, WIDTH, HIDDEN = 3, 5, 3, 4
LENGTHS = np.array([5, 3, 1])
MASK = np.arange(TIME) < LENGTHS[:, None]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(jax.dtypes.canonicalize_dtype(float))


INPUTS_SHAPE = (BATCH, TIME, WIDTH)


def random_variables(layer, shape=INPUTS_SHAPE):
    """Random parameters, biases included, in the precision of the test."""
    created = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(shape))
    leaves, treedef = jax.tree.flatten(created)
    return jax.tree.unflatten(treedef, [0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@partial(jax.jit, static_argnums=0)
def jitted(layer, variables, args, rng):
    return layer.apply(variables, *args, deterministic=rng is None, rngs=None if rng is None else {"dropout": rng})


def run(layer, variables, *args, rng=None):
    """Outputs and carry in NumPy; with dropout if there is a key."""
    return jax.device_get(jitted(layer, variables, args, rng))


LAYERS = {f"{cell} forward": RecurrentLayer(HIDDEN, cell=cell) for cell in CELLS}
LAYERS |= {f"{cell} backward": RecurrentLayer(HIDDEN, cell=cell, reverse=True) for cell in CELLS}
LAYERS |= {
    "gru both": Bidirectional(HIDDEN, cell="gru"),
    "lstm stack": RecurrentStack(HIDDEN, 2, cell="lstm", residual=True),
    "gru both stacked": RecurrentStack(HIDDEN, 2, cell="gru", bidirectional=True),
}
FEW = ("rnn forward", "lstm backward", "gru both stacked", "lstm stack")


# ----------------------------------------------------------------------------------------------------- numbers, shapes


def test_the_exact_numbers_of_an_rnn():
    layer = RNN(1)
    variables = {"params": {"input": np.ones((1, 1)), "recurrent": np.full((1, 1), 0.5), "bias": np.zeros(1)}}
    outputs, carry = layer.apply(variables, np.array([[[0.0], [1.0], [0.0]]]))
    np.testing.assert_allclose(outputs[0, :, 0], [0, np.tanh(1), np.tanh(0.5 * np.tanh(1))], rtol=1e-6)
    assert carry.item() == outputs[0, -1, 0]


@pytest.mark.parametrize(
    ("layer", "parameters", "in_torch", "biases"),
    [
        (RNN(32), 1_376, 1_408, 32),
        (LSTM(32), 5_504, 5_632, 4 * 32),
        (GRU(32), 4_160, 4_224, 2 * 32),  # a GRU needs the candidate's second bias
        (Bidirectional(32, cell="lstm"), 11_008, 11_264, 2 * 4 * 32),
    ],
)
def test_parameters_of_the_benchmark_models(layer, parameters, in_torch, biases):
    created = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((16, 20, 10)))
    assert sum(leaf.size for leaf in jax.tree.leaves(created)) == parameters
    assert parameters == in_torch - biases  # PyTorch adds two biases to each gate, where one does the same


@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (RecurrentLayer(32), 32),
        (Bidirectional(32), 64),
        (RecurrentStack(32, 3), 32),
        (RecurrentStack(256, 2, bidirectional=True), 512),
    ],
)
def test_shapes(layer, width):
    (outputs, carry), _ = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((16, 20, 10)))
    assert outputs.shape == (16, 20, width)
    assert all(leaf.shape == (16, layer.features) for leaf in jax.tree.leaves(carry))


def test_initial_values(rng):
    kernel = gate_orthogonal(rng, (4, 12))
    for gate in jnp.split(kernel, 3, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-5)
    assert cell_bias("lstm", 2)(rng, (8,)).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert cell_bias("gru", 2)(rng, (6,)).tolist() == [0] * 6
    assert [leaf.shape for leaf in zero_carry("lstm", (2, 3), 4)] == [(2, 3, 4)] * 2


# ------------------------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("bidirectional", "num_layers"), [(False, 1), (True, 1), (False, 2), (True, 2)])
def test_equals_torch(x64, cell, bidirectional, num_layers):
    torch = pytest.importorskip("torch")
    layer = RecurrentStack(HIDDEN, num_layers, cell=cell, bidirectional=bidirectional)
    variables, inputs = random_variables(layer), normal(20, *INPUTS_SHAPE)
    theirs = getattr(torch.nn, cell.upper())(
        WIDTH, HIDDEN, num_layers, bidirectional=bidirectional, batch_first=True, dtype=torch.float64
    )
    load(torch, theirs, variables["params"], recurrent_stack(cell, num_layers, both_ways=bidirectional))
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(inputs), torch.tensor(LENGTHS), batch_first=True)
    with torch.no_grad():
        expected, state = theirs(packed)
    expected = torch.nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)[0].numpy()
    outputs, carries = run(layer, variables, inputs, MASK)
    np.testing.assert_allclose(outputs, expected, atol=1e-12)
    last = [part.numpy() for part in state] if cell == "lstm" else state.numpy()
    np.testing.assert_allclose(carry_to_torch(carries, bidirectional=bidirectional), last, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("name", LAYERS)
def test_masked_is_sliced(x64, name):
    layer = LAYERS[name]
    variables, inputs = random_variables(layer), normal(20, *INPUTS_SHAPE)
    outputs, carry = run(layer, variables, inputs, MASK)
    assert not outputs[~MASK].any()
    for b, length in list(enumerate(LENGTHS))[1:]:
        alone, last = run(layer, variables, inputs[b : b + 1, :length])
        np.testing.assert_allclose(outputs[b, :length], alone[0], atol=1e-12)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], carry), last, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_padding_never_matters(name):
    # Bit for bit, in values and in gradients, whatever stands in the padding.
    layer = LAYERS[name]
    variables, inputs = random_variables(layer), normal(20, *INPUTS_SHAPE)

    @jax.jit
    def gradient(inputs):
        def loss(variables, inputs):
            outputs, carry = out = layer.apply(variables, inputs, MASK)
            return jnp.sum(jnp.sin(outputs)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(carry)), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, inputs)

    grads, out = jax.device_get(gradient(inputs))
    other_grads, other_out = jax.device_get(gradient(np.where(MASK[..., None], inputs, np.nan)))
    chex.assert_trees_all_equal(out, other_out)
    chex.assert_trees_all_equal(grads, other_grads)
    assert not grads[1][~MASK].any()
    assert all(grad.any() for grad in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", FEW)
def test_longer_padding_never_matters(x64, name):
    layer = LAYERS[name]
    variables, inputs = random_variables(layer), normal(20, *INPUTS_SHAPE)
    outputs, carry = run(layer, variables, inputs, MASK)
    longer = run(layer, variables, np.pad(inputs, ((0, 0), (0, 4), (0, 0))), np.pad(MASK, ((0, 0), (0, 4))))
    np.testing.assert_allclose(longer[0][:, :TIME], outputs, atol=1e-12)
    chex.assert_trees_all_close(longer[1], carry, atol=1e-12)


@pytest.mark.parametrize("name", FEW)
def test_a_row_without_any_step(name):
    layer, nothing = LAYERS[name], np.zeros((BATCH, TIME), bool)
    variables, inputs = random_variables(layer), normal(20, *INPUTS_SHAPE)
    assert not any(leaf.any() for leaf in jax.tree.leaves(run(layer, variables, inputs, nothing)))


# --------------------------------------------------------------------------------------------------- steps, directions


@pytest.mark.parametrize("cell", CELLS)
def test_two_halves_make_a_whole(x64, cell):
    layer, inputs = RecurrentStack(HIDDEN, 2, cell=cell), normal(20, *INPUTS_SHAPE)
    variables = random_variables(layer)
    outputs, carry = run(layer, variables, inputs, MASK)
    first, between = run(layer, variables, inputs[:, :2], MASK[:, :2])
    second, last = run(layer, variables, inputs[:, 2:], MASK[:, 2:], between)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), outputs, atol=1e-12)
    chex.assert_trees_all_close(last, carry, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_backward_is_forward_on_the_flipped_sequence(x64, cell):
    forward, backward = (RecurrentLayer(HIDDEN, cell=cell, reverse=reverse) for reverse in (False, True))
    variables, inputs = random_variables(forward), normal(20, *INPUTS_SHAPE)
    outputs, carry = run(backward, variables, inputs)
    flipped, last = run(forward, variables, inputs[:, ::-1])
    np.testing.assert_allclose(outputs, flipped[:, ::-1], atol=1e-12)
    chex.assert_trees_all_close(carry, last, atol=1e-12)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_both_directions_are_the_two_side_by_side(cell, x64):
    layer, inputs = Bidirectional(HIDDEN, cell=cell), normal(20, *INPUTS_SHAPE)
    variables, half = random_variables(layer), normal(21, INPUTS_SHAPE[0], HIDDEN)
    starts = [(half, 2 * half), (-half, half)] if cell == "lstm" else [half, -half]
    outputs, carries = run(layer, variables, inputs, MASK, tuple(starts))
    for index, (name, reverse) in enumerate((("forward", False), ("backward", True))):
        one = RecurrentLayer(HIDDEN, cell=cell, reverse=reverse)
        alone, carry = run(one, {"params": variables["params"][name]}, inputs, MASK, starts[index])
        np.testing.assert_allclose(outputs[..., index * HIDDEN : (index + 1) * HIDDEN], alone, atol=1e-12)
        chex.assert_trees_all_close(carries[index], carry, atol=1e-12)


def test_residuals_add_the_input_of_layers_as_wide(x64):
    plain, residual = (RecurrentStack(HIDDEN, 2, cell="gru", residual=r) for r in (False, True))
    variables, inputs = random_variables(plain), normal(20, *INPUTS_SHAPE)
    bottom = RecurrentStack(HIDDEN, 1, cell="gru")
    below = run(bottom, {"params": {"layer_0": variables["params"]["layer_0"]}}, inputs, MASK)[0]
    outputs, with_residual = (run(layer, variables, inputs, MASK)[0] for layer in (plain, residual))
    np.testing.assert_allclose(with_residual, outputs + below, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- dropout


def dropped(layer, seed=0, inputs=None):
    inputs = np.ones((BATCH, 12, HIDDEN)) if inputs is None else inputs
    variables = random_variables(layer, inputs.shape)
    return run(layer, variables, inputs, rng=jax.random.key(seed))[0]


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5}, {"dropout": 0.5, "variational": True}, {"recurrent_dropout": 0.5}]
)
def test_dropout_draws_from_its_stream_and_can_be_turned_off(options):
    layer, inputs = RecurrentStack(HIDDEN, 2, **options), normal(20, *INPUTS_SHAPE)
    variables = random_variables(layer)
    np.testing.assert_array_equal(
        run(layer, variables, inputs)[0], run(RecurrentStack(HIDDEN, 2), variables, inputs)[0]
    )
    np.testing.assert_array_equal(dropped(layer, 1), dropped(layer, 1))
    assert not np.array_equal(dropped(layer, 1), dropped(layer, 2))


@pytest.mark.parametrize("variational", [False, True])
def test_variational_dropout_drops_the_same_units_at_every_step(variational):
    # The top layer shows its input: an RNN with an identity kernel and no recurrence gives out the tanh of it.
    layer = RecurrentStack(HIDDEN, 2, cell="rnn", dropout=0.5, variational=variational)
    inputs = np.ones((BATCH, 12, HIDDEN))
    variables = random_variables(layer, inputs.shape)
    top = {"input": np.eye(HIDDEN), "recurrent": np.zeros((HIDDEN, HIDDEN)), "bias": np.zeros(HIDDEN)}
    variables = {"params": {"layer_0": variables["params"]["layer_0"], "layer_1": top}}
    outputs, _ = run(layer, variables, inputs, rng=jax.random.key(3))
    zero = outputs == 0
    assert zero.any()
    assert not zero.all()
    assert (zero == zero[:, :1]).all() == variational


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_dropout_is_a_smaller_recurrent_kernel(x64, cell):
    # Dropping hidden units on their way into the next step is the same as zero rows of the recurrent kernel.
    layer, plain = RecurrentLayer(HIDDEN, cell=cell, recurrent_dropout=0.5), RecurrentLayer(HIDDEN, cell=cell)
    variables, inputs = random_variables(plain), normal(20, 1, TIME, WIDTH)
    outputs, _ = run(layer, variables, inputs, rng=jax.random.key(1))
    possible = []
    for kept in np.ndindex(*[2] * HIDDEN):
        kernel = variables["params"]["recurrent"] * 2 * np.array(kept)[:, None]
        possible.append(run(plain, {"params": variables["params"] | {"recurrent": kernel}}, inputs)[0])
    assert min(np.abs(outputs - one).max() for one in possible) < 1e-12


# --------------------------------------------------------------------------------------------- precision, jit, learning


@pytest.mark.parametrize("name", FEW)
def test_jit_equals_eager(name):
    layer, inputs = LAYERS[name], normal(20, *INPUTS_SHAPE)
    variables = random_variables(layer)
    chex.assert_trees_all_close(run(layer, variables, inputs, MASK), layer.apply(variables, inputs, MASK), rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_products_accumulate_in_float32(cell):
    layer, exact = (RecurrentStack(HIDDEN, 2, cell=cell, precision=p) for p in ("bfloat16", "float32"))
    variables, inputs = random_variables(layer), normal(20, *INPUTS_SHAPE)
    gradient = jax.grad(lambda v: jnp.sum(layer.apply(v, inputs, MASK)[0]))
    assert assert_products_accumulate_in_float32(gradient, variables) >= 2 * 5
    outputs, carry = run(layer, variables, inputs, MASK)
    np.testing.assert_allclose(outputs, run(exact, variables, inputs, MASK)[0], atol=0.05)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((outputs, carry)))


def test_an_lstm_learns_to_remember_the_first_step(rng):
    signs = np.sign(normal(30, 16, 1, 1))
    inputs = np.concatenate([signs, np.zeros((16, 7, 1))], axis=1)
    layer = LSTM(4)

    def loss(params):
        outputs, _ = layer.apply(params, inputs)
        return jnp.mean((outputs[:, -1, :1] - 0.5 * signs[:, 0]) ** 2)

    @jax.jit
    def fit(params):
        step = lambda _, p: jax.tree.map(lambda w, g: w - 0.5 * g, p, jax.grad(loss)(p))  # noqa: E731
        return loss(jax.lax.fori_loop(0, 300, step, params))

    assert fit(jax.jit(layer.init)(rng, inputs)) < 0.01


# -------------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize("layer", [RecurrentLayer(4), Bidirectional(4), RecurrentStack(4, 2)])
@pytest.mark.parametrize(
    ("inputs", "mask", "message"),
    [
        ((5, 3), None, r"has rank 2 \(shape \(5, 3\)\) but expected 3"),
        ((2, 5, 3), np.ones((2, 4), bool), r"shape \(2, 4\) but expected \(2, 5\)"),
        ((2, 5, 3), np.ones((2, 5)), r"type.*float.*bool"),
    ],
)
def test_what_a_wrong_shape_says(layer, inputs, mask, message):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        jax.eval_shape(layer.init, jax.random.key(0), np.zeros(inputs), mask)


def test_what_a_wrong_carry_says():
    with pytest.raises(AssertionError, match=r"(?s)\(3, 4\).*\(2, 4\)"):
        jax.eval_shape(RNN(4).init, jax.random.key(0), np.zeros((2, 5, 3)), None, np.zeros((3, 4)))
