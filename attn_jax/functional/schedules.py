"""How often the decoder is fed the true previous token: the probability of teacher forcing as ``step -> value``.

A schedule is a pure function of a step count (epochs or updates, as the caller counts), which may be traced, so that a
change of the probability never recompiles anything.

References:
  Bengio et al., Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks, 2015, section 2.4,
  arXiv:1506.03099 (linear, exponential and inverse sigmoid decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Real

Array = jax.Array | np.ndarray
Schedule = Callable[[Real[ArrayLike, "..."]], Float[Array, "..."]]


def constant_schedule(value: int | float = 1.0) -> Schedule:
    """The same probability at every step; 1 is pure teacher forcing.

    Args:
      value: in [0, 1].

    Returns:
      ``step -> probability``.

    Raises:
      ValueError: if ``value`` is not a probability.

    >>> float(constant_schedule(0.5)(1000))
    0.5
    """
    _check_probability("value", value)
    return lambda step: jnp.full(jnp.shape(step), value, float)


def linear_schedule(steps: int, start: int | float = 1.0, end: int | float = 0.0) -> Schedule:
    """``start + (end - start) * step / steps``, and ``end`` afterwards.

    Args:
      steps: how many steps the way takes.
      start: probability at step 0.
      end: probability from ``steps`` on.

    Returns:
      ``step -> probability``.

    Raises:
      ValueError: if ``steps`` is not positive, or ``start`` or ``end`` no probability.

    >>> float(linear_schedule(steps=100)(25))
    0.75
    """
    _check_way(steps, start, end)
    return lambda step: start + (end - start) * _progress(step, steps)


def exponential_schedule(rate: int | float) -> Schedule:
    """``rate ** step``.

    Args:
      rate: what is left after each step, in (0, 1].

    Returns:
      ``step -> probability``.

    Raises:
      ValueError: if ``rate`` is not in (0, 1].

    >>> float(exponential_schedule(rate=0.5)(3))
    0.125
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], found {rate}; 0.97 halves the probability every 23 steps")
    return lambda step: jnp.asarray(rate, float) ** jnp.asarray(step)


def inverse_sigmoid_schedule(k: int | float) -> Schedule:
    """``k / (k + exp(step / k))``: a plateau near 1, then a fall around step ``k log k``.

    Args:
      k: at least 1; the larger, the later and slower the fall.

    Returns:
      ``step -> probability``.

    Raises:
      ValueError: if ``k`` is less than 1.

    >>> f"{inverse_sigmoid_schedule(k=10)(0):.4f}"
    '0.9091'
    """
    if not k >= 1:
        raise ValueError(f"k must be at least 1, found {k}; 10 falls around step 23")
    # The same number as a sigmoid, which cannot overflow.
    return lambda step: jax.nn.sigmoid(math.log(k) - jnp.asarray(step, float) / k)


def cosine_schedule(steps: int, start: int | float = 1.0, end: int | float = 0.0) -> Schedule:
    """``end + (start - end) * (1 + cos(pi * step / steps)) / 2``, and ``end`` afterwards.

    Args:
      steps: how many steps the way takes.
      start: probability at step 0.
      end: probability from ``steps`` on.

    Returns:
      ``step -> probability``.

    Raises:
      ValueError: if ``steps`` is not positive, or ``start`` or ``end`` no probability.

    >>> f"{cosine_schedule(steps=100)(25):.4f}"
    '0.8536'
    """
    _check_way(steps, start, end)
    return lambda step: end + (start - end) * (1 + jnp.cos(jnp.pi * _progress(step, steps))) / 2


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant_schedule,
    "linear": linear_schedule,
    "exponential": exponential_schedule,
    "inverse_sigmoid": inverse_sigmoid_schedule,
    "cosine": cosine_schedule,
}
"""The makers of schedules by the name that a config gives them."""


def _progress(step: int | Array, steps: int) -> Array:
    return jnp.clip(jnp.asarray(step, float) / steps, 0.0, 1.0)


def _check_way(steps: int, start: int | float, end: int | float) -> None:
    if steps <= 0:
        raise ValueError(f"steps must be positive, found {steps}")
    _check_probability("start", start)
    _check_probability("end", end)


def _check_probability(name: str, value: int | float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], found {value}")
