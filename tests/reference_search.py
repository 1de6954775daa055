"""Searches written plainly: all sequences, and a beam without tricks. Slow, and easy to believe."""

from __future__ import annotations

from collections import Counter

import numpy as np

from attn_jax.decoding import Hypotheses
from attn_jax.models.protocol import EOS_ID

MAX_LEN, VOCAB = 4, 6


def divisor(length, penalty):
    return float(length) if penalty == "average" else ((5 + length) / 6) ** penalty


class Sentence:
    """A row of a batch under the rules of a search."""

    def __init__(self, toy, batch, row, penalty=0.0, *, min_len=1, coverage=0.0, ngram=0, prefix=(), limit=0,
                 forced_end=False, renormalize=False):  # fmt: skip
        self.toy, self.src, self.mask = toy, batch.src[row], batch.src_mask[row]
        self.penalty, self.min_len, self.coverage, self.ngram = penalty, min_len, coverage, ngram
        self.limit, self.forced_end, self.renormalize = limit, forced_end, renormalize
        self.prefix = [token for token in prefix if token]

    def following(self, tokens, vocab):
        """(token, log-probability) of all that may follow."""
        log_probs = self.toy.log_probs_after(self.src, self.mask, tokens)
        if len(tokens) < len(self.prefix):
            forced = self.prefix[len(tokens)]
            return [(forced, log_probs[forced])]
        if self.forced_end and len(tokens) + 1 == self.limit:
            return [(EOS_ID, 0.0)]
        possible = [
            (token, log_probs[token])
            for token in range(EOS_ID, vocab)
            if not (token == EOS_ID and len(tokens) + 1 < self.min_len) and not self.repeats([*tokens, token])
        ]
        lost = np.log(sum(np.exp(p) for _, p in possible)) if self.renormalize and possible else 0.0
        return [(token, p - lost) for token, p in possible]

    def repeats(self, tokens):
        grams = [tuple(tokens[i : i + self.ngram]) for i in range(len(tokens) - self.ngram + 1)]
        return bool(self.ngram) and grams[-1:] and grams[-1] in grams[:-1]

    def outcome(self, tokens, log_prob):
        """(tokens, log_prob, score, finished)."""
        score = log_prob / divisor(len(tokens), self.penalty)
        if self.coverage:
            looked = sum(self.toy.weights_after(self.src, self.mask, tokens[:t]) for t in range(len(tokens)))
            score += self.coverage * np.log(np.clip(looked[self.mask], 1e-6, 1.0)).sum()
        return tokens, log_prob, score, tokens[-1] == EOS_ID


def outcomes(hypotheses: Hypotheses, row: int):
    """(tokens, log_prob, score, finished) of each hypothesis of a row that exists."""
    return [
        (
            hypotheses.tokens[row, i, :length].tolist(),
            *(float(x[row, i]) for x in (hypotheses.log_probs, hypotheses.scores)),
            bool(hypotheses.finished[row, i]),
        )
        for i, length in enumerate(hypotheses.lengths[row].tolist())
        if length
    ]


def in_order(found):
    return sorted(found, key=lambda one: (one[3], one[2]), reverse=True)


def brute_force(toy, batch, row, penalty, *, max_len=MAX_LEN, vocab=VOCAB, **rules):
    """Every sequence there is, best first: finished ones by score, then those cut at ``max_len``."""
    sentence, found = Sentence(toy, batch, row, penalty, limit=max_len, **rules), []

    def visit(tokens, log_prob):
        if tokens and (tokens[-1] == EOS_ID or len(tokens) == max_len):
            found.append(sentence.outcome(tokens, log_prob))
        else:
            for token, more in sentence.following(tokens, vocab):
                visit([*tokens, token], log_prob + more)

    visit([], 0.0)
    return in_order(found)


def plain_beam(toy, batch, row, penalty, *, max_len, vocab, beam, n_best, groups=1, diversity=0.0, tree=None, **rules):
    """Beam search in lists, which never stops early; ``tree`` collects every hypothesis it goes through."""
    sentence, width, n = Sentence(toy, batch, row, penalty, limit=max_len, **rules), beam // groups, n_best // groups
    live, pools = [[([], 0.0)] for _ in range(groups)], [[] for _ in range(groups)]
    for _ in range(max_len):
        used = Counter()
        for group in range(groups):
            grown = [
                ([*tokens, token], log_prob + more, log_prob + more - (token != EOS_ID) * diversity * used[token])
                for tokens, log_prob in live[group]
                for token, more in sentence.following(tokens, vocab)
            ]
            grown.sort(key=lambda one: one[2], reverse=True)
            ended = [sentence.outcome(t, p) for t, p, _ in grown[:width] if t[-1] == EOS_ID]
            live[group] = [(t, p) for t, p, _ in grown if t[-1] != EOS_ID][:width]
            pools[group] += ended
            if tree is not None:
                tree += [(tuple(t), p) for t, p, *_ in (*ended, *live[group])]
            used.update(t[-1] for t, _ in live[group])
    found = []
    for pool, cut in zip(pools, live, strict=True):
        found += (in_order(pool) + in_order(sentence.outcome(t, p) for t, p in cut))[:n]
    return in_order(found)
