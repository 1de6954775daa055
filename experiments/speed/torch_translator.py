"""The translator of `experiments.speed.work` in PyTorch, written to be fast.

What a good user knows: packed sequences in the encoder, input projections of all steps as one product before the loop,
one product for what feeds back, attention keys and what the readout makes of the values projected once, logits of real
targets only, fused Adam. In eager mode and under ``torch.compile``; bfloat16 through ``torch.autocast``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.speed.measure import Work
from experiments.speed.work import CLIP, LEARNING_RATE, SMOOTHING, Data, Sizes


def autocast(precision: str) -> contextlib.AbstractContextManager:
    """PyTorch's own mixed precision, or nothing for float32."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()


def compiled_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for the shapes at hand, with nothing left of what was compiled before."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


class Attention(nn.Module):
    """Luong's general or Bahdanau's additive attention over keys that are projected once a sentence."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.additive = sizes.attention == "additive"
        self.key = nn.Linear(2 * sizes.encoder, sizes.decoder, bias=self.additive)
        if self.additive:
            self.query = nn.Linear(sizes.decoder, sizes.decoder)
            self.v = nn.Linear(sizes.decoder, 1)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, padding: Tensor) -> Tensor:
        """``query [batch, q, decoder]`` gives contexts as wide as the values; padding is True or -inf added."""
        if self.additive:
            scores = self.v(torch.tanh(self.query(query)[:, :, None] + keys[:, None])).squeeze(-1)
        else:
            scores = torch.bmm(query, keys.transpose(1, 2))
        weights = torch.softmax(scores.masked_fill(padding[:, None], float("-inf")), dim=-1)
        return torch.bmm(weights, values)


class Translator(nn.Module):
    """Bidirectional GRU encoder, LSTM decoder with attention and input feeding."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.src_embed = nn.Embedding(sizes.vocab, sizes.embed, padding_idx=0)
        self.tgt_embed = nn.Embedding(sizes.vocab, sizes.embed, padding_idx=0)
        self.encoder = nn.GRU(sizes.embed, sizes.encoder, batch_first=True, bidirectional=True)
        self.bridge_hidden = nn.Linear(2 * sizes.encoder, sizes.decoder)
        self.bridge_cell = nn.Linear(2 * sizes.encoder, sizes.decoder)
        self.attention = Attention(sizes)
        self.input = nn.Linear(sizes.embed, 4 * sizes.decoder)
        self.recurrent = nn.Linear(2 * sizes.decoder, 4 * sizes.decoder, bias=False)  # of [hidden; fed]
        self.readout = nn.Linear(sizes.decoder, sizes.decoder)
        self.readout_context = nn.Linear(2 * sizes.encoder, sizes.decoder, bias=False)
        self.output = nn.Linear(sizes.decoder, sizes.vocab)

    def encode(self, src: Tensor, src_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs ``[batch, src_len, 2 * encoder]`` and the decoder's first hidden and cell state."""
        packed = nn.utils.rnn.pack_padded_sequence(self.src_embed(src), src_lengths, True, enforce_sorted=False)
        outputs, last = self.encoder(packed)
        outputs = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=src.shape[1])[0]
        last = torch.cat([last[0], last[1]], dim=-1)
        return outputs, torch.tanh(self.bridge_hidden(last)), self.bridge_cell(last)

    def cell(self, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's gates."""
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell

    def decode(self, tgt: Tensor, values: Tensor, padding: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """Features of every step, ``[batch, tgt_len, decoder]``, fed the true words."""
        inputs = F.pad(tgt[:, :-1], (1, 0), value=1)
        projected, keys = self.input(self.tgt_embed(inputs)), self.attention.key(values)
        values = self.readout_context(values)
        fed, features = torch.zeros_like(hidden), []
        for gates in projected.unbind(1):
            hidden, cell = self.cell(gates + self.recurrent(torch.cat([hidden, fed], dim=-1)), cell)
            context = self.attention(hidden[:, None], keys, values, padding)[:, 0]
            fed = torch.tanh(self.readout(hidden) + context)
            features.append(fed)
        return torch.stack(features, dim=1)

    def loss(self, features: Tensor, tgt: Tensor, index: Tensor | None) -> Tensor:
        """Mean smoothed cross-entropy of the real targets; without their index logits are computed for padding too."""
        features, labels = features.flatten(0, 1), tgt.flatten()
        if index is not None:
            features, labels = features[index], labels[index]
        return F.cross_entropy(self.output(features), labels, ignore_index=0, label_smoothing=SMOOTHING)


def training(sizes: Sizes, data: Data, *, compiled: bool = False, packed: bool = True) -> Work:
    """One update: gradient, clipping, fused Adam.

    Args:
      sizes: of the model.
      data: the batch.
      compiled: the decoder and the loss under ``torch.compile``; it leaves ``nn.GRU`` as it is.
      packed: computes logits for real targets only.
    """
    torch.manual_seed(0)
    model = Translator(sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    src, tgt, index = (torch.from_numpy(array).long() for array in (data.src, data.tgt, data.index))
    lengths, padding = torch.from_numpy(data.src_lengths).long(), torch.from_numpy(~data.src_mask)

    def after_encoder(values: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        features = model.decode(tgt, values, padding, hidden, cell)
        return model.loss(features, tgt, index if packed else None)

    decoder: Callable[..., Tensor] = compiled_alone(after_encoder) if compiled else after_encoder

    def call() -> None:
        with autocast(sizes.precision):
            loss = decoder(*model.encode(src, lengths))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Work(call)
