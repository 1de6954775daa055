"""Fixtures for every test file."""

import jax
import pytest


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    """A PRNG key; split it, never use it twice."""
    return jax.random.key(0)
