"""A manifest beside the files it describes: sizes and SHA-256, written last, verified before anything is believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from attn_jax.storage.files import IntegrityError, plain, read_json, sha256_of, write_json
from attn_jax.storage.names import check_name

NAME = "manifest.json"


def _own_sha256(record: dict[str, Any]) -> str:
    """The digest of a manifest without its own entry ``sha256``, so that its own bit rot shows too."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Writes ``manifest.json`` over every file under ``folder``, with whatever else should be known of it.

    Args:
      folder: a folder whose files are all written.
      **facts: further entries, of the types that ``plain`` takes.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }
    record = plain({**facts, "files": files})
    write_json(folder / NAME, record | {"sha256": _own_sha256(record)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads ``manifest.json`` without looking at the files it lists.

    Raises:
      IntegrityError: when it is missing, is not JSON, is no manifest, was changed, or names a file outside its folder.
    """
    path = folder / NAME
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise IntegrityError(f"{path}: expected an object with an entry 'files'")
    if record.get("sha256") != _own_sha256(record):
        raise IntegrityError(
            f"{path}: sha256 differs: expected {record.get('sha256')}, found {_own_sha256(record)} over its entries"
        )
    for name, entry in record["files"].items():
        try:
            check_name(name)
        except IntegrityError as error:
            raise IntegrityError(f"{path}: {error}") from None
        if not isinstance(entry, dict) or {"bytes", "sha256"} - entry.keys():
            raise IntegrityError(f"{path}: expected 'bytes' and 'sha256' for {name}, found {entry!r:.60}")
    return record


def verify_file(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Compares one file with its entry in the manifest ``record``.

    Raises:
      IntegrityError: naming the file: not listed, missing, of another size (truncated), or of another SHA-256.
    """
    path, expected = folder / name, record["files"].get(name)
    if expected is None:
        raise IntegrityError(f"{folder / NAME}: does not list {name}")
    if not path.is_file():
        raise IntegrityError(f"{path}: missing")
    if (size := path.stat().st_size) != expected["bytes"]:
        raise IntegrityError(f"{path}: expected {expected['bytes']} bytes, found {size}")
    if (found := sha256_of(path)) != expected["sha256"]:
        raise IntegrityError(f"{path}: sha256 differs: expected {expected['sha256']}, found {found}")


def verify(folder: Path) -> dict[str, Any]:
    """Reads the manifest of ``folder`` and compares every file with it.

    Returns:
      The manifest: ``files``, and the facts it was written with.

    Raises:
      IntegrityError: for the first file that is not what was written.
    """
    record = read_manifest(folder)
    for name in record["files"]:
        verify_file(folder, name, record)
    return record
