"""``python -m experiments [NAME | all] [--quick] [--out DIR]``: lists the experiments, or runs one or all of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import jax

from attn_jax.cli import use_compilation_cache
from experiments.runner import load, run_experiment

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
    parser = argparse.ArgumentParser(prog="python -m experiments", description="What the notebooks claim, measured.")
    parser.add_argument("name", nargs="?", choices=(*NAMES, "all"), help="an experiment; without one they are listed")
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder for results and figures")
    options, rest = parser.parse_known_args()
    if options.name is None:
        for name in NAMES:
            print(f"{name:24}{load(name).__doc__.splitlines()[0]}")
        return
    if options.name == "all" and rest:
        parser.error(f"'all' takes no settings of a single experiment, found {' '.join(rest)}")
    use_compilation_cache()
    if options.quick:  # compilation is most of it: plain kernels, few optimisations
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
        jax.config.update("jax_disable_most_optimizations", True)
    for name in NAMES if options.name == "all" else (options.name,):
        run_experiment(name, rest, quick=options.quick, out=options.out)


if __name__ == "__main__":
    main()
