"""The rules that all searches share: how a hypothesis is scored, what it may hold, how long it is, how it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.decoding.constraints import block_repeats, forbid, force_end, force_prefix, renormalized
from attn_jax.decoding.hypotheses import IMPOSSIBLE, Step, batch_size, first_tokens, score_dtype, widen
from attn_jax.decoding.penalties import coverage_penalty, length_divisor
from attn_jax.models.protocol import DecodeState

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a search obeys, whatever it looks for; every search takes these as keyword arguments.

    ``score = log_prob / divisor(length) + beta * sum_i log(min(sum_t weights_ti, 1))``, the sum over the real source
    positions ``i``. What is off is not traced.

    Attributes:
      length_penalty: alpha of ``((5 + length) / 6) ** alpha`` (0: none), or ``"average"``; see ``length_divisor``.
      length_offset: in place of the 5.
      coverage_penalty: beta, not negative (0 or None: off); needs a decoder that attends, and ``src_mask``.
      src_mask: ``[batch, src_len]`` bool, the real source positions.
      min_len: least tokens of a hypothesis, with end of sentence.
      no_repeat_ngram: no sequence of so many tokens occurs twice in a hypothesis (0: off).
      forced_end: a hypothesis that meets its limit ends there, with probability 1; otherwise it is cut.
      renormalize: the probabilities of what the constraints leave sum to 1 again.
      room: steps that there is room for, fewer than ``max_len`` for a first try: a row that needs more is not
        ``settled`` then. The others are as with all the room. None: ``max_len``.
      prefix: ``[batch, prefix_len]`` ids that the hypotheses of a row must begin with, ``PAD_ID`` after the end of a
        shorter one. They are part of the result, with their log-probabilities and attention.
      active: ``[batch]`` bool; rows with False are empty slots and cost no step.
      row_max_len: ``[batch]`` int, a limit for each row below ``max_len``. A limit that grows with the sentence belongs
        here: ``max_len`` is one for the batch, so it would make a result depend on the other sentences.
      first: ``[batch]`` ids to feed first, for a state that has read tokens which are no part of a result (the
        ``prefix`` of `attn_jax.models.protocol.Decoder.start`). None: ``BOS_ID``.

    Raises:
      ValueError: for numbers out of range, or a coverage penalty without ``src_mask``.
    """

    length_penalty: float | Array | str = 0.0
    length_offset: float | Array = 5.0
    coverage_penalty: float | Array | None = None
    src_mask: Array | None = None
    min_len: int = 1
    no_repeat_ngram: int = 0
    forced_end: bool = False
    renormalize: bool = False
    room: int | None = None
    prefix: Array | None = None
    active: Array | None = None
    row_max_len: Array | None = None
    first: Array | None = None

    def __post_init__(self):
        """Checks what is no array."""
        if isinstance(self.coverage_penalty, int | float) and self.coverage_penalty < 0:
            raise ValueError(f"coverage_penalty must not be negative, found {self.coverage_penalty}")
        if self.covers and self.src_mask is None:
            raise ValueError("coverage_penalty needs src_mask, the real source positions; found None")
        if self.no_repeat_ngram < 0:
            raise ValueError(f"no_repeat_ngram must not be negative, found {self.no_repeat_ngram}; 0 allows repeats")

    @property
    def covers(self) -> bool:
        """Whether scores hold a coverage penalty."""
        beta = self.coverage_penalty
        return beta is not None and not (isinstance(beta, int | float) and beta == 0)

    def allowed(self, log_probs: Array, position: Array, past: Array | None, limits: Array) -> Array:
        """The log-probabilities ``[batch, width, vocab]`` of what may come next, ``IMPOSSIBLE`` for all else.

        ``past [batch, width, max_len]`` is the hypotheses so far; only ``no_repeat_ngram`` looks at it. ``limits
        [batch]`` are those of `Begin`.
        """
        free = forbid(log_probs, position, self.min_len)
        if self.no_repeat_ngram:
            free = block_repeats(free, past, position, self.no_repeat_ngram)
        if self.forced_end:
            free = force_end(free, position, limits)
        if self.renormalize:
            free = renormalized(free)
        return free if self.prefix is None else force_prefix(log_probs, free, position, self.prefix)

    def score(self, log_probs: Array, divisors: Array, coverage: Array | None) -> Array:
        """Scores of hypotheses ``[batch, n]``, ``IMPOSSIBLE`` for those that do not exist.

        Args:
          log_probs: ``[batch, n]``.
          divisors: of their lengths.
          coverage: ``[batch, n, src_len]``, the sum of each one's attention; only the coverage penalty looks at it.
        """
        scores = log_probs / divisors
        if self.covers:
            scores = scores + coverage_penalty(coverage, self.src_mask, self.coverage_penalty).astype(scores.dtype)
        return jnp.where(log_probs > IMPOSSIBLE / 2, scores, IMPOSSIBLE)


