r"""Reading parallel text: plain, gzip or two columns; one pass, bounded memory, everything left out is counted.

Line ``i`` of the source translates line ``i`` of the target. Only ``\n`` ends a line (a ``\r`` before it goes with it),
so that U+2028 and its kin, which ``str.splitlines`` takes for line ends, cannot shift one side against the other.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import itertools
import os
import zlib
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from attn_jax.data.errors import ColumnError, DataError, EmptyFileError, EncodingError, LineCountError, MissingFileError

MAX_CHARS = 10_000
"""A longer line is no sentence; it is left out, and counted."""

FIRST_LINES = 5
"""How many line numbers a report keeps for each reason."""

MAX_SKIPS = 8
"""Differences between two files up to which every number of skipped lines is tried to find where they part."""

REASONS = {"too_long": "too long", "nul": "with NUL characters", "empty": "empty on one side"}
"""Why a line is left out, in the order in which the reasons are tried."""

Path = str | os.PathLike[str]


@dataclass
class Skipped:
    """Lines left out for one reason: how many, and the numbers of the first few, counted from 1."""

    count: int = 0
    first_lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        """Counts one line."""
        self.count += 1
        if len(self.first_lines) < FIRST_LINES:
            self.first_lines.append(line)


@dataclass(frozen=True, kw_only=True)
class FileReport:
    r"""What was found in one file.

    Attributes:
      path: the file.
      lines: its number of lines.
      sha256: of the bytes as stored (of a ``.gz`` file, the compressed ones).
      bom: whether a byte order mark was removed from the start.
      crlf: how many lines ended in ``\r\n``; the ``\r`` was removed.
    """

    path: str
    lines: int
    sha256: str
    bom: bool
    crlf: int


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What was read and what was left out; ``str(report)`` is one line for people, ``dataclasses.asdict`` is JSON.

    Attributes:
      files: one report a file.
      kept: number of pairs (or lines) in the result.
      skipped: for each of ``REASONS`` that occurred, the lines left out.
    """

    files: tuple[FileReport, ...]
    kept: int
    skipped: dict[str, Skipped]

    def __str__(self) -> str:
        """For example ``2 kept of a.de (3 lines), a.en (3 lines); 1 empty on one side (line 2)``."""
        notes = [f"{self.kept:,} kept of {', '.join(f'{f.path} ({f.lines:,} lines)' for f in self.files)}"]
        for reason, skipped in self.skipped.items():
            more = ", ..." if skipped.count > len(skipped.first_lines) else ""
            lines = ", ".join(map(str, skipped.first_lines))
            notes.append(f"{skipped.count:,} {REASONS[reason]} (line {lines}{more})")
        notes += [f"byte order mark removed from {f.path}" for f in self.files if f.bom]
        notes += [f"{f.crlf:,} Windows line ends in {f.path}" for f in self.files if f.crlf]
        return "; ".join(notes)


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations.

    Attributes:
      src: source sentences.
      tgt: target sentences.
      report: how they were read.
      lines: number of each pair's line in its file, from 1; nothing for text that is not from a file.
      links: word alignment ``(source, target)`` of each pair, where it is known.
    """

    src: tuple[str, ...]
    tgt: tuple[str, ...]
    report: ReadReport
    lines: Sequence[int] = ()
    links: Sequence[Collection[tuple[int, int]]] | None = None

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.src)


@dataclass(frozen=True)
class Lines:
    """The lines of one input, as many as it has, and the report of how they were read."""

    lines: tuple[str, ...]
    report: ReadReport


def read_parallel(
    src: Path, tgt: Path | None = None, *, columns: tuple[int, int] = (0, 1), max_chars: int = MAX_CHARS
) -> ParallelText:
    r"""Reads two line-aligned files, or two columns of one ``.tsv`` file; gzip is recognised by its first bytes.

    A pair is left out, and counted in the report, if a side is empty or white space, holds a NUL character, or has more
    than ``max_chars`` characters. A byte order mark at the start and the ``\r`` of Windows line ends are removed.

    Args:
      src: the source file, or with ``tgt=None`` the tab-separated file that holds both sides.
      tgt: the target file.
      columns: which columns, counted from 0, of the tab-separated file are source and target.
      max_chars: the greatest length of a line in characters. Memory is bounded whatever the length of a line.

    Raises:
      MissingFileError: for a file that cannot be opened.
      EncodingError: for bytes that are not UTF-8, with file, line and byte; for a damaged gzip file.
      EmptyFileError: for a file without lines, or if no pair is left.
      LineCountError: for unequal numbers of lines, with both and the place where the files part (:func:`parting_line`).
      ColumnError: for a line of a ``.tsv`` file with another number of columns than the first.
    """
    if tgt is None:
        readers = (LineReader(src, 2 * max_chars + 1),)
        pairs: Iterable[tuple[str | None, str | None]] = _split_columns(readers[0], columns)
    else:
        readers = (LineReader(src, max_chars), LineReader(tgt, max_chars))
        pairs = _aligned(*readers)
    kept_src, kept_tgt, lines = [], [], array("q")
    skipped: dict[str, Skipped] = {}
    for number, (source, target) in enumerate(pairs, start=1):
        if reason := _fault(source, max_chars) or _fault(target, max_chars):
            skipped.setdefault(reason, Skipped()).add(number)
        else:
            kept_src.append(source)
            kept_tgt.append(target)
            lines.append(number)
    for reader in readers:
        if reader.count == 0:
            raise EmptyFileError(f"{reader.name}: expected lines of text, found an empty file; check the path")
    report = ReadReport(files=tuple(r.report() for r in readers), kept=len(kept_src), skipped=skipped)
    if not kept_src:
        raise EmptyFileError(f"expected at least one usable pair of lines, found none: {report}")
    return ParallelText(tuple(kept_src), tuple(kept_tgt), report, lines)


def read_lines(source: Path | BinaryIO, *, max_chars: int = MAX_CHARS) -> Lines:
    r"""Reads one side, line for line: as many lines come out as went in, a blank one for a blank one.

    A line of more than ``max_chars`` characters comes out blank and NUL characters are removed; both are counted.

    Args:
      source: a file, or an open binary stream such as ``sys.stdin.buffer``.
      max_chars: the greatest length of a line in characters.

    Raises:
      MissingFileError, EncodingError: as :func:`read_parallel`.

    >>> read_lines(io.BytesIO(b"one\r\n\nthree")).lines
    ('one', '', 'three')
    """
    reader = LineReader(source, max_chars)
    lines, skipped = [], {}
    for number, line in enumerate(reader, start=1):
        if (reason := _fault(line, max_chars)) in ("too_long", "nul"):
            skipped.setdefault(reason, Skipped()).add(number)
        lines.append("" if reason == "too_long" else line.replace("\0", ""))
    return Lines(tuple(lines), ReadReport(files=(reader.report(),), kept=len(lines), skipped=skipped))


def read_sides(src: Path, tgt: Path) -> tuple[Lines, Lines]:
    """Reads two line-aligned files, each as :func:`read_lines` does, for what has to keep every line.

    Raises:
      MissingFileError, EncodingError: as :func:`read_parallel`.
      EmptyFileError: if one has no lines and the other has some.
      LineCountError: for unequal numbers of lines, with both and the place where the files part.
    """
    sides = read_lines(src), read_lines(tgt)
    lengths = tuple([len(line) for line in side.lines] for side in sides)
    if len(lengths[0]) != len(lengths[1]):
        for path, found in zip((src, tgt), lengths, strict=True):
            if not found:
                raise EmptyFileError(f"{path}: expected lines of text, found an empty file; check the path")
        raise _unequal((src, tgt), lengths)
    return sides


def _fault(line: str | None, max_chars: int) -> str | None:
    """The reason to leave a line out, or None; ``None`` stands for a line too long to be held."""
    if line is None or len(line) > max_chars:
        return "too_long"
    if "\0" in line:
        return "nul"
    return None if line.strip() else "empty"


def _split_columns(reader: LineReader, columns: tuple[int, int]) -> Iterator[tuple[str | None, str | None]]:
    width = 0
    for line in reader:
        if line is None:
            yield None, None
        elif not line.strip():
            yield "", ""
        else:
            cells = line.split("\t")
            width = width or len(cells)
            if len(cells) != width or width <= max(columns):
                expected = (
                    f"{width} columns as in the first line" if width > max(columns) else f"{max(columns) + 1} columns"
                )
                raise ColumnError(
                    f"{reader.name}:{reader.count}: expected {expected}, found {len(cells)}; columns are separated "
                    "by one tab (for two files of one language each, pass both)"
                )
            yield cells[columns[0]], cells[columns[1]]


def _aligned(src: LineReader, tgt: LineReader) -> Iterator[tuple[str | None, str | None]]:
    """Yields pairs of lines; at the end of the shorter file, reads the other to its end and says where they part."""
    lengths = array("i"), array("i")
    end = object()
    for pair in itertools.zip_longest(src, tgt, fillvalue=end):
        for line, side in zip(pair, lengths, strict=True):
            if line is not end:
                side.append(src.max_chars if line is None else len(line))
        if end not in pair and src.count == tgt.count:
            yield pair
    if src.count != tgt.count and src.count and tgt.count:
        raise _unequal((src.name, tgt.name), lengths)


def _unequal(names: tuple[Path, Path], lengths: tuple[Sequence[int], Sequence[int]]) -> LineCountError:
    """Says how many lines two files have, and where they part, by the characters of each line."""
    counts, place = tuple(map(len, lengths)), parting_line(*lengths)
    where = (
        f"no line stands out by its length, so {names[counts[0] > counts[1]]} may be cut off at its end"
        if place > min(counts)
        else f"the lengths stop agreeing at about line {place}; look for a missing or extra line there"
    )
    return LineCountError(
        f"{names[0]} has {counts[0]} lines but {names[1]} has {counts[1]}; line i of one must translate line i of the "
        f"other: {where}"
    )


def parting_line(src_lengths: Iterable[int], tgt_lengths: Iterable[int]) -> int:
    """Estimates the first line, from 1, at which two files of unequal line counts are no longer parallel.

    A pair costs ``|log(src / tgt) - median|``, cut off at 1: low for translations, higher for lines that do not belong
    together. The path of least cost through both files starts at line 1 of each and may skip lines of the longer one;
    each skip costs the aligned level times ``log(lines)`` (a Laplace likelihood with the BIC penalty). The place of its
    first skip is the answer, one past the shorter file if it has none: then its end is missing, or neighbouring lines
    are so alike in length (a sorted file) that nothing stands out. Usually right to within five lines.

    Args:
      src_lengths: characters of each source line.
      tgt_lengths: characters of each target line; another number of lines.

    >>> src = [10, 40, 20, 80, 30, 15, 60, 25]
    >>> parting_line(src, src[:4] + src[5:]), parting_line(src, src[:5])
    (5, 6)
    """
    short, long = sorted((np.log1p(np.asarray(n, float)) for n in (src_lengths, tgt_lengths)), key=len)
    n, extra = len(short), len(long) - len(short)
    median = np.median(long) - np.median(short)
    skips = sorted({*range(min(extra, MAX_SKIPS) + 1), extra})
    costs = [np.minimum(np.abs(long[skip : skip + n] - short - median), 1.0) for skip in skips]
    penalty = min(costs[0][: n // 2 + 1].mean(), costs[-1][n // 2 :].mean()) * np.log(n + 1)
    best, *sums = (np.concatenate([[0.0], np.cumsum(cost)]) for cost in costs)  # [n + 1] cost of the lines before each
    parting = np.arange(n + 1)  # of the best path to each line: where it left the straight one, or would leave it now
    for total in sums:
        entry = best - total + penalty
        lowest = np.minimum.accumulate(entry)
        entered = np.maximum.accumulate(np.where(entry == lowest, np.arange(n + 1), 0))
        parting = np.where(total + lowest < best, parting[entered], parting)
        best = np.minimum(best, total + lowest)
    return int(parting[-1]) + 1


class LineReader:
    """Iterates once over the lines of a UTF-8 input and counts; a line of more than ``max_chars`` characters is None.

    Attributes:
      name: the path, for messages.
      count: the lines read so far.
    """

    def __init__(self, source: Path | BinaryIO, max_chars: int):
        """Takes a path, or an open binary stream, which is left open."""
        if max_chars < 1:
            raise DataError(f"expected max_chars >= 1, found {max_chars}")
        source = getattr(source, "buffer", source)  # of sys.stdin
        if not isinstance(source, str | os.PathLike) and not hasattr(source, "readinto"):
            raise DataError(
                f"expected a path or a binary stream, found a {type(source).__name__}; open it in mode 'rb'"
            )
        self.source, self.max_chars = source, max_chars
        self.name = os.fspath(source) if isinstance(source, str | os.PathLike) else getattr(source, "name", "<stream>")
        self.count, self.crlf, self.bom = 0, 0, False
        self._hash = hashlib.sha256()

    def report(self) -> FileReport:
        """What was found; to be asked for after the last line."""
        sha256 = self._hash.hexdigest()
        return FileReport(path=str(self.name), lines=self.count, sha256=sha256, bom=self.bom, crlf=self.crlf)

    def __iter__(self) -> Iterator[str | None]:
        """Opens, hashes, unpacks, decodes and cuts the input in one pass."""
        try:
            if not isinstance(self.source, str | os.PathLike):
                yield from self._lines(_HashingReader(self.source, self._hash))
            else:
                with open(self.source, "rb", buffering=0) as file:
                    yield from self._lines(_HashingReader(file, self._hash))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise EncodingError(
                f"{self.name}: the gzip file is cut off or damaged after line {self.count} ({error}); fetch it again"
            ) from error
        except OSError as error:
            raise MissingFileError(
                f"{self.name}: cannot be read ({error.strerror or error}); check the path"
            ) from error

    def _lines(self, raw: io.RawIOBase) -> Iterator[str | None]:
        stream = io.BufferedReader(raw, 1 << 16)
        if stream.peek(2)[:2] == b"\x1f\x8b":  # never the start of UTF-8 text
            stream = io.BufferedReader(gzip.GzipFile(fileobj=stream), 1 << 16)
        if stream.peek(3)[:3] == codecs.BOM_UTF8:
            self.bom = True
            stream.read(3)
        limit = 4 * self.max_chars + 2  # bytes: at most 4 a character, and the line end
        while data := stream.readline(limit):
            self.count += 1
            text = self._decoded(data, stream, limit)
            if text is not None and text.endswith("\n"):
                text = text[:-1]
                if text.endswith("\r"):
                    self.crlf += 1
                    text = text[:-1]
            yield None if text is None or len(text) > self.max_chars else text

    def _decoded(self, data: bytes, stream: io.BufferedReader, limit: int) -> str | None:
        """Decodes a line; of one longer than ``limit`` bytes, checks the rest piece by piece and gives None."""
        offset, text, decoder = 0, None, codecs.getincrementaldecoder("utf-8")()
        while True:
            ended = len(data) < limit or data.endswith(b"\n")
            pending = len(decoder.getstate()[0])
            try:
                piece = decoder.decode(data, final=ended)
            except UnicodeDecodeError as error:
                raise EncodingError(
                    f"{self.name}:{self.count}: byte {offset - pending + error.start + 1} of the line is "
                    f"0x{error.object[error.start]:02x}, which is not UTF-8 ({error.reason}); convert the file, for "
                    "example with: iconv -f latin1 -t utf-8"
                ) from error
            if ended:
                return piece if offset == 0 else text
            offset += len(data)
            data = stream.readline(limit)


class _HashingReader(io.RawIOBase):
    """Passes bytes on and hashes them, so that one pass over a file, or over a pipe, is enough."""

    def __init__(self, source, digest):
        self._source, self._digest = source, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._source.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:count])
        return count
