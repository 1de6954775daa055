"""From text to ids and back: what every vocabulary offers, and the word-level one.

Ids 0 to 3 are padding, begin of sentence, end of sentence and unknown in every vocabulary
(:mod:`attn_jax.models.protocol`). On disk a vocabulary is ``stem.json``, which says its kind; never a pickle.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from attn_jax.data.errors import MissingFileError, VocabularyError
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from attn_jax.storage.files import IntegrityError, read_json

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
"""How the ids 0 to 3 are written."""


LANGUAGE_TOKEN = re.compile(r">>[^<>\s]+<<")
"""What a source sentence may begin with to say which language it shall be translated into: ``>>fr<<``."""


class Vocabulary(Protocol):
    """What the rest of the library asks of a vocabulary, whether of words or of subwords."""

    lowercase: bool

    def __len__(self) -> int:
        """Number of ids, the four special ones included."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a sentence, without ``BOS_ID`` and ``EOS_ID``."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: up to the first ``EOS_ID``, ``PAD_ID`` and ``BOS_ID`` left out."""
        ...

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One printable piece for each id, special ones included: the axis labels of an attention map."""
        ...

    def save(self, folder: str | Path, stem: str) -> list[Path]:
        """Writes the vocabulary and returns the files written."""
        ...


def split_language_token(text: str) -> tuple[str, str]:
    """Splits a sentence into the language token that it begins with, "" for none, and the rest.

    >>> split_language_token(">>fr<< ein mann"), split_language_token("ein mann")
    (('>>fr<<', ' ein mann'), ('', 'ein mann'))
    """
    stripped = text.lstrip()
    found = LANGUAGE_TOKEN.match(stripped)
    return (found[0], stripped[found.end() :]) if found else ("", text)


def checked_ids(ids: Iterable[int], size: int) -> list[int]:
    """Gives ``ids`` as Python integers, each checked to lie in ``0 .. size - 1``.

    Args:
      ids: a list or an array ``[length]`` of integers.
      size: the number of ids in the vocabulary.

    Raises:
      VocabularyError: for an id out of range or not an integer.

    >>> checked_ids(np.array([4, 2]), size=5)
    [4, 2]
    """
    array = np.asarray(ids if hasattr(ids, "__len__") else list(ids))
    if array.size == 0:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise VocabularyError(
            f"expected one sentence of integer ids [length], found {array.dtype} of shape {array.shape}; "
            "decode the rows of a batch one by one"
        )
    wrong = np.flatnonzero((array < 0) | (array >= size))
    if wrong.size:
        raise VocabularyError(
            f"id {array[wrong[0]]} at position {wrong[0]} is outside this vocabulary of {size} ids (0 to {size - 1}); "
            "use the vocabulary that the model was trained with"
        )
    return array.tolist()


def sentence_ids(ids: Iterable[int], size: int) -> list[int]:
    """Gives the ids that carry text: checked, cut at the first ``EOS_ID``, without ``PAD_ID`` and ``BOS_ID``.

    >>> sentence_ids([1, 7, 0, 8, 2, 9], size=10)
    [7, 8]
    """
    ids = checked_ids(ids, size)
    end = ids.index(EOS_ID) if EOS_ID in ids else len(ids)
    return [i for i in ids[:end] if i not in (PAD_ID, BOS_ID)]


