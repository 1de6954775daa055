"""The recurrent attention decoder: recurrent layers that look at a memory at every step.

One step is a pure function of raw arrays. Training scans it over a known target (`AttentionDecoder.__call__`), a
search calls it with a beam (`AttentionDecoder.step`): the beam, like the single time step of the scan, is the
attention's ``q_len`` axis. Whatever does not feed back into the next step is computed after the loop, for all steps at
once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from attn_jax.functional.products import PRECISIONS, Einsum
from attn_jax.functional.recurrence import CELLS, hidden_of, recurrent_scan
from attn_jax.nn.attention import Attention, Memory
from attn_jax.nn.dropout import dropout_mask
from attn_jax.nn.recurrent import cell_bias, gate_orthogonal
from attn_jax.nn.settings import check_at_least_one, check_one_of, check_share

Array = jax.Array | np.ndarray

READOUTS = ("attentional", "concat", "state")


class DecoderState(NamedTuple):
    """What feeds back: each layer's carry ``[batch, q, hidden]``, and the last features ``[batch, q, features]``."""

    layers: tuple
    fed: Array | None


class DecoderMasks(NamedTuple):
    """Dropout factors of a batch, ``[time or 1, batch, 1, units]``, drawn before the loop."""

    layers: tuple[Array, ...]
    features: Array


class _Input(NamedTuple):
    """One step's input: projected to the first layer's gates; as embedded (if the query needs it); dropout factors."""

    gates: Array
    embedded: Array | None
    masks: DecoderMasks | None


class _Output(NamedTuple):
    """What a step has computed so far."""

    hidden: Array | None
    context: Array | None = None
    weights: Array | None = None
    features: Array | None = None


