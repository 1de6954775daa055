"""Checkpoints: exact round trips, corruption noticed and survived, kills at any moment, retention, averaging."""

import ast
import logging
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax.storage import manifest
from attn_jax.storage.files import replaced_name, saving_name
from attn_jax.training import checkpoints
from attn_jax.training.checkpoints import (
    CheckpointError,
    CheckpointWarning,
    Keep,
    average,
    best_steps,
    latest_step,
    prune,
    restore,
    save,
    steps,
)


@flax.struct.dataclass
class State:
    params: dict
    opt_state: tuple
    step: jax.Array
    rng: jax.Array
    extra: dict


class Tiny(NamedTuple):
    step: jax.Array


def tiny(step):
    return Tiny(jnp.int32(step))


@pytest.fixture
def state(rng):
    params = {"encoder": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)}}
    extra = {
        "best": {"bleu": 1 / 3, "epoch": 7, "done": False},
        "none": None,
        "double": np.array([1 / 3]),
        "row": np.float32(0.1),
        "empty": jnp.zeros((0, 2)),
        "old_key": jax.random.key_data(rng),
    }
    return State(params, optax.adamw(1e-3).init(params), jnp.int32(5), jax.random.split(rng), extra)


def spoil(folder, step, name="manifest.json"):
    """Flips one bit of a checkpoint's file; ``arrays`` stands for the largest of them."""
    path = folder / f"{step:08d}"
    path = max((path / name).rglob("d/*"), key=lambda p: p.stat().st_size) if name == "arrays" else path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    return path


def blank(leaf):
    if isinstance(leaf, (bool, int, float)):
        return type(leaf)(0)
    return leaf if checkpoints._is_key(leaf) else leaf * 0


def described(tree):
    data = jax.tree.map(lambda x: jax.random.key_data(x) if checkpoints._is_key(x) else x, tree)
    return [(type(x), np.asarray(x).dtype, np.shape(x), np.asarray(x).tobytes()) for x in jax.tree.leaves(data)]


def test_round_trip_is_exact(tmp_path, state):
    save(tmp_path, 5, state, {"bleu": np.float32(0.5), "loss": float("nan")})
    like = jax.tree.map(blank, state)
    step, found, metrics = restore(str(tmp_path), like)
    assert (step, metrics) == (5, {"bleu": 0.5, "loss": "nan"})
    assert jax.tree.structure(found) == jax.tree.structure(state) and described(found) == described(state)
    np.testing.assert_array_equal(jax.random.normal(found.rng[1], 3), jax.random.normal(state.rng[1], 3))
    assert found.params["encoder"]["bias"].committed is False  # as a fresh state: the jitted step is not compiled anew


def test_round_trip_from_shapes_alone(tmp_path, state):
    save(tmp_path, 5, state)
    like = jax.tree.map(lambda x: jax.eval_shape(lambda: x) if isinstance(x, jax.Array) else x, state)
    assert described(restore(tmp_path, like).state) == described(state)


