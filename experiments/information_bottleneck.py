"""One vector for a whole sentence: the notebook's estimate of what it loses, and what it costs a trained model.

Command: ``python -m experiments information_bottleneck``; 12 minutes on one core. Three seeds. Reversing 40 to 50
symbols, the longest of the training: 99.6 % in their place with attention, 12.8 % without (5 % is chance); 51 to 100:
69 and 8 %. Sentences of 18 to 25 words: BLEU 93.0 and 7.1, of 3 to 5 words 97.4 and 46.7.

The notebook counts made-up units of information against a context of 256 units; no model is trained. That estimate is
here as three small functions. Beside it stands the measurement: one recurrent encoder-decoder whose context is 256
units wide, trained with and without attention, on reversing sequences and on the bundled English-French grammar, and
its quality by length (as figure 2 of Bahdanau et al., 2015, arXiv:1409.0473).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from attn_jax import Batch, OptimizerConfig, Seq2Seq, Seq2SeqConfig, Translator, greedy, search_variables
from attn_jax.data.batching import BatchConfig, build_batches
from attn_jax.data.batching import Sequences as Ids
from attn_jax.data.tasks import FIRST_SYMBOL, TaskSequences, reverse_task
from attn_jax.metrics import accuracy, bleu
from experiments.runner import (
    COLORS,
    Corpus,
    Grid,
    Result,
    band,
    grammar_corpus,
    new_figure,
    sentences,
    spread,
    train_batches,
)

ATTENTIONS = {"with attention": "additive", "without attention": None}
ESTIMATES = (
    {"units": 50, "words": (1, 2, 5, 14, 18), "bands": (90, 50)},
    {"units": 40, "words": (1, 2, 5, 14, 16), "bands": (80, 50)},
)
COMPRESSED_LENGTHS = (5, 10, 20, 50, 100)
CONTEXT = 256


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of both tasks; lengths are in symbols or words, without the end of sentence.

    Attributes:
      hidden: units of each direction of the encoder; the decoder, and so the context, has twice as many.
      longest: of the sequences to reverse in training; they are tested up to twice that.
      bucket_edges: first lengths of the classes that grammar sentences are sorted into.
    """

    seeds: int = 3
    embed: int = 64
    hidden: int = 128
    learning_rate: float = 4e-3
    num_symbols: int = 20
    longest: int = 50
    reverse_train: int = 20_000
    reverse_test: int = 40
    reverse_steps: int = 400
    reverse_tokens: int = 2560
    length_step: int = 5
    grammar_train: int = 24_000
    grammar_test: int = 1_500
    grammar_steps: int = 1500
    grammar_tokens: int = 1024
    bucket_edges: tuple[int, ...] = (3, 6, 9, 12, 15, 18)
    num_buckets: int = 5

    @classmethod
    def quick(cls) -> Config:
        """One seed, tiny and short."""
        return cls(
            seeds=1,
            embed=8,
            hidden=8,
            longest=6,
            reverse_train=64,
            reverse_test=4,
            reverse_steps=4,
            reverse_tokens=256,
            length_step=3,
            grammar_train=100,
            grammar_test=24,
            grammar_steps=4,
            grammar_tokens=512,
            bucket_edges=(3, 9),
            num_buckets=1,
        )


# -------------------------------------------------------------------------------------------- the notebook's estimate


def retention(words: int, units: int, context: int = CONTEXT) -> float:
    """An estimate, not a measurement: percent of ``units`` units a word that fit into a context of fixed size."""
    return 100 * min(1.0, context / (words * units))


def verdict(percent: float, bands: tuple[int, int]) -> str:
    """The notebook's band for a retention in percent."""
    return "kept" if percent >= bands[0] else "strained" if percent >= bands[1] else "lost"


def compression(tokens: int, units: int = 512, context: int = CONTEXT) -> float:
    """An estimate, not a measurement: how many units of a sentence share one unit of the context."""
    return tokens * units / context


def estimate() -> dict[str, Any]:
    """The notebook's two tables of retention, and its compression ratios."""
    tables = [
        {**given, "retention": [retention(words, given["units"]) for words in given["words"]]} for given in ESTIMATES
    ]
    return {"retention": tables, "compression": [compression(tokens) for tokens in COMPRESSED_LENGTHS]}


# ------------------------------------------------------------------------------------------------------ the real thing


def make_model(config: Config, src: int, tgt: int, attention: str | None) -> Seq2Seq:
    """The encoder-decoder; with and without attention everything else is the same."""
    return Seq2Seq(
        Seq2SeqConfig(
            src_vocab_size=src,
            tgt_vocab_size=tgt,
            embed_dim=config.embed,
            decoder_cell="gru",
            encoder_hidden=config.hidden,
            decoder_hidden=2 * config.hidden,
            attention=attention,
            attention_features=config.hidden,
        )
    )


def optimizer(config: Config) -> OptimizerConfig:
    """Adam, clipped, with a short warm-up."""
    return OptimizerConfig(learning_rate=config.learning_rate, warmup=100)


