"""What the attention page shows: sentences, hypotheses, maps and the search's tree, and their JSON.

The JSON is ``{"version": 3, "title", "live", "examples": [EXAMPLE]}`` with

- EXAMPLE ``{"text", "reference" or null, "models": [MODEL]}``: a sentence as one or more models see it;
- MODEL ``{"name", "source": {"tokens", "words"}, "encoder": MAP or null, "hypotheses": [HYPOTHESIS], "tree"}``;
- HYPOTHESIS ``{"tokens", "words", "text", "label", "score", "forced", "log_probs", "alternatives", "gold", "possible",
  "cross": MAP, "decoder": MAP or null}``; what is unknown is null;
- MAP ``{"shape": [layers, heads, rows, columns], "softmax", "weights"}``, see `pack_weights`;
- TREE ``{"tokens", "parents", "log_probs", "leaves"}``, see `SearchTree`; or null.

``words`` has for each token the number of its word. A link is ``[source, target]``, a logarithm is in nats.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

VERSION = 3
STEPS = 8192
"""Steps a unit of a stored root: a weight is off by at most ``sqrt(-log(weight)) / STEPS`` of itself, so by 5.3e-5."""
NOTHING = 65535
"""Stored for a weight of 0, or below ``exp(-((NOTHING / STEPS) ** 2))`` = 1.6e-28."""
CONTROL_TOKENS = frozenset({"<s>", "</s>", "<pad>"})


@dataclass(frozen=True, kw_only=True)
class SearchTree:
    """What a search looked at: a node for every token that it kept for a step, or that ended a hypothesis.

    Attributes:
      tokens: ``[nodes]``; a node comes after its parent.
      parents: ``[nodes]``, the node before; -1 for first tokens.
      log_probs: ``[nodes]``, of all tokens up to the node, in nats.
      leaves: the last node of each hypothesis, None for one that is not in the tree.
    """

    tokens: Sequence[str]
    parents: Sequence[int]
    log_probs: Sequence[float]
    leaves: Sequence[int | None]


@dataclass(frozen=True, kw_only=True)
class AttentionHypothesis:
    """One target sentence with the attention it was written under.

    Attributes:
      tokens: target tokens as the model wrote them, ``</s>`` included where it has a row.
      weights: cross-attention ``[tgt_len, src_len]`` or ``[layers, heads, tgt_len, src_len]``, row t: where the model
        looked when it wrote token t.
      decoder: the decoder's own attention ``[layers, heads, tgt_len, tgt_len]``; its columns are the decoder's inputs,
        ``<s>`` and all tokens but the last. None where there is none.
      text: the sentence for people; empty: made from the tokens.
      label: what it is, if it is no result of a search, such as "reference".
      score: what the search ranked by (such as a log-probability in nats), or None.
      forced: how many of its first tokens were given rather than chosen.
      log_probs: ``[tgt_len]``, of each token, in nats, or None.
      alternatives: for each step the likeliest tokens and their log-probabilities in nats, falling; or None.
      gold: known links ``(source, target)`` from 0 between the source tokens and *these* tokens, or None.
      possible: links that are neither right nor wrong; sure ones may be among them.
      softmax: whether each map is one softmax of scores, so that a temperature can be applied to it exactly.
    """

    tokens: Sequence[str]
    weights: ArrayLike
    decoder: ArrayLike | None = None
    text: str = ""
    label: str = ""
    score: float | None = None
    forced: int = 0
    log_probs: Sequence[float] | None = None
    alternatives: Sequence[Sequence[tuple[str, float]]] | None = None
    gold: Collection[tuple[int, int]] | None = None
    possible: Collection[tuple[int, int]] | None = None
    softmax: bool = True


@dataclass(frozen=True, kw_only=True)
class AttentionExample:
    """One source sentence and its hypotheses. A notebook shows it as the interactive page.

    Attributes:
      src_tokens: source tokens as the model read them.
      hypotheses: at least one, the best first. Their weights have a column for each source token.
      src_text: the sentence for people; empty: made from the tokens.
      reference: what a person wrote, or None.
      encoder: the encoder's own attention ``[layers, heads, src_len, src_len]``, or None.
      tree: what the search looked at, or None.
      name: of the model, to tell it from others.
      others: the same sentence as other models see it, to compare with.
    """

    src_tokens: Sequence[str]
    hypotheses: Sequence[AttentionHypothesis]
    src_text: str = ""
    reference: str | None = None
    encoder: ArrayLike | None = None
    tree: SearchTree | None = None
    name: str = ""
    others: Sequence[AttentionExample] = ()

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for notebooks."""
        from attn_jax.viz.viewer import attention_frame

        return attention_frame([self])


