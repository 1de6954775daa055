import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attn_jax.functional import losses
from attn_jax.functional.losses import (
    cross_entropy,
    guided_alignment_loss,
    masked_bce,
    masked_mse,
    projected_cross_entropy,
)

N, D, VOCAB = 6, 4, 7


@pytest.fixture
def problem(rng):
    def make(dtype=jnp.float32):
        keys = jax.random.split(rng, 4)
        features = jax.random.normal(keys[0], (N, D), dtype)
        kernel = jax.random.normal(keys[1], (D, VOCAB), dtype)
        bias = jax.random.normal(keys[2], (VOCAB,), dtype)
        labels = jax.random.randint(keys[3], (N,), 0, VOCAB)
        weights = jnp.array([1, 1, 0, 1, 0.5, 0], dtype)
        return features, kernel, bias, labels, weights

    return make


def brute_force(logits, labels, weights, smoothing):
    """The definition, in float64 numpy: a full target distribution against the full log-softmax."""
    logits, weights = np.asarray(logits, np.float64), np.asarray(weights, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    onehot = np.eye(logits.shape[-1])[np.asarray(labels)]
    target = (1 - smoothing) * onehot + smoothing / logits.shape[-1]
    return (weights * -(target * log_probs).sum(-1)).sum(), (weights * -(onehot * log_probs).sum(-1)).sum()


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.125, 0.125]]]))
    sums = cross_entropy(logits, jnp.array([[0]]), smoothing=0.4)
    log2 = np.log(2)
    # 0.6 on the label plus 0.1 on each class: 0.7 * 1 + 0.1 * (2 + 3 + 3) bits
    np.testing.assert_allclose(sums.loss, 1.5 * log2, rtol=1e-6)
    np.testing.assert_allclose(sums.nll, log2, rtol=1e-6)
    assert (sums.correct, sums.count) == (1, 1)


def test_cross_entropy_agrees_with_the_definition(problem):
    features, kernel, bias, labels, weights = problem()
    logits = features @ kernel + bias
    sums = cross_entropy(logits, labels, weights, smoothing=0.1)
    np.testing.assert_allclose(sums[:2], brute_force(logits, labels, weights, 0.1), rtol=1e-5)
    hits = np.argmax(logits, -1) == np.asarray(labels)
    np.testing.assert_allclose(sums.correct, (hits * weights).sum())
    assert sums.count == 3.5


def test_masked_tokens_may_hold_anything():
    logits = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf], [0.0, 0.0]])
    mask = jnp.array([True, False, False])

    def loss(logits):
        return cross_entropy(logits, jnp.array([1, -100, 99]), mask, smoothing=0.1).loss

    alone = cross_entropy(logits[:1], jnp.array([1]), smoothing=0.1).loss
    found, grad = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    np.testing.assert_array_equal(grad[1:], 0)
    assert abs(grad[0, 1]) > 0.1


@pytest.mark.parametrize("label", [-1, VOCAB])
def test_a_real_label_outside_the_vocabulary_is_loud(problem, label):
    features, kernel, bias, labels, weights = problem()
    labels = labels.at[0].set(label)
    assert jnp.isnan(cross_entropy(features @ kernel, labels, weights).loss)
    assert jnp.isnan(projected_cross_entropy(features, kernel, bias, labels, weights).loss)
    assert not jnp.isnan(projected_cross_entropy(features, kernel, bias, labels, weights.at[0].set(0)).loss)


def test_huge_logits_stay_finite():
    loss, grad = jax.value_and_grad(lambda x: cross_entropy(x, jnp.array([1]), smoothing=0.1).loss)(
        jnp.array([[1e4, -1e4, 0.0]])
    )
    assert jnp.isfinite(loss)
    assert jnp.isfinite(grad).all()


def test_smoothing_is_checked():
    with pytest.raises(ValueError, match=r"in \[0, 1\), found 1.0"):
        cross_entropy(jnp.zeros((1, 2)), jnp.zeros(1, int), smoothing=1.0)


