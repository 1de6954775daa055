"""From scores to contexts: attending, local and monotonic attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Integer, Real

from attn_jax.functional.normalizers import Normalizer, softmax
from attn_jax.functional.products import Einsum

Array = jax.Array | np.ndarray


def attend(
    scores: Float[Array, "batch *heads q_len kv_len"],
    values: Float[Array, "batch kv_len *heads d_v"],
    mask: Bool[Array, " ... #kv_len"] | None = None,
    *,
    normalizer: Normalizer = softmax,
    einsum: Einsum = jnp.einsum,
) -> tuple[Float[Array, "batch q_len *heads d_v"], Float[Array, "batch *heads q_len kv_len"]]:
    """Weights the values, ``context = sum_j weights[j] * values[j]`` with ``weights = normalizer(scores, mask)``.

    Args:
      scores: ``[batch, q_len, kv_len]``, or ``[batch, heads, q_len, kv_len]``.
      values: ``[batch, kv_len, d_v]``, or ``[batch, kv_len, heads, d_v]``.
      mask: bool, broadcastable to ``scores``, True = may attend (see `masks.expand_mask`); None attends everywhere.
      normalizer: one of `normalizers.NORMALIZERS`, or any function of scores and mask.
      einsum: see `attn_jax.functional.products`.

    Returns:
      ``context [batch, q_len, d_v]``, or ``[batch, q_len, heads, d_v]``, and the weights, shaped like the scores. A
      query that may attend to nothing gets a context of zeros.

    >>> scores, values = jnp.array([[[0.9, 0.55, 0.95]]]), jnp.array([[[0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]])
    >>> context, weights = attend(scores, values)
    >>> [f"{value:.5f}" for value in context[0, 0]]
    ['0.65916', '0.34084']
    """
    weights = normalizer(scores, mask)
    return einsum("bhqk,bkhd->bqhd" if weights.ndim == 4 else "bqk,bkd->bqd", weights, values), weights


# ------------------------------------------------------------------------------------------------------ local attention


def predicted_centers(
    logits: Float[Array, "batch q_len"], lengths: Integer[Array, " batch"] | Integer[Array, "#batch #q_len"]
) -> Float[Array, "batch q_len"]:
    """Where local-p attention looks, ``length * sigmoid(logit)``.

    Args:
      logits: ``[batch, q_len]``, the paper's ``v . tanh(W h)``.
      lengths: ``[batch]``, real source lengths; or ``[batch, q_len]``, for every query its own.

    Returns:
      ``[batch, q_len]``, real-valued source positions between 0 and the length.

    References:
      Luong, Pham & Manning, 2015, equation 9, arXiv:1508.04025.

    >>> predicted_centers(jnp.array([[0.0]]), lengths=jnp.array([7])).tolist()
    [[3.5]]
    """
    return (lengths[:, None] if lengths.ndim == 1 else lengths) * jax.nn.sigmoid(logits)


def local_window_mask(
    centers: Real[Array, "batch q_len"], kv_len: int, window: int
) -> Bool[Array, "batch q_len {kv_len}"]:
    """True within ``window`` positions of the centre on either side: ``|j - center| <= window``.

    In local-m attention the centre of step t is t itself, in local-p it is predicted. Combine it with the padding mask.

    Args:
      centers: ``[batch, q_len]``.
      kv_len: length of the keys.
      window: the paper's D, positions; 10 there.

    Returns:
      ``[batch, q_len, kv_len]`` bool.

    Raises:
      ValueError: if ``window`` is negative.

    References:
      Luong, Pham & Manning, 2015, section 3.2, arXiv:1508.04025.

    >>> local_window_mask(jnp.array([[0.0, 2.4]]), kv_len=5, window=1).astype(int).tolist()
    [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]]
    """
    if window < 0:
        raise ValueError(f"window must not be negative, found {window}; 0 looks at the centre only")
    return jnp.abs(jnp.arange(kv_len) - centers[..., None]) <= window


def gaussian_factor(
    centers: Float[Array, "batch q_len"], kv_len: int, window: int
) -> Float[Array, "batch q_len {kv_len}"]:
    """What local-p multiplies its weights by, ``exp(-(j - center)^2 / (2 sigma^2))`` with ``sigma = window / 2``.

    The weights are multiplied after the softmax and not normalised again; through this factor the centre is learnt.

    Args:
      centers: ``[batch, q_len]``, real-valued.
      kv_len: length of the keys.
      window: the paper's D, positions.

    Returns:
      ``[batch, q_len, kv_len]``.

    Raises:
      ValueError: if ``window`` is not positive.

    References:
      Luong, Pham & Manning, 2015, equation 10, arXiv:1508.04025.

    >>> [f"{factor:.4f}" for factor in gaussian_factor(jnp.array([[1.0]]), kv_len=3, window=2)[0, 0]]
    ['0.6065', '1.0000', '0.6065']
    """
    if window <= 0:
        raise ValueError(f"window must be positive, found {window}: half of it is the Gaussian's standard deviation")
    return jnp.exp(-0.5 * ((jnp.arange(kv_len) - centers[..., None]) / (window / 2)) ** 2)


# -------------------------------------------------------------------------------------------------- monotonic attention


def monotonic_step(
    probabilities: Float[Array, "*batch kv_len"], previous: Float[Array, "*batch kv_len"], hard: bool = False
) -> Float[Array, "*batch kv_len"]:
    """Expected monotonic alignment of one output step.

    The reader starts where it last stopped, walks on, and stops at position j with probability ``p[j]``:
    ``weights[j] = p[j] * reached[j]`` with ``reached[j] = (1 - p[j - 1]) * reached[j - 1] + previous[j]``. This linear
    recurrence is solved for all positions at once by an associative scan, which unlike the paper's closed form divides
    by nothing. There is no module of it in `attn_jax.nn`: mechanisms there keep nothing from one step to the next, and
    this one needs the alignment of the step before.

    Args:
      probabilities: ``[..., kv_len]``, of stopping; 0 at padding. Usually ``sigmoid(scores)``, in training with noise
        added to the scores, so that they learn to be decided.
      previous: ``[..., kv_len]``, the weights of the step before; at first 1 at position 0 and 0 elsewhere.
      hard: stops at the first probability above 1/2, for decoding: the weights are one-hot if ``previous`` is.

    Returns:
      ``[..., kv_len]``. A row sums to at most 1: the rest is the probability to have walked past the end, and all later
      steps see nothing of it.

    References:
      Raffel et al., Online and Linear-Time Attention by Enforcing Monotonic Alignments, 2017, section 2.3 and
      appendix C, arXiv:1704.00784.

    >>> start = jnp.array([1.0, 0.0, 0.0])
    >>> monotonic_step(jnp.array([0.5, 0.5, 0.5]), start).tolist()
    [0.5, 0.25, 0.125]
    >>> monotonic_step(jnp.array([0.4, 0.9, 0.9]), start, hard=True).tolist()
    [0.0, 1.0, 0.0]
    """
    if hard:
        probabilities = (probabilities > 0.5).astype(probabilities.dtype)
    passed = jnp.pad(1 - probabilities[..., :-1], [(0, 0)] * (probabilities.ndim - 1) + [(1, 0)])  # 1 - p[j - 1]

    def compose(first, second):  # of two maps x -> factor * x + summand
        return first[0] * second[0], second[0] * first[1] + second[1]

    _, reached = lax.associative_scan(compose, (passed, previous), axis=-1)
    return probabilities * reached


def monotonic_attention(
    probabilities: Float[Array, "batch q_len kv_len"],
    mask: Bool[Array, " ... #kv_len"] | None = None,
    hard: bool = False,
) -> Float[Array, "batch q_len kv_len"]:
    """Monotonic alignment of a whole output sequence, `monotonic_step` after `monotonic_step` from position 0.

    Args:
      probabilities: ``[batch, q_len, kv_len]``, of stopping.
      mask: bool, broadcastable to ``probabilities``, True = may stop here; None: everywhere.
      hard: stops at the first probability above 1/2.

    Returns:
      ``[batch, q_len, kv_len]``, rows that sum to at most 1.

    References:
      Raffel et al., 2017, section 2.3, arXiv:1704.00784.

    >>> monotonic_attention(jnp.full((1, 2, 3), 0.5))[0].tolist()
    [[0.5, 0.25, 0.125], [0.25, 0.25, 0.1875]]
    """
    if mask is not None:
        probabilities = jnp.where(mask, probabilities, 0.0)
    start = jnp.zeros_like(probabilities[:, 0]).at[:, 0].set(1.0)

    def step(previous, now):
        weights = monotonic_step(now, previous, hard)
        return weights, weights

    return lax.scan(step, start, probabilities.swapaxes(0, 1))[1].swapaxes(0, 1)
