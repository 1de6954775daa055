"""The words of a sentence and the tokens they become: what word alignments need of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from attn_jax.data.vocabulary import Vocabulary

Link = tuple[int, int]


def word_sizes(texts: Sequence[str], vocabulary: Vocabulary) -> list[np.ndarray]:
    """How many tokens each word of each sentence becomes; words are what white space separates.

    >>> from attn_jax.data.vocabulary import WordVocabulary
    >>> [sizes.tolist() for sizes in word_sizes(["a b", ""], WordVocabulary.build(["a"]))]
    [[1, 1], []]
    """
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    sizes = dict(zip(words, map(len, vocabulary.encode_batch(words)), strict=True))
    return [np.array([sizes[word] for word in text.split()], int) for text in texts]


@dataclass(frozen=True, eq=False)
class TokenLinks:
    """Alignments of many pairs as one flat array: those of pair ``i`` are ``flat[offsets[i]:offsets[i + 1]]``.

    Attributes:
      flat: ``[total, 2]`` int32, target and source position of the tokens linked.
      offsets: ``[n + 1]`` int64.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_words(
        cls, links: Iterable[Iterable[Link]], src_sizes: Sequence[np.ndarray], tgt_sizes: Sequence[np.ndarray]
    ) -> Self:
        """Links every token of a word to every token of the words it is linked to.

        Args:
          links: ``(source word, target word)`` pairs of each sentence, from 0.
          src_sizes: tokens of each source word, from `word_sizes`.
          tgt_sizes: of each target word.

        >>> TokenLinks.from_words([{(1, 0)}], [np.array([1, 2])], [np.array([1])]).flat.tolist()
        [[0, 1], [0, 2]]
        """
        flat, counts = [], [0]
        for pairs, src, tgt in zip(links, src_sizes, tgt_sizes, strict=True):
            src_ends, tgt_ends, before = np.cumsum(src).tolist(), np.cumsum(tgt).tolist(), len(flat)
            for i, j in sorted(pairs):
                columns = range(src_ends[i] - int(src[i]), src_ends[i])
                flat += [(t, s) for t in range(tgt_ends[j] - int(tgt[j]), tgt_ends[j]) for s in columns]
            counts.append(len(flat) - before)
        return cls(np.array(flat, np.int32).reshape(-1, 2), np.cumsum(counts))

    @property
    def counts(self) -> np.ndarray:
        """``[n]``: the number of links of each pair."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.offsets) - 1

    def padded(self, rows: np.ndarray, capacity: int) -> np.ndarray:
        """The links of the pairs ``rows [batch]`` (-1: an empty row) as `attn_jax.models.protocol.Batch.links`.

        Returns:
          ``[capacity, 3]`` int32: row of the batch, target and source position; filled with ``(batch, 0, 0)``.
        """
        found = np.zeros((capacity, 3), np.int32)
        found[:, 0] = len(rows)
        start = 0
        for number, row in enumerate(rows):
            if row >= 0:
                links = self.flat[self.offsets[row] : self.offsets[row + 1]]
                found[start : start + len(links), 0] = number
                found[start : start + len(links), 1:] = links
                start += len(links)
        return found
