from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attn_jax.functional.attention import (
    attend,
    gaussian_factor,
    local_window_mask,
    monotonic_attention,
    monotonic_step,
    predicted_centers,
)
from attn_jax.functional.chunked import dot_product_attention_chunked
from attn_jax.functional.masks import causal_mask, padding_mask
from attn_jax.functional.normalizers import softmax, sparsemax
from attn_jax.functional.scores import dot_scores, scaled_dot_scores

# ------------------------------------------------------------------------------------------------------------ attending


def test_attend_gives_the_notebook_context():
    query, keys = jnp.array([[[1.0, 0.5]]]), jnp.array([[[0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]])
    context, weights = attend(dot_scores(query, keys), keys)
    np.testing.assert_allclose(weights, [[[0.36285, 0.25570, 0.38145]]], atol=5e-6)
    np.testing.assert_allclose(context, [[[0.65916, 0.34084]]], atol=5e-6)


def test_attend_with_mask_normalizer_and_heads(rng):
    scores = jax.random.normal(rng, (2, 3, 4, 5))  # [batch, heads, q_len, kv_len]
    values = jax.random.normal(rng, (2, 5, 3, 6))  # [batch, kv_len, heads, d_v]
    mask = padding_mask(jnp.array([5, 0]), 5)[:, None, None]
    context, weights = attend(scores, values, mask, normalizer=sparsemax)
    np.testing.assert_array_equal(weights[0], sparsemax(scores[0]))
    np.testing.assert_allclose(context[0, :, 1], weights[0, 1] @ values[0, :, 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(context[1], 0)
    assert context.shape == (2, 4, 3, 6)


# ---------------------------------------------------------------------------------------------------------------- local


def test_local_window():
    mask = local_window_mask(jnp.arange(4.0)[None], kv_len=4, window=1)
    np.testing.assert_array_equal(mask[0], np.abs(np.subtract.outer(range(4), range(4))) <= 1)
    np.testing.assert_array_equal(local_window_mask(jnp.array([[2]]), 4, 0)[0, 0], [False, False, True, False])


def test_gaussian_factor_and_its_gradient_to_the_centre(x64):
    factor = gaussian_factor(jnp.array([[2.0]]), kv_len=5, window=4)
    np.testing.assert_allclose(factor[0, 0], np.exp(-np.array([4, 1, 0, 1, 4]) / 8), rtol=1e-12)
    check_grads(jax.jit(lambda c: gaussian_factor(c, 5, 3)), (jnp.array([[1.3]]),), order=1, rtol=1e-6)


def test_predicted_centers_stay_inside():
    centers = predicted_centers(jnp.array([[-100.0, 0.0, 100.0], [0.0, 0.0, 0.0]]), jnp.array([10, 4]))
    np.testing.assert_allclose(centers, [[0, 5, 10], [2, 2, 2]], atol=1e-6)


def test_bad_windows():
    with pytest.raises(ValueError, match="must not be negative, found -1"):
        local_window_mask(jnp.zeros((1, 1)), 3, -1)
    with pytest.raises(ValueError, match="must be positive, found 0"):
        gaussian_factor(jnp.zeros((1, 1)), 3, 0)


# ------------------------------------------------------------------------------------------------------------ monotonic


def by_the_papers_sum(probabilities):
    """Raffel et al., section 2.3, as loops: stop at j after walking from any k <= j where the last step stopped."""
    q_len, kv_len = probabilities.shape
    weights, previous = np.zeros((q_len, kv_len)), np.eye(kv_len)[0]
    for i, p in enumerate(probabilities):
        for j in range(kv_len):
            weights[i, j] = p[j] * sum(previous[k] * np.prod(1 - p[k:j]) for k in range(j + 1))
        previous = weights[i]
    return weights


def test_monotonic_by_definition(rng):
    probabilities = jax.random.uniform(rng, (2, 4, 5))
    weights = jax.jit(monotonic_attention)(probabilities)
    for found, p in zip(weights, np.asarray(probabilities, np.float64), strict=True):
        np.testing.assert_allclose(found, by_the_papers_sum(p), rtol=1e-5, atol=1e-6)
    assert (weights.sum(-1) <= 1 + 1e-6).all()


def test_monotonic_hard_decoding():
    probabilities = jnp.array(
        [[[0.1, 0.9, 0.9, 0.9], [0.9, 0.2, 0.8, 0.9], [0.9, 0.9, 0.1, 0.3], [1.0, 1.0, 1.0, 1.0]]]
    )
    weights = monotonic_attention(probabilities, hard=True)
    # stops at 1; from 1 on, at 2 (position 0 lies behind); finds nothing from 2 on; is past the end
    np.testing.assert_array_equal(weights[0], [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_certain_probabilities_make_soft_and_hard_equal(rng):
    certain = jax.random.bernoulli(rng, 0.6, (3, 4, 5)).astype(jnp.float32)
    np.testing.assert_array_equal(monotonic_attention(certain), monotonic_attention(certain, hard=True))


def test_monotonic_step_is_a_row_of_the_whole(rng):
    probabilities = jax.random.uniform(rng, (1, 3, 4))
    weights = monotonic_attention(probabilities)
    np.testing.assert_allclose(monotonic_step(probabilities[:, 2], weights[:, 1]), weights[:, 2], rtol=1e-6)


def test_monotonic_never_stops_in_the_padding(rng):
    probabilities = jax.random.uniform(rng, (1, 3, 4))
    mask = jnp.array([True, True, True, False])
    masked = monotonic_attention(probabilities, mask)
    np.testing.assert_array_equal(masked[..., 3], 0)
    np.testing.assert_allclose(masked[..., :3], monotonic_attention(probabilities[..., :3]), rtol=1e-6)


def test_monotonic_gradients_are_finite_where_a_stop_is_certain(x64):
    probabilities = jnp.array([[[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]])
    grad = jax.grad(lambda p: jnp.sum(monotonic_attention(p) ** 2))(probabilities)
    assert jnp.isfinite(grad).all()
    inside = jnp.array([[[0.9, 0.5, 0.1], [0.2, 0.8, 0.3]]])
    check_grads(jax.jit(monotonic_attention), (inside,), order=1, modes=["rev"], rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- chunked

BATCH, Q_LEN, KV_LEN, HEADS, D = 2, 7, 9, 2, 3
BLOCKS = {"block_q": 3, "block_k": 4}


def dense(query, key, value, mask=None, causal=False):
    """The same attention with the whole matrix of weights."""
    allowed = jnp.ones((1, 1, 1, key.shape[1]), bool) if mask is None else mask
    if causal:
        allowed = allowed & causal_mask(query.shape[1], key.shape[1])
    weights = softmax(scaled_dot_scores(query, key), allowed)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


@pytest.fixture
def qkv():
    rngs = jax.random.split(jax.random.key(3), 3)
    lengths, widths = (Q_LEN, KV_LEN, KV_LEN), (D, D, D + 1)
    return [jax.random.normal(r, (BATCH, t, HEADS, d)) for r, t, d in zip(rngs, lengths, widths, strict=True)]


PADDING = np.arange(KV_LEN) < np.array([[6], [9]])
SOME = np.random.default_rng(5).random((BATCH, HEADS, Q_LEN, KV_LEN)) < 0.6
SOME[1, :, 4] = False
CASES = {
    "causal": (None, None, True),
    "padding and causal": (PADDING, PADDING[:, None, None], True),
    "per query": (SOME[:, 0], SOME[:, :1], False),
    "per head, with an empty row": (SOME, SOME, True),
}


@pytest.mark.parametrize(("mask", "full_mask", "causal"), CASES.values(), ids=CASES)
def test_chunked_equals_dense_in_value_and_gradient(qkv, mask, full_mask, causal):
    @jax.jit
    def both(query, key, value):
        found = dot_product_attention_chunked(query, key, value, mask, causal=causal, **BLOCKS)
        expected = dense(query, key, value, full_mask, causal)
        return found, expected

    @partial(jax.jit, static_argnums=0)
    def gradients(which, *arrays):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(both(*a)[which])), argnums=(0, 1, 2))(*arrays)

    np.testing.assert_allclose(*both(*qkv), atol=2e-6)
    for found, expected in zip(gradients(0, *qkv), gradients(1, *qkv), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-6)


def test_chunked_gradient_by_finite_differences(x64):
    rngs = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(r, (1, 3, 1, 2)) for r in rngs]
    attention = jax.jit(partial(dot_product_attention_chunked, causal=True, block_q=2, block_k=2))
    check_grads(attention, qkv, order=1, modes=["rev"], rtol=1e-6)


def test_a_query_without_keys_gets_zeros_and_no_gradient(qkv):
    mask = padding_mask(jnp.array([0, 9]), KV_LEN)

    def loss(query, key, value):
        return jnp.sum(dot_product_attention_chunked(query, key, value, mask, **BLOCKS) ** 2)

    assert (dot_product_attention_chunked(*qkv, mask, **BLOCKS)[0] == 0).all()
    for grad in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*qkv):
        assert jnp.isfinite(grad).all()
        np.testing.assert_array_equal(grad[0], 0)


def test_large_scores_do_not_overflow(qkv):
    query, key, value = qkv
    found = dot_product_attention_chunked(100 * query, 100 * key, value, **BLOCKS)
    np.testing.assert_allclose(found, dense(100 * query, 100 * key, value), atol=1e-5)


def test_blocks_do_not_change_the_result(qkv):
    whole = dot_product_attention_chunked(*qkv)
    for block in (1, 2, 100):
        np.testing.assert_allclose(
            dot_product_attention_chunked(*qkv, block_q=block, block_k=block), whole, rtol=1e-5, atol=1e-6
        )


def test_bfloat16_accumulates_in_float32(qkv):
    narrow = [x.astype(jnp.bfloat16) for x in qkv]
    found = dot_product_attention_chunked(*narrow, **BLOCKS)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), dense(*qkv), atol=0.05)
    jaxpr = str(jax.make_jaxpr(partial(dot_product_attention_chunked, **BLOCKS))(*narrow))
    assert jaxpr.count("dot_general") == jaxpr.count("preferred_element_type=float32") == 4  # CPU, others


def test_chunked_agrees_with_jax(qkv):
    query, key, value = qkv
    found = dot_product_attention_chunked(query, key, value[..., :D], **BLOCKS)
    np.testing.assert_allclose(found, jax.nn.dot_product_attention(query, key, value[..., :D]), atol=2e-6)


@pytest.mark.parametrize("refusal", [None, RuntimeError("cuDNN is not detected."), NotImplementedError("head dim")])
def test_cudnn_is_chosen_on_a_gpu_where_jax_does_not_refuse(monkeypatch, refusal):
    calls, jax_attention = [], jax.nn.dot_product_attention
    narrow = jnp.ones((1, 4, 1, 8), jnp.bfloat16)
    expected = dot_product_attention_chunked(narrow, narrow, narrow)

    def attention(query, key, value, *, is_causal, implementation):
        if refusal:
            raise refusal
        calls.append((implementation, is_causal))
        return jax_attention(query, key, value, is_causal=is_causal)

    def attend(*arrays, **options):
        calls.clear()
        return jax.jit(lambda *arrays: dot_product_attention_chunked(*arrays, **options))(*arrays)  # not from a cache

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    attend(narrow, narrow, narrow)
    assert not calls  # this machine, a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # A program holds both ways; here our own runs.
    assert jnp.array_equal(attend(narrow, narrow, narrow), expected)
    assert set(calls) == (set() if refusal else {("cudnn", False)})
    attend(narrow, narrow, narrow, causal=True)
    assert set(calls) == (set() if refusal else {("cudnn", True)})
    attend(narrow[:, :2], narrow, narrow, causal=True)
    attend(narrow, narrow, narrow, jnp.ones((1, 4), bool))
    attend(*[narrow.astype(jnp.float32)] * 3)
    assert not calls


def test_chunked_refuses_what_does_not_fit(qkv):
    with pytest.raises(ValueError, match="block_q=0"):
        dot_product_attention_chunked(*qkv, block_q=0)
    with pytest.raises(ValueError, match=r"found shape \(9,\)"):
        dot_product_attention_chunked(*qkv, jnp.ones(9, bool))
    for shape in ((2, 7, 8), (3, 9), (2, 3, 7, 9)):
        with pytest.raises(ValueError, match="does not fit 7 queries and 9 keys of 2 sentences with 2 heads"):
            dot_product_attention_chunked(*qkv, jnp.ones(shape, bool))
