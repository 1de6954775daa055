"""Perplexity and accuracy of predictions, where masked positions do not count."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def perplexity(total_nats: float, token_count: int) -> float:
    """Perplexity, ``exp(total_nats / token_count)``: 1 is perfect, the vocabulary's size is a uniform guess.

    Args:
      total_nats: the negative log-likelihood, summed over real tokens, in nats.
      token_count: the number of those tokens.

    Returns:
      The perplexity; infinity where it exceeds the largest float.

    Raises:
      ValueError: if there is no token, or the likelihood is not a number.

    >>> round(perplexity(4 * math.log(8), 4), 6)
    8.0
    """
    total_nats = float(total_nats)
    if token_count <= 0:
        raise ValueError(f"perplexity: expected at least one token, found {token_count}; is the data empty?")
    if math.isnan(total_nats):
        raise ValueError("perplexity: the summed loss is NaN; the model diverged (try a lower learning rate)")
    try:
        return math.exp(total_nats / token_count)
    except OverflowError:
        return math.inf


def accuracy(predictions: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> float:
    """The share of positions whose prediction equals the label, in [0, 1].

    Args:
      predictions: class ids, any shape.
      labels: class ids, the same shape.
      mask: bool, the same shape, True = counts; None counts every position.

    Returns:
      ``sum(mask * (predictions == labels)) / sum(mask)``.

    Raises:
      ValueError: if the shapes differ, the mask is not boolean, or nothing counts.

    >>> accuracy([[3, 5, 0]], [[3, 4, 9]], [[True, True, False]])
    0.5
    """
    predictions, labels, mask = _aligned(predictions, labels, mask)
    return float(np.sum(mask & (predictions == labels)) / mask.sum())


def sequence_accuracy(predictions: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> float:
    """The share of sequences with every position right, in [0, 1].

    Args:
      predictions: ``[batch, time]`` class ids.
      labels: ``[batch, time]`` class ids.
      mask: ``[batch, time]`` bool, True = counts; a row where nothing counts is no sequence.

    Returns:
      Exact matches over sequences.

    Raises:
      ValueError: if the shapes differ, the mask is not boolean, or nothing counts.

    >>> sequence_accuracy([[3, 5], [7, 1]], [[3, 4], [7, 8]], [[True, True], [True, False]])
    0.5
    """
    predictions, labels, mask = _aligned(predictions, labels, mask)
    if mask.ndim < 2:
        raise ValueError(f"sequence accuracy: expected [batch, time], found {list(mask.shape)}")
    right = np.all(~mask | (predictions == labels), axis=-1)
    counts = mask.any(axis=-1)
    return float(np.sum(right & counts) / counts.sum())


def _aligned(
    predictions: ArrayLike, labels: ArrayLike, mask: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as arrays of one shape, with something that counts."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    mask = np.ones(labels.shape, bool) if mask is None else np.asarray(mask)
    if not predictions.shape == labels.shape == mask.shape:
        raise ValueError(
            "accuracy: expected predictions, labels and mask of one shape, found "
            f"{list(predictions.shape)}, {list(labels.shape)} and {list(mask.shape)}; pass ids, not logits"
        )
    if mask.dtype != bool:
        raise ValueError(f"accuracy: expected a boolean mask (True = counts), found {mask.dtype}")
    if not mask.any():
        raise ValueError("accuracy: expected at least one position that counts, found none; is the data empty?")
    return predictions, labels, mask
