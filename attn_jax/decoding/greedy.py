"""Greedy decoding: the most likely token at each step."""

from __future__ import annotations

from typing import Any

import jax

from attn_jax.decoding import topk
from attn_jax.decoding.hypotheses import Hypotheses, Step
from attn_jax.decoding.rollout import rollout
from attn_jax.models.protocol import DecodeState

Array = jax.Array


def greedy(
    step: Step,
    state: DecodeState,
    *,
    max_len: int,
    **rules: Any,
) -> Hypotheses:
    """``token_t = argmax p(token | token_1 ... token_{t-1}, source)``, until the end of sentence.

    Gives what ``beam_search(..., beam=1)`` gives and is faster: no state is gathered and no pointers are followed. The
    lowest id wins a tie.

    Args:
      step: ``(tokens [batch, 1], state) -> (logits [batch, 1, vocab], weights [batch, 1, src_len] or None, state)``.
      state: fresh from ``start``, made for at least ``max_len`` steps.
      max_len: most tokens of a hypothesis, with end of sentence.
      **rules: scores, lengths and constraints, see `attn_jax.decoding.rules.Rules`.

    Returns:
      ``Hypotheses``, ``[batch, 1, ...]``.

    Raises:
      ValueError: for numbers out of range.

    >>> import jax.numpy as jnp
    >>> table = jnp.log(jnp.array([[0, 0, 0, 0.6, 0.4], [0, 0, 0.3, 0.3, 0.4], [0, 0, 0.9, 0, 0.1]]))
    >>> row = jnp.array([0, 0, 0, 1, 2])  # after a 3: 0.3 to end; after a 4: 0.9
    >>> step = lambda tokens, state: (table[row[tokens]], None, state)
    >>> found = greedy(step, DecodeState(None, jnp.zeros((1, 1))), max_len=4)
    >>> found.tokens[0, 0].tolist(), round(float(jnp.exp(found.log_probs[0, 0])), 3)
    ([3, 4, 2, 0], 0.216)
    """
    return rollout(step, state, lambda log_probs, position: topk.argmax(log_probs), max_len=max_len, **rules)
