"""The loop with a tiny model and scripted validations: what is best, when it stops, that nothing is lost or doubled."""

import os
import signal
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.training import checkpoints, journal, loop, run_folder
from attn_jax.training import step as step_room
from attn_jax.training.interruption import Interrupted
from attn_jax.training.loop import Evaluation, TrainConfig, train
from attn_jax.training.step import OptimizerConfig
from tests.test_training_step import Echo, EchoConfig, make_batch, make_state

EPOCH = 5
MODEL = Echo(EchoConfig(dropout=0.3))
COMPILED = {name: cache(getattr(loop, name)) for name in ("make_optimizer", "make_train_step")}


class Source:
    """Five batches of two shapes an epoch; ``spoil`` may change the batch of a step."""

    steps_per_epoch = EPOCH

    def __init__(self, spoil=lambda step, batch: batch):
        self.spoil, self.given = spoil, []

    def stream(self, seed, start=0):
        for step in range(start, start + 10_000):
            self.given.append(step)
            yield self.spoil(step, make_batch(1000 * seed + step % EPOCH, tgt_len=3 + step % 2))


class Judge:
    """A validation that says what it is told to say, and keeps copies of what it was given."""

    def __init__(self, *scores, metric="bleu", stop_at=None):
        self.scores, self.metric, self.stop_at, self.seen = list(scores), metric, stop_at, []

    def __call__(self, params):
        self.seen.append(jax.tree.map(np.array, params))
        if len(self.seen) == self.stop_at:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        score = self.scores[len(self.seen) - 1] if self.scores else len(self.seen)
        return Evaluation({self.metric: score, "other": 0.0}, [{"source": "a", "output": f"{score}"}])


def config(**settings):
    defaults = {"steps": 20, "valid_every": 5, "log_every": 1, "keep_best": 1}
    optimizer = settings.pop("optimizer", OptimizerConfig(learning_rate=0.05, warmup=2))
    return TrainConfig(**{**defaults, "optimizer": optimizer, **settings})


def start(folder, judge, *, source=None, resume=False, events=None, model=MODEL, on_best=None, params=None, **settings):
    run = run_folder.create(folder) if not resume else journal.Journal(folder)
    events = [] if events is None else events
    more = {} if on_best is None else {"on_best": on_best}
    note = lambda kind, event: events.append((kind, dict(event)))  # noqa: E731
    return train(model, source or Source(), config(**settings), run, judge,
                 on_event=note, resume=resume, params=params, **more)  # fmt: skip


def records(folder, kind):
    return [r["step"] for r in journal.read_metrics(folder / "metrics.jsonl") if r["kind"] == kind]


def steps(folder):
    return checkpoints.steps(folder / "checkpoints")


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_differ(a, b):
    assert any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def patch_step(monkeypatch, change):
    """Lets ``change(step, state, metrics) -> (state, metrics)`` have a hand in each update; ``step`` counts it."""
    original = loop.make_train_step

    def make(*args, **kwargs):
        step = original(*args, **kwargs)

        def changed(state, *rest):
            return change(int(state.step) + 1, *step(state, *rest))

        changed.jitted = step.jitted
        return changed

    monkeypatch.setattr(loop, "make_train_step", make)


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """All runs here train much the same model: what was compiled for one serves the others."""
    for name, cached in COMPILED.items():
        monkeypatch.setattr(loop, name, cached)


