"""The process of the command line: its allocator is set before anything is imported."""

import os
import subprocess
import sys

import pytest

import attn_jax
from attn_jax import __main__ as entry
from attn_jax import cli


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_the_program_starts_again_once_with_its_allocator_set(monkeypatch):
    started = []

    def execv(path, args):
        started.append((path, args, os.environ["GLIBC_TUNABLES"]))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "attn_jax", "--help"])
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.delenv("GLIBC_TUNABLES")  # setenv first: what main sets is then undone too
    with pytest.raises(SystemExit):
        entry.main()
    assert started == [(sys.executable, [sys.executable, "-m", "attn_jax", "--help"], entry.ALLOCATOR)]


def test_arguments_and_exit_code_pass_through_the_second_start():
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    run = subprocess.run(
        [sys.executable, "-m", "attn_jax", "evaluate", "no such folder", "--src", __file__, "--ref", __file__],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "no such folder" in run.stderr
    assert "Traceback" not in run.stderr


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"attn-jax {attn_jax.__version__}\n"
