"""The five English-French pairs of the classic tutorial: location attention, and additive attention beside it.

Command: ``python -m experiments tutorial_translation``; one minute on one core. All five pairs are exactly right
with each of 5 seeds, under either attention; loss 1.5e-5 (location) and 1.4e-5 (additive) nats a token. The maps are no
alignments: 43 and 25 % of the words look at the word they translate.

The notebook's targets hold no end of sentence, so its decoder can never learn to stop, and its attention looks at
padding. Here the end is a target and padding has weight 0. The loss is the mean a token, where the notebook sums over
a sentence; to Adam that is nearly the same.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from attn_jax import Batch, Seq2Seq, Seq2SeqConfig, greedy, plot_attention, search_variables
from attn_jax.data.vocabulary import WordVocabulary
from attn_jax.decoding import Hypotheses
from attn_jax.models.protocol import EOS_ID, PAD_ID
from attn_jax.training.step import batch_loss
from experiments.runner import Fit, Grid, Result, apply_seeds, count_params, entropy, fit, new_figure, one_seed, spread

PAIRS = (
    ("i am a student", "je suis etudiant"),
    ("he is a teacher", "il est professeur"),
    ("she is a doctor", "elle est medecin"),
    ("we are engineers", "nous sommes ingenieurs"),
    ("they are artists", "ils sont artistes"),
)
DRAWN = ("i am a student", "he is a teacher", "she is a doctor", "we are engineers")
TORCH = {
    "encoder": {"embedding": 16 * 128, "recurrent layer": 2 * 128 * 384 + 2 * 384},
    "decoder": {
        "embedding": 16 * 128,
        "attention": 256 * 10 + 10,
        "combination": 256 * 128 + 128,
        "recurrent layer": 2 * 128 * 384 + 2 * 384,
        "output": 128 * 16 + 16,
    },
}
"""Parameters of the notebook's PyTorch model by part; they add up to its 101,120 and 138,650."""

REASONS = {
    "embedding": "18 entries: padding and unknown words have ids of their own",
    "recurrent layer": "PyTorch has two biases a gate, here there is one, and a second for the candidate",
    "output": "18 entries",
}
"""Why our parameters differ."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The notebook's settings: hidden 128, at most 10 source words, Adam 0.01, 400 epochs of one pair an update."""

    hidden: int = 128
    max_length: int = 10
    learning_rate: float = 0.01
    epochs: int = 400
    seeds: int = 5
    every: int = 50

    @classmethod
    def quick(cls) -> Config:
        """Two seeds, smaller and shorter."""
        return cls(hidden=16, epochs=4, seeds=2, every=2)


def models(config: Config, src: int, tgt: int) -> dict[str, Seq2Seq]:
    """The tutorial's decoder with its location attention, and with additive attention in its place."""
    shared = {
        "src_vocab_size": src,
        "tgt_vocab_size": tgt,
        "embed_dim": config.hidden,
        "encoder_hidden": config.hidden,
        "decoder_hidden": config.hidden,
        "decoder_cell": "gru",
        "bidirectional": False,
        "attend_first": True,
        "squeeze": config.hidden,
        "input_feeding": False,
        "readout": "state",
        "bridge": "copy",
    }
    location = {"attention": "location", "attention_options": {"max_len": config.max_length}, "query_with_input": True}
    return {
        "location": Seq2Seq(Seq2SeqConfig(**shared, **location)),
        "additive": Seq2Seq(Seq2SeqConfig(**shared, attention="additive")),
    }


