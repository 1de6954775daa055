"""State dicts and parameters: exact numbers, both directions against PyTorch, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from attn_jax.convert import notebooks
from attn_jax.convert.torch import COLUMNS, ENTRIES, carry_from_torch, carry_to_torch, from_torch, numbered, to_torch
from attn_jax.convert.torch_layouts import (
    EMBEDDING,
    ENCODER_BLOCK,
    LAYER_NORM,
    bidirectional,
    decoder_layers,
    linear,
    multihead,
    recurrent_layer,
    recurrent_stack,
)
from attn_jax.functional.recurrence import CELLS
from attn_jax.nn.attention import MultiHeadAttention
from attn_jax.nn.recurrent import Bidirectional, RecurrentLayer, RecurrentStack
from attn_jax.nn.transformer import EncoderBlock
from tests.torch_parity import assert_equal_both_ways, normal, random_params, shapes_of

BATCH, TIME, WIDTH, HIDDEN = 2, 3, 4, 5
INPUTS = (BATCH, TIME, WIDTH)


def layer_state(gates, suffix="_l0", width=WIDTH):
    """A state dict of one recurrent layer."""
    rows = gates * HIDDEN
    shapes = {"weight_ih": (rows, width), "weight_hh": (rows, HIDDEN), "bias_ih": (rows,), "bias_hh": (rows,)}
    return {f"{name}{suffix}": normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}


# -------------------------------------------------------------------------------------------------------- exact numbers


def test_biases_of_a_gru_by_hand():
    state = {"weight_ih_l0": np.zeros((3, 1)), "weight_hh_l0": np.zeros((3, 1))}
    state |= {"bias_ih_l0": np.array([1.0, 2, 3]), "bias_hh_l0": np.array([10.0, 20, 30])}
    params = from_torch(state, recurrent_layer("gru"), shapes_of(RecurrentLayer(1, cell="gru"), np.zeros((1, 1, 1))))
    assert params["bias"].tolist() == [11, 22, 3] and params["candidate_bias"].tolist() == [30]
    back = to_torch(params, recurrent_layer("gru"))
    assert back["bias_ih_l0"].tolist() == [11, 22, 3] and back["bias_hh_l0"].tolist() == [0, 0, 30]


def test_packed_projections_by_hand():
    like = {f"{part}_kernel": jnp.zeros((2, 2)) for part in ("query", "key", "value", "out")}
    state = {"in_proj_weight": np.arange(12.0).reshape(6, 2), "out_proj.weight": np.array([[5.0, 6], [7, 8]])}
    params = from_torch(state, multihead(bias=False), like)
    assert params["key_kernel"].tolist() == [[4, 6], [5, 7]] and params["out_kernel"].tolist() == [[5, 7], [6, 8]]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_definition(cell, state, inputs):
    """The equations in PyTorch's documentation, on one sequence; the last ``(h, c)`` or ``h``."""
    hidden = memory = np.zeros(HIDDEN)
    for x in inputs:
        gates = CELLS[cell].gates
        left = np.split(state["weight_ih_l0"] @ x + state["bias_ih_l0"], gates)
        right = np.split(state["weight_hh_l0"] @ hidden + state["bias_hh_l0"], gates)
        if cell == "rnn":
            hidden = np.tanh(left[0] + right[0])
        elif cell == "gru":
            reset, update = sigmoid(left[0] + right[0]), sigmoid(left[1] + right[1])
            hidden = (1 - update) * np.tanh(left[2] + reset * right[2]) + update * hidden
        else:
            i, f, g, o = (a + b for a, b in zip(left, right, strict=True))
            memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(memory)
    return (hidden, memory) if cell == "lstm" else hidden


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_follows_the_equations_of_pytorch(cell, x64):
    layer, state, inputs = RecurrentLayer(HIDDEN, cell=cell), layer_state(CELLS[cell].gates), normal(9, *INPUTS)
    params = from_torch(state, recurrent_layer(cell), shapes_of(layer, inputs))
    _, carry = jax.jit(layer.apply)({"params": params}, inputs)
    last = carry_to_torch((carry,))
    for row in range(BATCH):
        expected = by_definition(cell, state, inputs[row])
        found = [part[0, row] for part in last] if cell == "lstm" else last[0, row]
        np.testing.assert_allclose(found, expected, rtol=1e-10)


