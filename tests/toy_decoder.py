"""A tiny decoder over the decoding protocol, for tests: random tables in place of a network, and a past it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.models.protocol import BOS_ID, Batch, DecodeState, StepOutput

Array = jax.Array


class Tables(NamedTuple):
    """Indexed by the sum of the source ids, the position, the last token but one, the last one, and the outcome."""

    logits: Array  # [sources, positions, vocab, vocab, vocab]
    scores: Array  # of the attention: [positions, vocab, vocab, src_vocab]


def random_tables(seed: int, *, vocab: int, positions: int, sources: int = 3, src_vocab: int = 12, spread: float = 2.0):
    """Tables of normal numbers with standard deviation ``spread``, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    return Tables(
        rng.normal(0, spread, (sources, positions, vocab, vocab, vocab)).astype(np.float32),
        rng.normal(0, 1, (positions, vocab, vocab, src_vocab)).astype(np.float32),
    )


@dataclass(frozen=True)
class ToyDecoder:
    """Next-token logits and attention looked up by source, position and the last two tokens.

    ``dynamic`` carries position, history of tokens and a running code of the *whole* history, which shifts the logits a
    little, so a search that mixes up two hypotheses anywhere in the past gives wrong numbers.
    """

    tables: Tables
    memory_of_past: float = 0.1

    def start(self, batch: Batch, max_len: int, prefix: Array | None = None) -> DecodeState:
        assert prefix is None, "the toy has no prefix"
        rows = batch.src.shape[0]
        memory = {"src": batch.src, "mask": batch.src_mask}
        dynamic = {
            "position": jnp.zeros((rows, 1), jnp.int32),
            "history": jnp.zeros((rows, 1, max_len), jnp.int32),
            "code": jnp.zeros((rows, 1), jnp.int32),
        }
        return DecodeState(memory=memory, dynamic=dynamic)

    def step(self, tokens: Array, state: DecodeState) -> StepOutput:
        logits_table, scores_table = self.tables
        src, mask = state.memory["src"], state.memory["mask"]
        position, history, code = (state.dynamic[name] for name in ("position", "history", "code"))
        here = jnp.arange(history.shape[-1]) == position[..., None]  # [batch, beam, max_len]
        before = jnp.arange(history.shape[-1]) == position[..., None] - 1
        last_but_one = jnp.where(position > 0, jnp.sum(history * before, -1), BOS_ID)
        code = (code * 31 + tokens) % 1009

        source = jnp.sum(src * mask, -1) % logits_table.shape[0]
        at = jnp.minimum(position, logits_table.shape[1] - 1)
        logits = jnp.asarray(logits_table)[source[:, None], at, last_but_one, tokens]  # [batch, beam, vocab]
        past = jnp.sin(code[..., None] * (1.0 + jnp.arange(logits.shape[-1]))).astype(logits.dtype)
        scores = jnp.asarray(scores_table)[at, last_but_one, tokens]  # [batch, beam, src_vocab]
        scores = jnp.take_along_axis(scores, jnp.broadcast_to(src[:, None], (*tokens.shape, src.shape[-1])), -1)
        scores = scores + jnp.sin(code * 0.37)[..., None] * jnp.arange(src.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9)) * mask[:, None]

        dynamic = {
            "position": position + 1,
            "history": jnp.where(here, tokens[..., None], history),
            "code": code,
        }
        return StepOutput(logits + self.memory_of_past * past, weights, state.replace(dynamic=dynamic))

    def log_probs_after(self, src: np.ndarray, src_mask: np.ndarray, prefix: list[int]) -> np.ndarray:
        """The same in NumPy and float64 for one sentence: ``[vocab]`` log-probabilities of what follows ``prefix``."""
        fed, code = self._fed(prefix)
        table = np.asarray(self.tables.logits, np.float64)
        source = int((src * src_mask).sum()) % table.shape[0]
        at = min(len(prefix), table.shape[1] - 1)
        logits = table[source, at, fed[-2] if prefix else BOS_ID, fed[-1]]
        logits = logits + self.memory_of_past * np.sin(code * (1.0 + np.arange(len(logits))))
        return logits - np.log(np.exp(logits).sum())

    def weights_after(self, src: np.ndarray, src_mask: np.ndarray, prefix: list[int]) -> np.ndarray:
        """The attention ``[src_len]`` that chooses what follows ``prefix``, likewise."""
        fed, code = self._fed(prefix)
        table = np.asarray(self.tables.scores, np.float64)
        at = min(len(prefix), self.tables.logits.shape[1] - 1)
        scores = table[at, fed[-2] if prefix else BOS_ID, fed[-1]][src] + np.sin(code * 0.37) * np.arange(len(src))
        weights = np.exp(scores) * src_mask
        return weights / weights.sum()

    @staticmethod
    def _fed(prefix: list[int]) -> tuple[list[int], int]:
        fed, code = [BOS_ID, *prefix], 0
        for token in fed:
            code = (code * 31 + token) % 1009
        return fed, code


def random_batch(seed: int, *, rows: int = 3, src_len: int = 5, src_vocab: int = 12) -> Batch:
    """Sources of random ids and random lengths of at least 1, padded; NumPy arrays."""
    rng = np.random.default_rng(seed)
    mask = np.arange(src_len) < rng.integers(1, src_len + 1, (rows, 1))
    src = np.where(mask, rng.integers(3, src_vocab, (rows, src_len)), 0).astype(np.int32)
    return Batch(src=src, src_mask=mask)
