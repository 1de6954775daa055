"""From the start of a process to its first training step, with an empty compilation cache and with a warm one."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from experiments.runner import Grid
from experiments.speed.measure import Section, in_child, verdict
from experiments.speed.work import TINY, Sizes

RUNS = 3
WARM_SECONDS, WARM_RATIO = 2.0, 2.5


def run(quick: bool = False) -> Section:
    """A cold and a warm start in turn, each pair with a cache of its own."""
    sizes, found = Sizes(**TINY) if quick else Sizes(), {"cold": [], "warm": []}
    for _ in range(1 if quick else RUNS):
        with tempfile.TemporaryDirectory() as cache:
            for starts in found.values():
                arguments = {"sizes": dataclasses.asdict(sizes), "spawned": time.time()}
                environment = {"JAX_COMPILATION_CACHE_DIR": cache}
                starts.append(in_child("first_step", environment=environment, **arguments))
    failed = [start["failed"] for starts in found.values() for start in starts if "failed" in start]
    if failed:
        raise RuntimeError(f"a start failed: {failed[0]}")
    medians = {kind: median(starts) for kind, starts in found.items()}
    ratio = medians["cold"]["total"] / medians["warm"]["total"]
    rows = [(kind, *(f"{seconds:.2f}" for seconds in of.values())) for kind, of in medians.items()]
    table = Grid(f"start to first training step, {sizes}: seconds", ("", *medians["cold"]), rows)
    goals = [
        verdict("warm start, seconds", WARM_SECONDS, medians["warm"]["total"], at_most=True),
        verdict("cold / warm start", WARM_RATIO, ratio),
    ]
    return Section({"sizes": dataclasses.asdict(sizes), "starts": found, "ratio": ratio}, [table], goals)


def median(starts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median of each part."""
    return {part: statistics.median(start[part] for start in starts) for part in starts[0]}
