"""One training run: from parallel text to a model folder, with everything that happened on the way in a run folder."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from attn_jax.aligner import read_links, token_links
from attn_jax.data.batching import BatchConfig, Batches, Sequences, build_batches
from attn_jax.data.errors import DataError
from attn_jax.data.parallel import ParallelText, read_parallel
from attn_jax.data.subwords import SubwordVocabulary, load_vocabulary
from attn_jax.data.vocabulary import Vocabulary, WordVocabulary
from attn_jax.hub import Translator, searches
from attn_jax.metrics.translation import bleu
from attn_jax.models.families import build_model
from attn_jax.run_config import MAY_CHANGE, DataConfig, RunConfig, settled
from attn_jax.training import checkpoints, run_folder
from attn_jax.training.journal import Journal
from attn_jax.training.loop import Evaluation, TrainResult, check_params, resumable, train, validation_loss

SAMPLES = 4
"""Translations shown at each validation."""


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
        if config.data.alignments:
            texts[1] = read_links(config.data.alignments, texts[1])
        for text in reversed(texts):
            on_event("note", {"text": str(text.report)})
        return texts[1], texts[0]

    return train_on_text(config, read, out, resume, overwrite, on_event)


def train_on_text(
    config: RunConfig,
    read: Callable[[], tuple[ParallelText, ParallelText]],
    out: str | Path,
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
      resume: see `run_training`.
      overwrite: see `run_training`.
      on_event: see `run_training`.

    Returns:
      See `run_training`.
    """
    run_folder.check(out, overwrite=overwrite, resume=resume)
    run_folder.check_alone(out)
    journal = Journal(Path(out))
    begun = resume and checkpoints.latest_step(journal.checkpoints) is not None
    base = Translator.load(config.init_from) if config.init_from and not begun else None
    config = settled(config, base, journal.read_config() if resume else {})
    if resume:
        journal.check_config(config.as_json(), MAY_CHANGE)
    _model(config, 4, 4)  # any sizes will do: settings that make no model are refused
    train_text, valid_text = read()
    data = {
        part: [{"path": file.path, "lines": file.lines, "sha256": file.sha256} for file in text.report.files]
        for part, text in (("train", train_text), ("valid", valid_text))
    }
    if resume:
        journal.check_data(data)
        vocabularies = _load_vocabularies(journal.vocabulary, config.data)
        if base and vocabularies != (base.src_vocab, base.tgt_vocab):
            raise ValueError(f"{config.init_from}: holds other vocabularies than when the run was started")
    elif base:
        vocabularies = base.src_vocab, base.tgt_vocab
    else:
        vocabularies = build_vocabularies(config.data, train_text.src, train_text.tgt)
    src_vocab, tgt_vocab = vocabularies
    sides = Sequences.from_texts(train_text.src, src_vocab), Sequences.from_texts(train_text.tgt, tgt_vocab)
    links = token_links(train_text, vocabularies, sides) if config.training.guided_weight else None
    batches = build_batches(*sides, config.data.batching, links)
    model = _model(config, len(src_vocab), len(tgt_vocab))
    if config.model.get("share_embeddings") and src_vocab is not tgt_vocab:
        raise ValueError("share_embeddings needs one vocabulary for both sides, found two; leave it out")
    longest = max(bucket.src_len for bucket in batches.buckets)
    if model.config.max_src_len and model.config.max_src_len < longest:
        raise ValueError(
            f"location attention sees {model.config.max_src_len} source positions, and the text has sentences of up to "
            f"{longest} tokens; lower --max-len, or raise its max_len"
        )
    first = next(batches.stream(config.training.seed))
    shapes = jax.eval_shape(model.init, jax.random.key(0), first)["params"]
    if base:
        check_params(base.params, shapes)
    translator = Translator(model, base.params if base else None, src_vocab, tgt_vocab)
    evaluate, too_long = make_evaluation(translator, valid_text, config.data.batching)
    on_event("note", {"text": _describe(batches, src_vocab, tgt_vocab, config.precision, too_long)})

    with run_folder.alone(out), resumable(journal):
        run_folder.create(out, overwrite=overwrite, resume=resume)
        if not resume:
            journal.write_data(data)
            _save_vocabularies(journal.vocabulary, src_vocab, tgt_vocab)
        journal.write_config(config.as_json())

        def save(params: Any, metrics: Mapping[str, float]) -> None:
            translator.params = params
            translator.save(journal.model, card=model_card(config, translator, metrics), overwrite=True)

        on_event("note", {"text": "compiling: the first step of each shape takes some seconds"})
        started, searched = time.perf_counter(), searches()
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
        traces = {**result.traces, "search": searches() - searched}
        end = {"kind": "end", "minutes": minutes, "averaged": result.averaged, "traces": traces}
        journal.log(result.step, {**end, **result.metrics})
        return translator, result


def _model(config: RunConfig, src_vocab_size: int, tgt_vocab_size: int) -> Any:
    """The model of a settled configuration."""
    sizes = {"src_vocab_size": src_vocab_size, "tgt_vocab_size": tgt_vocab_size}
    model = build_model(config.family, {**config.model, **sizes, "precision": config.precision})
    if config.training.guided_weight and getattr(model.config, "attention", "") is None:
        raise ValueError("guided alignment needs attention; leave out --alignments, or the setting attention=null")
    return model


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


def _save_vocabularies(folder: Path, src: Vocabulary, tgt: Vocabulary) -> None:
    folder.mkdir(exist_ok=True)
    src.save(folder, "src")
    if tgt is not src:
        tgt.save(folder, "tgt")


def _load_vocabularies(folder: Path, config: DataConfig) -> tuple[Vocabulary, Vocabulary]:
    src = load_vocabulary(folder, "src")
    joint = config.vocabulary != "word" and not config.separate
    return src, src if joint else load_vocabulary(folder, "tgt")


def make_evaluation(
    translator: Translator, text: ParallelText, batching: BatchConfig
) -> tuple[Callable[[Any], Evaluation], int]:
    """Validates parameters: perplexity, accuracy, and BLEU of greedy translations.

    Returns:
      The function, and how many pairs are too long for its perplexity and accuracy; they are translated all the same.
    """
    src, tgt = list(text.src), list(text.tgt)
    translator.check_language_tokens(src)
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


def model_card(config: RunConfig, translator: Translator, metrics: Mapping[str, float]) -> str:
    """The text of ``MODEL_CARD.md``."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(translator.params))
    found = "\n".join(f"- {name}: {float(value):.4g}" for name, value in metrics.items())
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


__all__ = ["DataConfig", "DataError", "RunConfig", "run_training"]
