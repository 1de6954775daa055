"""Who is here to compare with, and a whole toolkit: Joey NMT over 100 fixed batches, and over a whole epoch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.runner import Grid
from experiments.speed import epoch
from experiments.speed.measure import NO_NARROW, OURS, Section, verdict

PACKAGES = ("torch", "keras", "ctranslate2")
GOALS = {"attn_jax bfloat16": 4.0, "attn_jax float32": 2.8}
"""How many times as fast as Joey NMT, over the fixed batches and over an epoch."""


def run(
    quick: bool = False,
    *,
    joey: str | None = None,
    whole_epoch: bool = False,
    precisions: Sequence[str] = ("float32", "bfloat16"),
) -> Section:
    """Versions of the peers; Joey NMT if it is there, with the data of ``ATTN_JAX_DATA``.

    Args:
      quick: only looks who is there.
      joey: the Python interpreter of the environment that has Joey NMT; None: this one.
      whole_epoch: also one epoch of Multi30k by each, everything included; it takes tens of minutes.
      precisions: of ours.
    """
    joey, data = joey or sys.executable, Path(os.environ.get("ATTN_JAX_DATA", ""))
    there = {name: version(name) for name in PACKAGES}
    found = epoch.joey_version(joey)
    there["joeynmt"] = found.get("version")
    rows = [(name, has or "missing") for name, has in there.items()]
    tables, numbers = [Grid("peers", ("", "version"), rows)], {"versions": there}
    if there["joeynmt"] is None:
        numbers["joeynmt"] = {"missing": found.get("failed", "not installed")}
    elif not (data / "multi30k").is_dir():
        numbers["joeynmt"] = {"missing": "no Multi30k: set ATTN_JAX_DATA to the folder that has multi30k"}
    elif quick:
        numbers["joeynmt"] = {"missing": "left out of a quick run"}
    else:
        numbers["joeynmt"] = attempt(epoch.compare, joey, data, precisions)
        if whole_epoch:
            numbers["whole_epoch"] = attempt(epoch.whole_epoch, joey, data, precisions)
    medians = numbers["joeynmt"].get("medians", {})
    seconds = numbers.get("whole_epoch", {}).get("seconds", {})
    if medians:
        tables.append(throughput_table(numbers["joeynmt"]))
    if seconds:
        tables.append(epoch_table(seconds))
    goals = [
        verdict(f"{ours} / joeynmt, tokens/s", goal, medians[ours] / medians["joeynmt"] if ours in medians else None)
        for ours, goal in GOALS.items()
    ]
    goals += [
        verdict(f"joeynmt / {ours}, an epoch", goal, seconds["joeynmt"] / seconds[ours] if ours in seconds else None)
        for ours, goal in GOALS.items()
    ]
    absent = [
        (what, kind, numbers[what][kind])
        for what in ("joeynmt", "whole_epoch")
        for kind in ("missing", "failed")
        if kind in numbers.get(what, {})
    ]
    if (medians or seconds) and "bfloat16" not in precisions:
        absent.append((f"{OURS} bfloat16", "missing", NO_NARROW))
    if absent:
        tables.append(Grid("Joey NMT", ("", "", "why"), absent))
    return Section(numbers, tables, goals)


def attempt(measure: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What a measurement finds, or ``{"failed": reason}``: one that fails leaves the others alone."""
    try:
        return measure(*args)
    except (RuntimeError, OSError) as error:
        return {"failed": f"{error}"}


def version(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def throughput_table(found: dict[str, Any]) -> Grid:
    """Target tokens a second of every run, and how many times Joey NMT's median."""
    base = found["medians"]["joeynmt"]
    rows = [
        (name, *(f"{rate:,.0f}" for rate in rates), f"{found['medians'][name] / base:.2f}")
        for name, rates in found["target_tokens_s"].items()
    ]
    runs = len(next(iter(found["target_tokens_s"].values())))
    columns = ("", *(f"run {number + 1}" for number in range(runs)), "x joeynmt")
    return Grid(f"{epoch.BATCHES} fixed batches of {epoch.BATCH}, target tokens/s", columns, rows)


def epoch_table(seconds: Mapping[str, float]) -> Grid:
    """Seconds of a whole epoch, and how many times as long Joey NMT takes."""
    rows = [(name, f"{of:,.0f}", f"{seconds['joeynmt'] / of:.2f}") for name, of in seconds.items()]
    return Grid("one epoch of Multi30k with validation, start and data included", ("", "seconds", "x joeynmt"), rows)
