"""One training step: the loss of a batch, its gradient, and the donated update of the state."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from attn_jax.functional.losses import TokenLoss, guided_alignment_loss, masked_mse, projected_cross_entropy
from attn_jax.models.protocol import Batch

Array = jax.Array

DECAYS = ("cosine", "inverse_sqrt", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with warm-up, decay and clipping.

    Attributes:
      learning_rate: the peak.
      schedule: after the warm-up: ``cosine`` down to 0 at the last step, ``inverse_sqrt``, or ``constant``.
      warmup: steps of linear rise to the peak, at most half of the run.
      beta1, beta2: decays of the moments.
      weight_decay: decoupled (AdamW), on matrices only.
      clip: largest global norm of a gradient; 0: no clipping.
    """

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 400
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.0
    clip: float = 1.0

    def __post_init__(self):
        """Checks names and ranges."""
        if self.schedule not in DECAYS:
            raise ValueError(f"schedule must be one of {', '.join(DECAYS)}; found {self.schedule!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, found {self.learning_rate}")
        for name in ("warmup", "weight_decay", "clip"):
            if not getattr(self, name) >= 0:  # NaN neither
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), found {getattr(self, name)}")


class TrainState(flax.struct.PyTreeNode):
    """All that changes while training: the number of updates done, the parameters, the optimizer's moments."""

    step: Array
    params: Any
    opt_state: Any


class StepMetrics(NamedTuple):
    """Sums of one batch, see `attn_jax.functional.losses.TokenLoss`, and the norm of the gradient before clipping."""

    loss: Array
    nll: Array
    correct: Array
    tokens: Array
    grad_norm: Array


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate as step -> value."""
    peak, warmup = config.learning_rate, min(config.warmup, total_steps // 2)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1))
    elif config.schedule == "inverse_sqrt":
        start = max(warmup, 1)  # below 0, during the warm-up, nobody asks for the value, but it is computed
        after = lambda step: peak * jnp.sqrt(start / (jnp.maximum(step, 0) + start))  # noqa: E731
    else:
        after = optax.constant_schedule(peak)
    rise = lambda step: peak * (step + 1) / (warmup + 1)  # noqa: E731 (from above 0: no update is lost)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of ``total_steps`` updates."""
    adam = optax.adamw(
        learning_rate(config, total_steps),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
    return optax.chain(clip_by_norm(config.clip), adam) if config.clip else adam


def clip_by_norm(largest: float) -> optax.GradientTransformation:
    """Scales a gradient whose global norm is above ``largest`` down to that norm.

    By one factor: `optax.clip_by_global_norm` gives the same, but chooses for each array between the gradient and a
    clipped one, and XLA:CPU then writes the clipped one to memory.

    References:
      Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks, 2013, arXiv:1211.5063.
    """

    def clip(grads: Any, params: Any = None) -> Any:
        del params
        norm = optax.tree.norm(grads)
        factor = jnp.where(norm < largest, 1.0, largest / norm)
        return jax.tree.map(lambda gradient: gradient * factor.astype(gradient.dtype), grads)

    return optax.stateless(clip)


def init_state(
    model: Any,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    rng: Array,
    *,
    meanwhile: Callable[[TrainState], Any] | None = None,
) -> TrainState:
    """Parameters for a model and the shapes of a batch, and an optimizer that has not started.

    Args:
      model: a linen module of the decoding protocol's families.
      optimizer: of `make_optimizer`, or any other.
      batch: its shapes matter alone.
      rng: of the parameters.
      meanwhile: called with the shapes of that state while another thread compiles what draws it, or loads it from
        disk, for which XLA needs no Python. It is the time to trace a gradient: JAX keeps the trace for a step that is
        called with the same shapes and types. What it raises is raised once the other thread is done. Not called where
        jit is disabled; given one, ``init_state`` cannot be transformed in turn (vmap, eval_shape).
    """

    @jax.jit  # as one program: the optimizer's zeros are many small ones otherwise
    def start(rng: Array, batch: Batch) -> TrainState:
        params = model.init(rng, batch)["params"]
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))

    if meanwhile is None or jax.config.jax_disable_jit:
        return start(rng, batch)
    lowered = start.lower(rng, batch)
    with ThreadPoolExecutor(max_workers=1) as other:
        compiled = other.submit(lowered.compile)
        meanwhile(lowered.out_info)
    return compiled.result()(rng, batch)


