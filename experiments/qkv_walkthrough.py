"""Query, key and value by hand: one query over three keys, every product and exponential written out.

Command: ``python -m experiments qkv_walkthrough``; a second. Scores 0.9, 0.55, 0.95 (not scaled), weights 0.36285,
0.25570, 0.38145, context 0.65916, 0.34084: as in the notebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from attn_jax.functional import attend, dot_scores
from experiments.runner import COLORS, Grid, Result, new_figure

COLUMNS = ("", "key = value", "q . k", "score", "exp(score)", "weight: exp / sum", "weight x value")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The notebook's query and keys; the values are the keys."""

    query: tuple[float, ...] = (1.0, 0.5)
    keys: tuple[tuple[float, ...], ...] = ((0.8, 0.2), (0.1, 0.9), (0.9, 0.1))

    @classmethod
    def quick(cls) -> Config:
        """The same."""
        return cls()


def run(config: Config) -> Result:
    """Scores, weights and the context, and a panel for each."""
    query, keys = jnp.array([[config.query]]), jnp.array([config.keys])
    scores = dot_scores(query, keys)
    context, weights = attend(scores, keys)
    scores, weights, context = (np.asarray(x[0, 0], np.float64) for x in (scores, weights, context))
    names = [f"key {index + 1}" for index in range(len(config.keys))]
    rows = [
        (
            name,
            str(key),
            " + ".join(f"{q:g} x {k:g}" for q, k in zip(config.query, key, strict=True)),
            float(score),
            f"{np.exp(score):.5f}",
            f"{weight:.5f}",
            str(np.round(weight * np.array(key), 5).tolist()),
        )
        for name, key, score, weight in zip(names, config.keys, scores, weights, strict=True)
    ]
    rows.append(
        ("sum", "", "", "", f"{np.exp(scores).sum():.5f}", f"{weights.sum():.5f}", str(np.round(context, 5).tolist()))
    )
    table = Grid(f"query {config.query}", COLUMNS, rows)
    numbers = {"scores": scores, "weights": weights, "context": context}
    return Result(numbers, [table], {"walkthrough.png": draw(config, numbers, names)})


def draw(config: Config, numbers: dict, names: list[str]):
    """Four panels: scores, weights, the weighted values stacked up, and the context that they sum to."""
    figure, axes = new_figure(1, 4, width=3.0, height=3.0)
    scores, weights, values, context = axes[0]
    for ax, found, title, unit in (
        (scores, numbers["scores"], "1  scores: query . key", "score"),
        (weights, numbers["weights"], "2  weights: softmax of the scores", "weight"),
    ):
        bars = ax.bar(names, found, color=COLORS[: len(names)])
        ax.bar_label(bars, fmt="%.3f", fontsize=8)
        ax.set_title(title, fontsize=9)
        ax.set_ylabel(unit, fontsize=8)
    features = [f"feature {index + 1}" for index in range(len(config.query))]
    bottom = np.zeros(len(features))
    for name, weight, key, color in zip(names, numbers["weights"], config.keys, COLORS, strict=False):
        values.bar(features, weight * np.array(key), bottom=bottom, color=color, label=name)
        bottom += weight * np.array(key)
    values.legend(fontsize=7, frameon=False)
    values.set_title("3  weight x value, stacked", fontsize=9)
    bars = context.bar(features, numbers["context"], color="#555555")
    context.bar_label(bars, fmt="%.3f", fontsize=8)
    context.set_title("4  context: their sum", fontsize=9)
    for ax, name in ((scores, "key"), (weights, "key"), (values, "feature"), (context, "feature")):
        ax.set_xlabel(name, fontsize=8)
    for ax in (values, context):
        ax.set_ylabel("value", fontsize=8)
        ax.set_ylim(0, 0.8)
    return figure


def verify(numbers: dict) -> None:
    """The notebook's numbers, to five digits."""
    np.testing.assert_allclose(numbers["scores"], [0.9, 0.55, 0.95], atol=5e-6)
    np.testing.assert_allclose(numbers["weights"], [0.36285, 0.25570, 0.38145], atol=5e-6)
    np.testing.assert_allclose(numbers["context"], [0.65916, 0.34084], atol=5e-6)
