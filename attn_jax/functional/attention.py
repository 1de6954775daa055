"""From scores to contexts: attending, local and monotonic attention, and dot-product attention in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Integer, Real

from attn_jax.functional.masks import causal_mask
from attn_jax.functional.normalizers import Normalizer, softmax
from attn_jax.functional.products import Einsum

Array = jax.Array | np.ndarray


def attend(
    scores: Float[Array, "batch *heads q_len kv_len"],
    values: Float[Array, "batch kv_len *heads d_v"],
    mask: Bool[Array, " ... #kv_len"] | None = None,
    *,
    normalizer: Normalizer = softmax,
    einsum: Einsum = jnp.einsum,
) -> tuple[Float[Array, "batch q_len *heads d_v"], Float[Array, "batch *heads q_len kv_len"]]:
    """Weights the values, ``context = sum_j weights[j] * values[j]`` with ``weights = normalizer(scores, mask)``.

    Args:
      scores: ``[batch, q_len, kv_len]``, or ``[batch, heads, q_len, kv_len]``.
      values: ``[batch, kv_len, d_v]``, or ``[batch, kv_len, heads, d_v]``.
      mask: bool, broadcastable to ``scores``, True = may attend (see `masks.expand_mask`); None attends everywhere.
      normalizer: one of `normalizers.NORMALIZERS`, or any function of scores and mask.
      einsum: see `attn_jax.functional.products`.

    Returns:
      ``context [batch, q_len, d_v]``, or ``[batch, q_len, heads, d_v]``, and the weights, shaped like the scores. A
      query that may attend to nothing gets a context of zeros.

    >>> scores, values = jnp.array([[[0.9, 0.55, 0.95]]]), jnp.array([[[0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]])
    >>> context, weights = attend(scores, values)
    >>> [f"{value:.5f}" for value in context[0, 0]]
    ['0.65916', '0.34084']
    """
    weights = normalizer(scores, mask)
    return einsum("bhqk,bkhd->bqhd" if weights.ndim == 4 else "bqk,bkd->bqd", weights, values), weights


# ------------------------------------------------------------------------------------------------------ local attention


def predicted_centers(
    logits: Float[Array, "batch q_len"], lengths: Integer[Array, " batch"] | Integer[Array, "#batch #q_len"]
) -> Float[Array, "batch q_len"]:
    """Where local-p attention looks, ``length * sigmoid(logit)``.

    Args:
      logits: ``[batch, q_len]``, the paper's ``v . tanh(W h)``.
      lengths: ``[batch]``, real source lengths; or ``[batch, q_len]``, for every query its own.

    Returns:
      ``[batch, q_len]``, real-valued source positions between 0 and the length.

    References:
      Luong, Pham & Manning, 2015, equation 9, arXiv:1508.04025.

    >>> predicted_centers(jnp.array([[0.0]]), lengths=jnp.array([7])).tolist()
    [[3.5]]
    """
    return (lengths[:, None] if lengths.ndim == 1 else lengths) * jax.nn.sigmoid(logits)


def local_window_mask(
    centers: Real[Array, "batch q_len"], kv_len: int, window: int
) -> Bool[Array, "batch q_len {kv_len}"]:
    """True within ``window`` positions of the centre on either side: ``|j - center| <= window``.

    In local-m attention the centre of step t is t itself, in local-p it is predicted. Combine it with the padding mask.

    Args:
      centers: ``[batch, q_len]``.
      kv_len: length of the keys.
      window: the paper's D, positions; 10 there.

    Returns:
      ``[batch, q_len, kv_len]`` bool.

    Raises:
      ValueError: if ``window`` is negative.

    References:
      Luong, Pham & Manning, 2015, section 3.2, arXiv:1508.04025.

    >>> local_window_mask(jnp.array([[0.0, 2.4]]), kv_len=5, window=1).astype(int).tolist()
    [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]]
    """
    if window < 0:
        raise ValueError(f"window must not be negative, found {window}; 0 looks at the centre only")
    return jnp.abs(jnp.arange(kv_len) - centers[..., None]) <= window


def gaussian_factor(
    centers: Float[Array, "batch q_len"], kv_len: int, window: int
) -> Float[Array, "batch q_len {kv_len}"]:
    """What local-p multiplies its weights by, ``exp(-(j - center)^2 / (2 sigma^2))`` with ``sigma = window / 2``.

    The weights are multiplied after the softmax and not normalised again; through this factor the centre is learnt.

    Args:
      centers: ``[batch, q_len]``, real-valued.
      kv_len: length of the keys.
      window: the paper's D, positions.

    Returns:
      ``[batch, q_len, kv_len]``.

    Raises:
      ValueError: if ``window`` is not positive.

    References:
      Luong, Pham & Manning, 2015, equation 10, arXiv:1508.04025.

    >>> [f"{factor:.4f}" for factor in gaussian_factor(jnp.array([[1.0]]), kv_len=3, window=2)[0, 0]]
    ['0.6065', '1.0000', '0.6065']
    """
    if window <= 0:
        raise ValueError(f"window must be positive, found {window}: half of it is the Gaussian's standard deviation")
    return jnp.exp(-0.5 * ((jnp.arange(kv_len) - centers[..., None]) / (window / 2)) ** 2)


# -------------------------------------------------------------------------------------------------- monotonic attention


def monotonic_step(
    probabilities: Float[Array, "*batch kv_len"], previous: Float[Array, "*batch kv_len"], hard: bool = False
) -> Float[Array, "*batch kv_len"]:
    """Expected monotonic alignment of one output step.

    The reader starts where it last stopped, walks on, and stops at position j with probability ``p[j]``:
    ``weights[j] = p[j] * reached[j]`` with ``reached[j] = (1 - p[j - 1]) * reached[j - 1] + previous[j]``. This linear
    recurrence is solved for all positions at once by an associative scan, which unlike the paper's closed form divides
    by nothing. There is no module of it in `attn_jax.nn`: mechanisms there keep nothing from one step to the next, and
    this one needs the alignment of the step before.

    Args:
      probabilities: ``[..., kv_len]``, of stopping; 0 at padding. Usually ``sigmoid(scores)``, in training with noise
        added to the scores, so that they learn to be decided.
      previous: ``[..., kv_len]``, the weights of the step before; at first 1 at position 0 and 0 elsewhere.
      hard: stops at the first probability above 1/2, for decoding: the weights are one-hot if ``previous`` is.

    Returns:
      ``[..., kv_len]``. A row sums to at most 1: the rest is the probability to have walked past the end, and all later
      steps see nothing of it.

    References:
      Raffel et al., Online and Linear-Time Attention by Enforcing Monotonic Alignments, 2017, section 2.3 and
      appendix C, arXiv:1704.00784.

    >>> start = jnp.array([1.0, 0.0, 0.0])
    >>> monotonic_step(jnp.array([0.5, 0.5, 0.5]), start).tolist()
    [0.5, 0.25, 0.125]
    >>> monotonic_step(jnp.array([0.4, 0.9, 0.9]), start, hard=True).tolist()
    [0.0, 1.0, 0.0]
    """
    if hard:
        probabilities = (probabilities > 0.5).astype(probabilities.dtype)
    passed = jnp.pad(1 - probabilities[..., :-1], [(0, 0)] * (probabilities.ndim - 1) + [(1, 0)])  # 1 - p[j - 1]

    def compose(first, second):  # of two maps x -> factor * x + summand
        return first[0] * second[0], second[0] * first[1] + second[1]

    _, reached = lax.associative_scan(compose, (passed, previous), axis=-1)
    return probabilities * reached


def monotonic_attention(
    probabilities: Float[Array, "batch q_len kv_len"],
    mask: Bool[Array, " ... #kv_len"] | None = None,
    hard: bool = False,
) -> Float[Array, "batch q_len kv_len"]:
    """Monotonic alignment of a whole output sequence, `monotonic_step` after `monotonic_step` from position 0.

    Args:
      probabilities: ``[batch, q_len, kv_len]``, of stopping.
      mask: bool, broadcastable to ``probabilities``, True = may stop here; None: everywhere.
      hard: stops at the first probability above 1/2.

    Returns:
      ``[batch, q_len, kv_len]``, rows that sum to at most 1.

    References:
      Raffel et al., 2017, section 2.3, arXiv:1704.00784.

    >>> monotonic_attention(jnp.full((1, 2, 3), 0.5))[0].tolist()
    [[0.5, 0.25, 0.125], [0.25, 0.25, 0.1875]]
    """
    if mask is not None:
        probabilities = jnp.where(mask, probabilities, 0.0)
    start = jnp.zeros_like(probabilities[:, 0]).at[:, 0].set(1.0)

    def step(previous, now):
        weights = monotonic_step(now, previous, hard)
        return weights, weights

    return lax.scan(step, start, probabilities.swapaxes(0, 1))[1].swapaxes(0, 1)


# -------------------------------------------------------------------------------- dot-product attention, block by block


def dot_product_attention_chunked(
    query: Float[Array, "batch q_len heads head_dim"],
    key: Float[Array, "batch kv_len heads head_dim"],
    value: Float[Array, "batch kv_len heads d_v"],
    mask: Bool[Array, "#batch ... kv_len"] | None = None,
    *,
    causal: bool = False,
    block_q: int = 2048,
    block_k: int = 512,
) -> Float[Array, "batch q_len heads d_v"]:
    """Scaled dot-product attention, ``softmax(Q K^T / sqrt(d)) V``, that never holds the matrix of weights.

    Queries and keys are taken in blocks. The softmax is computed online: each new block of keys corrects the sums of
    the blocks before it by the change of the largest score. Backward computes the weights of a block again from the
    kept log-sums. Memory grows with the length, not with its square; blocks above the causal diagonal are skipped. On
    CPU one head follows the other, so that its block of scores stays in the cache. On a GPU, 16-bit arrays without a
    mask go to cuDNN's fused kernel, which has blocks of its own, where JAX lets it take them; the models here pass
    float32, and this has not been tried on a GPU.

    Args:
      query: ``[batch, q_len, heads, head_dim]``.
      key: ``[batch, kv_len, heads, head_dim]``.
      value: ``[batch, kv_len, heads, d_v]``.
      mask: bool, True = may attend: ``[batch, kv_len]``, ``[batch, q_len, kv_len]`` or
        ``[batch, heads, q_len, kv_len]``, where every axis but the last may also be 1; None attends everywhere.
      causal: a query attends to its own position and those before it (see `masks.causal_mask`).
      block_q: queries in a block.
      block_k: keys in a block.

    Returns:
      ``[batch, q_len, heads, d_v]``, in the dtype of the query; zeros where a query may attend to nothing.

    Raises:
      ValueError: if a block is smaller than 1, or the mask does not fit.

    References:
      Rabe & Staats, Self-attention Does Not Need O(n^2) Memory, 2021, arXiv:2112.05682.
      Dao et al., FlashAttention, 2022, algorithms 2 and 4, arXiv:2205.14135.

    >>> query = key = jnp.eye(2)[None, :, None]  # one sentence of two words, one head
    >>> context = dot_product_attention_chunked(query, key, value=jnp.array([[[[0.0]], [[1.0]]]]), causal=True)
    >>> [f"{value:.4f}" for value in context[0, :, 0, 0]]
    ['0.0000', '0.6698']
    """
    if block_q < 1 or block_k < 1:
        raise ValueError(f"blocks need at least one position, found block_q={block_q} and block_k={block_k}")
    by_blocks = partial(_by_blocks, mask=mask, causal=causal, block_q=block_q, block_k=block_k)
    cudnn = None if mask is not None else _cudnn_for(query, key, value, causal)
    if cudnn is not None:
        return lax.platform_dependent(query, key, value, cuda=cudnn, default=by_blocks)
    return by_blocks(query, key, value)


def _cudnn_for(query: Array, key: Array, value: Array, causal: bool) -> Callable[..., Array] | None:
    """The attention of cuDNN where a GPU is live and JAX does not refuse these arrays to it; None elsewhere."""
    narrow = all(array.dtype in (jnp.bfloat16, jnp.float16) for array in (query, key, value))
    if jax.default_backend() != "gpu" or not narrow or (causal and query.shape[1] != key.shape[1]):
        return None
    cudnn = partial(jax.nn.dot_product_attention, is_causal=causal, implementation="cudnn")
    try:
        jax.eval_shape(cudnn, query, key, value)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # no cuDNN, another processor, other sizes
        return None
    return cudnn


def _by_blocks(
    query: Array, key: Array, value: Array, *, mask: Array | None, causal: bool, block_q: int, block_k: int
) -> Array:
    (batch, q_len, heads, d), kv_len = query.shape, key.shape[1]
    block_q, block_k = min(block_q, q_len), min(block_k, kv_len)
    if mask is None and kv_len % block_k:
        mask = jnp.ones((1, kv_len), bool)
    mask = None if mask is None else _mask_in_blocks(mask, (batch, heads, q_len, kv_len), block_q, block_k)
    query = _in_blocks(query / math.sqrt(d), block_q)
    out = _chunked(causal, query, _in_blocks(key, block_k), _in_blocks(value, block_k), mask)
    return out.reshape(batch, heads, -1, out.shape[-1]).swapaxes(1, 2)[:, :q_len]


def _in_blocks(array: Array, size: int) -> Array:
    """``[batch, time, heads, d]`` -> ``[batch * heads, blocks, size, d]``, filled up with zeros."""
    batch, time, heads, d = array.shape
    array = jnp.pad(array, ((0, 0), (0, -time % size), (0, 0), (0, 0)))
    return array.swapaxes(1, 2).reshape(batch * heads, -1, size, d)


class _Mask(NamedTuple):
    """``[batch or 1, heads or 1, q_blocks or 1, k_blocks, block_q or 1, block_k]``, False past the last key.

    ``rows [batch * heads, 2]`` are the first two indices of each row of queries.
    """

    blocks: Array
    rows: Array


def _mask_in_blocks(mask: Array, shape: tuple[int, int, int, int], block_q: int, block_k: int) -> _Mask:
    if mask.ndim not in (2, 3, 4):
        raise ValueError(
            "the mask must be [batch, kv_len], [batch, q_len, kv_len] or [batch, heads, q_len, kv_len], "
            f"found shape {mask.shape}"
        )
    batch, heads, q_len, kv_len = shape
    whole = {2: lambda m: m[:, None, None], 3: lambda m: m[:, None], 4: lambda m: m}[mask.ndim](mask)
    if any(found not in (1, size) for found, size in zip(whole.shape, shape, strict=True)) or whole.shape[3] != kv_len:
        raise ValueError(
            f"a mask of shape {mask.shape} does not fit {q_len} queries and {kv_len} keys of {batch} sentences with "
            f"{heads} heads"
        )
    block_q = block_q if whole.shape[2] > 1 else 1
    whole = jnp.pad(whole, ((0, 0), (0, 0), (0, -whole.shape[2] % block_q), (0, -kv_len % block_k)))
    blocks = whole.reshape(*whole.shape[:2], -1, block_q, whole.shape[3] // block_k, block_k).swapaxes(3, 4)
    row = jnp.arange(batch * heads)
    return _Mask(blocks, jnp.stack([row // heads % whole.shape[0], row % heads % whole.shape[1]], axis=1))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(causal: bool, query: Array, key: Array, value: Array, mask: _Mask | None) -> Array:
    return _chunked_forward(causal, query, key, value, mask)[0]


def _for_each_row(function: Callable[..., Any], *arrays: Any) -> Any:
    """``function`` over the first axis: on CPU a row after the other, so that a block stays in the cache."""
    one_by_one = lambda *arrays: lax.map(lambda row: function(*row), arrays)  # noqa: E731
    return lax.platform_dependent(*arrays, cpu=one_by_one, default=jax.vmap(function))


def _allowed(causal: bool, mask: _Mask | None, row: Array, i: Array, j: Array, block: tuple[int, int]) -> Array | bool:
    """Whether the queries of block i may attend to the keys of block j, ``[block_q or 1, block_k]``."""
    allowed = True
    if mask is not None:
        allowed = mask.blocks[*mask.rows[row], i if mask.blocks.shape[2] > 1 else 0, j]
    if causal:
        allowed = allowed & causal_mask(*block, offset=i * block[0] - j * block[1])
    return allowed


def _accumulate(equation: str, a: Array, b: Array) -> Array:
    """A product of two arrays of one dtype that sums in float32 or better."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _chunked_forward(causal: bool, query: Array, key: Array, value: Array, mask: _Mask | None):
    rows, q_blocks, block_q, _ = query.shape
    _, k_blocks, block_k, d_v = value.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)

    def one_row(row, query, key, value):
        def one_query_block(arguments):
            i, query_block = arguments

            def one_key_block(j, state):
                context, top, total = state
                scores = _accumulate("qd,kd->qk", query_block, key[j])
                scores = jnp.where(_allowed(causal, mask, row, i, j, scores.shape), scores, -jnp.inf)
                new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
                shift = jnp.where(new_top == -jnp.inf, 0.0, new_top)  # nothing allowed so far: exp(-inf - 0) = 0
                weights, decay = jnp.exp(scores - shift[:, None]), jnp.exp(top - shift)
                product = _accumulate("qk,kd->qd", weights.astype(value.dtype), value[j])
                return decay[:, None] * context + product, new_top, decay * total + jnp.sum(weights, axis=-1)

            zeros = jnp.zeros(block_q, wide)
            start = jnp.zeros((block_q, d_v), wide), jnp.full_like(zeros, -jnp.inf), zeros
            stop = jnp.minimum(-(-(i + 1) * block_q // block_k), k_blocks) if causal else k_blocks
            context, top, total = lax.fori_loop(0, stop, one_key_block, start)
            empty = total == 0
            total = jnp.where(empty, 1.0, total)
            return (context / total[:, None]).astype(query.dtype), jnp.where(empty, 0.0, top + jnp.log(total))

        return lax.map(one_query_block, (jnp.arange(q_blocks), query))

    out, log_total = _for_each_row(one_row, jnp.arange(rows), query, key, value)
    return out, (query, key, value, mask, out, log_total)


def _chunked_backward(causal: bool, residuals, d_out: Array):
    query, key, value, mask, out, log_total = residuals
    rows, q_blocks, block_q, _ = query.shape
    _, k_blocks, block_k, _ = key.shape
    wide = log_total.dtype
    # The softmax's own sum over keys, sum_k weights * d_weights, equals d_out . out.
    mean = jnp.sum(d_out.astype(wide) * out.astype(wide), axis=-1)  # [rows, q_blocks, block_q]

    def one_row(row, query, key, value, log_total, d_out, mean):
        def one_key_block(d_query, arguments):
            j, key_block, value_block = arguments
            key_across = key_block.T

            def one_query_block(i, state):
                # Keys along the first axis, so that no product sums over the first axis of both of its operands.
                d_query, d_key, d_value = state
                scores = _accumulate("kd,qd->kq", key_block, query[i])
                allowed = _allowed(causal, mask, row, i, j, scores.shape[::-1])
                weights = jnp.where(jnp.transpose(allowed), jnp.exp(scores - log_total[i]), 0.0)
                d_weights = _accumulate("kd,qd->kq", value_block, d_out[i])
                d_scores = (weights * (d_weights - mean[i])).astype(key.dtype)
                d_value += _accumulate("kq,qd->kd", weights.astype(d_out.dtype), d_out[i])
                d_key += _accumulate("kq,qd->kd", d_scores, query[i])
                return d_query.at[i].add(_accumulate("dk,kq->dq", key_across, d_scores)), d_key, d_value

            first = j * block_k // block_q if causal else 0
            start = d_query, jnp.zeros(key_block.shape, wide), jnp.zeros(value_block.shape, wide)
            d_query, d_key, d_value = lax.fori_loop(first, q_blocks, one_query_block, start)
            return d_query, (d_key.astype(key.dtype), d_value.astype(value.dtype))

        start = jnp.zeros((q_blocks, query.shape[2], block_q), wide)
        d_query, d_key_and_value = lax.scan(one_key_block, start, (jnp.arange(k_blocks), key, value))
        return d_query.swapaxes(1, 2).astype(query.dtype), *d_key_and_value

    gradients = _for_each_row(one_row, jnp.arange(rows), query, key, value, log_total, d_out, mean)
    return *gradients, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
