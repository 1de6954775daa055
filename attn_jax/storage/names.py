"""Names on the disk: of files in a folder, and of arrays in a flat list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from flax.traverse_util import unflatten_dict

from attn_jax.storage.files import IntegrityError


def check_name(name: str) -> str:
    """Returns ``name`` if it stays inside its folder: relative, forward slashes, no ``..``.

    Raises:
      IntegrityError: for any other name.

    >>> check_name("vocabulary/source.json")
    'vocabulary/source.json'
    >>> check_name("../secret")
    Traceback (most recent call last):
      ...
    attn_jax.storage.files.IntegrityError: expected a file name inside the folder, found '../secret'
    """
    parts = PurePosixPath(name).parts
    inside = parts and not name.startswith("/") and ".." not in parts
    if not inside or "/".join(parts) != name or "\\" in name or ":" in name or not name.isprintable():
        raise IntegrityError(f"expected a file name inside the folder, found {name!r}")
    return name


def nest(flat: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Nested dicts from joined names.

    Raises:
      IntegrityError: when a name stands for a value and for a dict of values.

    >>> nest({"encoder.kernel": 1, "encoder.bias": 2, "scale": 3}, ".")
    {'encoder': {'kernel': 1, 'bias': 2}, 'scale': 3}
    >>> nest({"encoder": 1, "encoder.bias": 2}, ".")
    Traceback (most recent call last):
      ...
    attn_jax.storage.files.IntegrityError: the name 'encoder' is also the beginning of 'encoder.bias'
    """
    for name in flat:
        parts = name.split(separator)
        for shorter in (separator.join(parts[:depth]) for depth in range(1, len(parts))):
            if shorter in flat:
                raise IntegrityError(f"the name {shorter!r} is also the beginning of {name!r}")
    return unflatten_dict(dict(flat), sep=separator)
