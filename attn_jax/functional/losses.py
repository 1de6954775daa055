"""Losses as sums and counts over the real positions: cross-entropy, squared error, guided alignment.

A loss returns the *sum* over real positions and their *count*, never a mean: sums of several batches, devices or
accumulated steps add up exactly, and the caller divides once. All sums are in float32 or better, in nats.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, DTypeLike, Float, Integer, Shaped

Array = jax.Array | np.ndarray

LARGEST_BLOCK = 2**25
"""Logits that `projected_cross_entropy` computes at once: 128 MiB of float32."""


class TokenLoss(NamedTuple):
    """Sums over the real tokens of a batch, scalars.

    Attributes:
      loss: label-smoothed cross-entropy, nats; what is minimised.
      nll: plain negative log-likelihood, nats; ``exp(nll / count)`` is the perplexity.
      correct: how many tokens have the largest logit (a tie counts as correct).
      count: how many tokens there are: the sum of their weights.
    """

    loss: Array
    nll: Array
    correct: Array
    count: Array


class LossSum(NamedTuple):
    """The sum of a loss over real positions, and how many there are; scalars."""

    loss: Array
    count: Array


def cross_entropy(
    logits: Float[Array, "*batch vocab"],
    labels: Integer[Array, "*batch"],
    mask: Bool[Array, "*batch"] | Float[Array, "*batch"] | None = None,
    smoothing: float = 0.0,
) -> TokenLoss:
    """Label-smoothed cross-entropy, ``(1 - eps) * -log p[label] + eps * mean_v(-log p[v])``, summed over real tokens.

    The target distribution is ``1 - eps`` on the label plus ``eps / vocab`` on every class, the label included.

    Args:
      logits: ``[..., vocab]``.
      labels: ``[...]`` integers. Masked ones may hold anything; a real one outside the vocabulary makes the loss NaN.
      mask: ``[...]`` bool, True = a real token, or float weights; None: all are real.
      smoothing: eps, in ``[0, 1)``.

    Returns:
      The four sums.

    Raises:
      ValueError: if ``smoothing`` is not in ``[0, 1)``.

    References:
      Szegedy et al., Rethinking the Inception Architecture, 2016, section 7, arXiv:1512.00567.

    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]))
    >>> sums = cross_entropy(logits, jnp.array([1, 0]), mask=jnp.array([True, False]))
    >>> f"{sums.loss:.4f} of {sums.count:.0f} token, {sums.correct:.0f} correct"
    '1.3863 of 1 token, 0 correct'
    """
    _check_smoothing(smoothing)
    weights = jnp.ones(labels.shape) if mask is None else jnp.asarray(mask)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    weights = weights.astype(logits.dtype)
    logits = jnp.where(weights[..., None] == 0, 0.0, logits)  # whatever stands in the padding reaches no gradient
    loss, nll, correct, _ = _token_losses(logits, labels, smoothing)
    return TokenLoss(*(_weighted_sum(weights, token) for token in (loss, nll, correct)), jnp.sum(weights))


def projected_cross_entropy(
    features: Float[Array, "n d"],
    kernel: Float[Array, "d vocab"] | Float[Array, "vocab d"],
    bias: Float[Array, " vocab"] | None,
    labels: Integer[Array, " n"],
    weights: Float[Array, " n"],
    *,
    smoothing: float = 0.0,
    dtype: DTypeLike | None = None,
    kernel_layout: str = "dv",
) -> TokenLoss:
    """`cross_entropy` of ``logits = features @ kernel + bias``, with the projection's gradient fused into it.

    The gradient of the logits, ``(softmax - target) * weight``, is computed once, while the logits exist, and is all
    that is kept of them: one float32 and one ``dtype`` array of ``[n, vocab]`` at most. Backward is two products. Only
    ``loss`` carries a gradient (to features, kernel, bias and weights); ``nll`` and ``correct`` are for reporting.
    More than `LARGEST_BLOCK` logits are computed a block of rows after the other, with their gradients, so that memory
    does not grow with ``n * vocab``.

    Args:
      features: ``[n, d]``: pack the real target positions, so that no logits are computed for padding.
      kernel: ``[d, vocab]``, or ``[vocab, d]`` with ``kernel_layout="vd"`` (an embedding table that is tied).
      bias: ``[vocab]`` or None.
      labels: ``[n]`` integers. With weight 0 they may hold anything; a real one outside the vocabulary gives NaN.
      weights: ``[n]`` floats, 1 for a real token and 0 for padding.
      smoothing: eps, in ``[0, 1)``.
      dtype: type of the operands of the three products, bfloat16 for speed; they accumulate in float32 or better.
        None: as they come.
      kernel_layout: the axes of ``kernel``, ``"dv"`` or ``"vd"``.

    Returns:
      The four sums.

    Raises:
      ValueError: if ``smoothing`` is not in ``[0, 1)``, or the layout is neither of the two.

    References:
      Szegedy et al., Rethinking the Inception Architecture, 2016, section 7, arXiv:1512.00567.

    >>> features, kernel = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 0.0], [0.0, 2.0]])
    >>> sums = projected_cross_entropy(features, kernel, None, jnp.array([0, 1]), weights=jnp.array([1.0, 1.0]))
    >>> [f"{value:.4f}" for value in sums]
    ['0.8201', '0.8201', '2.0000', '2.0000']
    """
    _check_smoothing(smoothing)
    if kernel_layout not in ("dv", "vd"):
        raise ValueError(f"kernel_layout must be 'dv' ([d, vocab]) or 'vd' ([vocab, d]), found {kernel_layout!r}")
    dtype = jnp.dtype(jnp.promote_types(features.dtype, kernel.dtype) if dtype is None else dtype)
    weights = weights.astype(jnp.promote_types(dtype, jnp.float32))
    settings, targets = (dtype, kernel_layout, smoothing), (labels, weights)
    rows = max(1, LARGEST_BLOCK // kernel.shape[kernel_layout.index("v")])
    if len(features) <= rows:
        sums = _projected(settings, features, kernel, bias, targets)
    else:
        blocks = jax.tree.map(lambda array: _in_blocks(array, rows), (features, targets))
        sums = _projected_blocks(settings, kernel, bias, *blocks)
    return TokenLoss(*sums, jnp.sum(weights))


def _in_blocks(array: Array, rows: int) -> Array:
    """``[n, ...]`` -> ``[blocks, rows, ...]``, filled up with zeros: labels of weight 0."""
    padding = [(0, -len(array) % rows)] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(-1, rows, *array.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _projected(settings, features, kernel, bias, targets):
    return _projected_forward(settings, features, kernel, bias, targets)[0]


def _projected_forward(settings, features, kernel, bias, targets):
    (dtype, layout, smoothing), (labels, weights) = settings, targets
    narrow_features, narrow_kernel = features.astype(dtype), kernel.astype(dtype)
    logits = jnp.einsum(f"nd,{layout}->nv", narrow_features, narrow_kernel, preferred_element_type=weights.dtype)
    logits = logits if bias is None else logits + bias
    loss, nll, correct, log_total = _token_losses(logits, labels, smoothing)
    sums = tuple(_weighted_sum(weights, token) for token in (loss, nll, correct))

    # One pass over the logits. The comparison with an iota is part of it; a scatter into the result would be another.
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1) == labels[:, None]
    target = (1 - smoothing) * is_label + smoothing / logits.shape[-1]
    d_logits = ((jnp.exp(logits - log_total[:, None]) - target) * weights[:, None]).astype(dtype)

    like = tuple(None if array is None else jnp.empty(0, array.dtype) for array in (features, kernel, bias))
    return sums, (narrow_features, narrow_kernel, d_logits, loss, like)


def _projected_backward(settings, residuals, d_sums):
    dtype, layout, _ = settings
    features, kernel, d_logits, loss, (like_features, like_kernel, like_bias) = residuals
    d_loss = d_sums[0]
    wide = loss.dtype
    d_features = jnp.einsum(f"nv,{layout}->nd", d_logits, kernel, preferred_element_type=wide) * d_loss

    # The last row of [features, 1]^T d_logits is the gradient of the bias. Building the left operand by concatenation
    # also matters on its own: XLA folds a plain transpose into the product, and on CPU a product over the leading axis
    # of both bfloat16 operands leaves the matrix unit and is four times slower.
    left = jnp.concatenate([features.T, jnp.ones((1, len(features)), dtype)])
    d_both = jnp.einsum("dn,nv->dv", left, d_logits, preferred_element_type=wide) * d_loss
    d_kernel, d_bias = d_both[:-1], d_both[-1]
    d_kernel = d_kernel if layout == "dv" else d_kernel.T
    return (
        d_features.astype(like_features.dtype),
        d_kernel.astype(like_kernel.dtype),
        None if like_bias is None else d_bias.astype(like_bias.dtype),
        (None, loss * d_loss),
    )


_projected.defvjp(_projected_forward, _projected_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _projected_blocks(settings, kernel, bias, features, targets):
    sums = jax.lax.map(lambda block: _projected(settings, block[0], kernel, bias, block[1]), (features, targets))
    return jax.tree.map(partial(jnp.sum, axis=0), sums)


def _projected_blocks_forward(settings, kernel, bias, features, targets):
    def block(total, rows):
        features, (labels, weights) = rows
        project = lambda *args: _projected(settings, *args[:3], (labels, args[3]))  # noqa: E731
        sums, gradient_of = jax.vjp(project, features, kernel, bias, weights)
        d_features, d_kernel, d_bias, d_weights = gradient_of((jnp.ones_like(sums[0]), *map(jnp.zeros_like, sums[1:])))
        return jax.tree.map(jnp.add, total, (sums, d_kernel, d_bias)), (d_features, d_weights)

    wide = targets[1].dtype
    zeros = jax.tree.map(lambda array: jnp.zeros(array.shape, wide), (kernel, bias))
    (sums, *of_all), of_rows = jax.lax.scan(block, ((jnp.zeros((), wide),) * 3, *zeros), (features, targets))
    return sums, (jax.tree.map(lambda gradient, array: gradient.astype(array.dtype), of_all, [kernel, bias]), of_rows)


def _projected_blocks_backward(settings, residuals, d_sums):
    del settings
    scaled = jax.tree.map(lambda gradient: (gradient * d_sums[0]).astype(gradient.dtype), residuals)
    (d_kernel, d_bias), (d_features, d_weights) = scaled
    return d_kernel, d_bias, d_features, (None, d_weights)


_projected_blocks.defvjp(_projected_blocks_forward, _projected_blocks_backward)


def _token_losses(logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array, Array, Array]:
    """Smoothed loss, negative log-likelihood, 1 where the label has the top logit, and ``log(sum(exp(logits)))``."""
    vocab = logits.shape[-1]
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    log_total = top + jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
    labels = jnp.where(labels < 0, vocab, labels)  # negative labels would count from the end; now they are NaN, too
    gold = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="fill")[..., 0]
    nll = log_total - gold
    loss = nll
    if smoothing:
        loss = (1 - smoothing) * nll + smoothing * (log_total - jnp.mean(logits, axis=-1))
    return loss, nll, (gold >= top).astype(logits.dtype), log_total


def _weighted_sum(weights: Array, values: Array) -> Array:
    """``sum(weights * values)`` where a weight of 0 wins even over NaN."""
    return jnp.sum(jnp.where(weights == 0, 0.0, weights * values))


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing must be in [0, 1), found {smoothing}; 0.1 is usual, 0 turns it off")


def masked_mse(
    predictions: Float[Array, "*batch features"],
    targets: Float[Array, "*batch features"],
    mask: Bool[Array, "*batch"] | None = None,
) -> LossSum:
    """Squared error ``mean_f((prediction - target)^2)``, summed over real positions.

    Args:
      predictions: ``[..., features]``.
      targets: ``[..., features]``.
      mask: ``[...]`` bool, True = a real position; None: all are real.

    Returns:
      The sum, and the number of real positions.

    >>> predictions, targets = jnp.array([[1.0, 3.0], [5.0, 5.0]]), jnp.zeros((2, 2))
    >>> [float(value) for value in masked_mse(predictions, targets, mask=jnp.array([True, False]))]
    [5.0, 1.0]
    """
    mask = jnp.ones(predictions.shape[:-1], bool) if mask is None else mask
    # Masked before it is squared, so that whatever stands in the padding reaches neither loss nor gradient.
    error = jnp.where(mask[..., None], _wide(predictions) - _wide(targets), 0.0)
    return LossSum(jnp.sum(jnp.mean(error**2, axis=-1)), jnp.sum(mask, dtype=error.dtype))


def masked_bce(
    logits: Float[Array, "*batch"], labels: Shaped[Array, "*batch"], mask: Bool[Array, "*batch"] | None = None
) -> LossSum:
    """Binary cross-entropy ``-y log s(x) - (1 - y) log(1 - s(x)) = softplus(x) - x y``, summed over real positions.

    Args:
      logits: ``[...]``, before the sigmoid.
      labels: ``[...]``, bool or probabilities.
      mask: ``[...]`` bool, True = a real position; None: all are real.

    Returns:
      The sum in nats, and the number of real positions.

    >>> loss, count = masked_bce(jnp.array([0.0, 100.0]), jnp.array([1, 1]))
    >>> f"{loss:.4f} {count:.0f}"
    '0.6931 2'
    """
    mask = jnp.ones(logits.shape, bool) if mask is None else mask
    logits = jnp.where(mask, _wide(logits), 0.0)
    losses = jax.nn.softplus(logits) - jnp.where(mask, logits * labels, 0.0)
    return LossSum(jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(mask, dtype=logits.dtype))


def guided_alignment_loss(
    weights: Float[Array, "batch tgt_len src_len"],
    alignment: Shaped[Array, "batch tgt_len src_len"],
    mask: Bool[Array, "batch tgt_len"] | Bool[Array, "batch tgt_len src_len"] | None = None,
) -> LossSum:
    """Cross-entropy of attention against known alignments, ``-sum_j a[i, j] log weights[i, j]`` for each target word i.

    The links of a target word share its unit of mass; a word without a link neither counts nor is guided.

    Args:
      weights: ``[batch, tgt_len, src_len]``, rows that sum to 1 (or to 0).
      alignment: ``[batch, tgt_len, src_len]``, bool or non-negative link strengths.
      mask: ``[batch, tgt_len]`` or ``[batch, tgt_len, src_len]`` bool, True = links here are taken; None: all are.

    Returns:
      The sum in nats, and the number of guided target words.

    References:
      Chen, Matusov, Khadivi & Peter, Guided Alignment Training for Topic-Aware Neural Machine Translation, 2016,
      arXiv:1607.01628.

    >>> weights = jnp.array([[[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]])
    >>> alignment = jnp.array([[[True, True, False], [False, False, False]]])
    >>> loss, count = guided_alignment_loss(weights, alignment)
    >>> f"{loss:.4f} {count:.0f}"
    '1.0397 1'
    """
    weights, alignment = _wide(weights), _wide(alignment)
    if mask is not None:
        alignment = jnp.where(mask if mask.ndim == 3 else mask[..., None], alignment, 0.0)
    links = jnp.sum(alignment, axis=-1, keepdims=True)
    alignment = alignment / jnp.where(links > 0, links, 1.0)
    # A linked position that got exactly no weight costs -log 1e-9 = 20.7 nats and gives no gradient: log has none at 0.
    log_weights = jnp.log(jnp.where(alignment > 0, jnp.maximum(weights, 1e-9), 1.0))
    return LossSum(-jnp.sum(alignment * log_weights), jnp.sum(links > 0, dtype=weights.dtype))


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
