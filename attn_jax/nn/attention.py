"""Attention mechanisms, each two pure functions under a linen shell.

- ``prepare_fn(params, keys, values, mask) -> Memory``, once a sentence: projects the keys.
- ``attend_fn(params, query, memory) -> (context, weights)``, at every step.

``module(query, keys, values, mask)`` runs both and is what ``init`` uses; ``module.attend(query, memory)`` is the step.
The pure functions take raw parameter arrays, so a decoder can call them inside a scan, where linen modules must not go.

A new mechanism is a subclass of `Attention` with its parameters' ``shapes``, what it does to the keys
(``project_keys``) and its ``scores``; listed in `ATTENTIONS` it is available by name to every model and to the command
line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from attn_jax.functional import scores as score_functions
from attn_jax.functional.masks import expand_mask
from attn_jax.functional.normalizers import NORMALIZERS
from attn_jax.functional.products import PRECISIONS, Einsum

Array = jax.Array
Params = Mapping[str, Array]


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
      use_bias: adds the biases of the mechanism's projections, if it has any.
      precision: ``float32``, or ``bfloat16`` for the operands of the projections.
    """

    normalizer: str = "softmax"
    temperature: float = 1.0
    use_bias: bool = True
    precision: str = "float32"

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
        scores = self.scores(params, query, memory.keys, einsum)
        weights = NORMALIZERS[self.normalizer](scores, memory.mask, self.temperature)
        return einsum("bqk,bkd->bqd", weights, memory.values), weights

    # The linen shell.

    @nn.compact
    def __call__(
        self, query: Array, keys: Array, values: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, Array]:
        """Prepares the memory and attends.

        Args:
          query: ``[batch, q_len, d_q]``.
          keys: ``[batch, kv_len, d_k]``.
          values: ``[batch, kv_len, d_v]``; None: the keys.
          mask: ``[batch, kv_len]`` or ``[batch, q_len, kv_len]`` bool, True = may attend.

        Returns:
          ``context [batch, q_len, d_v]`` and ``weights [batch, (heads,) q_len, kv_len]``.
        """
        values = keys if values is None else values
        check_attention_shapes(query, keys, values, mask)
        params = {
            name: self.param(name, initializer_for(name, shape), shape, jnp.float32)
            for name, shape in self.shapes(query.shape[-1], keys.shape[-1]).items()
        }
        return self.attend_fn(params, query, self.prepare_fn(params, keys, values, mask))

    def prepare(self, keys: Array, values: Array | None = None, mask: Array | None = None) -> Memory:
        """The memory of a sentence, with this module's own parameters (see `prepare_fn`)."""
        values = keys if values is None else values
        check_attention_shapes(None, keys, values, mask)
        return self.prepare_fn(self.raw_params(), keys, values, mask)

    def attend(self, query: Array, memory: Memory) -> tuple[Array, Array]:
        """One step, with this module's own parameters (see `attend_fn`)."""
        chex.assert_rank(query, 3)
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


class AdditiveAttention(Attention):
    """``v . tanh(W q + U k)`` (Bahdanau et al., 2015, arXiv:1409.0473), with a bias on each of the three.

    Attributes:
      features: width of the tanh.
    """

    features: int = 128

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """``query_kernel``, ``key_kernel``, ``v`` and their biases."""
        width = self.features
        shapes = {"query_kernel": (query_dim, width), "key_kernel": (key_dim, width), "v": (width,)}
        return shapes | ({"query_bias": (width,), "key_bias": (width,), "v_bias": (1,)} if self.use_bias else {})

    def project_keys(self, params: Params, keys: Array, einsum: Einsum) -> Array:
        """``U k``; the query's bias joins it, since only their sum enters the tanh."""
        projected = einsum("bki,io->bko", keys, params["key_kernel"])
        return projected + params["key_bias"] + params["query_bias"] if self.use_bias else projected

    def scores(self, params: Params, query: Array, keys: Array, einsum: Einsum) -> Array:
        """``v . tanh(W q + U k)``."""
        query = einsum("bqi,io->bqo", query, params["query_kernel"])
        return score_functions.additive_scores(query, keys, params["v"], params.get("v_bias"))


