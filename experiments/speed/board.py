"""The tables and figures of contests, and the table of all goals."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.runner import COLORS, Grid, new_figure
from experiments.speed.measure import OURS

COLUMNS = (
    "",
    "precision",
    "ms (quartiles)",
    "x ours",
    "% of floor",
    "first s",
    "compile s",
    "executable MB",
    "peak MB",
)


def contest_table(title: str, found: Mapping[str, Any]) -> Grid:
    """Everybody's numbers in one contest; whoever has none says why."""
    return Grid(title, COLUMNS, [_row(name, entry) for name, entry in found["contenders"].items()])


def _row(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "ms" not in entry:
        kind = "missing" if "missing" in entry else "failed"
        return name, entry["precision"], f"{kind}: {entry[kind]}", *[""] * 6
    low, high = entry["ms_quartiles"]
    return (
        name,
        entry["precision"],
        f"{entry['ms']:.3g} ({low:.3g} to {high:.3g})",
        spread(entry),
        number(entry.get("floor_percent"), ".0f"),
        number(entry["first_s"], ".1f"),
        number(entry["compile_s"], ".1f"),
        number(entry["memory_mb"], ",.0f"),
        number(entry.get("peak_mb"), ",.0f"),
    )


def _measured(found: Mapping[str, Any]) -> int:
    return sum("ms" in entry for entry in found["contenders"].values())


def spread(entry: Mapping[str, Any]) -> str:
    """The ratio of medians, and the quartiles of the ratios of single rounds where there are several."""
    quartiles = entry.get("ratio_quartiles")
    return number(entry["ratio"], ".2f") + (f" ({quartiles[0]:.2f} to {quartiles[1]:.2f})" if quartiles else "")


def number(value: float | None, form: str) -> str:
    """A number, or nothing."""
    return "" if value is None else format(value, form)


def goals_table(goals: Mapping[str, Sequence[Mapping[str, Any]]]) -> Grid:
    """Every goal of every row: met, missed, or nothing to tell."""
    words = {True: "met", False: "MISSED", None: "not judged"}
    rows = [
        (goal.get("contest", row), goal["what"], f"{goal['goal']:g}", number(goal["found"], ".2f"), words[goal["met"]])
        for row, each in goals.items()
        for goal in each
    ]
    return Grid("goals", ("", "what", "goal", "found", "verdict"), rows)


def draw(contests: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Time of everybody over ours, a panel a contest that has been one; a line where ours is."""
    contests = {title: of for title, of in contests.items() if _measured(of) > 1} or contests
    figure, axes = new_figure(math.ceil(len(contests) / 2), min(2, len(contests)), width=6.4, height=2.2)
    for ax, (title, found) in zip(axes.flat, contests.items(), strict=False):
        measured = {name: entry["ratio"] for name, entry in found["contenders"].items() if entry.get("ratio")}
        names = list(measured)[::-1]
        colors = [COLORS[0] if name.startswith(OURS) else COLORS[1] for name in names]
        bars = ax.barh(names, [measured[name] for name in names], color=colors)
        ax.bar_label(bars, [f"{measured[name]:.2f}" for name in names], fontsize=7, padding=2)
        ax.axvline(1, color="black", linewidth=0.6)
        ax.margins(x=0.12)
        ax.set_title(textwrap.fill(title, 60), fontsize=8)
        ax.set_xlabel("time / ours", fontsize=8)
        ax.tick_params(labelsize=7)
    for ax in axes.flat[len(contests) :]:
        ax.set_visible(False)
    return figure
