"""Forced decoding: what a model thinks of given targets, token by token, and where it looks."""

from __future__ import annotations

import chex
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from attn_jax.decoding.constraints import forbid
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
      top_tokens: ``[batch, (n,) tgt_len, top_k]`` int32, what the model would have written at each step, most likely
        first, ``PAD_ID`` at padding; None unless asked for.
      top_log_probs: of those, 0 at padding.
    """

    token_log_probs: Array
    log_probs: Array
    weights: Array | None = None
    top_tokens: Array | None = None
    top_log_probs: Array | None = None


def forced_decode(
    step: Step, state: DecodeState, tgt: Array, tgt_mask: Array | None = None, *, top_k: int = 0
) -> Forced:
    """``log p(tgt_t | tgt_1 ... tgt_{t-1}, source)`` for given targets, one or several a sentence.

    Args:
      step: ``(tokens [batch, n], state) -> (logits [batch, n, vocab], weights [batch, n, src_len] or None, state)``.
      state: fresh from ``start``, made for at least ``tgt_len`` steps.
      tgt: ``[batch, tgt_len]`` or ``[batch, n, tgt_len]`` ids without ``BOS_ID`` and, normally, with ``EOS_ID``; the
        ``tokens`` of ``Hypotheses`` are such.
      tgt_mask: bool, shaped like ``tgt``. None: everything but ``PAD_ID``.
      top_k: alternatives to return at each step, the most likely tokens that a search could write; 0: none.

    Returns:
      ``Forced``, shaped like ``tgt``.

    Raises:
      ValueError: for a ``top_k`` that is negative or larger than the vocabulary.

    >>> table = jnp.log(jnp.array([0.0, 0.0, 0.5, 0.375, 0.125]))
    >>> step = lambda tokens, state: (jnp.broadcast_to(table, (*tokens.shape, 5)), None, state)
    >>> forced = forced_decode(step, DecodeState(None, jnp.zeros((1, 1))), jnp.array([[4, 2, 0]]), top_k=2)
    >>> jnp.exp(forced.token_log_probs).round(3).tolist(), round(float(jnp.exp(forced.log_probs[0])), 4)
    ([[0.125, 0.5, 1.0]], 0.0625)
    >>> forced.top_tokens.tolist()
    [[[2, 3], [2, 3], [0, 0]]]
    """
    chex.assert_rank(tgt, {2, 3})
    mask = tgt != PAD_ID if tgt_mask is None else tgt_mask
    chex.assert_equal_shape([tgt, mask])
    if tgt.ndim == 2:
        forced = forced_decode(step, state, tgt[:, None], mask[:, None], top_k=top_k)
        return jax.tree.map(lambda leaf: leaf[:, 0], forced)

    def advance(dynamic, inputs):
        last, target, real = inputs  # [batch, n]
        logits, weights, after = step(last, state.replace(dynamic=dynamic))
        log_probs = log_probabilities(logits)
        if not 0 <= top_k <= log_probs.shape[-1]:
            raise ValueError(f"top_k must be within 0 and the {log_probs.shape[-1]} words there are, found {top_k}")
        chosen = jnp.take_along_axis(log_probs, target[..., None], axis=-1, mode="clip")[..., 0]
        best, ids = lax.top_k(forbid(log_probs, 0, min_len=1), top_k) if top_k else (None, None)
        rows = jax.tree.map(lambda leaf: jnp.where(real[..., None], leaf, 0), (weights, ids, best))
        return after.dynamic, (jnp.where(real, chosen, 0), *rows)

    tgt = jnp.moveaxis(tgt.astype(jnp.int32), -1, 0)  # [tgt_len, batch, n]
    fed = jnp.concatenate([jnp.full_like(tgt[:1], BOS_ID), tgt[:-1]])
    inputs = (fed, tgt, jnp.moveaxis(mask, -1, 0))
    _, (token_log_probs, *rows) = lax.scan(advance, widen(state.dynamic, tgt.shape[-1]), inputs)
    weights, top_tokens, top_log_probs = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), rows)
    return Forced(
        token_log_probs=jnp.moveaxis(token_log_probs, 0, -1),
        log_probs=token_log_probs.sum(0),
        weights=weights,
        top_tokens=top_tokens,
        top_log_probs=top_log_probs,
    )
