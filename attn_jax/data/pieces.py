"""Pieces that one file cuts and another numbers, as the vocabularies of Marian's models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import sentencepiece

from attn_jax.data.errors import VocabularyError
from attn_jax.data.sentencepieces import load_model, open_model, save_model
from attn_jax.data.vocabulary import (
    RESTORE,
    SPECIAL_TOKENS,
    checked_ids,
    read_fields,
    sentence_ids,
    split_language_token,
)
from attn_jax.models.protocol import UNK_ID

SPACE = "▁"
"""How SentencePiece writes a space."""


@dataclass(frozen=True)
class PieceVocabulary:
    """A SentencePiece model that cuts text into pieces, and a list that numbers them; the model's own ids play no part.

    A piece that is not in the list becomes ``<unk>``. A language token that a text begins with (``>>fr<<``) is one
    piece, whatever the model would make of it.

    Attributes:
      tokens: the piece of each id; the first four are ``SPECIAL_TOKENS``.
      model: the serialised SentencePiece model.
      punctuation: a language such as "en", by whose rules punctuation is normalised before a text is cut (as Moses
        does; needs the package sacremoses), or "" to leave it as it is. Marian's models were trained on such text.
      lowercase: always False; its model does what there is to do.
    """

    tokens: tuple[str, ...] = field(repr=False)
    model: bytes = field(repr=False)
    punctuation: str = ""
    lowercase = False

    def __post_init__(self):
        """Checks what ``encode`` and ``decode`` rely on."""
        if self.tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            found = self.tokens[: len(SPECIAL_TOKENS)]
            raise VocabularyError(f"expected pieces that start with {SPECIAL_TOKENS}, found {found}; {RESTORE}")
        if len(self._ids) != len(self.tokens) - len(SPECIAL_TOKENS):
            raise VocabularyError(f"expected {len(self.tokens)} different pieces, found one twice; {RESTORE}")
        self._sp, self._normalised  # noqa: B018 (a damaged model, a missing package: found here, not at a sentence)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens) if i >= len(SPECIAL_TOKENS)}

    @cached_property
    def _sp(self) -> sentencepiece.SentencePieceProcessor:
        return open_model(self.model)

    @cached_property
    def _normalised(self) -> Callable[[str], str]:
        if not self.punctuation:
            return str
        try:
            from sacremoses import MosesPunctNormalizer
        except ImportError:
            raise VocabularyError(
                'this vocabulary normalises punctuation with sacremoses, which is not installed: pip install "attn-jax'
                '[pretrained]", or convert the model without it'
            ) from None
        return MosesPunctNormalizer(self.punctuation).normalize

    def __len__(self) -> int:
        """Number of ids, the four special ones included."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces of ``text``, without ``BOS_ID`` and ``EOS_ID``."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""
        split = [split_language_token(text) for text in texts]
        cut = self._sp.encode([self._normalised(rest) for _, rest in split], out_type=str)
        return [
            [self._ids.get(piece, UNK_ID) for piece in ([token] if token else []) + pieces]
            for (token, _), pieces in zip(split, cut, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``: up to the first ``EOS_ID``, the special ones left out.

        Raises:
          VocabularyError: for an id out of range.
        """
        pieces = [self.tokens[i] for i in sentence_ids(ids, len(self)) if i != UNK_ID]
        return self._sp.decode_pieces(pieces).replace(SPACE, " ").strip()

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One piece for each id, special ones included; ``▁`` marks a space.

        Raises:
          VocabularyError: for an id out of range.
        """
        return [self.tokens[i] for i in checked_ids(ids, len(self))]

    def save(self, folder: str | Path, stem: str) -> list[Path]:
        """Writes ``folder/stem.json`` and ``folder/stem.model`` and returns both paths."""
        fields = {"kind": "pieces", "punctuation": self.punctuation, "tokens": self.tokens}
        return save_model(folder, stem, self.model, fields)

    @classmethod
    def load(cls, folder: str | Path, stem: str) -> Self:
        """Reads what ``save`` wrote.

        Raises:
          MissingFileError, VocabularyError: if a file is not there, or is not what was written.
        """
        types = {"tokens": list, "punctuation": str, "sha256": str}
        fields = read_fields(folder, stem, kind="pieces", fields=types)
        if not all(isinstance(token, str) for token in fields["tokens"]):
            raise VocabularyError(f"{Path(folder) / stem}.json: every token must be a string; {RESTORE}")
        return cls(tuple(fields["tokens"]), load_model(folder, stem, fields["sha256"]), fields["punctuation"])
