"""How a row of the scoreboard is measured: contenders take turns in one process, and medians are compared.

A `Contest` is one piece of work and everybody who does it. A contender that is not installed is *missing*, one that
fails has *failed*, with the reason; neither was beaten.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from experiments.speed.memory import executable_mb, growth_mb

if TYPE_CHECKING:  # it imports matplotlib, which takes half a second of a start that is measured
    from experiments.runner import Grid

OURS = "attn_jax"
ROOT = Path(__file__).resolve().parents[2]
TOO_LARGE = "does not fit"
NO_NARROW = "left out: no bfloat16 products here"
SLOW = 10.0
"""Seconds of a call that is made once."""


class Work(NamedTuple):
    """Something to time: a call that waits for its result; of a JAX executable also its memory and compilation.

    ``ready`` says that the first call compiles nothing, ``elsewhere`` that another process works.
    """

    call: Callable[[], Any]
    memory_mb: float | None = None
    compile_s: float | None = None
    ready: bool = False
    elsewhere: bool = False


class Contender(NamedTuple):
    """Somebody who does the work of a contest.

    Attributes:
      name: ``attn_jax``, or the peer.
      precision: ``float32`` or ``bfloat16``, of the operands of the products; a peer may have others.
      build: makes the work; raises ImportError where the peer is not installed, MemoryError where it does not fit.
      slow: left out of ``--quick``, and in bfloat16 also where there are no such products.
    """

    name: str
    precision: str
    build: Callable[[], Work]
    slow: bool = False


class Goal(NamedTuple):
    """How many times what we need a peer should need.

    Attributes:
      peer: its name.
      ratio: theirs over ours, at least.
      ours: the name of the contender that is held to it.
      of: ``ms`` or ``memory_mb``.
    """

    peer: str
    ratio: float
    ours: str = OURS
    of: str = "ms"


class OnlyOurs(NamedTuple):
    """The goal that a peer does not fit into memory where ``ours`` runs."""

    peer: str
    ours: str = OURS


class Contest(NamedTuple):
    """One piece of work and those who do it.

    Attributes:
      title: what is done, with its sizes.
      contenders: ours first.
      operations: floating-point operations of the products that the work needs; 0: no floor is given.
      goals: what we want to reach.
      seconds: of measuring, all contenders together.
    """

    title: str
    contenders: Sequence[Contender]
    operations: float = 0
    goals: Sequence[Goal | OnlyOurs] = ()
    seconds: float = 30.0


class Section(NamedTuple):
    """What a row of the scoreboard found: plain numbers, tables to print, and what became of its goals."""

    numbers: Mapping[str, Any]
    tables: Sequence[Grid]
    goals: Sequence[Mapping[str, Any]] = ()


# ------------------------------------------------------------------------------------------------------------- timing


def alternate(
    works: Mapping[str, Callable[[], Any]],
    seconds: float,
    least: int = 5,
    known: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Calls the works in turn, a different one first in each round, until the time is up and there are enough rounds.

    A first call of each tells how often a turn calls it: short works several times, so that a turn takes at least 20
    ms. Where the first call takes more than ten seconds, it is the measurement, and the only one. All other turns begin
    with a call that is not timed: in real work a step follows a step of the same program, and after one of another its
    memory is cold, which costs up to a third. Before the time is taken all threads are given 10 ms to fall asleep.

    Args:
      works: what to call, by name; already warm.
      seconds: for all of them together, first calls included.
      least: rounds at least, unless they take four times as long; one in any case.
      known: seconds of a call of those that are not to be called first.

    Returns:
      By name the seconds of a call in each round.
    """
    if not works:
        return {}
    names, repeats, times = list(works), {}, {name: [] for name in works}
    collects, start, turn = gc.isenabled(), time.perf_counter(), 0

    def enough() -> bool:
        spent, rounds = time.perf_counter() - start, min(len(times[name]) for name in names)
        return rounds > 0 and spent >= seconds and (rounds >= least or spent >= 4 * seconds)

    gc.disable()
    try:
        for name in names:
            once = (known or {}).get(name) or _seconds_of(works[name], 1)
            repeats[name] = max(1, math.ceil(0.02 / once))
            if once > SLOW:
                times[name].append(once)
        names = [name for name in names if not times[name]]
        while names and not enough():
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                works[name]()
                times[name].append(_seconds_of(works[name], repeats[name]))
            gc.collect()
            turn += 1
    finally:
        if collects:
            gc.enable()
    return {name: np.array(found) for name, found in times.items()}


