"""Attention mechanisms, each two pure functions under a linen shell.

- ``prepare_fn(params, keys, values, mask) -> Memory``, once a sentence: projects the keys.
- ``attend_fn(params, query, memory) -> (context, weights)``, at every step.

``module(query, keys, values, mask)`` runs both and is what ``init`` uses; ``module.attend(query, memory)`` is the step.
The pure functions take raw parameter arrays, so a decoder can call them inside a scan, where linen modules must not go.

A new mechanism is a subclass of `Attention` with its parameters' ``shapes``, what it does to the keys
(``project_keys``) and its ``scores``; listed in `ATTENTIONS` it is available by name to every recurrent
encoder-decoder and to the command line.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from attn_jax.functional import scores as score_functions
from attn_jax.functional.attention import (
    gaussian_factor,
    local_window_mask,
    predicted_centers,
)
from attn_jax.functional.chunked import dot_product_attention_chunked
from attn_jax.functional.masks import combine_masks, expand_mask
from attn_jax.functional.normalizers import NORMALIZERS
from attn_jax.functional.products import PRECISIONS, Einsum
from attn_jax.nn.mechanism import Attention, Memory, Params, check_equal_widths, check_query
from attn_jax.nn.settings import check_at_least_one, check_types

Array = jax.Array | np.ndarray

LONG = 1024
"""From this many queries and keys on, multi-head attention whose weights nobody asks for never holds their matrix."""


class AdditiveAttention(Attention):
    """``v . tanh(W q + U k)`` (Bahdanau et al., 2015, arXiv:1409.0473), with a bias on each of the three.

    Attributes:
      features: width of the tanh.
    """

    features: int = 128

    def __post_init__(self):
        """Checks names and ranges."""
        check_at_least_one(self, "features")
        super().__post_init__()

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

    def __post_init__(self):
        """Checks names and ranges."""
        check_at_least_one(self, "features")
        super().__post_init__()

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
      max_len: the longest source it can address. Under a mask keys may reach past it: that is padding then, or a
        position that gets no weight.
      over_padding: normalises over all ``max_len`` positions, as the classic tutorial does. What falls on padding, or
        past the source, is lost: the weights sum to less than 1.
    """

    max_len: int = 64
    over_padding: bool = False

    def __post_init__(self):
        """Checks names and ranges."""
        check_at_least_one(self, "max_len")
        super().__post_init__()

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """``kernel [d_q, max_len]`` and its bias."""
        del key_dim
        return {"kernel": (query_dim, self.max_len)} | ({"bias": (self.max_len,)} if self.use_bias else {})

    def _logits(self, params: Params, query: Array, einsum: Einsum) -> Array:
        logits = einsum("bqi,io->bqo", query, params["kernel"])
        return logits + params["bias"] if self.use_bias else logits

    def scores(self, params: Params, query: Array, keys: Array, einsum: Einsum) -> Array:
        """The first ``kv_len`` entries of ``W q``, and -inf past the last of them."""
        return score_functions.location_scores(self._logits(params, query, einsum), keys.shape[1], masked=True)

    def weigh(self, params: Params, query: Array, memory: Memory, einsum: Einsum) -> Array:
        """The scores, normalised; or with ``over_padding`` the real part of the normalised ``W q``."""
        if not self.over_padding:
            return super().weigh(params, query, memory, einsum)
        weights = NORMALIZERS[self.normalizer](self._logits(params, query, einsum), None, self.temperature)
        kv_len = memory.keys.shape[1]
        weights = jnp.pad(weights[..., :kv_len], ((0, 0), (0, 0), (0, max(kv_len - self.max_len, 0))))
        return weights if memory.mask is None else jnp.where(memory.mask, weights, 0)

    def prepare_fn(self, params: Params, keys: Array, values: Array, mask: Array | None) -> Memory:
        """As in `Attention`; without a mask the keys must not reach past ``max_len``."""
        if mask is None and keys.shape[1] > self.max_len:
            raise ValueError(
                f"location attention knows {self.max_len} source positions, found a source of length {keys.shape[1]} "
                f"without a mask; build it with max_len >= {keys.shape[1]}, shorten the source, or mask its padding"
            )
        return super().prepare_fn(params, keys, values, mask)


class LocalAttention(GeneralAttention):
    """General attention near a predicted position, local-p (Luong et al., 2015, section 3.2, arXiv:1508.04025).

    The centre is ``length * sigmoid(v . tanh(W q))``. Only keys within ``window`` of it are scored and normalised, and
    a Gaussian around the centre multiplies their weights, which therefore sum to less than 1. The length of a source is
    the number of positions that the mask allows.

    Attributes:
      window: the paper's D, positions on either side of the centre; the Gaussian's standard deviation is half of it.
      features: width of the tanh that predicts the centre.
    """

    window: int = 10
    features: int = 128

    def __post_init__(self):
        """Checks names and ranges."""
        check_at_least_one(self, "window", "features")
        super().__post_init__()

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """Those of general attention, and ``center_kernel`` and ``center_v`` of the predicted centre."""
        centers = {"center_kernel": (query_dim, self.features), "center_v": (self.features,)}
        return super().shapes(query_dim, key_dim) | centers

    def weigh(self, params: Params, query: Array, memory: Memory, einsum: Einsum) -> Array:
        """``softmax(q . W k) * exp(-(j - center)^2 / (2 sigma^2))`` over the keys inside the window."""
        kv_len = memory.keys.shape[1]
        lengths = jnp.full((1, 1), kv_len) if memory.mask is None else memory.mask.sum(-1)  # [batch, 1 or q_len]
        hidden = jnp.tanh(einsum("bqi,io->bqo", query, params["center_kernel"]))
        centers = predicted_centers(jnp.einsum("bqd,d->bq", hidden, params["center_v"]), lengths)
        inside = combine_masks(memory.mask, local_window_mask(centers, kv_len, self.window))
        weights = super().weigh(params, query, memory._replace(mask=inside), einsum)
        return weights * gaussian_factor(centers, kv_len, self.window)


