"""Forced decoding: what a model thinks of given targets, token by token, and where it looks."""

from __future__ import annotations

import chex
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from attn_jax.decoding.hypotheses import Step, log_probabilities, widen
from attn_jax.models.protocol import BOS_ID, PAD_ID, DecodeState

Array = jax.Array


@flax.struct.dataclass
class Forced:
    """Log-probabilities and attention of given targets.

    Attributes:
      token_log_probs: ``[batch, (n,) tgt_len]`` in nats, 0 at padding.
      log_probs: ``[batch, (n)]``, their sum over a target.
      weights: ``[batch, (n,) tgt_len, src_len]``, row t is the attention that predicted token t, 0 at padding; or None.
    """

    token_log_probs: Array
    log_probs: Array
    weights: Array | None = None


def forced_decode(step: Step, state: DecodeState, tgt: Array, tgt_mask: Array | None = None) -> Forced:
    """``log p(tgt_t | tgt_1 ... tgt_{t-1}, source)`` for given targets, one or several a sentence.

    Args:
      step: ``(tokens [batch, n], state) -> (logits [batch, n, vocab], weights [batch, n, src_len] or None, state)``.
      state: fresh from ``start``, made for at least ``tgt_len`` steps.
      tgt: ``[batch, tgt_len]`` or ``[batch, n, tgt_len]`` ids without ``BOS_ID`` and, normally, with ``EOS_ID``; the
        ``tokens`` of ``Hypotheses`` are such.
      tgt_mask: bool, shaped like ``tgt``. None: everything but ``PAD_ID``.

    Returns:
      ``Forced``, shaped like ``tgt``.

    >>> table = jnp.log(jnp.array([0.0, 0.0, 0.5, 0.25, 0.25]))
    >>> step = lambda tokens, state: (jnp.broadcast_to(table, (*tokens.shape, 5)), None, state)
    >>> forced = forced_decode(step, DecodeState(None, jnp.zeros((1, 1))), jnp.array([[4, 2, 0]]))
    >>> jnp.exp(forced.token_log_probs).round(3).tolist(), round(float(jnp.exp(forced.log_probs[0])), 3)
    ([[0.25, 0.5, 1.0]], 0.125)
    """
    chex.assert_rank(tgt, {2, 3})
    mask = tgt != PAD_ID if tgt_mask is None else tgt_mask
    chex.assert_equal_shape([tgt, mask])
    if tgt.ndim == 2:
        return jax.tree.map(lambda leaf: leaf[:, 0], forced_decode(step, state, tgt[:, None], mask[:, None]))

    def advance(dynamic, inputs):
        last, target, real = inputs  # [batch, n]
        logits, weights, after = step(last, state.replace(dynamic=dynamic))
        chosen = jnp.take_along_axis(log_probabilities(logits), target[..., None], axis=-1, mode="clip")[..., 0]
        weights = None if weights is None else jnp.where(real[..., None], weights, 0)
        return after.dynamic, (jnp.where(real, chosen, 0), weights)

    tgt = jnp.moveaxis(tgt.astype(jnp.int32), -1, 0)  # [tgt_len, batch, n]
    fed = jnp.concatenate([jnp.full_like(tgt[:1], BOS_ID), tgt[:-1]])
    inputs = (fed, tgt, jnp.moveaxis(mask, -1, 0))
    _, (token_log_probs, weights) = lax.scan(advance, widen(state.dynamic, tgt.shape[-1]), inputs)
    return Forced(
        token_log_probs=jnp.moveaxis(token_log_probs, 0, -1),
        log_probs=token_log_probs.sum(0),
        weights=None if weights is None else jnp.moveaxis(weights, 0, 2),
    )
