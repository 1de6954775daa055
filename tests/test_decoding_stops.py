"""When a beam is done, how it ends at its limit, what renormalising does: against a beam in lists; and less room."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from attn_jax.decoding import beam_search, greedy
from attn_jax.models.protocol import EOS_ID
from tests.reference_search import Sentence
from tests.toy_decoder import ToyDecoder, random_batch, random_tables

VOCAB, MAX_LEN, BEAM, ROWS = 9, 8, 4, 16


@partial(jax.jit, static_argnames=("search", "room", "options"))
def searched(tables, batch, penalty, limits, *, search=beam_search, room=MAX_LEN, options=()):
    toy = ToyDecoder(tables)
    rules = {"max_len": MAX_LEN, "row_max_len": limits, "room": room, "length_penalty": penalty, **dict(options)}
    return search(toy.step, toy.start(batch, room), **rules)


def plain(toy, batch, row, penalty, limit, *, stop, **rules):
    """The pool of a sentence, best first: (tokens, score); and whether it stopped before its limit."""
    sentence, live, pool = Sentence(toy, batch, row, limit=limit, **rules), [([], 0.0)], []
    for length in range(1, limit + 1):
        grown = [
            ([*tokens, token], log_prob + p)
            for tokens, log_prob in live
            for token, p in sentence.following(tokens, VOCAB)
        ]
        grown.sort(key=lambda one: one[1], reverse=True)
        pool += [(tokens, p / length**penalty) for tokens, p in grown[:BEAM] if tokens[-1] == EOS_ID]
        pool = sorted(pool, key=lambda one: one[1], reverse=True)[:BEAM]
        live = [one for one in grown if one[0][-1] != EOS_ID][:BEAM]
        hopeless = not live or live[0][1] / length**penalty <= pool[-1][1] if len(pool) == BEAM else False
        if len(pool) == BEAM and (stop == "full" or hopeless):
            return pool, length < limit
    return pool, False


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    "options",
    [{"stop": "current", "forced_end": True}, {"stop": "full"}, {"stop": "current", "renormalize": True, "min_len": 1}],
    ids=["current", "full", "renormalised"],
)
def test_against_lists(options, penalty):
    tables, batch = random_tables(3, vocab=VOCAB, positions=MAX_LEN, spread=1.5), random_batch(3, rows=ROWS)
    limits = np.arange(ROWS) % 4 + MAX_LEN - 3
    compiled = {"beam": BEAM, "n_best": BEAM, "length_offset": 0.0, **options}
    found = jax.device_get(searched(tables, batch, penalty, limits, options=tuple(compiled.items())))
    stopped = 0
    for row in range(ROWS):
        expected, early = plain(ToyDecoder(tables), batch, row, penalty, int(limits[row]), **options)
        stopped += early
        finished = found.finished[row]
        tokens = [t[:n].tolist() for t, n in zip(found.tokens[row], found.lengths[row], strict=True)]
        assert tokens[: finished.sum()] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose(found.scores[row][finished], [score for _, score in expected], atol=2e-5)
        if options.get("forced_end"):
            assert finished.all()
    assert stopped or penalty or options.get("renormalize")  # a penalty favours length


@pytest.mark.parametrize("search", [beam_search, greedy])
def test_less_room(search):
    """What is settled with less room is what it is with all of it, and all is settled with all."""
    tables, batch = random_tables(4, vocab=VOCAB, positions=MAX_LEN, spread=1.5), random_batch(4, rows=ROWS)
    options = (("beam", 2), ("n_best", 2), ("stop", "current")) if search is beam_search else ()
    limits = np.full(ROWS, MAX_LEN)
    run = partial(searched, tables, batch, 1.0, limits, search=search, options=options)
    whole, small = jax.device_get((run(), run(room=5)))
    settled = small.settled.all(-1)
    assert whole.settled.all() and 0 < settled.sum() < ROWS and small.tokens.shape[-1] == 5
    np.testing.assert_array_equal(whole.tokens[settled][..., :5], small.tokens[settled])
    assert not whole.tokens[settled][..., 5:].any()
    np.testing.assert_allclose(whole.scores[settled], small.scores[settled], atol=1e-6)


def test_an_unknown_stop():
    with pytest.raises(ValueError, match="stop must be one of safe, current, full, found 'soon'"):
        beam_search(None, None, max_len=3, stop="soon")
