"""Greedy decoding and beam search: the recurrent translator against PyTorch, the Transformer against CTranslate2."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attn_jax import Batch, Seq2Seq, Transformer, TransformerConfig, beam_search, greedy, search_variables
from experiments.speed.measure import (
    OURS,
    Contender,
    Contest,
    Goal,
    Work,
    compiled_work,
    count_operations,
    load_torch,
    on_cpu,
)
from experiments.speed.work import TINY, Data, Sizes, draw, our_config

STEPS = 25
"""Tokens of every translation: the end is held back until then, so that everybody does the same work."""

NARROW_OURS = f"{OURS} bfloat16"


def contests(quick: bool = False) -> list[Contest]:
    """Batches of 32 and 64, greedy and with a beam of 5; ours and PyTorch's at both precisions in one contest."""
    if quick:
        return [recurrent(Sizes(**TINY), beam=2, steps=3)]
    batches = [(batch, beam) for batch in (32, 64) for beam in (1, 5)]
    found = [recurrent(Sizes(batch=batch), beam=beam, steps=STEPS) for batch, beam in batches]
    return found + [transformer(beam=beam) for beam in (1, 5)]


def recurrent(sizes: Sizes, *, beam: int, steps: int) -> Contest:
    """GRU encoder, LSTM decoder with Luong attention and input feeding."""
    data, narrow = draw(sizes), dataclasses.replace(sizes, precision="bfloat16")
    model = Seq2Seq(our_config(sizes))
    contenders = [
        Contender(OURS, "float32", partial(ours, model, data, beam=beam, steps=steps)),
        Contender(NARROW_OURS, "bfloat16", partial(ours, Seq2Seq(our_config(narrow)), data, beam=beam, steps=steps)),
        Contender("torch eager", "float32", partial(torch_search, sizes, data, beam=beam, steps=steps)),
        Contender(
            "torch eager bfloat16",
            "bfloat16",
            partial(torch_search, narrow, data, beam=beam, steps=steps),
            slow=True,
        ),
        Contender(
            "torch.compile",
            "float32",
            partial(torch_search, sizes, data, beam=beam, steps=steps, compiled=True),
            slow=True,
        ),
    ]
    goals = [Goal("torch eager", 1.1), Goal("torch.compile", 1.1)] + (
        [Goal("torch eager", 2.3, NARROW_OURS)] if beam == 5 else []
    )
    title = f"{name_of(beam)}, {sizes.batch} sentences, {steps} tokens each, recurrent"
    operations = search_operations(model, data, beam, steps)
    return Contest(title, contenders, operations, goals, seconds=10)


def transformer(*, beam: int) -> Contest:
    """Three blocks a side, width 256, against CTranslate2; on CPU it has no bfloat16, but int8."""
    sizes = Sizes(batch=32)
    data, search = draw(sizes), {"beam": beam, "steps": STEPS}
    wide = TransformerConfig(src_vocab_size=sizes.vocab, tgt_vocab_size=sizes.vocab, dropout=0.0)
    narrow = Transformer(dataclasses.replace(wide, precision="bfloat16"))
    contenders = [
        Contender(OURS, "float32", partial(ours, Transformer(wide), data, **search)),
        Contender(NARROW_OURS, "bfloat16", partial(ours, narrow, data, **search)),
        Contender("ctranslate2", "float32", partial(ct2_search, wide, data, **search)),
        Contender("ctranslate2 int8", "int8", partial(ct2_search, wide, data, compute_type="int8", **search)),
    ]
    title = f"{name_of(beam)}, {sizes.batch} sentences, {STEPS} tokens each, Transformer"
    return Contest(title, contenders, search_operations(Transformer(wide), data, beam, STEPS), seconds=10)


def name_of(beam: int) -> str:
    """How the search is called."""
    return "greedy" if beam == 1 else f"beam {beam}"


def ours(model: Any, data: Data, *, beam: int, steps: int) -> Work:
    """Encoding and search as one jitted function of parameters and batch."""
    batch = data.as_batch()
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    variables = jax.jit(partial(search_variables, model))(params)  # as `Translator` does, once for all its batches
    sources = batch.replace(tgt=None, tgt_mask=None, tgt_index=None)
    return compiled_work(partial(search, model, beam=beam, steps=steps), variables, sources)


def search(model: Any, variables: Any, batch: Batch, *, beam: int, steps: int) -> Any:
    """Hypotheses of ``steps`` tokens for every sentence."""
    state = model.apply(variables, batch, steps, method="start")
    step = lambda tokens, state: model.apply(variables, tokens, state, method="step")  # noqa: E731
    rules = {"max_len": steps, "min_len": steps}
    return greedy(step, state, **rules) if beam == 1 else beam_search(step, state, beam=beam, **rules)


def search_operations(model: Any, data: Data, beam: int, steps: int) -> float:
    """Operations of the products of one search."""
    batch = data.as_batch()
    params = jax.eval_shape(model.init, jax.random.key(0), batch)
    start = lambda params, batch: model.apply(params, batch, steps, method="start")  # noqa: E731
    step = lambda params, tokens, state: model.apply(params, tokens, state, method="step")  # noqa: E731
    state = jax.eval_shape(start, params, batch)
    wide = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0], beam, *leaf.shape[2:]), leaf.dtype), state.dynamic
    )
    tokens = jnp.ones((data.src.shape[0], beam), jnp.int32)
    once = count_operations(start, params, batch)
    return once + steps * count_operations(step, params, tokens, state.replace(dynamic=wide))


def torch_search(sizes: Sizes, data: Data, **options: Any) -> Work:
    """PyTorch, imported only when it is asked for."""
    load_torch()
    from experiments.speed import torch_decoding

    return torch_decoding.searching(sizes, data, **options)


def ct2_search(config: TransformerConfig, data: Data, **options: Any) -> Work:
    """CTranslate2, imported only when it is asked for."""
    on_cpu("ctranslate2")
    from experiments.speed import ct2_decoding

    return ct2_decoding.searching(config, data, **options)
