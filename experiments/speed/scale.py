"""How cost grows: one size at a time, from the sizes of the training row, the exponent of the last three."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from attn_jax import Seq2Seq, Transformer, TransformerConfig
from experiments.runner import COLORS, Grid, new_figure
from experiments.speed import decode
from experiments.speed.measure import OURS, SLOW, Section, Work, alternate, in_child
from experiments.speed.memory import free_mb
from experiments.speed.work import TINY, Sizes, draw, our_config, our_training

SWEEPS: dict[str, tuple[Mapping[str, Any], Sequence[int]]] = {
    "batch": ({}, (8, 64, 256)),
    "length": ({"batch": 8, "vocab": 1000}, (20, 100, 500, 2000)),
    "length, additive": ({"batch": 8, "vocab": 1000, "attention": "additive"}, (20, 100, 500)),
    "width": ({}, (64, 256, 1024)),
    "vocabulary": ({}, (1000, 8000, 64_000)),
    "layers": ({}, (1, 2, 4)),
    "layers, Transformer": ({"batch": 32}, (1, 4, 8)),
    "beam": ({"batch": 32}, (1, 8, 32)),
}
"""By what grows: how the other sizes differ from those of the training row, and the values."""

QUICK = {"length": (4, 8)}
DEVICES = (1, 2)
REMAT_LENGTHS = (100, 400, 1600)


def sizes_of(sweep: str, value: int, base: Sizes) -> Sizes:
    """The sizes of one point."""
    changes = {
        "batch": {"batch": value},
        "length": {"src_len": value, "tgt_len": value},
        "width": {"embed": value, "encoder": value, "decoder": 2 * value},
        "vocabulary": {"vocab": value},
        "layers": {"layers": value},
        "beam": {},
    }[sweep.split(",", maxsplit=1)[0]]
    return dataclasses.replace(base, **changes)


def run(quick: bool = False) -> Section:
    """Every sweep, and one training step over one and two devices."""
    sweeps = {
        name: [point(name, value, Sizes(**TINY) if quick else Sizes(**others), quick) for value in values]
        for name, (others, values) in SWEEPS.items()
        if not quick or name in QUICK
        for values in [QUICK[name] if quick else values]
    }
    grown = {name: exponents(points) for name, points in sweeps.items()}
    tables = [sweep_table(name, points, grown[name]) for name, points in sweeps.items()]
    found = {"sweeps": sweeps, "exponents": grown}
    if not quick:
        found["devices"] = [on_devices(count) for count in DEVICES]
        found["remat"] = {length: [remat_memory(length, remat) for remat in (False, True)] for length in REMAT_LENGTHS}
        tables += [devices_table(found["devices"]), remat_table(found["remat"])]
    return Section(found, tables)


def point(sweep: str, value: int, base: Sizes, quick: bool) -> dict[str, Any]:
    """One training step, or one beam search: milliseconds, tokens a second, seconds to compile, memory."""
    sizes = sizes_of(sweep, value, base)
    data = draw(sizes)
    if sweep == "beam":
        steps = 3 if quick else decode.STEPS
        build = partial(decode.ours, Seq2Seq(our_config(sizes)), data, beam=value, steps=steps)
        tokens = sizes.batch * steps
    else:
        model = transformer(sizes) if "Transformer" in sweep else None
        build, tokens = partial(our_training, sizes, data, model=model), data.tokens
    try:
        work: Work = build()
        if (work.memory_mb or 0) > free_mb():
            raise MemoryError(f"takes {work.memory_mb / 1e3:.1f} GB")
    except MemoryError as error:
        return {"value": value, "failed": f"{error}"}
    began = time.perf_counter()
    work.call()
    seconds = time.perf_counter() - began
    if seconds < SLOW:
        seconds = float(np.median(alternate({OURS: work.call}, 0 if quick else 1.0, least=1 if quick else 3)[OURS]))
    rate = tokens / seconds
    return {
        "value": value,
        "ms": 1e3 * seconds,
        "tokens_s": rate,
        "compile_s": work.compile_s,
        "memory_mb": work.memory_mb,
    }


def transformer(sizes: Sizes, **options: Any) -> Transformer:
    """A Transformer of as many words and layers, 256 wide."""
    words, layers = {"src_vocab_size": sizes.vocab, "tgt_vocab_size": sizes.vocab}, sizes.layers
    blocks = {"encoder_layers": layers, "decoder_layers": layers, "dropout": 0.0}
    return Transformer(TransformerConfig(**words, **blocks, **options))


def remat_memory(length: int, remat: bool) -> float:
    """Megabytes that a training step of a Transformer holds, three blocks a side; it is compiled, and not run."""
    sizes = Sizes(batch=4, src_len=length, tgt_len=length, vocab=1000, layers=3)
    return our_training(sizes, draw(sizes), model=transformer(sizes, remat=remat)).memory_mb


def exponents(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The slopes of time, compile time and memory on logarithmic axes, over the last three points."""
    upper = [found for found in points if "ms" in found][-3:]
    return {key: slope([(found["value"], found[key]) for found in upper]) for key in ("ms", "compile_s", "memory_mb")}


