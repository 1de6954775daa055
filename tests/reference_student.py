"""A student of Bergamot in NumPy, from Marian's tensors and in Marian's names: one sentence, unpadded, step by step.

It follows Marian's C++ (src/models/transformer.h, src/rnn/cells.h, src/layers/generic.h) and shares no code with the
library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


def positions(count, width):
    timescales = width // 2
    angles = np.arange(count)[:, None] * np.exp(-np.arange(timescales) * np.log(10000.0) / (timescales - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)


def softmax(scores):
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


@dataclass
class ReferenceStudent:
    tensors: dict[str, np.ndarray]
    heads: int
    encoder_layers: int
    decoder_layers: int
    activation: Any = lambda x: np.maximum(x, 0)

    @property
    def embedding(self):
        return self.tensors["Wemb"]

    def affine(self, x, prefix, kind):
        return x @ self.tensors[f"{prefix}_W{kind}"] + self.tensors[f"{prefix}_b{kind}"]

    def add_and_norm(self, x, change, prefix):
        total = x + change
        centred = total - total.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scale, bias = self.tensors[f"{prefix}_ln_scale"], self.tensors[f"{prefix}_ln_bias"]
        return centred / np.sqrt(variance + 1e-6) * scale + bias

    def attend(self, prefix, queries, keys):
        """Outputs ``[q_len, d]`` and weights ``[heads, q_len, kv_len]``."""

        def split(x):
            return x.reshape(len(x), self.heads, -1).swapaxes(0, 1)

        q, k, v = (split(self.affine(x, prefix, kind)) for x, kind in ((queries, "q"), (keys, "k"), (keys, "v")))
        weights = softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        return self.affine((weights @ v).swapaxes(0, 1).reshape(len(queries), -1), prefix, "o"), weights

    def feed_forward(self, x, prefix):
        hidden = self.activation(self.affine(x, prefix, "1"))
        return self.add_and_norm(x, self.affine(hidden, prefix, "2"), f"{prefix}_ffn")

    def encode(self, ids):
        """States ``[src_len, d]`` and the attention ``[layers, heads, src_len, src_len]``."""
        width = self.embedding.shape[1]
        x, looked = self.embedding[ids] * np.sqrt(width) + positions(len(ids), width), []
        for layer in range(1, self.encoder_layers + 1):
            outputs, weights = self.attend(f"encoder_l{layer}_self", x, x)
            x = self.add_and_norm(x, outputs, f"encoder_l{layer}_self_Wo")
            x = self.feed_forward(x, f"encoder_l{layer}_ffn")
            looked.append(weights)
        return x, np.stack(looked)

    def steps(self, source, choose, limit):
        """Writes up to ``limit`` tokens: ``choose(step, logits)`` says which. Gives tokens, logits, cross-attention."""
        width = self.embedding.shape[1]
        cells = [np.zeros((1, width), np.float32) for _ in range(self.decoder_layers)]
        last, tokens, rows, looked = np.zeros((1, width), np.float32), [], [], []
        for step in range(limit):
            x, maps = last * np.sqrt(width) + positions(step + 1, width)[step:], []
            for layer in range(1, self.decoder_layers + 1):
                prefix = f"decoder_l{layer}_rnn"
                forget = 1 / (1 + np.exp(-self.affine(x, prefix, "f")))
                new = x @ self.tensors[f"{prefix}_W"]
                cells[layer - 1] = forget * cells[layer - 1] + (1 - forget) * new
                x = self.add_and_norm(x, np.maximum(cells[layer - 1], 0), f"{prefix}_ffn")
                outputs, weights = self.attend(f"decoder_l{layer}_context", x, source)
                x = self.add_and_norm(x, outputs, f"decoder_l{layer}_context_Wo")
                x = self.feed_forward(x, f"decoder_l{layer}_ffn")
                maps.append(weights[:, 0])
            logits = (x @ self.embedding.T + self.tensors["decoder_ff_logit_out_b"])[0]
            tokens.append(int(choose(step, logits)))
            rows.append(logits)
            looked.append(maps)
            if tokens[-1] == 0:
                break
            last = self.embedding[tokens[-1:]]
        return tokens, np.stack(rows), np.moveaxis(np.array(looked), 0, 2)  # [layers, heads, steps, src_len]

    def greedy(self, ids, limit, allowed=None):
        """The most likely tokens for source ``ids`` (with their 0 at the end), of those ``allowed``; 0 ends them."""
        source, _ = self.encode(ids)
        ids_of = np.arange(len(self.embedding)) if allowed is None else allowed
        return self.steps(source, lambda step, logits: ids_of[logits[ids_of].argmax()], limit)[0]
