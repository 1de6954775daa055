"""What every attention mechanism shares: parameters, the memory of a sentence, the normaliser, the tensor contract.

See `attn_jax.nn.attention`, where the mechanisms are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from attn_jax.functional.masks import expand_mask
from attn_jax.functional.normalizers import NORMALIZERS
from attn_jax.functional.products import PRECISIONS, Einsum
from attn_jax.nn.settings import check_one_of

Array = jax.Array | np.ndarray
Params = Mapping[str, Array]
Mask = Bool[Array, "batch kv_len"] | Bool[Array, "batch q_len kv_len"]


class Memory(NamedTuple):
    """What attention keeps of a sentence.

    Attributes:
      keys: projected keys, ``[batch, kv_len, ...]``.
      values: ``[batch, kv_len, d_v]``, or ``[batch, kv_len, heads, head_dim]``.
      mask: ``[batch, 1 or q_len, kv_len]`` bool, True = may attend; None: everywhere.
    """

    keys: Array
    values: Array
    mask: Array | None


def initializer_for(name: str, shape: tuple[int, ...]) -> nn.initializers.Initializer:
    """Glorot for matrices, zeros for biases, and uniform ``+- 1 / sqrt(d)`` for score vectors."""
    if len(shape) > 1:
        return nn.initializers.glorot_uniform()
    if name.endswith("bias"):
        return nn.initializers.zeros
    bound = shape[0] ** -0.5
    return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)


class Attention(nn.Module):
    """What every mechanism shares: parameters, the normaliser, the context, and the tensor contract.

    Attributes:
      normalizer: ``softmax``, ``sparsemax`` or ``entmax15``.
      temperature: divides the scores before they are normalised.
      use_bias: adds the biases of the mechanism's projections; it changes nothing where there are none (dot and scaled
        dot-product attention).
      precision: ``float32``, or ``bfloat16`` for the operands of the projections.
    """

    normalizer: str = "softmax"
    temperature: float = 1.0
    use_bias: bool = True
    precision: str = "float32"

    @property
    def mixes_values(self) -> bool:
        """Whether the context is ``weights @ memory.values`` and no more, so that what is linear may come before it."""
        return True

    def __post_init__(self):
        """Checks names and ranges."""
        check_one_of("normalizer", self.normalizer, NORMALIZERS)
        check_one_of("precision", self.precision, PRECISIONS)
        if isinstance(self.temperature, int | float) and not self.temperature > 0:
            raise ValueError(f"temperature must be positive, found {self.temperature}; 1.0 changes nothing")
        super().__post_init__()

    # A mechanism defines these three.

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the parameters."""
        del query_dim, key_dim
        return {}

    def project_keys(self, params: Params, keys: Array, einsum: Einsum) -> Array:
        """What of the keys does not depend on the query; computed once a sentence."""
        del params, einsum
        return keys

    def scores(self, params: Params, query: Array, keys: Array, einsum: Einsum) -> Array:
        """Scores ``[batch, q_len, kv_len]`` of ``query [batch, q_len, d]`` and projected keys."""
        raise NotImplementedError(f"{type(self).__name__} defines no scores")

    def context_dim(self, value_dim: int) -> int:
        """Width of the context over values of width ``value_dim``."""
        return value_dim

    def context_of_each(self, params: Params, memory: Memory, einsum: Einsum) -> Array:
        """The contexts ``[batch, kv_len, context_dim]`` if all of the weight were on one position: the values."""
        del params, einsum
        return memory.values

    def weigh(self, params: Params, query: Array, memory: Memory, einsum: Einsum) -> Array:
        """The weights ``[batch, q_len, kv_len]``: the scores, normalised."""
        scores = self.scores(params, query, memory.keys, einsum)
        return NORMALIZERS[self.normalizer](scores, memory.mask, self.temperature)

    # The protocol.

    def prepare_fn(self, params: Params, keys: Array, values: Array, mask: Array | None) -> Memory:
        """The memory of a sentence.

        Args:
          params: this mechanism's parameters.
          keys: ``[batch, kv_len, d_k]``.
          values: ``[batch, kv_len, d_v]``.
          mask: ``[batch, kv_len]`` or ``[batch, q_len, kv_len]`` bool, True = may attend; None: everywhere.
        """
        mask = None if mask is None else expand_mask(mask)
        return Memory(self.project_keys(params, keys, PRECISIONS[self.precision]), values, mask)

    def attend_fn(
        self, params: Params, query: Array, memory: Memory, einsum: Einsum | None = None
    ) -> tuple[Array, Array]:
        """``context = weights @ values`` with ``weights = normalizer(scores)``.

        Args:
          params: this mechanism's parameters.
          query: ``[batch, q_len, d_q]``.
          memory: from `prepare_fn`.
          einsum: the product; None takes that of ``precision``.

        Returns:
          ``context [batch, q_len, d_v]`` and ``weights [batch, q_len, kv_len]``.
        """
        einsum = einsum or PRECISIONS[self.precision]
        weights = self.weigh(params, query, memory, einsum)
        return einsum("bqk,bkd->bqd", weights, memory.values), weights

    # The linen shell.

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "batch q_len d_q"],
        keys: Float[Array, "batch kv_len d_k"],
        values: Float[Array, "batch kv_len d_v"] | None = None,
        mask: Mask | None = None,
    ) -> tuple[Float[Array, "batch q_len context_dim"], Float[Array, "batch *heads q_len kv_len"]]:
        """Prepares the memory and attends.

        Args:
          query: ``[batch, q_len, d_q]``.
          keys: ``[batch, kv_len, d_k]``.
          values: ``[batch, kv_len, d_v]``; None: the keys.
          mask: ``[batch, kv_len]`` or ``[batch, q_len, kv_len]`` bool, True = may attend.

        Returns:
          ``context [batch, q_len, context_dim]`` and ``weights [batch, (heads,) q_len, kv_len]``.
        """
        values = keys if values is None else values
        check_attention_shapes(query, keys, values, mask)
        params = {
            name: self.param(name, initializer_for(name, shape), shape, jnp.float32)
            for name, shape in self.shapes(query.shape[-1], keys.shape[-1]).items()
        }
        return self.attend_fn(params, query, self.prepare_fn(params, keys, values, mask))

    def prepare(
        self,
        keys: Float[Array, "batch kv_len d_k"],
        values: Float[Array, "batch kv_len d_v"] | None = None,
        mask: Mask | None = None,
    ) -> Memory:
        """The memory of a sentence, with this module's own parameters (see `prepare_fn`)."""
        values = keys if values is None else values
        check_attention_shapes(None, keys, values, mask)
        return self.prepare_fn(self.raw_params(), keys, values, mask)

    def attend(
        self, query: Float[Array, "batch q_len d_q"], memory: Memory
    ) -> tuple[Float[Array, "batch q_len context_dim"], Float[Array, "batch q_len kv_len"]]:
        """One step, with this module's own parameters (see `attend_fn`)."""
        check_query(query, memory)
        return self.attend_fn(self.raw_params(), query, memory)

    def raw_params(self) -> Params:
        """The parameter arrays of this bound module, for the pure functions."""
        return self.variables.get("params", {})