def example_data(example: AttentionExample, where: str = "attention example") -> dict:
    """An example as the page's script reads it: plain lists, numbers and strings.

    Args:
      example: what to show.
      where: how an error names it.

    Raises:
      ValueError: if it does not fit together; the message says where.

    >>> example = AttentionExample(src_tokens=["a"], hypotheses=[AttentionHypothesis(tokens=["b"], weights=[[1.0]])])
    >>> example_data(example)["models"][0]["hypotheses"][0]["cross"]
    {'shape': [1, 1, 1, 1], 'softmax': True, 'weights': 'AAA='}
    """
    models = [
        _model(model, f"{where}, model {n}" if n else where) for n, model in enumerate((example, *example.others))
    ]
    return {
        "text": example.src_text or plain_text(example.src_tokens),
        "reference": example.reference,
        "models": models,
    }


def pack_weights(weights: ArrayLike) -> str:
    """Weights as text: base64 of little-endian 16-bit ``round(sqrt(-log(weight)) * STEPS)``, ``NOTHING`` for 0.

    Logarithms rather than weights, because they are the softmax's scores up to a constant a row: the page divides them
    by a temperature and loses no small weight. Their roots, because heavy weights need finer steps than light ones.

    >>> unpack_weights(pack_weights([0.5, 0.25, 0.0])).round(4).tolist()
    [0.5, 0.25, 0.0]
    """
    with np.errstate(divide="ignore"):
        steps = np.rint(np.sqrt(np.maximum(-np.log(np.asarray(weights, np.float64)), 0)) * STEPS)
    return base64.b64encode(np.clip(steps, 0, NOTHING).astype("<u2").tobytes()).decode("ascii")


def unpack_weights(text: str) -> np.ndarray:
    """What `pack_weights` wrote, as one row ``[n]``."""
    steps = np.frombuffer(base64.b64decode(text), "<u2")
    return np.where(steps == NOTHING, 0.0, np.exp(-((steps / STEPS) ** 2)))


def plain_text(tokens: Sequence[str]) -> str:
    """The sentence that tokens spell: SentencePiece's ``▁`` is a space; without one, tokens are words.

    >>> plain_text(["▁un", "do", "</s>"]), plain_text(["the", "cat"])
    ('undo', 'the cat')
    """
    tokens = [str(token) for token in tokens if token not in CONTROL_TOKENS]
    if any("▁" in token for token in tokens):
        return "".join(tokens).replace("▁", " ").strip()
    return " ".join(tokens)


def word_numbers(tokens: Sequence[str]) -> list[int]:
    """For each token the number of its word; without SentencePiece's ``▁`` every token is a word.

    >>> word_numbers(["▁un", "do", "▁it", "</s>"])
    [0, 0, 1, 2]
    """
    if not any(token.startswith("▁") for token in tokens):
        return list(range(len(tokens)))
    number, numbers, apart = -1, [], True
    for token in tokens:
        control = token in CONTROL_TOKENS
        number += apart or control or token.startswith("▁")
        apart = control
        numbers.append(number)
    return numbers


def _model(example: AttentionExample, where: str) -> dict:
    """One model's view of the sentence."""
    if not example.src_tokens or not example.hypotheses:
        raise ValueError(
            f"{where}: expected source tokens and at least one hypothesis, found "
            f"{len(example.src_tokens)} tokens and {len(example.hypotheses)} hypotheses"
        )
    tokens = [str(token) for token in example.src_tokens]
    softmax = all(hypothesis.softmax for hypothesis in example.hypotheses)
    return {
        "name": example.name,
        "source": {"tokens": tokens, "words": word_numbers(tokens)},
        "encoder": _map(example.encoder, ("src_len",) * 2, (len(tokens),) * 2, softmax, f"{where}, encoder"),
        "hypotheses": [
            _hypothesis(hypothesis, len(tokens), f"{where}, hypothesis {rank}")
            for rank, hypothesis in enumerate(example.hypotheses)
        ],
        "tree": _tree(example.tree, len(example.hypotheses), f"{where}, tree"),
    }


