"""Searches over the one decoding protocol (``attn_jax.models.protocol``): no search knows a model.

A jitted entry point closes over the model and compiles once for each shape::

    @jax.jit
    def translate(variables, batch):
        state = model.apply(variables, batch, max_len, method="start")
        step = partial(model.apply, variables, method="step")
        return beam_search(step, state, max_len=max_len, beam=5, active=batch.src_mask.any(-1))

``variables`` are ``{"params": params}``, or, for fewer products a step, `attn_jax.search_variables`.
"""

from attn_jax.decoding.beam import beam_search
from attn_jax.decoding.ensemble import Ensemble, ensemble_params
from attn_jax.decoding.forced import Forced, forced_decode
from attn_jax.decoding.greedy import greedy
from attn_jax.decoding.history import BeamNode, BeamTree, beam_nodes
from attn_jax.decoding.hypotheses import IMPOSSIBLE, Hypotheses, log_probabilities
from attn_jax.decoding.penalties import coverage_penalty, length_divisor
from attn_jax.decoding.rollout import rollout
from attn_jax.decoding.rules import Rules
from attn_jax.decoding.sampling import sample, truncate
from attn_jax.decoding.unknown import replace_unknown_words

__all__ = [
    "IMPOSSIBLE",
    "BeamNode",
    "BeamTree",
    "Ensemble",
    "Forced",
    "Hypotheses",
    "Rules",
    "beam_nodes",
    "beam_search",
    "coverage_penalty",
    "ensemble_params",
    "forced_decode",
    "greedy",
    "length_divisor",
    "log_probabilities",
    "replace_unknown_words",
    "rollout",
    "sample",
    "truncate",
]
