"""Batches: few static shapes, little padding, and an order that is a pure function of (seed, epoch).

Pairs are put into *buckets* of similar lengths. A bucket has one static shape ``(batch_size, src_len, tgt_len)`` and so
costs one compilation. Its rows are dealt into batches in *strata*: sorted by target length, cut into ``batch_size``
strata of equal size, one row of each stratum to each batch, at random within the stratum. So

* each pair occurs exactly once an epoch, nothing is dropped and no batch is partial: the few rows that are missing
  from ``batch_size * num_batches`` are spread as empty rows (masks all False) over the batches;
* every batch of a bucket holds almost the same number of real target tokens, at most the sum of the strata's
  maxima in any epoch: the static ``capacity`` of the packed positions ``Batch.tgt_index``;
* the number of steps of an epoch is a constant, so that step ``n`` is found without replaying the steps before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from attn_jax.data.errors import BatchingError
from attn_jax.data.vocabulary import Vocabulary
from attn_jax.data.words import TokenLinks
from attn_jax.models.protocol import EOS_ID, PAD_ID, Batch

CHUNK = 10_000
"""Sentences that are encoded at once: bounds the memory that Python lists of ids take."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Many sequences as one flat array: sequence ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.

    Attributes:
      flat: ``[total]`` int32 ids, each sequence ending with ``EOS_ID``; or ``[total, features]`` floats.
      offsets: ``[n + 1]`` int64.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_ids(cls, sequences: Iterable[list[int]]) -> Self:
        """Packs lists of ids and appends ``EOS_ID`` to each.

        >>> Sequences.from_ids([[7, 8], []]).flat.tolist()
        [7, 8, 2, 2]
        """
        flats, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        for chunk in _chunks(sequences):
            flats.append(np.fromiter(itertools.chain.from_iterable((*ids, EOS_ID) for ids in chunk), np.int32))
            lengths.append(np.array([len(ids) + 1 for ids in chunk], np.int64))
        return cls(np.concatenate(flats), np.cumsum(np.concatenate(lengths)))

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocabulary: Vocabulary) -> Self:
        """Encodes sentences, chunk by chunk, and appends ``EOS_ID`` to each."""
        return cls.from_ids(ids for chunk in _chunks(texts) for ids in vocabulary.encode_batch(chunk))

    @property
    def lengths(self) -> np.ndarray:
        """``[n]``: the length of each sequence, ``EOS_ID`` included."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence ``index``, a view."""
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def padded(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Gives the sequences ``rows [batch]``, padded to ``length``, and their mask; row -1 is an empty row.

        Returns:
          ``[batch, length, ...]`` values, ``PAD_ID`` (0) where the mask ``[batch, length]`` is False.
        """
        starts = self.offsets[rows]
        sizes = np.where(rows >= 0, self.offsets[rows + 1] - starts, 0)
        columns = np.arange(length)
        mask = columns < sizes[:, None]  # [batch, length]
        values = self.flat[np.where(mask, starts[:, None] + columns, 0)]
        values[~mask] = PAD_ID
        return values, mask


def choose_buckets(lengths: np.ndarray, num_buckets: int = 8) -> list[tuple[int, ...]]:
    """Chooses length bounds with the least padding: minimises sum over buckets of count * (src_max + tgt_max).

    Pairs are ordered by ``max(src / mean src, tgt / mean tgt)``, which keeps both sides of a bucket short, and cut by
    dynamic programming over the distinct values of that key, so that the time does not grow with the corpus.

    Args:
      lengths: ``[n, 2]`` source and target lengths in tokens, or ``[n, 1]`` for one side.
      num_buckets: the largest number of buckets, and so of compilations.

    Returns:
      At most ``num_buckets`` bounds ``(src_max, tgt_max)``, shortest first.

    Raises:
      BatchingError: without sequences or buckets.

    >>> [tuple(map(int, b)) for b in choose_buckets(np.array([[2, 2], [2, 3], [9, 8]]), num_buckets=2)]
    [(2, 3), (9, 8)]
    """
    lengths = np.asarray(lengths)
    if len(lengths) == 0 or num_buckets < 1:
        raise BatchingError(f"expected sequences and num_buckets >= 1, found {len(lengths)} and {num_buckets}")
    keys, group = np.unique((lengths / lengths.mean(0)).max(1).round(3), return_inverse=True)
    m = len(keys)
    longest = np.zeros((m, lengths.shape[1]), int)
    np.maximum.at(longest, group, lengths)
    before = np.concatenate([[0], np.cumsum(np.bincount(group))])  # [m + 1] sequences before each key
    cost = np.full((m, m + 1), np.inf)  # cost[i, j]: padded tokens of one bucket that holds the keys i .. j - 1
    for i in range(m):
        cost[i, i + 1 :] = np.maximum.accumulate(longest[i:]).sum(1) * (before[i + 1 :] - before[i])
    best, cuts = np.full(m + 1, np.inf), []  # best[j]: least cost of the keys before j in as many buckets as cuts
    best[0] = 0
    for _ in range(min(num_buckets, m)):  # one more bucket never costs more
        total = best[:m, None] + cost
        cuts.append(total.argmin(0))
        best = total.min(0)
    bounds, end = [], m
    for cut in reversed(cuts):
        start = int(cut[end])
        bounds.append(tuple(int(n) for n in longest[start:end].max(0)))
        end = start
    return bounds[::-1]


class Bucket(NamedTuple):
    """One static shape and the pairs that go into it.

    Attributes:
      src_len, tgt_len: padded lengths in tokens.
      batch_size: rows of each batch.
      num_batches: batches of an epoch.
      capacity: entries of ``Batch.tgt_index``; no batch has more real target tokens.
      rows: indices of the pairs, by ascending target length.
      links: entries of ``Batch.links``; no batch has more.
    """

    src_len: int
    tgt_len: int
    batch_size: int
    num_batches: int
    capacity: int
    rows: np.ndarray
    links: int = 0


class Entry(NamedTuple):
    """One batch of an epoch's plan: the bucket's number and ``[batch_size]`` indices of pairs, -1 for an empty row."""

    bucket: int
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How to batch.

    Attributes:
      batch_tokens: the budget of a batch: ``batch_size * (src_len + tgt_len)``, padding included, is at most this.
      num_buckets: the largest number of shapes, and so of compilations.
      max_len: a pair with a longer side (in tokens, ``EOS_ID`` included) is left out, and counted.
      row_multiple: batch sizes are multiples of this where the budget allows.
      capacity_multiple: so are the sizes of the packed target buffers.
    """

    batch_tokens: int = 2048
    num_buckets: int = 8
    max_len: int = 128
    row_multiple: int = 8
    capacity_multiple: int = 16

    def __post_init__(self):
        """Checks that every number is positive."""
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise BatchingError(f"expected {name} to be an integer >= 1, found {value!r}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Batches:
    """A batched parallel corpus; build it with :func:`build_batches`.

    Attributes:
      src, tgt: the sequences.
      buckets: the shapes, shortest first.
      too_long: indices of the pairs that were left out because a side is longer than ``max_len``.
      links: which of their tokens belong together, for guided alignment; or None.
    """

    src: Sequences
    tgt: Sequences
    buckets: tuple[Bucket, ...]
    too_long: np.ndarray
    links: TokenLinks | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the same in each."""
        return sum(bucket.num_batches for bucket in self.buckets)

    def epoch_plan(self, seed: int, epoch: int) -> list[Entry]:
        """Gives the batches of an epoch in order: a pure function of (seed, epoch), each pair exactly once."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
        lengths, plan = self.tgt.lengths, []
        for number, bucket in enumerate(self.buckets):
            rows = rng.permutation(bucket.rows)  # so that pairs of equal length change strata between epochs
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            empty = np.full(bucket.batch_size * bucket.num_batches - len(rows), -1)
            strata = np.concatenate([empty, rows]).reshape(bucket.batch_size, bucket.num_batches)
            plan += [Entry(number, batch) for batch in rng.permuted(strata, axis=1).T]
        return [plan[i] for i in rng.permutation(len(plan))]

    def make_batch(self, entry: Entry) -> Batch:
        """Gathers the sequences of one entry of a plan into NumPy arrays of the bucket's static shape."""
        bucket = self.buckets[entry.bucket]
        src, src_mask = self.src.padded(entry.rows, bucket.src_len)
        tgt, tgt_mask = self.tgt.padded(entry.rows, bucket.tgt_len)
        positions = np.flatnonzero(tgt_mask)
        tgt_index = np.full(bucket.capacity, tgt_mask.size, np.int32)
        tgt_index[: len(positions)] = positions
        links = None if self.links is None else self.links.padded(entry.rows, bucket.links)
        return Batch(src=src, src_mask=src_mask, tgt=tgt, tgt_mask=tgt_mask, tgt_index=tgt_index, links=links)

    def batch_at(self, seed: int, step: int) -> Batch:
        """Gives the batch of a step, counted from 0 over all epochs. In a loop, :meth:`stream` is faster."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self.make_batch(self.epoch_plan(seed, epoch)[index])

    def stream(self, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of the steps ``start, start + 1, ...`` without end."""
        first, skip = divmod(start, self.steps_per_epoch)
        for epoch in itertools.count(first):
            for entry in self.epoch_plan(seed, epoch)[skip if epoch == first else 0 :]:
                yield self.make_batch(entry)

    def shares(self) -> dict[str, float]:
        """Gives the real share of what is computed in an epoch: of padded tokens, of packed positions, of rows."""
        kept = np.concatenate([bucket.rows for bucket in self.buckets])
        real_src, real_tgt = self.src.lengths[kept].sum(), self.tgt.lengths[kept].sum()
        rows = sum(b.num_batches * b.batch_size for b in self.buckets)
        padded = sum(b.num_batches * b.batch_size * (b.src_len + b.tgt_len) for b in self.buckets)
        packed = sum(b.num_batches * b.capacity for b in self.buckets)
        shares = {"tokens": (real_src + real_tgt) / padded, "packed": real_tgt / packed, "rows": len(kept) / rows}
        return {name: float(share) for name, share in shares.items()}


def build_batches(
    src: Sequences, tgt: Sequences, config: BatchConfig = BatchConfig(), links: TokenLinks | None = None
) -> Batches:
    """Puts the pairs of a parallel corpus into buckets of static shape.

    Args:
      src: the source sequences.
      tgt: the target sequences, as many.
      config: the token budget and the number of shapes.
      links: which of their tokens belong together; None: not known.

    Raises:
      BatchingError: if the sides differ in number, if no pair fits into ``max_len``, or one exceeds ``batch_tokens``.

    >>> pairs = Sequences.from_ids([[5], [5, 6], [5, 6, 7]])
    >>> batches = build_batches(pairs, pairs, BatchConfig(num_buckets=1, batch_tokens=16, max_len=8))
    >>> [batches.make_batch(entry).src.shape for entry in batches.epoch_plan(seed=0, epoch=0)]
    [(2, 4), (2, 4)]
    """
    if len(src) != len(tgt):
        raise BatchingError(f"expected as many source as target sequences, found {len(src)} and {len(tgt)}")
    lengths = np.stack([src.lengths, tgt.lengths], axis=1)  # [n, 2]
    fits = (lengths <= config.max_len).all(1)
    if not fits.any():
        raise BatchingError(
            f"none of the {len(src)} pairs has at most max_len {config.max_len} tokens a side; raise max_len"
        )
    bounds = np.array(choose_buckets(lengths[fits], config.num_buckets))  # [buckets, 2]
    home = np.full(len(src), -1)
    for number in np.argsort(-bounds.sum(1), kind="stable"):  # largest first: a pair ends in the smallest that holds it
        home[(lengths <= bounds[number]).all(1)] = number
    by_length = np.argsort(lengths[:, 1], kind="stable")
    groups = [by_length[home[by_length] == number] for number in range(len(bounds))]
    buckets = [
        _bucket(int(s), int(t), rows, tgt.lengths[rows], config)
        for (s, t), rows in zip(bounds, groups, strict=True)
        if len(rows)
    ]
    if links is not None:  # a batch has batch_size different pairs of its bucket, at worst those with most links
        most = [int(np.sort(links.counts[b.rows])[-b.batch_size :].sum()) for b in buckets]
        buckets = [b._replace(links=max(-(-n // 16) * 16, 16)) for b, n in zip(buckets, most, strict=True)]
    return Batches(src=src, tgt=tgt, buckets=tuple(buckets), too_long=np.flatnonzero(~fits), links=links)


def _bucket(src_len: int, tgt_len: int, rows: np.ndarray, tgt_lengths: np.ndarray, config: BatchConfig) -> Bucket:
    """Sizes one bucket: the fewest batches that the budget allows, then the smallest batch that needs no more."""
    multiple = config.row_multiple
    most = config.batch_tokens // (src_len + tgt_len)
    if most == 0:
        raise BatchingError(
            f"batch_tokens {config.batch_tokens} cannot hold one pair of {src_len} and {tgt_len} tokens; raise it to "
            f"{src_len + tgt_len} or more, or lower max_len"
        )
    most = most // multiple * multiple or most
    num_batches = -(-len(rows) // most)
    batch_size = min(most, -(-len(rows) // (num_batches * multiple)) * multiple)
    strata = np.zeros(batch_size * num_batches, int)
    strata[len(strata) - len(rows) :] = tgt_lengths
    capacity = int(strata.reshape(batch_size, num_batches).max(1).sum())
    capacity = min(-(-capacity // config.capacity_multiple) * config.capacity_multiple, batch_size * tgt_len)
    return Bucket(src_len, tgt_len, batch_size, num_batches, capacity, rows)


def inference_batches(sequences: Sequences, batch_tokens: int = 2048) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields batches to translate, shortest sentences first, in few shapes that do not depend on the text.

    Lengths are padded to the next of 8, 12, 16, 24, 32, 48, ... and rows to a power of two: the largest that keeps
    ``batch_size * src_len`` within ``batch_tokens``, or, for the last batch, the smallest that holds it. A
    batch that is not full moves up to the next length, so one text needs one shape a length and one more.

    Args:
      sequences: the source sentences.
      batch_tokens: the budget of a batch in source tokens, padding included. Divide it by the beam.

    Yields:
      ``(indices, batch)``: the first ``len(indices)`` rows of the batch are the sentences ``indices``, the others
      empty; ``outputs[indices] = result[:len(indices)]`` restores the order of the input.
    """
    order = np.argsort(sequences.lengths, kind="stable")
    lengths = sequences.lengths[order]
    grid = [8]
    while lengths.size and grid[-1] < lengths[-1]:
        grid.append(next_length(grid[-1] + 1))
    start = 0
    for length in grid:
        end = int(np.searchsorted(lengths, length, side="right"))
        size = 1 << max(batch_tokens // length, 1).bit_length() - 1
        last = length == grid[-1]
        while end - start >= size or (last and end > start):
            indices = order[start : start + min(size, end - start)]
            rows = np.full(min(size, 1 << (len(indices) - 1).bit_length()), -1)
            rows[: len(indices)] = indices
            src, src_mask = sequences.padded(rows, length)
            yield indices, Batch(src=src, src_mask=src_mask)
            start += len(indices)


def next_length(length: int) -> int:
    """Rounds a length up to 8, 12, 16, 24, 32, 48, ...: at most half more, and two values an octave.

    >>> [next_length(n) for n in (1, 9, 13, 17, 33)]
    [8, 12, 16, 24, 48]
    """
    octave = 1 << max(length - 1, 4).bit_length()
    return next(n for n in (octave // 2, octave * 3 // 4, octave) if n >= max(length, 8))


def _chunks(items: Iterable) -> Iterator[list]:
    """Cuts an iterable into lists of ``CHUNK``; as ``itertools.batched``, which Python 3.11 lacks."""
    items = iter(items)
    while chunk := list(itertools.islice(items, CHUNK)):
        yield chunk
