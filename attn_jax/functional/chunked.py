"""Dot-product attention block by block: long sentences in memory that grows with the length, not with its square."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float

from attn_jax.functional.masks import causal_mask

Array = jax.Array | np.ndarray


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
