"""Recurrent layers: one direction, both directions, and stacks of them with dropout and residuals.

Every layer is ``outputs, carry = layer(inputs, mask, carry=None)`` with ``inputs [batch, time, features]``. Masked
steps copy the carry and output zeros, in either direction, so padding changes neither a result nor a gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from attn_jax.functional.products import PRECISIONS
from attn_jax.functional.recurrence import CELLS, Einsum, Step, recurrent_scan, where_real
from attn_jax.nn.dropout import Dropout, dropout_mask
from attn_jax.nn.settings import check_one_of, check_share

Array = jax.Array | np.ndarray


def gate_orthogonal(rng: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """An orthogonal matrix for each gate, side by side: ``[hidden, gates * hidden]``."""
    hidden, width = shape
    keys = jax.random.split(rng, width // hidden)
    return jnp.concatenate([nn.initializers.orthogonal()(key, (hidden, hidden), dtype) for key in keys], axis=1)


def cell_bias(cell: str, hidden: int):
    """Zeros, but ones for the forget gate of an LSTM (Jozefowicz et al., 2015), as an initialiser."""

    def init(rng: Array, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        del rng
        bias = jnp.zeros(shape, dtype)
        return bias.at[hidden : 2 * hidden].set(1.0) if cell == "lstm" else bias

    return init


def zero_carry(cell: str, leading: tuple[int, ...], hidden: int, dtype: Any = jnp.float32) -> Any:
    """The state before the first step: zeros ``[*leading, hidden]``, twice for an LSTM."""
    zeros = jnp.zeros((*leading, hidden), dtype)
    return (zeros, zeros) if CELLS[cell].paired else zeros


def check_settings(layer: Any) -> None:
    """Refuses a cell, a precision or a share of recurrent dropout that no layer could have."""
    check_one_of("cell", layer.cell, CELLS)
    check_one_of("precision", layer.precision, PRECISIONS)
    check_share("recurrent_dropout", layer.recurrent_dropout)


class RecurrentLayer(nn.Module):
    """One recurrent layer in one direction.

    Attributes:
      features: hidden units.
      cell: ``rnn``, ``gru`` or ``lstm`` (the equations are in `attn_jax.functional.recurrence`).
      reverse: reads from the last step to the first; outputs stay in the order of the inputs.
      recurrent_dropout: share of hidden units dropped on their way into the next step, the same ones at every step of a
        sequence (Gal and Ghahramani, 2016, arXiv:1512.05287).
      precision: ``float32``, or ``bfloat16`` for the operands of the products.
    """

    features: int
    cell: str = "lstm"
    reverse: bool = False
    recurrent_dropout: float = 0.0
    precision: str = "float32"

    def __post_init__(self):
        """Checks names and ranges."""
        check_settings(self)
        super().__post_init__()

    def __call__(
        self,
        inputs: Float[Array, "batch time features_in"],
        mask: Bool[Array, "batch time"] | None = None,
        carry: Any = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "batch time features"], Any]:
        """Runs the layer.

        Args:
          inputs: ``[batch, time, features_in]``.
          mask: ``[batch, time]`` bool, True = a real step; None: all are.
          carry: the state to start from, ``[batch, features]`` (an LSTM: ``(cell, hidden)``); None: zeros.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.

        Returns:
          ``outputs [batch, time, features]`` and the last carry.
        """
        prepared = self.prepare(inputs, mask, carry, deterministic=deterministic)
        carry, outputs = recurrent_scan(*prepared, reverse=self.reverse, einsum=PRECISIONS[self.precision])
        return jnp.swapaxes(outputs, 0, 1), carry

    @nn.compact
    def prepare(
        self,
        inputs: Float[Array, "batch time features_in"],
        mask: Bool[Array, "batch time"] | None,
        carry: Any,
        *,
        deterministic: bool,
    ) -> tuple[Step, Any, Any, Any]:
        """For `recurrent_scan`: a step, its weights, the first carry, and the steps' inputs ``[time, batch, ...]``.

        Which way the scan goes is the caller's.
        """
        chex.assert_rank(inputs, 3)
        batch, time, features_in = inputs.shape
        if mask is not None:
            chex.assert_shape(mask, (batch, time))
            chex.assert_type(mask, bool)
            inputs = jnp.where(mask[..., None], inputs, 0)  # whatever stands in the padding reaches no gradient
        einsum, cell, width = PRECISIONS[self.precision], CELLS[self.cell], CELLS[self.cell].gates * self.features
        kernel = self.param("input", nn.initializers.glorot_uniform(), (features_in, width), jnp.float32)
        bias = self.param("bias", cell_bias(self.cell, self.features), (width,), jnp.float32)
        weights = {"recurrent": self.param("recurrent", gate_orthogonal, (self.features, width), jnp.float32)}
        if self.cell == "gru":
            weights["candidate_bias"] = self.param(
                "candidate_bias", nn.initializers.zeros, (self.features,), jnp.float32
            )
        # Transposed before the product, while narrow; XLA:CPU has no bfloat16 product that transposes its output.
        projected = einsum("tbi,io->tbo", jnp.swapaxes(inputs, 0, 1), kernel) + bias
        if carry is None:
            carry = zero_carry(self.cell, (batch,), self.features, projected.dtype)
        chex.assert_tree_shape_prefix(carry, (batch, self.features))
        if self.recurrent_dropout and not deterministic:
            shape = (batch, self.features)
            weights["kept"] = dropout_mask(self.make_rng("dropout"), self.recurrent_dropout, shape, projected.dtype)

        def step(einsum: Einsum, weights: Any, carry: Any, x: Any) -> tuple[Any, Array]:
            projected, real = x

            def product(equation: str, hidden: Array, recurrent: Array) -> Array:
                # The carry itself is not dropped: a GRU hands it on, and would scale it up again at every step.
                kept = weights.get("kept")
                return einsum(equation, hidden if kept is None else hidden * kept, recurrent)

            new, output = cell.step(product, weights, carry, projected)
            if real is None:
                return new, output
            return where_real(real, new, carry), jnp.where(real[:, None], output, 0)

        return step, weights, carry, (projected, None if mask is None else mask.T)


class RNN(RecurrentLayer):
    """A tanh RNN layer (Elman, 1990)."""

    cell: str = "rnn"


class GRU(RecurrentLayer):
    """A GRU layer (Cho et al., 2014)."""

    cell: str = "gru"


class LSTM(RecurrentLayer):
    """An LSTM layer (Hochreiter and Schmidhuber, 1997)."""

    cell: str = "lstm"


class Bidirectional(nn.Module):
    """Two layers over the same inputs, one in each direction, their outputs side by side (Schuster and Paliwal, 1997).

    One scan runs both, the second over the reversed steps: half as many turns, each of two independent steps.

    Attributes:
      features: hidden units of each direction.
      cell, recurrent_dropout, precision: as in `RecurrentLayer`.
    """

    features: int
    cell: str = "lstm"
    recurrent_dropout: float = 0.0
    precision: str = "float32"

    def __post_init__(self):
        """Checks names and ranges."""
        check_settings(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch time features_in"],
        mask: Bool[Array, "batch time"] | None = None,
        carry: Any = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "batch time 2*{self.features}"], Any]:
        """Runs both directions.

        Args:
          inputs: ``[batch, time, features_in]``.
          mask: ``[batch, time]`` bool or None.
          carry: ``(forward, backward)`` carries to start from, or None.
          deterministic: turns dropout off.

        Returns:
          ``outputs [batch, time, 2 * features]``, forward first, and the two last carries ``(forward, backward)``. The
          backward one has read the whole sequence when it stands at the first step.
        """
        carries = (None, None) if carry is None else carry
        options = {"cell": self.cell, "recurrent_dropout": self.recurrent_dropout, "precision": self.precision}
        ahead, back = (RecurrentLayer(self.features, name=name, **options) for name in ("forward", "backward"))
        step, *forward = ahead.prepare(inputs, mask, carries[0], deterministic=deterministic)
        flipped = jax.tree.map(lambda array: jnp.flip(array, axis=1), (inputs, mask))
        _, *backward = back.prepare(*flipped, carries[1], deterministic=deterministic)

        def both(einsum: Einsum, weights: tuple, carries: tuple, xs: tuple) -> tuple[tuple, tuple]:
            (carry, output), (back_carry, back_output) = map(partial(step, einsum), weights, carries, xs)
            return (carry, back_carry), (output, back_output)

        last, (outputs, back_outputs) = recurrent_scan(
            both, *zip(forward, backward, strict=True), einsum=PRECISIONS[self.precision]
        )
        outputs = jnp.concatenate([outputs, jnp.flip(back_outputs, axis=0)], axis=-1)
        return jnp.swapaxes(outputs, 0, 1), last


class RecurrentStack(nn.Module):
    """Recurrent layers on top of each other.

    Attributes:
      features: hidden units of each layer (and direction).
      num_layers: how many.
      cell, recurrent_dropout, precision: as in `RecurrentLayer`.
      bidirectional: both directions in every layer.
      dropout: share of units dropped between layers.
      variational: drops the same units at every step of a sequence, instead of drawing anew.
      residual: adds a layer's input to its output wherever both have the same width.
    """

    features: int
    num_layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = False
    dropout: float = 0.0
    variational: bool = False
    recurrent_dropout: float = 0.0
    residual: bool = False
    precision: str = "float32"

    def __post_init__(self):
        """Checks names and ranges."""
        check_settings(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch time features_in"],
        mask: Bool[Array, "batch time"] | None = None,
        carry: Any = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "batch time features"], tuple]:
        """Runs the stack.

        Args:
          inputs: ``[batch, time, features_in]``.
          mask: ``[batch, time]`` bool or None.
          carry: a tuple of one carry a layer, or None.
          deterministic: turns dropout off.

        Returns:
          The outputs of the top layer ``[batch, time, features]`` (twice as wide if bidirectional), and a tuple with
          the last carry of each layer.
        """
        layer = Bidirectional if self.bidirectional else RecurrentLayer
        options = {"cell": self.cell, "recurrent_dropout": self.recurrent_dropout, "precision": self.precision}
        carries, outputs = [], inputs
        for index in range(self.num_layers):
            below = outputs
            if index:
                time_axis = (1,) if self.variational else ()
                below = Dropout(self.dropout, broadcast_dims=time_axis)(below, deterministic=deterministic)
            start = None if carry is None else carry[index]
            above, last = layer(self.features, name=f"layer_{index}", **options)(
                below, mask, start, deterministic=deterministic
            )
            if self.residual and above.shape == outputs.shape:
                above = above + (outputs if mask is None else jnp.where(mask[..., None], outputs, 0))
            outputs = above
            carries.append(last)
        return outputs, tuple(carries)