def check_attention_shapes(query: Array | None, keys: Array, values: Array, mask: Array | None) -> None:
    """The tensor contract of every attention, checked when it is traced.

    Raises:
      AssertionError: from chex, with the shapes expected and found.
    """
    chex.assert_rank([keys, values], 3)
    batch, kv_len = keys.shape[:2]
    chex.assert_shape(values, (batch, kv_len, None))
    q_len = None
    if query is not None:
        chex.assert_shape(query, (batch, None, None))
        q_len = query.shape[1]
    if mask is not None:
        chex.assert_type(mask, bool)
        chex.assert_rank(mask, {2, 3})
        chex.assert_shape(mask, (batch, kv_len) if mask.ndim == 2 else (batch, q_len, kv_len))


def check_query(query: Array, memory: Memory) -> None:
    """The tensor contract of one step of attention: ``query [batch, q_len, d]`` and a memory of the same batch.

    Raises:
      AssertionError: from chex, with the shapes expected and found.
    """
    chex.assert_rank(query, 3)
    chex.assert_shape(query, (memory.values.shape[0], None, None))


def check_equal_widths(query: Array, keys: Array) -> None:
    """Raises a ValueError unless the query is as wide as the keys, with the remedy."""
    if query.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"dot-product attention needs a query as wide as the keys, found {query.shape[-1]} and {keys.shape[-1]}; "
            "use general attention, which projects the keys, or make both as wide"
        )
