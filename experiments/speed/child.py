"""What the scoreboard runs in processes of their own: ``python -m experiments.speed.child TASK ARGUMENTS``.

Each task prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGAN = time.time()
STATUS = Path("/proc/self/status")


def first_step(sizes: Mapping[str, Any], spawned: float) -> dict[str, float]:
    """Seconds from ``spawned`` (of `time.time`) to the end of the first training step, compilations cached."""
    from attn_jax.cli import use_compilation_cache
    from experiments.speed import work

    use_compilation_cache()
    imported = time.time()
    shape = work.Sizes(**sizes)
    call = work.our_training(shape, work.draw(shape)).call
    built = time.time()
    call()
    done = time.time()
    return {
        "interpreter": BEGAN - spawned,
        "imports": imported - BEGAN,
        "compilation": built - imported,
        "step": done - built,
        "total": done - spawned,
    }


def peak(row: str, contest: str, contender: str) -> dict[str, float | None]:
    """By how many megabytes the process grows at most while a contender works; None where Linux's /proc is not."""
    from experiments.runner import load

    (found,) = (each for each in load(f"speed.{row}").contests() if each.title == contest)
    (who,) = (each for each in found.contenders if each.name == contender)
    _import_frameworks(who.name)
    if not STATUS.exists():
        return {"peak_mb": None}
    before = _resident_mb("VmRSS")
    call = who.build().call
    for _ in range(3):
        call()
    return {"peak_mb": _resident_mb("VmHWM") - before}


def _import_frameworks(contender: str) -> None:
    """What a contender imports is not counted."""
    import jax

    jax.block_until_ready(jax.numpy.zeros(()))
    if contender.startswith("torch"):
        import torch._dynamo  # noqa: F401


def _resident_mb(which: str) -> float:
    """What the process holds in memory now (``VmRSS``) or held at most (``VmHWM``)."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024 / 1e6


def devices(sizes: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Milliseconds of a training step whose batch is divided over all devices of this process."""
    import jax
    import numpy as np

    from experiments.speed import work
    from experiments.speed.measure import alternate

    shape = work.Sizes(**sizes)
    data = work.draw(shape)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    call = work.our_training(shape, data, mesh=mesh).call
    times = alternate({"step": call}, seconds)["step"]
    return {"devices": len(jax.devices()), "ms": 1e3 * float(np.median(times)), "tokens": data.tokens}


def fixed_batches(path: str, precision: str) -> dict[str, float]:
    """Target tokens a second of our training over the batches of a file, after one step of every shape."""
    from experiments.speed import epoch

    return epoch.our_throughput(path, precision)


TASKS = {task.__name__: task for task in (first_step, peak, devices, fixed_batches)}


if __name__ == "__main__":
    name, arguments = sys.argv[1:]
    print(json.dumps(TASKS[name](**json.loads(arguments))))
