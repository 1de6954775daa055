"""Synthetic tasks whose answer is known: sequences to copy or reverse, to remember, and to sum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FIRST_SYMBOL = 4
"""The id of the first symbol, after the special ids of ``attn_jax.models.protocol`` (padding, begin, end, unknown)."""


class TaskSequences(NamedTuple):
    """Source and target sequences of ids, without special ids: lists of int32 arrays ``[length]``."""

    src: list[np.ndarray]
    tgt: list[np.ndarray]


def copy_task(num: int, length: int | tuple[int, int], num_symbols: int, seed: int = 0) -> TaskSequences:
    """Sequences of random symbols, and the same again: ``y_t = x_t``.

    Args:
      num: number of sequences.
      length: their length, or the smallest and the largest (both included), drawn uniformly.
      num_symbols: how many symbols; their ids are ``FIRST_SYMBOL ... FIRST_SYMBOL + num_symbols - 1``.
      seed: of the draws.

    Returns:
      ``num`` sources and as many targets.

    Raises:
      ValueError: a negative number of sequences, an empty or reversed range of lengths, or no symbols.

    >>> src, tgt = copy_task(2, 3, num_symbols=5, seed=0)
    >>> [ids.tolist() for ids in src], bool((src[0] == tgt[0]).all())
    ([[8, 7, 6], [5, 5, 4]], True)
    """
    src = _random_sequences(num, length, num_symbols, seed)
    return TaskSequences(src, [ids.copy() for ids in src])


def reverse_task(num: int, length: int | tuple[int, int], num_symbols: int, seed: int = 0) -> TaskSequences:
    """Sequences of random symbols, and the same backwards: ``y_t = x_{n+1-t}``.

    Args:
      num: number of sequences.
      length: their length, or the smallest and the largest (both included), drawn uniformly.
      num_symbols: how many symbols; their ids are ``FIRST_SYMBOL ... FIRST_SYMBOL + num_symbols - 1``.
      seed: of the draws.

    Returns:
      ``num`` sources and as many targets.

    Raises:
      ValueError: a negative number of sequences, an empty or reversed range of lengths, or no symbols.

    >>> src, tgt = reverse_task(1, (3, 6), num_symbols=5, seed=0)
    >>> src[0].tolist() == tgt[0][::-1].tolist()
    True
    """
    src = _random_sequences(num, length, num_symbols, seed)
    return TaskSequences(src, [ids[::-1].copy() for ids in src])


def first_token_task(num: int, length: int = 20, num_symbols: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of symbols ``1 ... num_symbols``; the answer is the first one, the rest distracts: ``y = x_1``.

    A vocabulary of ``num_symbols + 1`` holds them and padding.

    Args:
      num: number of sequences.
      length: their length.
      num_symbols: how many symbols.
      seed: of the draws.

    Returns:
      ``[num, length]`` and ``[num]``, int32.

    Raises:
      ValueError: a negative number of sequences, a length or a number of symbols below 1.

    >>> src, first = first_token_task(3, seed=0)
    >>> src.shape, first.tolist() == src[:, 0].tolist()
    ((3, 20), True)
    """
    _require(num >= 0 and length >= 1 and num_symbols >= 1, f"num={num}, length={length}, num_symbols={num_symbols}")
    src = np.random.default_rng(seed).integers(1, num_symbols + 1, size=(num, length), dtype=np.int32)
    return src, src[:, 0].copy()


def even_sum_task(num: int, length: int = 10, features: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose label is the sign of the sum over even positions: ``y = [sum_{t in 0, 2, ...} sum_f x_{t,f} > 0]``.

    Args:
      num: number of sequences.
      length: their length.
      features: values at each position, independent and standard normal.
      seed: of the draws.

    Returns:
      ``[num, length, features]`` float32 and ``[num]`` int32 labels, 0 or 1, about half of each.

    Raises:
      ValueError: a negative number of sequences, a length or a number of features below 1.

    >>> inputs, labels = even_sum_task(4, seed=0)
    >>> inputs.shape, labels.shape
    ((4, 10, 5), (4,))
    """
    _require(num >= 0 and length >= 1 and features >= 1, f"num={num}, length={length}, features={features}")
    inputs = np.random.default_rng(seed).standard_normal((num, length, features), dtype=np.float32)
    labels = inputs[:, ::2].sum(axis=(1, 2)) > 0
    return inputs, labels.astype(np.int32)


def _random_sequences(num: int, length: int | tuple[int, int], num_symbols: int, seed: int) -> list[np.ndarray]:
    """Uniform symbols; lengths uniform in the closed range."""
    shortest, longest = (length, length) if isinstance(length, int) else length
    sound = num >= 0 and 1 <= shortest <= longest and num_symbols >= 1
    _require(sound, f"num={num}, length={length}, num_symbols={num_symbols}")
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, size=num)
    symbols = rng.integers(FIRST_SYMBOL, FIRST_SYMBOL + num_symbols, size=int(lengths.sum()), dtype=np.int32)
    return np.split(symbols, np.cumsum(lengths)[:-1]) if num else []


def _require(sound: bool, found: str) -> None:
    """Rejects sizes that describe no task."""
    if not sound:
        raise ValueError(f"expected num >= 0, every other size >= 1 and a range as (smallest, largest), found {found}")