def encode(vocabulary: WordVocabulary, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids with the end of sentence, padded, and their mask."""
    ids = [[*vocabulary.encode(sentence), EOS_ID] for sentence in sentences]
    longest = max(map(len, ids))
    padded = np.array([row + [PAD_ID] * (longest - len(row)) for row in ids], np.int32)
    return padded, padded != PAD_ID


def train(config: Config, model: Seq2Seq, batch: Batch) -> Fit:
    """One pair an update, always fed the true word before; every seed at once."""
    shapes = jax.tree.map(lambda x: x[:1], batch)

    def loss(params: Any, batch: Batch, rng: jax.Array, value: jax.Array) -> jax.Array:
        total = batch_loss(model, params, batch)
        return total.loss / total.count

    return fit(
        lambda rng: model.init(rng, shapes)["params"],
        loss,
        batch,
        optimizer=optax.adam(config.learning_rate),
        epochs=config.epochs,
        batch_size=1,
        seeds=config.seeds,
    )


def translate(model: Seq2Seq, params: Any, batch: Batch) -> Hypotheses:
    """Greedy translations of the sources of a batch."""
    limit = 2 * batch.src.shape[1]
    variables = search_variables(model, params)
    state = model.apply(variables, batch, limit, method="start")
    return greedy(partial(model.apply, variables, method="step"), state, max_len=limit)


def parts(params: Any) -> dict[str, dict[str, int]]:
    """Our parameters by the parts of `TORCH`."""
    decoder = params["decoder"]
    attention = count_params(decoder.get("attention", {}))
    combination = count_params([decoder[name] for name in ("input", "context", "squeeze_bias")])
    return {
        "encoder": {"embedding": count_params(params["src_embed"]), "recurrent layer": count_params(params["encoder"])},
        "decoder": {
            "embedding": count_params(params["tgt_embed"]),
            "attention": attention,
            "combination": combination,
            "recurrent layer": count_params(decoder) - attention - combination,
            "output": count_params([params["output_kernel"], params["output_bias"]]),
        },
    }


def run(config: Config) -> Result:
    """Trains both decoders, translates the pairs, and draws the notebook's four maps in both of its styles."""
    src_texts, tgt_texts = zip(*PAIRS, strict=True)
    src_vocab, tgt_vocab = WordVocabulary.build(src_texts), WordVocabulary.build(tgt_texts)
    src, src_mask = encode(src_vocab, src_texts)
    tgt, tgt_mask = encode(tgt_vocab, tgt_texts)
    batch = Batch(src=src, src_mask=src_mask, tgt=tgt, tgt_mask=tgt_mask)

    numbers, maps = {}, {}
    for name, model in models(config, len(src_vocab), len(tgt_vocab)).items():
        found = train(config, model, batch)
        outputs = apply_seeds(partial(translate, model), found.params, batch)
        texts = [[tgt_vocab.decode(ids[0].tolist()) for ids in seed] for seed in outputs.tokens]
        forced = apply_seeds(lambda params, model=model: model.apply({"params": params}, batch)[1], found.params)
        maps[name] = jax.tree.map(lambda leaf: leaf[0], outputs)
        marks = range(config.every, config.epochs + 1, config.every)
        numbers[name] = {
            "loss_every": {epoch: found.history["loss"][:, epoch - 1] for epoch in marks},
            "exact_of_5": [sum(map(operator.eq, seed, tgt_texts)) for seed in texts],
            "translations": texts[0],
            "parameters": parts(one_seed(found.params)),
            **looks(forced, batch),
        }
    found = ablate(config, len(src_vocab), len(tgt_vocab), batch, tgt_vocab)
    tables = [
        Grid("without what attention needs", ("", "mean over seeds"), list(found.items())),
        Grid(
            f"after {config.epochs} epochs, {config.seeds} seeds",
            ("attention", "loss, nats a token", "exactly right", "entropy, nats", "on the word's own source word, %"),
            [
                (
                    name,
                    spread(list(of["loss_every"].values())[-1]),
                    f"{min(of['exact_of_5'])} to {max(of['exact_of_5'])} of 5",
                    spread(of["entropy"]),
                    spread(100 * of["own_word"]),
                )
                for name, of in numbers.items()
            ],
        ),
        Grid(
            "loss by epoch, nats a token, mean over seeds",
            ("attention", *map(str, marks)),
            [(name, *(f"{np.mean(at):.1e}" for at in of["loss_every"].values())) for name, of in numbers.items()],
        ),
    ]
    ours = numbers["location"]["parameters"]
    sizes = [
        (f"{half}: {part}", f"{count:,}", f"{ours[half][part]:,}", REASONS.get(part, ""))
        for half, inside in TORCH.items()
        for part, count in inside.items()
    ]
    for half, inside in TORCH.items():
        sizes.append((f"{half}, all", f"{sum(inside.values()):,}", f"{sum(ours[half].values()):,}", ""))
    tables.append(Grid("parameters", ("", "notebook (PyTorch)", "here", "why"), sizes))
    figures = {
        f"{name}.png": draw(
            outputs,
            src_texts,
            src_vocab,
            tgt_vocab,
            src,
            src_mask,
            title=f"{name} attention, greedy, first seed",
        )
        for name, outputs in maps.items()
    }
    return Result({**numbers, "ablations": found}, tables, figures)


def ablate(config: Config, src: int, tgt: int, batch: Batch, vocabulary: WordVocabulary) -> dict[str, float]:
    """How many pairs a model without attention learns, and what location attention gives to padding unless masked."""
    options = {
        "src_vocab_size": src,
        "tgt_vocab_size": tgt,
        "embed_dim": config.hidden,
        "encoder_hidden": config.hidden,
    }
    options |= {"decoder_hidden": config.hidden, "decoder_cell": "gru", "bidirectional": False, "attention": None}
    blind = Seq2Seq(Seq2SeqConfig(**options, input_feeding=False, readout="state", bridge="copy"))
    outputs = apply_seeds(partial(translate, blind), train(config, blind, batch).params, batch)
    truth = [vocabulary.decode(ids.tolist()) for ids in batch.tgt]
    right = [
        sum(vocabulary.decode(ids[0].tolist()) == text for ids, text in zip(seed, truth, strict=True))
        for seed in outputs.tokens
    ]
    masked = models(config, src, tgt)["location"].config
    options = masked.attention_options | {"over_padding": True}  # the notebook's, over all of its ten slots
    model = Seq2Seq(dataclasses.replace(masked, attention_options=options))
    weights = apply_seeds(lambda params: model.apply({"params": params}, batch)[1], train(config, model, batch).params)
    on_padding = 1 - weights.sum(-1)  # [seeds, pairs, tgt_len]
    return {
        "pairs right without attention, of 5": float(np.mean(right)),
        "weight of unmasked location attention on padding": float(on_padding[:, batch.tgt_mask].mean()),
    }


def looks(weights: np.ndarray, batch: Batch) -> dict[str, Any]:
    """How the weights ``[seeds, pairs, tgt_len, src_len]`` of forced decoding fall, words only, a number for each seed.

    Returns:
      ``weight_on_padding``, the largest of all; ``entropy`` in nats; and ``own_word``, the share of target words whose
      heaviest weight lies on the word they translate: the pairs go word by word, but for the article, which French
      leaves out before a profession.
    """
    words = batch.tgt_mask & (batch.tgt != EOS_ID)
    last = batch.src_mask.sum(-1, keepdims=True) - 2  # the last word, before the end of sentence
    own = np.where(
        np.arange(batch.tgt.shape[1]) == words.sum(-1, keepdims=True) - 1, last, np.arange(batch.tgt.shape[1])
    )
    return {
        "weight_on_padding": float(np.where(batch.src_mask[:, None], 0, weights).max()),
        "entropy": entropy(weights)[:, words].mean(-1),
        "own_word": (weights.argmax(-1) == own)[:, words].mean(-1),
    }


def draw(outputs: Hypotheses, texts, src_vocab, tgt_vocab, src, src_mask, title: str):
    """The notebook's four sentences, above in its style ``bone`` with a grid, below in ``YlOrRd`` with cell lines."""
    figure, axes = new_figure(2, len(DRAWN), width=3.0, height=2.7)
    figure.suptitle(title, fontsize=11)
    for column, sentence in enumerate(DRAWN):
        row = texts.index(sentence)
        source, target = src[row][src_mask[row]], outputs.tokens[row, 0, : int(outputs.lengths[row, 0])]
        weights = np.asarray(outputs.weights[row, 0, : len(target), : len(source)])
        names = [
            [token.replace("</s>", "<EOS>") for token in vocabulary.pieces(ids.tolist())]
            for vocabulary, ids in ((src_vocab, source), (tgt_vocab, np.asarray(target)))
        ]
        for ax, cmap in zip(axes[:, column], ("bone", "YlOrRd"), strict=True):
            plot_attention(weights, *names, cmap=cmap, ax=ax, annotate=cmap == "YlOrRd")
            ax.collections[0].colorbar.remove()
            ax.collections[0].set_clim(0, 1)
            ax.collections[0].set_edgecolor("#888888")  # white cells are seen on white paper
            ax.set_xlabel("source word", fontsize=8)
            ax.set_ylabel("target word", fontsize=8)
    for row in axes:
        figure.colorbar(row[0].collections[0], ax=list(row), shrink=0.7, pad=0.01).set_label("weight", fontsize=8)
    return figure


def verify(numbers: dict) -> None:
    """Both decoders reproduce all five pairs with every seed without a look at padding; the maps are no alignments."""
    for name in ("location", "additive"):
        assert min(numbers[name]["exact_of_5"]) == 5, numbers[name]["exact_of_5"]
        assert numbers[name]["weight_on_padding"] == 0
        assert np.max(list(numbers[name]["loss_every"].values())[-1]) < 1e-3, numbers[name]["loss_every"]
        assert np.mean(numbers[name]["own_word"]) < 0.6, numbers[name]["own_word"]
    ours = {half: sum(inside.values()) for half, inside in numbers["location"]["parameters"].items()}
    assert ours == {"encoder": 101_120, "decoder": 138_908}, ours
    assert numbers["location"]["parameters"]["decoder"]["combination"] == TORCH["decoder"]["combination"]
    found = numbers["ablations"]
    assert found["pairs right without attention, of 5"] == 5, found
    assert found["weight of unmasked location attention on padding"] > 0.2, found
