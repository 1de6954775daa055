"""The demo: train on the bundled English-French grammar, and measure what came out on sentences never seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attn_jax.data.batching import BatchConfig
from attn_jax.data.grammar import AlignedPair, dictionary_baseline, split
from attn_jax.data.parallel import ParallelText, ReadReport
from attn_jax.hub import Translation, Translator
from attn_jax.metrics.alignment import GoldAlignment, alignment_error_rate, weights_to_links
from attn_jax.metrics.translation import bleu
from attn_jax.nn.settings import check_at_least_one
from attn_jax.pictures import attention_of
from attn_jax.run import train_on_text
from attn_jax.run_config import DataConfig, RunConfig
from attn_jax.search_config import SearchConfig
from attn_jax.training import run_folder
from attn_jax.training.journal import Journal
from attn_jax.training.loop import TrainConfig, resumable
from attn_jax.training.step import OptimizerConfig
from attn_jax.viz.examples import AttentionExample
from attn_jax.viz.figures import plot_attention, save_figure
from attn_jax.viz.viewer import write_attention_page

SHOWN = (
    "the quick brown fox jumps over the lazy dog",
    "i am a student",
    "we are engineers",
)
"""Sentences that the demo shows besides held-out ones."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's settings.

    Attributes:
      train, valid, test: sentence pairs drawn from the grammar for each part.
      steps: updates.
      seed: of the corpus and the training.
      precision: ``float32``, ``bfloat16`` or ``auto``.
      guided_weight: of the training pairs' gold alignments in the loss; 0: the attention finds its own way.
      model: settings of `attn_jax.models.seq2seq.Seq2SeqConfig`.
    """

    train: int = 48_000
    valid: int = 250
    test: int = 500
    steps: int = 2600
    seed: int = 1
    precision: str = "auto"
    guided_weight: float = 0.0
    model: Mapping[str, Any] = field(
        default_factory=lambda: {
            "embed_dim": 256,
            "encoder_hidden": 128,
            "residual": True,  # the keys hold the word itself besides what surrounds it: sharper alignments
            "decoder_hidden": 128,  # little memory of what it wrote: it has to look at the source
            "attention": "additive",
            "attention_features": 128,
            "dropout": 0.1,
        }
    )

    def __post_init__(self):
        """Checks the sizes."""
        check_at_least_one(self, "train", "valid", "test", "steps")


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured on held-out sentences.

    Attributes:
      bleu, signature: of greedy translations, in percent.
      baseline_bleu: of a word-for-word dictionary learned from gold alignments.
      aer: alignment error rate of the attention under forced decoding, in percent.
      translations: some sentences with their three best hypotheses each.
    """

    bleu: float
    signature: str
    baseline_bleu: float
    aer: float
    translations: Sequence[Sequence[Translation]]


def run_demo(
    config: DemoConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_event: Callable[[str, Mapping[str, Any]], None] = lambda kind, event: None,
) -> DemoResult:
    """Generates the corpus, trains, measures, and draws; everything lies in the run folder ``out`` afterwards.

    Args:
      config: sizes and seed.
      out: the run folder.
      overwrite: replaces the run that is there.
      resume: goes on with the run that is there.
      on_event: see `attn_jax.run.run_training`.
    """
    run_folder.check(out, overwrite=overwrite, resume=resume)
    started = time.perf_counter()
    parts = split(config.train, config.valid, config.test, config.seed)
    train_pairs, _, test_pairs = parts
    on_event(
        "note", {"text": f"{sum(map(len, parts)):,} sentence pairs drawn in {time.perf_counter() - started:.1f} s"}
    )
    run = RunConfig(
        data=DataConfig(
            src=Path("grammar.en"),
            tgt=Path("grammar.fr"),
            valid_src=Path("grammar.en"),
            valid_tgt=Path("grammar.fr"),
            vocabulary="word",
            vocab_size=0,
            batching=BatchConfig(batch_tokens=1024, num_buckets=4),
        ),
        model=config.model,
        training=TrainConfig(
            steps=config.steps,
            valid_every=-(-config.steps // 3),
            log_every=25,
            seed=config.seed,
            label_smoothing=0.0,
            guided_weight=config.guided_weight,
            keep_best=1,
            optimizer=OptimizerConfig(learning_rate=4e-3, warmup=150),
        ),
        precision=config.precision,
    )
    texts = _text(parts[0]), _text(parts[1])
    translator, _ = train_on_text(run, lambda: texts, out, resume, overwrite, on_event)
    with resumable(Journal(Path(out))):
        result = measure(translator, train_pairs, test_pairs)
        _draw(translator, result, test_pairs, Path(out))
    record = {
        "bleu": result.bleu,
        "signature": result.signature,
        "baseline_bleu": result.baseline_bleu,
        "aer": result.aer,
        "sentences": {"train": config.train, "valid": config.valid, "test": config.test},
        "seed": config.seed,
    }
    (Path(out) / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return result


def measure(
    translator: Translator, train_pairs: Sequence[AlignedPair], test_pairs: Sequence[AlignedPair]
) -> DemoResult:
    """BLEU and alignment error on held-out pairs, with the word-for-word baseline."""
    src, tgt = ([" ".join(side) for side in sides] for sides in zip(*((p.src, p.tgt) for p in test_pairs), strict=True))
    score = bleu([found[0].text for found in translator(src, beam=1)], tgt)
    baseline = bleu(dictionary_baseline(train_pairs, test_pairs), tgt)
    forced = translator.score(src, tgt)
    links = [weights_to_links(found.attention[:-1, :-1]) for found in forced]  # without the end of sentence
    aer = alignment_error_rate(links, [set(pair.alignment) for pair in test_pairs])
    return DemoResult(
        bleu=score.value,
        signature=score.signature,
        baseline_bleu=baseline.value,
        aer=100 * aer.error_rate,
        translations=translator([*SHOWN, *src[:3]], n_best=3),
    )


def _text(pairs: Sequence[AlignedPair]) -> ParallelText:
    src, tgt = (tuple(" ".join(side) for side in sides) for sides in zip(*((p.src, p.tgt) for p in pairs), strict=True))
    report = ReadReport(files=(), kept=len(pairs), skipped={})
    return ParallelText(src, tgt, report, links=[pair.alignment for pair in pairs])


def _draw(translator: Translator, result: DemoResult, test_pairs: Sequence[AlignedPair], out: Path) -> None:
    fox = result.translations[0][0]
    figure = plot_attention(fox.attention, fox.src_tokens, fox.tokens, title="Where the decoder looked")
    save_figure(figure, out / "attention.png")
    known = {" ".join(pair.src): pair for pair in test_pairs}
    examples = [_example(translator, " ".join(found[0].src_tokens[:-1]), known) for found in result.translations]
    write_attention_page(out / "attention.html", examples, title="English to French, the bundled grammar")


def _example(translator: Translator, sentence: str, known: Mapping[str, AlignedPair]) -> AttentionExample:
    """A sentence with, where it is a held-out one, its reference and gold alignment."""
    config, pair = SearchConfig(n_best=3), known.get(sentence)
    if pair is None:
        return attention_of(translator, sentence, config)
    gold = GoldAlignment(frozenset(pair.alignment), frozenset(pair.alignment))
    return attention_of(translator, sentence, config, reference=" ".join(pair.tgt), gold=gold)
