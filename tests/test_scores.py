import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attn_jax.functional.normalizers import NORMALIZERS, softmax
from attn_jax.functional.scores import (
    additive_scores,
    concat_scores,
    dot_scores,
    general_scores,
    location_scores,
    scaled_dot_scores,
)

BATCH, Q_LEN, KV_LEN, D = 2, 3, 4, 5


@pytest.fixture
def problem(rng):
    keys = jax.random.split(rng, 4)
    return (
        jax.random.normal(keys[0], (BATCH, Q_LEN, D)),
        jax.random.normal(keys[1], (BATCH, KV_LEN, D)),
        jax.random.normal(keys[2], (D, D)),
        jax.random.normal(keys[3], (D,)),
    )


def each_pair(score, query, keys):
    """The scores by three loops, in numpy."""
    query, keys = np.asarray(query), np.asarray(keys)
    return np.array([[[score(q, k) for k in keys[b]] for q in query[b]] for b in range(len(query))])


def test_notebook_scores():
    query, keys = jnp.array([[[1.0, 0.5]]]), jnp.array([[[0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]])
    np.testing.assert_allclose(dot_scores(query, keys), [[[0.9, 0.55, 0.95]]], rtol=1e-6)
    np.testing.assert_allclose(scaled_dot_scores(query, keys), [[np.array([0.9, 0.55, 0.95]) / np.sqrt(2)]], rtol=1e-6)


def test_additive_is_its_equation(problem):
    query, keys, _, v = problem
    expected = each_pair(lambda q, k: np.dot(v, np.tanh(q + k)) + 0.5, query, keys)
    np.testing.assert_allclose(additive_scores(query, keys, v, bias=jnp.array([0.5])), expected, rtol=1e-5, atol=1e-6)


def test_concat_is_its_equation(problem):
    query, keys, _, v = problem
    kernel = jnp.concatenate([jnp.eye(D), 2 * jnp.eye(D)[:3]])
    keys, bias = keys[..., :3], jnp.arange(5.0) / 5
    expected = each_pair(lambda q, k: np.dot(v, np.tanh(np.concatenate([q, k]) @ kernel + bias)), query, keys)
    np.testing.assert_allclose(concat_scores(query, keys, kernel, v, bias=bias), expected, rtol=1e-5, atol=1e-6)


def test_concat_refuses_a_kernel_of_the_wrong_height(problem):
    query, keys, kernel, v = problem
    with pytest.raises(ValueError, match=r"needs 5 \+ 5 rows.*found shape \(5, 5\)"):
        concat_scores(query, keys, kernel, v)


def test_general_is_its_equation(problem):
    query, keys, kernel, _ = problem
    expected = each_pair(lambda q, k: q @ np.asarray(kernel).T @ k, query, keys)
    np.testing.assert_allclose(general_scores(query, keys, kernel), expected, rtol=1e-4, atol=1e-5)


def test_heads_score_separately(problem):
    query, keys, *_ = problem
    query_heads, key_heads = (jnp.stack([x, 2 * x], axis=2) for x in (query, keys))  # [batch, time, heads, d]
    scores = dot_scores(query_heads, key_heads)
    assert scores.shape == (BATCH, 2, Q_LEN, KV_LEN)
    np.testing.assert_allclose(scores[:, 1], 4 * dot_scores(query, keys), rtol=1e-6)


def test_location_cuts_and_refuses():
    logits = jnp.arange(12.0).reshape(1, 2, 6)
    np.testing.assert_array_equal(location_scores(logits, 4), logits[..., :4])
    np.testing.assert_array_equal(location_scores(logits, 6), logits)
    with pytest.raises(ValueError, match=r"knows 6 source positions, found a source of length 7; .*max_len >= 7"):
        location_scores(logits, 7)


@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS)
def test_location_gives_no_weight_past_the_positions_it_knows(normalizer):
    logits = jnp.array([[[0.3, 0.1, 0.2]]])
    mask = jnp.array([[[True, False, True, False, True]]])  # the last position is real, and out of reach

    def weights(logits):
        return normalizer(location_scores(logits, 5, masked=True), mask)

    np.testing.assert_array_equal(weights(logits)[0, 0, 3:], 0)
    np.testing.assert_allclose(weights(logits)[..., :3], normalizer(logits, mask[..., :3]), rtol=1e-6)
    (gradient,) = jax.vjp(weights, logits)[1](jnp.arange(5.0)[None, None])
    (expected,) = jax.vjp(lambda x: normalizer(x, mask[..., :3]), logits)[1](jnp.arange(3.0)[None, None])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_a_row_with_only_positions_out_of_reach_gives_zeros_and_finite_gradients():
    mask = jnp.array([[[False, False, True]]])
    weights = lambda logits: softmax(location_scores(logits, 3, masked=True), mask)  # noqa: E731
    value, backward = jax.vjp(weights, jnp.ones((1, 1, 2)))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(backward(jnp.ones((1, 1, 3)))[0], 0)


def test_products_go_through_the_hook(problem):
    query, keys, kernel, v = problem
    seen = []

    def einsum(equation, a, b):
        seen.append(equation)
        return jnp.einsum(equation, a, b)

    dot_scores(query, keys, einsum=einsum)
    scaled_dot_scores(query, keys, einsum=einsum)
    general_scores(query, keys, kernel, einsum=einsum)
    concat_scores(query, keys, jnp.concatenate([kernel, kernel]), v, einsum=einsum)
    assert seen == [*["bqd,bkd->bqk"] * 2, "bki,io->bko", "bqd,bkd->bqk", "bqi,io->bqo", "bki,io->bko"]


def test_gradients_by_finite_differences(x64):
    keys = jax.random.split(jax.random.key(1), 4)
    query, memory = jax.random.normal(keys[0], (1, 2, 3)), jax.random.normal(keys[1], (1, 2, 3))
    v, kernel = jax.random.normal(keys[2], (3,)), jax.random.normal(keys[3], (3, 3))
    check_grads(jax.jit(additive_scores), (query, memory, v), order=1, modes=["fwd", "rev"], rtol=1e-6)
    check_grads(jax.jit(general_scores), (query, memory, kernel), order=1, modes=["rev"], rtol=1e-6)


def test_additive_keeps_no_tanh_for_the_backward_pass(problem):
    query, keys, _, v = problem
    _, backward = jax.vjp(additive_scores, query, keys, v)
    assert max(leaf.size for leaf in jax.tree.leaves(backward)) < BATCH * Q_LEN * KV_LEN * D


def test_jit_equals_eager(problem):
    query, keys, _, v = problem
    np.testing.assert_allclose(
        jax.jit(additive_scores)(query, keys, v), additive_scores(query, keys, v), rtol=1e-5, atol=1e-6
    )