class ConcatAttention(Attention):
    """``v . tanh(W [q; k])`` (Luong et al., 2015, section 3.1, arXiv:1508.04025).

    ``W [q; k]`` is ``W_q q + W_k k``, so this is additive attention with one bias instead of two.

    Attributes:
      features: width of the tanh.
    """

    features: int = 128

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """``query_kernel`` and ``key_kernel`` (together the paper's ``W``), ``v`` and their biases."""
        width = self.features
        shapes = {"query_kernel": (query_dim, width), "key_kernel": (key_dim, width), "v": (width,)}
        return shapes | ({"bias": (self.features,), "v_bias": (1,)} if self.use_bias else {})

    def project_keys(self, params: Params, keys: Array, einsum: Einsum) -> Array:
        """``W_k k`` and the bias."""
        projected = einsum("bki,io->bko", keys, params["key_kernel"])
        return projected + params["bias"] if self.use_bias else projected

    def scores(self, params: Params, query: Array, keys: Array, einsum: Einsum) -> Array:
        """``v . tanh(W_q q + W_k k)``."""
        query = einsum("bqi,io->bqo", query, params["query_kernel"])
        return score_functions.additive_scores(query, keys, params["v"], params.get("v_bias"))


class DotAttention(Attention):
    """``q . k`` (Luong et al., 2015): no parameters, query and keys of one width."""

    def scores(self, params: Params, query: Array, keys: Array, einsum: Einsum) -> Array:
        """``q . k``."""
        del params
        check_equal_widths(query, keys)
        return score_functions.dot_scores(query, keys, einsum=einsum)


class ScaledDotProductAttention(Attention):
    """``q . k / sqrt(d)`` (Vaswani et al., 2017, section 3.2.1, arXiv:1706.03762): no parameters."""

    def scores(self, params: Params, query: Array, keys: Array, einsum: Einsum) -> Array:
        """``q . k / sqrt(d)``."""
        del params
        check_equal_widths(query, keys)
        return score_functions.scaled_dot_scores(query, keys, einsum=einsum)


class GeneralAttention(Attention):
    """``q . W k`` (Luong et al., 2015); the paper has no bias, ``use_bias`` adds one to ``W k``."""

    use_bias: bool = False

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """``kernel [d_k, d_q]`` and its bias."""
        return {"kernel": (key_dim, query_dim)} | ({"bias": (query_dim,)} if self.use_bias else {})

    def project_keys(self, params: Params, keys: Array, einsum: Einsum) -> Array:
        """``W k``."""
        projected = einsum("bki,io->bko", keys, params["kernel"])
        return projected + params["bias"] if self.use_bias else projected

    def scores(self, params: Params, query: Array, keys: Array, einsum: Einsum) -> Array:
        """``q . W k``."""
        del params
        return score_functions.dot_scores(query, keys, einsum=einsum)


class LocationAttention(Attention):
    """``W q`` over source positions (Luong et al., 2015, section 3.1): looks where the query says, never at the keys.

    Attributes:
      max_len: the longest source it can address.
    """

    max_len: int = 64

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """``kernel [d_q, max_len]`` and its bias."""
        del key_dim
        return {"kernel": (query_dim, self.max_len)} | ({"bias": (self.max_len,)} if self.use_bias else {})

    def scores(self, params: Params, query: Array, keys: Array, einsum: Einsum) -> Array:
        """The first ``kv_len`` entries of ``W q``."""
        logits = einsum("bqi,io->bqo", query, params["kernel"])
        logits = logits + params["bias"] if self.use_bias else logits
        return score_functions.location_scores(logits, keys.shape[1])


