"""Where a token stands: sinusoidal position encodings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Array = jax.Array | np.ndarray


def sinusoidal_positions(length: int, d_model: int, interleaved: bool = True) -> Float[Array, "{length} {d_model}"]:
    """Sinusoidal encodings, ``sin(pos / 10000^(2i / d_model))`` and the cosine of the same angle.

    Args:
      length: number of positions, counted from 0.
      d_model: width, even.
      interleaved: True puts sine and cosine of a frequency side by side, as in the paper; False puts all sines in the
        first half and all cosines in the second, as Marian does.

    Returns:
      ``[length, d_model]``.

    Raises:
      ValueError: if ``d_model`` is odd or not positive.

    References:
      Vaswani et al., 2017, section 3.5, arXiv:1706.03762. Junczys-Dowmunt et al., Marian, 2018, arXiv:1804.00344.

    >>> [f"{value:.4f}" for value in sinusoidal_positions(2, 4)[1]]
    ['0.8415', '0.5403', '0.0100', '0.9999']
    >>> [f"{value:.4f}" for value in sinusoidal_positions(2, 4, interleaved=False)[1]]
    ['0.8415', '0.0100', '0.5403', '0.9999']
    """
    if d_model < 2 or d_model % 2:
        raise ValueError(f"sinusoidal positions need an even d_model, half sines and half cosines; found {d_model}")
    # In float64 on the host: a float32 angle is off by 1e-4 at position 1,000.
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, d_model, 2) / d_model)  # [length, d_model / 2]
    pair = (np.sin(angles), np.cos(angles))
    encodings = np.stack(pair, axis=-1).reshape(length, d_model) if interleaved else np.concatenate(pair, axis=-1)
    return jnp.asarray(encodings, dtype=float)
