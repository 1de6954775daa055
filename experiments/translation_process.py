"""How a human translates, and how a trained model does: nine words, and where each looked for every one of them.

Command: ``python -m experiments translation_process``; the full run is still to be done.

The notebook draws by hand where a translator looks for each French word, and sets it against an encoder-decoder that
has one vector for all nine. Here the model of ``attn-jax demo`` is trained on the bundled grammar, which never shows it
this sentence; forced decoding of the notebook's translation says where it looked, and how well the drawing agrees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attn_jax import OptimizerConfig, Seq2Seq, Seq2SeqConfig, Translator
from attn_jax.data.batching import BatchConfig
from attn_jax.demo import DemoConfig
from attn_jax.metrics import bleu
from experiments.runner import Grid, Result, attention_panels, grammar_corpus, sentences, train_batches

SOURCE = "the quick brown fox jumps over the lazy dog"
TARGET = "le renard brun rapide saute par-dessus le chien paresseux"
DRAWN = (
    {0: 0.9, 6: 0.1},
    {3: 0.9, 8: 0.1},
    {2: 0.9, 3: 0.1},
    {1: 0.9, 8: 0.1},
    {4: 0.9, 8: 0.1},
    {5: 0.9, 8: 0.1},
    {6: 0.9, 0: 0.1},
    {8: 0.9},
    {7: 0.9, 8: 0.1},
)
"""The notebook's hand-drawn weights: a row for each French word, by the position of the English one."""
LIGHT_ROW = 7
"""The row of "chien" sums to 0.9."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The demo's corpus and model, and fewer updates."""

    train: int = 48_000
    test: int = 300
    steps: int = 800
    batch_tokens: int = 2048
    num_buckets: int = 4
    learning_rate: float = 3e-3
    seed: int = 1
    model: dict[str, Any] = field(default_factory=lambda: dict(DemoConfig().model))

    @classmethod
    def quick(cls) -> Config:
        """A tiny model and a few updates."""
        model = {**DemoConfig().model, "embed_dim": 8, "encoder_hidden": 8, "decoder_hidden": 8}
        return cls(train=300, test=4, steps=4, batch_tokens=512, num_buckets=1, model=model)


def drawn_matrix() -> np.ndarray:
    """The notebook's drawing, ``[9, 9]``."""
    weights = np.zeros((len(DRAWN), len(SOURCE.split())))
    for row, links in enumerate(DRAWN):
        weights[row, list(links)] = list(links.values())
    return weights


def train(config: Config) -> tuple[Translator, float]:
    """Trains the demo's model on sentences other than this one; the translator, and its BLEU on held-out sentences."""
    corpus = grammar_corpus(
        config.train,
        config.test,
        batching=BatchConfig(batch_tokens=config.batch_tokens, num_buckets=config.num_buckets),
        seed=config.seed,
        keep=lambda pair: " ".join(pair.src[:9]) != SOURCE,
    )
    sizes = {"src_vocab_size": len(corpus.src_vocab), "tgt_vocab_size": len(corpus.tgt_vocab)}
    model = Seq2Seq(Seq2SeqConfig(**sizes, **config.model))
    optimizer = OptimizerConfig(learning_rate=config.learning_rate, warmup=150)
    trained = train_batches(model, corpus.batches, steps=config.steps, optimizer=optimizer, seed=config.seed)
    translator = Translator(model, trained.params, corpus.src_vocab, corpus.tgt_vocab)
    src, tgt = sentences(corpus.test)
    return translator, bleu([found[0].text for found in translator(src, beam=1)], tgt).value


def compare(drawn: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Pearson's correlation over all cells, and the share of rows whose heaviest cell is the same."""
    return {
        "correlation": float(np.corrcoef(drawn.ravel(), measured.ravel())[0, 1]),
        "same_argmax": float((drawn.argmax(axis=1) == measured.argmax(axis=1)).mean()),
    }


def run(config: Config) -> Result:
    """Trains, decodes the notebook's translation by force, and sets its attention beside the drawing."""
    translator, score = train(config)
    forced = translator.score([SOURCE], [TARGET])[0]
    source, target, drawn = SOURCE.split(), TARGET.split(), drawn_matrix()
    measured = np.asarray(forced.attention[: len(target), : len(source)], np.float64)  # without the end of sentence
    numbers = {
        "bleu": score,
        **compare(drawn, measured),
        "measured": measured,
        "drawn_row_sums": drawn.sum(axis=1),
        "weight_on_end": forced.attention[: len(target), len(source) :].sum(axis=1),
        "log_prob": float(forced.log_probs.sum()),
        "own_translation": translator(SOURCE, beam=1)[0].text,
    }
    rows = [
        (
            f"{index + 1} {word}",
            source[drawn[index].argmax()],
            float(drawn[index].max()),
            source[measured[index].argmax()],
            float(measured[index].max()),
            f"all {len(source)} in one",
        )
        for index, word in enumerate(target)
    ]
    columns = ("step", "human looks at", "drawn", "model looks at", "measured", "without attention")
    title = (
        f"looking back: correlation {numbers['correlation']:.3f} over {drawn.size} cells, "
        f"same word in {numbers['same_argmax']:.0%} of the rows"
    )
    return Result(numbers, [Grid(title, columns, rows)], {"look_back.png": draw(numbers, drawn, measured)})


def draw(numbers: dict, drawn: np.ndarray, measured: np.ndarray):
    """The drawing, the measurement, and the one vector of a model without attention."""
    source, target = SOURCE.split(), TARGET.split()
    panels = (
        (drawn, f'drawn by hand (the row "{target[LIGHT_ROW]}" sums to {drawn[LIGHT_ROW].sum():.1f})'),
        (measured, f"measured: a trained model (correlation {numbers['correlation']:.2f})"),
        (np.full_like(drawn, 1 / len(source)), "no attention: one vector for all nine, no look back"),
    )
    return attention_panels([(title, weights, source, target) for weights, title in panels])


def verify(numbers: dict) -> None:
    """The trained model looks where the drawing says; the drawing's one light row is known."""
    assert numbers["correlation"] > 0.7, numbers["correlation"]
    sums = np.array(numbers["drawn_row_sums"])
    np.testing.assert_allclose(np.delete(sums, LIGHT_ROW), 1, atol=1e-6)
    assert abs(sums[LIGHT_ROW] - 0.9) < 1e-6
