"""The recurrent scan and its cells."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attn_jax.functional.products import bf16_einsum
from attn_jax.functional.recurrence import CELLS, hidden_of, recurrent_scan, where_real
from attn_jax.nn.attention import make_attention
from tests.jaxprs import assert_products_accumulate_in_float32, equations

TIME, BATCH, HIDDEN, SRC = 5, 3, 4, 6


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 0.5)


def cell_weights(name):
    weights = {"recurrent": normal(1, HIDDEN, CELLS[name].gates * HIDDEN)}
    return weights | ({"candidate_bias": normal(2, HIDDEN)} if name == "gru" else {})


def cell_carry(name):
    return (normal(3, BATCH, HIDDEN), normal(4, BATCH, HIDDEN)) if CELLS[name].paired else normal(4, BATCH, HIDDEN)


def assert_trees_close(found, expected, tolerance=1e-12):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------------------------------------------------------- cells


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_the_book(name, weights, carry, x):
    """The cells as the papers write them, in NumPy."""
    hidden, product = carry[1] if name == "lstm" else carry, None
    product = hidden @ weights["recurrent"]
    if name == "rnn":
        return np.tanh(x + product)
    if name == "lstm":
        i, f, g, o = np.split(x + product, 4, axis=-1)
        cell = sigmoid(f) * carry[0] + sigmoid(i) * np.tanh(g)
        return cell, sigmoid(o) * np.tanh(cell)
    (x_r, x_z, x_n), (r, z, n) = np.split(x, 3, axis=-1), np.split(product, 3, axis=-1)
    r, z = sigmoid(x_r + r), sigmoid(x_z + z)
    return (1 - z) * np.tanh(x_n + r * (n + weights["candidate_bias"])) + z * hidden


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_its_equation(x64, name):
    weights, carry, x = cell_weights(name), cell_carry(name), normal(5, BATCH, CELLS[name].gates * HIDDEN)
    new, output = CELLS[name].step(jnp.einsum, weights, carry, x)
    assert_trees_close(new, by_the_book(name, *jax.tree.map(np.asarray, (weights, carry, x))))
    np.testing.assert_array_equal(output, hidden_of(new))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_the_derivatives_of_its_values(x64, name):
    x = normal(5, BATCH, CELLS[name].gates * HIDDEN)
    step = jax.jit(lambda *args: CELLS[name].step(jnp.einsum, *args)[0])
    check_grads(step, (cell_weights(name), cell_carry(name), x), order=2, modes=["rev"])


def test_masked_rows_keep_the_old_leaves():
    new, old = (jnp.ones((2, 3)), jnp.ones((2,))), (jnp.zeros((2, 3)), jnp.zeros((2,)))
    kept = where_real(jnp.array([True, False]), new, old)
    assert [leaf.tolist() for leaf in kept] == [[[1, 1, 1], [0, 0, 0]], [1, 0]]


# ----------------------------------------------------------------------------------------------------------------- scan


def cell_case(name):
    """One cell, with a mask and a carry that masked steps copy."""
    cell = CELLS[name]

    def step(einsum, weights, carry, x):
        x, real = x
        new, output = cell.step(einsum, weights, carry, x)
        return where_real(real, new, carry), jnp.where(real[:, None], output, 0)

    mask = jnp.arange(TIME)[:, None] < jnp.array([5, 3, 1])
    return step, cell_weights(name), cell_carry(name), (normal(6, TIME, BATCH, cell.gates * HIDDEN), mask)


def attention_case(name):
    """A decoder with everything: two products, attention over a memory, dropout, integers, booleans, and keys."""
    mechanism = make_attention(name, HIDDEN, **({"num_heads": 2} if name == "multihead" else {}))
    keys = normal(7, BATCH, SRC, HIDDEN)
    params = {name: normal(8, *shape) for name, shape in mechanism.shapes(HIDDEN, HIDDEN).items()}
    mask = jnp.arange(SRC) < jnp.array([[6], [4], [2]])
    weights = {
        "cell": cell_weights("gru"),
        "context": normal(9, HIDDEN, 3 * HIDDEN),
        "embedding": normal(10, 7, 3 * HIDDEN),
        "attention": params,
        "memory": mechanism.prepare_fn(params, keys, keys, mask),
        "kept": jnp.arange(HIDDEN) != 1,
        "scale": normal(11, 1),
    }

    def step(einsum, weights, carry, x):
        context, attention = mechanism.attend_fn(weights["attention"], carry[:, None], weights["memory"], einsum)
        gates = weights["embedding"][x["token"]] + einsum("bqi,io->bqo", context, weights["context"])[:, 0]
        gates = gates + einsum("bi,io->bo", carry, weights["context"])  # the same matrix twice
        gates = gates * weights["scale"] + jnp.sum(weights["context"] ** 2)  # and not only in products
        new, output = CELLS["gru"].step(einsum, weights["cell"], carry * weights["kept"], gates)
        new = where_real(x["real"], new, carry)
        return new, (output * x["dropout"], attention)

    inputs = {
        "token": jnp.asarray(np.random.default_rng(12).integers(0, 7, (TIME, BATCH))),
        "real": jnp.arange(TIME)[:, None] < jnp.array([5, 3, 1]),
        "dropout": (normal(13, TIME, BATCH, HIDDEN) > 0) * 2.0,
        "rng": jax.random.split(jax.random.key(0), TIME),
    }
    return step, weights, cell_carry("gru"), inputs


CASES = {name: (cell_case, name) for name in CELLS}
CASES |= {f"gru with {name} attention": (attention_case, name) for name in ("additive", "general", "multihead")}


def float32_case(case):
    make, name = CASES[case]
    step, *args = make(name)
    return step, jax.tree.map(lambda a: a.astype(jnp.float32) if is_float(a) else a, args)


def scalar(step, **options):
    """A scan as a number that depends on every output."""

    def run(weights, carry, inputs):
        out = recurrent_scan(step, weights, carry, inputs, **options)
        return sum(jnp.sum(jnp.sin(leaf + i)) for i, leaf in enumerate(jax.tree.leaves(out)))

    return run


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def float_gradients(function, *args):
    """Gradients by path with respect to every floating-point leaf."""
    grads = jax.grad(function, argnums=tuple(range(len(args))), allow_int=True)(*args)
    leaves = zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(args), strict=True)
    return {jax.tree_util.keystr(path): grad for (path, grad), leaf in leaves if is_float(leaf)}


def test_the_exact_numbers_of_a_scan():
    # h1 = tanh(0 + 0.5 * 0) = 0, h2 = tanh(1), h3 = tanh(0.5 * h2); the inputs read the same from the end.
    step = lambda einsum, w, h, x: ((h := jnp.tanh(x + einsum("i,io->o", h, w))), h)  # noqa: E731
    inputs = jnp.array([[0.0], [1.0], [0.0]])
    for reverse in (False, True):
        last, outputs = recurrent_scan(step, jnp.array([[0.5]]), jnp.zeros(1), inputs, reverse=reverse)
        expected = [0, np.tanh(1), np.tanh(0.5 * np.tanh(1))]
        np.testing.assert_allclose(outputs[:, 0], expected[::-1] if reverse else expected, rtol=1e-6)
        np.testing.assert_allclose(last, expected[-1:], rtol=1e-6)


@pytest.mark.parametrize(("case", "reverse"), list(zip(CASES, [False, True] * 3, strict=True)))
def test_deferred_gradients_are_the_plain_ones(x64, case, reverse):
    make, name = CASES[case]
    step, *args = make(name)
    plain, deferred = (scalar(step, deferred=d, reverse=reverse) for d in (False, True))
    both = jax.jit(lambda *args: [(f(*args), float_gradients(f, *args)) for f in (plain, deferred)])
    (value, expected), (found_value, found) = both(*args)
    np.testing.assert_allclose(found_value, value, rtol=1e-14)
    assert_trees_close(found, expected, 1e-12)
    if make is attention_case:  # nothing is compared in vain
        inside = ("recurrent", "candidate_bias", "context", "embedding", "memory'].keys", "memory'].values", "scale")
        for name in inside:
            assert any(name in path and jnp.any(grad != 0) for path, grad in expected.items()), name


@pytest.mark.parametrize("name", CELLS)
def test_padding_may_be_left_out_of_weight_gradients(x64, name):
    step, weights, carry, (inputs, mask) = cell_case(name)
    real = np.flatnonzero(mask)  # step * batch + row
    rows = np.concatenate([real[::-1], [TIME * BATCH] * 2])
    every, some = (scalar(step, rows=given) for given in (None, rows))
    args = weights, carry, (inputs, mask)
    both = jax.jit(lambda *args: [float_gradients(f, *args) for f in (every, some)])
    expected, found = both(*args)
    assert_trees_close(found, expected, 1e-12)
    without = float_gradients(scalar(step, rows=real[1:]), *args)
    path = next(path for path in expected if "recurrent" in path)
    assert jnp.abs(without[path] - expected[path]).max() > 1e-3  # the rows are what is summed over


def test_rows_are_of_products_over_time_and_batch_alone(x64):
    """A product with one more axis has more rows, and sums over all of them."""

    def step(einsum, weights, carry, x):
        seen = einsum("bki,io->bko", weights["memory"] * carry[:, None], weights["seen"])
        return jnp.tanh(einsum("bi,io->bo", carry, weights["recurrent"]) + x + seen.sum(1)), carry

    weights = {"memory": normal(1, BATCH, 3, HIDDEN), "seen": normal(2, HIDDEN, HIDDEN)}
    args = weights | {"recurrent": normal(3, HIDDEN, HIDDEN)}, normal(4, BATCH, HIDDEN), normal(5, TIME, BATCH, HIDDEN)
    every, all_rows = (scalar(step, rows=rows) for rows in (None, np.arange(TIME * BATCH)))
    assert_trees_close(float_gradients(all_rows, *args), float_gradients(every, *args), 1e-12)


def test_rows_are_a_vector_of_integers():
    step, *args = cell_case("rnn")
    for rows in (np.ones((2, 2), int), np.ones(3)):
        with pytest.raises(ValueError, match=r"rows must be a vector of integers, found \w+ of shape"):
            recurrent_scan(step, *args, rows=rows)


def test_complex_and_scalar_products(x64):
    def step(einsum, weights, carry, x):
        first, second = einsum("i,i->", carry, weights[0]), einsum("i,i->", carry, weights[1])
        return carry * first + x, (jnp.real(first), jnp.imag(second))

    draw = lambda number, *shape: normal(number, *shape) + 1j * normal(number + 10, *shape)  # noqa: E731
    args = [draw(1, 2), draw(2, 2)], draw(3, 2), draw(4, 3, 2)

    def gradient(deferred):
        outputs = lambda weights: recurrent_scan(step, weights, *args[1:], deferred=deferred)[1]  # noqa: E731
        return jax.grad(lambda weights: sum(map(jnp.sum, outputs(weights))))(args[0])

    chex.assert_trees_all_close(gradient(True), gradient(False), rtol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_second_derivatives_in_reverse(x64, name):
    step, *args = cell_case(name)

    def of_gradient(deferred):
        grads = lambda *args: float_gradients(scalar(step, deferred=deferred), *args)  # noqa: E731
        return lambda *args: sum(jnp.sum(leaf**2) for leaf in grads(*args).values())

    plain, deferred = (jax.jit(partial(float_gradients, of_gradient(d))) for d in (False, True))
    assert_trees_close(deferred(*args), plain(*args), 1e-9)


def test_finite_differences(x64):
    step, weights, carry, (x, mask) = cell_case("lstm")
    scan = jax.jit(lambda w, c, x: recurrent_scan(step, w, c, (x, mask)))
    check_grads(scan, (weights, carry, x), order=1, modes=["rev"])


def test_forward_mode_needs_the_plain_scan(x64):
    step, weights, carry, inputs = cell_case("gru")
    tangent = jax.tree.map(jnp.ones_like, weights)
    plain, deferred = (lambda w, d=d: scalar(step, deferred=d)(w, carry, inputs) for d in (False, True))
    slope = jax.jit(lambda w: jax.jvp(plain, (w,), (tangent,))[1])(weights)
    gradient = jax.jit(jax.grad(deferred))(weights)
    np.testing.assert_allclose(slope, sum(jnp.sum(g) for g in jax.tree.leaves(gradient)), rtol=1e-12)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(deferred, (weights,), (tangent,))


def test_jit_equals_eager():
    step, args = float32_case("gru")
    eager, jitted = recurrent_scan(step, *args), jax.jit(lambda *a: recurrent_scan(step, *a))(*args)
    assert_trees_close(jitted, eager, 1e-6)


def test_vmap_over_the_scan(x64):
    step, weights, carry, inputs = cell_case("rnn")
    carries = jnp.stack([carry, 2 * carry])
    grad = jax.grad(lambda c: scalar(step)(weights, c, inputs))
    mapped, single = jax.jit(jax.vmap(grad))(carries), jax.jit(grad)
    np.testing.assert_allclose(mapped, jnp.stack([single(c) for c in carries]), rtol=1e-12)


def weight_shaped_products(gradient, *args):
    """How many products inside loops give a matrix ``[HIDDEN, 4 * HIDDEN]`` or its transpose."""
    shapes = {(HIDDEN, 4 * HIDDEN), (4 * HIDDEN, HIDDEN)}
    loops = (eqn for eqn in equations(jax.make_jaxpr(gradient)(*args)) if eqn.primitive.name == "scan")
    inside = (eqn for loop in loops for eqn in equations(loop.params["jaxpr"]) if eqn.primitive.name == "dot_general")
    return sum(eqn.outvars[0].aval.shape in shapes for eqn in inside)


def test_no_weight_gradient_is_computed_inside_the_loop():
    step, *args = cell_case("lstm")
    assert weight_shaped_products(jax.grad(scalar(step, deferred=False)), *args) > 0
    assert weight_shaped_products(jax.grad(scalar(step, deferred=True)), *args) == 0


def written_by_the_loops(step, *args):
    """The shapes of all that the two loops of a gradient give, forward and backward."""
    traced = jax.make_jaxpr(jax.grad(scalar(step), argnums=(0, 1, 2), allow_int=True))(*args)
    loops = [eqn for eqn in equations(traced) if eqn.primitive.name == "scan"]
    assert len(loops) == 2
    return [[var.aval.shape for var in loop.outvars] for loop in loops]


@pytest.mark.parametrize(("name", "written"), [("rnn", 1), ("lstm", 1), ("gru", 2)])
def test_gradients_that_are_one_array_are_written_once(name, written):
    """A GRU's candidate multiplies the product before it adds the input; elsewhere both have one gradient."""
    step, *args = cell_case(name)
    _, backward = written_by_the_loops(step, *args)
    assert backward.count((TIME, BATCH, CELLS[name].gates * HIDDEN)) == written