def batch_loss(
    model: Any,
    params: Any,
    batch: Batch,
    rng: Array | None = None,
    *,
    smoothing: float = 0.0,
    teacher_forcing: Array | None = None,
    guided: Array | None = None,
) -> TokenLoss:
    """The loss of a batch, summed over its real target tokens (continuous targets: over real values).

    Logits are computed for the real targets alone where the batch says which they are (``tgt_index``).

    Args:
      model: a module of the decoding protocol's families: ``features`` and ``output_weights``.
      params: its parameters.
      batch: with targets.
      rng: for dropout and scheduled sampling; None: neither.
      smoothing: label smoothing.
      teacher_forcing: see the model's ``features``; None: always the true tokens.
      guided: weight of the guided-alignment loss, a mean over the target tokens that ``batch.links`` link, beside the
        mean loss of a token; None: the attention is left alone.
    """
    rngs = None
    if rng is not None:
        dropout, sampling = jax.random.split(rng)
        rngs = {"dropout": dropout, "sampling": sampling}
    options = {"deterministic": rng is None}
    if teacher_forcing is not None:
        options["teacher_forcing"] = teacher_forcing

    def outputs(module: Any) -> Any:
        features, weights = module.features(batch, **options)
        return features, weights, module.output_weights()

    features, attention, output_layer = model.apply({"params": params}, rngs=rngs, method=outputs)
    loss = _target_loss(model, features, output_layer, batch, smoothing)
    if guided is None:
        return loss
    mean = _guided_mean(attention, batch)
    return loss._replace(loss=loss.loss + guided * mean * loss.count)


def _guided_mean(attention: Array | None, batch: Batch) -> Array:
    """How far the reported attention, averaged over heads, is from the links of a batch: nats a linked token."""
    if attention is None or batch.links is None:
        raise ValueError(
            "guided alignment needs a model with attention and batches with links; set attention, or leave out the "
            "guided weight"
        )
    attention = attention.mean(axis=1) if attention.ndim == 4 else attention
    alignment = jnp.zeros(attention.shape, bool).at[tuple(batch.links.T)].set(True, mode="drop")
    found = guided_alignment_loss(attention, alignment)
    return found.loss / jnp.maximum(found.count, 1)


def _target_loss(model: Any, features: Array, output_layer: Any, batch: Batch, smoothing: float) -> TokenLoss:
    """The loss of the output layer, see `batch_loss`."""
    kernel, bias, vocab_first = output_layer
    if batch.tgt.ndim == 3:
        error = masked_mse(features @ kernel + bias, batch.tgt, batch.tgt_mask)
        return TokenLoss(error.loss, error.loss, jnp.zeros(()), error.count)
    features, labels = features.reshape(-1, features.shape[-1]), batch.tgt.reshape(-1)
    weights = batch.tgt_mask.reshape(-1).astype(features.dtype)
    if batch.tgt_index is not None:
        weights = (batch.tgt_index < labels.shape[0]).astype(features.dtype)
        features, labels = (jnp.take(x, batch.tgt_index, axis=0, mode="clip") for x in (features, labels))
    return projected_cross_entropy(
        features,
        kernel,
        bias,
        labels,
        weights,
        smoothing=smoothing,
        dtype=jnp.bfloat16 if model.config.precision == "bfloat16" else None,
        kernel_layout="vd" if vocab_first else "dv",
    )


def make_train_step(
    model: Any, optimizer: optax.GradientTransformation, *, smoothing: float = 0.0
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """``train_step(state, batch, rng, teacher_forcing=None, guided=None) -> (state, metrics)``.

    Two jitted functions, a gradient and an update that is given the state's memory: on CPU that is faster than one. The
    random numbers of a step are ``fold_in(rng, state.step)``, so a resumed run draws what an uninterrupted one would.
    ``train_step.jitted`` are both: ``gradient(params, step, batch, rng, teacher_forcing, guided)`` and ``update(state,
    grads)``.
    """

    def mean_loss(params, batch, rng, teacher_forcing, guided):
        options = {"smoothing": smoothing, "teacher_forcing": teacher_forcing, "guided": guided}
        total = batch_loss(model, params, batch, rng, **options)
        return total.loss / jnp.maximum(total.count, 1), total

    @jax.jit
    def gradient(params, step, batch, rng, teacher_forcing, guided):
        rng = jax.random.fold_in(rng, step)
        return jax.grad(mean_loss, has_aux=True)(params, batch, rng, teacher_forcing, guided)

    def update(state, grads):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), optax.tree.norm(grads)

    update = jax.jit(update, donate_argnums=0)

    def train_step(state: TrainState, batch: Batch, rng: Array, teacher_forcing=None, guided=None):
        grads, total = gradient(state.params, state.step, batch, rng, teacher_forcing, guided)
        state, norm = update(state, grads)
        return state, StepMetrics(*total, grad_norm=norm)

    train_step.jitted = (gradient, update)
    return train_step


@partial(jax.jit, static_argnums=0)
def eval_step(model: Any, params: Any, batch: Batch) -> TokenLoss:
    """The plain loss of a batch, without dropout, always fed the true tokens."""
    return batch_loss(model, params, batch)
