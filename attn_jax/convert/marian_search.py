"""The generation settings of a Marian model as options of this library's search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attn_jax.convert.errors import ConversionError
from attn_jax.nn.settings import check_types
from attn_jax.search_config import SearchConfig

STOPS = {True: "full", False: "current", "never": "safe"}
"""Theirs (``early_stopping``) and ours (``stop``). Their never finds what ours that is safe finds."""

ABSENT: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_bos_token_id": (),
    "suppress_tokens": ((), []),
    "begin_suppress_tokens": ((), []),
    "force_words_ids": (),
    "constraints": (),
    "sequence_bias": (),
    "exponential_decay_length_penalty": (),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "prompt_lookup_num_tokens": (),
    "stop_strings": (),
    "penalty_alpha": (0.0,),
    "watermarking_config": (),
}
"""What has no counterpart here, with the values (besides None) that ask for nothing."""

NUMBERS: dict[str, int] = {
    "num_beams": 1,
    "max_new_tokens": 1,
    "max_length": 2,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
}
"""Whole numbers, and the least that each may be."""


def search_settings(generation: Mapping[str, Any], *, eos: int, pad: int, start: int, where: str) -> dict[str, Any]:
    """Options of `attn_jax.search_config.SearchConfig`.

    Their ``max_length`` counts the token that the decoder starts from, ours does not; where they have no limit, they
    write up to 20 tokens. Their length penalty divides by ``length ** penalty``; ours by ``((5 + length) / 6) **
    penalty``, unless ``length_offset`` says otherwise. Padding is never written, even if ``bad_words_ids`` is null or
    empty, where theirs could.

    Args:
      generation: ``generation_config.json``, or ``config.json`` of a folder without one.
      eos: their id of end of sentence.
      pad: their id of padding.
      start: their id of the token that the decoder starts from.
      where: what an error names.

    Raises:
      ConversionError: for a setting that this library would not obey, of another type or out of range.
    """
    given = {name: value for name, value in generation.items() if value is not None}
    odd = [name for name, neutral in ABSENT.items() if name in given and given[name] not in neutral]
    if odd:
        asked = ", ".join(f"{name} {given[name]!r:.40}" for name in odd)
        raise ConversionError(f"{where}: asks for what this search cannot do: {asked}; set it to null to do without")
    try:
        kinds = dict.fromkeys(NUMBERS, "int") | {"length_penalty": "float", "renormalize_logits": "bool"}
        check_types(kinds, {name: given[name] for name in kinds if name in given})
    except ValueError as error:
        raise ConversionError(f"{where}: {error}") from None
    for name, least in NUMBERS.items():
        if given.get(name, least) < least:
            raise ConversionError(f"{where}: {name} must be at least {least}, found {given[name]}")
    ids = {"eos_token_id": eos, "pad_token_id": pad, "forced_eos_token_id": eos, "decoder_start_token_id": start}
    for name, expected in ids.items():
        if given.get(name, expected) not in (expected, [expected]):
            raise ConversionError(
                f"{where}: expected {name} {expected} as in the vocabulary and config.json, found {given[name]!r}"
            )
    if given.get("bad_words_ids", [[pad]]) not in ([[pad]], []):
        found = f"{given['bad_words_ids']!r:.60}"
        raise ConversionError(
            f"{where}: expected bad_words_ids [[{pad}]], padding alone, found {found}; set it to null"
        )
    stop = given.get("early_stopping", False)
    if not isinstance(stop, bool | str) or stop not in STOPS:
        raise ConversionError(f"{where}: expected early_stopping true, false or 'never', found {stop!r}")
    limit = given["max_length"] - 1 if "max_length" in given else 20
    options = {
        "beam": given.get("num_beams", 1),
        "length_penalty": float(given.get("length_penalty", 1.0)),
        "length_offset": 0.0,
        "no_repeat_ngram": given.get("no_repeat_ngram_size", 0),
        "max_len": given.get("max_new_tokens", limit),
        "min_len": max(given.get("min_length", 0), 1),
        "stop": STOPS[stop],
        "forced_end": "forced_eos_token_id" in given,
        "renormalize": given.get("renormalize_logits", False),
    }
    try:
        SearchConfig(**options).check()
    except ValueError as error:
        raise ConversionError(f"{where}: asks for a search that cannot be: {error}") from None
    return options
