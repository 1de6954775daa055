"""The synthetic tasks: each answer recomputed, sizes and errors."""

import numpy as np
import pytest

from attn_jax.data import tasks


def test_copy_repeats_the_source_in_its_own_memory():
    src, tgt = tasks.copy_task(5, (2, 7), num_symbols=3, seed=1)
    assert all((x == y).all() and not np.shares_memory(x, y) for x, y in zip(src, tgt, strict=True))


def test_reverse_of_a_hand_checked_draw():
    src, tgt = tasks.reverse_task(2, 3, num_symbols=5, seed=0)
    assert [ids.tolist() for ids in src] == [[8, 7, 6], [5, 5, 4]]
    assert [ids.tolist() for ids in tgt] == [[6, 7, 8], [4, 5, 5]]


@pytest.mark.parametrize("task", [tasks.copy_task, tasks.reverse_task])
def test_lengths_and_symbols_fill_their_ranges(task):
    src, tgt = task(400, (2, 5), num_symbols=4, seed=3)
    assert {len(ids) for ids in src} == {2, 3, 4, 5}
    assert set(np.concatenate(src).tolist()) == {4, 5, 6, 7}
    assert [len(ids) for ids in src] == [len(ids) for ids in tgt]
    assert {ids.dtype for ids in (*src, *tgt)} == {np.dtype(np.int32)}


def test_first_token():
    src, first = tasks.first_token_task(500, seed=2)
    assert src.shape == (500, 20)
    assert src.dtype == np.int32
    np.testing.assert_array_equal(first, src[:, 0])
    assert np.unique(src).tolist() == [1, 2, 3, 4]


def test_even_sum_counts_every_other_position_from_the_first():
    inputs, labels = tasks.even_sum_task(1000, seed=4)
    assert inputs.shape == (1000, 10, 5)
    sums = sum(inputs[:, position].astype(np.float64).sum(axis=1) for position in (0, 2, 4, 6, 8))
    np.testing.assert_array_equal(labels, (sums > 0).astype(np.int32))
    assert abs(labels.mean() - 0.5) < 0.05
    assert abs(inputs.mean()) < 0.02
    assert abs(inputs.std() - 1) < 0.02


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: tasks.copy_task(8, (1, 9), 6, seed).src,
        lambda seed: tasks.reverse_task(8, (1, 9), 6, seed).tgt,
        lambda seed: tasks.first_token_task(8, seed=seed),
        lambda seed: tasks.even_sum_task(8, seed=seed),
    ],
)
def test_a_pure_function_of_the_seed(draw):
    assert all((x == y).all() for x, y in zip(draw(7), draw(7), strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(draw(7), draw(8), strict=True))


def test_no_sequences():
    assert tasks.copy_task(0, 3, 2) == ([], [])
    assert tasks.even_sum_task(0)[0].shape == (0, 10, 5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: tasks.copy_task(-1, 3, 2),
        lambda: tasks.copy_task(1, 0, 2),
        lambda: tasks.reverse_task(1, (5, 3), 2),
        lambda: tasks.reverse_task(1, 3, 0),
        lambda: tasks.first_token_task(1, length=0),
        lambda: tasks.even_sum_task(1, features=0),
    ],
)
def test_sizes_that_describe_no_task(call):
    with pytest.raises(ValueError, match="expected num >= 0"):
        call()
