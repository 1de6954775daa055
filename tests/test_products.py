"""Products at a chosen precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.functional import products
from attn_jax.functional.products import (
    PRECISIONS,
    bf16_einsum,
    explicit_equation,
    float32_einsum,
    transposed_product,
)
from tests.jaxprs import assert_products_accumulate_in_float32, equations, operand_types_of_products

EQUATIONS = [("bi,io->bo", (3, 4), (4, 5)), ("...i,io->...o", (2, 3, 4), (4, 5)), ("bti,oi->bto", (2, 3, 4), (5, 4))]


def operands(rng, a_shape, b_shape):
    a_rng, b_rng = jax.random.split(rng)
    return jax.random.normal(a_rng, a_shape), jax.random.normal(b_rng, b_shape)


@pytest.mark.parametrize(
    ("equation", "ndim", "expected"),
    [
        ("bi,io->bo", 2, ("bi", "io", "bo")),
        ("...i,io->...o", 1, ("i", "io", "o")),
        ("...i, io -> ...o", 3, ("abi", "io", "abo")),
        ("...a,ab->...b", 2, ("ca", "ab", "cb")),
    ],
)
def test_an_ellipsis_is_written_out(equation, ndim, expected):
    assert explicit_equation(equation, ndim) == expected


def test_operands_are_rounded_and_sums_are_not():
    # 1 + 2^-8 rounds to 1 in bfloat16 (8 bits of mantissa), but 256 + 1 = 257 survives in the float32 sum.
    assert bf16_einsum("i,io->o", jnp.ones(1), jnp.array([[1 + 2**-8]])).item() == 1
    assert bf16_einsum("i,io->o", jnp.ones(2), jnp.array([[256.0], [1.0]])).item() == 257


@pytest.mark.parametrize(("equation", "a_shape", "b_shape"), EQUATIONS)
def test_values_and_gradients_are_near_float32(rng, equation, a_shape, b_shape):
    a, b = operands(rng, a_shape, b_shape)

    def loss(einsum):
        return lambda a, b: jnp.sum(jnp.sin(einsum(equation, a, b)))

    exact, narrow = (jax.value_and_grad(loss(e), argnums=(0, 1))(a, b) for e in PRECISIONS.values())
    for expected, found in zip(jax.tree.leaves(exact), jax.tree.leaves(narrow), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=0.05)
    assert not np.array_equal(exact[1][1], narrow[1][1])  # it did round


@pytest.mark.parametrize(("equation", "a_shape", "b_shape"), EQUATIONS)
def test_gradients_are_those_of_rounded_operands(rng, equation, a_shape, b_shape):
    a, b = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in operands(rng, a_shape, b_shape))
    cotangent = jnp.ones_like(jnp.einsum(equation, a, b))  # exact in bfloat16, so nothing is left to round
    for found, expected in zip(
        jax.vjp(lambda *x: bf16_einsum(equation, *x), a, b)[1](cotangent),
        jax.vjp(lambda *x: jnp.einsum(equation, *x), a, b)[1](cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("equation", "a_shape", "b_shape"), EQUATIONS)
def test_no_product_of_another_type_is_emitted(rng, dtype, equation, a_shape, b_shape):
    a, b = operands(rng, a_shape, b_shape)
    grad = jax.grad(lambda a, b: jnp.sum(bf16_einsum(equation, a, b)), argnums=(0, 1))
    assert assert_products_accumulate_in_float32(grad, a, b.astype(dtype)) == 3
    assert [g.dtype for g in grad(a, b.astype(dtype))] == [jnp.float32, dtype]


def test_a_batched_memory_stays_in_its_own_type(rng):
    a, b = operands(rng, (2, 3, 4), (2, 5, 4))
    np.testing.assert_array_equal(bf16_einsum("bqd,bkd->bqk", a, b), jnp.einsum("bqd,bkd->bqk", a, b))


@pytest.mark.parametrize("of_a", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("of_b", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("name", "narrow"), [("float32", 0), ("bfloat16", 3)])
def test_narrow_operands_never_give_a_narrow_product(rng, name, narrow, of_a, of_b):
    a, b = operands(rng, (2, 3, 4), (2, 5, 4))
    a, b, einsum = a.astype(of_a), b.astype(of_b), PRECISIONS[name]
    product = einsum("bqd,bkd->bqk", a, b)
    assert product.dtype == jnp.float32
    wide = jnp.einsum("bqd,bkd->bqk", a.astype(jnp.float32), b.astype(jnp.float32))
    np.testing.assert_allclose(product, wide, rtol=1e-6)
    grad = jax.grad(lambda a, b: jnp.sum(jnp.sin(einsum("bqd,bkd->bqk", a, b))), argnums=(0, 1))
    both = of_a == of_b == jnp.bfloat16
    assert assert_products_accumulate_in_float32(grad, a, b) == (narrow if both else 0)
    assert [g.dtype for g in grad(a, b)] == [of_a, of_b]


@pytest.mark.parametrize(("equation", "a_shape", "b_shape"), EQUATIONS)
def test_float32_stays_wide_and_float64_wider(x64, equation, a_shape, b_shape):
    a, b = operands(jax.random.key(0), a_shape, b_shape)
    einsum = PRECISIONS["float32"]
    for dtypes, expected in (
        ((jnp.bfloat16, jnp.bfloat16), jnp.float32),
        ((jnp.bfloat16, jnp.float32), jnp.float32),
        ((jnp.float64, jnp.bfloat16), jnp.float64),
    ):
        narrow = a.astype(dtypes[0]), b.astype(dtypes[1])
        product = einsum(equation, *narrow)
        assert product.dtype == expected
        np.testing.assert_allclose(product, jnp.einsum(equation, *(x.astype(float) for x in narrow)), rtol=1e-5)
        assert assert_products_accumulate_in_float32(partial(einsum, equation), *narrow) == 0


def test_jit_equals_eager(rng):
    a, b = operands(rng, (3, 4), (4, 5))
    np.testing.assert_array_equal(
        jax.jit(bf16_einsum, static_argnums=0)("bi,io->bo", a, b), bf16_einsum("bi,io->bo", a, b)
    )


def test_the_gradient_of_a_matrix_sums_over_the_first_axis_of_one_operand_alone():
    a, b = jnp.ones((5, 32, 16)), jnp.ones((16, 48))
    for einsum in (float32_einsum, bf16_einsum):
        gradient = jax.grad(lambda b, a, einsum=einsum: jnp.sum(jnp.sin(einsum("tbi,io->tbo", a, b))))
        jaxpr = jax.make_jaxpr(gradient)(b, a)
        sums = [eqn.params["dimension_numbers"][0] for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]
        assert len(sums) >= 2 and all(len(left) == 1 and (left, right) != ((0,), (0,)) for left, right in sums)
        compiled = jax.jit(gradient).lower(b, a).compile().as_text()
        assert "lhs_contracting_dims={1}" in compiled and "lhs_contracting_dims={0}" not in compiled


def test_no_gradient_multiplies_wider_than_the_product_where_the_processor_has_narrow_ones(rng):
    a, b = operands(rng, (2, 20, 64), (64, 48))
    product = partial(bf16_einsum, "tbi,io->tbo")
    gradients = jax.grad(lambda a, b: jnp.sum(jnp.sin(product(a, b))), argnums=(0, 1))
    types = [operand_types_of_products(jax.jit(f).lower(a, b).compile().as_text()) for f in (product, gradients)]
    assert types[0] == types[1] in ({"bf16"}, {"f32"})


@pytest.mark.parametrize(("rows", "blocks"), [(3, 3), (40, 1)])
def test_few_rows_sum_a_block_of_columns_after_the_other(rng, monkeypatch, rows, blocks):
    monkeypatch.setattr(products, "WIDEST_SUM", 4)
    monkeypatch.setattr(products, "FEW_ROWS", 12)
    a, b = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in operands(rng, (rows, 4, 6), (6, 10)))
    found, expected = (
        jax.grad(lambda a, einsum=einsum: jnp.sum(einsum("tbi,io->tbo", a, b) * jnp.arange(-4.0, 6.0)))
        for einsum in (bf16_einsum, jnp.einsum)
    )
    np.testing.assert_allclose(found(a), expected(a), atol=1e-5)
    unused = 2  # the product itself, and the gradient of b
    assert assert_products_accumulate_in_float32(found, a) == blocks + unused


def test_a_product_has_forward_mode_and_second_derivatives(x64):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 3, 4)), rng.standard_normal((4, 6))
    found, expected = (
        lambda a, b, einsum=einsum: jnp.sum(jnp.sin(einsum("tbi,io->tbo", a, b)))
        for einsum in (float32_einsum, jnp.einsum)
    )
    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        both = (jax.jit(derivative(f, argnums=(0, 1)))(a, b) for f in (found, expected))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), *both)


def test_the_gradient_of_a_matrix_may_leave_out_rows_without_one(rng):
    a, d = (jax.random.normal(key, (4, 3, n)) for key, n in zip(jax.random.split(rng), (5, 6), strict=True))
    real = np.array([7, 0, 3, 11, 12, 12])  # in any order, filled up with the number of rows
    rows = np.isin(np.arange(12), real).reshape(4, 3, 1)
    expected = transposed_product(jnp.einsum, a, d * rows)
    np.testing.assert_allclose(transposed_product(jnp.einsum, a, d, real), expected, atol=1e-5)