def _seconds_of(call: Callable[[], Any], repeats: int) -> float:
    time.sleep(0.01)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def compete(contest: Contest, rates: Mapping[str, float], *, quick: bool = False) -> dict[str, Any]:
    """Measures a contest.

    Args:
      contest: see `Contest`.
      rates: operations a second of this machine's products, by precision, from `product_rates`.
      quick: one round, and no slow contenders.

    Returns:
      Plain numbers: by contender milliseconds (median and quartiles), seconds from nothing to the first result and to
      compile, the ratio to ours (of medians, and its quartiles over the rounds), percent of the floor, memory; or why
      there are none.
    """
    found: dict[str, dict[str, Any]] = {}
    works, first, known = {}, {}, {}
    emulated = emulates_bfloat16(rates)
    for contender in contest.contenders:
        entry = found[contender.name] = {"precision": contender.precision}
        if contender.slow and (quick or (emulated and contender.precision == "bfloat16")):
            entry["missing"] = "left out of a quick run" if quick else NO_NARROW
            continue
        began = time.perf_counter()
        try:
            work = contender.build()
            built = time.perf_counter()
            work.call()
        except ImportError as error:
            entry["missing"] = f"{error}"
            continue
        except MemoryError as error:
            entry["failed"] = f"{TOO_LARGE}: {error}"
            continue
        except Exception as error:
            if contender.name.startswith(OURS):
                raise
            reason = " ".join(str(error).split())[:200]
            kind = TOO_LARGE if "RESOURCE_EXHAUSTED" in reason else type(error).__name__  # a GPU's own word for it
            entry["failed"] = f"{kind}: {reason}"
            continue
        ended = time.perf_counter()
        first[contender.name] = ended - began
        if work.ready and ended - built > SLOW:
            known[contender.name] = ended - built
        works[contender.name] = work
        entry |= {"memory_mb": work.memory_mb, "compile_s": work.compile_s}
    calls = {name: work.call for name, work in works.items()}
    times = alternate(calls, 0 if quick else contest.seconds, least=1 if quick else 5, known=known)
    ours = float(np.median(times[OURS])) if OURS in times else None
    for name, seconds in times.items():
        entry, median = found[name], float(np.median(seconds))
        entry |= {
            "ms": 1e3 * median,
            "ms_quartiles": (1e3 * np.quantile(seconds, (0.25, 0.75))).tolist(),
            "rounds": len(seconds),
            "first_s": first[name],
            "ratio": ours and median / ours,
        }
        if ours and name != OURS and len(seconds) == len(times[OURS]) > 2:
            entry["ratio_quartiles"] = np.quantile(seconds / times[OURS], (0.25, 0.75)).tolist()
        if contest.operations and entry["precision"] in rates:
            entry["floor_percent"] = 100 * contest.operations / rates[entry["precision"]] / median
        if median < SLOW and not works[name].elsewhere:
            entry["peak_mb"] = growth_mb(works[name].call)
    goals = verdicts(found, contest.goals)
    if emulated:
        goals = [
            verdict | ({"met": None} if found[goal.ours]["precision"] == "bfloat16" else {})
            for verdict, goal in zip(goals, contest.goals, strict=True)
        ]
    return {"contenders": found, "goals": goals, "operations": contest.operations}


def verdicts(found: Mapping[str, Mapping[str, Any]], goals: Sequence[Goal | OnlyOurs]) -> list[dict[str, Any]]:
    """What became of the goals of a contest.

    >>> verdicts({"attn_jax": {"ms": 2.0}, "torch": {"ms": 3.0}}, [Goal("torch", 1.25)])
    [{'what': 'torch / attn_jax', 'goal': 1.25, 'found': 1.5, 'met': True}]
    """
    return [_verdict_of(goal, found[goal.peer], found[goal.ours]) for goal in goals]


