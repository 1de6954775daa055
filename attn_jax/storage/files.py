"""Files that are either whole or absent: JSON, hashes, and folders that replace one another."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class IntegrityError(ValueError):
    """A file is missing, unreadable, or holds something else than was written."""


def plain(value: Any) -> Any:
    """What JSON can say of ``value``: scalars of numpy and JAX become numbers, NaN and infinities become words.

    Strict JSON has no NaN, and a silent null would hide a diverged loss, so ``float(plain(x))`` gives ``x`` back.

    Args:
      value: numbers, strings, booleans, None, paths, arrays of any rank, and mappings or sequences of these.

    Returns:
      The same in dicts, lists, strings, numbers, booleans and None.

    Raises:
      ValueError: for a mapping whose keys are not strings, and for any other type.

    >>> import numpy as np
    >>> plain({"loss": np.float32(0.5), "bleu": float("nan"), "bounds": (1, np.int64(2))})
    {'loss': 0.5, 'bleu': 'nan', 'bounds': [1, 2]}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"expected string keys, as JSON has them; found {odd[0]!r}")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and JAX
        return plain(value.tolist())
    raise ValueError(f"expected something that JSON can hold; found {type(value).__name__} {value!r:.60}")


def write_json(path: Path, value: Any) -> None:
    """Writes ``plain(value)`` to ``path``: at every moment the file is the old one or the whole new one."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    scratch = path.with_name(f".{path.name}.saving")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      IntegrityError: naming the file and, for what is not JSON, the line and the column.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise IntegrityError(f"{path}:{error.lineno}:{error.colno}: not valid JSON ({error.msg})") from error
    except RecursionError:
        raise IntegrityError(f"{path}: not valid JSON (nested too deeply)") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
      IntegrityError: naming the file when it is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror})") from error


def saving_name(path: Path) -> Path:
    """The hidden sibling in which the folder ``path`` is written before it takes its place.

    >>> saving_name(Path("runs/model")).as_posix()
    'runs/.model.saving'
    """
    return path.with_name(f".{path.name}.saving")


def replaced_name(path: Path) -> Path:
    """The hidden sibling that holds the previous folder ``path`` while a new one takes its place.

    >>> replaced_name(Path("runs/model")).as_posix()
    'runs/.model.replaced'
    """
    return path.with_name(f".{path.name}.replaced")


def fresh_folder(path: Path) -> Path:
    """Makes ``saving_name(path)`` as an empty folder; what an interrupted save left there is removed."""
    scratch = saving_name(path)
    remove_folder(scratch)
    scratch.mkdir(parents=True)
    return scratch


def put_in_place(scratch: Path, path: Path) -> None:
    """Renames the finished folder ``scratch`` to ``path``; a folder that was there goes once the new one is in place.

    Killed at any moment, it leaves a whole folder at ``path`` or, between two renames, at ``replaced_name(path)``. The
    new files are flushed to the disk first, so a power cut does not cost both the old folder and the new one.
    """
    for entry in (scratch, *scratch.rglob("*")):
        _flush(entry)
    replaced = replaced_name(path)
    if path.exists():  # otherwise `replaced`, if it is there, may be the only copy: it stays until the last line
        remove_folder(replaced)
        path.rename(replaced)
    scratch.rename(path)
    _flush(path.parent)
    remove_folder(replaced)


def _flush(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Removes a folder and what it holds, if it is there."""
    if path.exists():
        shutil.rmtree(path)
