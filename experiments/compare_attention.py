"""Eight attention mechanisms in the same decoder: parameters, sharpness, accuracy, alignment error and step time.

Command: ``python -m experiments compare_attention``; 13 minutes on one core. Held-out BLEU and alignment error after
1,200 updates, means of three seeds: one head of multi-head 82.4 and 9.8 %, additive 81.8 and 10.4, concat 80.0 and
11.2, dot 78.0 and 11.1, general 71.2 and 12.8, four heads 79.1 and 18.3, location 65.4 and 41.8, scaled dot 42.2 and
31.9; a step takes 19 to 28 ms (general, whose time was disturbed, 21 in a second run).

Every mechanism is trained from the same three seeds on the same sentences of the bundled grammar, whose gold alignments
are known. The held-out pairs are looked at once, after the last step: nothing is chosen by them. The notebook compares
untrained mechanisms on random vectors; its table of parameters is checked to the last one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import Batch, OptimizerConfig, Seq2Seq, Seq2SeqConfig, Translator, plot_attention
from attn_jax.data.batching import BatchConfig
from attn_jax.data.grammar import MAX_LENGTH, AlignedPair
from attn_jax.metrics import alignment_error_rate, bleu
from attn_jax.nn.attention import make_attention
from attn_jax.training.loop import validation_loss
from attn_jax.training.step import TrainState, make_optimizer, make_train_step
from experiments.runner import (
    COLORS,
    Corpus,
    Grid,
    Result,
    align_error,
    count_params,
    entropy,
    grammar_corpus,
    held_batch,
    new_figure,
    sentences,
    spread,
    train_batches,
)

LONGEST = MAX_LENGTH + 1
"""Tokens of the longest sentence of the grammar, its end included."""

MECHANISMS: dict[str, tuple[str, dict[str, Any]]] = {
    "dot": ("dot", {}),
    "scaled dot": ("scaled_dot", {}),
    "general": ("general", {}),
    "concat": ("concat", {}),
    "additive": ("additive", {}),
    "multi-head, 1 head": ("multihead", {"num_heads": 1}),
    "multi-head, 4 heads": ("multihead", {"num_heads": 4}),
    "location": ("location", {"max_len": LONGEST}),
}
"""Name and options of each mechanism."""

NOTEBOOK = {"additive, 128": 33_153, "dot, 64": 0, "general, 64": 4_096, "concat, 64": 8_321}
"""The notebook's parameters, by mechanism and hidden units; additive and concat attention have biases, general none."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The decoder is an LSTM; the encoder a GRU in both directions, as wide as the decoder so that dot products fit."""

    mechanisms: tuple[str, ...] = tuple(MECHANISMS)
    train: int = 24_000
    held_out: int = 300
    steps: int = 1200
    batch_tokens: int = 1024
    buckets: int = 2
    embed: int = 64
    hidden: int = 128
    learning_rate: float = 6e-3
    warm_ups: int = 3
    timed_steps: int = 20
    corpus_seed: int = 1
    seeds: int = 3

    def __post_init__(self):
        """Checks the names."""
        unknown = set(self.mechanisms) - set(MECHANISMS)
        if unknown or not self.mechanisms:
            raise ValueError(f"mechanisms must be among {', '.join(MECHANISMS)}; found {', '.join(unknown) or 'none'}")

    @classmethod
    def quick(cls) -> Config:
        """One mechanism, small and short: most of it is compilation."""
        return cls(
            mechanisms=("multi-head, 4 heads",),
            train=100,
            held_out=8,
            steps=4,
            seeds=1,
            buckets=1,
            embed=8,
            hidden=16,
            warm_ups=1,
            timed_steps=3,
        )

    @property
    def batching(self) -> BatchConfig:
        """How sentences become batches."""
        return BatchConfig(batch_tokens=self.batch_tokens, num_buckets=self.buckets)


def make_model(config: Config, corpus: Corpus, name: str) -> Seq2Seq:
    """The translator with one of `MECHANISMS`; only the mechanism differs."""
    attention, options = MECHANISMS[name]
    return Seq2Seq(
        Seq2SeqConfig(
            src_vocab_size=len(corpus.src_vocab),
            tgt_vocab_size=len(corpus.tgt_vocab),
            embed_dim=config.embed,
            encoder_hidden=config.hidden // 2,
            decoder_hidden=config.hidden,
            attention=attention,
            attention_options=options,
        )
    )


