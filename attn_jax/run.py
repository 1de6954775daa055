"""One training run: from parallel text to a model folder, with everything that happened on the way in a run folder."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.data.batching import BatchConfig, Batches, Sequences, build_batches
from attn_jax.data.errors import DataError
from attn_jax.data.parallel import ParallelText, read_parallel
from attn_jax.data.subwords import SubwordVocabulary
from attn_jax.data.vocabulary import Vocabulary, WordVocabulary
from attn_jax.functional.products import PRECISIONS
from attn_jax.hub import Translator
from attn_jax.metrics.translation import bleu
from attn_jax.models.families import build_model, family_of
from attn_jax.storage.files import plain
from attn_jax.training import journal as journals
from attn_jax.training.loop import Evaluation, TrainConfig, TrainResult, check_params, train, validation_loss

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
    "init_from",
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
SAMPLES = 4
"""Translations shown at each validation."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how text becomes ids.

    Attributes:
      src, tgt: training text, plain or .gz, line by line; ``tgt`` None: ``src`` is a two-column .tsv.
      valid_src, valid_tgt: the same for validation.
      vocabulary: ``bpe`` or ``unigram`` subwords, or ``word``.
      vocab_size: of a subword vocabulary; of a word vocabulary the most words, 0: all.
      separate: a vocabulary for each side instead of a joint one. Word vocabularies are always separate.
      lowercase: lower-cases all text; stored with the model.
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
    batching: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self):
        """Checks names and ranges."""
        if self.vocabulary not in VOCABULARIES:
            raise ValueError(f"vocabulary must be one of {', '.join(VOCABULARIES)}; found {self.vocabulary!r}")
        if self.vocab_size < 0:
            raise ValueError(f"vocab_size must not be negative, found {self.vocab_size}")


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
        if self.family == "transformer" and _samples_inputs(self.training):
            raise ValueError(
                "a Transformer reads all its inputs at once, so it can only be fed true tokens; leave teacher_forcing "
                "at constant 1, or choose the recurrent family"
            )

    def as_json(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return plain(dataclasses.asdict(self))


def run_training(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_event: Callable[[str, Mapping[str, Any]], None] = lambda kind, event: None,
) -> tuple[Translator, TrainResult]:
    """Trains a translator on files.

    Args:
      config: what and how.
      out: the run folder.
      resume: goes on with the run that is there.
      overwrite: replaces the run that is there.
      on_event: is told ``("note", {"text": ...})``, and what `attn_jax.training.loop.train` tells.

    Returns:
      The translator with the best parameters (also in ``out/model``), and the result of the loop.

    Raises:
      DataError, RunFolderError, VocabularyError: for what the user can put right.
      Interrupted: at Ctrl-C, after a checkpoint.
    """

    def read() -> tuple[ParallelText, ParallelText]:
        texts = [
            read_parallel(src, tgt)
            for src, tgt in (
                (config.data.valid_src, config.data.valid_tgt),  # first: the smaller one, if its name is wrong
                (config.data.src, config.data.tgt),
            )
        ]
        for text in reversed(texts):
            on_event("note", {"text": str(text.report)})
        return texts[1], texts[0]

    files = {
        name: path
        for name, path in (
            ("train-src", config.data.src),
            ("train-tgt", config.data.tgt),
            ("valid-src", config.data.valid_src),
            ("valid-tgt", config.data.valid_tgt),
        )
        if path is not None
    }
    return train_on_text(config, read, out, files, resume, overwrite, on_event)


def train_on_text(
    config: RunConfig,
    read: Callable[[], tuple[ParallelText, ParallelText]],
    out: str | Path,
    files: Mapping[str, Path],
    resume: bool,
    overwrite: bool,
    on_event: Callable[[str, Mapping[str, Any]], None],
) -> tuple[Translator, TrainResult]:
    """`run_training` on text from anywhere.

    Whatever can fail before the first step fails before the run folder is touched, and what the options alone can tell
    before any text is read.

    Args:
      config: what and how.
      read: gives the training and the validation text.
      out: the run folder.
      files: hashed into the run folder.
      resume: see `run_training`.
      overwrite: see `run_training`.
      on_event: see `run_training`.

    Returns:
      See `run_training`.
    """
    journals.check(out, overwrite=overwrite, resume=resume)
    base = Translator.load(config.init_from) if config.init_from else None
    config = _settled(config, base)
    if config.precision == "auto":
        known = journals.Journal(Path(out)).read_config().get("precision", "auto") if resume else faster_precision()
        config = dataclasses.replace(config, precision=known)
    if resume:
        journals.Journal(Path(out)).check_config(config.as_json(), MAY_CHANGE)
    _model(config, 4, 4)  # any sizes will do: settings that make no model are refused
    train_text, valid_text = read()
    src_vocab, tgt_vocab = (
        (base.src_vocab, base.tgt_vocab) if base else build_vocabularies(config.data, train_text.src, train_text.tgt)
    )
    batches = build_batches(
        Sequences.from_texts(train_text.src, src_vocab),
        Sequences.from_texts(train_text.tgt, tgt_vocab),
        config.data.batching,
    )
    model = _model(config, len(src_vocab), len(tgt_vocab))
    seen = model.config.attention_options.get("max_len") if config.family == "recurrent" else None
    if seen and seen < max(bucket.src_len for bucket in batches.buckets):
        raise ValueError(
            f"location attention sees {seen} source positions, and the text has sentences of up to "
            f"{max(bucket.src_len for bucket in batches.buckets)} tokens; lower --max-len, or raise its max_len"
        )
    first = next(batches.stream(config.training.seed))
    shapes = jax.eval_shape(model.init, jax.random.key(0), first)["params"]
    if base:
        check_params(base.params, shapes)
    translator = Translator(model, base.params if base else None, src_vocab, tgt_vocab)
    evaluate, too_long = make_evaluation(translator, valid_text, config.data.batching)
    on_event("note", {"text": _describe(batches, src_vocab, tgt_vocab, config.precision, too_long)})

    journal = journals.create(out, overwrite=overwrite, resume=resume)
    journal.write_data(files)
    journal.write_config(config.as_json())

    def save(params: Any, metrics: Mapping[str, float]) -> None:
        translator.params = params
        translator.save(journal.model, card=model_card(config, translator, metrics), overwrite=True)

    on_event("note", {"text": "compiling: the first step of each shape takes some seconds"})
    started = time.perf_counter()
    result = train(
        model,
        batches,
        config.training,
        journal,
        evaluate,
        on_event=on_event,
        on_best=save,
        resume=resume,
        params=base.params if base else None,
    )
    save(result.params, result.metrics)
    minutes = (time.perf_counter() - started) / 60
    traces = {**result.traces, "search": translator.searches}
    end = {"kind": "end", "minutes": minutes, "averaged": result.averaged, "traces": traces}
    journal.log(result.step, {**end, **result.metrics})
    return translator, result


def _settled(config: RunConfig, base: Translator | None) -> RunConfig:
    """The configuration with the family and the settings that it takes from ``init_from``.

    Raises:
      ValueError: for a family that is not that of ``init_from``.
    """
    family = family_of(base.model) if base else config.family or "recurrent"
    if config.family not in (None, family):
        raise ValueError(
            f"{config.init_from}: holds a {family} model, and the run asks for a {config.family} one; leave --model "
            "out, or start without --init-from"
        )
    settings = dataclasses.asdict(base.model.config) if base else {}
    inherited = {name: value for name, value in settings.items() if name not in FOLLOWS}
    return dataclasses.replace(config, family=family, model={**inherited, **config.model})


def _model(config: RunConfig, src_vocab_size: int, tgt_vocab_size: int) -> Any:
    """The model of a settled configuration."""
    sizes = {"src_vocab_size": src_vocab_size, "tgt_vocab_size": tgt_vocab_size}
    return build_model(config.family, {**config.model, **sizes, "precision": config.precision})


def build_vocabularies(config: DataConfig, src: Sequence[str], tgt: Sequence[str]) -> tuple[Vocabulary, Vocabulary]:
    """The vocabularies of both sides; the same object twice if joint."""
    if config.vocabulary == "word":
        build = WordVocabulary.build
        return tuple(build(side, max_size=config.vocab_size or None, lowercase=config.lowercase) for side in (src, tgt))
    options = {"vocab_size": config.vocab_size, "algorithm": config.vocabulary, "lowercase": config.lowercase}
    if config.separate:
        return SubwordVocabulary.train(src, **options), SubwordVocabulary.train(tgt, **options)
    joint = SubwordVocabulary.train(itertools.chain(src, tgt), **options)
    return joint, joint


def make_evaluation(
    translator: Translator, text: ParallelText, batching: BatchConfig
) -> tuple[Callable[[Any], Evaluation], int]:
    """Validates parameters: perplexity, accuracy, and BLEU of greedy translations.

    Returns:
      The function, and how many pairs are too long for its perplexity and accuracy; they are translated all the same.
    """
    src, tgt = list(text.src), list(text.tgt)
    lowercase = translator.tgt_vocab.lowercase
    references = [line.lower() for line in tgt] if lowercase else tgt
    batches = build_batches(
        Sequences.from_texts(src, translator.src_vocab),
        Sequences.from_texts(tgt, translator.tgt_vocab),
        dataclasses.replace(batching, num_buckets=min(4, batching.num_buckets), batch_tokens=2 * batching.batch_tokens),
    )
    held = [batches.make_batch(entry) for entry in batches.epoch_plan(0, 0)]
    measure = validation_loss(translator.model)

    def evaluate(params: Any) -> Evaluation:
        translator.params = params
        outputs = [found[0].text for found in translator(src, beam=1)]
        metrics = {"bleu": bleu(outputs, references).value, **measure(params, held)}
        samples = [
            {"source": src[i], "reference": references[i], "output": outputs[i]} for i in range(min(SAMPLES, len(src)))
        ]
        return Evaluation(metrics, samples)

    return evaluate, len(batches.too_long)


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


def model_card(config: RunConfig, translator: Translator, metrics: Mapping[str, float]) -> str:
    """The text of ``MODEL_CARD.md``."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(translator.params))
    found = "\n".join(f"- {name}: {value:.4g}" for name, value in metrics.items())
    names = {"source": config.data.src, "target": config.data.tgt or config.data.src}
    trained = "\n".join(f"- {side}: {Path(path).name}" for side, path in names.items())
    pieces = f"{len(translator.src_vocab):,} and {len(translator.tgt_vocab):,} pieces"
    cased = ", lower-cased" if translator.src_vocab.lowercase else ""
    return (
        f"# A {config.family} translation model\n\n{size:,} parameters; vocabularies of {pieces}{cased}.\n\n"
        f"## Trained on\n\n{trained}\n\n## Validation (greedy)\n\n{found}\n\n"
        "Attention shows where the model looked; by itself it does not explain why it wrote a word.\n"
    )


def _describe(batches: Batches, src: Vocabulary, tgt: Vocabulary, precision: str, too_long_to_validate: int) -> str:
    sizes = f"{len(src):,} joint pieces" if src is tgt else f"{len(src):,} source and {len(tgt):,} target pieces"
    note = (
        f"{sizes}; {batches.steps_per_epoch:,} steps an epoch in {len(batches.buckets)} shapes, "
        f"{batches.shares()['tokens']:.0%} real tokens; precision {precision}"
    )
    for count, part in ((len(batches.too_long), "training"), (too_long_to_validate, "validation")):
        note += f"; {count:,} {part} pairs longer than max_len left out" if count else ""
    return note


def _samples_inputs(training: TrainConfig) -> bool:
    return training.teacher_forcing != "constant" or training.teacher_forcing_value != 1


__all__ = ["DataConfig", "DataError", "RunConfig", "run_training"]
