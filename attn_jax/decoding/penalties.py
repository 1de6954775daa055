"""What a score takes off a log-probability: the length of a hypothesis, and source words it did not look at."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

LEAST_COVERAGE = 1e-6
"""A source position counts as looked at by at least this much, so that its logarithm is finite: -13.8."""


def length_divisor(lengths: Array, penalty: float | Array | str, offset: float | Array = 5.0) -> Array:
    """Length penalty: ``score = log_prob / ((offset + length) / (offset + 1)) ** alpha``.

    Args:
      lengths: any shape, number of tokens with end of sentence; 0 counts as 1.
      penalty: alpha (0 = none, larger favours longer; may be traced). ``"average"``, log-probability a token, is a name
        for alpha 1 with offset 0.
      offset: GNMT's 5; may be traced. 0 divides by ``length ** alpha``.

    Returns:
      float32 divisors, shaped like ``lengths``.

    Raises:
      ValueError: for another string.

    References:
      Wu et al. 2016, Google's Neural Machine Translation System, section 7, equation 14, arXiv:1609.08144.

    >>> [round(float(d), 3) for d in length_divisor(jnp.array([1, 7]), 1.0)]
    [1.0, 2.0]
    >>> length_divisor(jnp.array([1, 7]), "average").tolist()
    [1.0, 7.0]
    >>> [round(float(d), 3) for d in length_divisor(jnp.array([1, 4]), 0.5, offset=0.0)]
    [1.0, 2.0]
    """
    lengths = jnp.maximum(jnp.asarray(lengths).astype(jnp.float32), 1.0)
    if isinstance(penalty, str):
        if penalty != "average":
            raise ValueError(f"length_penalty must be a number (alpha) or 'average', found {penalty!r}")
        penalty, offset = 1.0, 0.0
    return ((offset + lengths) / (offset + 1.0)) ** penalty


def coverage_penalty(coverage: Array, src_mask: Array, beta: float | Array) -> Array:
    """Coverage penalty: ``beta * sum_i log(min(coverage_i, 1))``, at most 0; it is added to a score.

    A position with a coverage below ``LEAST_COVERAGE`` counts as one with that.

    Args:
      coverage: ``[batch, n, src_len]``, the attention that each source position got from all tokens together.
      src_mask: ``[batch, src_len]`` bool, the real source positions.
      beta: strength; may be traced.

    Returns:
      ``[batch, n]``.

    References:
      Wu et al. 2016, Google's Neural Machine Translation System, section 7, equation 14, arXiv:1609.08144.

    >>> coverage, real = jnp.array([[[0.5, 1.5, 0.0]]]), jnp.array([[True, True, False]])
    >>> round(float(coverage_penalty(coverage, real, 0.2)[0, 0]), 4)  # 0.2 * log(0.5)
    -0.1386
    """
    missed = jnp.log(jnp.clip(coverage, LEAST_COVERAGE, 1.0))
    return beta * jnp.sum(missed, axis=-1, where=src_mask[:, None])


def token_counts(tokens: Array, counted: Array, vocab: int) -> Array:
    """How often each token occurs in a row.

    Args:
      tokens: ``[batch, n]`` ids.
      counted: ``[batch, n]`` bool, which of them count.
      vocab: number of ids.

    Returns:
      ``[batch, vocab]`` float32.

    >>> token_counts(jnp.array([[3, 1, 3]]), jnp.array([[True, False, True]]), 4).tolist()
    [[0.0, 0.0, 0.0, 2.0]]
    """
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab)).at[rows, tokens].add(counted.astype(jnp.float32))
