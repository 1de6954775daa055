"""How well a query matches each key: the scores of additive, multiplicative and location attention.

``query [batch, q_len, d]`` and ``keys [batch, kv_len, d]`` give ``scores [batch, q_len, kv_len]``. Whatever depends on
the keys alone (``U k`` of additive, ``W k`` of general and concat) is projected once a sentence: a decoder projects its
keys first and calls ``additive_scores`` or ``dot_scores`` at each step.

Matrix products go through ``einsum(equation, operand, other)`` (see `attn_jax.functional.products`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from attn_jax.functional.products import Einsum

Array = jax.Array | np.ndarray


def additive_scores(
    query: Float[Array, "batch q_len d"],
    keys: Float[Array, "batch kv_len d"],
    v: Float[Array, " d"],
    bias: Float[Array, ""] | Float[Array, " 1"] | None = None,
) -> Float[Array, "batch q_len kv_len"]:
    """Additive (Bahdanau) scores of a projected query and projected keys, ``v . tanh(query + keys) + bias``.

    The paper's ``v . tanh(W q + U k)``: pass ``query = W q`` and ``keys = U k``, with any biases of the projections
    added to them. The tanh ``[batch, q_len, kv_len, d]`` is by far the largest array here, so the backward pass
    computes it again instead of keeping it: in a decoder loop (64 sentences of 20 words, width 512) that is twice as
    fast and takes a sixth of the memory.

    Args:
      query: ``[batch, q_len, d]``, projected.
      keys: ``[batch, kv_len, d]``, projected.
      v: ``[d]``.
      bias: scalar or ``[1]``, added to each score, or None.

    Returns:
      ``[batch, q_len, kv_len]``.

    References:
      Bahdanau, Cho & Bengio, 2015, appendix A.1.2, arXiv:1409.0473.

    >>> query, keys = jnp.array([[[0.0, 1.0]]]), jnp.array([[[0.0, -1.0], [0.0, 0.0]]])
    >>> [f"{score:.4f}" for score in additive_scores(query, keys, v=jnp.array([1.0, 2.0]))[0, 0]]
    ['0.0000', '1.5232']
    """
    scores = _additive(query, keys, v)
    return scores if bias is None else scores + bias


@jax.checkpoint
def _additive(query: Array, keys: Array, v: Array) -> Array:
    hidden = jnp.tanh(query[:, :, None, :] + keys[:, None, :, :])  # [batch, q_len, kv_len, d]
    return jnp.einsum("bqkd,d->bqk", hidden, v)


def concat_scores(
    query: Float[Array, "batch q_len d_query"],
    keys: Float[Array, "batch kv_len d_key"],
    kernel: Float[Array, "d_query+d_key d"],
    v: Float[Array, " d"],
    bias: Float[Array, " d"] | None = None,
    *,
    einsum: Einsum = jnp.einsum,
) -> Float[Array, "batch q_len kv_len"]:
    """Concat (Luong) scores, ``v . tanh(W [q; k] + bias)``.

    With ``W = [W_q W_k]``, split where the query ends, ``W [q; k] = W_q q + W_k k``: nothing needs to be concatenated
    and the keys are projected once. It is ``additive_scores`` of ``W_q q`` and ``W_k k + bias``, and that is what a
    decoder calls at each step; this function does the whole from raw keys.

    Args:
      query: ``[batch, q_len, d_query]``, raw.
      keys: ``[batch, kv_len, d_key]``, raw.
      kernel: ``[d_query + d_key, d]``, the rows of the query first.
      v: ``[d]``.
      bias: ``[d]``, inside the tanh, or None.
      einsum: see the module.

    Returns:
      ``[batch, q_len, kv_len]``.

    Raises:
      ValueError: if the kernel does not have ``d_query + d_key`` rows.

    References:
      Luong, Pham & Manning, 2015, section 3.1, arXiv:1508.04025.

    >>> query, keys = jnp.array([[[1.0]]]), jnp.array([[[-2.0], [1.0]]])
    >>> kernel = jnp.array([[2.0], [1.0]])
    >>> [f"{score:.4f}" for score in concat_scores(query, keys, kernel, v=jnp.array([1.0]))[0, 0]]
    ['0.0000', '0.9951']
    """
    d_query, d_key = query.shape[-1], keys.shape[-1]
    if kernel.shape[0] != d_query + d_key:
        raise ValueError(
            f"concat_scores: the kernel needs {d_query} + {d_key} rows, one for each feature of [query; key], "
            f"found shape {kernel.shape}"
        )
    query = einsum("bqi,io->bqo", query, kernel[:d_query])
    keys = einsum("bki,io->bko", keys, kernel[d_query:])
    return additive_scores(query, keys if bias is None else keys + bias, v)


def dot_scores(
    query: Float[Array, "batch q_len *heads d"],
    keys: Float[Array, "batch kv_len *heads d"],
    *,
    einsum: Einsum = jnp.einsum,
) -> Float[Array, "batch *heads q_len kv_len"]:
    """Dot-product scores, ``q . k``.

    Args:
      query: ``[batch, q_len, d]``, or ``[batch, q_len, heads, d]``.
      keys: ``[batch, kv_len, d]``, or ``[batch, kv_len, heads, d]``.
      einsum: see the module.

    Returns:
      ``[batch, q_len, kv_len]``, or ``[batch, heads, q_len, kv_len]``.

    References:
      Luong, Pham & Manning, 2015, section 3.1, arXiv:1508.04025.

    >>> query, keys = jnp.array([[[1.0, 0.5]]]), jnp.array([[[0.5, 0.25], [0.0, 1.0], [1.0, 0.0]]])
    >>> dot_scores(query, keys).tolist()
    [[[0.625, 0.5, 1.0]]]
    """
    heads = query.ndim == 4
    return einsum("bqhd,bkhd->bhqk" if heads else "bqd,bkd->bqk", query, keys)


def general_scores(
    query: Float[Array, "batch q_len d_query"],
    keys: Float[Array, "batch kv_len d_key"],
    kernel: Float[Array, "d_key d_query"],
    *,
    einsum: Einsum = jnp.einsum,
) -> Float[Array, "batch q_len kv_len"]:
    """General (Luong) scores, ``q^T W k``.

    This is ``dot_scores`` of the query with the projected keys ``W k``, which a decoder computes once a sentence; it
    then calls ``dot_scores`` at each step. This function does the whole from raw keys.

    Args:
      query: ``[batch, q_len, d_query]``.
      keys: ``[batch, kv_len, d_key]``, raw.
      kernel: ``[d_key, d_query]``, the kernel of a dense layer on the keys: the transpose of the paper's ``W``.
      einsum: see the module.

    Returns:
      ``[batch, q_len, kv_len]``.

    References:
      Luong, Pham & Manning, 2015, section 3.1, arXiv:1508.04025.

    >>> query, keys = jnp.array([[[1.0, 2.0]]]), jnp.array([[[1.0], [3.0]]])
    >>> general_scores(query, keys, kernel=jnp.array([[1.0, 0.5]])).tolist()
    [[[2.0, 6.0]]]
    """
    return dot_scores(query, einsum("bki,io->bko", keys, kernel), einsum=einsum)


def scaled_dot_scores(
    query: Float[Array, "batch q_len *heads d"],
    keys: Float[Array, "batch kv_len *heads d"],
    *,
    einsum: Einsum = jnp.einsum,
) -> Float[Array, "batch *heads q_len kv_len"]:
    """Scaled dot-product scores, ``q . k / sqrt(d)``: unit variance for unit-variance queries and keys of any width.

    Args:
      query: ``[batch, q_len, d]``, or ``[batch, q_len, heads, d]``.
      keys: ``[batch, kv_len, d]``, or ``[batch, kv_len, heads, d]``.
      einsum: see the module.

    Returns:
      ``[batch, q_len, kv_len]``, or ``[batch, heads, q_len, kv_len]``.

    References:
      Vaswani et al., 2017, section 3.2.1, arXiv:1706.03762.

    >>> query, keys = jnp.array([[[1.0, 1.0, 1.0, 1.0]]]), jnp.array([[[1.0, 2.0, 3.0, 4.0]]])
    >>> scaled_dot_scores(query, keys).tolist()
    [[[5.0]]]
    """
    return dot_scores(query / math.sqrt(query.shape[-1]), keys, einsum=einsum)


def location_scores(
    logits: Float[Array, "batch q_len max_len"], kv_len: int, *, masked: bool = False
) -> Float[Array, "batch q_len {kv_len}"]:
    """Location scores: the part of ``logits`` over source positions that exists in this batch.

    The classic tutorial's decoder predicts where to look from its own input and state, ``Linear([embedding; hidden])``
    with one output for each of ``max_len`` positions, and never looks at the keys. Positions past ``kv_len`` do not
    exist, so they are cut off before the softmax; mask the padding as for any other scores.

    Args:
      logits: ``[batch, q_len, max_len]``.
      kv_len: length of the keys, at most ``max_len`` unless ``masked``.
      masked: the keys come with a mask of their padding, which may reach past ``max_len``. The scores there are -inf,
        which the normalisers take for masked: no weight and no gradient, for a real position as for padding.

    Returns:
      ``[batch, q_len, kv_len]``.

    Raises:
      ValueError: if the keys are longer than the positions that the layer knows, and not ``masked``.

    References:
      Luong, Pham & Manning, 2015, section 3.1 (``a_t = softmax(W_a h_t)``), arXiv:1508.04025.

    >>> location_scores(jnp.array([[[3.0, 1.0, 2.0]]]), kv_len=2).tolist()
    [[[3.0, 1.0]]]
    >>> location_scores(jnp.array([[[3.0, 1.0]]]), kv_len=3, masked=True).tolist()
    [[[3.0, 1.0, -inf]]]
    """
    max_len = logits.shape[-1]
    if kv_len > max_len and not masked:
        raise ValueError(
            f"location attention knows {max_len} source positions, found a source of length {kv_len}; "
            f"build it with max_len >= {kv_len} or shorten the source"
        )
    missing = max(kv_len - max_len, 0)
    return jnp.pad(logits[..., :kv_len], ((0, 0), (0, 0), (0, missing)), constant_values=-jnp.inf)
