"""Looks into traced and compiled programs: every equation of a jaxpr, every product of a compiled loop."""

from __future__ import annotations

import re
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


def operand_types_of_products(text: str) -> set[str]:
    """Of all matrix products of an executable's ``as_text()``."""
    types, found = {}, set()
    for line in text.splitlines():
        if re.match(r"(?:ENTRY )?%?[\w.-]+ \(.*{$", line):
            types = {}
        elif defined := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = (\w+)\[", line):
            types[defined[1]] = defined[2]
        if product := re.search(r" dot\((.*?)\)", line):
            found |= {types[name] for name in re.findall(r"([\w.-]+)(?:,|$)", product[1])}
    return found


def products_of_compiled_loops(text: str) -> list[list[tuple[int, ...]]]:
    """The shape of every matrix product in the body of each loop of an executable's ``as_text()``, however deep."""
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*{$", line):
            inside = lines.setdefault(header[1], [])
        elif lines:
            inside.append(line)

    def products(computation: str) -> Iterator[tuple[int, ...]]:
        for line in lines[computation]:
            if product := re.search(r"= \w+\[([\d,]*)\]\S* dot\(", line):
                yield tuple(map(int, product[1].split(",")))
            for called in re.findall(r"=\{?%?([\w.-]+)", line) + re.findall(r", %([\w.-]+)(?=[,}])", line):
                if called in lines:  # a fusion's, a call's, a branch's, an inner loop's
                    yield from products(called)

    return [list(products(body)) for body in re.findall(r"body=%?([\w.-]+)", text)]
