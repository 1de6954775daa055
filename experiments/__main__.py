"""``python -m experiments [NAME | all] [--quick] [--out DIR]``: lists the experiments, or runs one or all of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from attn_jax.cli import use_compilation_cache
from experiments.runner import RefusedError, compile_quickly, load, run_experiment

NAMES = (
    "information_bottleneck",
    "translation_process",
    "qkv_walkthrough",
    "scaled_dot_product",
    "tutorial_translation",
    "birnn",
    "teacher_forcing",
    "compare_attention",
    "benchmark_models",
    "nmt",
    "first_token",
    "temperature",
)


def main() -> None:
    """The command line."""
    description = "What the notebooks claim, measured."
    parser = argparse.ArgumentParser(prog="python -m experiments", description=description, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="after the name of an experiment: its settings")
    parser.add_argument("name", nargs="?", choices=(*NAMES, "all"), help="an experiment; without one they are listed")
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder for results and figures")
    options, rest = parser.parse_known_args()
    if options.help:
        if options.name in NAMES:
            rest.append("--help")
        else:
            parser.print_help()
            return
    if options.name is None:
        for name in NAMES:
            print(f"{name:24}{load(name).__doc__.splitlines()[0]}")
        return
    if options.name == "all" and rest:
        parser.error(f"'all' takes no settings of a single experiment, found {' '.join(rest)}")
    use_compilation_cache()
    if options.quick:
        compile_quickly()
    names, failed = NAMES if options.name == "all" else (options.name,), []
    for name in names:
        try:
            check_folder(options.out / name, options.quick)
            run_experiment(name, rest, quick=options.quick, out=options.out)
        except RefusedError as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            raise SystemExit(f"{name}: interrupted; nothing of it was written") from None
        except AssertionError as error:  # its results are written, and the others still run
            failed.append(f"{name}: {error}")
    if failed:
        raise SystemExit("findings that do not hold:\n" + "\n".join(failed))


def check_folder(folder: Path, quick: bool) -> None:
    """Whether the results of a run may go to ``folder``; a quick run never takes the place of a full one.

    Raises:
      RefusedError: where there is a full run, or no folder can be.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise RefusedError(f"{there}: is no folder; choose another --out")
    before = folder / "results.json"
    if quick and before.exists() and not json.loads(before.read_text(encoding="utf-8"))["quick"]:
        raise RefusedError(f"{folder}: holds a full run, which a quick one would replace; choose another --out")


if __name__ == "__main__":
    main()