def test_restored_state_may_be_donated_and_is_not_traced_anew(tmp_path, state):
    traces = []
    update = jax.jit(lambda p: traces.append(1) or jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    save(tmp_path, 0, state)
    found = restore(tmp_path, state).state
    update(state.params)
    updated = update(found.params)
    np.testing.assert_array_equal(updated["encoder"]["kernel"], np.arange(6).reshape(2, 3) + 1)
    assert len(traces) == 1 and update._cache_size() == 1


def test_files_and_manifest(tmp_path):
    path = save(tmp_path, 12, tiny(12), {"loss": 2.5})
    record = manifest.read_manifest(path)
    assert path == tmp_path / "00000012" and [p.name for p in tmp_path.iterdir()] == ["00000012"]
    assert (record["step"], record["metrics"], record["leaves"]) == (12, {"loss": 2.5}, {"step": ["int32", []]})
    on_disk = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert on_disk == {*record["files"], "manifest.json"} and all(n.startswith("arrays/") for n in record["files"])


@pytest.mark.parametrize("name", ["arrays", "manifest.json"])
def test_bit_rot_falls_back_to_the_next_older(tmp_path, name):
    for step in (10, 20, 30):
        save(tmp_path, step, tiny(step))
    bad = [spoil(tmp_path, 30, name), tmp_path / "00000020" / "manifest.json"]
    bad[1].unlink()
    with pytest.warns(CheckpointWarning) as caught:
        assert restore(tmp_path, tiny(0)) == (10, tiny(10), {})
    messages = [str(w.message) for w in caught]
    assert len(messages) == 2 and all("\n" not in m for m in messages)
    assert messages[0].startswith(f"skipped the checkpoint of step 30: {bad[0]}")
    assert messages[1] == f"skipped the checkpoint of step 20: {bad[1]}: missing"
    assert latest_step(tmp_path) == 30  # what is there, not what is whole


def test_every_file_is_watched(tmp_path):
    path = save(tmp_path, 1, tiny(1))
    for file in [p for p in path.rglob("*") if p.is_file()]:
        whole = file.read_bytes()
        for content in (whole[:-2], None):
            file.unlink() if content is None else file.write_bytes(content)
            with pytest.warns(CheckpointWarning, match=file.name), pytest.raises(CheckpointError, match="none of 1"):
                restore(tmp_path, tiny(0))
        file.write_bytes(whole)
    restore(tmp_path, tiny(0))


def test_none_left(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint, there is none; start training afresh"):
        restore(tmp_path / "nowhere", tiny(0))
    for step in (1, 2):
        save(tmp_path, step, tiny(step))
        spoil(tmp_path, step)
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match=r"none of 2 .*copy one from a backup"):
        restore(tmp_path, tiny(0))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3, there are 1, 2; start"):
        restore(tmp_path, tiny(0), step=3)


def test_a_named_step_is_taken_and_no_other(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, tiny(step))
    assert restore(tmp_path, tiny(0), step=1).state == tiny(1)
    spoil(tmp_path, 2)
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="none of 1"):
        restore(tmp_path, tiny(0), step=2)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": jnp.zeros(2)}, r"holds 'b', which the state here has not"),
        ({"a": jnp.zeros(2), "b": 1, "c": 1}, r"has no 'c'"),
        ({"a": jnp.zeros(3), "b": 1}, r"expected float32\[3\] for 'a', found float32\[2\]"),
        ({"a": jnp.zeros(2, jnp.int32), "b": 1}, r"expected int32\[2\] for 'a', found float32\[2\]"),
        ({"a": jnp.zeros(2), "b": 1.0}, r"expected float64\[\] for 'b', found int64\[\]"),
    ],
)
def test_another_model_is_refused(tmp_path, like, message):
    save(tmp_path, 1, {"a": jnp.zeros(2), "b": 1})
    with pytest.raises(CheckpointError, match=message + ".*; resume with the configuration it was saved with"):
        restore(tmp_path, like)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": "text"}}, r"expected an array, a number or a key for 'a/b', found str"),
        ({"a": {"b": 1}, "a/b": 2}, "different names"),
        ({"a": {"b": 1}, "a/b/c": 2}, "the name 'a/b' is also the beginning of 'a/b/c'"),
    ],
)
def test_what_cannot_be_saved(tmp_path, state, message):
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "run", 1, state)
    with pytest.raises(CheckpointError, match="step >= 0"):
        save(tmp_path / "run", -1, tiny(0))
    assert not list(tmp_path.iterdir())


# Kills. A killed process leaves what it had done so far, and runs no `finally`.


def test_killed_while_writing(tmp_path):
    path = save(tmp_path, 10, tiny(10))
    scratch = saving_name(tmp_path / "00000020")
    shutil.copytree(path / "arrays", scratch / "arrays")  # the manifest was not reached
    assert restore(tmp_path, tiny(0)).step == 10 and steps(tmp_path) == [10]
    save(tmp_path, 30, tiny(30))
    assert not scratch.exists() and restore(tmp_path, tiny(0)).step == 30


def test_killed_while_replacing_the_same_step(tmp_path):
    path = save(tmp_path, 10, tiny(1))
    path.rename(replaced_name(path))  # the old one is aside, the new one is not yet in its place
    assert restore(tmp_path, tiny(0)).state == tiny(1) and steps(tmp_path) == [10]
    save(tmp_path, 10, tiny(2))
    assert [p.name for p in tmp_path.iterdir()] == ["00000010"]
    shutil.copytree(path, replaced_name(path))  # the new one is in its place, the old one is not yet gone
    spoil(tmp_path, 10, "arrays")
    with pytest.warns(CheckpointWarning):
        assert restore(tmp_path, tiny(0)).state == tiny(2)


def test_killed_while_removing(tmp_path, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    for step in (10, 20):
        save(tmp_path, step, tiny(step))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "remove_folder", killed)
        prune(tmp_path, Keep(last=1))
    assert not (tmp_path / "00000010" / "manifest.json").exists()  # never half of a folder that passes for a whole one
    assert restore(tmp_path, tiny(0)).step == 20
    assert prune(tmp_path, Keep(last=1)) == [10] and steps(tmp_path) == [20]


def test_interrupt_while_saving(tmp_path, monkeypatch):
    save(tmp_path, 10, tiny(10))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 20, tiny(20))
    assert [p.name for p in tmp_path.iterdir()] == ["00000010"] and restore(tmp_path, tiny(0)).step == 10


