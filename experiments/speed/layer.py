"""LSTM and GRU layers, forward and backward, against Flax, Keras with the JAX backend, and PyTorch.

``torch.compile`` is not measured: it leaves ``nn.LSTM`` and ``nn.GRU`` as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import RecurrentLayer
from experiments.speed.measure import (
    OURS,
    Contender,
    Contest,
    Goal,
    Work,
    compiled_work,
    count_operations,
    load_torch,
)

SIZES = ((64, 20, 256), (64, 50, 512), (32, 200, 256), (128, 20, 1024))
QUICK_SIZES = ((4, 5, 8),)


class Layer(NamedTuple):
    """One layer over ``[batch, time, width]``, as many units as inputs."""

    cell: str
    batch: int
    time: int
    width: int

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """The inputs, and what the gradient of the outputs is to be."""
        rng = np.random.default_rng(0)
        return tuple(rng.standard_normal(self[1:], np.float32) for _ in range(2))


def contests(quick: bool = False) -> list[Contest]:
    """Every size with both cells in float32; the second size with bfloat16 products too."""
    return [
        contest(Layer(cell, *size), precision)
        for cell in (("lstm",) if quick else ("lstm", "gru"))
        for size in (QUICK_SIZES if quick else SIZES)
        for precision in (("float32", "bfloat16") if size == SIZES[1] else ("float32",))
    ]


def contest(layer: Layer, precision: str) -> Contest:
    """One layer at one precision; goals are for float32."""
    peers = {"flax nn.RNN": in_flax, "keras (JAX)": in_keras, "torch": in_torch}
    contenders = [Contender(OURS, precision, partial(ours, layer, precision))]
    for name, build in peers.items():
        slow = name == "torch" and precision == "bfloat16"
        contenders.append(Contender(name, precision, partial(build, layer, precision), slow=slow))
    goals = [Goal("flax nn.RNN", 1.3), Goal("keras (JAX)", 1.3)] if precision == "float32" else []
    title = f"{layer.cell.upper()} layer {layer[1:]}, forward and backward, {precision}"
    return Contest(title, contenders, operations(layer), goals, seconds=8)


def operations(layer: Layer) -> float:
    """Operations of the products: inputs and state with their matrices, and twice as many backward."""
    module, (inputs, _) = RecurrentLayer(layer.width, cell=layer.cell), layer.draw()
    params = jax.eval_shape(module.init, jax.random.key(0), inputs)
    return 3 * count_operations(module.apply, params, inputs)


def gradient_work(apply: Callable, params, layer: Layer) -> Work:
    """The gradient of ``apply(params, inputs)`` by both, jitted."""
    inputs, d_outputs = layer.draw()

    def loss(params, inputs, d_outputs):
        return jnp.sum(apply(params, inputs).astype(jnp.float32) * d_outputs)

    return compiled_work(jax.value_and_grad(loss, argnums=(0, 1)), params, inputs, d_outputs)


def ours(layer: Layer, precision: str) -> Work:
    """Our layer."""
    module = RecurrentLayer(layer.width, cell=layer.cell, precision=precision)
    params = jax.jit(module.init)(jax.random.key(0), layer.draw()[0])
    return gradient_work(lambda params, x: module.apply(params, x)[0], params, layer)


def in_flax(layer: Layer, precision: str) -> Work:
    """``nn.RNN`` around the faster of Flax's cells."""
    cell = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[layer.cell]
    module = nn.RNN(cell(layer.width, dtype=jnp.dtype(precision)))
    params = jax.jit(module.init)(jax.random.key(0), layer.draw()[0])
    return gradient_work(module.apply, params, layer)


def in_keras(layer: Layer, precision: str) -> Work:
    """Keras's layer as a function of its variables, as its guide to JAX says."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if keras.backend.backend() != "jax":
        raise ImportError(f"keras has the {keras.backend.backend()} backend; set KERAS_BACKEND=jax")
    kind = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[layer.cell]
    policy = "mixed_bfloat16" if precision == "bfloat16" else "float32"
    module = kind(layer.width, return_sequences=True, dtype=policy)
    module.build(layer[1:])
    variables = [
        [variable.value for variable in of] for of in (module.trainable_variables, module.non_trainable_variables)
    ]
    apply = lambda params, x: module.stateless_call(params, variables[1], x, training=True)[0]  # noqa: E731
    return gradient_work(apply, variables[0], layer)


def in_torch(layer: Layer, precision: str) -> Work:
    """PyTorch's fused layer; bfloat16 through autocast."""
    torch = load_torch()
    from experiments.speed.torch_translator import autocast

    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[layer.cell]
    module = kind(layer.width, layer.width, batch_first=True)
    inputs, d_outputs = (torch.from_numpy(array) for array in layer.draw())
    inputs.requires_grad_()

    def call() -> None:
        with autocast(precision):
            outputs = module(inputs)[0]
        outputs.backward(d_outputs.to(outputs.dtype))
        module.zero_grad(set_to_none=True)
        inputs.grad = None

    return Work(call)