def _hypothesis(hypothesis: AttentionHypothesis, src_len: int, where: str) -> dict:
    tokens = [str(token) for token in hypothesis.tokens]
    if not tokens:
        raise ValueError(f"{where}: expected at least one target token, found none")
    for name in ("log_probs", "alternatives"):
        steps = getattr(hypothesis, name)
        if steps is not None and len(steps) != len(tokens):
            raise ValueError(f"{where}: expected {name} for each of {len(tokens)} target tokens, found {len(steps)}")
    alternatives = hypothesis.alternatives
    if alternatives is not None:
        alternatives = [[[str(token), _nats(p, where)] for token, p in step] for step in alternatives]
    sizes = (len(tokens), src_len)
    return {
        "tokens": tokens,
        "words": word_numbers(tokens),
        "text": hypothesis.text or plain_text(tokens),
        "label": hypothesis.label,
        "score": None if hypothesis.score is None else _nats(hypothesis.score, where),
        "forced": int(hypothesis.forced),
        "log_probs": None if hypothesis.log_probs is None else [_nats(p, where) for p in hypothesis.log_probs],
        "alternatives": alternatives,
        "gold": _links(hypothesis.gold, sizes, where),
        "possible": _links(hypothesis.possible, sizes, where),
        "cross": _map(hypothesis.weights, ("tgt_len", "src_len"), sizes, hypothesis.softmax, where),
        "decoder": _map(
            hypothesis.decoder, ("tgt_len",) * 2, (len(tokens),) * 2, hypothesis.softmax, f"{where}, decoder"
        ),
    }


def _map(weights: ArrayLike | None, names: tuple, sizes: tuple, softmax: bool, where: str) -> dict | None:
    if weights is None:
        return None
    weights = np.asarray(weights, dtype=np.float64)
    weights = weights[None, None] if weights.ndim == 2 else weights
    if weights.ndim != 4 or weights.shape[2:] != sizes or not weights.size:
        expected = ", ".join(f"{name}={size}" for name, size in zip(names, sizes, strict=True))
        raise ValueError(
            f"{where}: expected weights of shape [{expected}] or [layers, heads, {expected}], a row a token that looks "
            f"and a column a token looked at, found {list(weights.shape if weights.ndim != 4 else weights.shape[2:])}"
        )
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() > 1.01:
        raise ValueError(f"{where}: expected finite weights from 0 to 1; pass weights, not scores")
    return {"shape": list(weights.shape), "softmax": bool(softmax), "weights": pack_weights(weights)}


def _nats(value: float, where: str) -> float:
    """A finite number in four places: the page shows three."""
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite score or log-probability or None, found {float(value)}")
    return round(float(value), 4) + 0.0


def _links(links: Collection[tuple[int, int]] | None, sizes: tuple[int, int], where: str) -> list | None:
    if links is None:
        return None
    tgt_len, src_len = sizes
    for source, target in links:
        if not (0 <= source < src_len and 0 <= target < tgt_len):
            raise ValueError(
                f"{where}: gold link {source}-{target} (source-target, from 0) is out of range for {src_len} source "
                f"and {tgt_len} target tokens"
            )
    return sorted([int(source), int(target)] for source, target in links)


def _tree(tree: SearchTree | None, hypotheses: int, where: str) -> dict | None:
    if tree is None:
        return None
    nodes = len(tree.tokens)
    if not nodes == len(tree.parents) == len(tree.log_probs) or len(tree.leaves) != hypotheses:
        raise ValueError(
            f"{where}: expected as many parents and log_probs as tokens and a leaf a hypothesis ({hypotheses}), found "
            f"{nodes} tokens, {len(tree.parents)} parents, {len(tree.log_probs)} log_probs, {len(tree.leaves)} leaves"
        )
    if any(not -1 <= parent < node for node, parent in enumerate(tree.parents)):
        raise ValueError(f"{where}: expected every parent before its children, or -1")
    if any(leaf is not None and not 0 <= leaf < nodes for leaf in tree.leaves):
        raise ValueError(f"{where}: expected leaves among {nodes} nodes")
    return {
        "tokens": [str(token) for token in tree.tokens],
        "parents": [int(parent) for parent in tree.parents],
        "log_probs": [_nats(p, where) for p in tree.log_probs],
        "leaves": [None if leaf is None else int(leaf) for leaf in tree.leaves],
    }
