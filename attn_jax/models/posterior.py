"""Posterior attention: which source word a target word comes from, once it is known.

Attention is computed before a word is: it is a prior over the source words. Bayes' rule with what the decoder would
have predicted, had it looked at one of them alone, gives the posterior.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from attn_jax.functional.normalizers import softmax
from attn_jax.functional.products import PRECISIONS
from attn_jax.models.protocol import Batch, check_target, shift_right
from attn_jax.models.seq2seq import Seq2Seq
from attn_jax.nn.attention import Attention, Memory

Array = jax.Array | np.ndarray


class _OneWordEach(Attention):
    """Looks at every source word alone, as if each had a query of its own: ``context [batch, kv_len, d]``."""

    mechanism: Attention | None = None

    @property
    def mixes_values(self) -> bool:
        return self.mechanism.mixes_values

    def attend_fn(self, params: Any, query: Array, memory: Memory, einsum: Any = None) -> tuple[Array, None]:
        del query
        return self.mechanism.context_of_each(params, memory, einsum), None

    def context_dim(self, value_dim: int) -> int:
        return self.mechanism.context_dim(value_dim)


def posterior_attention(model: Seq2Seq, params: Any, batch: Batch) -> Float[Array, "batch tgt_len src_len"]:
    """``p(j | y_i) = a_ij p(y_i | c_i = v_j) / sum_k a_ik p(y_i | c_i = v_k)``, for given pairs.

    ``a_ij`` is the attention that predicts target word i (its mean over heads), and ``p(y_i | c_i = v_j)`` the
    probability of that word if all of the attention (of every head) had been on source word j. The states before it
    are those of forced decoding, so only one step is changed at a time. It is a reading: the model itself mixes values,
    not predictions. It costs the output layer ``src_len`` times for each target word.

    Args:
      model: a recurrent encoder-decoder of words, with attention.
      params: its parameters.
      batch: with targets.

    Returns:
      Weights that sum to 1 over the real source positions; 0 for a sentence without any. Rows of target padding mean
      nothing.

    Raises:
      ValueError: if the model has no attention, or continuous targets.

    References:
      Shankar and Sarawagi, Posterior attention models for sequence to sequence learning (2019), section 3, where the
      posterior takes part in training; here it is read off a model that was trained in the usual way.
    """
    config = model.config
    if config.attention is None or not config.tgt_vocab_size:
        raise ValueError("posterior attention needs a model of words with attention")
    check_target(batch, rank=2)
    bound, einsum = model.bind({"params": params}), PRECISIONS[config.precision]
    keys, carry = bound.encode(batch)
    memory, state = bound.decoder.start(keys, batch.src_mask, carry)
    weights = bound.decoder.raw_params()
    decoder = bound.decoder.clone(parent=None)
    looking = decoder.clone(attention=_OneWordEach(mechanism=decoder.attention))
    kernel, bias, vocab_first = bound.output_weights()

    def step(state: Any, inputs: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        embedded, words = inputs
        x = decoder.project_input(einsum, weights, embedded)

        def run(decoder: Any) -> tuple[Any, Any]:
            state_after, output = decoder.step_fn(einsum, weights, memory, state, x)
            return state_after, decoder.complete(einsum, weights, memory, output, embedded, None)

        def log_likelihood(features: Array) -> Array:  # of one source position, so that few logits exist at a time
            logits = einsum("bi,oi->bo" if vocab_first else "bi,io->bo", features, kernel) + bias
            chosen = jnp.take_along_axis(logits, words[:, None], axis=-1)[:, 0]
            return chosen - jax.nn.logsumexp(logits, axis=-1)

        (after, usual), (_, each) = run(decoder), run(looking)
        likelihoods = jnp.swapaxes(jax.lax.map(log_likelihood, jnp.swapaxes(each.features, 0, 1)), 0, 1)
        attention = usual.weights[..., 0, :]
        attention = attention.mean(axis=1) if attention.ndim == 3 else attention
        return after, (attention, likelihoods)

    by_time = jnp.swapaxes(bound.tgt_embed(shift_right(batch.tgt)), 0, 1)[:, :, None], jnp.swapaxes(batch.tgt, 0, 1)
    _, (prior, log_likelihood) = jax.lax.scan(step, state, by_time)
    scores = jnp.log(jnp.where(prior > 0, prior, 1)) + log_likelihood
    return jnp.swapaxes(softmax(scores, prior > 0), 0, 1)
