"""RNN, GRU, LSTM and bidirectional LSTM: parameters, inference time and memory, all measured.

Command: ``python -m experiments benchmark_models``; 10 seconds. At (64, 30, 256) -> 256 the executables take 8.1 MiB
(RNN), 18.4 (GRU), 22.8 (LSTM) and 36.1 (bidirectional LSTM), and run in 5.9 ± .9, 19.3 ± 1.7, 18.2 ± .5 and 36.1 ± 1.1
ms on a machine that does nothing else.

The notebook's chart types in its parameters, and invents its times and memory. Its 5,504 and 11,008 are not what
PyTorch has (5,632 and 11,264): PyTorch adds two biases to each gate, where one is enough, and with one they are 5,504
and 11,008, which is what our layers have. A GRU needs the second bias for its candidate alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from attn_jax import GRU, LSTM, RNN, Bidirectional
from experiments.runner import COLORS, Grid, Result, count_params, new_figure

MODELS: dict[str, tuple[Callable[[int], nn.Module], int, int]] = {
    "RNN": (RNN, 1, 1),
    "GRU": (GRU, 3, 1),
    "LSTM": (LSTM, 4, 1),
    "bidirectional LSTM": (Bidirectional, 4, 2),
}
"""The layer, its gates, its directions."""

TYPED_IN = {"LSTM": 5_504, "bidirectional LSTM": 11_008}
"""Where the notebook's chart differs from PyTorch, for inputs of width 10 and 32 hidden units."""

TORCH = {"RNN": 1_408, "GRU": 4_224, "LSTM": 5_632, "bidirectional LSTM": 11_264}
"""What PyTorch 2 counts for these: ``sum(p.numel() for p in torch.nn.LSTM(10, 32).parameters())`` and so on."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Inputs ``[batch, time, width]`` and hidden units."""

    batch: int
    time: int
    width: int
    hidden: int

    def __str__(self) -> str:
        return f"({self.batch}, {self.time}, {self.width}) -> {self.hidden}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The notebook's size and a real one; 10 warm-ups and 50 runs as in the notebook."""

    small: Size = Size(batch=16, time=20, width=10, hidden=32)
    real: Size = Size(batch=64, time=30, width=256, hidden=256)
    warm_ups: int = 10
    runs: int = 50

    @classmethod
    def quick(cls) -> Config:
        """The notebook's size, and a modest one in place of the real one; few runs."""
        return cls(real=Size(batch=16, time=10, width=64, hidden=64), warm_ups=2, runs=5)


def torch_parameters(width: int, hidden: int, gates: int, directions: int) -> int:
    """PyTorch's layer: two matrices and two biases a gate."""
    return directions * gates * hidden * (width + hidden + 2)


def our_parameters(width: int, hidden: int, gates: int, directions: int) -> int:
    """Ours: two matrices and one bias a gate, and one bias more for the candidate of a GRU."""
    return directions * hidden * (gates * (width + hidden + 1) + (gates == 3))


def measure(name: str, size: Size, config: Config) -> dict[str, Any]:
    """Compiles one layer for one size, asks the executable for its memory, and times it."""
    layer, gates, directions = MODELS[name]
    module = layer(size.hidden)
    inputs = np.random.default_rng(0).standard_normal((size.batch, size.time, size.width), np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), inputs)
    compiled = jax.jit(lambda variables, x: module.apply(variables, x)[0]).lower(variables, inputs).compile()
    inputs, seconds = jax.device_put(inputs), []
    for _ in range(config.warm_ups + config.runs):
        began = time.perf_counter()
        jax.block_until_ready(compiled(variables, inputs))
        seconds.append(time.perf_counter() - began)
    ms, memory = 1e3 * np.array(seconds[config.warm_ups :]), compiled.memory_analysis()
    parts = {part: getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "output", "temp")}
    shape = (size.width, size.hidden, gates, directions)
    return {
        "parameters": count_params(variables),
        "parameters_by_formula": our_parameters(*shape),
        "parameters_torch": torch_parameters(*shape),
        "ms": {"mean": ms.mean(), "sd": ms.std(ddof=1), "median": np.median(ms), "min": ms.min()},
        "ms_quartiles": np.quantile(ms, (0.25, 0.75)),
        "steps_per_second": size.batch * size.time / (np.median(ms) / 1e3),
        "memory_kib": {part: found / 1024 for part, found in parts.items()} | {"all": sum(parts.values()) / 1024},
    }


