"""The command line: ``attn-jax demo | train | evaluate | translate | attend | doctor``.

Each verb is a frozen dataclass of its options; `main` turns what a user can put right into one line and exit code 2.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import tyro

from attn_jax.progress import Progress
from attn_jax.training.interruption import Interrupted, interrupt_again, interrupt_deferred

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train on the bundled English-French grammar, measure, and show the attention: two to three minutes."""

    out: Path = Path("runs/demo")
    """Run folder."""
    steps: int = 1700
    """Updates."""
    seed: int = 1
    """Of the corpus and the training."""
    precision: Precision = "auto"
    """Of the products; auto takes the faster one here."""
    resume: bool = False
    """Go on with the run in --out, from its newest checkpoint."""
    overwrite: bool = False
    """Replace the run that is there."""

    def run(self) -> None:
        """Runs the demo and prints what it measured."""
        from attn_jax.demo import DemoConfig, run_demo

        config = DemoConfig(steps=self.steps, seed=self.seed, precision=self.precision)
        with Progress() as progress:
            result = run_demo(config, self.out, overwrite=self.overwrite, resume=self.resume, on_event=progress.event)
        print(f"\nBLEU {result.bleu:.2f} on held-out sentences (word-for-word dictionary: {result.baseline_bleu:.2f})")
        print(f"     {result.signature}")
        print(f"AER  {result.aer:.2f} % (attention of forced decoding against the gold alignment)\n")
        for found, *_ in result.translations:
            print(f"  {' '.join(found.src_tokens[:-1])}\n  -> {found.text}   ({found.log_prob:.2f} nats)\n")
        print(
            f"Model: {self.out / 'model'}\nPicture: {self.out / 'attention.png'}\nPage: {self.out / 'attention.html'}"
        )


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
    """Model or run folder to start from (fine-tuning): its parameters and vocabularies."""
    model: Literal["recurrent", "transformer"] = "recurrent"
    """Model family."""
    vocabulary: Literal["bpe", "unigram", "word"] = "bpe"
    """Subwords, or words split on spaces."""
    vocab_size: int = 6000
    """Pieces of the subword vocabulary, or most words (0: all)."""
    separate: bool = False
    """A subword vocabulary for each side instead of a joint one."""
    lowercase: bool = False
    """Lower-case all text; stored with the model."""
    set: tuple[str, ...] = ()
    """Model settings, NAME=VALUE each: --set attention=additive decoder_layers=2 dropout=0.3."""
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
    """The probability of constant; where linear and cosine end."""
    seed: int = 1
    """Of parameters, order, dropout and sampling."""
    precision: Precision = "auto"
    """Of the products; auto takes the faster one here."""

    def run(self) -> None:
        """Trains, and says where the model lies."""
        from attn_jax.data.batching import BatchConfig
        from attn_jax.run import DataConfig, RunConfig, run_training
        from attn_jax.training.loop import TrainConfig
        from attn_jax.training.step import OptimizerConfig

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
        found = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        mean = f", mean of the best {result.averaged} checkpoints" if result.averaged > 1 else ""
        print(
            f"\n{result.step:,} steps in {(time.perf_counter() - started) / 60:.1f} minutes. Validation: {found}{mean}"
        )
        print(f"Model: {self.out / 'model'}")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Translate a test set and score it: BLEU and chrF with their signatures."""

    folder: tyro.conf.Positional[Path]
    """Run or model folder."""
    src: Path
    """Source sentences."""
    ref: Path
    """Reference translations."""
    beam: int = 5
    """Hypotheses that the search keeps; 1 is greedy."""
    length_penalty: float = 0.6
    """GNMT's alpha."""
    batch_tokens: int = 2048
    """Source tokens searched at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products; with bfloat16 the share of sentences that differ from float32 is reported too."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        """Prints the scores."""
        from attn_jax.data.parallel import read_parallel
        from attn_jax.hub import Translator
        from attn_jax.metrics.translation import bleu, chrf

        text = read_parallel(self.src, self.ref)
        translator = Translator.load(self.folder, precision=self.precision)
        started = time.perf_counter()
        options = {"beam": self.beam, "length_penalty": self.length_penalty, "batch_tokens": self.batch_tokens}
        best = [found[0] for found in translator(text.src, **options)]
        outputs = [found.text for found in best]
        seconds = time.perf_counter() - started
        changed, left_blank = None, sum(not found.src_tokens for found in best)
        if self.precision != "float32":
            exact = Translator.load(self.folder)(text.src, **options)
            changed = sum(out != found[0].text for out, found in zip(outputs, exact, strict=True))
        lowercase = translator.tgt_vocab.lowercase
        references = [line.lower() for line in text.tgt] if lowercase else list(text.tgt)
        scores = {
            "BLEU": bleu(outputs, references, lowercase=lowercase),
            "chrF": chrf(outputs, references, lowercase=lowercase),
        }
        if self.json:
            found = {name: {"value": score.value, "signature": score.signature} for name, score in scores.items()}
            numbers = {"sentences": len(outputs), "left_blank": left_blank, "changed": changed, "seconds": seconds}
            print(json.dumps({**found, **numbers, "read": dataclasses.asdict(text.report)}))
            return
        print(text.report)
        report_blank(left_blank, translator)
        for name, score in scores.items():
            print(f"{name} {score.value:.2f}   {score.signature}")
        print(f"{len(outputs):,} sentences in {seconds:.1f} s, compilation included")
        if changed is not None:
            print(f"{changed:,} of them ({changed / len(outputs):.1%}) differ from those in float32")


@dataclass(frozen=True, kw_only=True)
class Translate:
    """Translate standard input to standard output, line by line."""

    folder: tyro.conf.Positional[Path]
    """Run or model folder."""
    beam: int = 5
    """Hypotheses that the search keeps; 1 is greedy."""
    n_best: int = 1
    """Hypotheses to print; above 1 a line is 'sentence number ||| text ||| score'."""
    length_penalty: float = 0.6
    """GNMT's alpha."""
    batch_tokens: int = 2048
    """Source tokens searched at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products."""

    def run(self) -> None:
        """Translates every line; blank lines stay blank."""
        from attn_jax.data.parallel import read_lines
        from attn_jax.hub import Translator

        translator = Translator.load(self.folder, precision=self.precision)
        read = read_lines(sys.stdin.buffer)
        if read.report.skipped:
            print(read.report, file=sys.stderr)
        options = {"beam": self.beam, "n_best": self.n_best, "length_penalty": self.length_penalty}
        results = translator(read.lines, batch_tokens=self.batch_tokens, **options)
        filled = (bool(line.strip()) for line in read.lines)
        blank = [line and not found[0].src_tokens for line, found in zip(filled, results, strict=True)]
        report_blank(sum(blank), translator)
        for number, found in enumerate(results):
            if self.n_best == 1:
                print(found[0].text)
            else:
                for hypothesis in found:
                    print(f"{number} ||| {hypothesis.text} ||| {hypothesis.score:.4f}")


