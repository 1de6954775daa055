"""Several models that decode as one: each step averages their log-probabilities and their attention."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from attn_jax.decoding.hypotheses import score_dtype
from attn_jax.models.protocol import PAD_ID, Batch, DecodeState, StepOutput

Array = jax.Array


class Ensemble(nn.Module):
    """``log p(token) = mean over the members of log p_m(token)``, behind the decoding protocol.

    Members may be of different families; they share vocabularies. ``memory`` and ``dynamic`` of a state are tuples, one
    entry a member; the attention is the mean over the members that have one. Parameters are those of the members, under
    ``members_0``, ``members_1`` and so on.

    Attributes:
      members: models with the decoding protocol, each an object of its own.
    """

    members: tuple[nn.Module, ...]

    @property
    def config(self) -> Any:
        """That of the first member."""
        return self.members[0].config

    def start(self, batch: Batch, max_len: int, prefix: Array | None = None) -> DecodeState:
        """Each member encodes the source; see `attn_jax.models.protocol.Decoder`."""
        states = [member.start(batch, max_len, prefix) for member in self.members]
        return DecodeState(tuple(state.memory for state in states), tuple(state.dynamic for state in states))

    def fold(self) -> dict[str, Any]:
        """What each member folds; see `attn_jax.models.protocol.Decoder`."""
        return ensemble_params([member.fold() for member in self.members])

    def step(self, tokens: Array, state: DecodeState) -> StepOutput:
        """One step of each member; see `attn_jax.models.protocol.Decoder`."""
        outputs = [
            member.step(tokens, DecodeState(memory, dynamic))
            for member, memory, dynamic in zip(self.members, state.memory, state.dynamic, strict=True)
        ]
        weights = [output.weights for output in outputs if output.weights is not None]
        return StepOutput(
            mean_log_probabilities([output.logits for output in outputs]),
            sum(weights) / len(weights) if weights else None,
            DecodeState(state.memory, tuple(output.state.dynamic for output in outputs)),
        )


def ensemble_params(params: list[Any]) -> dict[str, Any]:
    """The parameters of an `Ensemble` from those of its members, in order."""
    return {f"members_{number}": each for number, each in enumerate(params)}


def mean_log_probabilities(logits: list[Array]) -> Array:
    """``mean_m log softmax(logits_m)``, as logits whose softmax is just that for every token but padding.

    The mean of log-probabilities is not normalised: together the tokens have less than 1. Padding, which no search
    generates, takes the rest, so that a score is the mean of the members' scores.

    Args:
      logits: of the members, each ``[..., vocab]``.

    Returns:
      ``[..., vocab]``.

    >>> even, odd = jnp.log(jnp.array([0.0, 0.5, 0.5])), jnp.log(jnp.array([0.0, 0.9, 0.1]))
    >>> [round(float(p), 4) for p in jax.nn.softmax(mean_log_probabilities([even, odd]))]  # sqrt(0.45), sqrt(0.05)
    [0.1056, 0.6708, 0.2236]
    """
    chex.assert_equal_shape(logits)
    log_probs = sum(jax.nn.log_softmax(each.astype(score_dtype(each))) for each in logits) / len(logits)
    is_padding = jnp.arange(log_probs.shape[-1]) == PAD_ID
    others = jnp.sum(jnp.exp(log_probs), axis=-1, keepdims=True, where=~is_padding)
    rest = jnp.log(jnp.maximum(1.0 - others, jnp.finfo(log_probs.dtype).tiny))
    return jnp.where(is_padding, rest, log_probs)
