"""Signals to a real process: it stops in good order wherever they find it, and --resume goes on as if nothing was."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_main_job import make_text, train_command

from attn_jax import cli
from attn_jax.hub import Translator
from attn_jax.training import checkpoints, journal

STEPS = 30
PATIENCE = 300
"""Seconds until a process counts as hung; nothing here takes a tenth of it on a quiet machine."""


def command(text, out, *more):
    options = ["--steps", STEPS, "--checkpoint-every", 1, "--valid-every", STEPS, "--buckets", 1]
    return train_command(text, out, *options, "--valid-src", text / "few.tsv", *more)


def begin(args, *, cached=True):
    """Starts a process that compiles as this one does, so that they give the same numbers and share a cache."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir if cached else "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(jax.config.read("jax_disable_most_optimizations")),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "attn_jax", *args], env=environment, **pipes)


def wait_for(condition, process):
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up, "it hangs"
        time.sleep(0.005)


def end(process):
    """What a process that was interrupted says: nothing that a person could not read."""
    try:
        out, error = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, (out, error)
    assert "Traceback" not in error, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("attn-jax: interrupted"), error
    return out, error


def saved(out):
    """The newest checkpoint, or 0."""
    return checkpoints.latest_step(out / "checkpoints") or 0


@pytest.fixture(autouse=True)
def signals_that_are_heard():
    """A shell without job control ignores Ctrl-C in what it starts in the background, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.getbasetemp())


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_signals_at_any_time(text, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cli.main(command(text, whole))  # and fills the compilation cache

    process = begin(command(text, parts))
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=PATIENCE)
    python_alone = process.returncode in (1, -signal.SIGINT) and "attn_jax" not in error  # before it came to us
    assert python_alone or (process.returncode, error) == (130, "attn-jax: interrupted\n"), (out, error)
    assert not saved(parts)

    # while it compiles: Ctrl-C, and again at once
    for seconds in (0.1, 0.5, 0.9):
        process = begin(command(text, parts, "--overwrite"), cached=False)
        assert any("compiling" in line for line in process.stdout)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, error = end(process)
        assert "stopping after this step" in error

    # while it trains: Ctrl-C
    process = begin(command(text, parts, "--overwrite"))
    wait_for(lambda: saved(parts) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, error = end(process)
    step = saved(parts)
    assert 3 <= step < STEPS and "stopping after this step; a checkpoint is saved first" in error
    assert f"interrupted after a checkpoint of step {step}; go on with the same command and --resume" in error

    # while it trains: the signal of a machine that shuts down; and Ctrl-C while the process is about to end
    process = begin(command(text, parts, "--resume"))
    wait_for(lambda: saved(parts) >= step + 2, process)
    process.terminate()
    time.sleep(0.15)
    process.send_signal(signal.SIGINT)
    end(process)
    assert step + 2 <= saved(parts) < STEPS

    # and nothing of it all is seen in the result
    cli.main(command(text, parts, "--resume"))
    jax.tree.map(np.testing.assert_array_equal, *(Translator.load(out).params for out in (whole, parts)))
    for kind in ("train", "valid", "end"):
        found = [[r["step"] for r in journal.read_metrics(out / "metrics.jsonl") if r["kind"] == kind]
                 for out in (whole, parts)]  # fmt: skip
        assert found[0] == found[1] and STEPS in found[0]
    assert (whole / "samples.txt").read_text() == (parts / "samples.txt").read_text()
    assert len(json.loads((parts / "environment.json").read_text())) == 3
