"""Padding and compilations: the share of real tokens in bucketed batches, and in random ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attn_jax.data.batching import BatchConfig, Sequences, build_batches
from attn_jax.data.parallel import read_parallel
from attn_jax.data.subwords import SubwordVocabulary
from experiments.runner import Grid, grammar_corpus
from experiments.speed.measure import Section, verdict

REAL_TOKENS, COMPILATIONS = 0.85, 8
PIECES = 6000


def run(quick: bool = False) -> Section:
    """The bundled grammar, and Multi30k where ``ATTN_JAX_DATA`` has it."""
    grammar = grammar_corpus(200 if quick else 20_000, 0, batching=BatchConfig()).batches
    corpora = {"grammar": shares(grammar.src, grammar.tgt)}
    multi30k = None if quick else read_multi30k()
    if multi30k:
        corpora["Multi30k de-en"] = shares(*multi30k)
    columns = ("", "pairs", "steps an epoch", "shapes", "real tokens", "real, random batches", "packed targets real")
    rows = [
        (name, of["pairs"], of["steps"], of["shapes"], *(f"{of[key]:.1%}" for key in ("tokens", "random", "packed")))
        for name, of in corpora.items()
    ]
    if not multi30k:
        rows.append(("Multi30k de-en", "left out of a quick run" if quick else "missing: set ATTN_JAX_DATA", *[""] * 5))
    found = corpora.get("Multi30k de-en", {})
    goals = [
        verdict("real tokens, Multi30k", REAL_TOKENS, found.get("tokens")),
        verdict("compilations, Multi30k", COMPILATIONS, found.get("shapes"), at_most=True),
    ]
    return Section({"corpora": corpora}, [Grid("padding", columns, rows)], goals)


def read_multi30k() -> tuple[Sequences, Sequences] | None:
    """German and English training text as subwords of a joint vocabulary; None without the data."""
    folder = Path(os.environ.get("ATTN_JAX_DATA", "")) / "multi30k"
    if not (folder / "train.de.gz").exists():
        return None
    text = read_parallel(folder / "train.de.gz", folder / "train.en.gz")
    vocabulary = SubwordVocabulary.train([*text.src, *text.tgt], vocab_size=PIECES)
    return Sequences.from_texts(text.src, vocabulary), Sequences.from_texts(text.tgt, vocabulary)


def shares(src: Sequences, tgt: Sequences) -> dict[str, Any]:
    """What an epoch in buckets is made of, and the share of real tokens in random batches of as many pairs."""
    batches = build_batches(src, tgt, BatchConfig())
    lengths = np.stack([src.lengths, tgt.lengths], axis=1)
    return {
        "pairs": len(src),
        "steps": batches.steps_per_epoch,
        "shapes": len(batches.buckets),
        **batches.shares(),
        "random": random_share(lengths, max(1, round(len(src) / batches.steps_per_epoch))),
    }


def random_share(lengths: np.ndarray | Sequence, batch: int, seed: int = 0) -> float:
    """The share of real tokens where random pairs share a batch and each side is padded to its longest.

    >>> random_share([[2, 2], [4, 2]], batch=2)
    0.8333333333333334
    """
    lengths = np.random.default_rng(seed).permutation(np.asarray(lengths))
    padded = sum(len(rows) * rows.max(0).sum() for rows in np.split(lengths, range(batch, len(lengths), batch)))
    return float(lengths.sum() / padded)
