"""Scaled dot-product self-attention on random tokens, and what padding and look-ahead masks allow.

Command: ``python -m experiments scaled_dot_product``; two seconds. Rows of the weights sum to 1, and a masked position
has weight exactly 0; unscaled scores of width 4 have twice the spread of scaled ones, and their weights are sharper:
the largest of a row is 0.86 on average instead of 0.68.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.functional import (
    attend,
    causal_mask,
    combine_masks,
    dot_scores,
    expand_mask,
    padding_mask,
    scaled_dot_scores,
)
from experiments.runner import Grid, Result, attention_panels, entropy, new_figure


@dataclass(frozen=True, kw_only=True)
class Config:
    """The notebook's sizes: one sentence of five tokens of width four; four sequences to mask."""

    length: int = 5
    width: int = 4
    sequences: tuple[tuple[int, ...], ...] = ((1, 2, 3), (4, 5, 6, 7, 8), (9, 10), (11, 12, 13, 14))
    seed: int = 0

    @classmethod
    def quick(cls) -> Config:
        """The same."""
        return cls()


def run(config: Config) -> Result:
    """Attends with and without the scale and the masks."""
    x = jax.random.normal(jax.random.key(config.seed), (1, config.length, config.width))
    context, weights = attend(scaled_dot_scores(x, x), x)
    _, unscaled = attend(dot_scores(x, x), x)
    _, causal = attend(scaled_dot_scores(x, x), x, causal_mask(config.length))

    lengths = np.array([len(sequence) for sequence in config.sequences])
    longest = int(lengths.max())
    padded = np.array([[*sequence, *[0] * (longest - len(sequence))] for sequence in config.sequences])
    padding, look_ahead = padding_mask(jnp.array(lengths), longest), causal_mask(longest)
    combined = combine_masks(expand_mask(padding), look_ahead)

    batch = jax.random.normal(jax.random.key(config.seed + 1), (len(lengths), longest, config.width))
    masked = {
        name: attend(scaled_dot_scores(batch, batch), batch, mask)[1]
        for name, mask in (("padding", expand_mask(padding)), ("look-ahead", look_ahead), ("combined", combined))
    }
    rows = [
        ("scaled by 1 / sqrt(width)", float(weights.max(-1).mean()), float(entropy(np.asarray(weights)).mean())),
        ("unscaled", float(unscaled.max(-1).mean()), float(entropy(np.asarray(unscaled)).mean())),
        ("scaled, look-ahead mask", float(causal.max(-1).mean()), float(entropy(np.asarray(causal)).mean())),
    ]
    table = Grid("self-attention on random tokens", ("", "mean of the row maxima", "mean entropy, nats"), rows)
    numbers = {
        "context_shape": context.shape,
        "row_sums": weights[0].sum(-1),
        "largest_masked_weight": {
            "padding": jnp.where(expand_mask(padding), 0, masked["padding"]).max(),
            "look-ahead": jnp.where(look_ahead, 0, masked["look-ahead"]).max(),
            "combined": jnp.where(combined, 0, masked["combined"]).max(),
        },
        "max_weight": {"scaled": rows[0][1], "unscaled": rows[1][1], "look-ahead": rows[2][1]},
        "padded": padded,
        "padding_mask": padding.astype(int),
        "look_ahead_mask": look_ahead.astype(int),
        "allowed": {"padding": int(padding.sum()), "combined": np.asarray(combined).sum((1, 2))},
    }
    names = [f"Token {index + 1}" for index in range(config.length)]
    panels = (("scaled dot-product self-attention", weights), ("the same with a look-ahead mask", causal))
    figures = {
        "weights.png": attention_panels(
            [(title, np.asarray(found[0]), names, names) for title, found in panels], keys="key", queries="query"
        ),
        "masks.png": draw_masks(padded, padding, look_ahead, combined),
    }
    return Result(numbers, [table], figures)


def draw_masks(padded: np.ndarray, padding: jax.Array, look_ahead: jax.Array, combined: jax.Array):
    """Padding, look-ahead, and both for the third sequence: dark = may attend."""
    figure, axes = new_figure(1, 3, width=3.2, height=3.9)
    figure.suptitle("masks: dark may be attended", fontsize=10)
    shortest = int(np.argmin(np.asarray(padding).sum(-1)))
    panels = (
        (padding, "padding (ids in the cells)", padded, "sequence"),
        (look_ahead, "look-ahead", None, "query"),
        (combined[shortest], f"both, for sequence {shortest + 1}", None, "query"),
    )
    for ax, (mask, title, ids, rows) in zip(axes[0], panels, strict=True):
        ax.pcolormesh(np.asarray(mask, float), cmap="Blues", vmin=0, vmax=1.3, edgecolors="white", linewidth=2)
        ax.invert_yaxis()
        ax.set_aspect("equal")
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("key: position in the sequence", fontsize=8)
        ax.set_ylabel(rows, fontsize=8)
        ax.set_xticks(np.arange(mask.shape[1]) + 0.5, np.arange(1, mask.shape[1] + 1))
        ax.set_yticks(np.arange(mask.shape[0]) + 0.5, np.arange(1, mask.shape[0] + 1))
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        for (row, column), allowed in np.ndenumerate(np.asarray(mask)):
            text = ids[row, column] if ids is not None else int(allowed)
            color = "white" if allowed else "#777777"
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=color)
    return figure


def verify(numbers: dict) -> None:
    """Rows sum to 1, masked weights are exactly 0, and the scale flattens."""
    np.testing.assert_allclose(numbers["row_sums"], 1, atol=1e-5)
    assert numbers["largest_masked_weight"] == {"padding": 0, "look-ahead": 0, "combined": 0}
    assert numbers["padded"] == [[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [9, 10, 0, 0, 0], [11, 12, 13, 14, 0]]
    assert numbers["max_weight"]["scaled"] < numbers["max_weight"]["unscaled"]
    assert numbers["allowed"] == {"padding": 14, "combined": [12, 15, 9, 14]}
