"""The training loop: steps, validation, checkpoints, early stopping, and an interruption that loses nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from attn_jax.functional import schedules
from attn_jax.models.protocol import Batch
from attn_jax.training import checkpoints
from attn_jax.training.interruption import Interrupted, interruptions
from attn_jax.training.journal import Journal
from attn_jax.training.meter import Meter
from attn_jax.training.step import (
    OptimizerConfig,
    TrainState,
    eval_step,
    init_state,
    make_optimizer,
    make_train_step,
)

Array = jax.Array
Event = Mapping[str, Any]

TEACHER_FORCING = tuple(schedules.SCHEDULES)
LOWER_IS_BETTER = ("perplexity", "nll")


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
      guided_weight: weight of the guided-alignment loss where batches have links (Chen et al., 2016,
        arXiv:1607.01628); 0: the attention is left alone.
      guided_until: updates after which that weight is 0; 0: it holds to the end.
      metric: which of the validation's numbers decides what is best; more is better, except for `LOWER_IS_BETTER`.
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
    guided_weight: float = 0.0
    guided_until: int = 0
    metric: str = "bleu"
    patience: int = 0
    keep_best: int = 4
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        """Checks every range."""
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, found {self.steps}")
        if self.steps == 0 and self.epochs < 1:
            raise ValueError(f"expected epochs >= 1 or steps >= 1, found {self.epochs} and {self.steps}")
        for name in ("valid_every", "checkpoint_every", "patience", "guided_weight", "guided_until"):
            if not getattr(self, name) >= 0:  # NaN neither
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        for name in ("log_every", "keep_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2**32 - 1, found {self.seed}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), found {self.label_smoothing}")
        if not 0 <= self.teacher_forcing_value <= 1:
            raise ValueError(f"teacher_forcing_value is a probability, found {self.teacher_forcing_value}")
        if self.teacher_forcing not in TEACHER_FORCING:
            raise ValueError(
                f"teacher_forcing must be one of {', '.join(TEACHER_FORCING)}; found {self.teacher_forcing!r}"
            )


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


def guided_schedule(config: TrainConfig) -> Callable[[int], np.float32] | None:
    """The weight of the guided-alignment loss as step -> value; None without one."""
    if not config.guided_weight:
        return None
    until = config.guided_until or math.inf
    return lambda step: np.float32(config.guided_weight if step < until else 0.0)


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


@contextmanager
def resumable(journal: Journal) -> Iterator[None]:
    """Turns a KeyboardInterrupt in the block into an `Interrupted`, which says what the run can be resumed from."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(checkpoints.latest_step(journal.checkpoints)) from None


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
      resume: goes on from the newest checkpoint of the run folder, or from the start if there is none.
      params: parameters to start from (fine-tuning) instead of drawing them.

    Returns:
      See `TrainResult`.

    Raises:
      Interrupted: at Ctrl-C or SIGTERM, after a checkpoint was saved. A second Ctrl-C stops at once.
      FloatingPointError: if the loss or a gradient is no longer a number; no checkpoint holds such parameters.
      ValueError: for ids outside the model's vocabulary, and parameters or a metric that do not fit.
    """
    total_steps = config.steps or config.epochs * batches.steps_per_epoch
    valid_every = config.valid_every or batches.steps_per_epoch
    optimizer = make_optimizer(config.optimizer, total_steps)
    train_step = make_train_step(model, optimizer, smoothing=config.label_smoothing)
    gradient, update = train_step.jitted
    probability = teacher_forcing_schedule(config, total_steps, batches.steps_per_epoch)
    probability = probability and jax.jit(probability)
    guided = guided_schedule(config)
    scheduled = lambda step: (probability and probability(step), guided and guided(step))  # noqa: E731
    init_rng, step_rng = jax.random.split(jax.random.key(config.seed))
    records, shapes, meter = _Validations(config), set(), Meter()

    with resumable(journal), interruptions() as interrupted:
        begun = (checkpoints.latest_step(journal.checkpoints) or 0) if resume else 0
        example = next(batches.stream(config.seed, begun))
        trace = lambda new: gradient.trace(new.params, new.step, example, step_rng, *scheduled(begun))  # noqa: E731
        state = init_state(model, optimizer, example, init_rng, meanwhile=trace if begun < total_steps else None)
        if params is not None:
            check_params(params, state.params)
            state = state.replace(params=jax.tree.map(lambda p: jax.numpy.array(p, copy=True), params))
        if resume:
            if checkpoints.latest_step(journal.checkpoints) is not None:
                state = checkpoints.restore(journal.checkpoints, state).state
            journal.rewind(int(state.step))
            for record in journal.read_metrics():
                if record.get("kind") == "valid":
                    records.add(record["step"], record)

        def save(metrics: Mapping[str, float]) -> None:
            checkpoints.save(journal.checkpoints, step, state, metrics, records.keep)

        def validate() -> None:
            meter.check()
            with meter.paused():
                found = evaluate(state.params)
                best = records.add(step, found.metrics)
                # in this order, so that whatever a crash leaves undone is done again after the checkpoint before
                journal.log(step, {"kind": "valid", **found.metrics, "best": best})
                journal.write_samples(step, found.samples)
                if best:
                    on_best(state.params, found.metrics)
                save(found.metrics)
            on_event("valid", {"step": step, "total": total_steps, "best": best, **found.metrics})

        first = step = int(state.step)
        stream = batches.stream(config.seed, step)
        while True:
            if step and (step % valid_every == 0 or step >= total_steps) and step not in records.steps:
                validate()
            elif step > first and config.checkpoint_every and step % config.checkpoint_every == 0:
                meter.check()
                save({})
            if step >= total_steps or records.exhausted:
                break
            if interrupted.is_set():
                if checkpoints.latest_step(journal.checkpoints) != step:
                    meter.check()
                    save({})
                raise Interrupted(step)
            batch = next(stream)
            check_ids(batch, model.config)
            shapes.add(batch.src.shape + batch.tgt.shape)
            state, metrics = train_step(state, batch, step_rng, *scheduled(step))
            step += 1
            meter.add(step, metrics, batch)
            if step % config.log_every == 0 or step == total_steps:
                numbers = meter.read() | {"epoch": step / batches.steps_per_epoch}
                journal.log(step, {"kind": "train", **numbers})
                on_event("step", {**numbers, "step": step, "total": total_steps})
        if not interrupted.is_set():
            result = _best_of(journal, records.keep, state, evaluate)
        if interrupted.is_set():
            raise Interrupted(step)
    traces = {"gradient": gradient._cache_size(), "update": update._cache_size(), "shapes": len(shapes)}
    return result._replace(step=step, traces=traces)


class _Validations:
    """Which steps were validated, how good the best was, and since when nothing better came."""

    def __init__(self, config: TrainConfig):
        lower = config.metric in LOWER_IS_BETTER
        self.keep = checkpoints.Keep(
            last=2, best=config.keep_best, metric=config.metric, mode="min" if lower else "max"
        )
        self.steps: set[int] = set()
        self.best, self.since_best, self.patience = -math.inf, 0, config.patience

    def add(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Notes a validation; True if it is the best so far."""
        score = score_of(metrics, self.keep)
        is_best = score > self.best
        self.best, self.since_best = (score, 0) if is_best else (self.best, self.since_best + 1)
        self.steps.add(step)
        return is_best

    @property
    def exhausted(self) -> bool:
        """Whether patience is at an end."""
        return bool(self.patience) and self.since_best >= self.patience


