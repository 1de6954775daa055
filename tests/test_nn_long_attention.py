"""Multi-head attention without its weights: over long sentences it never holds their matrix."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.nn.attention import MultiHeadAttention
from tests.jaxprs import equations
from tests.test_nn_attention import normal, parameters


def looked(return_weights, mask, length=1100, **options):
    """Context, weights and gradient of one head over a long sentence, and the largest array on the way."""
    mechanism = MultiHeadAttention(features=2, num_heads=1, **options)
    params, sequence = parameters(mechanism, 2, 2), normal(7, 1, length, 2)

    def run(params, sequence, mask):
        memory = mechanism.prepare_fn(params, sequence, sequence, mask)
        context, weights = mechanism.apply(
            {"params": params}, sequence, memory, return_weights=return_weights, method="attend"
        )
        return jnp.sum(jnp.sin(context)), (context, weights)

    gradient = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))
    outputs = [
        var.aval.size for eqn in equations(jax.make_jaxpr(gradient)(params, sequence, mask)) for var in eqn.outvars
    ]
    return gradient(params, sequence, mask), max(outputs) / length**2


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "precision": "bfloat16"}])
def test_a_long_sentence_without_weights_takes_little_memory(options):
    mask = np.arange(1100)[None] < 1070
    (dense_grads, (dense, weights)), dense_size = looked(True, mask, **options)
    (grads, (context, none)), size = looked(False, mask, **options)
    assert weights.shape == (1, 1, 1100, 1100) and none is None
    np.testing.assert_allclose(context, dense, atol=1e-5)
    chex.assert_trees_all_close(grads, dense_grads, rtol=1e-4, atol=1e-4)
    assert dense_size >= 1 and size < 0.5


@pytest.mark.parametrize(("length", "options"), [(1000, {}), (1100, {"normalizer": "sparsemax"})])
def test_short_sentences_and_other_normalisers_are_as_with_weights(length, options):
    mask = np.tril(np.ones((1, length, length), bool))
    (_, (dense, _)), dense_size = looked(True, mask, length, **options)
    (_, (context, none)), size = looked(False, mask, length, **options)
    assert none is None and size == dense_size
    np.testing.assert_array_equal(context, dense)


def test_a_mask_for_every_query_of_a_long_sentence():
    mask = np.tril(np.ones((1, 1100, 1100), bool))
    (dense_grads, (dense, _)), _ = looked(True, mask)
    (grads, (context, _)), _ = looked(False, mask)
    np.testing.assert_allclose(context, dense, atol=1e-5)
    chex.assert_trees_all_close(grads, dense_grads, rtol=1e-4, atol=1e-4)
