"""``python -m experiments.speed [ROW ...] [--quick] [--out DIR]``: the speed scoreboard.

Rows: layer, train, decode, attention, start, padding, scale, peers, students; without one, all of them. Contenders do
the same work on the same data at a stated precision, with a thread for each core, take turns, and medians are compared;
"% of floor" is the time that the products alone would take at the best rate of a matrix product measured at the start.
Peers come from the ``bench`` extra; Joey NMT needs an environment of its own, ``--joey PYTHON`` names its interpreter.
A machine that does anything else beside this measures that. On two cores all rows take 26 minutes (older ones 36);
what they gave is in ``results/`` beside this package.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from attn_jax import save_figure
from attn_jax.__main__ import ALLOCATOR
from attn_jax.training.environment import environment
from experiments.runner import as_rich, compile_quickly, load, plain
from experiments.speed import board, peers, scale
from experiments.speed.measure import Section, compete, cores, emulates_bfloat16, product_rates

ROWS = ("layer", "train", "decode", "attention", "start", "padding", "scale", "peers", "students")
SETTINGS = ("GLIBC_TUNABLES", "XLA_FLAGS", "OMP_NUM_THREADS", "KERAS_BACKEND")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; gives what became of the goals of each row."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed", description="Our speed beside our peers'.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds, to see that it works")
    parser.add_argument("--out", type=Path, help="folder for JSON and figures; runs/speed, --quick: runs/speed-quick")
    parser.add_argument("--joey", metavar="PYTHON", help="interpreter of the environment that has joeynmt")
    parser.add_argument("--epoch", action="store_true", help="peers: a whole epoch of Multi30k too (tens of minutes)")
    options = parser.parse_args(arguments)
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if (options.joey or options.epoch) and options.rows and "peers" not in options.rows:
        parser.error("--joey and --epoch are of the row peers, which is not among those asked for")
    if options.joey and not shutil.which(options.joey):
        parser.error(f"--joey: no interpreter {options.joey}")
    options.out = options.out or Path("runs/speed-quick" if options.quick else "runs/speed")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    if options.quick:
        compile_quickly()
    console, goals, failed = Console(width=150), {}, []
    rates = product_rates(0.1 if options.quick else 2.0)
    console.print("floor: " + ", ".join(f"{rate / 1e9:,.0f} GF/s {precision}" for precision, rate in rates.items()))
    for row in options.rows or ROWS:
        began = time.perf_counter()
        try:
            section = run_row(row, rates, options, console)
            seconds = time.perf_counter() - began
            files = save(options.out, row, section, rates, seconds, options.quick)
        except KeyboardInterrupt:
            parser.exit(130, f"interrupted in the row {row}; those before it are in {options.out}\n")
        except Exception:
            console.print_exception(width=150)
            failed.append(row)
            continue
        for table in section.tables:
            console.print(as_rich(table))
        console.print(f"{row}: {seconds:.0f} s; {', '.join(map(str, files))}")
        goals[row] = section.goals
    console.print(as_rich(board.goals_table(goals)))
    if options.quick:
        console.print("Sizes were tiny: the verdicts say only that something can be judged.")
    if failed:
        parser.exit(1, f"failed: {', '.join(failed)}; the reasons are above, the other rows are in {options.out}\n")
    return goals


def run_row(row: str, rates: Mapping[str, float], options: argparse.Namespace, console: Console) -> Section:
    """What one row finds."""
    if row == "peers":
        precisions = ("float32",) if emulates_bfloat16(rates) else ("float32", "bfloat16")
        return peers.run(options.quick, joey=options.joey, whole_epoch=options.epoch, precisions=precisions)
    if hasattr(module := load(f"speed.{row}"), "contests"):
        return compete_all(module, rates, options.quick, console)
    return module.run(options.quick)


def compete_all(module: Any, rates: Mapping[str, float], quick: bool, console: Console) -> Section:
    """Every contest of a row, printed as soon as it is measured."""
    contests, goals = {}, []
    for contest in module.contests(quick):
        found = contests[contest.title] = compete(contest, rates, quick=quick)
        goals += [{"contest": contest.title, **goal} for goal in found.pop("goals")]
        console.print(as_rich(board.contest_table(contest.title, found)))
    return Section({"contests": contests}, [], goals)


def save(out: Path, row: str, section: Section, rates: Mapping[str, float], seconds: float, quick: bool) -> list[Path]:
    """Writes ``ROW.json``, and ``ROW.png`` where there is something to draw."""
    record = {
        "row": row,
        "quick": quick,
        "seconds": round(seconds, 1),
        "machine": machine(),
        "rates": rates,
        "numbers": section.numbers,
        "goals": section.goals,
    }
    record = json.loads(json.dumps(plain(record)), parse_constant=lambda _: None)  # JSON has no NaN
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (out / f"{row}.json").write_text(text + "\n", encoding="utf-8")
    figure = None
    if "contests" in section.numbers:
        figure = board.draw(section.numbers["contests"])
    elif "sweeps" in section.numbers:
        figure = scale.draw_sweeps(section.numbers["sweeps"], section.numbers["exponents"])
    return [out / f"{row}.json", *([save_figure(figure, out / f"{row}.png")] if figure else [])]


def machine() -> dict[str, Any]:
    """Where this runs: versions, processor, threads, load, and settings that change speed; no paths, to be shown."""
    versions = {name: peers.version(name) for name in peers.PACKAGES}
    load_average = os.getloadavg() if hasattr(os, "getloadavg") else None
    settings = {name: os.environ.get(name) for name in SETTINGS}
    found = {"processor": processor(), "threads": cores(), "peers": versions, "load": load_average}
    known = {name: value for name, value in environment().items() if name not in ("command", "platform")}
    return known | found | {"system": f"{platform.system()} {platform.machine()}", "settings": settings}


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        # The allocator that the command line runs with serves every contender alike.
        os.environ["GLIBC_TUNABLES"] = ALLOCATOR
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # children share a GPU with this process
    # Compilations are seen in full. Children that are to find one cached name a folder of their own.
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        main()