# Which checkpoints stay.


def test_last_and_best_stay(tmp_path):
    keep = Keep(last=2, best=2, metric="bleu", mode="max")
    kept = []
    for step, bleu in enumerate([1.0, 9.0, 2.0, 8.0, float("nan"), 3.0]):
        save(tmp_path, step, tiny(step), {"bleu": bleu}, keep)
        kept.append(steps(tmp_path))
    assert kept == [[0], [0, 1], [1, 2], [1, 2, 3], [1, 3, 4], [1, 3, 4, 5]]
    assert best_steps(tmp_path, keep) == [1, 3]
    assert best_steps(tmp_path, Keep(best=2, metric="bleu", mode="min")) == [5, 3]
    assert best_steps(tmp_path, Keep(best=2, metric="unheard of")) == []
    assert prune(tmp_path, Keep(last=1)) == [1, 3, 4] and steps(tmp_path) == [5]


def test_of_equals_the_later_is_best_and_a_garbled_one_is_none(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, tiny(step), {"loss": 0.5})
    assert best_steps(tmp_path, Keep(best=3)) == [3, 2, 1]
    spoil(tmp_path, 3)
    assert best_steps(tmp_path, Keep(best=1)) == [2]


def test_an_abandoned_future_goes(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, tiny(step))
    save(tmp_path, 15, tiny(15), keep=Keep(last=1))  # resumed from step 10
    assert steps(tmp_path) == [15]


@pytest.mark.parametrize("bad", [{"last": 0}, {"best": -1}, {"mode": "most"}])
def test_keep_is_validated(bad):
    with pytest.raises(ValueError, match="expected"):
        Keep(**bad)


# Averages.


def test_average_is_the_mean(tmp_path):
    kernels = [1.0, 2.0, 6.0]
    for step, value in enumerate(kernels):
        params = {
            "w": {"kernel": jnp.full((2,), value)},
            "b": jnp.full((1,), value, jnp.bfloat16),
            "none": jnp.ones((0,)),
        }
        save(tmp_path, step, {"params": params, "other": jnp.ones(3)})
    mean = average(tmp_path, [0, 1, 2])
    assert mean.keys() == {"w", "b", "none"} and mean["w"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(mean["w"]["kernel"], [3, 3])
    assert mean["b"].dtype == jnp.bfloat16 and mean["b"] == 3 and mean["none"].shape == (0,)
    np.testing.assert_array_equal(average(tmp_path, [2])["w"]["kernel"], [6, 6])


def test_average_is_summed_in_float64(tmp_path):
    for step, value in enumerate([2.0**24, 1.0, 1.0, 2.0]):  # in float32, 2^24 + 1 = 2^24
        save(tmp_path, step, {"params": {"w": jnp.float32(value)}}, keep=Keep(last=4))
    assert average(tmp_path, [0, 1, 2, 3])["w"] == np.float32((2**24 + 4) / 4)


def test_average_refuses_to_average_less_or_other(tmp_path):
    for step, params in enumerate(
        [{"w": jnp.ones(2)}, {"w": jnp.ones(2)}, {"w": jnp.ones(3)}, {"w": jnp.ones(3, int)}]
    ):
        save(tmp_path, step, {"params": params}, keep=Keep(last=9))
    with pytest.raises(CheckpointError, match="at least one step"):
        average(tmp_path, [])
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        average(tmp_path, [0, 7])
    with pytest.raises(CheckpointError, match="'params' differ from those of step 1"):
        average(tmp_path, [1, 2])
    with pytest.raises(CheckpointError, match="'weights' are missing"):
        average(tmp_path, [1], part="weights")
    with pytest.raises(CheckpointError, match="expected floats to average, found int32 for params/w"):
        average(tmp_path, [3])
    spoil(tmp_path, 1, "arrays")
    with pytest.raises(CheckpointError, match="leave step 1 out"):
        average(tmp_path, [0, 1])


# Orbax stays in the background.


def test_orbax_is_quiet_and_its_logger_is_left_as_it_was(tmp_path, caplog, capfd):
    logger = logging.getLogger("absl")
    caplog.set_level(logging.INFO, logger="absl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(tmp_path, 1, tiny(1))
        restore(tmp_path, tiny(0))
    assert logger.level == logging.INFO and not caplog.records and capfd.readouterr() == ("", "")


def test_orbax_is_imported_only_when_needed():
    tree = ast.parse(Path(checkpoints.__file__).read_text(encoding="utf-8"))
    eager = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not [ast.unparse(node) for node in eager if "orbax" in ast.unparse(node)]