def run(config: Config) -> Result:
    """Measures every layer at both sizes."""
    sizes = {"small": config.small, "real": config.real}
    numbers = {
        part: {"size": str(size), "layers": {name: measure(name, size, config) for name in MODELS}}
        for part, size in sizes.items()
    }
    columns = ("", "parameters", "PyTorch", "ms (mean ± sd)", "median ms", "steps/s", "temporary KiB", "all KiB")
    tables = [
        Grid(
            f"{of['size']}: {config.runs} runs after {config.warm_ups} warm-ups",
            columns,
            [
                (
                    name, f"{found['parameters']:,}", f"{found['parameters_torch']:,}",
                    f"{found['ms']['mean']:.3g} ± {found['ms']['sd']:.2g}", float(found["ms"]["median"]),
                    f"{found['steps_per_second']:,.0f}", f"{found['memory_kib']['temp']:,.0f}",
                    f"{found['memory_kib']['all']:,.0f}",
                )
                for name, found in of["layers"].items()
            ],
        )
        for of in numbers.values()
    ]  # fmt: skip
    rows = [(name, f"{TYPED_IN.get(name, TORCH[name]):,}", f"{TORCH[name]:,}", _ours(numbers, name)) for name in MODELS]
    tables.append(Grid("parameters at 10 -> 32", ("", "the notebook's chart", "PyTorch 2", "ours"), rows))
    figures = {f"benchmark_{part}.png": draw(of) for part, of in numbers.items()}
    return Result(numbers, tables, figures)


def _ours(numbers: Mapping[str, Any], name: str) -> str:
    return f"{numbers['small']['layers'][name]['parameters']:,}"


def draw(of: Mapping[str, Any]):
    """The notebook's four panels: parameters, time, memory, and time against memory."""
    figure, axes = new_figure(2, 2, width=4.8, height=3.3)
    figure.suptitle(f"recurrent layers, {of['size']}, one forward pass in float32", fontsize=11)
    layers, places = of["layers"], np.arange(len(MODELS))
    names, found = [name.replace(" ", "\n") for name in layers], list(layers.values())
    (parameters, times), (memory, both) = axes
    for key, label, color, shift in (
        ("parameters", "ours", COLORS[0], -0.2),
        ("parameters_torch", "PyTorch", COLORS[4], 0.2),
    ):
        bars = parameters.bar(places + shift, [f[key] for f in found], 0.4, label=label, color=color)
        counts = [f"{f[key]:,}" if f[key] < 1e5 else f"{f[key] / 1e3:,.0f}k" for f in found]
        parameters.bar_label(bars, counts, fontsize=6, padding=1)
    parameters.set(title="parameters", ylabel="parameters")
    parameters.legend(fontsize=7, frameon=False)
    median, low, high = np.array([(f["ms"]["median"], *f["ms_quartiles"]) for f in found]).T
    bars = times.bar(places, median, yerr=(median - low, high - median), capsize=3, color=COLORS[: len(found)])
    times.bar_label(bars, [f"{ms:.2f}" if ms < 10 else f"{ms:.0f}" for ms in median], fontsize=7, padding=2)
    times.set(title="time of one pass (median and quartiles)", ylabel="ms")
    bottom = np.zeros(len(found))
    for key, label, color in (
        ("argument", "parameters and inputs", COLORS[5]),
        ("output", "outputs", COLORS[2]),
        ("temp", "temporary", COLORS[1]),
    ):
        part = np.array([f["memory_kib"][key] for f in found])
        memory.bar(places, part, bottom=bottom, label=label, color=color)
        bottom += part
    memory.set(title="memory of the compiled executable", ylabel="KiB")
    memory.legend(fontsize=7, frameon=False)
    for index, f in enumerate(found):
        point = f["memory_kib"]["all"], f["ms"]["median"]
        both.plot(*point, "osD^"[index], color=COLORS[index], markersize=8, label=list(layers)[index])
    both.set(title="time against memory", xlabel="KiB", ylabel="ms (median)")
    both.margins(0.15)
    both.set_xlim(left=0)
    both.set_ylim(bottom=0)
    both.legend(fontsize=7, frameon=False)
    for ax in (parameters, times, memory):
        ax.set_xticks(places, names)
        ax.margins(y=0.1)
        ax.yaxis.set_major_formatter("{x:,.7g}")
    for ax in axes.flat:
        ax.title.set_fontsize(9)
        ax.xaxis.label.set_fontsize(8)
        ax.yaxis.label.set_fontsize(8)
    return figure


def verify(numbers: dict) -> None:
    """Parameters are exact; more gates cost more time and memory at a real size, two directions more than one."""
    for of in numbers.values():
        for name, found in of["layers"].items():
            assert found["parameters"] == found["parameters_by_formula"], (name, found)
            assert found["ms"]["min"] > 0 and min(found["memory_kib"].values()) > 0, (name, found)
    small, real = numbers["small"]["layers"], numbers["real"]["layers"]
    assert {name: found["parameters_torch"] for name, found in small.items()} == TORCH
    assert [small[name]["parameters"] for name in MODELS] == [1_376, 4_160, 5_504, 11_008]
    assert real["LSTM"]["ms"]["min"] > real["RNN"]["ms"]["min"], real
    assert real["GRU"]["ms"]["min"] > real["RNN"]["ms"]["min"], real
    assert real["bidirectional LSTM"]["ms"]["min"] > 1.3 * real["LSTM"]["ms"]["min"], real
    memory = {name: found["memory_kib"]["all"] for name, found in real.items()}
    assert memory["RNN"] < memory["GRU"] < memory["LSTM"] < memory["bidirectional LSTM"], memory
