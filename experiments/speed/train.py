"""A training step: GRU encoder, LSTM decoder with input feeding, against PyTorch and two usual Flax programs."""

from __future__ import annotations

import dataclasses
from functools import partial

from experiments.speed import flax_translator
from experiments.speed.measure import OURS, Contender, Contest, Goal, Work, load_torch
from experiments.speed.work import TINY, Data, Sizes, draw, our_training, training_operations

GOALS = {
    ("general", "float32"): [Goal("torch eager", 1.3), Goal("torch.compile", 1.05), Goal("flax nn.scan", 1.7)],
    ("additive", "float32"): [Goal("torch eager", 1.3), Goal("torch.compile", 1.05), Goal("flax nn.scan", 2.0)],
    ("general", "bfloat16"): [Goal("torch eager", 1.2), Goal("torch.compile", 1.2)],
}
"""By attention and precision."""


def contests(quick: bool = False) -> list[Contest]:
    """Both attentions in float32, and Luong's with bfloat16 products."""
    base = Sizes(**TINY) if quick else Sizes()
    return [
        contest(dataclasses.replace(base, attention=attention, precision=precision), goals)
        for (attention, precision), goals in GOALS.items()
        if not (quick and attention == "additive")
    ]


def contest(sizes: Sizes, goals: list[Goal]) -> Contest:
    """One model at one precision; Flax and the unpacked PyTorch take part in float32."""
    data, precision = draw(sizes), sizes.precision
    narrow = precision == "bfloat16"
    contenders = [
        Contender(OURS, precision, partial(our_training, sizes, data)),
        Contender("torch eager", precision, partial(torch_training, sizes, data), slow=narrow),
        Contender("torch.compile", precision, partial(torch_training, sizes, data, compiled=True), slow=True),
    ]
    if not narrow:
        build = partial(torch_training, sizes, data, packed=False)
        contenders.append(Contender("torch eager, logits of padding too", precision, build))
        for name, unrolled in (("flax nn.scan", False), ("flax unrolled", True)):
            build = partial(flax_translator.training, sizes, data, unrolled=unrolled)
            contenders.append(Contender(name, precision, build, slow=unrolled))
    title = f"training step, {sizes}, {precision}"
    return Contest(title, contenders, training_operations(sizes, data), goals, seconds=20)


def torch_training(sizes: Sizes, data: Data, **options: bool) -> Work:
    """PyTorch, imported only when it is asked for."""
    load_torch()
    from experiments.speed import torch_translator

    return torch_translator.training(sizes, data, **options)
