"""The options of a search as the command line takes them: what is left out is as the model's folder says."""

from __future__ import annotations

import dataclasses
from typing import Any

import tyro

from attn_jax.search_config import SearchConfig


def _over(options: Any, usual: SearchConfig) -> SearchConfig:
    """What was given, in place of what is usual."""
    return usual.updated(**{name: value for name, value in vars(options).items() if value is not None})


def _optional(field: dataclasses.Field) -> tuple[str, Any, None]:
    """A field of `SearchConfig` that may be left out; a bool stays a pair of flags, ``--x`` and ``--no-x``."""
    flag = tyro.conf.DisallowNone[bool | None]
    return field.name, flag if field.type == "bool" else f"{field.type} | None", None


SearchOptions = dataclasses.make_dataclass(
    "SearchOptions",
    map(_optional, dataclasses.fields(SearchConfig)),
    bases=(SearchConfig,),  # whose words on each field are those of --help
    namespace={"over": _over},
    frozen=True,
    kw_only=True,
)
SearchOptions.__module__ = SearchConfig.__module__  # where the names in the annotations are known