# ------------------------------------------------------------------------------------------------------ there and back

SEQUENCE = np.zeros(INPUTS, np.float32)
PLAIN = {
    "linear": (nn.Dense(3), linear()),
    "linear without bias": (nn.Dense(3, use_bias=False), linear(bias=None)),
    "norm": (nn.LayerNorm(), LAYER_NORM),
    **{f"{cell} layer": (RecurrentLayer(HIDDEN, cell=cell), recurrent_layer(cell)) for cell in CELLS},
    "both ways": (Bidirectional(HIDDEN, cell="gru"), bidirectional("gru")),
    "stack": (RecurrentStack(HIDDEN, 2, bidirectional=True), recurrent_stack("lstm", 2, both_ways=True)),
    "heads": (MultiHeadAttention(features=6, num_heads=2), multihead(separate=True)),
    "block": (EncoderBlock(features=WIDTH, num_heads=2, ffn_dim=6), ENCODER_BLOCK),
    "notebook block": (EncoderBlock(features=WIDTH, num_heads=2, ffn_dim=6), notebooks.POST_NORM_BLOCK),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_there_is_the_inverse_of_back(kind):
    module, layout = PLAIN[kind]
    like = shapes_of(module, *([SEQUENCE, SEQUENCE] if kind == "heads" else [SEQUENCE]))
    params = random_params(like)
    again = from_torch(to_torch(params, layout), layout, like)
    flat, found = flatten_dict(params, sep="/"), flatten_dict(again, sep="/")
    assert flat.keys() == found.keys()
    for name, array in flat.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == np.float32


def test_layers_without_biases():
    like = shapes_of(RecurrentLayer(HIDDEN, cell="gru"), SEQUENCE)
    layout = recurrent_layer("gru", bias=False)
    state = {name: array for name, array in layer_state(3).items() if name.startswith("weight")}
    params = from_torch(state, layout, like)
    assert not params["bias"].any() and not params["candidate_bias"].any()
    assert to_torch(params, layout).keys() == state.keys()
    with pytest.raises(
        ValueError, match="bias, candidate_bias must be zeros, because the PyTorch module has nothing in"
    ):
        to_torch(params | {"candidate_bias": np.ones(HIDDEN)}, layout)


def test_layers_of_a_decoder_are_those_of_a_stack():
    state = to_torch(
        random_params(shapes_of(RecurrentStack(HIDDEN, 2, cell="gru"), SEQUENCE)), recurrent_stack("gru", 2)
    )
    decoder = decoder_layers("gru", 2)
    like = {rule.ours[0]: np.zeros_like(state[rule.theirs[0]].T) for rule in decoder}
    like |= {f"candidate_bias_{index}": np.zeros(HIDDEN, np.float32) for index in range(2)}
    params = from_torch(state, decoder, like)
    np.testing.assert_array_equal(params["below_1"], state["weight_ih_l1"].T)
    np.testing.assert_array_equal(to_torch(params, decoder)["bias_hh_l1"], state["bias_hh_l1"])


def test_vocabularies_with_other_numbers():
    ids = [1, 2, 4]
    kernel, bias = numbered(COLUMNS, ids), numbered(ENTRIES, ids, -9)
    (ours,) = kernel.there([np.array([[5.0], [6], [7]])], [jnp.zeros((1, 5))])
    assert ours.tolist() == [[0, 5, 6, 0, 7]] and kernel.back([ours])[0].ravel().tolist() == [5, 6, 7]
    assert bias.there([np.ones(3)], [jnp.zeros(5)])[0].tolist() == [-9, 1, 1, -9, 1]
    for wrong in ([1, 1, 2], [1, 2, 5], [-1, 0, 1]):
        with pytest.raises(ValueError, match=r"all different, below 5; found \["):
            numbered(ENTRIES, wrong).back([jnp.zeros(5)])


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("pair", [False, True])
def test_carries_there_and_back(both, pair):
    state = tuple(normal(i, 4, BATCH, HIDDEN) for i in range(2)) if pair else normal(0, 4, BATCH, HIDDEN)
    carry = carry_from_torch(state, bidirectional=both)
    assert len(carry) == (2 if both else 4)
    first = carry[0][0] if both else carry[0]
    hidden, expected = (first[1], state[0][0]) if pair else (first, state[0])
    np.testing.assert_array_equal(hidden, expected)
    np.testing.assert_array_equal(carry_to_torch(carry, bidirectional=both), state)


# -------------------------------------------------------------------------------------------------------------- PyTorch


def first(module, *tensors):
    return (module(*tensors),)


@pytest.mark.parametrize("name", ["Linear", "LayerNorm"])
def test_plain_layers_equal_torch(name, x64):
    torch = pytest.importorskip("torch")
    sizes = {"Linear": (WIDTH, 3), "LayerNorm": (WIDTH,)}[name]
    theirs = getattr(torch.nn, name)(*sizes, dtype=torch.float64)
    ours, layout = {"Linear": (nn.Dense(3), linear()), "LayerNorm": (nn.LayerNorm(1e-5), LAYER_NORM)}[name]
    run = lambda params, x: (ours.apply({"params": params}, x),)  # noqa: E731
    inputs = [normal(1, *INPUTS)]
    assert_equal_both_ways(torch, theirs, first, layout, random_params(shapes_of(ours, *inputs)), run, inputs)


def test_embedding_equals_torch(x64):
    torch = pytest.importorskip("torch")
    theirs, ours = torch.nn.Embedding(7, WIDTH, dtype=torch.float64), nn.Embed(7, WIDTH)
    run = lambda params, ids: (ours.apply({"params": params}, ids),)  # noqa: E731
    ids = [np.array([[1, 6], [1, 0]])]
    assert_equal_both_ways(torch, theirs, first, EMBEDDING, random_params(shapes_of(ours, *ids)), run, ids)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("both", "num_layers", "bias"), [(False, 1, True), (True, 2, True), (False, 2, False)])
