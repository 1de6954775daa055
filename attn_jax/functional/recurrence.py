"""Recurrences: the RNN, GRU, LSTM and SSRU cells, and the scan that runs them with deferred weight gradients.

A cell is a plain function ``cell(einsum, weights, carry, x) -> (carry, output)``. ``x`` is the *projected* input
(everything that does not depend on the carry is multiplied once for all steps, outside the loop), and the only product
left in the cell is the one with the hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from attn_jax.functional.products import Einsum, explicit_equation, is_matrix, transposed_product

Array = jax.Array | np.ndarray
Step = Callable[[Einsum, Any, Any, Any], tuple[Any, Any]]


class _Product(NamedTuple):
    """One deferred product of a step: ``out[...] = einsum(equation, operands[operand], leaves[leaf])``.

    Its gradient is the one of that number among those of all products, each by its tap, and then those of the inputs:
    its own number unless the gradient of another is the same array, as it is where products and inputs are summed.
    """

    leaf: int
    operand: int
    indices: tuple[str, str, str]
    out: jax.ShapeDtypeStruct
    gradient: int


@jax.custom_jvp
def _tapped(product: Array, tap: Array) -> Array:
    """``product + tap`` for a tap that is zero: it carries a gradient, and is never read."""
    del tap
    return product


@_tapped.defjvp
def _tapped_jvp(primals, tangents):
    return primals[0], tangents[0] + tangents[1]


class _DeferredEinsum:
    """An einsum for one step: products with a leaf of the weights are recorded, and read what is ``held`` for it.

    What is differentiated are the leaves, so the gradient of such a product is that of its tap and no other.
    """

    def __init__(self, einsum: Einsum, leaves: list[Array], held: list[Array], taps: list[Array | None] | None):
        self.einsum, self.leaves, self.held, self.taps = einsum, leaves, held, taps
        self.products: list[_Product] = []
        self.operands: list[Array] = []

    def __call__(self, equation: str, operand: Array, array: Array) -> Array:
        leaf = next((i for i, known in enumerate(self.leaves) if known is array), None)
        if leaf is None:
            return self.einsum(equation, operand, array)
        out, number = self.einsum(equation, operand, self.held[leaf]), len(self.products)
        if self.taps is not None and self.taps[number] is not None:
            out = _tapped(out, self.taps[number])
        place = next((i for i, known in enumerate(self.operands) if known is operand), len(self.operands))
        if place == len(self.operands):
            self.operands.append(operand)
        indices = explicit_equation(equation, operand.ndim)
        self.products.append(_Product(leaf, place, indices, jax.ShapeDtypeStruct(out.shape, out.dtype), number))
        return out


def recurrent_scan(
    step: Step,
    weights: Any,
    carry: Any,
    inputs: Any,
    *,
    reverse: bool = False,
    deferred: bool = True,
    einsum: Einsum = jnp.einsum,
    rows: Int[Array, " real"] | None = None,
) -> tuple[Any, Any]:
    """Scans ``carry, output = step(einsum, weights, carry, input)`` over the first axis of ``inputs``.

    With ``deferred``, the gradient of a matrix ``W`` of ``weights`` that the step multiplies through ``einsum(equation,
    operand, W)`` is not accumulated inside the backward loop, one small product a step. The loop only collects the
    gradients ``d_t`` of the products, and one large product after it gives ``dW = sum_t operand_t^T d_t``: the same
    values, from a product large enough to run at the speed of the machine. Attention memories in ``weights`` profit
    alike; leaves used in any other way are differentiated as usual. The reverse mode is a ``custom_vjp``, which may be
    differentiated in turn: for forward mode alone (jvp) set ``deferred=False``.

    Args:
      step: a pure function; it must close over no tracer, so everything it reads comes in ``weights``.
      weights: a pytree of all that stays the same at each step: matrices, biases, masks, attention memory.
      carry: a pytree, the state before the first step.
      inputs: a pytree with leaves ``[time, ...]``.
      reverse: runs from the last step to the first; outputs stay in the order of the inputs.
      deferred: whether weight gradients are deferred.
      einsum: the product to use (see `attn_jax.functional.products`).
      rows: ``[real]`` int, where steps work on ``[batch, ...]``: the flat positions ``step * batch + row`` at which
        products have a gradient, filled up with ``time * batch``. The others are padding whose outputs nobody
        differentiates, and the deferred gradient of a matrix leaves them out. None: all have one.

    Returns:
      The last carry, and the outputs with leaves ``[time, ...]``.

    Raises:
      ValueError: if ``rows`` is no vector of integers.

    Example:
      >>> step = lambda einsum, w, h, x: ((h := jnp.tanh(x + einsum("i,io->o", h, w))), h)
      >>> carry, outputs = recurrent_scan(step, jnp.eye(2), jnp.zeros(2), jnp.ones((3, 2)))
      >>> [round(float(h), 4) for h in outputs[:, 0]]
      [0.7616, 0.9427, 0.9597]
    """
    if rows is not None and not (rows.ndim == 1 and jnp.issubdtype(rows.dtype, jnp.integer)):
        raise ValueError(f"rows must be a vector of integers, found {rows.dtype} of shape {rows.shape}")
    weights, carry, inputs = jax.tree.map(jnp.asarray, (weights, carry, inputs))
    if not deferred:
        return lax.scan(lambda c, x: step(einsum, weights, c, x), carry, inputs, reverse=reverse)

    treedef = jax.tree.structure(weights)
    products: list[_Product] = []  # found when a gradient is asked for
    length = jax.tree.leaves(inputs)[0].shape[0]

    def scan(held, taps, weights, carry, inputs):
        leaves = jax.tree.leaves(weights)

        def body(carry, xs):
            step_taps, x = xs
            product = _DeferredEinsum(einsum, leaves, held, step_taps)
            carry, output = step(product, jax.tree.unflatten(treedef, leaves), carry, x)
            return carry, (output, product.operands)

        carry, (outputs, operands) = lax.scan(body, carry, (taps, inputs), reverse=reverse)
        return (carry, outputs), operands

    @jax.custom_vjp
    def run(weights, carry, inputs, rows):
        return scan(jax.tree.leaves(weights), None, weights, carry, inputs)[0]

    def forward(weights, carry, inputs, rows):
        products[:] = _products_of(step, einsum, weights, carry, inputs)
        taps = [
            jnp.zeros((length, *product.out.shape), product.out.dtype) if product.gradient == number else None
            for number, product in enumerate(products)
        ]
        run_tapped = partial(scan, jax.tree.leaves(weights))
        out, backward_of, operands = jax.vjp(run_tapped, taps, weights, carry, inputs, has_aux=True)
        return out, (backward_of, operands, weights, rows)

    def backward(residuals, d_out):
        backward_of, operands, weights, rows = residuals
        d_taps, d_weights, d_carry, d_inputs = backward_of(d_out)
        leaves, d_leaves = jax.tree.leaves(weights), jax.tree.leaves(d_weights)
        gradients = [*d_taps, *jax.tree.leaves(d_inputs)]
        for product in products:
            operand, d_product = operands[product.operand], gradients[product.gradient]
            d_leaves[product.leaf] += _gradient_over_time(
                einsum, product, operand, leaves[product.leaf], d_product, rows
            )
        return jax.tree.unflatten(treedef, d_leaves), d_carry, d_inputs, None

    run.defvjp(forward, backward)
    return run(weights, carry, inputs, rows)


def _gradient_over_time(
    einsum: Einsum, product: _Product, operand: Array, weight: Array, d_product: Array, rows: Array | None
) -> Array:
    """``dW = sum_t operand_t^T d_t``, one product over all steps (of a matrix: ``rows``), as precise as ``einsum``."""
    a, b, out = product.indices
    if is_matrix(a, b, out):
        by_row = operand.size == operand.shape[0] * operand.shape[1] * operand.shape[-1]  # no axis but time and batch
        return transposed_product(einsum, operand, d_product, rows if by_row else None).astype(weight.dtype)
    time = next(letter for letter in "tTzZ" if letter not in a + b + out)
    _, backward_of = jax.vjp(lambda w: einsum(f"{time}{a},{b}->{time}{out}", operand, w), weight)
    return backward_of(d_product)[0]


def _products_of(step: Step, einsum: Einsum, weights: Any, carry: Any, inputs: Any) -> list[_Product]:
    """The products that one step defers, found by tracing it and its gradient without computing anything."""
    products: list[_Product] = []

    def one_step(taps, weights, carry, x):
        leaves, treedef = jax.tree.flatten(weights)
        product = _DeferredEinsum(einsum, leaves, leaves, taps)
        out = step(product, jax.tree.unflatten(treedef, leaves), carry, x)
        products[:] = product.products
        return [y for y in jax.tree.leaves(out) if jnp.issubdtype(jnp.result_type(y), jnp.inexact)]

    def gradients(taps, weights, carry, x, d_out):
        return jax.vjp(lambda taps, x: one_step(taps, weights, carry, x), taps, x)[1](d_out)

    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    d_out = jax.eval_shape(partial(one_step, None), weights, carry, x)
    taps = [product.out for product in products]
    variables = jax.make_jaxpr(gradients)(taps, weights, carry, x, d_out).jaxpr.outvars
    # An input's rather than another product's, which would need a tap.
    order = [*range(len(products), len(variables)), *range(len(products))]
    return [
        product._replace(gradient=next(other for other in order if variables[other] is variables[number]))
        for number, product in enumerate(products)
    ]


# ---------------------------------------------------------------------------------------------------------------- cells


def rnn_cell(
    einsum: Einsum,
    weights: Mapping[str, Array],
    carry: Float[Array, "*batch hidden"],
    x: Float[Array, "*batch hidden"],
) -> tuple[Float[Array, "*batch hidden"], Float[Array, "*batch hidden"]]:
    """Elman's cell: ``h' = tanh(x + W h)``.

    Args:
      einsum: the product to use.
      weights: ``{"recurrent": [hidden, hidden]}``.
      carry: ``[..., hidden]``.
      x: projected input with its bias, ``[..., hidden]``.

    Returns:
      The new carry and the output, which are the same array.

    References:
      Elman, Finding structure in time (1990).

    Example:
      >>> carry, _ = rnn_cell(jnp.einsum, {"recurrent": jnp.eye(1)}, jnp.ones(1), jnp.zeros(1))
      >>> round(float(carry[0]), 4)
      0.7616
    """
    hidden = jnp.tanh(x + einsum("...i,io->...o", carry, weights["recurrent"]))
    return hidden, hidden


@jax.custom_jvp
def _lstm_gates(gates: Array, cell: Array) -> tuple[Array, Array]:
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)


@_lstm_gates.defjvp
def _lstm_gates_jvp(primals, tangents):
    # Written so that reverse mode keeps six arrays and multiplies: the derivatives of the gates, already combined.
    (gates, cell), (d_gates, d_cell) = primals, tangents
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new_cell = f * cell + i * g
    squashed = jnp.tanh(new_cell)
    by_i, by_f, by_g = g * i * (1 - i), cell * f * (1 - f), i * (1 - g * g)
    by_o, by_cell = squashed * o * (1 - o), o * (1 - squashed * squashed)
    d_i, d_f, d_g, d_o = jnp.split(d_gates, 4, axis=-1)
    d_new_cell = by_i * d_i + by_f * d_f + by_g * d_g + f * d_cell
    return (new_cell, o * squashed), (d_new_cell, by_cell * d_new_cell + by_o * d_o)


def lstm_cell(
    einsum: Einsum,
    weights: Mapping[str, Array],
    carry: tuple[Float[Array, "*batch hidden"], Float[Array, "*batch hidden"]],
    x: Float[Array, "*batch 4*hidden"],
) -> tuple[tuple[Float[Array, "*batch hidden"], Float[Array, "*batch hidden"]], Float[Array, "*batch hidden"]]:
    """The LSTM: ``c' = s(f) c + s(i) tanh(g)``, ``h' = s(o) tanh(c')`` with ``[i f g o] = x + W h``.

    Args:
      einsum: the product to use.
      weights: ``{"recurrent": [hidden, 4 * hidden]}``, gates in the order i, f, g, o.
      carry: ``(cell, hidden)``, each ``[..., hidden]``.
      x: projected input with its bias, ``[..., 4 * hidden]``.

    Returns:
      The new ``(cell, hidden)`` and the output ``hidden``.

    References:
      Hochreiter and Schmidhuber, Long short-term memory (1997); Gers et al., Learning to forget (2000).

    Example:
      >>> carry = (jnp.ones(1), jnp.zeros(1))
      >>> (cell, hidden), _ = lstm_cell(jnp.einsum, {"recurrent": jnp.zeros((1, 4))}, carry, jnp.zeros(4))
      >>> round(float(cell[0]), 4), round(float(hidden[0]), 4)
      (0.5, 0.2311)
    """
    cell, hidden = carry
    cell, hidden = _lstm_gates(x + einsum("...i,io->...o", hidden, weights["recurrent"]), cell)
    return (cell, hidden), hidden


@jax.custom_jvp
def _gru_gates(x: Array, products: Array, hidden: Array) -> Array:
    (x_r, x_z, x_n), (r, z, n) = jnp.split(x, 3, axis=-1), jnp.split(products, 3, axis=-1)
    reset, update = jax.nn.sigmoid(x_r + r), jax.nn.sigmoid(x_z + z)
    candidate = jnp.tanh(x_n + reset * n)
    return (1 - update) * candidate + update * hidden


@_gru_gates.defjvp
def _gru_gates_jvp(primals, tangents):
    (x, products, hidden), (d_x, d_products, d_hidden) = primals, tangents
    (x_r, x_z, x_n), (r, z, n) = jnp.split(x, 3, axis=-1), jnp.split(products, 3, axis=-1)
    reset, update = jax.nn.sigmoid(x_r + r), jax.nn.sigmoid(x_z + z)
    candidate = jnp.tanh(x_n + reset * n)
    by_n = (1 - update) * (1 - candidate * candidate)
    by_z, by_r = (hidden - candidate) * update * (1 - update), by_n * n * reset * (1 - reset)
    (dx_r, dx_z, dx_n), (d_r, d_z, d_n) = jnp.split(d_x, 3, axis=-1), jnp.split(d_products, 3, axis=-1)
    d_new = by_r * (dx_r + d_r) + by_z * (dx_z + d_z) + by_n * dx_n + (by_n * reset) * d_n + update * d_hidden
    return (1 - update) * candidate + update * hidden, d_new


def gru_cell(
    einsum: Einsum,
    weights: Mapping[str, Array],
    carry: Float[Array, "*batch hidden"],
    x: Float[Array, "*batch 3*hidden"],
) -> tuple[Float[Array, "*batch hidden"], Float[Array, "*batch hidden"]]:
    """The GRU: ``h' = (1 - z) n + z h`` with ``r, z = s(x + W h)`` and ``n = tanh(x + r (W h + b))``.

    Args:
      einsum: the product to use.
      weights: ``{"recurrent": [hidden, 3 * hidden], "candidate_bias": [hidden]}``, gates in the order r, z, n. The
        candidate keeps a bias of its own because the reset gate multiplies it.
      carry: ``[..., hidden]``.
      x: projected input with its bias, ``[..., 3 * hidden]``.

    Returns:
      The new carry and the output, which are the same array.

    References:
      Cho et al., Learning phrase representations using RNN encoder-decoder (2014), arXiv:1406.1078, in the form of
      cuDNN and PyTorch, where the reset gate acts after the product.

    Example:
      >>> weights = {"recurrent": jnp.zeros((1, 3)), "candidate_bias": jnp.zeros(1)}
      >>> float(gru_cell(jnp.einsum, weights, jnp.ones(1), jnp.zeros(3))[0][0])
      0.5
    """
    products = einsum("...i,io->...o", carry, weights["recurrent"])
    r_and_z, n = jnp.split(products, [2 * carry.shape[-1]], axis=-1)
    products = jnp.concatenate([r_and_z, n + weights["candidate_bias"]], axis=-1)
    hidden = _gru_gates(x, products, carry)
    return hidden, hidden


def ssru_cell(
    einsum: Einsum,
    weights: Any,
    carry: Float[Array, "*batch hidden"],
    x: Float[Array, "*batch 2*hidden"],
) -> tuple[Float[Array, "*batch hidden"], Float[Array, "*batch hidden"]]:
    """The SSRU: ``c' = f c + (1 - f) u``, ``h = relu(c')`` with ``f = s(g)`` and ``[u g] = x``.

    No product is left in the loop: both the input and the gate see the step's own input alone.

    Args:
      einsum: not used, nor are the weights: there are none.
      weights: any.
      carry: the cell, ``[..., hidden]``.
      x: projected input and forget gate, ``[..., 2 * hidden]``.

    Returns:
      The new cell and the output.

    References:
      Kim et al., From research to production and back: ludicrously fast neural machine translation (2019), section 3.1,
      ACL D19-5632.

    Example:
      >>> cell, output = ssru_cell(jnp.einsum, None, jnp.array([4.0, -4.0]), jnp.array([2.0, 2.0, 0.0, 0.0]))
      >>> cell.tolist(), output.tolist()
      ([3.0, -1.0], [3.0, 0.0])
    """
    del einsum, weights
    inputs, gate = jnp.split(x, 2, axis=-1)
    forget = jax.nn.sigmoid(gate)
    cell = forget * carry + (1 - forget) * inputs
    return cell, jax.nn.relu(cell)


class Cell(NamedTuple):
    """A recurrent cell: its step function, its number of gates, and whether its carry is a pair ``(cell, hidden)``."""

    step: Callable[[Einsum, Any, Any, Array], tuple[Any, Array]]
    gates: int
    paired: bool


CELLS: dict[str, Cell] = {
    "rnn": Cell(rnn_cell, 1, False),
    "gru": Cell(gru_cell, 3, False),
    "lstm": Cell(lstm_cell, 4, True),
}
"""The cells by name."""


def hidden_of(carry: Any) -> Float[Array, "... hidden"]:
    """The hidden state of any cell's carry: the carry itself, or the second of an LSTM's ``(cell, hidden)``."""
    return carry[1] if isinstance(carry, tuple) else carry


def where_real(mask: Bool[Array, "*batch"], new: Any, old: Any) -> Any:
    """``new`` at real steps, where ``mask`` (leading axes) is True, and ``old`` elsewhere, leaf by leaf.

    Example:
      >>> where_real(jnp.array([True, False]), jnp.ones((2, 1)), jnp.zeros((2, 1))).tolist()
      [[1.0], [0.0]]
    """
    return jax.tree.map(lambda n, o: jnp.where(mask.reshape(mask.shape + (1,) * (n.ndim - mask.ndim)), n, o), new, old)
