"""The options of a search as the command line takes them: what is left out is as the model's folder says."""

from __future__ import annotations

import dataclasses
from typing import Any

from attn_jax.search_config import SearchConfig

FOLDERS_SET = ("forced_end", "renormalize")
"""Switches that folders of pretrained models turn on, so that they need a way to be turned off: not flags."""


def _over(options: Any, usual: SearchConfig) -> SearchConfig:
    """What was given, in place of what is usual. A flag can be given, and not taken back."""
    left_out = {field.name: field.default for field in dataclasses.fields(options)}
    return dataclasses.replace(usual, **{n: value for n, value in vars(options).items() if value is not left_out[n]})


def _optional(field: dataclasses.Field) -> tuple[str, str, bool | None]:
    """A field of `SearchConfig` that may be left out."""
    flag = field.type == "bool" and field.name not in FOLDERS_SET
    return (field.name, "bool", False) if flag else (field.name, f"{field.type} | None", None)


SearchOptions = dataclasses.make_dataclass(
    "SearchOptions",
    map(_optional, dataclasses.fields(SearchConfig)),
    bases=(SearchConfig,),  # whose words on each field are those of --help
    namespace={"over": _over},
    frozen=True,
    kw_only=True,
)
SearchOptions.__module__ = SearchConfig.__module__  # where the names in the annotations are known