class Begin(NamedTuple):
    """A search before its first step.

    Attributes:
      tokens: ``[batch, width]`` int32, what is fed first.
      dynamic: leaves ``[batch, width, ...]``.
      limits: ``[batch]`` int32, the most tokens of each row, 0 for a row that is not active.
      divisors: ``[max_len + 1]``, the length penalty by length.
      dtype: of scores.
      weights: shape and type of a step's attention, or None.
    """

    tokens: Array
    dynamic: Any
    limits: Array
    divisors: Array
    dtype: Any
    weights: jax.ShapeDtypeStruct | None


def begin(step: Step, state: DecodeState, rules: Rules, *, width: int, max_len: int) -> Begin:
    """Sets a search of ``width`` hypotheses a sentence up.

    Raises:
      ValueError: for lengths out of range, or a coverage penalty for a decoder that does not attend.
    """
    check_lengths(max_len, rules.min_len)
    batch = batch_size(state)
    tokens, dynamic = first_tokens(batch, width, rules.first), widen(state.dynamic, width)
    logits, weights, _ = jax.eval_shape(step, tokens, state.replace(dynamic=dynamic))
    chex.assert_shape(logits, (batch, width, None))
    if rules.covers and weights is None:
        raise ValueError("this decoder has no attention, which the coverage penalty needs; leave coverage_penalty off")
    if rules.prefix is not None:
        chex.assert_type(rules.prefix, int)
        chex.assert_shape(rules.prefix, (batch, None))
    limits = length_limits(batch, max_len, rules.active, rules.row_max_len)
    divisors = length_divisor(jnp.arange(max_len + 1), rules.length_penalty, rules.length_offset)
    return Begin(tokens, dynamic, limits, divisors, score_dtype(logits), weights)


def length_limits(batch: int, max_len: int, active: Array | None, row_max_len: Array | None) -> Array:
    """The most tokens each sentence may get: ``min(max_len, row_max_len)``, 0 for the rows that are not active.

    Args:
      batch: number of rows.
      max_len: the limit for all rows.
      active: ``[batch]`` bool, False for rows that only fill up the batch. None: all are sentences.
      row_max_len: ``[batch]`` int, each row's own limit. None: ``max_len``.

    Returns:
      ``[batch]`` int32.

    >>> length_limits(3, 9, jnp.array([True, True, False]), jnp.array([4, 20, 4])).tolist()
    [4, 9, 0]
    """
    limits = jnp.full((batch,), max_len, jnp.int32)
    if row_max_len is not None:
        limits = jnp.clip(jnp.asarray(row_max_len).astype(jnp.int32), 0, max_len)
    return limits if active is None else jnp.where(active, limits, 0)


def check_lengths(max_len: int, min_len: int) -> None:
    """Raises ValueError unless ``1 <= max_len`` and ``min_len <= max_len``.

    >>> check_lengths(max_len=5, min_len=1)
    """
    if not isinstance(max_len, int | np.integer) or max_len < 1:
        raise ValueError(f"max_len must be a whole number, at least 1 (it counts end of sentence), found {max_len!r}")
    if min_len > max_len:
        raise ValueError(f"min_len must be at most max_len = {max_len}, found {min_len}")