def sharpness(weights: np.ndarray, batch: Batch) -> dict[str, float]:
    """Mean entropy and mean maximum of the weights ``[batch, heads, tgt_len, src_len]``; the largest on padding."""
    real = np.moveaxis(weights, 1, 2)[batch.tgt_mask]  # [tokens, heads, src_len]
    return {
        "entropy": float(entropy(real).mean()),
        "max_weight": float(real.max(-1).mean()),
        "weight_on_padding": float(np.where(batch.src_mask[:, None, None], 0, weights).max()),
    }


def yardsticks(pairs: Sequence[AlignedPair]) -> dict[str, float]:
    """Alignment errors of the diagonal, known before anything is learned, and of one gold link for each target word.

    The second is about the best that the heaviest weight of each target word can reach: gold often has more links.
    """
    gold = [set(pair.alignment) for pair in pairs]
    diagonal = [{(t * len(pair.src) // len(pair.tgt), t) for t in range(len(pair.tgt))} for pair in pairs]
    single = [{(s, t) for t, s in {t: s for s, t in links}.items()} for links in gold]
    found = {"diagonal": diagonal, "one gold link a word": single}
    return {name: alignment_error_rate(links, gold).error_rate for name, links in found.items()}


def step_times(config: Config, model: Seq2Seq, params: Any, batch: Batch) -> np.ndarray:
    """Seconds of training steps on one batch, the same for every mechanism; after warm-up, each waited for."""
    optimizer = make_optimizer(OptimizerConfig(), config.timed_steps)
    step, rng = make_train_step(model, optimizer), jax.random.key(0)
    batch, params = jax.device_put(batch), jax.tree.map(jnp.array, params)  # copies: a step takes over its state
    state, times = TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params)), []
    for _ in range(config.warm_ups + config.timed_steps):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, rng))
        times.append(time.perf_counter() - began)
    return np.array(times[config.warm_ups :])


def notebook_table() -> dict[str, dict[str, Any]]:
    """The notebook's demonstration: untrained mechanisms on random vectors, batch 4 (additive 2), length 8 (10)."""
    vectors, found = np.random.default_rng(0), {}
    for name in NOTEBOOK:
        mechanism, hidden = name.split(", ")
        batch, length = (2, 10) if mechanism == "additive" else (4, 8)
        query, keys = (vectors.standard_normal((batch, n, int(hidden)), np.float32) for n in (1, length))
        init = jax.jit(make_attention(mechanism, int(hidden)).init_with_output)
        (context, weights), variables = jax.device_get(init(jax.random.key(0), query, keys))
        found[name] = {
            "parameters": count_params(variables),
            "context": context.shape,
            "weights": weights.shape,
            "variance": weights.var(),
            "mean_max": weights.max(-1).mean(),
        }
    return found


def example(pairs: Sequence[AlignedPair]) -> int:
    """The pair of at most nine words a side whose gold links cross most often."""

    def crossings(pair: AlignedPair) -> int:
        if max(len(pair.src), len(pair.tgt)) > 9:
            return -1
        return sum((s - u) * (t - v) < 0 for s, t in pair.alignment for u, v in pair.alignment)

    return int(np.argmax([crossings(pair) for pair in pairs]))


