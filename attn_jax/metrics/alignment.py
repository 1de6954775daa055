"""Word alignment: links from attention weights, subwords merged to words, error rate against gold, Pharaoh text.

A link is ``(source position, target position)``, both counted from 0. Attention weights are ``[tgt_len, src_len]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Link = tuple[int, int]
Links = frozenset[Link]


@dataclass(frozen=True, kw_only=True)
class AlignmentScore:
    """Counts of one sentence or of a corpus; scores of several sentences add up to the score of the corpus.

    A ratio without a denominator is perfect: nothing claimed is wrong, nothing asked for is missing.

    Attributes:
      links: proposed links, ``|A|``.
      sure: sure gold links, ``|S|``.
      sure_hits: ``|A & S|``.
      possible_hits: ``|A & P|``, where P includes S.
    """

    links: int = 0
    sure: int = 0
    sure_hits: int = 0
    possible_hits: int = 0

    def __add__(self, other: AlignmentScore) -> AlignmentScore:
        return AlignmentScore(
            links=self.links + other.links,
            sure=self.sure + other.sure,
            sure_hits=self.sure_hits + other.sure_hits,
            possible_hits=self.possible_hits + other.possible_hits,
        )

    @property
    def precision(self) -> float:
        """``|A & P| / |A|``, in [0, 1]."""
        return self.possible_hits / self.links if self.links else 1.0

    @property
    def recall(self) -> float:
        """``|A & S| / |S|``, in [0, 1]."""
        return self.sure_hits / self.sure if self.sure else 1.0

    @property
    def error_rate(self) -> float:
        """``AER = 1 - (|A & S| + |A & P|) / (|A| + |S|)``, in [0, 1]; 0 is perfect."""
        total = self.links + self.sure
        return 1.0 - (self.sure_hits + self.possible_hits) / total if total else 0.0


def alignment_error_rate(
    links: Iterable[Set[Link]], sure: Iterable[Set[Link]], possible: Iterable[Set[Link]] | None = None
) -> AlignmentScore:
    """Alignment error rate, precision and recall of a corpus, ``1 - (|A & S| + |A & P|) / (|A| + |S|)``.

    Args:
      links: the proposed links A of each sentence.
      sure: the sure gold links S of each sentence, in the same order.
      possible: the possible gold links P of each sentence; sure links are always possible too. None: P = S.

    Returns:
      The counts, with ``error_rate``, ``precision`` and ``recall``.

    Raises:
      ValueError: if the numbers of sentences differ or are zero.

    References:
      Och and Ney 2003, "A systematic comparison of various statistical alignment models", section 5 (J03-1002).

    >>> score = alignment_error_rate([{(0, 0), (1, 1), (2, 3)}], [{(0, 0), (1, 2)}], [{(1, 1)}])
    >>> score.precision, score.recall, score.error_rate  # 2/3 possible, 1/2 sure, 1 - (1 + 2) / (3 + 2)
    (0.6666666666666666, 0.5, 0.4)
    """
    links, sure = list(links), list(sure)
    possible = sure if possible is None else list(possible)
    if not len(links) == len(sure) == len(possible):
        raise ValueError(
            "alignment error rate: expected the same number of sentences everywhere, found "
            f"{len(links)} proposed, {len(sure)} sure and {len(possible)} possible; keep lines without links"
        )
    if not links:
        raise ValueError("alignment error rate: expected at least one sentence, found none; is the file empty?")
    return sum(map(_score_sentence, links, sure, possible), AlignmentScore())


def _score_sentence(links: Set[Link], sure: Set[Link], possible: Set[Link]) -> AlignmentScore:
    return AlignmentScore(
        links=len(links),
        sure=len(sure),
        sure_hits=len(links & sure),
        possible_hits=len(links & (possible | sure)),
    )


def weights_to_links(weights: ArrayLike, method: str = "argmax", threshold: float = 0.0) -> Links:
    """Reads word links off attention weights.

    Args:
      weights: ``[tgt_len, src_len]``, nonnegative.
      method: ``argmax`` links each target position to its heaviest source position (the first of equals);
        ``threshold`` links every pair whose weight reaches ``threshold``.
      threshold: the least weight of a link, for both methods. A weight of 0 never makes a link, so a fully masked
        row has none.

    Returns:
      The links ``(source, target)``.

    Raises:
      ValueError: if the weights are not a finite matrix or the method is unknown.

    >>> sorted(weights_to_links([[0.9, 0.1], [0.4, 0.6], [0.0, 0.0]]))
    [(0, 0), (1, 1)]
    >>> sorted(weights_to_links([[0.9, 0.1], [0.4, 0.6]], "threshold", 0.4))
    [(0, 0), (0, 1), (1, 1)]
    """
    weights = _matrix(weights)
    if method not in ("argmax", "threshold"):
        raise ValueError(f"links from weights: expected the method argmax or threshold, found {method!r}")
    chosen = (weights > 0) & (weights >= threshold)  # [tgt_len, src_len]
    if method == "argmax" and weights.size:
        heaviest = np.arange(weights.shape[1]) == weights.argmax(axis=1, keepdims=True)
        chosen &= heaviest
    return frozenset((int(source), int(target)) for target, source in np.argwhere(chosen))


def merge_tokens(weights: ArrayLike, src_sizes: Sequence[int], tgt_sizes: Sequence[int]) -> np.ndarray:
    """Merges attention between tokens to attention between words; tokens behind the last word (``</s>``) are left out.

    A word receives the sum of what its source tokens receive, and gives the mean of what its target tokens give: rows
    that sum to 1 still do, but for what goes to the end of sentence.

    Args:
      weights: ``[tgt_len, src_len]``.
      src_sizes: how many tokens each source word has; a word of none receives nothing.
      tgt_sizes: the same for the target; a word of none gives nothing.

    Returns:
      ``[tgt_words, src_words]`` in float64.

    References:
      Koehn and Knowles 2017, "Six challenges for neural machine translation", section 3.5, arXiv:1706.03872.

    >>> merge_tokens([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], [2], [2]).tolist()  # the last source token is </s>
    [[0.625]]
    """
    weights = _matrix(weights)
    src, tgt = (np.eye(len(sizes)).repeat(sizes, axis=1) for sizes in (src_sizes, tgt_sizes))  # [words, tokens]
    sums = tgt @ weights[: tgt.shape[1], : src.shape[1]] @ src.T
    return sums / np.maximum(tgt.sum(axis=1, keepdims=True), 1)


def _matrix(weights: ArrayLike) -> np.ndarray:
    """``weights`` as a float64 matrix."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2:
        raise ValueError(
            f"attention weights: expected a matrix [tgt_len, src_len], found {weights.ndim} axes "
            f"{list(weights.shape)}; choose one sentence and one head first"
        )
    if not np.isfinite(weights).all():
        raise ValueError("attention weights: expected finite numbers, found NaN or infinity")
    return weights