def _verdict_of(goal: Goal | OnlyOurs, peer: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(goal, OnlyOurs):
        too_large = peer.get("failed", "").startswith(TOO_LARGE)
        told = "ms" in ours and ("ms" in peer or too_large)
        return verdict(f"{goal.ours} runs, {goal.peer} does not fit", 1, float(too_large) if told else None)
    theirs, own = peer.get(goal.of), ours.get(goal.of)
    what = f"{goal.peer} / {goal.ours}{', memory' if goal.of == 'memory_mb' else ''}"
    return verdict(what, goal.ratio, theirs / own if theirs and own else None)


def verdict(what: str, goal: float, found: float | None, *, at_most: bool = False) -> dict[str, Any]:
    """A goal, what was found, and whether it is met; None where there is nothing to tell, as with a missing peer."""
    met = None if found is None else bool(found <= goal if at_most else found >= goal)
    return {"what": what, "goal": goal, "found": found, "met": met}


# -------------------------------------------------------------------------------------------------- floors


def product_rates(seconds: float = 1.0) -> dict[str, float]:
    """Operations a second of the fastest matrix product seen here, by precision of the operands, sums in float32.

    The best of several sizes and of many calls, because a floor is what the machine can do.
    """
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    best = {}
    for precision in ("float32", "bfloat16"):
        found = []
        for size in (256, 512, 1024, 2048):
            a = b = jnp.ones((size, size), precision)
            jax.block_until_ready(product(a, b))
            end = time.perf_counter() + seconds / 8
            while (began := time.perf_counter()) < end:
                jax.block_until_ready(product(a, b))
                found.append(2 * size**3 / (time.perf_counter() - began))
        best[precision] = max(found)
    return best


def emulates_bfloat16(rates: Mapping[str, float]) -> bool:
    """Whether bfloat16 products are slower than float32 here: there are none, and their goals cannot be judged."""
    return rates.get("bfloat16", 0) < rates.get("float32", 0)


def count_operations(function: Callable, *args: Any) -> float:
    """Floating-point operations of all matrix products of a function, each as often as its loop runs.

    >>> count_operations(lambda x: jax.lax.scan(lambda h, _: (h @ x, None), x, None, length=5)[0], jnp.ones((2, 2)))
    80.0
    """
    return _operations(jax.make_jaxpr(function)(*args).jaxpr)


def _operations(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * summed * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: isinstance(p, Jaxpr | ClosedJaxpr)):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                total += times * _operations(getattr(inner, "jaxpr", inner))
    return total


def compiled_work(function: Callable, *args: Any, limit_mb: float = math.inf) -> Work:
    """Compiles a function of arrays for its arguments.

    Raises:
      MemoryError: if the executable says that it takes more than ``limit_mb``.
    """
    args = jax.device_put(args)
    compiled, seconds = compile_for(jax.jit(function), *args)
    memory_mb = executable_mb(compiled)
    if memory_mb > limit_mb:
        raise MemoryError(f"the executable takes {memory_mb / 1e3:.1f} GB, and there are {limit_mb / 1e3:.1f} GB")
    return Work(lambda: jax.block_until_ready(compiled(*args)), memory_mb, seconds, ready=True)


def compile_for(jitted: Any, *args: Any) -> tuple[Any, float]:
    """The executable of a jitted function for its arguments, and the seconds that tracing and compiling it took."""
    began = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    return compiled, time.perf_counter() - began


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_cpu(peer: str) -> None:
    """Checks that JAX runs where a peer that is measured on CPU runs.

    Raises:
      ImportError: if it does not; a contest reports the peer as missing.
    """
    if (backend := jax.default_backend()) != "cpu":
        raise ImportError(f"{peer} is measured on CPU only; JAX runs on {backend} here")


def load_torch() -> Any:
    """PyTorch on CPU with a thread for each core.

    Raises:
      ImportError: if it is not installed, or JAX runs elsewhere.
    """
    on_cpu("torch")
    import torch

    torch.set_num_threads(cores())
    return torch


# ---------------------------------------------------------------------------------------------------------- processes


def in_child(task: str, *, environment: Mapping[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """Runs a task of `experiments.speed.child` in a process of its own, and gives what it found.

    Args:
      task: its name.
      environment: variables on top of ours.
      arguments: plain values.
    """
    command = [sys.executable, "-m", "experiments.speed.child", task, json.dumps(arguments)]
    variables = {**os.environ, **(environment or {})}
    return last_json(subprocess.run(command, check=False, cwd=ROOT, env=variables, capture_output=True, text=True))


def last_json(done: subprocess.CompletedProcess) -> dict[str, Any]:
    """The last line that a process printed, which is JSON; ``{"failed": reason}`` if the process failed."""
    return {"failed": complaint(done)} if done.returncode else json.loads(done.stdout.strip().splitlines()[-1])


def complaint(done: subprocess.CompletedProcess) -> str:
    """Why a process failed: the last line of its errors, or its exit code if there is none."""
    lines = done.stderr.strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {done.returncode}"
