import dataclasses
import gzip
import hashlib
import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_jax.data.errors import (
    ColumnError,
    DataError,
    EmptyFileError,
    EncodingError,
    LineCountError,
    MissingFileError,
)
from attn_jax.data.parallel import LineReader, parting_line, read_lines, read_parallel, read_sides


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def message(caught):
    text = str(caught.value)
    assert isinstance(caught.value, ValueError) and "\n" not in text
    return text


def test_plain_files(write):
    text = read_parallel(write("a.de", "ein hut\nzwei hüte\n"), write("a.en", "one hat\ntwo hats"))
    assert text.src == ("ein hut", "zwei hüte") and text.tgt == ("one hat", "two hats") and len(text) == 2
    assert text.report.kept == 2 and text.report.skipped == {}
    assert text.report.files[0].sha256 == hashlib.sha256("ein hut\nzwei hüte\n".encode()).hexdigest()


def test_gzip_is_recognised_by_content_and_hashed_as_stored(write):
    packed = gzip.compress(b"a\nb\n")
    text = read_parallel(write("a.de.gz", packed), write("a.en", b"A\nB\n"))
    assert text.src == ("a", "b")
    assert text.report.files[0].sha256 == hashlib.sha256(packed).hexdigest()
    assert read_lines(write("misnamed", packed + gzip.compress(b"c"))).lines == ("a", "b", "c")


def test_two_columns(write):
    path = write("a.tsv", "ein hut\tone hat\n\nzwei\ttwo\n")
    text = read_parallel(path)
    assert text.src == ("ein hut", "zwei") and text.tgt == ("one hat", "two")
    assert text.report.skipped["empty"].first_lines == [2]
    assert read_parallel(path, columns=(1, 0)).src == ("one hat", "two")


@pytest.mark.parametrize(
    ("content", "place"),
    [("a\tb\nc\n", "a.tsv:2: expected 2"), ("a\tb\na\tb\tc\n", "a.tsv:2"), ("a\n", "a.tsv:1: expected 2")],
)
def test_wrong_columns_are_named(write, content, place):
    with pytest.raises(ColumnError) as caught:
        read_parallel(write("a.tsv", content))
    assert place in message(caught)


def test_only_newlines_end_lines(write):
    odd = "a\u2028b\u0085c\x0bd\x0ce\x1cf\rg"
    text = read_parallel(write("a.de", odd + "\nx\n"), write("a.en", "one\ntwo\n"))
    assert text.src == (odd, "x")


def test_bom_and_crlf_are_removed_and_counted(write):
    text = read_parallel(write("a.de", b"\xef\xbb\xbfein\r\nhut\r\n"), write("a.en", b"one\nhat\n"))
    assert text.src == ("ein", "hut")
    assert text.report.files[0].bom and text.report.files[0].crlf == 2
    assert not text.report.files[1].bom and text.report.files[1].crlf == 0
    assert "byte order mark" in str(text.report) and "2 Windows line ends" in str(text.report)


def test_what_is_left_out_is_counted_with_its_lines(write):
    src = ["gut", "", "  \t", "nul\0", "x" * 21, "ok", "voll"]
    tgt = ["good", "b", "c", "d", "e", "", "full"]
    text = read_parallel(write("a.de", "\n".join(src)), write("a.en", "\n".join(tgt)), max_chars=20)
    assert text.src == ("gut", "voll") and text.tgt == ("good", "full")
    found = {reason: (s.count, s.first_lines) for reason, s in text.report.skipped.items()}
    assert found == {"empty": (3, [2, 3, 6]), "nul": (1, [4]), "too_long": (1, [5])}
    assert text.report.kept + sum(count for count, _ in found.values()) == text.report.files[0].lines == 7
    assert "3 empty on one side (line 2, 3, 6)" in str(text.report)
    assert json.loads(json.dumps(dataclasses.asdict(text.report)))["skipped"]["nul"]["count"] == 1


def test_a_report_is_json(write):
    src, tgt = write("a.de", "gut\n\n"), write("a.en", "good\nb\n")
    record = dataclasses.asdict(read_parallel(src, tgt).report)
    assert json.loads(json.dumps(record)) == {
        "files": [
            {
                "path": str(path),
                "lines": 2,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bom": False,
                "crlf": 0,
            }
            for path in (src, tgt)
        ],
        "kept": 1,
        "skipped": {"empty": {"count": 1, "first_lines": [2]}},
    }
    with open(src, "rb") as stream:
        for source, name in ((src, str(src)), (stream, str(src)), (io.BytesIO(b"a\n"), "<stream>")):
            report = dataclasses.asdict(read_lines(source).report)
            assert json.loads(json.dumps(report))["files"][0]["path"] == name


def test_only_the_first_lines_of_a_reason_are_kept(write):
    text = read_parallel(write("a.de", "\n" * 9 + "x"), write("a.en", "y\n" * 10))
    assert text.report.skipped["empty"].count == 9 and text.report.skipped["empty"].first_lines == [1, 2, 3, 4, 5]
    assert "5, ...)" in str(text.report)


def test_a_line_of_millions_of_characters_is_left_out_in_little_memory(write):
    src = write("a.de.gz", gzip.compress(b"a\n" + b"x" * 5_000_000 + b"\nb\n", 1))
    tgt = write("a.en", b"A\nX\nB\n")
    tracemalloc.start()
    text = read_parallel(src, tgt)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text.src == ("a", "b") and text.report.skipped["too_long"].first_lines == [2]
    assert peak < 2_000_000


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_length_limit_counts_characters(write, extra):
    line = "\N{GRINNING FACE}" * (10 + extra)
    text = read_parallel(write("a.de", f"a\n{line}\r\n"), write("a.en", "A\nB\n"), max_chars=10)
    assert len(text) == (1 if extra > 0 else 2)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"gut\nsch\xf6n\n", "a.de:2: byte 4 of the line is 0xf6"),
        (b"\xff\xfeh\0i\0", "a.de:1: byte 1 of the line is 0xff"),
        (b"cut \xc3", "a.de:1: byte 5"),
        (b"ok\n" + b"x" * 999 + b"\xc3\n", "a.de:2: byte 1000"),
        (b"x" * 29 + b"\xc3\n", "a.de:1: byte 30 of the line is 0xc3"),  # at the end of the first piece
        (b"surrogate \xed\xa0\x80", "a.de:1: byte 11"),
    ],
)
@pytest.mark.parametrize("max_chars", [7, 10_000])  # a long line is checked piece by piece
def test_invalid_utf8_names_file_line_and_byte(write, content, place, max_chars):
    with pytest.raises(EncodingError) as caught:
        read_parallel(write("a.de", content), write("a.en", b"a\nb\n"), max_chars=max_chars)
    assert place in message(caught) and "iconv" in message(caught)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:30] + b"\xff" * 9 + b[39:], lambda b: b + b"junk"])
def test_a_damaged_gzip_file(write, damage):
    packed = gzip.compress(np.random.default_rng(0).bytes(300).hex().encode() + b"\n")
    with pytest.raises(EncodingError) as caught:
        read_lines(write("a.gz", damage(packed)))
    assert "cut off or damaged" in message(caught)


def test_missing_and_unreadable_files(write, tmp_path):
    good = write("a.de", "a\n")
    for path in (tmp_path / "none.en", tmp_path):
        with pytest.raises(MissingFileError) as caught:
            read_parallel(good, path)
        assert str(path) in message(caught)


def test_empty_files(write):
    empty, full = write("empty.de", ""), write("full.en", "a\n")
    for pair in ((empty, full), (full, empty), (empty,)):
        with pytest.raises(EmptyFileError, match=r"empty\.de"):
            read_parallel(*pair)
    assert read_lines(empty).lines == ()
    for pair in ((empty, full), (full, empty)):
        with pytest.raises(EmptyFileError, match=r"empty\.de: expected lines of text"):
            read_sides(*pair)
    assert [side.lines for side in read_sides(full, full)] == [("a",), ("a",)]


def test_no_usable_pair_says_why(write):
    with pytest.raises(EmptyFileError) as caught:
        read_parallel(write("a.de", "\n\0\n"), write("a.en", "a\nb\n"))
    assert "1 empty on one side (line 1)" in message(caught) and "1 with NUL" in message(caught)


def varied(n):
    words = np.random.default_rng(1).integers(1, 30, n)
    return [" ".join(["wort"] * k) for k in words], [" ".join(["a", *["word"] * k]) for k in words]


def test_unequal_line_counts_name_files_counts_and_place(write):
    src, tgt = varied(300)
    with pytest.raises(LineCountError) as caught:
        read_parallel(write("a.de", "\n".join(src)), write("a.en", "\n".join(tgt[:120] + tgt[121:]) + "\n"))
    for part in ("a.de has 300 lines", "a.en has 299", "about line 121"):
        assert part in message(caught)


@pytest.mark.parametrize("read", [read_parallel, read_sides])
def test_a_file_cut_off_at_its_end(write, read):
    src, tgt = varied(100)
    with pytest.raises(LineCountError) as caught:
        read(write("a.de", "\n".join(src[:60])), write("a.en", "\n".join(tgt)))
    assert "a.de has 60 lines but" in message(caught) and "a.de may be cut off at its end" in message(caught)


@pytest.mark.parametrize("n", [2, 3, 10, 300])
def test_the_parting_line_is_found_in_exact_data_and_never_fails(n):
    lengths = np.random.default_rng(n).permutation(np.arange(1, n + 1) * 7)
    for k in range(0, n, max(1, n // 20)):
        place = parting_line(lengths, np.delete(lengths, k))
        assert 1 <= place <= n
        if n == 300:
            assert abs(place - (k + 1)) <= 3
            assert place == parting_line(np.delete(lengths, k), lengths)


def test_the_first_of_several_places_is_found():
    lengths = np.random.default_rng(5).integers(5, 200, 1000)
    noisy = (lengths * np.random.default_rng(6).normal(1.2, 0.1, 1000)).astype(int)
    assert abs(parting_line(lengths, np.delete(noisy, [200, 600, 800])) - 201) <= 5


def test_one_odd_line_at_the_end_is_not_worth_a_skip():
    lengths = np.random.default_rng(5).integers(5, 200, 1000)
    noisy = (lengths * np.random.default_rng(6).normal(1.2, 0.1, 1000)).astype(int)[:-3]
    lengths[999] = 1.3 * lengths[996]
    noisy[996] = 1.2 * lengths[999]
    assert parting_line(lengths, noisy) == 998


def test_one_sided_input_keeps_its_line_count():
    lines = read_lines(io.BytesIO(b"\xef\xbb\xbfone\r\n\n  \nnu\0l\n" + b"x" * 99 + b"\nlast"), max_chars=20)
    assert lines.lines == ("one", "", "  ", "nul", "", "last")
    assert lines.report.kept == 6
    assert {r: s.first_lines for r, s in lines.report.skipped.items()} == {"nul": [4], "too_long": [5]}


def test_a_text_stream_must_have_bytes_below():
    assert read_lines(io.TextIOWrapper(io.BytesIO(b"a\nb\n"))).lines == ("a", "b")
    with pytest.raises(DataError, match="binary stream"):
        read_lines(io.StringIO("a"))
    with pytest.raises(DataError, match="max_chars"):
        LineReader("a.de", 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])), min_size=1), st.booleans()
)
def test_lines_are_what_newlines_separate(lines, packed):
    data = "".join(line + "\n" for line in lines).encode()
    expected = tuple(data.removeprefix(b"\xef\xbb\xbf").decode().split("\n")[:-1])
    found = read_lines(io.BytesIO(gzip.compress(data, 0) if packed else data))
    assert found.lines == expected and len(found.lines) == len(lines)
