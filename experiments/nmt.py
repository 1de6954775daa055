"""The translator of two bidirectional LSTM layers, trained: its alignments, its searches, and three exercises.

Command: ``python -m experiments nmt``; 15 minutes of one core's time. After 800 updates: held-out BLEU 91.3, alignment
error 15.9 %, weight on padding 0. A beam of 5 gains 1.2 BLEU on greedy search and takes three times as long.

The notebook's translator has random weights, attends to padding, and hands its decoder a state of the wrong shape. Here
it has masks and a bridge, and is trained on sentences of the bundled grammar with at most ten words. The exercises:
four heads against additive attention, beams against greedy search, and short sentences first against a mixed order. The
interactive page of any trained model is ``attn-jax attend MODEL SENTENCE --out attention.html``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from attn_jax import Batch, OptimizerConfig, Seq2Seq, Seq2SeqConfig, Translator, plot_attention
from attn_jax.data.batching import BatchConfig, Batches
from attn_jax.data.grammar import AlignedPair
from attn_jax.functional import softmax
from attn_jax.hub import EOS_TOKEN
from attn_jax.metrics import bleu
from attn_jax.training.loop import validation_loss
from experiments.runner import (
    COLORS,
    Corpus,
    Grid,
    Result,
    align_error,
    attention_panels,
    band,
    count_params,
    grammar_corpus,
    held_batch,
    new_figure,
    sentences,
    spread,
    train_batches,
)

MAX_WORDS = (10, 12)
"""The notebook's input and output lengths."""
TORCH = {
    "embeddings": 0,
    "encoder": sum(2 * (4 * 256 * (inputs + 256) + 2 * 4 * 256) for inputs in (100, 512)),
    "bridge": 0,
    "decoder": sum(4 * 512 * (inputs + 512) + 2 * 4 * 512 for inputs in (100, 512)),
    "attention": 2 * (512 * 512 + 512) + 512 + 1,
    "output": 1024 * 100 + 100,
}
"""Parameters of the notebook's PyTorch model by part; they add up to its 6,297,189."""
REASONS = {
    "embeddings": "words are one-hot there: its first kernels are the embeddings",
    "encoder": "PyTorch keeps two biases a layer, which only ever act as their sum",
    "bridge": "the notebook has none; its state (4, batch, 256) cannot enter (2, batch, 512)",
    "decoder": "two biases a layer again",
}
PADDED = {
    "source": ("I", "love", "AI", "<PAD>", "<PAD>"),
    "target": ("Je", "aime", "l'IA", "<EOS>"),
    "weights": (
        (0.8, 0.1, 0.05, 0.03, 0.02),
        (0.1, 0.75, 0.1, 0.03, 0.02),
        (0.05, 0.1, 0.8, 0.03, 0.02),
        (0.02, 0.02, 0.06, 0.45, 0.45),
    ),
}
"""The notebook's alignment picture, typed in by hand."""
PENALTIES = (0.0, 0.6)
BASE, HEADS, SHORT_FIRST = "additive", "multi-head, 4 heads", "additive, short first"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The translator, and the smaller ones of the exercises; a decoder has twice ``hidden`` units.

    Attributes:
      train, test: pairs drawn; those with at most ten English and twelve French words are kept.
      steps, small_steps: updates of the translator and of each smaller model.
      every: updates between measurements of a smaller model.
      searched: held-out sentences that the searches are compared on.
    """

    train: int = 60_000
    test: int = 900
    embed: int = 100
    hidden: int = 256
    layers: int = 2
    steps: int = 800
    learning_rate: float = 4e-3
    batch_tokens: int = 1024
    num_buckets: int = 4
    small_embed: int = 64
    small_hidden: int = 64
    small_steps: int = 900
    small_learning_rate: float = 8e-3
    every: int = 75
    seeds: int = 3
    beams: tuple[int, ...] = (1, 2, 5, 10)
    searched: int = 300

    @classmethod
    def quick(cls) -> Config:
        """One tiny model for everything, few updates."""
        small = {"embed": 8, "hidden": 8, "steps": 4, "small_embed": 8, "small_hidden": 8, "small_steps": 4}
        sizes = {"train": 200, "test": 20, "batch_tokens": 512, "num_buckets": 1, "searched": 20}
        return cls(layers=1, every=2, seeds=1, beams=(1, 2), **small, **sizes)


@dataclass(frozen=True)
class ShortFirst:
    """A source of batches for `attn_jax.training.loop.train`: short sentences first (Bengio et al., 2009).

    Attributes:
      batches: all of them.
      steps: updates that see the shorter half of the buckets only.
    """

    batches: Batches
    steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch of everything."""
        return self.batches.steps_per_epoch

    def stream(self, seed: int, start: int = 0) -> Iterator[Batch]:
        """The batches of the steps ``start, start + 1, ...`` without end."""
        shorter = self.batches.buckets[: (len(self.batches.buckets) + 1) // 2]
        if start < self.steps:
            short = dataclasses.replace(self.batches, buckets=shorter)
            yield from itertools.islice(short.stream(seed, start), self.steps - start)
        yield from self.batches.stream(seed, max(start - self.steps, 0))


def make_model(src: int, tgt: int, *, embed: int, hidden: int, layers: int = 2, attention: str = "additive") -> Seq2Seq:
    """The notebook's translator: recur, then attend; logits of ``[state; context]``."""
    return Seq2Seq(
        Seq2SeqConfig(
            src_vocab_size=src,
            tgt_vocab_size=tgt,
            embed_dim=embed,
            encoder_cell="lstm",
            encoder_hidden=hidden,
            encoder_layers=layers,
            decoder_hidden=2 * hidden,
            decoder_layers=layers,
            attention=attention,
            attention_options={"num_heads": 4} if attention == "multihead" else {},
            input_feeding=False,
            readout="concat",
        )
    )


def parts() -> dict[str, int]:
    """Our parameters at the notebook's sizes, by the parts of `TORCH`; nothing is computed but shapes."""
    model, ids = make_model(100, 100, embed=100, hidden=256), np.ones((1, 1), np.int32)
    batch = Batch(src=ids, src_mask=ids > 0, tgt=ids, tgt_mask=ids > 0)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    attention = count_params(params["decoder"]["attention"])
    return {
        "embeddings": count_params([params["src_embed"], params["tgt_embed"]]),
        "encoder": count_params(params["encoder"]),
        "bridge": count_params([found for name, found in params.items() if name.startswith("bridge")]),
        "decoder": count_params(params["decoder"]) - attention,
        "attention": attention,
        "output": count_params([params["output_kernel"], params["output_bias"]]),
    }


def optimizer(learning_rate: float) -> OptimizerConfig:
    """Adam, clipped, with a short warm-up."""
    return OptimizerConfig(learning_rate=learning_rate, warmup=100)


@functools.partial(jax.jit, static_argnums=0)
def attention_of(model: Seq2Seq, params: Any, batch: Batch) -> jax.Array:
    """Where the model looks for each true target token, ``[batch, tgt_len, src_len]``, the mean over heads."""
    weights = model.apply({"params": params}, batch)[1]
    return weights.mean(axis=1) if weights.ndim == 4 else weights


def search(translator: Translator, config: Config, corpus: Corpus) -> dict[str, Sequence[float]]:
    """BLEU, length over true length, log-probability and seconds (best of three) of each beam and penalty."""
    src, tgt = (side[: config.searched] for side in sentences(corpus.test))
    words = sum(len(text.split()) for text in tgt)
    names, rows = ("beam", "penalty", "bleu", "length", "log_prob", "seconds"), []
    for beam in config.beams:
        translator(src, beam=beam)  # compiles
        for penalty in PENALTIES:
            times = []
            for _ in range(3):
                began = time.perf_counter()
                outputs = [best[0] for best in translator(src, beam=beam, length_penalty=penalty)]
                times.append(time.perf_counter() - began)
            texts = [output.text for output in outputs]
            length = sum(len(text.split()) for text in texts) / words
            log_prob = float(np.mean([output.log_prob for output in outputs]))
            rows.append((beam, penalty, bleu(texts, tgt).value, length, log_prob, min(times)))
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def exercises(config: Config, corpus: Corpus, held: Batch, translator_of: Any) -> dict[str, dict[str, np.ndarray]]:
    """Smaller models with the same updates: additive attention, four heads, and short sentences first."""
    sizes = {"embed": config.small_embed, "hidden": config.small_hidden, "layers": config.layers}
    short = ShortFirst(corpus.batches, config.small_steps // 3)

    @functools.cache  # it is compiled once a model
    def measure_of(model: Seq2Seq) -> Any:
        loss = validation_loss(model)
        return lambda params: loss(params, [held])

    found = {}
    for name, attention, source in (
        (BASE, "additive", corpus.batches),
        (SHORT_FIRST, "additive", short),
        (HEADS, "multihead", corpus.batches),
    ):
        model = make_model(len(corpus.src_vocab), len(corpus.tgt_vocab), attention=attention, **sizes)
        scores: dict[str, list] = {"nll": [], "bleu": [], "error_rate": []}
        for seed in range(config.seeds):
            trained = train_batches(
                model,
                source,
                steps=config.small_steps,
                optimizer=optimizer(config.small_learning_rate),
                seed=seed,
                every=config.every,
                measure=measure_of(model),
            )
            scores["nll"].append([point["nll"] for point in trained.measured])
            scores["bleu"].append(greedy_bleu(translator_of(model), trained.params, corpus))
            scores["error_rate"].append(align_error(np.asarray(attention_of(model, trained.params, held)), corpus.test))
        found[name] = {key: np.array(value) for key, value in scores.items()} | {
            "steps": np.array([point["step"] for point in trained.measured]),
            "parameters": count_params(trained.params),
        }
    return found


def greedy_bleu(translator: Translator, params: Any, corpus: Corpus) -> float:
    """BLEU of greedy translations of the held-out sentences."""
    translator.params = params
    src, tgt = sentences(corpus.test)
    return bleu([best[0].text for best in translator(src, beam=1)], tgt).value


def crossings(pair: AlignedPair) -> int:
    """How often the gold links of a pair cross."""
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in itertools.combinations(pair.alignment, 2))


def run(config: Config) -> Result:
    """Trains the translator and the smaller models, searches, aligns, draws."""
    corpus = grammar_corpus(
        config.train,
        config.test,
        batching=BatchConfig(batch_tokens=config.batch_tokens, num_buckets=config.num_buckets),
        keep=lambda pair: len(pair.src) <= MAX_WORDS[0] and len(pair.tgt) <= MAX_WORDS[1],
    )
    held = held_batch(corpus, *(words + 1 for words in MAX_WORDS))
    sizes = {"embed": config.embed, "hidden": config.hidden, "layers": config.layers}
    model = make_model(len(corpus.src_vocab), len(corpus.tgt_vocab), **sizes)
    trained = train_batches(model, corpus.batches, steps=config.steps, optimizer=optimizer(config.learning_rate))
    translator_of = functools.cache(lambda model: Translator(model, None, corpus.src_vocab, corpus.tgt_vocab))
    weights = np.asarray(attention_of(model, trained.params, held))
    numbers = {
        "pairs": len(corpus.train),
        "parameters": {"notebook": TORCH, "here": parts()},
        "bleu": greedy_bleu(translator_of(model), trained.params, corpus),
        "error_rate": align_error(weights, corpus.test),
        "loss": float(trained.losses[-20:].mean()),
        "padding_weight": float(np.where(held.src_mask[:, None], 0, weights).max()),
        "search": search(translator_of(model), config, corpus),
        "exercises": exercises(config, corpus, held, translator_of),
    }
    figures = {
        "alignment.png": draw_alignment(corpus, weights),
        "padding.png": draw_padding(corpus, weights),
        "exercises.png": draw_exercises(config, numbers),
    }
    return Result(numbers, tables(config, numbers), figures)


def tables(config: Config, numbers: dict) -> list[Grid]:
    """Parameters, the translator, its searches, the exercises."""
    ours = numbers["parameters"]["here"]
    sizes = [(part, f"{count:,}", f"{ours[part]:,}", REASONS.get(part, "")) for part, count in TORCH.items()]
    sizes.append(("all", f"{sum(TORCH.values()):,}", f"{sum(ours.values()):,}", ""))
    summary = [numbers[name] for name in ("pairs", "bleu", "error_rate", "padding_weight")]
    return [
        Grid("parameters at vocabularies 100 / 100", ("", "notebook (PyTorch)", "here", "why"), sizes),
        Grid(
            f"after {config.steps} updates, on held-out sentences",
            ("training pairs", "BLEU, greedy", "alignment error, %", "largest weight on padding"),
            [summary],
        ),
        Grid(
            "searches (beam 1 is greedy)",
            ("beam", "length penalty", "BLEU", "length / true length", "log-probability, nats", "seconds, best of 3"),
            list(zip(*numbers["search"].values(), strict=True)),
        ),
        Grid(
            f"smaller models, {config.small_steps} updates, mean ± sd of {config.seeds} seeds",
            ("", "parameters", "held-out nats a token", "BLEU", "alignment error, %"),
            [
                (name, f"{at['parameters']:,}", *map(spread, (at["nll"][:, -1], at["bleu"], at["error_rate"])))
                for name, at in numbers["exercises"].items()
            ],
        ),
    ]


def draw_alignment(corpus: Corpus, weights: np.ndarray):
    """The map of the held-out sentence whose gold links cross most often."""
    row, pair = max(enumerate(corpus.test), key=lambda found: crossings(found[1]))
    source, target = (*pair.src, EOS_TOKEN), (*pair.tgt, EOS_TOKEN)
    shown = weights[row, : len(target), : len(source)]
    figure, axes = new_figure(1, 1, width=5.2, height=5.0)
    plot_attention(shown, source, target, gold=pair.alignment, ax=axes[0, 0])
    axes[0, 0].set_title("where the trained decoder looked; outlined: gold alignment", fontsize=10)
    axes[0, 0].set(xlabel="source word", ylabel="target word, fed the true ones")
    axes[0, 0].get_legend().remove()
    return figure


def draw_padding(corpus: Corpus, weights: np.ndarray):
    """The notebook's picture, its scores under a mask, and a trained model with a padded sentence."""
    theirs, source = np.array(PADDED["weights"]), PADDED["source"]
    mask = np.array([word != "<PAD>" for word in source])
    masked = np.asarray(softmax(np.log(theirs)[None], mask[None, None])[0])
    row, pair = min(enumerate(corpus.test), key=lambda found: len(found[1].src))
    words, target = (*pair.src, EOS_TOKEN, "<PAD>", "<PAD>"), (*pair.tgt, EOS_TOKEN)
    return attention_panels(
        [
            ("the notebook's picture: padding is attended", theirs, source, PADDED["target"]),
            ("the same scores under our mask: exactly 0", masked, source, PADDED["target"]),
            ("trained, a padded sentence: exactly 0", weights[row, : len(target), : len(words)], words, target),
        ]
    )


def draw_exercises(config: Config, numbers: dict):
    """BLEU, length and seconds against the beam; held-out loss against updates; BLEU and alignment error."""
    figure, axes = new_figure(2, 3, width=4.2, height=3.1)
    found = {name: np.array(values) for name, values in numbers["search"].items()}
    for ax, name, title, unit in (
        (axes[0, 0], "bleu", "quality of a beam", "BLEU, %"),
        (axes[0, 1], "length", "length bias", "words / words of the reference"),
        (axes[0, 2], "seconds", f"time of a beam, {config.searched} sentences", "seconds"),
    ):
        for penalty, color, style in zip(PENALTIES, COLORS, ("o-", "s--"), strict=False):
            at = found["penalty"] == penalty
            ax.plot(found["beam"][at], found[name][at], style, color=color, label=f"length penalty {penalty:g}")
        ax.set(title=title, xlabel="beam (1 = greedy)", ylabel=unit)
        ax.set_xticks(config.beams)
    axes[0, 1].axhline(1, color="#999999", linestyle=":", linewidth=1)
    for (name, scores), color, style in zip(numbers["exercises"].items(), COLORS, ("-", "--", ":"), strict=False):
        band(axes[1, 0], scores["steps"], scores["nll"], label=name, color=color, linestyle=style)
    names = [name.replace(", ", ",\n") for name in numbers["exercises"]]
    for ax, key, unit in ((axes[1, 1], "bleu", "BLEU, %"), (axes[1, 2], "error_rate", "alignment error, %")):
        for place, (scores, color) in enumerate(zip(numbers["exercises"].values(), COLORS, strict=False)):
            ax.bar(place, scores[key].mean(), 0.6, color=color)
            ax.plot(np.full(len(scores[key]), place), scores[key], "o", color="#22303c", markersize=4)
        ax.set(title=f"smaller models, {config.small_steps} updates (points: seeds)", xlabel="model", ylabel=unit)
        ax.set_xticks(range(len(names)), names)
    axes[1, 0].axvline(config.small_steps // 3, color="#999999", linewidth=1)
    axes[1, 0].set(title="smaller models (line: end of short first)", xlabel="updates", ylabel="held-out nats a token")
    for ax in axes.flat:
        ax.title.set_fontsize(9)
    for ax in (*axes[0], axes[1, 0]):
        ax.legend(fontsize=7, frameon=False)
    return figure


def verify(numbers: dict) -> None:
    """The counts exactly; the trained translator translates, aligns, and never looks at padding."""
    notebook, here = numbers["parameters"]["notebook"], numbers["parameters"]["here"]
    assert sum(notebook.values()) == 6_297_189 and sum(here.values()) == 7_359_621
    assert notebook["attention"] == here["attention"] and notebook["output"] == here["output"]
    assert numbers["padding_weight"] == 0
    assert numbers["bleu"] > 80, numbers["bleu"]
    assert numbers["error_rate"] < 25, numbers["error_rate"]
    found = {name: np.array(values) for name, values in numbers["search"].items()}
    plain = found["penalty"] == 0
    beams, log_probs, bleus = (found[name][plain] for name in ("beam", "log_prob", "bleu"))
    assert log_probs[beams > 1].min() >= log_probs[0], "a beam finds nothing less likely than greedy search does"
    assert bleus.min() >= bleus[0] - 1, bleus
    assert np.all(abs(found["length"] - 1) < 0.1), found["length"]
    base, heads, short = (numbers["exercises"][name] for name in (BASE, HEADS, SHORT_FIRST))
    assert np.mean(heads["bleu"]) > np.mean(base["bleu"]) + 5, (heads, base)
    assert np.max(heads["nll"], axis=0)[-1] < np.min(base["nll"], axis=0)[-1], (heads, base)
    assert np.mean(short["bleu"]) < np.mean(base["bleu"]) + 10, (short, base)  # no gain
