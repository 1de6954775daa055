"""Sampling from a model: temperature, top-k, top-p, min-p; the draws of a sentence do not depend on its batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attn_jax.decoding import topk
from attn_jax.decoding.hypotheses import IMPOSSIBLE, Hypotheses, Step, batch_size
from attn_jax.decoding.rollout import rollout
from attn_jax.models.protocol import DecodeState
from attn_jax.search_config import check_truncation

Array = jax.Array


def sample(
    step: Step,
    state: DecodeState,
    rng: Array,
    *,
    max_len: int,
    sentence_ids: Array | None = None,
    num_samples: int = 1,
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | Array | None = None,
    min_p: float | Array | None = None,
    **rules: Any,
) -> Hypotheses:
    """Draws ``num_samples`` hypotheses a sentence, ``token ~ softmax(truncate(log_probs / temperature))``.

    The noise of a draw is a function of ``rng``, the sentence's id, the number of the sample and the position alone: a
    sentence gets the same samples in any batch, and its first ones do not depend on how many are drawn.

    Args:
      step: ``(tokens [batch, num_samples], state) -> (logits, weights or None, state)``.
      state: fresh from ``start``, made for at least ``max_len`` steps.
      rng: PRNG key.
      max_len: most tokens of a hypothesis, with end of sentence.
      sentence_ids: ``[batch]`` int, such as the number of the line in its file. None: the row in this batch.
      num_samples: hypotheses a sentence.
      temperature: above 0; below 1 sharpens, above 1 flattens.
      top_k: keep the ``top_k`` most likely tokens.
      top_p: keep the fewest most likely tokens that have probability ``top_p`` together, within (0, 1].
      min_p: keep tokens with at least ``min_p`` times the probability of the most likely one, within [0, 1].
      **rules: scores, lengths and constraints, see `attn_jax.decoding.rules.Rules`.

    Returns:
      ``Hypotheses``, ``[batch, num_samples, ...]`` in the order of the draws. ``log_probs`` are those of the model, not
      of the truncated distribution, and so comparable with other searches.

    Raises:
      ValueError: for numbers out of range.

    References:
      top-k: Fan et al. 2018, section 5.4, arXiv:1805.04833. top-p: Holtzman et al. 2020, section 3.1, arXiv:1904.09751.
      min-p: Nguyen et al. 2024, section 3, arXiv:2407.01082.

    >>> step = lambda tokens, state: (jnp.log(jnp.full((*tokens.shape, 5), 0.2)), None, state)
    >>> draw = lambda ids: sample(step, DecodeState(None, jnp.zeros((len(ids), 1))), jax.random.key(0), max_len=4,
    ...                           sentence_ids=jnp.array(ids)).tokens[:, 0].tolist()
    >>> draw([7, 8])[1] == draw([8])[0]
    True
    """
    check_truncation(temperature, top_k, top_p, min_p)
    if sentence_ids is None:
        sentence_ids = jnp.arange(batch_size(state))
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    of_sentence = fold(rng, sentence_ids)  # [batch]
    of_sample = jax.vmap(fold, in_axes=(0, None))(of_sentence, jnp.arange(num_samples))  # [batch, num_samples]

    def choose(log_probs: Array, position: Array) -> Array:
        def gumbel(key: Array) -> Array:
            return jax.random.gumbel(jax.random.fold_in(key, position), log_probs.shape[-1:], log_probs.dtype)

        kept = truncate(tempered(log_probs, temperature), top_k=top_k, top_p=top_p, min_p=min_p)
        return topk.argmax(kept + jax.vmap(jax.vmap(gumbel))(of_sample))

    return rollout(step, state, choose, max_len=max_len, width=num_samples, **rules)


def tempered(log_probs: Array, temperature: float | Array) -> Array:
    """``log_probs / temperature`` up to a constant: the most likely token has 0, what was impossible still is.

    So no temperature draws what a constraint forbids, or lets what is cut off beat what is kept.

    Args:
      log_probs: ``[..., vocab]``, ``IMPOSSIBLE`` for what must not be drawn.
      temperature: above 0.

    >>> [tempered(jnp.array([-2.0, -3.0, IMPOSSIBLE]), t).tolist() for t in (0.5, 1e9)]
    [[0.0, -2.0, -1000000000.0], [0.0, -9.999999717180685e-10, -1000000000.0]]
    """
    behind = log_probs - log_probs.max(-1, keepdims=True)
    temperature = jnp.maximum(temperature, jnp.finfo(log_probs.dtype).tiny)
    return jnp.where(log_probs > IMPOSSIBLE / 2, behind / temperature, IMPOSSIBLE)


def truncate(
    logits: Array, *, top_k: int | None = None, top_p: float | Array | None = None, min_p: float | Array | None = None
) -> Array:
    """Makes unlikely tokens impossible: first all but the ``top_k``, of what is left all but ``top_p``, then ``min_p``.

    Tokens that tie with the last one kept are kept.

    Args:
      logits: ``[..., vocab]``.
      top_k: as in ``sample``.
      top_p: as in ``sample``.
      min_p: as in ``sample``.

    Returns:
      ``[..., vocab]``, ``IMPOSSIBLE`` where cut.

    >>> logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    >>> [(truncate(logits, **cut) > IMPOSSIBLE).sum().item() for cut in ({"top_k": 1}, {"top_p": 0.7}, {"min_p": 0.25})]
    [1, 2, 3]
    """
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, IMPOSSIBLE, logits)
    if top_p is not None:
        falling = -jnp.sort(-logits, axis=-1)
        probs = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs  # probability of all that is more likely: 0 for the first
        smallest = jnp.min(jnp.where(before < top_p, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, IMPOSSIBLE, logits)
    if min_p is not None:
        smallest = logits.max(-1, keepdims=True) + jnp.log(jnp.maximum(min_p, jnp.finfo(logits.dtype).tiny))
        logits = jnp.where(logits < smallest, IMPOSSIBLE, logits)
    return logits
