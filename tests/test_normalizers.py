import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attn_jax.functional.normalizers import NORMALIZERS, entmax15, softmax, sparsemax

each = pytest.mark.parametrize("normalize", NORMALIZERS.values(), ids=NORMALIZERS)
jitted = {normalize: jax.jit(normalize) for normalize in NORMALIZERS.values()}
SHAPE = (3, 6)
score_arrays = hnp.arrays(np.float32, SHAPE, elements=st.floats(-50, 50, width=32))
mask_arrays = hnp.arrays(bool, SHAPE)


def by_bisection(scores, alpha):
    """Alpha-entmax of one row by its definition: ``max((alpha - 1) z - tau, 0) ** (1 / (alpha - 1))`` summing to 1."""
    scores = (alpha - 1) * np.asarray(scores, np.float64)
    low, high = scores.max() - 1, scores.max()
    for _ in range(100):
        threshold = (low + high) / 2
        weights = np.maximum(scores - threshold, 0) ** (1 / (alpha - 1))
        low, high = (threshold, high) if weights.sum() > 1 else (low, threshold)
    return weights


def test_softmax_by_hand():
    np.testing.assert_allclose(softmax(jnp.array([0.9, 0.55, 0.95])), [0.36285, 0.25570, 0.38145], atol=5e-6)
    np.testing.assert_allclose(softmax(jnp.log(jnp.array([1.0, 3.0]))), [0.25, 0.75], rtol=1e-6)


def test_sparsemax_by_hand():
    np.testing.assert_allclose(sparsemax(jnp.array([0.3, 0.1, -0.5])), [0.6, 0.4, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(sparsemax(jnp.array([2.0, 0.5, 1.0])), [1.0, 0.0, 0.0])


def test_entmax15_by_hand():
    # max(z / 2 - tau, 0)^2 with tau = -0.6: 0.8^2 + 0.6^2 = 1
    np.testing.assert_allclose(entmax15(jnp.array([0.4, 0.0, -1.3])), [0.64, 0.36, 0.0], rtol=1e-5)


@hypothesis.given(scores=score_arrays)
@hypothesis.settings(deadline=None, max_examples=50)
def test_sparse_normalizers_solve_their_definition(scores):
    for normalize, alpha in ((sparsemax, 2.0), (entmax15, 1.5)):
        expected = [by_bisection(row, alpha) for row in scores]
        np.testing.assert_allclose(jitted[normalize](scores), expected, atol=2e-5)


@each
@hypothesis.given(scores=score_arrays, mask=mask_arrays)
@hypothesis.settings(deadline=None, max_examples=50)
def test_rows_are_distributions_over_what_is_allowed(normalize, scores, mask):
    weights = np.asarray(jitted[normalize](scores, mask))
    assert (weights >= 0).all()
    assert (weights[~mask] == 0).all()
    np.testing.assert_allclose(weights.sum(-1), mask.any(-1), atol=2e-5)


@each
def test_masked_equals_sliced(normalize, rng):
    scores = jax.random.normal(rng, (2, 5)) * 2
    mask = jnp.array([True, True, False, True, False])
    kept = jnp.flatnonzero(mask)
    np.testing.assert_allclose(normalize(scores, mask)[:, kept], normalize(scores[:, kept]), atol=1e-6)


@each
def test_what_stands_in_the_padding_does_not_matter(normalize):
    mask = jnp.array([True, True, False, False, False])
    scores = jnp.array([0.3, 0.1, jnp.nan, jnp.inf, 1e30])

    def second(scores):
        return normalize(scores, mask)[1]

    weight, grad = jax.value_and_grad(second)(scores)
    np.testing.assert_allclose(weight, normalize(scores[:2])[1], rtol=1e-6)
    np.testing.assert_array_equal(grad[2:], 0)
    assert grad[1] > 0


@each
def test_fully_masked_row_is_zero_with_zero_gradients(normalize):
    scores = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    mask = jnp.array([[False, False], [True, True]])
    value, grad = jax.value_and_grad(lambda s: jnp.sum(normalize(s, mask) * jnp.array([1.0, 2.0])))(scores)
    np.testing.assert_array_equal(normalize(scores, mask)[0], 0)
    np.testing.assert_array_equal(grad[0], 0)
    assert jnp.isfinite(value)
    assert jnp.isfinite(grad).all()


@each
def test_gradients_by_finite_differences(normalize, x64):
    scores = jnp.array([[0.4, 0.1, -0.2, -3.0], [1.0, 0.2, 0.9, 0.5]])
    mask = jnp.array([[True, True, True, True], [True, False, True, True]])
    weigh = jax.jit(lambda s, t: normalize(s, mask, t))
    check_grads(weigh, (scores, jnp.array(0.8)), order=1, modes=["fwd", "rev"], rtol=1e-6)


def test_second_derivatives_by_finite_differences(x64):
    scores = jnp.array([0.4, 0.1, -0.2, -3.0])
    for normalize in NORMALIZERS.values():
        gradient = jax.jit(jax.grad(lambda s, f=normalize: jnp.sum(f(s) ** 3)))
        check_grads(gradient, (scores,), order=1, modes=["rev"], rtol=1e-6)


@each
def test_temperature_divides_the_scores(normalize):
    scores = jnp.array([0.5, 0.2, -0.4])
    np.testing.assert_allclose(normalize(scores, temperature=2.0), normalize(scores / 2), rtol=1e-6)
    with pytest.raises(ValueError, match="temperature must be positive, found 0"):
        normalize(scores, temperature=0)


@each
def test_mask_broadcasts_and_shifts_do_not_matter(normalize, rng):
    scores = jax.random.normal(rng, (2, 3, 4))
    mask = jnp.array([[[True, True, False, True]], [[True, False, False, False]]])
    weights = normalize(scores, mask)
    np.testing.assert_array_equal(weights[1], [[1, 0, 0, 0]] * 3)
    np.testing.assert_allclose(normalize(scores + 8, mask), weights, atol=1e-5)


@each
def test_bfloat16_scores_are_normalised_in_float32(normalize):
    scores = jnp.array([0.4, 0.1, -0.2], jnp.bfloat16)
    weights = normalize(scores)
    assert weights.dtype == jnp.bfloat16
    np.testing.assert_array_equal(weights, normalize(scores.astype(jnp.float32)).astype(jnp.bfloat16))


def test_blocked_by_minus_infinity():
    scores = jnp.array([[0.0, -jnp.inf], [-jnp.inf, -jnp.inf]])
    for normalize in NORMALIZERS.values():
        np.testing.assert_array_equal(normalize(scores), [[1, 0], [0, 0]])


def test_unmasked_nan_is_never_hidden():
    for normalize in NORMALIZERS.values():
        assert jnp.isnan(normalize(jnp.array([0.0, jnp.nan]))).any()


def test_softmax_agrees_with_jax(rng):
    scores = jax.random.normal(rng, (4, 7)) * 3
    np.testing.assert_allclose(softmax(scores), jax.nn.softmax(scores), rtol=1e-6, atol=1e-7)
