"""The two-stage top-k and the fast argmax against those of JAX, ties included."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from attn_jax.decoding.topk import argmax, top_k


def test_numbers_by_hand():
    values, index = top_k(jnp.array([[0.0, 4.0, 2.0, 9.0, 1.0, 4.0, 3.0]]), k=2, group=2)
    assert values.tolist() == [[9.0, 4.0]] and index.tolist() == [[3, 1]]


@cache
def compiled(function, *static):
    return jax.jit(lambda values: function(values, *static))


shapes = [(1, 12, 2), (2, 13, 3), (3, 64, 4), (5, 67, 4), (5, 9, 4), (4, 7, 9)]


@pytest.mark.parametrize(("k", "n", "group"), shapes)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([2, 4, 1000]))
@settings(max_examples=10, deadline=None)
def test_top_k_is_that_of_jax(k, n, group, seed, levels):
    values = np.random.default_rng(seed).integers(-levels, 0, (3, n)).astype(np.float32)
    found, expected = compiled(top_k, k, group)(values), compiled(lax.top_k, k)(values)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([1, 3, 1000]))
@settings(max_examples=10, deadline=None)
def test_argmax_is_that_of_jax(seed, levels):
    values = np.random.default_rng(seed).integers(0, levels, (2, 3, 300)).astype(np.float32)
    np.testing.assert_array_equal(compiled(argmax)(values), values.argmax(-1))


def test_argmax_of_nan_stays_in_the_row():
    assert 0 <= int(argmax(jnp.full((300,), jnp.nan))) < 300


def test_only_a_few_groups_are_looked_into():
    """No sort or top-k over the whole row is left in the program."""
    program = jax.make_jaxpr(partial(top_k, k=5))(jnp.zeros((2, 40000)))
    widths = [eqn.invars[0].aval.shape[-1] for eqn in program.eqns if eqn.primitive.name == "top_k"]
    assert widths == [625, 5 * 64]
