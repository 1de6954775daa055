"""``translate`` and ``evaluate``: what a trained model makes of text."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


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


def report_blank(count: int, translator: Any) -> None:
    """Says on standard error how many lines were too long to be translated."""
    if count:
        print(
            f"{count:,} lines longer than {translator.max_src_len:,} tokens were left blank; split them",
            file=sys.stderr,
        )
