"""Transformer blocks in one loop that computes them again in backward."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tests.jaxprs import equations
from tests.test_model_transformer import apply, make, make_batch, random_variables


def blocks(number, **options):
    return make(encoder_layers=number, decoder_layers=number, **options)


def test_they_keep_less_and_change_nothing():
    variables, batch = random_variables(blocks(3)), make_batch(src_len=40, tgt_len=40)

    def gradient_of(model):
        def loss(params):
            features, maps = model.apply({"params": params}, batch, method="features")
            return jnp.sum(jnp.sin(features)), maps

        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables["params"]).compile()
        return compiled(variables["params"]), compiled.memory_analysis().temp_size_in_bytes

    (expected, memory), (found, less) = gradient_of(blocks(3)), gradient_of(blocks(3, remat=True))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    assert less < 0.7 * memory


def test_more_of_them_are_no_larger_program(rng):
    products = set()
    for number in (2, 6):
        model, batch = blocks(number, remat=True), make_batch()
        params = jax.eval_shape(model.init, rng, batch)["params"]
        run = lambda params, model=model, batch=batch: model.apply({"params": params}, batch)  # noqa: E731
        products.add(sum(eqn.primitive.name == "dot_general" for eqn in equations(jax.make_jaxpr(run)(params))))
    assert len(products) == 1


def test_each_drops_on_its_own():
    model, batch = blocks(2, remat=True, dropout=0.5), make_batch()
    variables = random_variables(model)
    first, same, other = (apply(model, variables, batch, rng=jax.random.key(key))[0] for key in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-3
