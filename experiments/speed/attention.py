"""Dot-product attention over long sequences: block by block, against ``jax.nn.dot_product_attention`` and PyTorch."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from attn_jax.functional.chunked import dot_product_attention_chunked
from experiments.speed.measure import (
    OURS,
    Contender,
    Contest,
    Goal,
    OnlyOurs,
    Work,
    compiled_work,
    load_torch,
)
from experiments.speed.memory import free_mb

HEADS, HEAD_DIM = 8, 64
SECONDS = {
    (1024, False): 8,
    (1024, True): 8,
    (4096, False): 10,
    (4096, True): 15,
    (16_384, False): 1,
    (32_768, True): 1,
}
"""Of measuring, by length and whether backward is part of it; at the longest a call takes a minute."""

QUICK_LENGTH = 64
DENSE = "jax.nn.dot_product_attention"
GOALS = {
    (4096, False): [Goal(DENSE, 3.5), Goal(DENSE, 8.0, of="memory_mb")],
    (4096, True): [Goal(DENSE, 2.5), Goal(DENSE, 8.0, of="memory_mb")],
    (32_768, True): [OnlyOurs(DENSE)],
}
"""By length, and whether backward is part of it."""


def contests(quick: bool = False) -> list[Contest]:
    """One sentence of each length."""
    return [contest(QUICK_LENGTH, backward=True)] if quick else [contest(*work) for work in SECONDS]


def contest(length: int, backward: bool) -> Contest:
    """One length; what does not fit into the free memory by its executable's own account is not run."""
    works = {OURS: partial(in_jax, dot_product_attention_chunked), DENSE: partial(in_jax, jax.nn.dot_product_attention)}
    works["torch"] = in_torch
    contenders = [Contender(name, "float32", partial(work, length, backward)) for name, work in works.items()]
    products = 4.0 * length**2 * HEADS * HEAD_DIM  # scores and contexts
    title = (
        f"attention, {HEADS} heads x {HEAD_DIM}, T = {length:,}, {'forward and backward' if backward else 'forward'}"
    )
    goals, seconds = GOALS.get((length, backward), []), SECONDS.get((length, backward), 1)
    return Contest(title, contenders, products * (3 if backward else 1), goals, seconds)


def draw(length: int) -> list[np.ndarray]:
    """Query, key, value and the gradient of the contexts, ``[1, length, heads, head_dim]``."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, length, HEADS, HEAD_DIM), np.float32) for _ in range(4)]


def in_jax(attention, length: int, backward: bool) -> Work:
    """Attention as a jitted function."""
    query, key, value, d_out = draw(length)

    def gradients(query, key, value, d_out):
        out, backward_of = jax.vjp(attention, query, key, value)
        return out, backward_of(d_out)

    if backward:
        return compiled_work(gradients, query, key, value, d_out, limit_mb=free_mb())
    return compiled_work(attention, query, key, value, limit_mb=free_mb())


def in_torch(length: int, backward: bool) -> Work:
    """PyTorch's fused kernel, heads before positions as it wants them."""
    torch = load_torch()
    arrays = [torch.from_numpy(array.transpose(0, 2, 1, 3).copy()) for array in draw(length)]
    *inputs, d_out = arrays
    for array in inputs:
        array.requires_grad_(backward)

    def call() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(*inputs)
        if backward:
            out.backward(d_out)
            for array in inputs:
                array.grad = None

    return Work(call, ready=True)