def run(config: Config) -> Result:
    """Trains a translator with each mechanism, and measures."""
    corpus = grammar_corpus(config.train, config.held_out, batching=config.batching, seed=config.corpus_seed)
    held, batch, src = corpus.test, held_batch(corpus, LONGEST, LONGEST), sentences(corpus.test)[0]
    optimizer = OptimizerConfig(learning_rate=config.learning_rate, warmup=150)
    shown, found, maps = example(held), {}, {}
    for name in config.mechanisms:
        model = make_model(config, corpus, name)
        translator = Translator(model, None, corpus.src_vocab, corpus.tgt_vocab)
        apply, loss, by_seed = jax.jit(model.apply), validation_loss(model), []  # compiled once for all seeds
        for seed in range(config.seeds):
            params = train_batches(model, corpus.batches, steps=config.steps, optimizer=optimizer, seed=seed).params
            translator.params = params
            _, weights = jax.device_get(apply({"params": params}, batch))
            weights = weights[:, None] if weights.ndim == 3 else weights  # [sentences, heads, tgt_len, src_len]
            mean, pair = weights.mean(axis=1), held[shown]
            maps.setdefault(name, mean[shown, : len(pair.tgt), : len(pair.src)])  # of the first seed
            by_seed.append(
                {
                    **loss(params, [batch]),
                    "bleu": bleu([best[0].text for best in translator(src, beam=1)], sentences(held)[1]).value,
                    "alignment_error": align_error(mean, held) / 100,
                    **sharpness(weights, batch),
                }
            )
        seconds = step_times(config, model, params, corpus.batches.batch_at(0, 0))
        found[name] = {
            "parameters": count_params(params["decoder"].get("attention", {})),
            "all_parameters": count_params(params),
            **{key: np.array([of[key] for of in by_seed]) for key in by_seed[0]},  # each [seeds]
            "step_ms": 1e3 * float(np.median(seconds)),
            "step_ms_quartiles": 1e3 * np.quantile(seconds, (0.25, 0.75)),
        }
    uniform = float(np.mean(np.log(batch.src_mask.sum(-1).repeat(batch.tgt_mask.sum(-1)))))
    numbers = {
        "mechanisms": found,
        "uniform_entropy": uniform,
        "yardsticks": yardsticks(held),
        "notebook": notebook_table(),
    }
    figures = {
        "compare_attention.png": draw(numbers, config),
        "maps.png": draw_maps(maps, found, held[shown]),
    }
    return Result(numbers, tables(numbers, config), figures)


def tables(numbers: Mapping[str, Any], config: Config) -> list[Grid]:
    """The mechanisms, and the notebook's table."""
    rows = [
        (
            name, f"{of['parameters']:,}", spread(100 * of["accuracy"]), spread(of["bleu"]),
            spread(100 * of["alignment_error"]), spread(of["entropy"]), spread(of["max_weight"]), of["step_ms"],
        )
        for name, of in numbers["mechanisms"].items()
    ]  # fmt: skip
    rows += [(name, "", "", "", 100 * error, "", "", "") for name, error in numbers["yardsticks"].items()]
    rows.append(("uniform weights", "", "", "", "", numbers["uniform_entropy"], "", ""))
    columns = ("attention", "parameters", "tokens right, %", "BLEU", "AER, %", "entropy, nats", "max", "ms a step")
    demo = [
        (name, NOTEBOOK[name], of["parameters"], of["weights"], float(of["variance"]), float(of["mean_max"]))
        for name, of in numbers["notebook"].items()
    ]
    demo_columns = ("", "notebook", "ours", "weights", "variance of the weights", "mean of the row maxima")
    return [
        Grid(
            f"{config.held_out} held-out pairs, {config.steps} steps (mean ± sd of {config.seeds} seeds)",
            columns,
            rows,
        ),
        Grid("the notebook's table: untrained, on random vectors", demo_columns, demo),
    ]


def draw(numbers: Mapping[str, Any], config: Config):
    """Bars for each mechanism, lines from the smallest to the largest seed; parameters and step time."""
    found = numbers["mechanisms"]
    names, places = list(found), np.arange(len(found))
    figure, axes = new_figure(1, 4, width=3.8, height=1.6 + 0.32 * len(names))
    quality, sharp, size, speed = axes[0]

    def bars(ax: Any, key: str, color: str, text: str, scale=1.0, label=None, shift=0.0, width=0.8):
        values = scale * np.array([np.mean(of[key]) for of in found.values()])
        ends = scale * np.array(
            [of.get(f"{key}_quartiles", (np.min(of[key]), np.max(of[key]))) for of in found.values()]
        )
        ax.barh(places + shift, values, width, color=color, label=label)
        ax.hlines(places + shift, *ends.T, color="#22303c", linewidth=1)
        for place, value, end in zip(places + shift, values, ends[:, 1], strict=True):
            at, style = (max(value, end), place), {"textcoords": "offset points", "va": "center", "fontsize": 7}
            ax.annotate(format(value, text), at, (3, 0), **style)

    bars(quality, "accuracy", COLORS[0], ".1f", 100, "tokens right", -0.2, 0.4)
    bars(quality, "alignment_error", COLORS[1], ".1f", 100, "alignment error", 0.2, 0.4)
    for (name, error), style in zip(numbers["yardsticks"].items(), ("--", ":"), strict=True):
        label = f"alignment error of {name if ' ' in name else f'the {name}'}"
        quality.axvline(100 * error, color="#777777", linestyle=style, linewidth=1, label=label)
    quality.set(title="held-out tokens and alignment", xlabel="%", xlim=(0, 118))
    bars(sharp, "entropy", COLORS[2], ".2f")
    sharp.axvline(numbers["uniform_entropy"], color="#777777", linestyle="-.", linewidth=1, label="uniform weights")
    sharp.set(title="entropy of the weights", xlabel="nats", xlim=(0, 1.2 * numbers["uniform_entropy"]))
    bars(size, "parameters", COLORS[3], ".1f", 1e-3)
    size.set(title="parameters of the mechanism", xlabel="thousands")
    bars(speed, "step_ms", COLORS[4], ".1f")
    speed.set(title=f"training step, {config.batch_tokens:,} tokens", xlabel="ms (median, quartiles)")
    for ax in (size, speed):
        ax.margins(x=0.2)
    for ax in axes[0]:
        ax.set_yticks(*((places, names) if ax is quality else ([],)))
        ax.invert_yaxis()
        ax.title.set_fontsize(9)
        ax.xaxis.label.set_fontsize(8)
    figure.legend(loc="outside lower left", ncols=5, fontsize=8, frameon=False)
    return figure


