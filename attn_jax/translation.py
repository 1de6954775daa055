"""What a translator returns: hypotheses, scored pairs, and what a search went through, in tokens and text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from attn_jax.viz.examples import AttentionExample, AttentionHypothesis
from attn_jax.viz.viewer import attention_frame


class TreeNode(NamedTuple):
    """A hypothesis that a search went through: what ``parent`` (a place in the tree, -1: the root) became by ``token``.

    ``log_prob`` is that of the whole hypothesis in nats; ``score`` is None unless it is finished.
    """

    step: int
    token: str
    parent: int
    log_prob: float
    score: float | None


class Translation(NamedTuple):
    """One hypothesis of one sentence.

    Attributes:
      text: for people.
      score: log-probability in nats over the length penalty, and the coverage penalty if any; what the search ranks by.
      tokens: target tokens, ``</s>`` last if the search got that far.
      attention: ``[tgt_len, src_len]``, row t: where the model looked when it wrote token t. None without attention.
      src_tokens: source tokens, ``</s>`` last.
      log_prob: log-probability of the tokens, in nats.
      tree: all that the search went through, of the best hypothesis of a sentence, if asked for.
    """

    text: str
    score: float
    tokens: tuple[str, ...]
    attention: np.ndarray | None
    src_tokens: tuple[str, ...]
    log_prob: float
    tree: tuple[TreeNode, ...] | None = None

    def _repr_html_(self) -> str | None:
        """The interactive page of its attention, for notebooks; `attn_jax.pictures.attention_of` shows more.

        The page offers no other temperature: the attention of a search may be a mean over layers, heads and models.
        """
        if self.attention is None:
            return None
        hypothesis = AttentionHypothesis(
            tokens=self.tokens, weights=self.attention, text=self.text, score=self.score, softmax=False
        )
        return attention_frame([AttentionExample(src_tokens=self.src_tokens, hypotheses=[hypothesis])])


class Scored(NamedTuple):
    """A given pair as the model sees it.

    Attributes:
      tokens: target tokens, ``</s>`` last.
      log_probs: ``[tgt_len]`` in nats.
      attention: ``[tgt_len, src_len]``. None without attention.
      src_tokens: source tokens, ``</s>`` last.
      alternatives: for each target token the most likely tokens at its place, ``(token, log_prob)`` each; if asked for.
    """

    tokens: tuple[str, ...]
    log_probs: np.ndarray
    attention: np.ndarray | None
    src_tokens: tuple[str, ...]
    alternatives: tuple[tuple[tuple[str, float], ...], ...] = ()

    @property
    def log_prob(self) -> float:
        """Log-probability of the target, in nats."""
        return float(np.sum(self.log_probs, dtype=np.float64))