def test_operands_that_are_one_array_are_kept_once():
    def step(einsum, weights, carry, x, again=lambda carry: carry):
        output = einsum("bi,io->bo", again(carry), weights[1])
        return jnp.tanh(einsum("bi,io->bo", carry, weights[0]) + x), output

    args = [normal(3, HIDDEN, HIDDEN), normal(1, HIDDEN, 2)], normal(4, BATCH, HIDDEN), normal(5, TIME, BATCH, 1)
    once, _ = written_by_the_loops(step, *args)
    twice, _ = written_by_the_loops(partial(step, again=lambda carry: carry + 0), *args)
    assert twice.count((TIME, BATCH, HIDDEN)) == once.count((TIME, BATCH, HIDDEN)) + 1


def test_the_memory_gradient_of_dot_scores_leaves_the_loop_too():
    step, *args = attention_case("dot")
    count = []
    for deferred in (False, True):
        traced = jax.make_jaxpr(jax.grad(scalar(step, deferred=deferred), allow_int=True))(*args)
        loops = [eqn for eqn in equations(traced) if eqn.primitive.name == "scan"]
        shapes = [eqn.outvars[0].aval.shape for loop in loops for eqn in equations(loop.params["jaxpr"])]
        count.append(shapes.count((BATCH, SRC, HIDDEN)))
    assert count[1] < count[0]