def score_of(metrics: Mapping[str, Any], keep: checkpoints.Keep) -> float:
    """The number that decides, turned so that more is better; ``"nan"``, as a journal writes it, is NaN."""
    if keep.metric not in metrics:
        raise ValueError(f"the validation gives {', '.join(metrics)}; the metric that decides is {keep.metric!r}")
    return float(metrics[keep.metric]) * (1 if keep.mode == "max" else -1)


def _best_of(journal: Journal, keep: checkpoints.Keep, state: TrainState, evaluate) -> TrainResult:
    """The best single checkpoint, or the average over the best ones where that validates better."""
    steps = checkpoints.whole(journal.checkpoints, checkpoints.best_steps(journal.checkpoints, keep))
    # the newest one where every validation was NaN, or no good one is still what was written
    single = checkpoints.restore(journal.checkpoints, state, steps[0] if steps else None)
    result = TrainResult(single.state.params, single.metrics, single.step, 1, {})
    if len(steps) > 1:
        mean = jax.tree.map(jax.numpy.asarray, checkpoints.average(journal.checkpoints, steps))
        metrics = evaluate(mean).metrics
        if score_of(metrics, keep) > score_of(result.metrics, keep):
            result = TrainResult(mean, metrics, single.step, len(steps), {})
    return result


def validation_loss(model: Any) -> Callable[[Any, Sequence[Batch]], dict[str, float]]:
    """``(params, batches) -> {"perplexity", "nll" (nats a token), "accuracy" (of tokens)}``, fed the true tokens."""

    def measure(params: Any, batches: Sequence[Batch]) -> dict[str, float]:
        sums = np.sum([[*map(float, eval_step(model, params, batch))] for batch in batches], axis=0)
        _, nll, correct, count = map(float, sums)
        return {"perplexity": math.exp(min(nll / count, 700)), "nll": nll / count, "accuracy": correct / count}

    return measure


def check_ids(batch: Batch, config: Any) -> None:
    """Refuses ids outside the model's vocabularies, which a lookup would silently turn into NaN or another word.

    Raises:
      ValueError: naming the side, the id, its row and its position.
    """
    for side in ("src", "tgt"):
        ids, size = np.asarray(getattr(batch, side)), getattr(config, f"{side}_vocab_size", 0)
        if size and ids.size and (ids.min() < 0 or ids.max() >= size):
            row, position = np.argwhere((ids < 0) | (ids >= size))[0]
            raise ValueError(
                f"{side} id {ids[row, position]} in row {row} of a batch, position {position}, is outside the model's "
                f"vocabulary of {size} (0 to {size - 1}); encode the text with the vocabulary of the model"
            )


def check_params(params: Any, like: Any) -> None:
    """Refuses parameters whose names, shapes or types are not those of ``like`` (its leaves may be shapes alone).

    Raises:
      ValueError: naming the first that differs.
    """
    found, expected = (
        {jax.tree_util.keystr(path): (tuple(np.shape(leaf)), str(leaf.dtype)) for path, leaf in leaves}
        for leaves in (jax.tree_util.tree_leaves_with_path(tree) for tree in (params, like))
    )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"the parameters to start from do not fit the model: {name} is {found.get(name, 'not there')}, "
                f"expected {expected.get(name, 'nothing')}; give the new run the settings of the old one"
            )
