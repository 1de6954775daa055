"""The decoder block that remembers its past in a recurrence, and attends to the source alone."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from attn_jax.functional.products import PRECISIONS
from attn_jax.functional.recurrence import recurrent_scan, ssru_cell
from attn_jax.nn.attention import Memory
from attn_jax.nn.transformer import DecoderBlock, DecoderWeights

Array = jax.Array | np.ndarray


class SSRUBlock(DecoderBlock):
    """A simple recurrence over the past, attention over the source, feed-forward.

    The recurrence takes the place of the self-attention of `attn_jax.nn.transformer.DecoderBlock`. What a hypothesis
    carries along is one vector whatever its length, where self-attention keeps keys and values of every step.

    Attributes: see `attn_jax.nn.transformer.TransformerBlock`.

    References:
      Kim et al., From research to production and back: ludicrously fast neural machine translation (2019), section 3.1,
      ACL D19-5632.
    """

    def setup(self):
        """Builds the sublayers; the self-attention and its norm, which nothing calls, have no parameters."""
        super().setup()
        width = self.features
        self.cell_kernel = self.param("cell_kernel", nn.initializers.glorot_uniform(), (width, 2 * width))
        self.cell_bias = self.param("cell_bias", nn.initializers.zeros, (2 * width,))
        self.cell_norm = nn.LayerNorm(self.norm_epsilon)

    def __call__(
        self,
        inputs: Float[Array, "batch tgt_len features"],
        source: Float[Array, "batch src_len d"],
        mask: Bool[Array, "batch tgt_len"] | None = None,
        source_mask: Bool[Array, "batch src_len"] | None = None,
        *,
        deterministic: bool = True,
        return_weights: bool = True,
    ) -> tuple[Float[Array, "batch tgt_len features"], DecoderWeights | None]:
        """Runs the block over a whole sequence, from a carry of zeros.

        Args:
          inputs: ``[batch, tgt_len, features]``.
          source: the encoder's outputs, ``[batch, src_len, d]``.
          mask: of no effect: padding comes last, and nothing looks back from it.
          source_mask: ``[batch, src_len]`` bool, True = may be attended; None: everywhere.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.
          return_weights: whether to return the attention weights.

        Returns:
          ``outputs [batch, tgt_len, features]``, and the weights or None; ``own`` is None, there is no self-attention.
        """
        del mask
        chex.assert_shape(inputs, (None, None, self.features))
        chex.assert_equal_shape_prefix([inputs, source], 1)
        memory = self.prepare(source, source_mask)

        def recur(x: Array) -> tuple[Array, Array]:
            projected = jnp.swapaxes(self._project(x), 0, 1)  # [tgt_len, batch, 2 * features]
            # Without a product in the cell there is no weight gradient to defer.
            carry, outputs = recurrent_scan(ssru_cell, {}, jnp.zeros_like(x[:, 0]), projected, deferred=False)
            return jnp.swapaxes(outputs, 0, 1), carry

        outputs, _ = self.sublayer(self.cell_norm, inputs, recur, deterministic)
        outputs, cross = self._look_at_source(outputs, memory, deterministic, return_weights)
        return self.feed_forward(outputs, deterministic), DecoderWeights(None, cross) if return_weights else None

    def _project(self, inputs: Array) -> Array:
        return PRECISIONS[self.precision]("bti,io->bto", inputs, self.cell_kernel) + self.cell_bias

    # ------------------------------------------------------------------------------------------------- step by step

    def empty_cache(self, batch: int, max_len: int, dtype: Any = jnp.float32) -> Float[Array, "batch 1 features"]:
        """The carry before the first step, with a beam of 1; it has room for any number of steps."""
        del max_len
        return jnp.zeros((batch, 1, self.features), dtype)

    def step(
        self,
        inputs: Float[Array, "batch beam features"],
        cache: Float[Array, "batch beam features"],
        position: Integer[Array, "batch beam"],
        memory: Memory,
    ) -> tuple[
        Float[Array, "batch beam features"],
        Float[Array, "batch heads beam src_len"],
        Float[Array, "batch beam features"],
    ]:
        """One step of every hypothesis; equal to column ``position`` of the whole sequence.

        Args:
          inputs: ``[batch, beam, features]``.
          cache: the carry of each hypothesis.
          position: of no effect: the carry says it all.
          memory: of the source, from `prepare`, without a beam axis.

        Returns:
          ``outputs [batch, beam, features]``, ``weights [batch, heads, beam, src_len]`` over the source, the new carry.
        """
        del position
        chex.assert_shape(inputs, (None, None, self.features))
        chex.assert_equal_shape([inputs, cache])

        def recur(x: Array) -> tuple[Array, Array]:
            carry, output = ssru_cell(jnp.einsum, {}, cache, self._project(x))
            return output, carry

        outputs, carry = self.sublayer(self.cell_norm, inputs, recur, True)
        outputs, weights = self._look_at_source(outputs, memory, True)
        return self.feed_forward(outputs, True), weights, carry
