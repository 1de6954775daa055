"""What a run is to do: its settings, and what they take from a model or a run that was there before."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from attn_jax.data.batching import BatchConfig
from attn_jax.data.vocabulary import SPECIAL_TOKENS, WordVocabulary
from attn_jax.functional.products import PRECISIONS
from attn_jax.hub import Translator
from attn_jax.models.families import family_of
from attn_jax.storage.files import plain
from attn_jax.training.loop import TrainConfig

VOCABULARIES = ("bpe", "unigram", "word")
METRICS = ("bleu", "perplexity", "nll", "accuracy")
FOLLOWS = {
    "src_vocab_size": "the vocabulary (--vocab-size)",
    "tgt_vocab_size": "the vocabulary (--vocab-size)",
    "precision": "--precision",
}
"""Settings of a model that a run fills in itself, and from what."""
MAY_CHANGE = (
    "data.src",
    "data.tgt",
    "data.valid",
    "data.alignments",
    *(
        f"training.{name}"
        for name in (
            "epochs",
            "steps",
            "valid_every",
            "checkpoint_every",
            "log_every",
            "patience",
            "keep_best",
            "optimizer.learning_rate",
        )
    ),
)
"""Settings that a resumed run may change; the content of the files is held by their hashes, not by their names."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how text becomes ids.

    Attributes:
      src, tgt: training text, plain or .gz, line by line; ``tgt`` None: ``src`` is a two-column .tsv.
      valid_src, valid_tgt: the same for validation.
      vocabulary: ``bpe`` or ``unigram`` subwords, or ``word``.
      vocab_size: of a subword vocabulary; of a word vocabulary the most words, special ones counted, 0: all.
      separate: a vocabulary for each side instead of a joint one. Word vocabularies are always separate.
      lowercase: lower-cases all text; stored with the model.
      alignments: word alignments of the training text, Pharaoh links ``i-j``, a line a pair; for guided alignment.
      batching: see `attn_jax.data.batching.BatchConfig`.
    """

    src: Path
    tgt: Path | None = None
    valid_src: Path
    valid_tgt: Path | None = None
    vocabulary: str = "bpe"
    vocab_size: int = 6000
    separate: bool = False
    lowercase: bool = False
    alignments: Path | None = None
    batching: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self):
        """Checks names and ranges."""
        if self.vocabulary not in VOCABULARIES:
            raise ValueError(f"vocabulary must be one of {', '.join(VOCABULARIES)}; found {self.vocabulary!r}")
        every_word = self.vocabulary == "word" and self.vocab_size == 0
        if self.vocab_size <= len(SPECIAL_TOKENS) and not every_word:
            raise ValueError(
                f"vocab_size must be above the {len(SPECIAL_TOKENS)} special pieces, which it counts, found "
                f"{self.vocab_size}; try --vocab-size 6000"
            )


_OF_VOCABULARIES = {
    name: DataConfig.__dataclass_fields__[name].default
    for name in ("vocabulary", "vocab_size", "separate", "lowercase")
}
"""Settings that shape the vocabularies, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run, as it is written to ``config.json``.

    Attributes:
      data: see `DataConfig`.
      family: ``recurrent`` or ``transformer``; None: that of ``init_from``, and without one ``recurrent``.
      model: settings of the family's config, over those of ``init_from``; vocabulary sizes are filled in.
      training: see `attn_jax.training.loop.TrainConfig`.
      precision: ``float32``, ``bfloat16`` (the operands of products), or ``auto``: the faster one here.
      init_from: a model or run folder whose parameters, settings and vocabularies the run starts from (fine-tuning).
    """

    data: DataConfig
    family: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    training: TrainConfig = field(default_factory=TrainConfig)
    precision: str = "auto"
    init_from: Path | None = None

    def __post_init__(self):
        """Checks what can be checked before any file is read."""
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}; found {self.precision!r}")
        if self.training.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}; found {self.training.metric!r}")
        if taken := sorted(FOLLOWS.keys() & self.model.keys()):
            raise ValueError(f"model setting {taken[0]} (--set) follows from {FOLLOWS[taken[0]]}; leave it out")
        if self.data.alignments and not self.training.guided_weight:
            raise ValueError("alignments without a guided weight change nothing; give a weight, for example 0.5")
        if self.family == "transformer" and _samples_inputs(self.training):
            raise ValueError(
                "a Transformer reads all its inputs at once, so it can only be fed true tokens; leave teacher_forcing "
                "at constant 1, or choose the recurrent family"
            )

    def as_json(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return plain(dataclasses.asdict(self))


def settled(config: RunConfig, base: Translator | None, started: Mapping[str, Any]) -> RunConfig:
    """The configuration with what it takes from elsewhere: from ``init_from``, from the run it resumes.

    Args:
      config: as the user gave it.
      base: the model of ``init_from``; None without one, and for a resumed run that has gone on from it already.
      started: the settings of the run that is resumed, or nothing.

    Raises:
      ValueError: for a family or a vocabulary that is not that of ``init_from``.
    """
    precision = config.precision
    if precision == "auto":
        precision = started.get("precision", "auto") if started else faster_precision()
    if started.get("init_from") and not config.init_from:
        raise ValueError(f"the run was started with --init-from {started['init_from']}; resume with it")
    family, settings, data = config.family or "recurrent", {}, {}
    if base:
        family, settings = family_of(base.model), dataclasses.asdict(base.model.config)
        data = {
            "vocabulary": "word" if isinstance(base.tgt_vocab, WordVocabulary) else "bpe",
            "vocab_size": len(base.tgt_vocab),
            "separate": base.src_vocab is not base.tgt_vocab,
            "lowercase": base.tgt_vocab.lowercase,
        }
    elif config.init_from:
        family, settings = started.get("family", family), started.get("model", {})
        data = {name: started.get("data", {}).get(name) for name in _OF_VOCABULARIES}
    if config.family not in (None, family):
        raise ValueError(
            f"{config.init_from}: holds a {family} model, and the run asks for a {config.family} one; leave --model "
            "out, or start without --init-from"
        )
    for name, value in data.items():
        if getattr(config.data, name) not in (value, _OF_VOCABULARIES[name]):
            raise ValueError(
                f"{config.init_from}: holds a vocabulary with {name} {value}, and the run asks for "
                f"{getattr(config.data, name)}; leave it out, or start without --init-from"
            )
    inherited = {name: value for name, value in settings.items() if name not in FOLLOWS}
    return dataclasses.replace(
        config,
        family=family,
        model={**inherited, **config.model},
        data=dataclasses.replace(config.data, **data),
        precision=precision,
    )


def faster_precision() -> str:
    """Measures which precision multiplies faster here: a decoder's recurrent product, forward and backward."""
    x, w = jnp.ones((64, 512)), jnp.ones((512, 2048))
    products = {
        name: jax.jit(jax.grad(lambda x, w, einsum=einsum: jnp.sum(einsum("bi,io->bo", x, w) ** 2), argnums=(0, 1)))
        for name, einsum in PRECISIONS.items()
    }
    best = dict.fromkeys(products, float("inf"))
    for trial in range(12):  # alternating, and the best of each: other work on the machine then hits both or neither
        for name, product in products.items():
            start = time.perf_counter()
            jax.block_until_ready(product(x, w))
            if trial:  # the first one compiles
                best[name] = min(best[name], time.perf_counter() - start)
    return min(best, key=best.get)


def _samples_inputs(training: TrainConfig) -> bool:
    return training.teacher_forcing != "constant" or training.teacher_forcing_value != 1
