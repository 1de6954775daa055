"""Boolean masks, True = may attend: padding, look-ahead, and both together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Integer

Array = jax.Array | np.ndarray


def padding_mask(lengths: Integer[Array, " batch"], max_len: int) -> Bool[Array, "batch {max_len}"]:
    """True at the real positions of sequences of these lengths.

    Args:
      lengths: ``[batch]`` integers.
      max_len: the padded length.

    Returns:
      ``[batch, max_len]`` bool.

    Example:
      >>> padding_mask(jnp.array([1, 3]), 3).tolist()
      [[True, False, False], [True, True, True]]
    """
    return jnp.arange(max_len) < jnp.asarray(lengths)[:, None]


def causal_mask(
    q_len: int, kv_len: int | None = None, offset: Integer[ArrayLike, ""] = 0
) -> Bool[Array, "q_len kv_len"]:
    """True where a query may look: at its own position and those before it.

    Args:
      q_len: number of queries.
      kv_len: number of keys; None: ``q_len``.
      offset: position of the first query among the keys (a decoder with a cache).

    Returns:
      ``[q_len, kv_len]`` bool.

    References:
      Vaswani et al., 2017, section 3.2.3, arXiv:1706.03762.

    Example:
      >>> causal_mask(2).tolist()
      [[True, False], [True, True]]
    """
    return jnp.arange(kv_len or q_len) <= jnp.arange(q_len)[:, None] + offset


def expand_mask(
    mask: Bool[Array, "batch kv_len"] | Bool[Array, "batch q_len kv_len"],
) -> Bool[Array, " batch #q_len kv_len"]:
    """Gives a mask of keys ``[batch, kv_len]`` its query axis; a full mask ``[batch, q_len, kv_len]`` stays.

    Example:
      >>> expand_mask(jnp.ones((2, 5), bool)).shape
      (2, 1, 5)
    """
    return mask[:, None, :] if mask.ndim == 2 else mask


def combine_masks(*masks: Bool[Array, "*#shape"] | None) -> Bool[Array, "*shape"] | None:
    """May attend where every mask allows it; None allows everything.

    Args:
      *masks: bool arrays that broadcast together, or None.

    Returns:
      Their conjunction, or None if all are None.

    Example:
      >>> combine_masks(expand_mask(jnp.array([[True, True, False]])), causal_mask(3)).tolist()
      [[[True, False, False], [True, True, False], [True, True, False]]]
    """
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    combined = given[0]
    for mask in given[1:]:
        combined = combined & mask
    return combined