class MultiHeadAttention(Attention):
    """Several scaled dot-product attentions at once, each in a subspace (Vaswani et al., 2017, section 3.2.2).

    Attributes:
      features: width of all heads together, and of the output.
      num_heads: must divide ``features``.
    """

    features: int = 128
    num_heads: int = 4

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """Kernels and biases of the query, key, value and output projections."""
        if self.features % self.num_heads:
            raise ValueError(
                f"num_heads must divide the width of the attention: {self.features} units cannot be shared by "
                f"{self.num_heads} heads; choose a width that is a multiple of {self.num_heads}"
            )
        names = {"query": query_dim, "key": key_dim, "value": key_dim, "out": self.features}
        shapes = {f"{name}_kernel": (width, self.features) for name, width in names.items()}
        return shapes | ({f"{name}_bias": (self.features,) for name in names} if self.use_bias else {})

    def context_dim(self, value_dim: int) -> int:
        """The output projection decides: ``features``."""
        del value_dim
        return self.features

    def _project(self, params: Params, name: str, inputs: Array, einsum: Einsum) -> Array:
        projected = einsum("bti,io->bto", inputs, params[f"{name}_kernel"])
        return projected + params[f"{name}_bias"] if self.use_bias else projected

    def _heads(self, projected: Array) -> Array:
        return projected.reshape(*projected.shape[:2], self.num_heads, -1)

    def prepare_fn(self, params: Params, keys: Array, values: Array, mask: Array | None) -> Memory:
        """Keys and values of every head, ``[batch, kv_len, heads, head_dim]``; values must be as wide as keys."""
        chex.assert_equal_shape([keys, values])
        einsum = PRECISIONS[self.precision]
        heads = [self._heads(self._project(params, *named, einsum)) for named in (("key", keys), ("value", values))]
        return Memory(*heads, None if mask is None else expand_mask(mask))

    def attend_fn(
        self,
        params: Params,
        query: Array,
        memory: Memory,
        einsum: Einsum | None = None,
        kept: Array | None = None,
    ) -> tuple[Array, Array]:
        """``out(concat(heads))``; ``weights [batch, heads, q_len, kv_len]``, before they are multiplied by ``kept``.

        ``kept`` are dropout factors for the weights, shaped like them.
        """
        einsum = einsum or PRECISIONS[self.precision]
        query = self._heads(self._project(params, "query", query, einsum))
        scores = score_functions.scaled_dot_scores(query, memory.keys, einsum=einsum)
        mask = None if memory.mask is None else memory.mask[:, None]
        weights = NORMALIZERS[self.normalizer](scores, mask, self.temperature)
        context = einsum("bhqk,bkhd->bqhd", weights if kept is None else weights * kept, memory.values)
        return self._project(params, "out", context.reshape(*context.shape[:2], -1), einsum), weights

    def attend(self, query: Array, memory: Memory, kept: Array | None = None) -> tuple[Array, Array]:
        """One step, with this module's own parameters (see `attend_fn`)."""
        chex.assert_rank(query, 3)
        return self.attend_fn(self.raw_params(), query, memory, kept=kept)


def check_equal_widths(query: Array, keys: Array) -> None:
    """Raises a ValueError unless the query is as wide as the keys, with the remedy."""
    if query.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"dot-product attention needs a query as wide as the keys, found {query.shape[-1]} and {keys.shape[-1]}; "
            "use general attention, which projects the keys, or make both as wide"
        )


ATTENTIONS: dict[str, type[Attention]] = {
    "additive": AdditiveAttention,
    "concat": ConcatAttention,
    "dot": DotAttention,
    "general": GeneralAttention,
    "location": LocationAttention,
    "multihead": MultiHeadAttention,
    "scaled_dot": ScaledDotProductAttention,
}
"""The mechanisms by name. Add your own here."""


def make_attention(name: str, features: int, **options) -> Attention:
    """The mechanism called ``name``; those without a width of their own leave ``features`` aside.

    Raises:
      ValueError: if there is no such mechanism, or it has no such option.
    """
    if name not in ATTENTIONS:
        raise ValueError(f"unknown attention {name!r}; choose one of {', '.join(sorted(ATTENTIONS))}")
    mechanism = ATTENTIONS[name]
    known = [field for field in mechanism.__dataclass_fields__ if field not in ("parent", "name")]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} attention has no option {option!r}; it has {', '.join(known)}")
    return mechanism(**options, **({"features": features} if "features" in known else {}))