def pack(task: TaskSequences) -> tuple[Ids, Ids]:
    """Sources and targets with the end of sentence."""
    return tuple(Ids.from_ids([ids.tolist() for ids in side]) for side in task)


@partial(jax.jit, static_argnums=0)
def translate(model: Seq2Seq, params: Any, batch: Batch) -> jax.Array:
    """Greedy outputs ``[batch, tgt_len]``, as long as the true ones."""
    longest = batch.tgt.shape[1]
    variables = search_variables(model, params)
    state = model.apply(variables, batch, longest, method="start")
    step, limits = partial(model.apply, variables, method="step"), batch.tgt_mask.sum(-1)
    return greedy(step, state, max_len=longest, row_max_len=limits).tokens[:, 0]


def reversals(config: Config, length: int) -> Batch:
    """Held-out sequences of one length, padded to the longest of all tests."""
    task = pack(reverse_task(config.reverse_test, length, config.num_symbols, seed=length))
    (src, src_mask), (tgt, tgt_mask) = (
        side.padded(np.arange(config.reverse_test), 2 * config.longest + 1) for side in task
    )
    return Batch(src=src, src_mask=src_mask, tgt=tgt, tgt_mask=tgt_mask)


def measure_reverse(config: Config) -> dict[str, Any]:
    """Percent of symbols in their place, end of sentence included, by length ``[seeds, lengths]``."""
    task = reverse_task(config.reverse_train, (1, config.longest), config.num_symbols, seed=0)
    batching = BatchConfig(batch_tokens=config.reverse_tokens, num_buckets=config.num_buckets)
    batches = build_batches(*pack(task), batching)
    lengths = [1, *range(config.length_step, 2 * config.longest + 1, config.length_step)]
    tests = {length: reversals(config, length) for length in lengths}
    size = FIRST_SYMBOL + config.num_symbols
    found: dict[str, Any] = {"lengths": lengths, "accuracy": {}}
    for name, attention in ATTENTIONS.items():
        model, by_seed = make_model(config, size, size, attention), []
        for seed in range(config.seeds):
            trained = train_batches(model, batches, steps=config.reverse_steps, optimizer=optimizer(config), seed=seed)
            by_seed.append(
                [
                    100 * accuracy(translate(model, trained.params, batch), batch.tgt, batch.tgt_mask)
                    for batch in tests.values()
                ]
            )
        found["accuracy"][name] = np.array(by_seed)
    return found


def measure_grammar(config: Config) -> dict[str, Any]:
    """BLEU and percent of sentences exactly right by source length, each ``[seeds, classes]``."""
    batching = BatchConfig(batch_tokens=config.grammar_tokens, num_buckets=config.num_buckets)
    corpus = grammar_corpus(config.grammar_train, config.grammar_test, batching=batching)
    lengths = np.array([len(pair.src) for pair in corpus.test])
    classes = np.digitize(lengths, config.bucket_edges) - 1
    found: dict[str, Any] = {
        "classes": [f"{lengths[classes == c].min()}-{lengths[classes == c].max()}" for c in np.unique(classes)],
        "mean_length": [lengths[classes == c].mean() for c in np.unique(classes)],
        "sentences": np.bincount(classes),
        "bleu": {},
        "exact": {},
    }
    for name, attention in ATTENTIONS.items():
        model = make_model(config, len(corpus.src_vocab), len(corpus.tgt_vocab), attention)
        scores = np.array([grammar_scores(config, corpus, model, classes, seed) for seed in range(config.seeds)])
        found["bleu"][name], found["exact"][name] = scores[:, 0], scores[:, 1]
    return found


def grammar_scores(
    config: Config, corpus: Corpus, model: Seq2Seq, classes: np.ndarray, seed: int
) -> tuple[list[float], list[float]]:
    """Trains one model on the grammar; its BLEU and percent exactly right in each class of lengths."""
    steps = config.grammar_steps
    params = train_batches(model, corpus.batches, steps=steps, optimizer=optimizer(config), seed=seed).params
    src, tgt = sentences(corpus.test)
    outputs = [found[0].text for found in Translator(model, params, corpus.src_vocab, corpus.tgt_vocab)(src, beam=1)]
    scores, exact = [], []
    for group in np.unique(classes):
        chosen = [(outputs[i], tgt[i]) for i in np.flatnonzero(classes == group)]
        scores.append(bleu(*map(list, zip(*chosen, strict=True))).value)
        exact.append(100 * float(np.mean([output == true for output, true in chosen])))
    return scores, exact