def slope(pairs: Iterable[tuple[float, float]]) -> float:
    """The exponent ``k`` of ``y = a x^k`` by least squares on logarithmic axes.

    >>> round(slope([(1, 3), (2, 12), (4, 48)]), 6)
    2.0
    """
    x, y = np.log(np.array(list(pairs), float)).T
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else math.nan


def on_devices(count: int) -> dict[str, Any]:
    """A training step over ``count`` CPU devices (elsewhere: over those that are there), in a process of its own."""
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"}
    return in_child("devices", environment=flags, sizes=dataclasses.asdict(Sizes()), seconds=2.0)


def sweep_table(name: str, points: Sequence[Mapping[str, Any]], grown: Mapping[str, float]) -> Grid:
    """One sweep, the exponents in its last row."""
    columns = (name, "ms", "tokens/s", "compile s", "memory MB")
    rows = [
        (f"{found['value']:,}", *cells(found, "ms", "tokens_s", "compile_s", "memory_mb"))
        if "ms" in found
        else (f"{found['value']:,}", found["failed"], *[""] * 3)
        for found in points
    ]
    last = ("exponent", f"{grown['ms']:.2f}", "", f"{grown['compile_s']:.2f}", f"{grown['memory_mb']:.2f}")
    return Grid(f"cost against {name}", columns, [*rows, last])


def cells(found: Mapping[str, Any], *keys: str) -> list[str]:
    """Numbers with three digits and thousands apart."""
    return [f"{found[key]:,.0f}" if found[key] >= 100 else f"{found[key]:.3g}" for key in keys]


def devices_table(devices: Sequence[Mapping[str, Any]]) -> Grid:
    """Milliseconds of a step by number of devices."""
    row = [f"{found['ms']:.3g}" if "ms" in found else found["failed"] for found in devices]
    return Grid("training step, ms", [f"{count} devices" for count in DEVICES], [row])


def remat_table(found: Mapping[int, Sequence[float]]) -> Grid:
    """Memory of a training step against length, and the exponents in the last row."""
    rows = [(f"{length:,}", *(f"{mb:,.0f}" for mb in each)) for length, each in found.items()]
    grown = [slope([(length, each[column]) for length, each in found.items()]) for column in range(2)]
    title = "memory of a training step against length, MB, Transformer, 3 + 3 blocks, 4 sentences"
    return Grid(title, ("", "kept", "rematerialised"), [*rows, ("exponent", *(f"{each:.2f}" for each in grown))])


def draw_sweeps(sweeps: Mapping[str, Sequence[Mapping[str, Any]]], grown: Mapping[str, Mapping[str, float]]) -> Any:
    """Time of a step against each size, both logarithmic."""
    figure, axes = new_figure(math.ceil(len(sweeps) / 2), 2, width=4.4, height=2.8)
    for ax, color, (name, points) in zip(axes.flat, COLORS, sweeps.items(), strict=False):
        found = [each for each in points if "ms" in each]
        values, times = [each["value"] for each in found], [each["ms"] for each in found]
        ax.loglog(values, times, "o-", color=color)
        ax.minorticks_off()
        ax.set_xticks(values, [f"{value:,}" for value in values])
        ax.margins(x=0.12, y=0.2)
        for value, ms in zip(values, times, strict=True):
            ax.annotate(f"{ms:,.0f}", (value, ms), (0, 6), textcoords="offset points", ha="center", fontsize=7)
        ax.set_title(f"{name}: exponent {grown[name]['ms']:.2f}", fontsize=9)
        ax.set_xlabel(name, fontsize=8)
        ax.set_ylabel("ms", fontsize=8)
    for ax in axes.flat[len(sweeps) :]:
        ax.set_visible(False)
    return figure