def test_recurrent_stacks_equal_torch(cell, both, num_layers, bias, x64):
    """With the states they start from and end in, of both of which the gradients are compared too."""
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, cell.upper())(
        WIDTH, HIDDEN, num_layers, bidirectional=both, bias=bias, batch_first=True, dtype=torch.float64
    )
    ours = RecurrentStack(HIDDEN, num_layers, cell=cell, bidirectional=both)
    layout, pair = recurrent_stack(cell, num_layers, both_ways=both, bias=bias), cell == "lstm"
    state = normal(2, 1 + pair, num_layers * (1 + both), BATCH, HIDDEN)
    inputs = [normal(1, *INPUTS), *state]

    def run_theirs(module, x, *state):
        outputs, last = module(x, state if pair else state[0])
        return (outputs, *(last if pair else (last,)))

    def run_ours(params, x, *state):
        carry = carry_from_torch(state if pair else state[0], bidirectional=both)
        outputs, last = ours.apply({"params": params}, x, None, carry)
        steps = [one for layer in last for one in (layer if both else (layer,))]
        return (outputs, *(jnp.stack(part) for part in (list(zip(*steps, strict=True))[::-1] if pair else [steps])))

    like = shapes_of(ours, inputs[0])
    params = jax.tree.map(lambda one: one * (bias or one.ndim > 1), random_params(like))
    assert_equal_both_ways(torch, theirs, run_theirs, layout, params, run_ours, inputs)