def draw_maps(maps: Mapping[str, np.ndarray], found: Mapping[str, Any], pair: AlignedPair):
    """One map for each mechanism, of the same held-out pair, with the gold links outlined."""
    columns = min(len(maps), 4)
    figure, axes = new_figure(-(-len(maps) // columns), columns, width=3.7, height=3.7)
    figure.get_layout_engine().set(h_pad=0.12)  # else the titles touch what is above them
    figure.suptitle(
        "attention of forced decoding on a held-out pair, first seed; outlined: gold alignment", fontsize=11
    )
    for ax in axes.flat[len(maps) :]:
        ax.set_axis_off()
    for ax, (name, weights) in zip(axes.flat, maps.items(), strict=False):
        plot_attention(weights, pair.src, pair.tgt, gold=pair.alignment, ax=ax)
        ax.set_title(f"{name}: alignment error {100 * found[name]['alignment_error'][0]:.0f} %", fontsize=10)
        ax.get_legend().remove()
        mesh = ax.collections[0]
        mesh.colorbar.remove()
        mesh.set_clim(0, 1)
    for ax in axes[-1]:
        ax.set_xlabel("source word", fontsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("target word, fed the true ones", fontsize=8)
    figure.colorbar(mesh, ax=axes, shrink=0.5, pad=0.01).set_label("attention weight", fontsize=9)
    figure.draw_without_rendering()  # places the titles above the slanted tick labels; the layout then makes room
    return figure


def verify(numbers: dict) -> None:
    """Parameters are the notebook's; scores that look at the content align better than those that do not."""
    assert {name: found["parameters"] for name, found in numbers["notebook"].items()} == NOTEBOOK
    additive = numbers["notebook"]["additive, 128"]
    assert additive["context"] == [2, 1, 128] and additive["weights"] == [2, 1, 10]
    found = numbers["mechanisms"]
    assert all(np.max(of["weight_on_padding"]) == 0 for of in found.values())
    assert all(np.max(of["entropy"]) < numbers["uniform_entropy"] for of in found.values())
    assert found["additive"]["parameters"] == NOTEBOOK["additive, 128"] and found["dot"]["parameters"] == 0
    location, diagonal = found["location"], numbers["yardsticks"]["diagonal"]
    for name in MECHANISMS.keys() - {"location"}:
        of, other = found[name], np.mean(location["alignment_error"])
        assert np.mean(of["alignment_error"]) < min(other, diagonal) - 0.05, (name, of["alignment_error"], other)
        if name != "scaled dot":
            assert np.min(of["accuracy"]) > np.max(location["accuracy"]), (name, of["accuracy"])
    # Divided by sqrt(128), products of states between -1 and 1 stay small, and the weights flat, for long.
    flat, dot = found["scaled dot"], found["dot"]
    assert np.min(flat["entropy"]) > np.max(dot["entropy"]) and np.max(flat["accuracy"]) < np.min(dot["accuracy"])
