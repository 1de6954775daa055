"""The model folder: ``config.json``, ``params.safetensors``, vocabulary files, ``MODEL_CARD.md``, ``manifest.json``.

Nothing in it is code and nothing is unpickled. Every file is compared with the manifest before it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from attn_jax.storage import manifest
from attn_jax.storage.files import (
    IntegrityError,
    fresh_folder,
    put_in_place,
    read_json,
    remove_folder,
    replaced_name,
    write_json,
)
from attn_jax.storage.names import check_name, nest

CONFIG, PARAMS, CARD = "config.json", "params.safetensors", "MODEL_CARD.md"
OWN = (CONFIG, PARAMS, CARD)
FORMAT = "attn_jax model folder, 1"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}
"""What ``params.safetensors`` may hold, by the names of its header."""

Writer = Callable[[Path], Any]
Params = Mapping[str, Any]


class ModelFolderError(ValueError):
    """A model folder cannot be saved or loaded; the message names the file, what is wrong, and the remedy."""


class ModelFolder(NamedTuple):
    """What a model folder holds: ``config``, nested ``params`` of numpy arrays, and ``path`` for the other files."""

    config: dict[str, Any]
    params: dict[str, Any]
    path: Path


def save_model_folder(
    path: str | Path,
    config: Mapping[str, Any],
    params: Params,
    *,
    files: Mapping[str, bytes | Writer] | None = None,
    card: str,
    overwrite: bool = False,
) -> Path:
    """Writes a model folder beside ``path`` and renames it: it is there whole or not at all.

    Args:
      path: the folder to make; it may be there if it is empty.
      config: everything that JSON can say and the model is rebuilt from.
      params: nested dict of float32 or bfloat16 arrays, kept bit by bit. Names are joined by ``.``.
      files: further files by plain name, such as vocabularies: their bytes, or a function that writes to a given path.
      card: the text of ``MODEL_CARD.md``.
      overwrite: replaces a model folder that is there. Files in it that no model folder wrote are carried over.

    Returns:
      The path of the folder.

    Raises:
      ModelFolderError: for a name that leaves the folder or is taken, for params that cannot be kept exactly, and when
        there is something at ``path`` that may not be replaced. Nothing is changed then.
    """
    path, files = Path(path).absolute(), dict(files or {})
    path = path.resolve() if path.is_symlink() else path
    tensors = _flatten(params)
    for name in files:
        _check_extra(name)
    if path.exists():
        _check_replaceable(path, overwrite)

    scratch = fresh_folder(path)
    try:
        try:
            write_json(scratch / CONFIG, dict(config))
        except ValueError as error:
            raise ModelFolderError(f"{CONFIG}: {error}") from error
        _write_tensors(scratch / PARAMS, tensors)
        shutil.copymode(scratch / CONFIG, scratch / PARAMS)  # safetensors writes for the owner alone
        (scratch / CARD).write_text(card, encoding="utf-8")
        for name, content in files.items():
            _write_extra(scratch / name, content)
        manifest.write_manifest(scratch, format=FORMAT)
        if path.exists():
            _check_replaceable(path, overwrite)  # once more: writing took its time
            _carry_over(path, scratch)
        put_in_place(scratch, path)
    finally:
        remove_folder(scratch)
    return path


def load_model_folder(path: str | Path) -> ModelFolder:
    """Reads a model folder, after comparing every file of it with the manifest.

    Args:
      path: a folder that ``save_model_folder`` wrote.

    Returns:
      ``(config, params, path)``: params as nested dict of numpy arrays, float32 or bfloat16 as they were saved. The
      vocabulary files are verified and lie in ``path``.

    Raises:
      ModelFolderError: one line that names the first bad file, what is wrong with it, and the remedy.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelFolderError(_why_absent(path))
    if not any((path / name).is_file() for name in (manifest.NAME, *OWN)):
        raise ModelFolderError(
            f"{path}: expected a run or model folder, found nothing of one; name one within or beside it"
        )
    try:
        record = manifest.read_manifest(path)
        if record.get("format") != FORMAT:
            found = record.get("format")
            raise IntegrityError(f"{path / manifest.NAME}: expected format {FORMAT!r}, found {found!r:.60}")
        names = dict.fromkeys((*OWN, *record["files"]))
        for name in names:
            if not (path / name).is_file():
                raise IntegrityError(f"{path / name}: missing")
        config = read_json(path / CONFIG)  # before the hashes, because a line and a column say more than they do
        if not isinstance(config, dict):
            raise IntegrityError(f"{path / CONFIG}: expected a JSON object, found {type(config).__name__}")
        for name in names:
            manifest.verify_file(path, name, record)
        return ModelFolder(config, _read_params(path / PARAMS), path)
    except IntegrityError as error:
        raise ModelFolderError(f"{error}; copy the model folder again from where it came, or train it anew") from error


