"""Settings that are checked before anything is built: names out of a table, types as declared, sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

_KINDS: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "dict": lambda value: isinstance(value, Mapping),
    "None": lambda value: value is None,
}


def check_types(declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses a value that is not of the type its setting was declared with.

    A whole number will do for a ``float``, True and False for no number. Other types than bool, int, float, str, dict
    and None are not checked.

    Args:
      declared: the annotation of each setting, a type or its text such as ``"str | None"``.
      given: values by name, each declared.

    Raises:
      ValueError: with the setting, the type declared, and what was found.

    >>> check_types({"hidden": "int", "cell": str | None}, {"hidden": 8, "cell": None})
    >>> check_types({"hidden": "int"}, {"hidden": "8"})
    Traceback (most recent call last):
    ValueError: hidden must be of type int, found '8' of type str
    """
    for name, value in given.items():
        annotation = declared[name]
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        kinds = [kind.strip() for kind in re.sub(r"\[.*\]", "", text).split("|")]
        if all(kind in _KINDS for kind in kinds) and not any(_KINDS[kind](value) for kind in kinds):
            raise ValueError(f"{name} must be of type {text}, found {value!r} of type {type(value).__name__}")


def check_one_of(name: str, value: Any, known: Collection[str | None]) -> None:
    """Refuses a value that is not a known name.

    Raises:
      ValueError: with the names there are.

    >>> check_one_of("cell", "sru", {"rnn", "gru", "lstm"})
    Traceback (most recent call last):
    ValueError: cell must be one of gru, lstm, rnn; found 'sru'
    """
    if value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(sorted('none' if k is None else k for k in known))}; found {value!r}"
        )


def check_at_least_one(owner: Any, *names: str) -> None:
    """Refuses sizes below 1.

    Raises:
      ValueError: for the first of the attributes ``names`` of ``owner`` that is smaller.
    """
    for name in names:
        if getattr(owner, name) < 1:
            raise ValueError(f"{name} must be at least 1, found {getattr(owner, name)}")


def check_share(name: str, value: float) -> None:
    """Refuses what is no share of units to drop.

    Raises:
      ValueError: unless ``0 <= value < 1``.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} is the share dropped, in [0, 1); found {value}")
