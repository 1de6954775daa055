"""The model families by name: what a model folder's ``family`` means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from attn_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from attn_jax.models.ssru import SSRUTransformer, SSRUTransformerConfig
from attn_jax.models.transformer import Transformer, TransformerConfig
from attn_jax.nn.settings import check_types


class Family(NamedTuple):
    """A config class and the linen module that takes it."""

    config: type
    module: type


FAMILIES: dict[str, Family] = {
    "recurrent": Family(Seq2SeqConfig, Seq2Seq),
    "transformer": Family(TransformerConfig, Transformer),
    "ssru": Family(SSRUTransformerConfig, SSRUTransformer),
}
"""Model families by name. Each provides the decoding protocol."""


def build_model(family: str, settings: Mapping[str, Any]) -> Any:
    """The module of a family with these settings (as read from JSON).

    Raises:
      ValueError: for an unknown family or setting, with those there are; for a setting that is missing, or whose value
        has another type than the config's field; and for what the config itself refuses.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown model family {family!r}; choose one of {', '.join(FAMILIES)}")
    fields = dataclasses.fields(FAMILIES[family].config)
    known = {field.name: field.type for field in fields}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"unknown settings of the {family} model: {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in settings]
    if missing:
        raise ValueError(f"the {family} model needs {', '.join(missing)}")
    check_types(known, settings)
    return FAMILIES[family].module(FAMILIES[family].config(**settings))


def family_of(model: Any) -> str:
    """The name of a model's family."""
    return next(name for name, family in FAMILIES.items() if type(model) is family.module)