def run(config: Config) -> Result:
    """The estimate, both tasks, and a figure of quality against length."""
    numbers = {"estimate": estimate(), "reverse": measure_reverse(config), "grammar": measure_grammar(config)}
    reverse, grammar = numbers["reverse"], numbers["grammar"]
    lengths = np.array(reverse["lengths"])
    ranges = _ranges(config.longest)
    numbers["reverse"]["by_range"] = {
        label: {
            name: found[:, (lengths >= low) & (lengths <= high)].mean(axis=1)
            for name, found in reverse["accuracy"].items()
        }
        for label, (low, high) in ranges.items()
    }
    rows = [
        (
            f"{given['units']} units a word",
            *(f"{words}: {kept:.1f} % {verdict(kept, given['bands'])}" for words, kept in pairs),
        )
        for given in numbers["estimate"]["retention"]
        for pairs in (list(zip(given["words"], given["retention"], strict=True)),)
    ]
    ratios = zip(COMPRESSED_LENGTHS, numbers["estimate"]["compression"], strict=True)
    rows.append(("512 units a token: compression", *(f"{tokens}: {ratio:.0f} to 1" for tokens, ratio in ratios)))
    tables = [
        Grid("the notebook's estimate (words: what fits into 256 units)", ("", *("",) * 5), rows),
        Grid(
            "reversing, measured: % of symbols in their place (mean ± sd over seeds)",
            ("", *(f"length {label}" for label in ranges)),
            [(name, *(spread(numbers["reverse"]["by_range"][label][name]) for label in ranges)) for name in ATTENTIONS],
        ),
        Grid(
            "grammar, measured: BLEU and % exactly right by words of the source",
            (
                "",
                *(f"{label} ({count})" for label, count in zip(grammar["classes"], grammar["sentences"], strict=True)),
            ),
            [
                (f"{name}, {metric}", *(spread(found) for found in grammar[metric][name].T))
                for metric in ("bleu", "exact")
                for name in ATTENTIONS
            ],
        ),
    ]
    return Result(numbers, tables, {"quality_by_length.png": draw(config, numbers)})


def _ranges(longest: int) -> dict[str, tuple[int, int]]:
    short, long = 2 * longest // 5, 4 * longest // 5
    bounds = ((1, short), (short + 1, long - 1), (long, longest), (longest + 1, 2 * longest))
    return {f"{low}-{high}": (low, high) for low, high in bounds}


def draw(config: Config, numbers: dict):
    """The estimate, then what was measured: symbols in place and BLEU against length, with and without attention."""
    figure, axes = new_figure(1, 3, width=4.4, height=3.5)
    guess, reverse, grammar = axes[0]
    words = np.arange(1, 21)
    for units, color, style in ((50, COLORS[3], "-"), (40, COLORS[4], "--")):
        guess.plot(words, [retention(n, units) for n in words], style, color=color, label=f"{units} units a word")
    guess.set(title="the notebook's estimate (a formula)", xlabel="words of the sentence", ylabel="retained, %")
    lengths = numbers["reverse"]["lengths"]
    for (name, color), style in zip(zip(ATTENTIONS, COLORS, strict=False), ("o-", "s--"), strict=True):
        line = {"color": color, "label": name, "marker": style[0], "linestyle": style[1:], "markersize": 3}
        band(reverse, lengths, numbers["reverse"]["accuracy"][name], **line)
        band(grammar, numbers["grammar"]["mean_length"], numbers["grammar"]["bleu"][name], **line)
    for percent in sorted({percent for given in ESTIMATES for percent in given["bands"]}):
        guess.axhline(percent, color="#999999", linestyle=":", linewidth=1)
        guess.text(1, percent - 1, f"threshold {percent} %", fontsize=6, va="top")
    reverse.axvspan(config.longest, 2 * config.longest, color="#999999", alpha=0.15, linewidth=0)
    reverse.text(1.5 * config.longest, 102, "longer than in training", fontsize=7, ha="center")
    reverse.axhline(100 / config.num_symbols, color="#999999", linestyle=":", linewidth=1, label="chance")
    reverse.set(title="reversing, measured", xlabel="length of the sequence, symbols", ylabel="symbols in place, %")
    grammar.set(title="English to French, measured", xlabel="words of the source (mean of class)", ylabel="BLEU, %")
    guess.set_xticks((1, 5, 10, 15, 20))
    for ax, corner in zip(axes[0], ("upper right", "center", "center right"), strict=True):
        ax.title.set_fontsize(10)
        ax.set_ylim(0, 106)
        ax.legend(fontsize=7, frameon=False, loc=corner)
    return figure


def verify(numbers: dict) -> None:
    """The notebook's numbers exactly; attention is far ahead on long sequences and on long sentences."""
    first, second = (given["retention"] for given in numbers["estimate"]["retention"])
    np.testing.assert_allclose(first, [100, 100, 100, 36.5714, 28.4444], atol=1e-3)
    np.testing.assert_allclose(second, [100, 100, 100, 45.7143, 40], atol=1e-3)
    assert numbers["estimate"]["compression"] == [10, 20, 40, 100, 200]
    long = list(numbers["reverse"]["by_range"].values())[-2]  # the longest that were trained on
    gap = np.min(long["with attention"]) - np.max(long["without attention"])
    assert gap >= 60, f"attention is {gap:.1f} points ahead at lengths 40 to 50"
    bleus = {name: np.mean(found, axis=0) for name, found in numbers["grammar"]["bleu"].items()}
    assert bleus["with attention"].min() > 85 and bleus["without attention"][-1] < 20, bleus