# ------------------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("case", ["lstm", "gru with additive attention", "gru with multihead attention"])
def test_bfloat16_products_accumulate_in_float32(case):
    step, args = float32_case(case)
    weights, *rest = args
    loss = scalar(step, einsum=bf16_einsum)
    assert assert_products_accumulate_in_float32(jax.grad(lambda w: loss(w, *rest), allow_int=True), weights) >= 3


def test_bfloat16_gradients_are_near_float32():
    step, args = float32_case("gru with general attention")
    exact, narrow = jax.jit(
        lambda *args: [float_gradients(scalar(step, einsum=e), *args) for e in (jnp.einsum, bf16_einsum)]
    )(*args)
    for path, expected in exact.items():
        assert narrow[path].dtype == jnp.float32
        np.testing.assert_allclose(narrow[path], expected, atol=0.05 * float(jnp.max(jnp.abs(expected))))


@pytest.mark.parametrize(("deferred", "products"), [(False, 3), (True, 2)])
def test_the_loops_compute_no_weight_gradient_in_bfloat16_either(deferred, products):
    # There the product has a custom derivative, which gives both gradients; XLA must find the weight's dead. What is
    # left is the product of the forward loop, and the hidden state's gradient in the backward loop.
    step, args = float32_case("lstm")
    gradient = jax.jit(jax.grad(scalar(step, einsum=bf16_einsum, deferred=deferred)))
    compiled = gradient.lower(*args).compile().as_text().splitlines()
    assert sum(" dot(" in line and "while/body" in line for line in compiled) == products
