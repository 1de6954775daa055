"""The attention viewer: one HTML file without network, framework or server, made from examples.

``viewer.html`` is the frame, ``viewer.css`` the looks, ``viewer_*.js`` the behaviour; a page is all of them and
the data in one file. A strict Content-Security-Policy admits exactly these, by hash, so nothing in a token can ever
run or load.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

SCRIPTS = ("viewer_state.js", "viewer_lines.js", "viewer_matrix.js", "viewer_page.js")
DECIMALS = 4  # of the weights in the page; it shows three


@dataclass(frozen=True, kw_only=True)
class AttentionHypothesis:
    """One target sentence with the attention it was written under.

    Attributes:
      tokens: target tokens as the model wrote them, ``</s>`` included where it has a row.
      weights: ``[tgt_len, src_len]``, nonnegative: a row a target token.
      text: the sentence for people; empty: made from the tokens.
      score: what the search ranked by (such as a log-probability in nats), or None.
      gold: known links ``(source, target)`` from 0 between the source tokens and *these* tokens, or None.
    """

    tokens: Sequence[str]
    weights: ArrayLike
    text: str = ""
    score: float | None = None
    gold: Collection[tuple[int, int]] | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionExample:
    """One source sentence and its hypotheses.

    Attributes:
      src_tokens: source tokens as the model read them.
      hypotheses: at least one, the best first. Their weights have a column for each source token.
      src_text: the sentence for people; empty: made from the tokens.
      reference: what a person wrote, or None.
    """

    src_tokens: Sequence[str]
    hypotheses: Sequence[AttentionHypothesis]
    src_text: str = ""
    reference: str | None = None


def attention_page(examples: Sequence[AttentionExample], title: str = "Attention") -> str:
    """The HTML page that shows examples: matrix and line view, hover, pin, keyboard, light and dark.

    Args:
      examples: at least one.
      title: the heading.

    Returns:
      The page. Write it as UTF-8.

    Raises:
      ValueError: if there is no example, or one does not fit together; the message says which.

    >>> page = attention_page([AttentionExample(src_tokens=["<b>"], hypotheses=[
    ...     AttentionHypothesis(tokens=["gras"], weights=[[1.0]])])])
    >>> "<b>" in page
    False
    """
    if not examples:
        raise ValueError("attention page: expected at least one example, found none")
    data = {"version": 1, "title": title, "examples": [_example(n, example) for n, example in enumerate(examples)]}
    style, script = _part("viewer.css"), "".join(map(_part, SCRIPTS))
    fill = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "title": html.escape(title).encode("ascii", "xmlcharrefreplace").decode(),
        "style": style,
        "script": script,
        "data": _script_safe_json(data),
    }
    # One pass: a title or token that reads like a slot is not filled in turn.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], _part("viewer.html"))


def write_attention_page(
    path: str | os.PathLike[str], examples: Sequence[AttentionExample], title: str = "Attention"
) -> Path:
    """Writes ``attention_page(examples, title)`` to a file that opens from disk.

    Args:
      path: ends in ``.html``. Its folder must exist; a file there is replaced.
      examples: at least one.
      title: the heading.

    Returns:
      The path.

    Raises:
      ValueError: for another suffix, a missing folder, or what ``attention_page`` rejects.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        found = repr(path.suffix) if path.suffix else "no suffix"
        raise ValueError(f"{path}: expected a file name ending in .html, found {found}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")
    path.write_text(attention_page(examples, title), encoding="utf-8", newline="\n")
    return path


def _example(number: int, example: AttentionExample) -> dict:
    """The example as the page's script reads it."""
    if not example.src_tokens or not example.hypotheses:
        raise ValueError(
            f"attention page, example {number}: expected source tokens and at least one hypothesis, found "
            f"{len(example.src_tokens)} tokens and {len(example.hypotheses)} hypotheses"
        )
    src_tokens = [str(token) for token in example.src_tokens]
    return {
        "source": {"tokens": src_tokens, "text": example.src_text or _plain_text(src_tokens)},
        "reference": example.reference,
        "hypotheses": [
            _hypothesis(f"attention page, example {number}, hypothesis {rank}", hypothesis, len(src_tokens))
            for rank, hypothesis in enumerate(example.hypotheses)
        ],
    }


def _hypothesis(where: str, hypothesis: AttentionHypothesis, src_len: int) -> dict:
    tokens = [str(token) for token in hypothesis.tokens]
    weights = np.asarray(hypothesis.weights, dtype=np.float64)
    if not tokens:
        raise ValueError(f"{where}: expected at least one target token, found none")
    if weights.shape != (len(tokens), src_len):
        raise ValueError(
            f"{where}: expected weights of shape [tgt_len={len(tokens)}, src_len={src_len}], one row a target token "
            f"and one column a source token, found {list(weights.shape)}"
        )
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError(f"{where}: expected finite weights >= 0; pass weights, not scores")
    score = None if hypothesis.score is None else float(hypothesis.score)
    if score is not None and not math.isfinite(score):
        raise ValueError(f"{where}: expected a finite score or None, found {score}")
    gold = None if hypothesis.gold is None else sorted((int(source), int(target)) for source, target in hypothesis.gold)
    for source, target in gold or ():
        if not (0 <= source < src_len and 0 <= target < len(tokens)):
            raise ValueError(
                f"{where}: gold link {source}-{target} (source-target, from 0) is out of range for {src_len} source "
                f"and {len(tokens)} target tokens"
            )
    return {
        "tokens": tokens,
        "text": hypothesis.text or _plain_text(tokens),
        "score": score,
        "gold": gold,
        "weights": [[round(weight, DECIMALS) or 0 for weight in row] for row in weights.tolist()],
    }


def _plain_text(tokens: Sequence[str]) -> str:
    """The sentence that tokens spell: SentencePiece's ``▁`` is a space; without one, tokens are words."""
    tokens = [token for token in tokens if token not in ("<s>", "</s>", "<pad>")]
    if any("▁" in token for token in tokens):
        return "".join(tokens).replace("▁", " ").strip()
    return " ".join(tokens)


def _script_safe_json(data: object) -> str:
    """JSON that no HTML parser can mistake for markup: ``<``, ``>`` and ``&`` are escaped, and all beyond ASCII."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The Content-Security-Policy source that admits exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