def interrupt_at(monkeypatch, number):
    def kill(step, state, metrics):
        if step == number:
            os.kill(os.getpid(), signal.SIGINT)
        return state, metrics

    patch_step(monkeypatch, kill)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 20 steps from end to end, as the measure of all that were cut in two."""
    folder, judge = tmp_path_factory.mktemp("whole"), Judge(1, 2, 3, 4)
    return folder, start(folder, judge), judge


# -------------------------------------------------------------------------------------------------------- what is best


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("bleu", [1.0, 5.0, 3.0, 4.0], 1),
        ("bleu", [7.0, 5.0, 7.0, 4.0], 0),  # of equals, the first is the one that was best when it came
        ("perplexity", [9.0, 5.0, 2.0, 4.0], 2),
        ("nll", [9.0, 5.0, 2.0, 1.0], 3),
        ("bleu", [float("nan"), 2.0, float("nan"), 1.0], 1),
    ],
)
def test_the_best_validation_is_returned(tmp_path, metric, scores, best):
    judge, saved, events = Judge(*scores, metric=metric), [], []
    keep = lambda params, metrics: saved.append((jax.tree.map(np.array, params), dict(metrics)))  # noqa: E731
    result = start(tmp_path, judge, metric=metric, on_best=keep, events=events)
    assert result.metrics[metric] == scores[best] and result.averaged == 1 and result.step == 20
    flags = [event["best"] for kind, event in events if kind == "valid"]
    assert len(judge.seen) == len(flags) == 4 and len(saved) == sum(flags)
    expected = 2 if scores[0] == 7 else best  # of the same score, the later checkpoint is the one returned
    assert_same(result.params, judge.seen[expected])
    assert_differ(result.params, judge.seen[0 if expected else 1])
    assert_same(saved[-1][0], judge.seen[best])
    assert saved[-1][1][metric] == scores[best]


def test_every_validation_nan_gives_the_last(tmp_path):
    judge = Judge(*[float("nan")] * 4)
    result = start(tmp_path, judge)
    assert_same(result.params, judge.seen[3])
    assert np.isnan(float(result.metrics["bleu"]))


@pytest.mark.parametrize(
    ("metric", "score", "averaged"),
    [("bleu", 9.5, 3), ("bleu", 8.5, 1), ("bleu", 9.0, 1), ("bleu", float("nan"), 1),
     ("perplexity", 0.5, 3), ("perplexity", 1.5, 1)],
)  # fmt: skip
def test_the_mean_is_taken_if_it_validates_better(tmp_path, metric, score, averaged):
    scores = [8.0, 2.0, 9.0, 7.0] if metric == "bleu" else [2.0, 8.0, 1.0, 3.0]
    judge = Judge(*scores, score, metric=metric)
    result = start(tmp_path, judge, metric=metric, keep_best=3)
    assert result.averaged == averaged and len(judge.seen) == 5
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *(judge.seen[i] for i in (0, 2, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), judge.seen[4], mean)
    assert_same(result.params, judge.seen[4 if averaged == 3 else 2])
    assert result.metrics[metric] == (score if averaged == 3 else 9.0 if metric == "bleu" else 1.0)
    assert steps(tmp_path) == [5, 15, 20]


def test_a_metric_that_the_validation_does_not_give(tmp_path):
    with pytest.raises(ValueError, match="the validation gives bleu, other; the metric that decides is 'rouge'"):
        start(tmp_path, Judge(), metric="rouge")


# -------------------------------------------------------------------------------------------------- stopping, by itself


def test_patience_and_its_resume(tmp_path):
    judge = Judge(3.0, 2.0, float("nan"), 4.0, 1.0, 1.0, 9.0)
    first = start(tmp_path, judge, patience=2, steps=50)
    assert first.step == 15 and first.metrics["bleu"] == 3.0 and records(tmp_path, "valid") == [5, 10, 15]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = start(tmp_path, Judge(), patience=2, steps=50, resume=True)  # it is over: nothing is trained or validated
    assert again.step == 15 and again.metrics["bleu"] == 3.0 and (tmp_path / "metrics.jsonl").read_bytes() == before
    assert_same(again.params, first.params)
    more = start(tmp_path, Judge(*judge.scores[3:]), patience=3, steps=35, resume=True)  # more patience goes on
    assert more.step == 35 and records(tmp_path, "valid") == [5, 10, 15, 20, 25, 30, 35]


def test_patience_counts_over_a_resume(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 12)
        start(tmp_path, Judge(3.0, 2.0), patience=3, steps=50)
    judge = Judge(1.0, 2.0, 9.0)
    assert start(tmp_path, judge, patience=3, steps=50, resume=True).step == 20
    assert records(tmp_path, "valid") == [5, 10, 15, 20] and len(judge.seen) == 2


def test_checkpoints_between_validations(tmp_path, monkeypatch):
    written, original = [], checkpoints.save
    note = lambda *args: written.append((args[1], dict(args[3]))) or original(*args)  # noqa: E731
    monkeypatch.setattr(checkpoints, "save", note)
    start(tmp_path, Judge(1.0, 5.0, 2.0), steps=15, checkpoint_every=2)
    assert [step for step, _ in written] == [2, 4, 5, 6, 8, 10, 12, 14, 15]  # at 10 both are due: once
    assert [step for step, metrics in written if metrics] == [5, 10, 15]
    assert steps(tmp_path) == [10, 14, 15]  # the best one and the last two


def test_validations_once_an_epoch_and_at_the_end(tmp_path):
    result = start(tmp_path, Judge(), steps=0, epochs=2, valid_every=0)
    assert result.step == 2 * EPOCH and records(tmp_path, "valid") == [5, 10]
    start(tmp_path / "odd", Judge(), steps=8, valid_every=0, log_every=3)
    assert records(tmp_path / "odd", "valid") == [5, 8] and records(tmp_path / "odd", "train") == [3, 6, 8]


# --------------------------------------------------------------------------------------------- stopping, by an accident


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("then", ["train on", "interrupt"])
def test_nan_is_named_and_never_saved(tmp_path, monkeypatch, what, then):
    def diverge(step, state, metrics):
        if step == 8 and then == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if step >= 7:
            state = state.replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
            nan = metrics.grad_norm * jnp.nan
            metrics = metrics._replace(grad_norm=nan, **({"loss": nan} if what == "loss" or step > 7 else {}))
        return state, metrics

    patch_step(monkeypatch, diverge)
    judge = Judge()
    with pytest.raises(FloatingPointError, match=f"the {what} is no longer a number at step 7;.*--resume"):
        start(tmp_path, judge, steps=60, valid_every=10, checkpoint_every=5, log_every=50)
    assert steps(tmp_path) == [5] and judge.seen == []
    model = Echo()
    saved = checkpoints.restore(tmp_path / "checkpoints", make_state(model, loop.make_optimizer(OptimizerConfig(), 1)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.state))


@pytest.mark.parametrize("number", [3, 10, 20])
def test_interrupt_and_resume_equal_the_whole(tmp_path, monkeypatch, whole, number):
    """At a step of its own, at one that is validated, and at the last."""
    folder, result, judge = whole
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"after a checkpoint of step {number}"):
        interrupt_at(patch, number)
        start(tmp_path, first := Judge(1, 2, 3, 4), checkpoint_every=5)
    source = Source()
    second = Judge(*judge.scores[len(first.seen) :])
    parts = start(tmp_path, second, source=source, resume=True, checkpoint_every=5)
    assert_same(parts.params, result.params)
    assert parts.metrics == result.metrics and parts.step == 20 and len(first.seen) + len(second.seen) == 4
    assert set(source.given) == {number, *range(number, 20)}  # nothing is replayed; the first one gives the shapes
    for kind in ("train", "valid"):
        assert records(tmp_path, kind) == records(folder, kind)
    assert (tmp_path / "samples.txt").read_text() == (folder / "samples.txt").read_text()


@pytest.mark.parametrize("saved", [0, 4])
def test_ctrl_c_twice_in_a_validation(tmp_path, whole, saved):
    folder, result, _ = whole
    with pytest.raises(Interrupted) as stop:
        start(tmp_path, Judge(stop_at=1), checkpoint_every=saved)
    assert stop.value.step == (4 if saved else None) and steps(tmp_path) == ([4] if saved else [])
    assert records(tmp_path, "valid") == []
    parts = start(tmp_path, Judge(1, 2, 3, 4), checkpoint_every=saved, resume=True)
    assert_same(parts.params, result.params)
    for kind in ("train", "valid"):
        assert records(tmp_path, kind) == records(folder, kind)


def test_a_crash_between_the_record_and_the_checkpoint(tmp_path, monkeypatch, whole):
    folder, result, _ = whole
    original = checkpoints.save

    def crash(run, step, *rest):
        if step == 10:
            raise OSError("no space left on device")
        return original(run, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(checkpoints, "save", crash)
        start(tmp_path, Judge(1, 2))
    assert records(tmp_path, "valid") == [5, 10]
    parts = start(tmp_path, Judge(2, 3, 4), resume=True)
    assert_same(parts.params, result.params)
    assert records(tmp_path, "valid") == [5, 10, 15, 20]
    assert (tmp_path / "samples.txt").read_text() == (folder / "samples.txt").read_text()


def test_a_run_that_is_over_resumes_to_the_same_result(whole):
    folder, result, _ = whole
    again = start(folder, judge := Judge(), resume=True, checkpoint_every=5)  # and none that has metrics is saved over
    assert_same(again.params, result.params)
    assert again.metrics == result.metrics and judge.seen == []


def test_a_rotten_best_checkpoint_is_left_out(tmp_path):
    """Of the best three, one is no longer what was written: the run still ends, and says so."""
    start(tmp_path, Judge(1, 4, 3, 2, 0), keep_best=3)
    rotten = max((tmp_path / "checkpoints" / "00000010" / "arrays").rglob("d/*"))
    rotten.write_bytes(rotten.read_bytes()[:-1])
    with pytest.warns(checkpoints.CheckpointWarning, match="skipped the checkpoint of step 10"):
        again = start(tmp_path, judge := Judge(0), resume=True, keep_best=3)
    assert again.metrics["bleu"] == 3 and again.averaged == 1
    mean = checkpoints.average(tmp_path / "checkpoints", [15, 20])
    jax.tree.map(np.testing.assert_array_equal, judge.seen, [mean])


def test_resume_without_a_checkpoint_is_a_fresh_run(tmp_path, whole):
    _, result, judge = whole
    run_folder.create(tmp_path).log(3, {"kind": "train", "loss": 1.0})  # and then it was killed
    assert_same(start(tmp_path, Judge(*judge.scores), resume=True).params, result.params)
    assert records(tmp_path, "train") == [*range(1, 21)]


# ----------------------------------------------------------------------------------------------------- what it is given


@pytest.mark.parametrize(
    ("side", "id_", "row", "position"), [("src", 7, 2, 4), ("tgt", -1, 0, 1), ("tgt", 2**31 - 1, 3, 0)]
)
def test_ids_outside_the_vocabulary(tmp_path, side, id_, row, position):
    def spoil(step, batch):
        if step == 1:
            getattr(batch, side)[row, position] = id_
        return batch

    message = rf"{side} id {id_} in row {row} of a batch, position {position}, .* vocabulary of 7 \(0 to 6\)"
    with pytest.raises(ValueError, match=message):
        start(tmp_path, Judge(), source=Source(spoil))


def test_parameters_to_start_from_are_copied(tmp_path):
    given = make_state(MODEL, loop.make_optimizer(OptimizerConfig(), 1), seed=5).params
    before = jax.tree.map(np.array, given)
    optimizer = OptimizerConfig(learning_rate=1e-12)
    judge = Judge()
    start(tmp_path / "a", judge, params=given, steps=2, optimizer=optimizer)
    assert_same(given, before)  # the update is given the state's memory, and this must not be it
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), judge.seen[0], before)
    start(tmp_path / "b", judge, params=before, steps=2, optimizer=optimizer)  # arrays of NumPy will do
    assert_same(judge.seen[0], judge.seen[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"kernel": p["kernel"].T}, r"\['kernel'\] is \(\(7, 4\), 'float32'\), expected \(\(4, 7\), "),
        (lambda p: p | {"bias": p["bias"].astype(np.float16)}, r"\['bias'\] is .*'float16'\), expected .*'float32'\)"),
        (lambda p: p | {"more": p["bias"]}, r"\['more'\] is .*, expected nothing"),
        (lambda p: {k: v for k, v in p.items() if k != "embed"}, r"\['embed'\]\['embedding'\] is not there, expected"),
    ],
    ids=["shape", "dtype", "one too many", "one missing"],
)
def test_parameters_that_do_not_fit(tmp_path, change, message):
    params = jax.tree.map(np.array, make_state(MODEL, loop.make_optimizer(OptimizerConfig(), 1)).params)
    with pytest.raises(ValueError, match=f"the parameters to start from do not fit the model: {message}"):
        start(tmp_path, Judge(), params=change(params))


def test_each_update_is_given_its_probability(tmp_path, monkeypatch):
    seen, traced, original = [], [], loop.make_train_step

    def make(*args, **kwargs):
        step = original(*args, **kwargs)

        def noting(state, batch, rng, teacher_forcing, guided):
            seen.append(teacher_forcing if teacher_forcing is None else float(teacher_forcing))
            assert guided is None
            return step(state, batch, rng, teacher_forcing, guided)

        def tracing(*args):
            traced.append(args[4])
            return gradient.trace(*args)

        gradient, update = step.jitted
        noting.jitted = SimpleNamespace(trace=tracing, _cache_size=gradient._cache_size), update
        return noting

    monkeypatch.setattr(loop, "make_train_step", make)
    result = start(tmp_path / "a", Judge(), steps=4, teacher_forcing="linear", optimizer=OptimizerConfig(warmup=1))
    assert seen == pytest.approx([1, 0.75, 0.5, 0.25])
    assert result.traces == {"gradient": 2, "update": 1, "shapes": 2}  # a new value is not a new function
    start(tmp_path / "b", Judge(), steps=1)
    assert seen[4] is None
    assert [value and float(value) for value in traced] == [1, None]  # once a run, as it will be called


@pytest.mark.parametrize(("schedule", "resumed"), [("constant", False), ("linear", False), ("linear", True)])
def test_each_shape_is_traced_once(schedule, resumed, tmp_path, monkeypatch):
    settings = {"teacher_forcing": schedule, "steps": 12, "optimizer": OptimizerConfig(warmup=1)}
    if resumed:
        interrupt_at(monkeypatch, 7)
        with pytest.raises(Interrupted):
            start(tmp_path, Judge(), **settings)
    traced, loss = [], step_room.batch_loss

    def counted(model, params, batch, rng, *, teacher_forcing, **options):
        traced.append(batch.tgt.shape)
        return loss(model, params, batch, rng, **options)

    monkeypatch.setattr(step_room, "batch_loss", counted)
    monkeypatch.setattr(loop, "make_train_step", step_room.make_train_step)  # of its own
    start(tmp_path, Judge(), resume=resumed, **settings)
    assert traced == ([(4, 4), (4, 3)] if resumed else [(4, 3), (4, 4)])
    traced.clear()
    start(tmp_path, Judge(), resume=True, **settings)
    assert not traced  # there is nothing left to do