def test_kernel_layout_is_checked(problem):
    with pytest.raises(ValueError, match=r"'dv'.*'vd'.*found 'xx'"):
        projected_cross_entropy(*problem(), kernel_layout="xx")


@pytest.mark.parametrize("rows", [None, 1, 4])
@pytest.mark.parametrize(
    ("smoothing", "layout", "with_bias"), [(0.0, "dv", True), (0.1, "vd", True), (0.1, "dv", False)]
)
def test_projected_equals_unfused(x64, problem, monkeypatch, smoothing, layout, with_bias, rows):
    """At once, and in blocks of rows, the last of which is not full."""
    features, kernel, bias, labels, weights = problem(jnp.float64)
    monkeypatch.setattr(losses, "LARGEST_BLOCK", losses.LARGEST_BLOCK if rows is None else rows * kernel.shape[1] + 1)
    kernel = kernel if layout == "dv" else kernel.T

    def unfused(features, kernel, bias, weights):
        logits = features @ (kernel if layout == "dv" else kernel.T) + (bias if with_bias else 0)
        return 3 * cross_entropy(logits, labels, weights, smoothing).loss

    def fused(features, kernel, bias, weights):
        sums = projected_cross_entropy(
            features, kernel, bias if with_bias else None, labels, weights, smoothing=smoothing, kernel_layout=layout
        )
        return 3 * sums.loss

    arguments = (features, kernel, bias, weights)
    expected, found = (jax.value_and_grad(f, argnums=(0, 1, 2, 3))(*arguments) for f in (unfused, fused))
    # weight 0 is left out of the sum by the unfused loss, so its derivative to the weight is 0 there
    real = weights != 0
    for a, b in zip(jax.tree.leaves(expected)[:-1], jax.tree.leaves(found)[:-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(expected[1][3][real], found[1][3][real], rtol=1e-12)


def test_projected_gradient_by_finite_differences(x64, problem):
    *arrays, labels, weights = problem(jnp.float64)
    check_grads(
        lambda f, k, b: projected_cross_entropy(f, k, b, labels, weights, smoothing=0.2).loss,
        tuple(arrays),
        order=1,
        modes=["rev"],
        rtol=1e-6,
    )


def test_memory_of_blocks_does_not_grow_with_rows_times_words(monkeypatch):
    monkeypatch.setattr(losses, "LARGEST_BLOCK", 8 * 1000)

    def temporaries(rows):
        arrays = jnp.ones((rows, 4)), jnp.ones((4, 1000)), jnp.ones(1000)
        step = jax.value_and_grad(lambda *arrays: _loss(*arrays, jnp.ones(rows, int), jnp.ones(rows)), (0, 1, 2))
        return jax.jit(step).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    def _loss(*arguments):
        return projected_cross_entropy(*arguments).loss

    assert temporaries(128) < temporaries(16) + 128 * 100  # the logits of 112 rows more would take 448,000 bytes


def test_projected_sums_and_jit(problem):
    features, kernel, bias, labels, weights = problem()
    expected = cross_entropy(features @ kernel + bias, labels, weights, smoothing=0.1)
    found = projected_cross_entropy(features, kernel, bias, labels, weights, smoothing=0.1)
    jitted = jax.jit(projected_cross_entropy, static_argnames="smoothing")(
        features, kernel, bias, labels, weights, smoothing=0.1
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(jitted, found, rtol=1e-6)


def test_bfloat16_operands_accumulate_in_float32(problem):
    features, kernel, bias, labels, weights = problem()

    def loss(features, kernel, bias, dtype):
        return projected_cross_entropy(features, kernel, bias, labels, weights, smoothing=0.1, dtype=dtype).loss

    narrow, wide = (
        jax.value_and_grad(loss, argnums=(0, 1, 2))(features, kernel, bias, dtype) for dtype in (jnp.bfloat16, None)
    )
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.05, rtol=0.02)
    traced = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)), static_argnums=3)(features, kernel, bias, jnp.bfloat16)
    products = [eqn for eqn in _equations(traced.jaxpr) if eqn.primitive.name == "dot_general"]
    assert len(products) == 3
    for product in products:
        assert [operand.aval.dtype for operand in product.invars] == [jnp.bfloat16, jnp.bfloat16]
        assert product.outvars[0].aval.dtype == jnp.float32


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_bfloat16_inputs_get_bfloat16_gradients(problem):
    *arrays, labels, weights = problem()
    arrays = [array.astype(jnp.bfloat16) for array in arrays]
    grads = jax.grad(lambda f, k, b: projected_cross_entropy(f, k, b, labels, weights).loss, argnums=(0, 1, 2))(*arrays)
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 3


