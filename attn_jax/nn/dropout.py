"""Inverted dropout (Srivastava et al., 2014), with random bytes instead of random floats.

Drawing the random numbers is what dropout costs: a fifth of a Transformer's training step on CPU, with 32 bits for each
unit. A byte decides as well whether a unit stays, so four units share a word.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from attn_jax.nn.settings import check_share

Array = jax.Array | np.ndarray


def dropout_mask(rng: Array, rate: float, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Inverted dropout as a factor: 0 with probability ``p``, else ``1 / (1 - p)``, so that its mean is 1.

    Args:
      rng: a key.
      rate: the share dropped, in [0, 1); ``p`` is the nearest multiple of 1/256, and at least 1/256 unless it is 0.
      shape: of the result.
      dtype: of the result.

    Raises:
      ValueError: for a rate outside [0, 1).

    Example:
      >>> sorted(set(dropout_mask(jax.random.key(0), 0.5, (8, 8)).ravel().tolist()))
      [0.0, 2.0]
    """
    check_share("rate", rate)
    dropped = min(max(round(256 * rate), rate > 0), 255)
    words = jax.random.bits(rng, (*shape[:-1], -(-shape[-1] // 4)), jnp.uint32)
    draws = jnp.concatenate([(words >> shift) & 255 for shift in (0, 8, 16, 24)], axis=-1)[..., : shape[-1]]
    return jnp.where(draws < dropped, 0, 256 / (256 - dropped)).astype(dtype)


class Dropout(nn.Module):
    """Dropout as a module; its randomness is the ``dropout`` stream.

    Attributes:
      rate: the share dropped.
      broadcast_dims: axes along which all units share one draw.
    """

    rate: float
    broadcast_dims: tuple[int, ...] = ()

    def __post_init__(self):
        """Checks the range."""
        check_share("rate", self.rate)
        super().__post_init__()

    def __call__(self, inputs: Float[Array, "*shape"], *, deterministic: bool) -> Float[Array, "*shape"]:
        """Drops units of ``inputs``, or none if ``deterministic``."""
        if deterministic or not self.rate:
            return inputs
        shape = tuple(1 if axis in self.broadcast_dims else size for axis, size in enumerate(inputs.shape))
        return inputs * dropout_mask(self.make_rng("dropout"), self.rate, shape, inputs.dtype)
