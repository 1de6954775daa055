"""Teacher forcing on the reverse task: six schedules, and what each costs when the model must feed itself.

Command: ``python -m experiments teacher_forcing``; the full run is still to be done.

The notebook feeds the source where the target belongs, throws one coin a step for the whole batch, and draws its curves
from a formula. Here the decoder is fed the target, each token has its own coin, and every curve is measured: the loss
fed true tokens, the loss fed its own (free-running), and the gap between them, the exposure bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax.data.tasks import FIRST_SYMBOL, reverse_task
from attn_jax.functional.schedules import (
    constant_schedule,
    cosine_schedule,
    exponential_schedule,
    inverse_sigmoid_schedule,
    linear_schedule,
)
from attn_jax.models.protocol import EOS_ID, Batch
from attn_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from attn_jax.training.step import batch_loss
from experiments.runner import COLORS, Fit, Grid, Result, band, fit, new_figure, spread


@dataclass(frozen=True, kw_only=True)
class Config:
    """The notebook's data and model: 500 reversals of 8 symbols out of 20, an LSTM of 64 units without attention."""

    train: int = 500
    test: int = 200
    length: int = 8
    num_symbols: int = 20
    hidden: int = 64
    batch_size: int = 32
    learning_rate: float = 1e-3
    epochs: int = 200
    seeds: int = 5

    @classmethod
    def quick(cls) -> Config:
        """Small and short; one coin is enough to see that it runs."""
        return cls(train=64, test=32, length=4, num_symbols=4, hidden=8, epochs=2, seeds=2)


def strategies(epochs: int) -> dict[str, Callable[[Any], Any]]:
    """The probability of feeding the true token, as a function of the epoch; the decays fit into the run."""
    return {
        "always": constant_schedule(1.0),
        "never": constant_schedule(0.0),
        "linear": linear_schedule(epochs, end=0.0),
        "exponential": exponential_schedule(0.97 ** (100 / epochs)),
        "inverse sigmoid": inverse_sigmoid_schedule(max(epochs / 10, 1.0)),
        "cosine": cosine_schedule(epochs, end=0.0),
    }


def batch_of(num: int, config: Config, seed: int) -> Batch:
    """Reversals with the end of sentence on both sides."""
    src, tgt = (
        np.concatenate([np.stack(side), np.full((num, 1), EOS_ID, np.int32)], axis=1)
        for side in reverse_task(num, config.length, config.num_symbols, seed)
    )
    mask = np.ones_like(src, bool)
    return Batch(src=src, src_mask=mask, tgt=tgt, tgt_mask=mask)


def train(config: Config, probability: Callable[[Any], Any]) -> Fit:
    """Trains with one schedule, every seed at once; held-out losses after each epoch, fed true and fed own tokens."""
    size = FIRST_SYMBOL + config.num_symbols
    model = Seq2Seq(
        Seq2SeqConfig(
            src_vocab_size=size,
            tgt_vocab_size=size,
            embed_dim=config.num_symbols,
            encoder_cell="lstm",
            encoder_hidden=config.hidden,
            decoder_hidden=config.hidden,
            bidirectional=False,
            attention=None,
            input_feeding=False,
            readout="state",
            bridge="copy",
        )
    )
    data, held = batch_of(config.train, config, 0), batch_of(config.test, config, 1)

    def loss(params: Any, batch: Batch, rng: jax.Array, epoch: jax.Array) -> jax.Array:
        total = batch_loss(model, params, batch, rng, teacher_forcing=probability(epoch))
        return total.loss / total.count

    def measure(params: Any, rng: jax.Array, epoch: jax.Array) -> dict[str, jax.Array]:
        found = {}
        for part, batch in (("train", jax.tree.map(lambda x: x[: config.test], data)), ("held", held)):
            forced = batch_loss(model, params, batch)
            free = batch_loss(model, params, batch, rng, teacher_forcing=jnp.float32(0))
            found |= {f"{part}_forced": forced.nll / forced.count, f"{part}_free": free.nll / free.count}
            found[f"{part}_accuracy"] = free.correct / free.count
        return found

    return fit(
        lambda rng: model.init(rng, jax.tree.map(lambda x: x[:1], data))["params"],
        loss,
        data,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate)),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seeds=config.seeds,
        measure=measure,
    )


def run(config: Config) -> Result:
    """Trains with each schedule."""
    schedules = strategies(config.epochs)
    histories = {name: train(config, probability).history for name, probability in schedules.items()}
    probabilities = {
        name: np.array([float(probability(epoch)) for epoch in range(config.epochs)])
        for name, probability in schedules.items()
    }
    last = {
        name: {key: values[:, -1] for key, values in history.items()}
        | {
            f"{part}_gap": history[f"{part}_free"][:, -1] - history[f"{part}_forced"][:, -1]
            for part in ("train", "held")
        }
        for name, history in histories.items()
    }
    keys = (
        "loss",
        "train_forced",
        "train_free",
        "train_gap",
        "train_accuracy",
        "held_free",
        "held_gap",
        "held_accuracy",
    )
    rows = [(name, *(spread(found[key]) for key in keys)) for name, found in last.items()]
    columns = ("schedule", *(key.replace("_", " ") for key in keys))
    title = f"after {config.epochs} epochs: nats a token, share of tokens right when free-running"
    numbers = {
        "last": last,
        "probability": {
            name: values[[0, config.epochs // 4, config.epochs // 2, -1]] for name, values in probabilities.items()
        },
        "at_quarters": {
            name: {
                key: values[:, config.epochs // 4 - 1 :: max(config.epochs // 4, 1)] for key, values in history.items()
            }
            for name, history in histories.items()
        },
    }
    return Result(
        numbers, [Grid(title, columns, rows)], {"teacher_forcing.png": draw(config, histories, probabilities)}
    )


def draw(config: Config, histories: dict, probabilities: dict):
    """The probability; training loss; free-running loss and accuracy; the gap on training and on held-out pairs."""
    figure, axes = new_figure(2, 3, width=4.2, height=3.2)
    panels = (
        (None, "probability of the true token", "probability"),
        ("loss", "training loss, as trained", "nats a token"),
        ("train_free", "free-running loss, training pairs", "nats a token"),
        ("train_accuracy", "free-running accuracy, training pairs", "share of tokens"),
        ("train", "gap: free-running minus forced, training pairs", "nats a token"),
        ("held", "the same gap on held-out pairs", "nats a token"),
    )
    epochs = np.arange(1, config.epochs + 1)
    for ax, (key, title, unit) in zip(axes.flat, panels, strict=True):
        for (name, history), color in zip(histories.items(), COLORS, strict=False):
            if key is None:
                ax.plot(epochs, probabilities[name], label=name, color=color)
                continue
            values = history[key] if key in history else history[f"{key}_free"] - history[f"{key}_forced"]
            band(ax, epochs, values, label=name, color=color)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("epoch", fontsize=8)
        ax.set_ylabel(unit, fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    return figure


def verify(numbers: dict) -> None:
    """Always feeding the truth leaves the largest gap; training on own inputs closes it."""
    gap = {name: np.mean(found["train_gap"]) for name, found in numbers["last"].items()}
    assert gap["always"] == max(gap.values()) and gap["always"] > 3 * max(gap["never"], 0.01), gap
    probability = numbers["probability"]
    assert probability["always"] == [1, 1, 1, 1] and probability["never"] == [0, 0, 0, 0]
    np.testing.assert_allclose(probability["linear"][:3], [1, 0.75, 0.5], atol=1e-6)
    np.testing.assert_allclose(probability["cosine"][:3], [1, 0.853553, 0.5], atol=1e-5)
