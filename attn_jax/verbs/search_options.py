"""The options of a search as the command line takes them: what is left out is as the model's folder says."""

from __future__ import annotations

import dataclasses
from typing import Any

from attn_jax.search_config import SearchConfig


def _over(options: Any, usual: SearchConfig) -> SearchConfig:
    """What was given, in place of what is usual. A flag can be given, and not taken back."""
    given = {name: value for name, value in vars(options).items() if value is not None and value is not False}
    return dataclasses.replace(usual, **given)


def _optional(field: dataclasses.Field) -> tuple[str, str, bool | None]:
    """A field of `SearchConfig` that may be left out."""
    return (field.name, "bool", False) if field.type == "bool" else (field.name, f"{field.type} | None", None)


SearchOptions = dataclasses.make_dataclass(
    "SearchOptions",
    map(_optional, dataclasses.fields(SearchConfig)),
    bases=(SearchConfig,),  # whose words on each field are those of --help
    namespace={"over": _over, "__module__": SearchConfig.__module__},  # where the names in the annotations are known
    frozen=True,
    kw_only=True,
)