@pytest.mark.parametrize(("bias", "kdim"), [(True, None), (False, None), (True, 3)])
def test_multihead_attention_equals_torch(bias, kdim, x64):
    torch = pytest.importorskip("torch")
    options = {"kdim": kdim, "vdim": kdim, "bias": bias, "batch_first": True, "dtype": torch.float64}
    theirs = torch.nn.MultiheadAttention(WIDTH, 2, **options)
    ours = MultiHeadAttention(features=WIDTH, num_heads=2, use_bias=bias)
    inputs = [normal(1, *INPUTS), normal(2, BATCH, 5, kdim or WIDTH), normal(3, BATCH, 5, kdim or WIDTH)]
    run_theirs = lambda module, *of: module(*of, average_attn_weights=False)  # noqa: E731
    run_ours = lambda params, *of: ours.apply({"params": params}, *of)  # noqa: E731
    layout = multihead(bias=bias, separate=kdim is not None)
    assert_equal_both_ways(torch, theirs, run_theirs, layout, random_params(shapes_of(ours, *inputs)), run_ours, inputs)


# -------------------------------------------------------------------------------------------------------------- refused

LIKE = {"input": jnp.zeros((WIDTH, 4 * HIDDEN)), "recurrent": jnp.zeros((HIDDEN, 4 * HIDDEN)), "bias": jnp.zeros(20)}
STATE = layer_state(4)


@pytest.mark.parametrize(
    ("state", "layout", "like", "message"),
    [
        (
            {**STATE, "fc.bias": np.zeros(1)},
            recurrent_layer("lstm"),
            LIKE,
            "the state dict and the layout differ: expected bias_hh_l0, bias_ih_l0, weight_hh_l0, weight_ih_l0; found "
            "bias_hh_l0, bias_ih_l0, fc.bias, weight_hh_l0, weight_ih_l0; missing: none; too many: fc.bias; choose",
        ),
        (STATE, recurrent_layer("lstm", "_l1"), LIKE, "missing: bias_hh_l1, bias_ih_l1, weight_hh_l1, weight_ih_l1;"),
        (
            STATE,
            recurrent_layer("gru"),
            LIKE,
            "the module and the layout differ: expected bias, candidate_bias, input, recurrent; found bias, input, rec",
        ),
        (
            layer_state(3),
            recurrent_layer("lstm"),
            LIKE,
            "weight_ih_l0: expected shape (20, 4) for input (4, 20), found (15, 4); build the module with the sizes",
        ),
        ({**STATE, "weight_hr_l0": np.zeros(1)}, (), {}, "'weight_hr_l0' belongs to an LSTM with proj_size, whose"),
        ({"attention.bias_k": np.zeros(1)}, (), {}, "'attention.bias_k' belongs to attention with add_bias_kv, which"),
    ],
)
def test_what_does_not_fit(state, layout, like, message):
    with pytest.raises(ValueError) as error:
        from_torch(state, layout, like)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_one_hot_words_need_an_embedding_of_their_number():
    rule = notebooks.one_hot_translator(1)[-1:]
    like = {"tgt_embed": {"embedding": jnp.zeros((7, 3))}, "decoder": {"input": jnp.zeros((3, 20))}}
    with pytest.raises(
        ValueError, match=r"decoder/input \(3, 20\) expected, found .* decoder/input \(7, 20\) from dec"
    ):
        from_torch({"decoder.lstm.weight_ih_l0": np.zeros((20, 7))}, rule, like)


def test_packed_projections_need_one_width():
    like = shapes_of(MultiHeadAttention(features=WIDTH, num_heads=2), SEQUENCE, SEQUENCE[..., :3])
    with pytest.raises(ValueError, match=r"key_kernel \(3, 4\), .* do not fit together as in_proj_weight; choose the"):
        to_torch(random_params(like), multihead())
    with pytest.raises(ValueError, match=r"the parameters and the layout differ: expected .*; found key_bias"):
        to_torch(random_params(like), multihead(bias=False))