def test_padding_never_changes_the_loss_or_its_gradient(problem):
    features, kernel, bias, labels, weights = problem()
    real = np.flatnonzero(weights)

    def grads(features, labels, weights):
        return jax.value_and_grad(
            lambda k, b: projected_cross_entropy(features, k, b, labels, weights, smoothing=0.1).loss, argnums=(0, 1)
        )(kernel, bias)

    padded, packed = grads(features, labels, weights), grads(features[real], labels[real], weights[real])
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(packed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_masked_mse():
    predictions = jnp.array([[[1.0, 2.0], [jnp.nan, 0.0]], [[0.0, 0.0], [2.0, 0.0]]])
    mask = jnp.array([[True, False], [True, True]])
    loss, count = masked_mse(predictions, jnp.zeros_like(predictions), mask)
    assert (loss, count) == (2.5 + 0 + 2, 3)
    grad = jax.grad(lambda p: masked_mse(p, jnp.zeros_like(p), mask).loss)(predictions)
    np.testing.assert_array_equal(grad, [[[1, 2], [0, 0]], [[0, 0], [2, 0]]])
    assert masked_mse(jnp.ones((2, 3)), jnp.zeros((2, 3))) == (2, 2)


def test_masked_bce():
    logits, labels = jnp.array([np.log(3.0), 0.0, jnp.nan]), jnp.array([1.0, 0.25, 1.0])
    loss, count = masked_bce(logits, labels, jnp.array([True, True, False]))
    np.testing.assert_allclose(loss, np.log(4 / 3) + np.log(2), rtol=1e-6)
    assert count == 2
    grad = jax.grad(lambda x: masked_bce(x, labels, jnp.array([True, True, False])).loss)(logits)
    np.testing.assert_allclose(grad, [-0.25, 0.25, 0.0], rtol=1e-6)
    np.testing.assert_allclose(masked_bce(jnp.array([1e4, -1e4]), jnp.array([1, 0])), (0, 2))


def test_guided_alignment():
    weights = jnp.array([[[0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]])
    alignment = jnp.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]]])
    loss, count = guided_alignment_loss(weights, alignment)
    np.testing.assert_allclose(loss, -np.log(0.5) - 0.5 * np.log(0.3) - 0.5 * np.log(0.5), rtol=1e-6)
    assert count == 2  # the third word has no link
    loss, count = guided_alignment_loss(weights, alignment, mask=jnp.array([[False, True, True]]))
    np.testing.assert_allclose(loss, -0.5 * np.log(0.3) - 0.5 * np.log(0.5), rtol=1e-6)
    assert count == 1
    only_last = jnp.array([[[True, True, True], [False, False, True], [True, True, True]]])
    np.testing.assert_allclose(
        guided_alignment_loss(weights, alignment, only_last)[0], -np.log(0.5) - np.log(0.5), rtol=1e-6
    )


def test_guided_alignment_of_a_position_without_weight_is_finite():
    weights = jnp.array([[[1.0, 0.0]]])
    loss, grad = jax.value_and_grad(lambda w: guided_alignment_loss(w, jnp.array([[[0, 1]]])).loss)(weights)
    np.testing.assert_allclose(loss, -np.log(1e-9), rtol=1e-6)
    assert jnp.isfinite(grad).all()
