"""What a hypothesis must not or must contain, as log-probabilities that are made impossible.

Unless `renormalized` or `force_end` is asked for, a score stays what the model says, and so equals that of forced
decoding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from attn_jax.decoding.hypotheses import IMPOSSIBLE, log_probabilities
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID

Array = jax.Array


def forbid(log_probs: Array, position: Array | int, min_len: int) -> Array:
    """Makes impossible what no search generates: padding, begin of sentence, and an end before ``min_len`` tokens.

    Args:
      log_probs: ``[..., vocab]``.
      position: tokens generated so far.
      min_len: least length of a hypothesis, in tokens with end of sentence.

    Returns:
      ``[..., vocab]``.

    >>> forbid(jnp.zeros(5), position=0, min_len=2).tolist() == [IMPOSSIBLE] * 3 + [0, 0]
    True
    """
    ids = jnp.arange(log_probs.shape[-1])
    too_early = jnp.asarray(position) + 1 < min_len
    forbidden = (ids == PAD_ID) | (ids == BOS_ID) | ((ids == EOS_ID) & too_early)
    return jnp.where(forbidden, IMPOSSIBLE, log_probs)


def block_repeats(log_probs: Array, past: Array, position: Array | int, n: int) -> Array:
    """Makes impossible what would complete a sequence of ``n`` tokens that the hypothesis holds already.

    Args:
      log_probs: ``[batch, width, vocab]``, not above 0.
      past: ``[batch, width, max_len]`` ids, of which the first ``position`` are written.
      position: tokens generated so far.
      n: length of what must not occur twice; 1: no token does.

    Returns:
      ``[batch, width, vocab]``.

    References:
      Paulus, Xiong, Socher 2018, A Deep Reinforced Model for Abstractive Summarization, section 2.5, arXiv:1705.04304.

    >>> past = jnp.array([[[3, 4, 3, 0]]])  # after 3 4 3, a 4 would repeat 3 4
    >>> (block_repeats(jnp.zeros((1, 1, 6)), past, 3, n=2) < 0).tolist()
    [[[False, False, False, False, True, False]]]
    """
    starts = past.shape[-1] - n + 1
    if starts <= 0:
        return log_probs
    last = lax.dynamic_slice_in_dim(past, jnp.maximum(position - n + 1, 0), n - 1, axis=-1)  # [batch, width, n - 1]
    same = jnp.arange(starts) + n <= position  # the sequence that starts there is whole
    for offset in range(n - 1):
        same = same & (past[..., offset : offset + starts] == last[..., offset : offset + 1])
    rows, slots = jnp.arange(past.shape[0])[:, None, None], jnp.arange(past.shape[1])[:, None]
    same = jnp.broadcast_to(same, (*past.shape[:2], starts))
    return log_probs.at[rows, slots, past[..., n - 1 :]].min(jnp.where(same, IMPOSSIBLE, 0.0))


def force_end(log_probs: Array, position: Array | int, limits: Array) -> Array:
    """At the last position that a row has, leaves the end of the sentence alone possible, with probability 1.

    Args:
      log_probs: ``[batch, width, vocab]``.
      position: tokens generated so far.
      limits: ``[batch]``, the most tokens of each row.

    Returns:
      ``[batch, width, vocab]``.

    >>> force_end(jnp.full((2, 1, 3), -1.5), 3, jnp.array([4, 5])).tolist()
    [[[-1000000000.0, -1000000000.0, 0.0]], [[-1.5, -1.5, -1.5]]]
    """
    end = jnp.where(jnp.arange(log_probs.shape[-1]) == EOS_ID, 0.0, IMPOSSIBLE).astype(log_probs.dtype)
    return jnp.where((jnp.asarray(position) + 1 == limits)[:, None, None], end, log_probs)


def renormalized(log_probs: Array) -> Array:
    """``log_probs [..., vocab]`` such that the probabilities of what is possible sum to 1.

    >>> [round(float(p), 2) for p in jnp.exp(renormalized(jnp.log(jnp.array([0.1, 0.3]))))]
    [0.25, 0.75]
    """
    return jnp.where(log_probs > IMPOSSIBLE / 2, log_probabilities(log_probs), IMPOSSIBLE)


def force_prefix(log_probs: Array, free: Array, position: Array | int, prefix: Array) -> Array:
    """Inside the prefix leaves its next token alone possible, whatever else is forbidden.

    Args:
      log_probs: ``[batch, width, vocab]``, of the model.
      free: ``[batch, width, vocab]``, what holds after the prefix: the same under other constraints.
      position: tokens generated so far.
      prefix: ``[batch, prefix_len]`` ids, ``PAD_ID`` after the end of a shorter one.

    Returns:
      ``[batch, width, vocab]``.

    >>> prefix, even = jnp.array([[4, 0], [3, 3]]), jnp.full((2, 1, 5), -1.5)
    >>> (force_prefix(even, even, 1, prefix) == -1.5).sum(-1).tolist()
    [[5], [1]]
    """
    token = jnp.asarray(prefix).at[:, position].get(mode="fill", fill_value=PAD_ID)[:, None, None]
    forced = jnp.where(jnp.arange(log_probs.shape[-1]) == token, log_probs, IMPOSSIBLE)
    return jnp.where(token == PAD_ID, free, forced)
