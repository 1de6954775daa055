"""Where a token stands: sinusoidal position encodings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

Array = jax.Array | np.ndarray


def sinusoidal_positions(
    length: int, d_model: int, interleaved: bool = True, inclusive: bool = False
) -> Float[Array, "{length} {d_model}"]:
    """Sinusoidal encodings, ``sin(pos / 10000^(2i / d_model))`` and the cosine of the same angle.

    Args:
      length: number of positions, counted from 0.
      d_model: width, even.
      interleaved: True puts sine and cosine of a frequency side by side, as in the paper; False puts all sines in the
        first half and all cosines in the second, as Marian does.
      inclusive: the lowest frequency is 1 / 10000 itself, ``10000^(i / (d_model / 2 - 1))`` in place of the paper's
        power, as in Marian's own code; the Hugging Face form of Marian has the paper's.

    Returns:
      ``[length, d_model]``.

    Raises:
      ValueError: if ``d_model`` is odd or not positive; and for 2 if ``inclusive``, which needs two frequencies.

    References:
      Vaswani et al., 2017, section 3.5, arXiv:1706.03762. Junczys-Dowmunt et al., Marian, 2018, arXiv:1804.00344.

    >>> [f"{value:.4f}" for value in sinusoidal_positions(2, 4)[1]]
    ['0.8415', '0.5403', '0.0100', '0.9999']
    >>> [f"{value:.4f}" for value in sinusoidal_positions(2, 4, interleaved=False)[1]]
    ['0.8415', '0.0100', '0.5403', '0.9999']
    >>> [f"{value:.4f}" for value in sinusoidal_positions(2, 4, interleaved=False, inclusive=True)[1]]
    ['0.8415', '0.0001', '0.5403', '1.0000']
    """
    # In float64 on the host: a float32 angle is off by 1e-4 at position 1,000.
    angles = np.arange(length)[:, None] * _frequencies(d_model, inclusive)
    return jnp.asarray(_waves(np, angles, interleaved), dtype=float)


def sinusoidal_encoding(
    position: Integer[Array, "*batch"], d_model: int, interleaved: bool = True, inclusive: bool = False
) -> Float[Array, "*batch {d_model}"]:
    """The rows ``position`` of `sinusoidal_positions`, for positions that are known as a program runs.

    Args:
      position: whole numbers, from 0.
      d_model: see `sinusoidal_positions`, as the others.
      interleaved: order of sines and cosines.
      inclusive: whether the lowest frequency is 1 / 10000.

    Returns:
      ``[..., d_model]``; in float32 off by ``1e-7`` times the position.

    >>> [f"{value:.4f}" for value in sinusoidal_encoding(jnp.array(1), 4)]
    ['0.8415', '0.5403', '0.0100', '0.9999']
    """
    angles = position[..., None] * jnp.asarray(_frequencies(d_model, inclusive), dtype=float)
    return _waves(jnp, angles, interleaved)


def _frequencies(d_model: int, inclusive: bool) -> np.ndarray:
    if d_model < (4 if inclusive else 2) or d_model % 2:
        raise ValueError(f"sinusoidal positions need an even d_model, half sines and half cosines; found {d_model}")
    count = d_model // 2
    return 10000.0 ** -(np.arange(count) / (count - inclusive))


def _waves(numpy: Any, angles: Array, interleaved: bool) -> Array:
    pair = (numpy.sin(angles), numpy.cos(angles))
    if not interleaved:
        return numpy.concatenate(pair, axis=-1)
    return numpy.stack(pair, axis=-1).reshape(*angles.shape[:-1], -1)