class AttentionDecoder(nn.Module):
    """Recurrent layers with attention, from embedded inputs to features.

    Attributes:
      hidden: units of each layer.
      features: width of the ``attentional`` readout.
      attention: the mechanism, or None: a decoder that knows the source from its first state only.
      cell: ``rnn``, ``gru`` or ``lstm``.
      num_layers: recurrent layers.
      attend_first: attends with the previous state and feeds the context to the first layer (Bahdanau et al., 2015,
        arXiv:1409.0473); otherwise the layers run first and their new state attends (Luong et al., 2015,
        arXiv:1508.04025).
      input_feeding: feeds the last features to the first layer (Luong et al., 2015, section 3.3).
      readout: ``attentional``: ``tanh(W [state; context])``; ``concat``: ``[state; context]``; ``state``: the state.
      query_with_input: attends with ``[embedding; state]`` instead of the state.
      squeeze: units of ``relu(W [embedding; context] + b)``, the input of the first layer in the classic tutorial
        (without ``attend_first``: of the embedding alone). 0: embedding and context are that input themselves.
      dropout: share of units dropped between layers and from the features.
      variational: drops the same units at every step of a sentence.
      residual: adds a layer's input to its output, above the first layer.
      precision: ``float32``, or ``bfloat16`` for the operands of the products.
    """

    hidden: int
    features: int
    attention: Attention | None
    cell: str = "lstm"
    num_layers: int = 1
    attend_first: bool = False
    input_feeding: bool = True
    readout: str = "attentional"
    query_with_input: bool = False
    squeeze: int = 0
    dropout: float = 0.0
    variational: bool = False
    residual: bool = False
    precision: str = "float32"

    def __post_init__(self):
        """Checks names and ranges."""
        check_one_of("cell", self.cell, CELLS)
        check_one_of("readout", self.readout, READOUTS)
        check_one_of("precision", self.precision, PRECISIONS)
        check_at_least_one(self, "hidden", "features", "num_layers")
        check_share("dropout", self.dropout)
        if self.squeeze < 0:
            raise ValueError(f"squeeze must not be negative, found {self.squeeze}; 0 leaves it out")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        embedded: Float[Array, "batch tgt_len d"],
        keys: Float[Array, "batch src_len d_k"],
        mask: Bool[Array, "batch src_len"] | None,
        carry: tuple,
        *,
        masks: DecoderMasks | None = None,
        index: Int[Array, " real"] | None = None,
    ) -> tuple[Float[Array, "batch tgt_len features"], Float[Array, "batch *heads tgt_len src_len"] | None]:
        """Runs the decoder over known inputs.

        Args:
          embedded: ``[batch, tgt_len, d]``, the embedded input of each step.
          keys: the encoder's outputs, ``[batch, src_len, d_k]``; they are the values too.
          mask: ``[batch, src_len]`` bool, True = a real position; None: all are.
          carry: the first state of each layer, leaves ``[batch, hidden]``.
          masks: dropout factors from `draw_masks`; None: no dropout.
          index: ``[real]`` int, the flat positions ``row * tgt_len + step`` of the steps that count, each once, filled
            up with ``batch * tgt_len``. The others are padding after the end of a sentence: no input is multiplied
            there, and features, weights and gradients are zero. None: all count.

        Returns:
          ``features [batch, tgt_len, features]``, and ``weights [batch, (heads,) tgt_len, src_len]`` or None.
        """
        chex.assert_rank([embedded, keys], 3)
        chex.assert_equal_shape_prefix([embedded, keys], 1)
        self._check(keys, mask, carry)
        if self.is_initializing():
            self._declare(embedded, keys, mask)
        pure, einsum = self.clone(parent=None), PRECISIONS[self.precision]
        params, memory = self.raw_params(), self.prepare(keys, mask)

        def step(einsum: Einsum, weights: Any, state: DecoderState, x: _Input) -> tuple[DecoderState, _Output]:
            return pure.step_fn(einsum, *weights, state, x)

        batch, time, _ = embedded.shape
        if masks is not None:
            masks = jax.tree.map(lambda m: jnp.broadcast_to(m, (time, *m.shape[1:])), masks)
        by_time, rows = jnp.swapaxes(embedded, 0, 1)[:, :, None], None  # [time, batch, 1, d]
        if index is None:
            xs = pure.project_input(einsum, params, by_time)
        else:
            chex.assert_rank(index, 1)
            chex.assert_type(index, int)
            rows = jnp.where(index < batch * time, index % time * batch + index // time, batch * time)  # time first
            real = jnp.take(embedded.reshape(batch * time, -1), index, axis=0, mode="clip")
            gates = pure.input_gates_fn(einsum, params, real)
            spread = jnp.zeros((time * batch, gates.shape[-1]), gates.dtype).at[rows].add(gates, mode="drop")
            xs = pure.project_input(einsum, params, by_time, spread.reshape(time, batch, 1, -1))
        state = self.first_state(params, carry)
        _, output = recurrent_scan(step, (params, memory), state, xs._replace(masks=masks), einsum=einsum, rows=rows)
        whole = _Output(
            *(None if array is None else jnp.swapaxes(array[:, :, 0], 0, 1) for array in output[:2]),
            weights=None if output.weights is None else jnp.moveaxis(output.weights[..., 0, :], 0, -2),
            features=None if output.features is None else jnp.swapaxes(output.features[:, :, 0], 0, 1),
        )
        dropped = None if masks is None else jnp.swapaxes(masks.features[:, :, 0], 0, 1)
        _, _, weights, features = pure.complete(einsum, params, memory, whole, embedded, dropped)
        if index is None:
            return features, weights
        counts = jnp.zeros(batch * time, bool).at[index].set(True, mode="drop").reshape(batch, time, 1)
        if weights is not None:
            weights = jnp.where(counts if weights.ndim == 3 else counts[:, None], weights, 0)
        return jnp.where(counts, features, 0), weights

    # ------------------------------------------------------------------------------------------------- for a search

    def prepare(
        self, keys: Float[Array, "batch src_len d_k"], mask: Bool[Array, "batch src_len"] | None
    ) -> Memory | None:
        """The attention's memory of a batch of sentences, or None without attention."""
        self._check(keys, mask)
        if self.attention is None:
            return None
        memory = self.attention.prepare_fn(self.attention.raw_params(), keys, keys, mask)
        if self.folds:
            matrix = self.raw_params()["readout_context"]
            memory = memory._replace(values=PRECISIONS[self.precision]("bki,io->bko", memory.values, matrix))
        return memory

    @property
    def folds(self) -> bool:
        """Whether the memory's values are those of the readout: ``(weights @ values) W`` is ``weights @ (values W)``.

        ``W`` then multiplies every source position once, and not every step of every hypothesis.
        """
        alone = self.readout == "attentional" and not self.attend_first
        return alone and self.attention is not None and self.attention.mixes_values

    def first_state(self, params: Any, carry: tuple) -> DecoderState:
        """The state before the first step, with a ``q`` axis of 1: the given carries, and zero features."""
        layers = jax.tree.map(lambda c: c[:, None], carry)
        if not self.input_feeding:
            return DecoderState(layers, None)
        batch, dtype = jax.tree.leaves(carry)[0].shape[0], jax.tree.leaves(carry)[0].dtype
        return DecoderState(layers, jnp.zeros((batch, 1, params["fed"].shape[0]), dtype))

    def start(
        self, keys: Float[Array, "batch src_len d_k"], mask: Bool[Array, "batch src_len"] | None, carry: tuple
    ) -> tuple[Memory | None, DecoderState]:
        """The memory and the first state, for `step`."""
        self._check(keys, mask, carry)
        return self.prepare(keys, mask), self.first_state(self.raw_params(), carry)

    def input_gates(self, embedded: Float[Array, "*batch d"]) -> Float[Array, "*batch gates"]:
        """What the first layer (or ``squeeze``) makes of embedded inputs alone, for `step`."""
        return self.input_gates_fn(PRECISIONS[self.precision], self.raw_params(), embedded)

    def step(
        self,
        embedded: Float[Array, "batch beam d"],
        memory: Memory | None,
        state: DecoderState,
        gates: Float[Array, "batch beam gates"] | None = None,
    ) -> tuple[DecoderState, Float[Array, "batch beam features"], Float[Array, "batch *heads beam src_len"] | None]:
        """One step of a search.

        Args:
          embedded: ``[batch, beam, d]``.
          memory: from `start`, leaves ``[batch, ...]``.
          state: leaves ``[batch, beam, ...]``.
          gates: `input_gates` of the input if they are known; None: they are computed.

        Returns:
          The new state, ``features [batch, beam, features]``, and ``weights [batch, (heads,) beam, src_len]`` or None.
        """
        chex.assert_rank(embedded, 3)
        chex.assert_tree_shape_prefix(memory, embedded.shape[:1])
        chex.assert_tree_shape_prefix(state, embedded.shape[:2])
        pure, einsum, params = self.clone(parent=None), PRECISIONS[self.precision], self.raw_params()
        if gates is not None:
            chex.assert_shape(gates, (*embedded.shape[:2], None))
        x = pure.project_input(einsum, params, embedded, gates)
        state, output = pure.step_fn(einsum, params, memory, state, x)
        output = pure.complete(einsum, params, memory, output, embedded, None)
        return state, output.features, output.weights

    # ----------------------------------------------------------------- pure functions of raw arrays: safe in a scan

    def input_gates_fn(self, einsum: Einsum, params: Any, embedded: Array) -> Array:
        """What of the first layer's gates (or of ``squeeze``) depends on the input alone; leading axes are free."""
        bias = params["squeeze_bias" if self.squeeze else "bias_0"]
        return einsum("...i,io->...o", embedded, params["input"]) + bias

    def project_input(self, einsum: Einsum, params: Any, embedded: Array, gates: Array | None = None) -> _Input:
        """A step's input, or that of all steps, without dropout; ``gates`` if they are known."""
        gates = self.input_gates_fn(einsum, params, embedded) if gates is None else gates
        return _Input(gates, embedded if self.query_with_input else None, None)

    def step_fn(
        self, einsum: Einsum, params: Any, memory: Memory | None, state: DecoderState, x: _Input
    ) -> tuple[DecoderState, _Output]:
        """One step: attend (if that comes first), recur, and whatever else feeds back."""
        gates, context, weights = x.gates, None, None
        if self.attend_first and self.attention is not None:
            context, weights = self._attend(einsum, params, memory, hidden_of(state.layers[-1]), x.embedded)
            gates = gates + einsum("bqi,io->bqo", context, params["context"])
        if self.squeeze:
            gates = einsum("bqi,io->bqo", jax.nn.relu(gates), params["squeezed"]) + params["bias_0"]
        if self.input_feeding:
            gates = gates + einsum("bqi,io->bqo", state.fed, params["fed"])
        cell, layers, below = CELLS[self.cell], [], None
        for index, carry in enumerate(state.layers):
            if index:
                if x.masks is not None:
                    below = below * x.masks.layers[index - 1]
                gates = einsum("bqi,io->bqo", below, params[f"below_{index}"]) + params[f"bias_{index}"]
            cell_params = {"recurrent": params[f"recurrent_{index}"]}
            if self.cell == "gru":
                cell_params["candidate_bias"] = params[f"candidate_bias_{index}"]
            new, hidden = cell.step(einsum, cell_params, carry, gates)
            below = hidden + below if index and self.residual else hidden
            layers.append(new)
        output = _Output(below, context, weights)
        if self.input_feeding:
            dropped = None if x.masks is None else x.masks.features
            output = self.complete(einsum, params, memory, output, x.embedded, dropped)
        return DecoderState(tuple(layers), output.features), output

    def complete(
        self,
        einsum: Einsum,
        params: Any,
        memory: Memory | None,
        output: _Output,
        embedded: Array | None,
        dropped: Array | None,
    ) -> _Output:
        """Adds to a step's output what it has not computed yet: context, weights, features."""
        hidden, context, weights, features = output
        if features is not None:
            return output
        if self.attention is not None and context is None:
            context, weights = self._attend(einsum, params, memory, hidden, embedded)
        features = hidden
        if self.attention is not None and self.readout == "concat":
            hidden = jnp.broadcast_to(hidden, (*context.shape[:-1], hidden.shape[-1]))
            features = jnp.concatenate([hidden, context], axis=-1)
        elif self.readout == "attentional":
            features = einsum("bqi,io->bqo", hidden, params["readout_state"]) + params["readout_bias"]
            if self.attention is not None:
                features += context if self.folds else einsum("bqi,io->bqo", context, params["readout_context"])
            features = jnp.tanh(features)
        features = features if dropped is None else features * dropped
        return _Output(None, None, weights, features)

    def _attend(self, einsum: Einsum, params: Any, memory: Memory, hidden: Array, embedded: Array | None):
        query = jnp.concatenate([embedded, hidden], axis=-1) if self.query_with_input else hidden
        return self.attention.attend_fn(params.get("attention", {}), query, memory, einsum)

    # --------------------------------------------------------------------------------------- contracts and parameters

    def _check(self, keys: Array, mask: Array | None, carry: tuple | None = None) -> None:
        """The tensor contract, checked when it is traced: AssertionError from chex, ValueError for missing states."""
        chex.assert_rank(keys, 3)
        if mask is not None:
            chex.assert_type(mask, bool)
            chex.assert_shape(mask, keys.shape[:2])
        if carry is not None:
            if not isinstance(carry, tuple) or len(carry) != self.num_layers:
                found = len(carry) if isinstance(carry, tuple) else f"a {type(carry).__name__}"
                raise ValueError(
                    f"carry must be a tuple of {self.num_layers} states, one for each layer (num_layers), found {found}"
                )
            chex.assert_tree_shape_prefix(carry, (keys.shape[0], self.hidden))

    def raw_params(self) -> Any:
        """The parameter arrays of this bound module, for the pure functions."""
        return self.variables["params"]

    def width(self, key_dim: int) -> int:
        """Width of the features, which follows from the readout, over encoder outputs of width ``key_dim``."""
        context = self.attention.context_dim(key_dim) if self.attention is not None else 0
        return {"attentional": self.features, "concat": self.hidden + context, "state": self.hidden}[self.readout]

    def draw_masks(self, rng: Array, batch: int, time: int, key_dim: int) -> DecoderMasks:
        """Dropout factors for one batch: a new draw at each step, or one for the sentence if ``variational``.

        Args:
          rng: a PRNG key.
          batch: sentences.
          time: steps.
          key_dim: width of the encoder's outputs.
        """
        width = self.width(key_dim)
        keys = jax.random.split(rng, self.num_layers)
        shape = (1 if self.variational else time, batch, 1)
        layers = tuple(dropout_mask(key, self.dropout, (*shape, self.hidden)) for key in keys[1:])
        return DecoderMasks(layers, dropout_mask(keys[0], self.dropout, (*shape, width)))

    def _declare(self, embedded: Array, keys: Array, mask: Array | None) -> None:
        """Creates the parameters, with one unscanned step of attention for those of the mechanism."""
        gates, glorot = CELLS[self.cell].gates * self.hidden, nn.initializers.glorot_uniform()
        entrance = self.squeeze or gates
        self.param("input", glorot, (embedded.shape[-1], entrance), jnp.float32)
        if self.squeeze:
            self.param("squeeze_bias", nn.initializers.zeros, (self.squeeze,), jnp.float32)
            self.param("squeezed", glorot, (self.squeeze, gates), jnp.float32)
        if self.attention is not None:
            query_dim = self.hidden + (embedded.shape[-1] if self.query_with_input else 0)
            self.attention(jnp.zeros((keys.shape[0], 1, query_dim), keys.dtype), keys, keys, mask)
            context_dim = self.attention.context_dim(keys.shape[-1])
            if self.attend_first:
                self.param("context", glorot, (context_dim, entrance), jnp.float32)
            if self.readout == "attentional":
                self.param("readout_context", glorot, (context_dim, self.features), jnp.float32)
        if self.readout == "attentional":
            self.param("readout_state", glorot, (self.hidden, self.features), jnp.float32)
            self.param("readout_bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if self.input_feeding:
            self.param("fed", glorot, (self.width(keys.shape[-1]), gates), jnp.float32)
        for index in range(self.num_layers):
            if index:
                self.param(f"below_{index}", glorot, (self.hidden, gates), jnp.float32)
            self.param(f"recurrent_{index}", gate_orthogonal, (self.hidden, gates), jnp.float32)
            self.param(f"bias_{index}", cell_bias(self.cell, self.hidden), (gates,), jnp.float32)
            if self.cell == "gru":
                self.param(f"candidate_bias_{index}", nn.initializers.zeros, (self.hidden,), jnp.float32)
