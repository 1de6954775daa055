"""Searches written plainly: all sequences, and a beam without tricks. Slow, and easy to believe."""

from __future__ import annotations

from attn_jax.decoding import Hypotheses
from attn_jax.models.protocol import EOS_ID

MAX_LEN, VOCAB = 4, 6


def divisor(length, penalty):
    return float(length) if penalty == "average" else ((5 + length) / 6) ** penalty


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


def brute_force(toy, batch, row, penalty, *, max_len=MAX_LEN, vocab=VOCAB, min_len=1):
    """Every sequence there is, best first: finished ones by score, then those cut at ``max_len``."""
    src, src_mask = batch.src[row], batch.src_mask[row]
    found = []

    def visit(prefix, log_prob):
        following = toy.log_probs_after(src, src_mask, prefix)
        length = len(prefix) + 1
        if length >= min_len:
            total = log_prob + following[EOS_ID]
            found.append(([*prefix, EOS_ID], total, total / divisor(length, penalty), True))
        for token in range(EOS_ID + 1, vocab):
            total = log_prob + following[token]
            if length == max_len:
                found.append(([*prefix, token], total, total / divisor(length, penalty), False))
            else:
                visit([*prefix, token], total)

    visit([], 0.0)
    return sorted(found, key=lambda one: (one[3], one[2]), reverse=True)


def plain_beam(toy, batch, row, penalty, *, max_len, vocab, beam, n_best):
    """Beam search in lists, which never stops early."""
    src, src_mask = batch.src[row], batch.src_mask[row]
    live, pool = [([], 0.0)], []
    for length in range(1, max_len + 1):
        grown = [
            ([*prefix, token], log_prob + following[token])
            for prefix, log_prob in live
            for following in [toy.log_probs_after(src, src_mask, prefix)]
            for token in range(EOS_ID, vocab)
        ]
        grown.sort(key=lambda one: one[1], reverse=True)
        pool += [(t, p, p / divisor(length, penalty), True) for t, p in grown[:beam] if t[-1] == EOS_ID]
        live = [one for one in grown if one[0][-1] != EOS_ID][:beam]
    pool.sort(key=lambda one: one[2], reverse=True)
    cut = [(t, p, p / divisor(max_len, penalty), False) for t, p in live]
    return (pool + cut)[:n_best]
