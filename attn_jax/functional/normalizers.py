"""From scores to weights: masked softmax, sparsemax and entmax-1.5.

All three are members of one family, alpha-entmax (alpha = 1, 2 and 1.5): the larger alpha, the more weights are exactly
zero. They differ only in how they solve for the weights; their derivative is one formula, shared here.

Every normaliser treats a mask in the same way: a masked position (or one with a score of -inf) gets exactly 0 and no
gradient, and a row without any position to attend to gives zeros and zero gradients, never NaN. The work is done in
float32 or better, along the last axis, and the weights come back in the dtype of the scores.

References:
  Martins & Astudillo, From Softmax to Sparsemax, 2016, arXiv:1602.02068.
  Peters, Niculae & Martins, Sparse Sequence-to-Sequence Models, 2019, arXiv:1905.05702.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Real

Array = jax.Array | np.ndarray

_OUT_OF_REACH = -2.0
"""A score this far below the largest one never gets weight from sparsemax or (halved) entmax-1.5: their reach is 1."""


def softmax(
    scores: Float[Array, "*batch kv_len"],
    mask: Bool[Array, "*#batch #kv_len"] | None = None,
    temperature: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, "*batch kv_len"]:
    """Masked softmax, ``weights = exp(scores / temperature) / sum(exp(scores / temperature))`` over the last axis.

    Args:
      scores: ``[..., kv_len]``.
      mask: bool, broadcastable to ``scores``, True = may attend; None attends everywhere.
      temperature: above 1 flattens the weights, below 1 sharpens them; may be traced.

    Returns:
      ``[..., kv_len]``, rows that sum to 1; masked positions and fully masked rows are exactly 0.

    Raises:
      ValueError: if ``temperature`` is a number that is not positive.

    >>> [f"{weight:.5f}" for weight in softmax(jnp.array([0.9, 0.55, 0.95]))]
    ['0.36285', '0.25570', '0.38145']
    >>> softmax(jnp.zeros(3), mask=jnp.array([True, True, False])).tolist()
    [0.5, 0.5, 0.0]
    """
    return _normalize(scores, mask, temperature, 1.0)


def sparsemax(
    scores: Float[Array, "*batch kv_len"],
    mask: Bool[Array, "*#batch #kv_len"] | None = None,
    temperature: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, "*batch kv_len"]:
    """Sparsemax, ``argmin_p |p - scores / temperature|^2`` over the simplex: ``max(scores - threshold, 0)``.

    Args:
      scores: ``[..., kv_len]``.
      mask: bool, broadcastable to ``scores``, True = may attend; None attends everywhere.
      temperature: above 1 flattens the weights, below 1 sharpens them; may be traced.

    Returns:
      ``[..., kv_len]``, rows that sum to 1 with many exact zeros; fully masked rows are 0.

    Raises:
      ValueError: if ``temperature`` is a number that is not positive.

    References:
      Martins & Astudillo, 2016, algorithm 1, arXiv:1602.02068.

    >>> sparsemax(jnp.array([1.0, 0.5, -1.0])).tolist()
    [0.75, 0.25, 0.0]
    """
    return _normalize(scores, mask, temperature, 2.0)


def entmax15(
    scores: Float[Array, "*batch kv_len"],
    mask: Bool[Array, "*#batch #kv_len"] | None = None,
    temperature: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, "*batch kv_len"]:
    """Entmax with alpha = 1.5, ``max(scores / 2 - threshold, 0)^2``: between softmax and sparsemax.

    Args:
      scores: ``[..., kv_len]``.
      mask: bool, broadcastable to ``scores``, True = may attend; None attends everywhere.
      temperature: above 1 flattens the weights, below 1 sharpens them; may be traced.

    Returns:
      ``[..., kv_len]``, rows that sum to 1 with some exact zeros; fully masked rows are 0.

    Raises:
      ValueError: if ``temperature`` is a number that is not positive.

    References:
      Peters, Niculae & Martins, 2019, section 3, arXiv:1905.05702.

    >>> [f"{weight:.2f}" for weight in entmax15(jnp.array([0.4, 0.0, -3.0]))]
    ['0.64', '0.36', '0.00']
    """
    return _normalize(scores, mask, temperature, 1.5)


Normalizer = Callable[..., Array]
"""``normalizer(scores, mask=None, temperature=1.0) -> weights``."""

NORMALIZERS: dict[str, Normalizer] = {"softmax": softmax, "sparsemax": sparsemax, "entmax15": entmax15}
"""The normalisers by the name that a config gives them."""


def _normalize(scores: Array, mask: Array | None, temperature: ArrayLike, alpha: float) -> Array:
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}; 1.0 leaves the scores as they are")
    scores = jnp.asarray(scores)
    mask = jnp.ones((), bool) if mask is None else jnp.asarray(mask, bool)
    exact = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / temperature
    return _entmax(exact, mask, alpha).astype(scores.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _entmax(scores: Array, mask: Array, alpha: float) -> Array:
    mask = mask & (scores != -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=jnp.finfo(scores.dtype).min)
    solve = {1.0: _softmax_weights, 1.5: _entmax15_weights, 2.0: _sparsemax_weights}[alpha]
    return solve(jnp.where(mask, scores - top, 0.0), mask)


@_entmax.defjvp
def _entmax_jvp(alpha: float, primals, tangents):
    # Peters et al. 2019, section 3: the Jacobian is diag(s) - s s^T / sum(s) with s = weights ** (2 - alpha) on the
    # support. For softmax s is the weights, for sparsemax the indicator of the support.
    weights = _entmax(*primals, alpha)
    support = weights > 0
    inside = jnp.where(support, weights, 1.0)  # keeps the derivative of the root finite where the weight is zero
    slope = jnp.where(support, inside ** (2.0 - alpha), 0.0)
    total = jnp.sum(slope, axis=-1, keepdims=True)
    tangent = jnp.where(support, tangents[0], 0.0)
    mean = jnp.sum(slope * tangent, axis=-1, keepdims=True) / jnp.where(total > 0, total, 1.0)
    return weights, slope * (tangent - mean)


# Each solver receives scores whose largest allowed one is 0, and the mask of the allowed ones.


def _softmax_weights(scores: Array, mask: Array) -> Array:
    weights = jnp.where(mask, jnp.exp(scores), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


def _sparsemax_weights(scores: Array, mask: Array) -> Array:
    scores = jnp.where(mask, jnp.maximum(scores, _OUT_OF_REACH), _OUT_OF_REACH)
    ranked = jnp.sort(scores, axis=-1, descending=True)
    rank = jnp.arange(1, scores.shape[-1] + 1)
    # The k largest are in the support when the first k - 1 exceed the k-th by less than 1 in total.
    inside = jnp.cumsum(ranked, axis=-1) - rank * ranked < 1
    size = jnp.sum(inside, axis=-1, keepdims=True)
    threshold = (jnp.sum(jnp.where(inside, ranked, 0.0), axis=-1, keepdims=True) - 1) / size
    return jnp.where(mask, jnp.maximum(scores - threshold, 0.0), 0.0)


def _entmax15_weights(scores: Array, mask: Array) -> Array:
    scores = jnp.where(mask, jnp.maximum(scores / 2, _OUT_OF_REACH), _OUT_OF_REACH)
    ranked = jnp.sort(scores, axis=-1, descending=True)
    rank = jnp.arange(1, scores.shape[-1] + 1)
    # As in sparsemax, with squares: sum over j <= k of (ranked_j - ranked_k)^2 < 1.
    excess = jnp.cumsum(ranked**2, axis=-1) - 2 * ranked * jnp.cumsum(ranked, axis=-1) + rank * ranked**2
    inside = excess < 1
    size = jnp.sum(inside, axis=-1, keepdims=True)
    mean = jnp.sum(jnp.where(inside, ranked, 0.0), axis=-1, keepdims=True) / size
    spread = jnp.sum(jnp.where(inside, (ranked - mean) ** 2, 0.0), axis=-1, keepdims=True)
    threshold = mean - jnp.sqrt(jnp.maximum(1 - spread, 0.0) / size)
    return jnp.where(mask, jnp.maximum(scores - threshold, 0.0) ** 2, 0.0)