class GoldAlignment(NamedTuple):
    """Gold links of one sentence. ``possible`` includes ``sure``."""

    sure: Links
    possible: Links


_LINK = re.compile(r"([0-9]{1,9})([-?])([0-9]{1,9})")


def format_pharaoh(links: Set[Link], possible: Set[Link] = frozenset()) -> str:
    """Writes links as one line of Pharaoh text: ``i-j``, source first, and ``i?j`` for those only possible.

    Args:
      links: the (sure) links.
      possible: further links that are only possible; those in ``links`` stay sure.

    Returns:
      The line, links in order, without a line end.

    >>> format_pharaoh({(1, 0), (0, 2)}, possible={(0, 2), (3, 3)})
    '0-2 1-0 3?3'
    """
    return " ".join(
        f"{source}{'-' if (source, target) in links else '?'}{target}" for source, target in sorted({*links, *possible})
    )


def parse_pharaoh(lines: Iterable[str], name: str = "alignment") -> list[GoldAlignment]:
    """Reads Pharaoh text, one sentence a line: ``i-j`` is a sure link, ``i?j`` a possible one, counted from 0.

    Args:
      lines: the lines, with or without line ends. An empty line is a sentence without links.
      name: what to call the text in errors; a file's path.

    Returns:
      Gold links of each line.

    Raises:
      ValueError: if a link is malformed; the message names the line.

    >>> gold = parse_pharaoh(["0-0 1?2", ""])
    >>> sorted(gold[0].sure), sorted(gold[0].possible), gold[1].sure
    ([(0, 0)], [(0, 0), (1, 2)], frozenset())
    """
    if isinstance(lines, str):
        lines = lines.splitlines()
    alignments = []
    for number, line in enumerate(lines, start=1):
        sure, unsure = set(), set()
        for text in line.split():
            match = _LINK.fullmatch(text)
            if match is None:
                raise ValueError(
                    f"{name}:{number}: expected links such as 3-4 (sure) or 3?4 (possible), source position first, "
                    f"counted from 0; found {text[:40]!r}"
                )
            (sure if match[2] == "-" else unsure).add((int(match[1]), int(match[3])))
        certain = frozenset(sure)
        alignments.append(GoldAlignment(certain, certain | unsure if unsure else certain))
    return alignments
