"""Greedy and beam decoding in PyTorch, with the tricks of our own search.

Embedding and input projection folded into one table beforehand, the readout's product
with the values once a sentence, a memory that is never repeated over the beam, back-pointers and
one walk back instead of moving sequences, the largest of a row in two stages, no gradient bookkeeping.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.speed.measure import Work
from experiments.speed.torch_translator import Translator, compiled_alone
from experiments.speed.work import Data, Sizes

EOS = 2
"""Below it are padding and the begin of sentence, which are never generated."""

GROUP = 64


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of each row of ``[rows, n]`` and their indices: groups with the largest maxima, then inside.

    As `attn_jax.decoding.topk`: an element outside the chosen groups has ``k`` others that are as large, one in each.
    """
    rows, n = values.shape
    groups = n // GROUP
    if groups <= k:
        return values.topk(k)
    chosen = values[:, : groups * GROUP].unflatten(1, (groups, GROUP)).amax(-1).topk(k).indices
    inside = (chosen[..., None] * GROUP + torch.arange(GROUP)).flatten(1)
    index = torch.cat([inside, torch.arange(groups * GROUP, n).expand(rows, -1)], dim=1)
    best, where = values.gather(1, index).topk(k)
    return best, index.gather(1, where)


def searching(sizes: Sizes, data: Data, *, beam: int, steps: int, compiled: bool = False) -> Work:
    """Encodes a batch and searches ``steps`` tokens for every sentence; the end of sentence may only come last.

    The encoder is in float32 at either precision: on a processor without bfloat16 products ``nn.GRU`` takes eight times
    as long in bfloat16, under autocast as with narrowed weights.
    """
    torch.manual_seed(0)
    dtype = getattr(torch, sizes.precision)
    model = Translator(sizes).eval().requires_grad_(False)
    src, lengths = torch.from_numpy(data.src).long(), torch.from_numpy(data.src_lengths).long()
    padding = torch.from_numpy(~data.src_mask)
    table = (model.input(model.tgt_embed.weight)).to(dtype)  # [vocab, 4 * decoder]
    for part in (model.recurrent, model.attention, model.readout, model.readout_context, model.output):
        part.to(dtype)

    def step(tokens: Tensor, hidden: Tensor, cell: Tensor, fed: Tensor, keys: Tensor, values: Tensor):
        """All states ``[batch, beam, decoder]``; log-probabilities ``[batch, beam, vocab]`` in float32."""
        gates = table[tokens] + model.recurrent(torch.cat([hidden, fed], dim=-1))
        hidden, cell = model.cell(gates, cell)
        context = model.attention(hidden, keys, values, padding)
        fed = torch.tanh(model.readout(hidden) + context)
        return torch.log_softmax(model.output(fed).float(), dim=-1), hidden, cell, fed

    advance = compiled_alone(step) if compiled else step

    @torch.inference_mode()
    def call() -> Tensor:
        values, hidden, cell = model.encode(src, lengths)
        values = values.to(dtype)
        keys, values = model.attention.key(values), model.readout_context(values)
        batch, rows = src.shape[0], torch.arange(src.shape[0])[:, None]
        hidden, cell = (state.to(dtype)[:, None].expand(-1, beam, -1) for state in (hidden, cell))
        fed, tokens = torch.zeros_like(hidden), torch.ones(batch, beam, dtype=torch.long)
        total = torch.full((batch, beam), -1e9)
        total[:, 0] = 0
        history = []
        for position in range(steps):
            log_probs, hidden, cell, fed = advance(tokens, hidden, cell, fed, keys, values)
            log_probs[..., : EOS if position + 1 == steps else EOS + 1] = -1e9
            if beam == 1:
                _, tokens = top_k(log_probs[:, 0], 1)
                history.append((tokens, None))
                continue
            vocab = log_probs.shape[-1]
            total, flat = top_k((total[..., None] + log_probs).flatten(1), beam)
            parents, tokens = flat // vocab, flat % vocab
            hidden, cell, fed = hidden[rows, parents], cell[rows, parents], fed[rows, parents]
            history.append((tokens, parents))
        found, slot = [], torch.zeros(batch, 1, dtype=torch.long)
        for tokens, parents in reversed(history):
            found.append(tokens.gather(1, slot))
            slot = slot if parents is None else parents.gather(1, slot)
        return torch.cat(found[::-1], dim=1)

    return Work(call)
