"""Corpus BLEU and chrF through sacreBLEU, with the signature that makes a number comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics import BLEU, CHRF

# sacreBLEU has more, but those need a download or an extra package.
BLEU_TOKENIZERS = ("13a", "intl", "char", "zh", "none")


class Score(NamedTuple):
    """A corpus score.

    Attributes:
      value: 0 (worst) to 100 (best).
      signature: sacreBLEU's record of every setting that changes the number; print it beside the value.
      detail: what the value is made of, for people; may be empty.
    """

    value: float
    signature: str
    detail: str

    def __str__(self) -> str:
        parts = [f"{self.value:.2f}", self.detail and f"({self.detail})", self.signature]
        return " ".join(part for part in parts if part)


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a", lowercase: bool = False) -> Score:
    """Corpus BLEU: ``brevity penalty * exp(mean of the log n-gram precisions, n = 1..4)``, in percent.

    Args:
      hypotheses: one plain-text translation a sentence; may be the empty string.
      references: one plain-text reference a sentence, in the same order.
      tokenize: how sacreBLEU splits both sides: ``13a`` (the default of the field), ``intl``, ``char``, ``zh`` or
        ``none`` (already tokenised text, split at spaces).
      lowercase: compares without case; the signature then says ``case:lc``.

    Returns:
      The score with its signature; the detail holds the four precisions, the brevity penalty and the lengths in tokens.

    Raises:
      ValueError: if the counts differ, there is no sentence, or the tokeniser is unknown.

    References:
      Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation".
      Post 2018, "A call for clarity in reporting BLEU scores", arXiv:1804.08771.

    >>> score = bleu(["the cat sat on a mat"], ["the cat sat on the mat"])
    >>> round(score.value, 2), score.signature.split("|")[:2]
    (53.73, ['nrefs:1', 'case:mixed'])
    """
    _check_corpus("BLEU", hypotheses, references)
    if tokenize not in BLEU_TOKENIZERS:
        raise ValueError(f"BLEU tokeniser: expected one of {', '.join(BLEU_TOKENIZERS)}, found {tokenize!r}")
    # force only silences the advice to detokenise: what the text looks like is the caller's decision.
    metric = BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    result = metric.corpus_score(list(hypotheses), [list(references)])
    precisions = " / ".join(f"{precision:.1f}" for precision in result.precisions)
    detail = f"precisions {precisions}, brevity penalty {result.bp:.3f}, {result.sys_len} tokens for {result.ref_len}"
    return Score(float(result.score), str(metric.get_signature()), detail)


def chrf(
    hypotheses: Sequence[str],
    references: Sequence[str],
    char_order: int = 6,
    word_order: int = 0,
    lowercase: bool = False,
) -> Score:
    """Corpus chrF: the F2 score of character n-grams, in percent.

    Args:
      hypotheses: one plain-text translation a sentence; may be the empty string.
      references: one plain-text reference a sentence, in the same order.
      char_order: the longest character n-gram, at least 1.
      word_order: the longest word n-gram; 0 is chrF, 2 is chrF++.
      lowercase: compares without case.

    Returns:
      The score with its signature; the detail is empty.

    Raises:
      ValueError: if the counts differ, there is no sentence, or an order is out of range.

    References:
      Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation" (W15-3049).

    >>> round(chrf(["the cat sat on a mat"], ["the cat sat on the mat"]).value, 1)
    66.0
    """
    _check_corpus("chrF", hypotheses, references)
    if char_order < 1 or word_order < 0:
        raise ValueError(f"chrF: expected char_order >= 1 and word_order >= 0, found {char_order} and {word_order}")
    metric = CHRF(char_order=char_order, word_order=word_order, lowercase=lowercase)
    result = metric.corpus_score(list(hypotheses), [list(references)])
    return Score(float(result.score), str(metric.get_signature()), "")


def _check_corpus(metric: str, hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raises ValueError unless both are lists of strings of one length, above zero."""
    for name, sentences in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(sentences, str):
            raise ValueError(f"{metric}: expected {name} as a list of sentences, found one string; wrap it in a list")
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise ValueError(
                    f"{metric}: expected text, found {type(sentence).__name__} at {name}[{index}]; "
                    "join the tokens of a sentence into one string"
                )
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{metric}: expected one reference for each hypothesis, found {len(hypotheses)} hypotheses and "
            f"{len(references)} references; keep empty lines, they count as sentences"
        )
    if not hypotheses:
        raise ValueError(f"{metric}: expected at least one sentence, found none; is the input file empty?")
