"""The decoder block that remembers its past in a recurrence, and attends to the source alone."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from attn_jax.functional.products import PRECISIONS
from attn_jax.functional.recurrence import recurrent_scan, ssru_cell
from attn_jax.nn.transformer import DecoderBlock

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

    def look_back(
        self, inputs: Array, mask: Array | None, deterministic: bool, return_weights: bool
    ) -> tuple[Float[Array, "batch tgt_len features"], None]:
        """The recurrence over a whole sequence, from a carry of zeros; there are no weights.

        Needs no mask: padding comes last, and nothing looks back from it.
        """
        del mask, return_weights

        def recur(x: Array) -> tuple[Array, None]:
            projected = jnp.swapaxes(self._project(x), 0, 1)  # [tgt_len, batch, 2 * features]
            # Without a product in the cell there is no weight gradient to defer.
            _, outputs = recurrent_scan(ssru_cell, {}, jnp.zeros_like(x[:, 0]), projected, deferred=False)
            return jnp.swapaxes(outputs, 0, 1), None

        return self.sublayer(self.cell_norm, inputs, recur, deterministic)

    def _project(self, inputs: Array) -> Array:
        return PRECISIONS[self.precision]("bti,io->bto", inputs, self.cell_kernel) + self.cell_bias

    def empty_cache(self, batch: int, max_len: int, dtype: Any = jnp.float32) -> Float[Array, "batch 1 features"]:
        """The carry before the first step, with a beam of 1; it has room for any number of steps."""
        del max_len
        return jnp.zeros((batch, 1, self.features), dtype)

    def look_back_step(
        self, inputs: Array, cache: Float[Array, "batch beam features"], position: Array
    ) -> tuple[Float[Array, "batch beam features"], Float[Array, "batch beam features"]]:
        """The recurrence, one step; the new carry, which says it all without a position."""
        del position
        chex.assert_equal_shape([inputs, cache])

        def recur(x: Array) -> tuple[Array, Array]:
            carry, output = ssru_cell(jnp.einsum, {}, cache, self._project(x))
            return output, carry

        return self.sublayer(self.cell_norm, inputs, recur, True)
