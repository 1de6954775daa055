import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from attn_jax.data.batching import (
    BatchConfig,
    BatchingError,
    Sequences,
    build_batches,
    choose_buckets,
    inference_batches,
    next_length,
)
from attn_jax.data.parallel import read_parallel
from attn_jax.data.subwords import SubwordVocabulary
from attn_jax.data.vocabulary import WordVocabulary
from attn_jax.models.protocol import EOS_ID, PAD_ID

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=120)


def corpus(lengths):
    """Pairs whose lengths, EOS included, are given, and whose ids tell them apart: pair i holds i + 10."""
    src, tgt = ([[i + 10] * (pair[side] - 1) for i, pair in enumerate(lengths)] for side in (0, 1))
    return Sequences.from_ids(src), Sequences.from_ids(tgt)


def random_lengths(n, seed=0, longest=60):
    """Lengths distributed much as those of image captions, in subwords."""
    rng = np.random.default_rng(seed)
    src = np.clip(rng.lognormal(2.6, 0.33, n), 2, longest).astype(int)
    return np.stack([src, np.clip(src * rng.lognormal(0, 0.15, n), 2, longest).astype(int)], axis=1)


def padded_cost(lengths, bounds):
    """Padded tokens if each pair goes to the cheapest bucket that holds it."""
    return sum(min(s + t for s, t in bounds if a <= s and b <= t) for a, b in lengths)


def test_sequences_by_hand():
    sequences = Sequences.from_ids([[7, 8], [], [9]])
    assert sequences.flat.tolist() == [7, 8, EOS_ID, EOS_ID, 9, EOS_ID]
    assert sequences.lengths.tolist() == [3, 1, 2] and len(sequences) == 3 and sequences[2].tolist() == [9, EOS_ID]
    values, mask = sequences.padded(np.array([2, -1, 0]), 4)
    assert values.tolist() == [[9, EOS_ID, PAD_ID, PAD_ID], [PAD_ID] * 4, [7, 8, EOS_ID, PAD_ID]]
    assert mask.sum(1).tolist() == [2, 0, 3] and mask.dtype == bool and values.dtype == np.int32


def test_sequences_of_features_are_padded_too():
    values, mask = Sequences(np.arange(6.0).reshape(3, 2), np.array([0, 1, 3])).padded(np.array([0, 1]), 2)
    assert values.tolist() == [[[0, 1], [0, 0]], [[2, 3], [4, 5]]] and mask.tolist() == [[True, False], [True, True]]


def test_sequences_from_texts():
    words = WordVocabulary.build(["the cat", "the dog"])
    assert Sequences.from_texts(["the dog", ""], words)[0].tolist() == [*words.encode("the dog"), EOS_ID]
    assert len(Sequences.from_texts([], words)) == 0


def test_buckets_by_hand():
    lengths = np.array([[2, 2]] * 5 + [[3, 3]] + [[10, 10]] * 4)
    assert choose_buckets(lengths, 1) == [(10, 10)]
    assert choose_buckets(lengths, 2) == [(3, 3), (10, 10)]
    assert choose_buckets(lengths, 8) == [(2, 2), (3, 3), (10, 10)]
    assert choose_buckets(lengths[:, :1], 2) == [(3,), (10,)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 4))
def test_the_dynamic_programme_finds_the_optimum_of_one_side(lengths, num_buckets):
    bounds = [b for (b,) in choose_buckets(np.array(lengths)[:, None], num_buckets)]
    cost = lambda bounds: sum(min(b for b in bounds if b >= n) for n in lengths)  # noqa: E731
    smaller = sorted(set(lengths))[:-1]
    every = (c for k in range(num_buckets) for c in itertools.combinations(smaller, k))
    assert cost(bounds) == min(cost([*c, max(lengths)]) for c in every)
    assert len(bounds) <= num_buckets


def test_optimal_buckets_beat_equal_widths():
    lengths = random_lengths(2000)
    equal = [(w, w) for w in np.linspace(0, lengths.max(), 9).astype(int)[1:]]
    chosen = choose_buckets(lengths, 8)
    real = lengths.sum()
    assert real / padded_cost(lengths, chosen) > 0.85 > real / padded_cost(lengths, equal)


def test_sides_of_unlike_scale():
    lengths = random_lengths(1000) * [1, 5]
    assert lengths.sum() / padded_cost(lengths, choose_buckets(lengths, 8)) > 0.85