@dataclass(frozen=True)
class WordVocabulary:
    """A vocabulary of whole words, split at white space; a word that is not in it becomes ``<unk>``.

    Attributes:
      tokens: the token of each id; the first four are ``SPECIAL_TOKENS``.
      lowercase: whether ``encode`` lower-cases the text first.
    """

    tokens: tuple[str, ...]
    lowercase: bool = False

    def __post_init__(self):
        """Checks what ``encode`` and ``decode`` rely on."""
        if self.tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise VocabularyError(
                f"expected a vocabulary that starts with {SPECIAL_TOKENS}, found {self.tokens[: len(SPECIAL_TOKENS)]}; "
                "build it with WordVocabulary.build"
            )
        counts = Counter(self.tokens)
        bad = next((t for t in self.tokens if counts[t] > 1 or t.split() != [t]), None)
        if bad is not None:
            raise VocabularyError(
                f"token {bad!r} is empty, holds white space or occurs twice; a vocabulary lists words once"
            )

    @classmethod
    def build(
        cls, sentences: Iterable[str], *, max_size: int | None = None, min_count: int = 1, lowercase: bool = False
    ) -> Self:
        """Builds the vocabulary of the most frequent words, ties in alphabetical (code point) order.

        Args:
          sentences: the text, one sentence each.
          max_size: the largest number of ids, the four special ones included; None for no limit.
          min_count: how often a word must occur.
          lowercase: count and later encode lower-cased text.

        Raises:
          VocabularyError: if no word is left, or for limits that allow none.

        >>> words = WordVocabulary.build(["the cat", "the dog"], max_size=6)
        >>> words.tokens[4:], words.encode("the dog")
        (('the', 'cat'), [4, 3])
        """
        if min_count < 1 or (max_size is not None and max_size <= len(SPECIAL_TOKENS)):
            raise VocabularyError(
                f"expected min_count >= 1 and max_size > {len(SPECIAL_TOKENS)} (the special ids are counted), "
                f"found min_count={min_count}, max_size={max_size}"
            )
        counts = Counter(word for s in sentences for word in (s.lower() if lowercase else s).split())
        for token in SPECIAL_TOKENS:  # text that spells a special token is an unknown word, never the special id
            counts.pop(token, None)
        words = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
        if not words:
            raise VocabularyError(f"no word occurs {min_count} times in the text; lower min_count or check the file")
        return cls(
            SPECIAL_TOKENS + tuple(words[: None if max_size is None else max_size - len(SPECIAL_TOKENS)]), lowercase
        )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens) if i >= len(SPECIAL_TOKENS)}

    def __len__(self) -> int:
        """Number of ids, the four special ones included."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of the words of ``text``, without ``BOS_ID`` and ``EOS_ID``."""
        return [self._ids.get(word, UNK_ID) for word in (text.lower() if self.lowercase else text).split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of ``ids`` joined by spaces: up to the first ``EOS_ID``, ``PAD_ID`` and ``BOS_ID`` left out.

        Raises:
          VocabularyError: for an id out of range.
        """
        return " ".join(self.tokens[i] for i in sentence_ids(ids, len(self)))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One token for each id, special ones included.

        Raises:
          VocabularyError: for an id out of range.
        """
        return [self.tokens[i] for i in checked_ids(ids, len(self))]

    def save(self, folder: str | Path, stem: str) -> list[Path]:
        """Writes ``folder/stem.json`` and returns the path in a list."""
        path = Path(folder) / f"{stem}.json"
        fields = {"kind": "words", "lowercase": self.lowercase, "tokens": self.tokens}
        path.write_text(json.dumps(fields, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        return [path]

    @classmethod
    def load(cls, folder: str | Path, stem: str) -> Self:
        """Reads what ``save`` wrote.

        Raises:
          MissingFileError, VocabularyError: if ``stem.json`` is not there or is not a vocabulary of words.
        """
        fields = read_fields(folder, stem, kind="words", fields={"lowercase": bool, "tokens": list})
        if not all(isinstance(token, str) for token in fields["tokens"]):
            raise VocabularyError(f"{Path(folder) / stem}.json: every token must be a string; {RESTORE}")
        return cls(tuple(fields["tokens"]), fields["lowercase"])


KINDS = ("words", "subwords", "pieces")
"""What a vocabulary's JSON may call itself."""

RESTORE = "restore the model folder from a copy or train again"


def read_fields(folder: str | Path, stem: str, *, kind: str | None, fields: dict[str, type]) -> dict:
    """Reads ``folder/stem.json`` and checks its kind and the types of its fields; ``kind=None`` takes any kind.

    Raises:
      MissingFileError: if the file is not there.
      VocabularyError: if it is not the JSON of a vocabulary of this kind.
    """
    path = Path(folder) / f"{stem}.json"
    try:
        found = read_json(path)
    except IntegrityError as error:
        kind_of_error = MissingFileError if isinstance(error.__context__, OSError) else VocabularyError
        raise kind_of_error(f"{error}; {RESTORE}") from error
    if not isinstance(found, dict) or found.get("kind") not in ((kind,) if kind else KINDS):
        raise VocabularyError(f"{path}: expected a vocabulary of kind {kind or ' or '.join(KINDS)}; {RESTORE}")
    for name, expected in fields.items():
        if not isinstance(found.get(name), expected):
            raise VocabularyError(f"{path}: expected {name!r} to be a {expected.__name__}; {RESTORE}")
    return found
