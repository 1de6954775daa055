"""A SentencePiece model as bytes: opened once, and kept beside the ``.json`` that states its hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import sentencepiece

from attn_jax.data.errors import MissingFileError, VocabularyError
from attn_jax.data.vocabulary import RESTORE


def open_model(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """The processor of a serialised model.

    Raises:
      VocabularyError: for other bytes.
    """
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        raise VocabularyError(f"expected a SentencePiece model, found {len(model)} other bytes; {RESTORE}") from error


def save_model(folder: str | Path, stem: str, model: bytes, fields: dict[str, Any]) -> list[Path]:
    """Writes ``folder/stem.json``, the fields and the model's hash, and ``folder/stem.model``; returns both paths."""
    paths = [Path(folder) / f"{stem}.json", Path(folder) / f"{stem}.model"]
    paths[1].write_bytes(model)
    stated = fields | {"sha256": hashlib.sha256(model).hexdigest()}
    paths[0].write_text(json.dumps(stated, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return paths


def load_model(folder: str | Path, stem: str, sha256: str) -> bytes:
    """Reads ``folder/stem.model``.

    Raises:
      MissingFileError, VocabularyError: if it is not there, or has another hash.
    """
    path = Path(folder) / f"{stem}.model"
    try:
        model = path.read_bytes()
    except OSError as error:
        raise MissingFileError(f"{path}: expected a SentencePiece model, found {error.strerror}; {RESTORE}") from error
    if hashlib.sha256(model).hexdigest() != sha256:
        raise VocabularyError(f"{path}: is not the file whose sha256 {stem}.json states; {RESTORE}")
    return model