class MultiHeadAttention(Attention):
    """Several scaled dot-product attentions at once, each in a subspace (Vaswani et al., 2017, section 3.2.2).

    Attributes:
      features: width of all heads together, and of the output.
      num_heads: must divide ``features``.
    """

    features: int = 128
    num_heads: int = 4

    @property
    def mixes_values(self) -> bool:
        """No: the output projection comes after the mixture."""
        return False

    def __post_init__(self):
        """Checks names and ranges."""
        check_at_least_one(self, "features", "num_heads")
        if self.features % self.num_heads:
            raise ValueError(
                f"num_heads must divide the width of the attention: {self.features} units cannot be shared by "
                f"{self.num_heads} heads; choose a width that is a multiple of {self.num_heads}"
            )
        super().__post_init__()

    def shapes(self, query_dim: int, key_dim: int) -> dict[str, tuple[int, ...]]:
        """Kernels and biases of the query, key, value and output projections."""
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

    def context_of_each(self, params: Params, memory: Memory, einsum: Einsum) -> Array:
        """The values of all heads through the output projection."""
        return self._project(params, "out", memory.values.reshape(*memory.values.shape[:2], -1), einsum)

    def attend_fn(
        self,
        params: Params,
        query: Array,
        memory: Memory,
        einsum: Einsum | None = None,
        kept: Array | None = None,
        return_weights: bool = True,
    ) -> tuple[Array, Array | None]:
        """``out(concat(heads))``; ``weights [batch, heads, q_len, kv_len]``, before they are multiplied by ``kept``.

        ``kept`` are dropout factors for the weights, shaped like them. Without ``return_weights`` the second result is
        None, and the softmax of a long sentence (`LONG` queries and keys) is computed block by block.
        """
        einsum = einsum or PRECISIONS[self.precision]
        query = self._heads(self._project(params, "query", query, einsum))
        long = min(query.shape[1], memory.keys.shape[1]) >= LONG
        if long and not return_weights and kept is None and self.normalizer == "softmax":
            context = dot_product_attention_chunked(query / self.temperature, *memory)
            weights = None
        else:
            scores = score_functions.scaled_dot_scores(query, memory.keys, einsum=einsum)
            mask = None if memory.mask is None else memory.mask[:, None]
            weights = NORMALIZERS[self.normalizer](scores, mask, self.temperature)
            context = einsum("bhqk,bkhd->bqhd", weights if kept is None else weights * kept, memory.values)
            weights = weights if return_weights else None
        return self._project(params, "out", context.reshape(*context.shape[:2], -1), einsum), weights

    def attend(
        self,
        query: Float[Array, "batch q_len d_q"],
        memory: Memory,
        kept: Float[Array, "batch heads q_len kv_len"] | None = None,
        *,
        return_weights: bool = True,
    ) -> tuple[Float[Array, "batch q_len features"], Float[Array, "batch heads q_len kv_len"] | None]:
        """One step, with this module's own parameters (see `attend_fn`)."""
        check_query(query, memory)
        return self.attend_fn(self.raw_params(), query, memory, kept=kept, return_weights=return_weights)


class _Mechanisms(dict[str, type[Attention]]):
    """By name; where one takes the place of another, what was compiled for models with that name is forgotten."""

    def __setitem__(self, name: str, mechanism: type[Attention]) -> None:
        if self.get(name, mechanism) is not mechanism:
            jax.clear_caches()
        super().__setitem__(name, mechanism)


ATTENTIONS = _Mechanisms(
    {
        "additive": AdditiveAttention,
        "concat": ConcatAttention,
        "dot": DotAttention,
        "general": GeneralAttention,
        "local": LocalAttention,
        "location": LocationAttention,
        "multihead": MultiHeadAttention,
        "scaled_dot": ScaledDotProductAttention,
    }
)
"""The mechanisms by name. Add your own here."""


def make_attention(name: str, features: int, /, **options) -> Attention:
    """The mechanism called ``name``; those without a width of their own leave ``features`` aside.

    Raises:
      ValueError: if there is no such mechanism, it has no such option, or the option cannot have this value.
    """
    if name not in ATTENTIONS:
        raise ValueError(f"unknown attention {name!r}; choose one of {', '.join(sorted(ATTENTIONS))}")
    mechanism = ATTENTIONS[name]
    known = {field.name: field.type for field in dataclasses.fields(mechanism) if field.name not in ("parent", "name")}
    for option in options:
        if option not in known:
            raise ValueError(f"{name} attention has no option {option!r}; it has {', '.join(sorted(known))}")
    check_types(known, options)
    return mechanism(**({"features": features} if "features" in known else {}) | options)