@settings(max_examples=40, deadline=None)
@example([(3, 3)] * 30, 62, 1, 0)  # ten pairs fit into the budget, eight are taken
@given(LENGTHS, st.integers(60, 400), st.integers(1, 5), st.integers(0, 3))
def test_each_pair_once_an_epoch_in_the_promised_shapes(lengths, batch_tokens, num_buckets, epoch):
    assume(any(max(pair) <= 28 for pair in lengths))
    src, tgt = corpus(lengths)
    batches = build_batches(src, tgt, BatchConfig(batch_tokens=batch_tokens, num_buckets=num_buckets, max_len=28))
    plan = batches.epoch_plan(seed=3, epoch=epoch)
    assert len(plan) == batches.steps_per_epoch and len(batches.buckets) <= num_buckets
    rows = np.concatenate([entry.rows for entry in plan])
    kept = [i for i, pair in enumerate(lengths) if max(pair) <= 28]
    assert sorted(rows[rows >= 0]) == kept and sorted([*kept, *batches.too_long]) == list(range(len(lengths)))
    shapes = set()
    for entry in plan:
        batch, bucket = batches.make_batch(entry), batches.buckets[entry.bucket]
        assert batch.src.shape == batch.src_mask.shape == (bucket.batch_size, bucket.src_len)
        assert batch.tgt.shape == batch.tgt_mask.shape == (bucket.batch_size, bucket.tgt_len)
        assert batch.tgt_index.shape == (bucket.capacity,) and batch.tgt_index.dtype == np.int32
        tokens = bucket.src_len + bucket.tgt_len
        assert bucket.batch_size * tokens <= batch_tokens
        assert bucket.batch_size % 8 == 0 or 8 * tokens > batch_tokens
        real = batch.tgt_index[batch.tgt_index < batch.tgt.size]
        assert real.tolist() == np.flatnonzero(batch.tgt_mask).tolist()  # every real token, once: capacity is enough
        assert (batch.tgt_index[len(real) :] == batch.tgt.size).all()
        for row, s, t, s_mask, t_mask in zip(
            entry.rows, batch.src, batch.tgt, batch.src_mask, batch.tgt_mask, strict=True
        ):
            assert s[s_mask].tolist() == (src[row].tolist() if row >= 0 else [])
            assert t[t_mask].tolist() == (tgt[row].tolist() if row >= 0 else [])
            assert not s[~s_mask].any() and not t[~t_mask].any()
        shapes.add((batch.src.shape, batch.tgt.shape, batch.tgt_index.shape))
    assert len(shapes) <= len(batches.buckets)


@pytest.fixture(scope="module")
def batches():
    return build_batches(*corpus(random_lengths(5000)), BatchConfig(batch_tokens=1024))


def test_the_order_is_a_function_of_seed_and_epoch(batches):
    def order(seed, epoch):
        return np.concatenate([entry.rows for entry in batches.epoch_plan(seed, epoch)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(s, e)) for s, e in itertools.product(range(3), range(3))}) == 9


def test_buckets_are_shuffled_together(batches):
    buckets = [entry.bucket for entry in batches.epoch_plan(0, 0)]
    changes = np.count_nonzero(np.diff(buckets))
    assert changes > len(buckets) / 2


@pytest.mark.parametrize("lengths", [[(25, 24)] * 24, [(25, n) for n in range(1, 25)]])
def test_every_row_meets_the_others(lengths):
    """Equal lengths must change strata, distinct ones batches; three in one stratum of three never meet."""
    batches = build_batches(*corpus(lengths), BatchConfig(batch_tokens=8 * 50, num_buckets=1))
    assert batches.buckets[0].batch_size == 8 and batches.steps_per_epoch == 3
    met = set()
    for epoch in range(30):
        met |= {int(i) for entry in batches.epoch_plan(0, epoch) if 4 in entry.rows for i in entry.rows}
    assert len(met) == (24 if len(set(lengths)) == 1 else 22)


def test_any_step_is_found_without_replaying(batches):
    n = batches.steps_per_epoch
    for start in (0, 1, n - 1, n, 2 * n + 3):
        for step, batch in zip(range(start, start + 2), batches.stream(seed=4, start=start), strict=False):
            again = batches.batch_at(seed=4, step=step)
            assert all(
                np.array_equal(getattr(batch, k), getattr(again, k)) for k in ("src", "tgt", "tgt_index", "src_mask")
            )


