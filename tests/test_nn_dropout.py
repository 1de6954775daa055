"""Dropout from random bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.nn.dropout import Dropout, dropout_mask


@pytest.mark.parametrize("rate", [0.0, 1 / 256, 0.1, 0.25, 0.5, 0.9])
def test_the_share_dropped_and_the_mean(rng, rate):
    factors = np.asarray(dropout_mask(rng, rate, (500, 403)))
    share = round(256 * rate) / 256
    assert abs(share - rate) < 1 / 512 + 1e-9
    np.testing.assert_allclose((factors == 0).mean(), share, atol=0.005)
    np.testing.assert_allclose(factors.mean(), 1, atol=0.02)
    np.testing.assert_allclose(factors[factors > 0], 1 / (1 - share), rtol=1e-6)


@pytest.mark.parametrize(("rate", "share"), [(0.001, 1 / 256), (0.9999, 255 / 256)])
def test_rates_between_nothing_and_a_byte_are_never_nothing_nor_all(rng, rate, share):
    factors = np.asarray(dropout_mask(rng, rate, (200, 256)))
    np.testing.assert_allclose((factors == 0).mean(), share, atol=0.002)


def test_units_are_independent(rng):
    # The four bytes of a word serve units a quarter of the width apart: those too must not be correlated.
    kept = np.asarray(dropout_mask(rng, 0.5, (4000, 16)) > 0)
    correlation = np.corrcoef(kept.T)
    assert np.abs(correlation - np.eye(16)).max() < 0.07


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 1, 7), (4, 8)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_type(rng, shape, dtype):
    factors = dropout_mask(rng, 0.5, shape, dtype)
    assert (factors.shape, factors.dtype) == (shape, dtype)


def test_the_module(rng):
    inputs = 3 * np.ones((2, 6, 8), np.float32)
    drop = lambda module, **options: module.apply({}, inputs, rngs={"dropout": rng}, **options)  # noqa: E731
    assert drop(Dropout(0.5), deterministic=True) is inputs
    assert drop(Dropout(0.0), deterministic=False) is inputs
    outputs = np.asarray(drop(Dropout(0.5), deterministic=False))
    assert set(np.unique(outputs)) == {0, 6}
    shared = np.asarray(drop(Dropout(0.5, broadcast_dims=(1,)), deterministic=False))
    assert (shared == shared[:, :1]).all()
    assert not (outputs == outputs[:, :1]).all()


def test_jit_equals_eager(rng):
    draw = lambda rng: dropout_mask(rng, 0.3, (3, 9))  # noqa: E731
    np.testing.assert_array_equal(jax.jit(draw)(rng), draw(rng))