def _why_absent(path: Path) -> str:
    if path.exists():
        return f"{path}: expected a model folder, found a file; name the folder that holds {CONFIG}"
    if replaced_name(path).is_dir():
        return f"{path}: missing; an interrupted save left the model in {replaced_name(path)}: rename it to {path.name}"
    return f"{path}: missing; expected a model folder: check the name, or train or convert a model first"


def _flatten(params: Params) -> dict[str, np.ndarray]:
    """Arrays by joined name: contiguous, because safetensors writes the memory of an array and ignores its strides."""
    flat: dict[str, np.ndarray] = {}
    for names, leaf in flatten_dict(dict(params), keep_empty_nodes=True).items():
        name = ".".join(map(str, names))
        if any(not isinstance(part, str) or not part or "." in part for part in names):
            raise ModelFolderError(f"params: expected names that are non-empty strings without a dot, found {names!r}")
        array = np.asarray(leaf, order="C") if hasattr(leaf, "dtype") else None
        if array is None or array.dtype not in DTYPES.values():
            found = type(leaf).__name__ if array is None else array.dtype
            raise ModelFolderError(f"params: expected float32 or bfloat16 for {name}, found {found}; cast it first")
        flat[name] = array
    return flat


def _write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, path)


def read_tensors(path: Path, dtypes: Mapping[str, np.dtype] = DTYPES) -> dict[str, np.ndarray]:
    """Reads a safetensors file.

    Args:
      path: the file.
      dtypes: what it may hold, by the names of its header.

    Returns:
      Arrays by name.

    Raises:
      IntegrityError: for a broken file, or a tensor of another type.
    """
    from safetensors import SafetensorError, deserialize  # safetensors.numpy does not know bfloat16 when it reads

    try:
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise IntegrityError(f"{path}: safetensors header broken ({error})") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in dtypes:
            raise IntegrityError(
                f"{path}: tensor {name} of unexpected dtype: expected {' or '.join(dtypes)}, found {entry['dtype']}"
            )
        tensors[name] = np.frombuffer(entry["data"], dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _read_params(path: Path) -> dict[str, Any]:
    tensors = read_tensors(path)
    try:
        return nest(tensors, ".")
    except IntegrityError as error:
        raise IntegrityError(f"{path}: {error}") from error


def _check_extra(name: str) -> None:
    try:
        check_name(name)
    except IntegrityError as error:
        raise ModelFolderError(f"files: {error}") from None
    if "/" in name or name.startswith(".") or name in (*OWN, manifest.NAME):
        raise ModelFolderError(f"files: expected a plain name other than the folder's own files, found {name!r}")


def _write_extra(path: Path, content: bytes | Writer) -> None:
    if callable(content):
        content(path)
        if not path.is_file():
            raise ModelFolderError(f"files: the function for {path.name} wrote no file there")
    else:
        path.write_bytes(content)


def _check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuses whatever is not ours to replace, before anything is written."""
    if not path.is_dir():
        raise ModelFolderError(f"{path}: expected a folder or nothing, found a file; choose another place")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise ModelFolderError(f"{path}: is not empty; choose another folder, or allow overwriting")
    try:
        record = read_json(path / manifest.NAME)
    except IntegrityError as error:
        raise ModelFolderError(f"{path}: not known to be a model folder ({error}); choose another folder") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ModelFolderError(f"{path}: its {manifest.NAME} is not a model folder's; choose another folder")


def _carry_over(old: Path, new: Path) -> None:
    """Copies what no model folder wrote (a reader's notes, a figure) to the folder that takes its place."""
    entries = list(old.iterdir())
    files = read_json(old / manifest.NAME).get("files") if entries else None
    ours = {manifest.NAME, *(files if isinstance(files, dict) else ())}
    for entry in entries:
        if entry.name in ours or (new / entry.name).exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)