def test_little_is_padding(batches):
    shares = batches.shares()
    assert shares["tokens"] > 0.84 and shares["packed"] > 0.93 and shares["rows"] > 0.98
    plan = [batches.make_batch(entry) for entry in batches.epoch_plan(0, 0)]
    real = sum(batch.src_mask.sum() + batch.tgt_mask.sum() for batch in plan)
    assert shares["tokens"] == pytest.approx(real / sum(batch.src.size + batch.tgt.size for batch in plan))
    assert shares["packed"] == pytest.approx(
        sum(batch.tgt_mask.sum() for batch in plan) / sum(batch.tgt_index.size for batch in plan)
    )


def test_batches_of_a_bucket_hold_like_numbers_of_tokens(batches):
    """Dealing from strata: two batches differ by less than the longest target, however they are drawn."""
    plan = batches.epoch_plan(0, 7)
    for number, bucket in enumerate(batches.buckets):
        totals = [batches.tgt.lengths[e.rows[e.rows >= 0]].sum() for e in plan if e.bucket == number]
        assert max(totals) - min(totals) <= bucket.tgt_len


def test_a_pair_larger_than_the_budget_is_an_error():
    src, tgt = corpus([(3, 3), (30, 30)])
    with pytest.raises(BatchingError, match="batch_tokens 50 cannot hold one pair of 30 and 30 tokens; raise it to 60"):
        build_batches(src, tgt, BatchConfig(batch_tokens=50))
    assert build_batches(src, tgt, BatchConfig(batch_tokens=50, max_len=25)).too_long.tolist() == [1]


def test_what_cannot_be_batched():
    src, tgt = corpus([(3, 3), (4, 4)])
    with pytest.raises(BatchingError, match="found 2 and 1"):
        build_batches(src, corpus([(3, 3)])[1])
    with pytest.raises(BatchingError, match="none of the 2 pairs has at most max_len 2"):
        build_batches(src, tgt, BatchConfig(max_len=2))
    with pytest.raises(BatchingError, match="num_buckets"):
        BatchConfig(num_buckets=0)
    with pytest.raises(BatchingError, match="sequences"):
        choose_buckets(np.zeros((0, 2), int))


def test_grid_of_lengths():
    grid = sorted({next_length(n) for n in range(1, 200)})
    assert grid == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(n <= next_length(n) <= max(8, 1.5 * n) for n in range(1, 200))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), max_size=80), st.integers(1, 300))
def test_inference_batches_give_each_sentence_once(lengths, batch_tokens):
    src, _ = corpus([(n, 1) for n in lengths])
    seen, shapes = [], set()
    for indices, batch in inference_batches(src, batch_tokens):
        assert batch.tgt is None and len(indices) <= len(batch.src)
        assert batch.src.size <= batch_tokens or len(batch.src) == 1
        assert batch.src_mask[len(indices) :].sum() == 0
        for row, index in enumerate(indices):
            assert batch.src[row, batch.src_mask[row]].tolist() == src[index].tolist()
        seen += indices.tolist()
        shapes.add(batch.src.shape)
    assert sorted(seen) == list(range(len(lengths)))
    assert len(shapes) <= len({next_length(n) for n in range(1, max(lengths, default=1) + 1)}) + 1


@pytest.mark.skipif("ATTN_JAX_DATA" not in os.environ, reason="set ATTN_JAX_DATA to the folder that holds multi30k")
def test_multi30k_reaches_the_shares_of_the_design():
    folder = Path(os.environ["ATTN_JAX_DATA"]) / "multi30k"
    text = read_parallel(folder / "train.de.gz", folder / "train.en.gz")
    assert len(text) == 29_000 and not text.report.skipped
    vocabulary = SubwordVocabulary.train(text.src + text.tgt, vocab_size=8000, lowercase=True)
    sides = (Sequences.from_texts(side, vocabulary) for side in (text.src, text.tgt))
    batches = build_batches(*sides)
    shares = batches.shares()
    assert len(batches.buckets) <= 8 and shares["tokens"] > 0.86 and shares["packed"] > 0.97 and shares["rows"] > 0.98
