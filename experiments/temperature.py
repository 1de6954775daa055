"""Temperature: the same scores at 0.5, 1, 2 and 5: how sharp the weights are, and what that does to the context.

Command: ``python -m experiments temperature``; two seconds. With the ten random scores of seed 0 the entropy rises with
the temperature (0.41, 1.11, 1.78, 2.20 nats) towards ln 10 = 2.303, and the context moves towards the plain mean of the
values. The slider is on the interactive page (``attn-jax attend MODEL SENTENCE --out attention.html``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from attn_jax.functional import attend, softmax
from experiments.runner import COLORS, Grid, Result, entropy, new_figure


@dataclass(frozen=True, kw_only=True)
class Config:
    """The notebook's length and temperatures."""

    temperatures: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    length: int = 10
    width: int = 4
    seed: int = 0

    @classmethod
    def quick(cls) -> Config:
        """The same."""
        return cls()


def run(config: Config) -> Result:
    """Weights, entropy and context at each temperature."""
    scores_rng, values_rng = jax.random.split(jax.random.key(config.seed))
    scores = 2 * jax.random.normal(scores_rng, (1, 1, config.length))
    values = jax.random.normal(values_rng, (1, config.length, config.width))
    mean = np.asarray(values[0].mean(axis=0))
    found = []
    for temperature in config.temperatures:
        normalizer = partial(softmax, temperature=temperature)
        context, weights = attend(scores, values, normalizer=normalizer)
        weights, context = np.asarray(weights[0, 0], np.float64), np.asarray(context[0, 0])
        found.append(
            {
                "temperature": temperature,
                "weights": weights,
                "entropy": float(entropy(np.asarray(weights))),
                "context": context,
                "distance_to_mean": float(np.linalg.norm(context - mean)),
            }
        )
    rows = [(f["temperature"], f["weights"].max(), f["entropy"], f["distance_to_mean"]) for f in found]
    columns = ("temperature", "largest weight", "entropy, nats", "context to mean value")
    numbers = {"scores": scores[0, 0], "uniform_entropy": math.log(config.length), "temperatures": found}
    return Result(numbers, [Grid("temperature", columns, rows)], {"temperature.png": draw(config, numbers, values)})


def draw(config: Config, numbers: dict, values: jax.Array):
    """Scores; weights at each temperature; entropy; what each position adds to the first feature of the context."""
    figure, axes = new_figure(2, 2, width=4.8, height=3.0)
    (scores, weights), (entropy, contributions) = axes
    positions = np.arange(1, config.length + 1)
    scores.bar(positions, numbers["scores"], color="#555555")
    scores.set(title="scores, before the softmax", xlabel="position", ylabel="score")
    width = 0.8 / len(config.temperatures)
    for index, (found, color) in enumerate(zip(numbers["temperatures"], COLORS, strict=False)):
        label, shift = f"T = {found['temperature']:g}", (index - (len(config.temperatures) - 1) / 2) * width
        weights.bar(positions + shift, found["weights"], width, color=color, label=label)
        added = found["weights"] * np.asarray(values[0, :, 0])
        contributions.bar(positions + shift, added, width, color=color, label=f"{label}: sum {added.sum():.2f}")
    weights.set(title="weights", xlabel="position", ylabel="weight")
    contributions.set(title="weight x value, first feature", xlabel="position", ylabel="part of the context")
    entropy.plot(config.temperatures, [f["entropy"] for f in numbers["temperatures"]], "o-", color=COLORS[0])
    entropy.axhline(numbers["uniform_entropy"], color="#999999", linestyle="--", label="uniform: ln 10")
    entropy.set(title="entropy of the weights", xlabel="temperature", ylabel="nats")
    for ax in (weights, entropy, contributions):
        ax.legend(fontsize=7, frameon=False)
    return figure


def verify(numbers: dict) -> None:
    """Entropy rises with temperature, and the context nears the mean."""
    entropies = [found["entropy"] for found in numbers["temperatures"]]
    assert entropies == sorted(entropies) and entropies[-1] < numbers["uniform_entropy"]
    distances = [found["distance_to_mean"] for found in numbers["temperatures"]]
    assert distances == sorted(distances, reverse=True)
