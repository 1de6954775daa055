"""Looks into traced programs: every equation of a jaxpr, however deep."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def equations(jaxpr: Jaxpr | ClosedJaxpr) -> Iterator[JaxprEqn]:
    """Every equation, those of loops, calls and custom derivatives included."""
    for eqn in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: isinstance(p, Jaxpr | ClosedJaxpr)):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                yield from equations(inner)


def assert_products_accumulate_in_float32(function, *args) -> int:
    """No product mixes operand types, and every product of bfloat16 gives float32; returns how many of those are."""
    narrow = 0
    for eqn in equations(jax.make_jaxpr(function)(*args)):
        if eqn.primitive.name == "dot_general":
            a, b = (var.aval.dtype for var in eqn.invars)
            assert a == b, f"a product of {a} and {b}: {eqn}"
            if a == jnp.bfloat16:
                assert eqn.outvars[0].aval.dtype == jnp.float32, (
                    f"a bfloat16 product without float32 accumulation: {eqn}"
                )
                narrow += 1
    return narrow
