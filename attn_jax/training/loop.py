"""The training loop: steps, validation, checkpoints, early stopping, and an interruption that loses nothing."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from attn_jax.functional import schedules
from attn_jax.models.protocol import Batch
from attn_jax.training import checkpoints
from attn_jax.training.journal import Journal
from attn_jax.training.step import (
    OptimizerConfig,
    StepMetrics,
    TrainState,
    init_state,
    make_eval_step,
    make_optimizer,
    make_train_step,
)

Array = jax.Array
Event = Mapping[str, Any]


class BatchSource(Protocol):
    """What the loop reads: batches whose order is a pure function of the seed, from any step on."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        ...

    def stream(self, seed: int, start: int = 0) -> Iterator[Batch]:
        """The batches of the steps ``start, start + 1, ...`` without end."""
        ...


class Evaluation(NamedTuple):
    """What a validation found: ``metrics`` by name, and sample translations for the journal."""

    metrics: Mapping[str, float]
    samples: Sequence[Mapping[str, str]] = ()


class Interrupted(Exception):
    """Training was interrupted; a checkpoint of ``step`` was saved first."""

    def __init__(self, step: int):
        super().__init__(f"interrupted after step {step}; a checkpoint was saved")
        self.step = step


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
      epochs: passes over the data.
      steps: updates; if above 0 it takes the place of ``epochs``.
      valid_every: updates between validations; 0: once an epoch.
      checkpoint_every: updates between checkpoints beside those of the validations; 0: none.
      log_every: updates between records of the training loss.
      seed: of parameters, order, dropout and sampling.
      label_smoothing: share of the target distribution spread over the vocabulary.
      teacher_forcing: probability of feeding the true token: ``constant``, ``linear``, ``exponential``,
        ``inverse_sigmoid`` or ``cosine`` over the whole run.
      teacher_forcing_value: the probability of ``constant``; ``linear`` and ``cosine`` fall to it at the end (to 0 if
        it is 1), ``exponential`` and ``inverse_sigmoid`` fall at their own pace, over epochs.
      metric: which of the validation's numbers decides what is best; more is better, except for ``perplexity``.
      patience: validations without a new best before training stops; 0: never.
      keep_best: checkpoints of the best validations that stay, and that are averaged at the end.
      optimizer: see `attn_jax.training.step.OptimizerConfig`.
    """

    epochs: int = 14
    steps: int = 0
    valid_every: int = 0
    checkpoint_every: int = 0
    log_every: int = 50
    seed: int = 1
    label_smoothing: float = 0.1
    teacher_forcing: str = "constant"
    teacher_forcing_value: float = 1.0
    metric: str = "bleu"
    patience: int = 0
    keep_best: int = 4
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        """Checks every range."""
        if self.steps < 0 or (self.steps == 0 and self.epochs < 1):
            raise ValueError(f"expected epochs >= 1 or steps >= 1, found {self.epochs} and {self.steps}")
        for name in ("valid_every", "checkpoint_every", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        for name in ("log_every", "keep_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), found {self.label_smoothing}")
        if not 0 <= self.teacher_forcing_value <= 1:
            raise ValueError(f"teacher_forcing_value is a probability, found {self.teacher_forcing_value}")
        if self.teacher_forcing not in TEACHER_FORCING:
            raise ValueError(
                f"teacher_forcing must be one of {', '.join(TEACHER_FORCING)}; found {self.teacher_forcing!r}"
            )


TEACHER_FORCING = ("constant", "linear", "exponential", "inverse_sigmoid", "cosine")


def teacher_forcing_schedule(config: TrainConfig, total_steps: int, steps_per_epoch: int):
    """The probability as step -> value; None where it is always 1 and nothing needs to be sampled."""
    low = config.teacher_forcing_value
    end = 0.0 if low == 1 else low
    if config.teacher_forcing == "constant":
        return None if low == 1 else schedules.constant_schedule(low)
    if config.teacher_forcing == "linear":
        return schedules.linear_schedule(total_steps, end=end)
    if config.teacher_forcing == "cosine":
        return schedules.cosine_schedule(total_steps, end=end)
    by_epoch = (
        schedules.exponential_schedule(0.97)
        if config.teacher_forcing == "exponential"
        else schedules.inverse_sigmoid_schedule(10)
    )
    return lambda step: by_epoch(step / steps_per_epoch)


class TrainResult(NamedTuple):
    """What a run came to: the best parameters, their validation, and where they are from.

    Attributes:
      params: of the best validation, or the average over the best ones if that validates better.
      metrics: their validation.
      step: updates done.
      averaged: how many checkpoints ``params`` is the mean of; 1: a single one.
      traces: compilations of each jitted function.
    """

    params: Any
    metrics: Mapping[str, float]
    step: int
    averaged: int
    traces: Mapping[str, int]


def train(
    model: Any,
    batches: BatchSource,
    config: TrainConfig,
    journal: Journal,
    evaluate: Callable[[Any], Evaluation],
    *,
    on_event: Callable[[str, Event], None] = lambda kind, event: None,
    on_best: Callable[[Any, Mapping[str, float]], None] = lambda params, metrics: None,
    resume: bool = False,
    params: Any = None,
) -> TrainResult:
    """Trains a model.

    Args:
      model: a linen module of the decoding protocol's families.
      batches: the training data.
      config: how.
      journal: the run folder.
      evaluate: validates parameters; called every ``valid_every`` updates.
      on_event: is told ``("step", {...})`` every ``log_every`` updates and ``("valid", {...})`` at each validation.
      on_best: is given the parameters of each new best validation.
      resume: goes on from the newest checkpoint of the run folder.
      params: parameters to start from (fine-tuning) instead of drawing them.

    Returns:
      See `TrainResult`.

    Raises:
      Interrupted: at Ctrl-C or SIGTERM, after a checkpoint was saved. A second Ctrl-C stops at once.
      FloatingPointError: if the loss is no longer a number; the last checkpoint is unharmed.
    """
    total_steps = config.steps or config.epochs * batches.steps_per_epoch
    valid_every = config.valid_every or batches.steps_per_epoch
    optimizer = make_optimizer(config.optimizer, total_steps)
    train_step = make_train_step(model, optimizer, smoothing=config.label_smoothing)
    probability = teacher_forcing_schedule(config, total_steps, batches.steps_per_epoch)
    rng = jax.random.key(config.seed)
    init_rng, step_rng = jax.random.split(rng)
    state = init_state(model, optimizer, next(batches.stream(config.seed)), init_rng)
    if params is not None:
        state = _with_params(state, params)
    lower_is_better = config.metric == "perplexity"
    keep = checkpoints.Keep(
        last=2, best=config.keep_best, metric=config.metric, mode="min" if lower_is_better else "max"
    )
    best, since_best = -math.inf, 0
    if resume:
        state = checkpoints.restore(journal.checkpoints, state).state
        journal.rewind(int(state.step))
        for record in journal.read_metrics():
            if record.get("kind") == "valid":
                score = -record[config.metric] if lower_is_better else record[config.metric]
                best, since_best = (score, 0) if score > best else (best, since_best + 1)

    step, shapes = int(state.step), set()
    meter = _Meter()
    stream = batches.stream(config.seed, step)
    with _interruptions() as interrupted:
        while step < total_steps:
            batch = next(stream)
            shapes.add(batch.src.shape + batch.tgt.shape)
            forced = None if probability is None else np.float32(probability(step))
            state, metrics = train_step(state, batch, step_rng, forced)
            meter.add(metrics, batch)
            step += 1
            if step % config.log_every == 0 or step == total_steps:
                event = meter.read() | {"step": step, "total": total_steps, "epoch": step / batches.steps_per_epoch}
                if not math.isfinite(event["loss"]):
                    raise FloatingPointError(
                        f"the loss is {event['loss']} at step {step}; go on from the last checkpoint with --resume "
                        "and a lower learning rate"
                    )
                journal.log(step, {"kind": "train", **_without(event, "step", "total")})
                on_event("step", event)
            if step % valid_every == 0 or step == total_steps:
                found = evaluate(state.params)
                score = -found.metrics[config.metric] if lower_is_better else found.metrics[config.metric]
                is_best = score > best
                best, since_best = (score, 0) if is_best else (best, since_best + 1)
                checkpoints.save(journal.checkpoints, step, state, found.metrics, keep)
                if is_best:
                    on_best(state.params, found.metrics)
                journal.log(step, {"kind": "valid", **found.metrics, "best": is_best})
                journal.write_samples(step, found.samples)
                on_event("valid", {"step": step, "total": total_steps, "best": is_best, **found.metrics})
                meter = _Meter()
                if config.patience and since_best >= config.patience:
                    break
            elif config.checkpoint_every and step % config.checkpoint_every == 0:
                checkpoints.save(journal.checkpoints, step, state, {}, keep)
            if interrupted.is_set():
                if checkpoints.latest_step(journal.checkpoints) != step:
                    checkpoints.save(journal.checkpoints, step, state, {}, keep)
                raise Interrupted(step)
    gradient, update = train_step.jitted
    traces = {"gradient": gradient._cache_size(), "update": update._cache_size(), "shapes": len(shapes)}
    return _best_of(journal, keep, state, evaluate, lower_is_better)._replace(step=step, traces=traces)


def _best_of(
    journal: Journal, keep: checkpoints.Keep, state: TrainState, evaluate, lower_is_better: bool
) -> TrainResult:
    """The best single checkpoint, or the average over the best ones where that validates better."""
    steps = checkpoints.best_steps(journal.checkpoints, keep)
    single = checkpoints.restore(journal.checkpoints, state, steps[0])
    result = TrainResult(single.state.params, single.metrics, single.step, 1, {})
    if len(steps) > 1:
        mean = jax.tree.map(np.asarray, checkpoints.average(journal.checkpoints, steps))
        metrics = evaluate(mean).metrics
        sign = -1 if lower_is_better else 1
        if sign * metrics[keep.metric] > sign * result.metrics[keep.metric]:
            result = TrainResult(mean, metrics, single.step, len(steps), {})
    return result


def validation_loss(model: Any) -> Callable[[Any, Sequence[Batch]], dict[str, float]]:
    """``(params, batches) -> {"perplexity", "nll" (nats a token), "accuracy" (of tokens)}``, fed the true tokens."""
    eval_step = make_eval_step(model)

    def measure(params: Any, batches: Sequence[Batch]) -> dict[str, float]:
        sums = np.sum([[*map(float, eval_step(params, batch))] for batch in batches], axis=0)
        _, nll, correct, count = map(float, sums)
        return {"perplexity": math.exp(min(nll / count, 700)), "nll": nll / count, "accuracy": correct / count}

    return measure


class _Meter:
    """Sums over the steps since it was last read; the numbers stay on the device until then."""

    def __init__(self):
        self._metrics: list[StepMetrics] = []
        self._src = 0
        self._start = time.perf_counter()

    def add(self, metrics: StepMetrics, batch: Batch) -> None:
        self._metrics.append(metrics)
        self._src += int(batch.src_mask.sum())

    def read(self) -> dict[str, float]:
        loss, nll, correct, tokens, norms = (
            np.array(values, np.float64) for values in zip(*self._metrics, strict=True)
        )
        seconds = time.perf_counter() - self._start
        found = {
            "loss": loss.sum() / tokens.sum(),
            "perplexity": math.exp(min(nll.sum() / tokens.sum(), 700)),
            "accuracy": correct.sum() / tokens.sum(),
            "grad_norm": norms.mean(),
            "src_tokens_per_s": self._src / seconds,
            "tgt_tokens_per_s": tokens.sum() / seconds,
        }
        self.__init__()
        return {name: float(value) for name, value in found.items()}


@contextmanager
def _interruptions():
    """Turns the first Ctrl-C or SIGTERM into a flag, so that a step is never cut in half."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number, frame):
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_params(state: TrainState, params: Any) -> TrainState:
    expected, found = jax.tree.map(np.shape, state.params), jax.tree.map(np.shape, params)
    if expected != found:
        raise ValueError(
            "the parameters to start from do not fit the model; give the new run the settings of the old one"
        )
    return state.replace(params=jax.tree.map(jax.numpy.asarray, params))


def _without(event: Event, *names: str) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in names}
