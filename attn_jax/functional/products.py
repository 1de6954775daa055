"""Matrix products at a chosen precision: the one place that decides which type multiplies and which accumulates.

Everything on this floor that multiplies takes an ``einsum(equation, a, b)`` argument. It is one of

- ``jax.numpy.einsum``: in the type of its operands,
- `float32_einsum`: float32 (or float64) throughout, whatever comes in,
- `bf16_einsum`: products with a weight matrix read bfloat16 operands and accumulate in float32, forward and backward.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float, Int

Array = jax.Array | np.ndarray
Einsum = Callable[[str, Array, Array], Array]

FEW_ROWS, WIDEST_SUM = 128, 1024
"""A bfloat16 gradient of so few rows is summed over so many columns at once: XLA:CPU takes twice as long over all of
64 x 2,048, a step of an LSTM of 512 units, as over its halves; from 96 rows on it changes
little, and elsewhere it is a product more than needed."""


def explicit_equation(equation: str, a_ndim: int) -> tuple[str, str, str]:
    """Splits a two-operand einsum into its three index strings, writing out an ellipsis of the first operand.

    Args:
      equation: for example ``"...i,io->...o"``; an ellipsis may stand in the first operand and the output only.
      a_ndim: number of axes of the first operand.

    Returns:
      The indices of both operands and of the output.

    Example:
      >>> explicit_equation("...i,io->...o", 3)
      ('abi', 'io', 'abo')
    """
    operands, out = equation.replace(" ", "").split("->")
    a, b = operands.split(",")
    if "..." in a:
        free = [letter for letter in string.ascii_letters if letter not in equation]
        batch = "".join(free[: a_ndim - len(a.replace("...", ""))])
        a, out = a.replace("...", batch), out.replace("...", batch)
    return a, b, out


def is_matrix(a: str, b: str, out: str) -> bool:
    """Whether ``b [inputs, outputs]`` multiplies the last axis of ``a``, whose other axes stay as they are."""
    return len(b) == 2 and a[:-1] == out[:-1] and b == a[-1:] + out[-1:]


@jax.custom_jvp
def _matrix_product(a: Array, b: Array) -> Array:
    return jnp.einsum("...i,io->...o", a, b)


@partial(_matrix_product.defjvp, symbolic_zeros=True)
def _matrix_product_jvp(primals, tangents):
    # What is linear in d_b is only transposed in reverse mode: into a product of a^T, which stands in memory as such,
    # for the reason in `transposed_product`.
    (a, b), (d_a, d_b) = primals, tangents
    out = _matrix_product(a, b)
    d_out = jnp.zeros_like(out)
    if not isinstance(d_a, SymbolicZero):
        d_out += _matrix_product(d_a, b)
    if not isinstance(d_b, SymbolicZero):
        d_out += jnp.einsum("in,io->no", _across(a), d_b).reshape(out.shape)
    return out, d_out


def _across(a: Array) -> Array:
    """``a [..., i]`` as ``[i, n]`` in memory: the barrier keeps XLA from folding the transpose into a product.

    An axis of 1 stands between them: without it XLA:CPU widens a product of bfloat16 to float32, which takes twice as
    long where the processor has such products.
    """
    return jax.lax.optimization_barrier(a.reshape(-1, a.shape[-1]).T[:, None])[:, 0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bf16_product(equation: str, a: Array, b: Array) -> Array:
    narrow = jnp.bfloat16
    return jnp.einsum(equation, a.astype(narrow), b.astype(narrow), preferred_element_type=jnp.float32)


def _bf16_forward(equation: str, a: Array, b: Array):
    # The operands are kept as bfloat16 (half the memory), and each gradient needs to know what type it must return.
    narrow_a, narrow_b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    out = jnp.einsum(equation, narrow_a, narrow_b, preferred_element_type=jnp.float32)
    return out, (narrow_a, narrow_b, jnp.empty(0, a.dtype), jnp.empty(0, b.dtype))


def _bf16_backward(equation: str, residuals, d_out: Array):
    narrow_a, narrow_b, like_a, like_b = residuals
    a, b, out = explicit_equation(equation, narrow_a.ndim)
    d_out = d_out.astype(jnp.bfloat16)
    if is_matrix(a, b, out):
        d_a = _times_transpose(d_out, narrow_b)
        d_b = transposed_product(partial(jnp.einsum, preferred_element_type=jnp.float32), narrow_a, d_out)
    else:
        d_a = jnp.einsum(f"{out},{b}->{a}", d_out, narrow_b, preferred_element_type=jnp.float32)
        d_b = jnp.einsum(f"{a},{out}->{b}", narrow_a, d_out, preferred_element_type=jnp.float32)
    return d_a.astype(like_a.dtype), d_b.astype(like_b.dtype)


_bf16_product.defvjp(_bf16_forward, _bf16_backward)


def _times_transpose(d: Array, matrix: Array) -> Array:
    """``d @ matrix^T`` of bfloat16 with float32 sums; of few rows a block of columns after the other."""
    columns = d.shape[-1]
    block = WIDEST_SUM if d.size <= FEW_ROWS * columns else columns
    parts = (slice(start, start + block) for start in range(0, columns, block))
    product = partial(jnp.einsum, "...o,io->...i", preferred_element_type=jnp.float32)
    return sum(product(d[..., part], matrix[:, part]) for part in parts)


def transposed_product(
    einsum: Einsum, a: Float[Array, "*n i"], d: Float[Array, "*n o"], rows: Int[Array, " real"] | None = None
) -> Float[Array, "i o"]:
    """``sum_n a_n^T d_n``: the gradient of a matrix that multiplied ``a``, from the gradient ``d`` of the product.

    XLA folds a plain transpose into the product, and on CPU a product over the leading axis of both operands can leave
    the fast kernels: in bfloat16 it is 3.4 times slower at 880 x 512 x 2048. So ``a`` is transposed in memory first;
    elsewhere that is one copy more than needed.

    Args:
      einsum: the product to use.
      a: ``[..., i]``.
      d: ``[..., o]``.
      rows: ``[real]``, the flat positions of ``n`` to sum over, filled up with ``n``; None: all.

    Returns:
      ``[i, o]``.

    Example:
      >>> transposed_product(jnp.einsum, jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0], [10.0]])).tolist()
      [[31.0], [42.0]]
    """
    a, d = a.reshape(-1, a.shape[-1]), d.reshape(-1, d.shape[-1])
    if rows is not None:
        a, d = jnp.take(a, rows, axis=0, mode="clip"), jnp.take(d, rows, axis=0, mode="fill", fill_value=0)
    return einsum("in,no->io", _across(a), d)


def float32_einsum(equation: str, a: Float[Array, " ..."], b: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """``einsum(equation, a, b)`` in float32, or in float64 if an operand is: forward and backward.

    Narrow operands are widened first. To ask for a wide sum of narrow products instead would not do: its gradient
    multiplies float32 with bfloat16.

    Args:
      equation: a two-operand einsum.
      a: any float array.
      b: any float array.

    Returns:
      The product, float32 or float64. Gradients come in the types of the operands.

    Example:
      >>> narrow = jnp.array([256.0, 1.0], jnp.bfloat16)
      >>> float32_einsum("i,i->", narrow, jnp.ones(2, jnp.bfloat16))
      Array(257., dtype=float32)
    """
    wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    a, b = a.astype(wide), b.astype(wide)
    if is_matrix(*explicit_equation(equation, a.ndim)):
        return _matrix_product(a, b)
    return jnp.einsum(equation, a, b)


def bf16_einsum(equation: str, a: Float[Array, " ..."], b: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """``einsum(equation, a, b)`` in bfloat16 with float32 accumulation where ``b`` is a weight matrix.

    Both gradients are computed the same way. Batched products (``b`` has more than two axes: attention keys and values)
    narrow nothing: they are bound by memory, and narrow batched products are slower on CPU. They take bfloat16 operands
    only where both come as such.

    Args:
      equation: a two-operand einsum in which every index stands in two of the three terms.
      a: an activation.
      b: a weight matrix ``[inputs, outputs]``, or a batched memory.

    Returns:
      The product, float32.

    Example:
      >>> bf16_einsum("bi,io->bo", jnp.ones((1, 2)), jnp.array([[1.0], [1.00390625]]))
      Array([[2.]], dtype=float32)
    """
    if b.ndim > 2 and not a.dtype == b.dtype == jnp.bfloat16:
        return float32_einsum(equation, a, b)
    return _bf16_product(equation, a, b)


PRECISIONS: dict[str, Einsum] = {"float32": float32_einsum, "bfloat16": bf16_einsum}
"""The product of each precision's name."""