@dataclass(frozen=True, kw_only=True)
class Attend:
    """Translate a sentence and draw its attention."""

    folder: tyro.conf.Positional[Path]
    """Run or model folder."""
    sentence: tyro.conf.Positional[str]
    """The sentence."""
    out: Path = Path("attention.html")
    """An interactive .html page, or a .png, .svg or .pdf picture."""
    beam: int = 5
    """Hypotheses that the search keeps, and that the page holds."""

    def run(self) -> None:
        """Writes the page or the picture."""
        from attn_jax.hub import Translator, attention_example
        from attn_jax.viz.figures import SUFFIXES, plot_attention, save_figure
        from attn_jax.viz.viewer import write_attention_page

        if self.out.suffix not in (".html", *SUFFIXES):
            raise ValueError(f"{self.out}: expected a name that ends in .html, {', '.join(SUFFIXES)}; rename --out")
        if not self.sentence.strip():
            raise ValueError("expected a sentence to translate, found nothing; put it in quotes after the folder")
        found = Translator.load(self.folder)(self.sentence, beam=self.beam, n_best=self.beam)
        best = found[0]
        if not best.src_tokens:
            raise ValueError("this sentence is too long to be translated; give a shorter one")
        if best.attention is None:
            raise ValueError(f"{self.folder}: this model was trained without attention, so there is nothing to draw")
        if self.out.suffix == ".html":
            write_attention_page(self.out, [attention_example(found)], title="Attention")
        else:
            save_figure(plot_attention(best.attention, best.src_tokens, best.tokens, title=best.text), self.out)
        print(f"{best.text}\n{self.out}")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Versions, devices, cores, memory, and a self-test of a few seconds."""

    def run(self) -> None:
        """Prints the report; exit code 1 if the self-test fails."""
        from attn_jax import doctor

        if not doctor.report():
            raise SystemExit(1)


VERBS = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "translate": Translate,
    "attend": Attend,
    "doctor": Doctor,
}


def report_blank(count: int, translator: Any) -> None:
    """Says on standard error how many lines were too long to be translated."""
    if count:
        print(
            f"{count:,} lines longer than {translator.max_src_len:,} tokens were left blank; split them",
            file=sys.stderr,
        )


def model_settings(train: Train) -> dict[str, Any]:
    """The family's defaults for text of Multi30k's size, and what ``--set`` changes."""
    joint = train.vocabulary != "word" and not train.separate
    settings: dict[str, Any] = {"dropout": 0.4 if train.model == "recurrent" else 0.3}
    settings["share_embeddings"] = joint
    if train.model == "recurrent":
        settings |= {"tie_embeddings": True, "embed_dim": 384}
    for item in train.set:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"--set expects NAME=VALUE, found {item!r}; for example --set decoder_layers=2")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def use_compilation_cache() -> None:
    """Keeps compiled functions in the user's cache folder, so that the next start is quick.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, and an empty one turns it off.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "attn_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def main(args: Sequence[str] | None = None) -> None:
    """The entry point of ``attn-jax``.

    Args:
      args: the command line without the program's name; None: that of the process.
    """
    warnings.showwarning = lambda message, *_, **__: print(f"attn-jax: warning: {message}", file=sys.stderr)
    if args is None:
        sys.unraisablehook = interrupt_again
    try:
        description = "Sequence-to-sequence learning with attention: train, translate, score, see the attention."
        verb = tyro.extras.subcommand_cli_from_dict(VERBS, args=args, prog="attn-jax", description=description)
        if args is None:
            with interrupt_deferred():
                import_module("attn_jax.run")  # and JAX, before anything else imports it
        use_compilation_cache()
        verb.run()
    except KeyboardInterrupt:
        _stop(130, "interrupted", alone=args is None)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        _stop(2, f"error: {error or 'out of memory; lower --batch-tokens'}")
    except Interrupted as error:
        _stop(130, f"{error}; go on with the same command and --resume", alone=args is None)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            _stop(2, "error: out of memory; lower --batch-tokens")
        raise


def _stop(code: int, message: str, alone: bool = False) -> None:
    """Ends the program; ``alone``: and the process, which a further Ctrl-C would only leave with a traceback."""
    if alone:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"attn-jax: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
