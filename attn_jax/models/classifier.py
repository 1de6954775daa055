"""Sequence classifiers: recurrent and Transformer, over words or continuous sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from attn_jax.functional.normalizers import softmax
from attn_jax.functional.positions import sinusoidal_positions
from attn_jax.functional.products import PRECISIONS
from attn_jax.functional.recurrence import CELLS
from attn_jax.functional.scores import additive_scores
from attn_jax.nn.dropout import Dropout
from attn_jax.nn.recurrent import RecurrentStack
from attn_jax.nn.settings import check_at_least_one, check_one_of, check_share
from attn_jax.nn.transformer import ACTIVATIONS, TransformerEncoder

Array = jax.Array

POOLINGS = ("attention", "last", "max", "mean", "steps")
"""How the states of a sequence become what is classified; ``steps`` classifies every step by itself."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What both classifiers share.

    Attributes:
      num_outputs: logits; 1 for a yes-or-no question.
      vocab_size: words; 0: the input is continuous, ``[batch, time, input_features]``.
      input_features: width of continuous inputs.
      pooling: one of `POOLINGS`. ``last`` is the state at the last real step, where the backward direction of a
        bidirectional layer has read one step only.
      dropout: share of units dropped.
      precision: ``float32``, or ``bfloat16`` for the operands of the products.
    """

    num_outputs: int
    vocab_size: int = 0
    input_features: int = 0
    pooling: str = "mean"
    dropout: float = 0.0
    precision: str = "float32"

    def __post_init__(self):
        """Checks names and ranges."""
        check_one_of("pooling", self.pooling, POOLINGS)
        check_one_of("precision", self.precision, PRECISIONS)
        check_at_least_one(self, "num_outputs")
        if (self.vocab_size > 0) == (self.input_features > 0):
            raise ValueError(
                "give either vocab_size (words) or input_features (continuous), found "
                f"{self.vocab_size} and {self.input_features}"
            )
        check_share("dropout", self.dropout)


@dataclass(frozen=True, kw_only=True)
class RecurrentClassifierConfig(ClassifierConfig):
    """A recurrent classifier.

    Attributes:
      embed_dim: width of the embeddings of words; continuous inputs enter as they are.
      cell: ``rnn``, ``gru`` or ``lstm``.
      hidden: units of each layer and direction.
      num_layers: how many.
      bidirectional: reads in both directions.
    """

    embed_dim: int = 32
    cell: str = "rnn"
    hidden: int = 16
    num_layers: int = 1
    bidirectional: bool = True

    def __post_init__(self):
        """Checks names and ranges."""
        super().__post_init__()
        check_one_of("cell", self.cell, CELLS)
        check_at_least_one(self, "embed_dim", "hidden", "num_layers")


@dataclass(frozen=True, kw_only=True)
class TransformerClassifierConfig(ClassifierConfig):
    """A Transformer encoder and a classifier on top.

    Attributes:
      d_model: width of embeddings (continuous inputs: of their projection) and blocks.
      num_heads: must divide ``d_model``.
      ffn_dim: hidden units of the feed-forward layers.
      num_layers: blocks.
      activation: ``relu``, ``gelu`` or ``swish``.
      norm_first: normalises before each sublayer instead of after it.
      positions: adds sinusoidal positions; without them the order of the inputs is invisible.
    """

    d_model: int = 32
    num_heads: int = 2
    ffn_dim: int = 64
    num_layers: int = 1
    activation: str = "relu"
    norm_first: bool = False
    positions: bool = True

    def __post_init__(self):
        """Checks names and ranges."""
        super().__post_init__()
        check_one_of("activation", self.activation, ACTIVATIONS)
        check_at_least_one(self, "d_model", "num_heads", "ffn_dim", "num_layers")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model: {self.d_model} units cannot be shared by {self.num_heads} heads"
            )
        if self.positions and self.d_model % 2:
            raise ValueError(f"positions need an even d_model, half sines and half cosines; found {self.d_model}")


class ClassifierHead(nn.Module):
    """Pools the states of a sequence and classifies: ``W pool(states) + b``.

    Attributes:
      num_outputs: logits.
      pooling: one of `POOLINGS`. ``attention`` weighs the steps by ``softmax(v . tanh(W h + b))`` (Yang et al., 2016,
        Hierarchical attention networks).
      dropout: share of the pooled units dropped.
      precision: of the products.
    """

    num_outputs: int
    pooling: str = "mean"
    dropout: float = 0.0
    precision: str = "float32"

    def __post_init__(self):
        """Checks names."""
        check_one_of("pooling", self.pooling, POOLINGS)
        check_one_of("precision", self.precision, PRECISIONS)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, states: Array, mask: Array | None = None, *, deterministic: bool = True
    ) -> tuple[Array, Array | None]:
        """Classifies.

        Args:
          states: ``[batch, time, d]``.
          mask: ``[batch, time]`` bool, True = a real step; None: all are.
          deterministic: turns dropout off.

        Returns:
          ``logits [batch, num_outputs]`` (``steps``: ``[batch, time, num_outputs]``), and for ``attention`` the weights
          ``[batch, time]``, else None.
        """
        chex.assert_rank(states, 3)
        batch, time, width = states.shape
        mask = jnp.ones((batch, time), bool) if mask is None else mask
        chex.assert_type(mask, bool)
        chex.assert_shape(mask, (batch, time))
        einsum, glorot = PRECISIONS[self.precision], nn.initializers.glorot_uniform()
        if self.pooling == "attention":
            keys = einsum("bti,io->bto", states, self.param("key_kernel", glorot, (width, width)))
            query = self.param("query", nn.initializers.zeros, (width,))  # the bias inside the tanh: what it looks for
            v = self.param("v", nn.initializers.normal(width**-0.5), (width,))
            weights = softmax(additive_scores(query[None, None], keys, v), mask[:, None])[:, 0]
            pooled = jnp.einsum("bt,btd->bd", weights, states)
        else:
            weights, pooled = None, pool(states, mask, self.pooling)
        pooled = Dropout(self.dropout)(pooled, deterministic=deterministic)
        kernel = self.param("kernel", glorot, (width, self.num_outputs))
        return einsum("...i,io->...o", pooled, kernel) + self.param(
            "bias", nn.initializers.zeros, (self.num_outputs,)
        ), weights


def pool(states: Array, mask: Array, pooling: str) -> Array:
    """The states ``[batch, time, d]`` of the real steps as one vector ``[batch, d]`` (``steps``: as they are).

    A sequence without any real step gives zeros.

    Example:
      >>> states, mask = jnp.array([[[1.0], [5.0], [9.0]]]), jnp.array([[True, True, False]])
      >>> [pool(states, mask, pooling).item() for pooling in ("last", "max", "mean")]
      [5.0, 5.0, 3.0]
    """
    real, some = mask[..., None], jnp.any(mask, axis=1, keepdims=True)
    if pooling == "steps":
        return states
    if pooling == "mean":
        return jnp.sum(states, axis=1, where=real) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    if pooling == "max":
        return jnp.where(some, jnp.max(states, axis=1, where=real, initial=-jnp.inf), 0)
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.where(some, jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0], 0)


class RecurrentClassifier(nn.Module):
    """Recurrent layers and a classifier on their states.

    Attributes:
      config: see `RecurrentClassifierConfig`.
    """

    config: RecurrentClassifierConfig

    def setup(self):
        """Builds the parts."""
        c = self.config
        if c.vocab_size:
            self.embed = nn.Embed(c.vocab_size, c.embed_dim)
        options = {"cell": c.cell, "bidirectional": c.bidirectional, "dropout": c.dropout, "precision": c.precision}
        self.encoder = RecurrentStack(c.hidden, c.num_layers, **options)
        self.head = ClassifierHead(c.num_outputs, c.pooling, c.dropout, c.precision)

    def __call__(
        self, inputs: Array, mask: Array | None = None, *, deterministic: bool = True
    ) -> tuple[Array, Array | None]:
        """Classifies sequences.

        Args:
          inputs: ids ``[batch, time]``, or ``[batch, time, input_features]``.
          mask: ``[batch, time]`` bool, True = a real step; None: all are.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.

        Returns:
          ``logits [batch, num_outputs]`` (pooling ``steps``: ``[batch, time, num_outputs]``), and the pooling's weights
          ``[batch, time]`` if it is ``attention``, else None.
        """
        return self.head(self.states(inputs, mask, deterministic=deterministic), mask, deterministic=deterministic)

    def states(self, inputs: Array, mask: Array | None = None, *, deterministic: bool = True) -> Array:
        """The hidden states of the top layer ``[batch, time, hidden]`` (twice as wide in both directions)."""
        check_inputs(self.config, inputs)
        inputs = self.embed(inputs) if self.config.vocab_size else inputs
        return self.encoder(inputs, mask, deterministic=deterministic)[0]


class TransformerClassifier(nn.Module):
    """A Transformer encoder and a classifier on its states.

    Attributes:
      config: see `TransformerClassifierConfig`.
    """

    config: TransformerClassifierConfig

    def setup(self):
        """Builds the parts."""
        c = self.config
        unit = nn.initializers.normal(c.d_model**-0.5)
        self.embed = nn.Embed(c.vocab_size, c.d_model, embedding_init=unit) if c.vocab_size else nn.Dense(c.d_model)
        names = ("num_heads", "ffn_dim", "activation", "norm_first", "dropout", "precision")
        block = {"features": c.d_model} | {name: getattr(c, name) for name in names}
        self.encoder = TransformerEncoder(c.num_layers, block)
        self.drop = Dropout(c.dropout)
        self.head = ClassifierHead(c.num_outputs, c.pooling, c.dropout, c.precision)

    def __call__(self, inputs: Array, mask: Array | None = None, *, deterministic: bool = True) -> tuple[Array, Array]:
        """Classifies sequences.

        Args:
          inputs: ids ``[batch, time]``, or ``[batch, time, input_features]``.
          mask: ``[batch, time]`` bool, True = a real step; None: all are.
          deterministic: turns dropout off; otherwise the ``dropout`` stream is used.

        Returns:
          ``logits [batch, num_outputs]`` (pooling ``steps``: ``[batch, time, num_outputs]``), and the self-attention
          weights ``[batch, layers, heads, time, time]``.
        """
        c = self.config
        check_inputs(c, inputs)
        embedded = self.embed(inputs) * (math.sqrt(c.d_model) if c.vocab_size else 1.0)
        if c.positions:
            embedded = embedded + sinusoidal_positions(inputs.shape[1], c.d_model).astype(embedded.dtype)
        embedded = self.drop(embedded, deterministic=deterministic)
        states, weights = self.encoder(embedded, mask, deterministic=deterministic)
        return self.head(states, mask, deterministic=deterministic)[0], weights


def check_inputs(config: ClassifierConfig, inputs: Array) -> None:
    """The tensor contract of both classifiers, checked when it is traced.

    Raises:
      AssertionError: from chex, with the shapes expected and found.
    """
    if config.vocab_size:
        chex.assert_rank(inputs, 2)
        chex.assert_type(inputs, int)
    else:
        chex.assert_shape(inputs, (None, None, config.input_features))
