"""What the scoreboard runs in processes of their own: ``python -m experiments.speed.child TASK ARGUMENTS``.

Each task prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

BEGAN = time.time()


def first_step(sizes: Mapping[str, Any], spawned: float) -> dict[str, float]:
    """Seconds from ``spawned`` (of `time.time`) to the end of the first training step, with the cache that there is.

    As `attn_jax.training.loop.train` gets there, and with what the command line imports; no command line is parsed, and
    no text read. ``parameters`` holds the trace of the gradient too.
    """
    from attn_jax.cli import import_all, use_compilation_cache

    import_all()
    import jax

    from attn_jax import Seq2Seq
    from attn_jax.training.step import init_state, make_train_step
    from experiments.speed import work

    use_compilation_cache()
    imported = time.time()
    shape = work.Sizes(**sizes)
    model, optimizer, batch = Seq2Seq(work.our_config(shape)), work.our_optimizer(), work.draw(shape).as_batch()
    step, rng = make_train_step(model, optimizer, smoothing=work.SMOOTHING), jax.random.key(1)
    gradient, _ = step.jitted
    trace = lambda new: gradient.trace(new.params, new.step, batch, rng, None, None)  # noqa: E731
    state = init_state(model, optimizer, batch, jax.random.key(0), meanwhile=trace)
    begun = time.time()
    jax.block_until_ready(step(state, batch, rng))
    done = time.time()
    return {
        "interpreter": BEGAN - spawned,
        "imports": imported - BEGAN,
        "parameters": begun - imported,
        "step": done - begun,
        "total": done - spawned,
    }


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


TASKS = {task.__name__: task for task in (first_step, devices, fixed_batches)}


if __name__ == "__main__":
    name, arguments = sys.argv[1:]
    print(json.dumps(TASKS[name](**json.loads(arguments))))
