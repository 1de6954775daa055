"""Subwords: a SentencePiece model, trained in memory and saved beside the model that uses it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import sentencepiece

from attn_jax.data.errors import VocabularyError
from attn_jax.data.pieces import PieceVocabulary
from attn_jax.data.sentencepieces import load_model, open_model, save_model
from attn_jax.data.vocabulary import (
    LANGUAGE_TOKEN,
    SPECIAL_TOKENS,
    Vocabulary,
    WordVocabulary,
    checked_ids,
    read_fields,
    sentence_ids,
    split_language_token,
)
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, UNK_ID

Algorithm = Literal["bpe", "unigram"]


@dataclass(frozen=True)
class SubwordVocabulary:
    """A vocabulary of SentencePiece pieces.

    A language token that began a sentence of the training text (``>>fr<<``) is one piece at the beginning of any text,
    without a ``▁`` before it; the text behind it is encoded as if it stood alone.

    Attributes:
      model: the serialised SentencePiece model; its ids 0 to 3 are the special ones of this library.
      lowercase: whether ``encode`` lower-cases the text first.

    References:
      Kudo and Richardson (2018), SentencePiece, arXiv:1808.06226; Sennrich et al. (2016), BPE, arXiv:1508.07909;
      Kudo (2018), the unigram model, arXiv:1804.10959.
    """

    model: bytes = field(repr=False)
    lowercase: bool = False

    def __post_init__(self):
        """Loads the model once, so that a damaged one is found here and not at the first sentence."""
        ids = tuple(f() for f in (self._sp.pad_id, self._sp.bos_id, self._sp.eos_id, self._sp.unk_id))
        if ids != (PAD_ID, BOS_ID, EOS_ID, UNK_ID):
            raise VocabularyError(
                f"expected a SentencePiece model with pad, bos, eos, unk = 0, 1, 2, 3, found {ids}; train it with "
                "SubwordVocabulary.train or with --pad_id=0 --bos_id=1 --eos_id=2 --unk_id=3"
            )

    @cached_property
    def _sp(self) -> sentencepiece.SentencePieceProcessor:
        return open_model(self.model)

    @cached_property
    def _language_ids(self) -> dict[str, int]:
        pieces = {self._sp.id_to_piece(i): i for i in range(len(self))}
        return {piece: i for piece, i in pieces.items() if LANGUAGE_TOKEN.fullmatch(piece)}

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        *,
        vocab_size: int = 8000,
        algorithm: Algorithm = "bpe",
        lowercase: bool = False,
        character_coverage: float = 1.0,
    ) -> Self:
        """Trains the pieces on text, in memory and deterministically. For a joint vocabulary pass both sides chained.

        Args:
          sentences: the text, one sentence each.
          vocab_size: the number of ids, the four special ones included.
          algorithm: "bpe" or "unigram".
          lowercase: train on and later encode lower-cased text.
          character_coverage: the share of characters that get a piece; 0.9995 for scripts with thousands of them.

        Raises:
          VocabularyError: for empty text, or a vocab_size too large or too small for it; the message gives the bound.

        >>> pieces = SubwordVocabulary.train(["ein mann", "eine frau", "ein hut"], vocab_size=20)
        >>> pieces.decode(pieces.encode("ein mann")), len(pieces)
        ('ein mann', 20)
        """
        if algorithm not in ("bpe", "unigram"):
            raise VocabularyError(f"expected the algorithm 'bpe' or 'unigram', found {algorithm!r}")
        if vocab_size <= len(SPECIAL_TOKENS):
            raise VocabularyError(f"expected vocab_size > {len(SPECIAL_TOKENS)}, found {vocab_size}; try 8000")
        # All of them first: SentencePiece would turn what the iterator raises, Ctrl-C too, into an error of its own.
        split = [split_language_token(s.lower() if lowercase else s) for s in sentences]
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter([line for _, line in split if line.strip()]),
                model_writer=model,
                model_type=algorithm,
                vocab_size=vocab_size,
                character_coverage=character_coverage,
                normalization_rule_name="nmt_nfkc",
                pad_id=PAD_ID,
                bos_id=BOS_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                pad_piece=SPECIAL_TOKENS[PAD_ID],
                unk_surface=SPECIAL_TOKENS[UNK_ID],
                user_defined_symbols=sorted({token for token, _ in split} - {""}),
                max_sentence_length=1 << 20,  # bytes; the default drops longer sentences without a word
                num_threads=1,  # the unigram sums depend on the number of threads
                minloglevel=3,
            )
        except (RuntimeError, OSError) as error:
            raise VocabularyError(_training_remedy(str(error), vocab_size)) from error
        return cls(model.getvalue(), lowercase)

    def __len__(self) -> int:
        """Number of ids, the four special ones included."""
        return self._sp.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces of ``text``, without ``BOS_ID`` and ``EOS_ID``."""
        head, rest = self._split(text)
        return head + self._sp.encode(rest)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text, several times faster than one by one."""
        return self._encode_batch(texts)

    def sample_batch(self, texts: Sequence[str], *, alpha: float = 0.1, seed: int) -> list[list[int]]:
        """Encodes each text in one of its many segmentations: the same for the same texts, alpha and seed.

        Training on several samples beside ``encode_batch`` regularises small corpora.

        Args:
          texts: the sentences.
          alpha: for BPE the probability to drop a merge, 0 to 1; for unigram the inverse temperature, > 0.
          seed: any integer >= 0; sets the seed of SentencePiece for the process.

        Raises:
          VocabularyError: for alpha out of range.

        References:
          Provilkov et al. (2020), BPE-dropout, arXiv:1910.13267; Kudo (2018), section 3.3, arXiv:1804.10959.
        """
        if not 0 <= alpha <= 1:
            raise VocabularyError(f"expected 0 <= alpha <= 1, found {alpha}; 0.1 is usual for BPE, 0.2 for unigram")
        sentencepiece.set_random_generator_seed(seed)
        # One thread: the draws of several are not reproducible, nor those outside a batch before SentencePiece 0.2.3.
        return self._encode_batch(texts, num_threads=1, enable_sampling=True, alpha=alpha, nbest_size=-1)

    def _split(self, text: str) -> tuple[list[int], str]:
        """The id of a known language token at the beginning of ``text``, if there is one, and the text to encode."""
        text = text.lower() if self.lowercase else text
        token, rest = split_language_token(text)
        return ([self._language_ids[token]], rest) if token in self._language_ids else ([], text)

    def _encode_batch(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        split = [self._split(text) for text in texts]
        encoded = self._sp.encode([rest for _, rest in split], **options)
        return [head + ids for (head, _), ids in zip(split, encoded, strict=True)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``: up to the first ``EOS_ID``, ``PAD_ID`` and ``BOS_ID`` left out.

        Raises:
          VocabularyError: for an id out of range.
        """
        return self._sp.decode(sentence_ids(ids, len(self)))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One piece for each id, special ones included; ``▁`` marks a space.

        Raises:
          VocabularyError: for an id out of range.
        """
        return [self._sp.id_to_piece(i) for i in checked_ids(ids, len(self))]

    def save(self, folder: str | Path, stem: str) -> list[Path]:
        """Writes ``folder/stem.json`` and ``folder/stem.model`` and returns both paths."""
        return save_model(folder, stem, self.model, {"kind": "subwords", "lowercase": self.lowercase})

    @classmethod
    def load(cls, folder: str | Path, stem: str) -> Self:
        """Reads what ``save`` wrote.

        Raises:
          MissingFileError, VocabularyError: if a file is not there, or is not what was written.
        """
        fields = read_fields(folder, stem, kind="subwords", fields={"lowercase": bool, "sha256": str})
        return cls(load_model(folder, stem, fields["sha256"]), fields["lowercase"])


def _training_remedy(message: str, vocab_size: int) -> str:
    """Says what to do about an error of the SentencePiece trainer, which writes for its own developers."""
    largest = re.search(r"set it to a value <= (\d+)", message)
    smallest = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if largest:
        return f"vocab_size {vocab_size} is too large for this text; use --vocab-size {largest[1]} or less"
    if smallest:
        return (
            f"vocab_size {vocab_size} is smaller than the {smallest[1]} characters, language tokens and special ids of "
            "this text; use at least that many (--vocab-size), or lower character_coverage"
        )
    if "sentences_.empty()" in message:
        return f"expected text to train {vocab_size} subwords on, found none; check the files"
    return f"SentencePiece cannot train {vocab_size} subwords on this text; it says: {' '.join(message.split())}"


def load_vocabulary(folder: str | Path, stem: str) -> Vocabulary:
    """Reads the vocabulary ``stem`` of a model folder, of whichever kind its ``stem.json`` says.

    Raises:
      MissingFileError, VocabularyError: if a file is not there, or is not what was written.
    """
    kind = read_fields(folder, stem, kind=None, fields={"kind": str})["kind"]
    kinds = {"words": WordVocabulary, "subwords": SubwordVocabulary, "pieces": PieceVocabulary}
    return kinds[kind].load(folder, stem)
