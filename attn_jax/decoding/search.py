"""The search that a `attn_jax.search_config.SearchConfig` asks for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from attn_jax.decoding.beam import beam_search
from attn_jax.decoding.greedy import greedy
from attn_jax.decoding.hypotheses import Hypotheses, Step
from attn_jax.decoding.sampling import sample
from attn_jax.models.protocol import DecodeState
from attn_jax.search_config import SearchConfig

Array = jax.Array


def split(config: SearchConfig) -> tuple[SearchConfig, dict[str, np.ndarray]]:
    """What is compiled, and the numbers that change without another compilation.

    Returns:
      A config in which each of those numbers stands for all that have the same effect on what is compiled; and the
      numbers themselves, by name.

    >>> one, two = SearchConfig(length_penalty=0.6, seed=1), SearchConfig(length_penalty=1.0, seed=2)
    >>> split(one)[0] == split(two)[0] != split(SearchConfig(coverage_penalty=0.1))[0]
    True
    """
    stands_for: dict[str, Any] = {
        "length_offset": 5.0,
        "coverage_penalty": float(config.coverage_penalty > 0),
        "diversity": 0.0,
        "temperature": 1.0,
        "top_p": 1.0 if config.top_p == 1 else 0.5,
        "min_p": 0.0 if config.min_p == 0 else 0.5,
    }
    if config.length_penalty != "average":
        stands_for["length_penalty"] = 0.0
    numbers = {name: np.float32(getattr(config, name)) for name in stands_for}
    return dataclasses.replace(config, seed=0, **stands_for), {**numbers, "seed": np.uint32(config.seed)}


def search(
    config: SearchConfig,
    numbers: dict[str, Array],
    step: Step,
    state: DecodeState,
    *,
    max_len: int,
    sentence_ids: Array,
    return_tree: bool = False,
    **rules: Any,
) -> Hypotheses:
    """The search that a config asks for.

    Args:
      config: from `split`.
      numbers: from `split`; may be traced.
      step: of a decoder.
      state: fresh from ``start``.
      max_len: most tokens of a hypothesis in this batch.
      sentence_ids: ``[batch]`` int, see ``sample``.
      return_tree: see ``beam_search``; not for samples.
      **rules: what depends on the batch, see `attn_jax.decoding.rules.Rules`; with ``src_mask``.

    Returns:
      ``Hypotheses``, ``[batch, config.count, ...]``.
    """
    options = rules | {
        "max_len": max_len,
        "length_penalty": numbers.get("length_penalty", config.length_penalty),
        "length_offset": numbers["length_offset"],
        "coverage_penalty": numbers["coverage_penalty"] if config.coverage_penalty else None,
        "no_repeat_ngram": config.no_repeat_ngram,
        "min_len": config.min_len,
        "forced_end": config.forced_end,
        "renormalize": config.renormalize,
    }
    if config.sample:
        return sample(
            step,
            state,
            jax.random.key(numbers["seed"]),
            sentence_ids=sentence_ids,
            num_samples=config.num_samples,
            temperature=numbers["temperature"],
            top_k=config.top_k or None,
            top_p=None if config.top_p == 1 else numbers["top_p"],
            min_p=None if config.min_p == 0 else numbers["min_p"],
            **options,
        )
    if config.beam == 1 and not return_tree:
        return greedy(step, state, **options)
    groups = {"groups": config.groups, "diversity": numbers["diversity"], "stop": config.stop}
    return beam_search(
        step, state, beam=config.beam, n_best=config.n_best, return_tree=return_tree, **groups, **options
    )
