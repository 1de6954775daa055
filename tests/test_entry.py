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


def test_nothing_looks_for_garbage_among_what_was_imported():
    check("import_all(); assert gc.isenabled() and gc.get_freeze_count() > 100_000 > len(gc.get_objects())")
    check("gc.disable(); import_all(); assert not gc.isenabled()")


def test_matplotlib_waits_until_a_figure_is_asked_for():
    check(
        "import_all(); from attn_jax import viz; from attn_jax.verbs import attend\n"
        "assert 'attn_jax.run' in sys.modules and 'matplotlib' not in sys.modules and 'plot_attention' in dir(viz)\n"
        "assert callable(viz.plot_attention) and viz.figures.SUFFIXES and 'matplotlib' in sys.modules\n"
        "assert not hasattr(viz, 'plot_attentoin')"
    )


def check(code):
    code = f"import gc, sys; from attn_jax.cli import import_all\n{code}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
