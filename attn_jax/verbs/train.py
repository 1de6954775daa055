"""``train``: a translator from parallel text."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from attn_jax.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a translator on your own text."""

    src: Path
    """Source sentences, one a line, plain or .gz; or a two-column .tsv, without --tgt."""
    tgt: Path | None = None
    """Target sentences, line by line the translation of --src."""
    valid_src: Path
    """Source sentences to validate on, or a .tsv."""
    valid_tgt: Path | None = None
    """Target sentences to validate on."""
    out: Path
    """Run folder: configuration, metrics, checkpoints, best model."""
    resume: bool = False
    """Go on with the run in --out, from its newest checkpoint."""
    overwrite: bool = False
    """Replace the run in --out."""
    init_from: Path | None = None
    """Model or run folder to start from (fine-tuning): its parameters, model settings and vocabularies."""
    model: Literal["recurrent", "transformer"] | None = None
    """Model family; None: that of --init-from, and without one recurrent."""
    vocabulary: Literal["bpe", "unigram", "word"] = "bpe"
    """Subwords, or words split on spaces."""
    vocab_size: int = 6000
    """Pieces of the subword vocabulary, or most words (0: all)."""
    separate: bool = False
    """A subword vocabulary for each side instead of a joint one."""
    lowercase: bool = False
    """Lower-case all text; stored with the model."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Model settings, NAME=VALUE each: --set attention=additive decoder_layers=2 dropout=0.3. Values are words or JSON; attention=none trains without one. A wrong name is answered with those there are; Seq2SeqConfig and TransformerConfig say what they mean."""  # noqa: E501 (the help keeps line breaks)
    epochs: int = 14
    """Passes over the data."""
    steps: int = 0
    """Updates; above 0 it takes the place of --epochs."""
    valid_every: int = 0
    """Updates between validations; 0: once an epoch."""
    checkpoint_every: int = 0
    """Updates between further checkpoints; 0: only at validations."""
    patience: int = 0
    """Stop after so many validations without a new best; 0: never."""
    batch_tokens: int = 2048
    """Source and target tokens of a batch, padding included."""
    buckets: int = 8
    """Most shapes of a batch; each is compiled once."""
    max_len: int = 128
    """Pairs with a longer side, in tokens, are left out (and counted)."""
    learning_rate: float = 1e-3
    """Peak of the learning rate."""
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    warmup: int = 400
    """Steps until the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    label_smoothing: float = 0.1
    """Share of the target distribution that is spread over the vocabulary."""
    teacher_forcing: Literal["constant", "linear", "exponential", "inverse_sigmoid", "cosine"] = "constant"
    """How the probability of feeding the true token falls (recurrent models)."""
    teacher_forcing_value: float = 1.0
    """The probability of constant; where linear and cosine end (1: at 0). The others fall at their own pace."""
    alignments: Path | None = None
    """Word alignments of the training text, Pharaoh links i-j, a line a pair (attn-jax align): they guide attention."""
    guided_weight: float | None = None
    """Weight of the guided-alignment loss, with --alignments; 0.5 unless told otherwise."""
    guided_until: int | None = None
    """Updates after which --alignments leave the attention alone; without it never."""
    seed: int = 1
    """Of parameters, order, dropout and sampling."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products; auto takes the faster one here."""

    def run(self) -> None:
        """Trains, and says where the model lies."""
        from attn_jax.data.batching import BatchConfig
        from attn_jax.run import run_training
        from attn_jax.run_config import DataConfig, RunConfig
        from attn_jax.training.loop import TrainConfig
        from attn_jax.training.step import OptimizerConfig

        if not self.alignments and (self.guided_weight, self.guided_until) != (None, None):
            raise ValueError("--guided-weight and --guided-until do nothing without --alignments; give them too")
        weight = 0.5 if self.guided_weight is None else self.guided_weight
        config = RunConfig(
            data=DataConfig(
                src=self.src,
                tgt=self.tgt,
                valid_src=self.valid_src,
                valid_tgt=self.valid_tgt,
                vocabulary=self.vocabulary,
                vocab_size=self.vocab_size,
                separate=self.separate,
                lowercase=self.lowercase,
                alignments=self.alignments,
                batching=BatchConfig(batch_tokens=self.batch_tokens, num_buckets=self.buckets, max_len=self.max_len),
            ),
            family=self.model,
            model=model_settings(self),
            training=TrainConfig(
                epochs=self.epochs,
                steps=self.steps,
                valid_every=self.valid_every,
                checkpoint_every=self.checkpoint_every,
                patience=self.patience,
                seed=self.seed,
                label_smoothing=self.label_smoothing,
                teacher_forcing=self.teacher_forcing,
                teacher_forcing_value=self.teacher_forcing_value,
                guided_weight=weight if self.alignments else 0.0,
                guided_until=self.guided_until or 0,
                optimizer=OptimizerConfig(
                    learning_rate=self.learning_rate,
                    schedule=self.schedule,
                    warmup=self.warmup,
                    weight_decay=self.weight_decay,
                ),
            ),
            precision=self.precision,
            init_from=self.init_from,
        )
        started = time.perf_counter()
        with Progress() as progress:
            _, result = run_training(
                config, self.out, resume=self.resume, overwrite=self.overwrite, on_event=progress.event
            )
        found = ", ".join(f"{name} {float(value):.4g}" for name, value in result.metrics.items())
        mean = f", mean of the best {result.averaged} checkpoints" if result.averaged > 1 else ""
        print(
            f"\n{result.step:,} steps in {(time.perf_counter() - started) / 60:.1f} minutes. Validation: {found}{mean}"
        )
        print(f"Model: {self.out / 'model'}")


def model_settings(train: Train) -> dict[str, Any]:
    """The family's defaults for text of Multi30k's size, or those of ``--init-from``, and what ``--set`` changes."""
    settings: dict[str, Any] = {}
    if not train.init_from:
        settings["share_embeddings"] = train.vocabulary != "word" and not train.separate
        if train.model == "transformer":
            settings |= {"dropout": 0.3}
        else:
            settings |= {"dropout": 0.4, "tie_embeddings": True, "embed_dim": 384}
    for item in itertools.chain.from_iterable(train.set):
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"--set expects NAME=VALUE, found {item!r}; for example --set decoder_layers=2")
        try:
            settings[name] = json.loads("null" if value.lower() == "none" else value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings
