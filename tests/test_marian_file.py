"""Marian's model files: exact numbers, and what a cut, garbled or foreign file says."""

import struct

import numpy as np
import pytest

from attn_jax.convert.marian_file import MarianFileError, read_marian_file
from tests.marian_files import marian_bytes

TENSORS = {
    "Wemb": np.array([[127, -2, 3], [4, 5, -6]], np.float32) / 2,
    "encoder_l1_ffn_W1": np.array([[127, 1, 2], [3, -4, 5]], np.float32) / 4,
    "encoder_l1_ffn_b1": np.array([[0.25, -1.5, 3.0]], np.float32),
}
DATA = marian_bytes(TENSORS, "enc-depth: 6\nskip: false\n")


def read(tmp_path, data, name="model.bin"):
    (tmp_path / name).write_bytes(data)
    return read_marian_file(tmp_path / name)


def test_numbers_are_exact_and_kernels_lie_as_they_multiply(tmp_path):
    found = read(tmp_path, DATA)
    assert found.options == {"enc-depth": "6", "skip": "false"}
    assert found.tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert found.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(found.tensors[name], expected)


def test_the_bytes_of_a_kernel(tmp_path):
    """``[[1, 2], [3, 4]] / 2`` lies as 1 3 2 4 and 2.0; an embedding as 1 2 3 4."""
    for name, numbers in (("decoder_l1_rnn_W", [1, 3, 2, 4]), ("Wemb", [1, 2, 3, 4])):
        text = b"a: b"
        headers = [(len(name), 0x4101, 2, 8), (len(b"special:model.yml"), 0x101, 1, 4)]
        head = struct.pack("<2Q", 1, 2) + b"".join(struct.pack("<4Q", *header) for header in headers)
        body = name.encode() + b"special:model.yml" + struct.pack("<3i", 2, 2, 4) + struct.pack("<Q", 0)
        found = read(tmp_path, head + body + bytes(numbers) + struct.pack("<f", 2.0) + text)
        np.testing.assert_array_equal(found.tensors[name], [[0.5, 1.0], [1.5, 2.0]])


def test_an_npz_holds_the_same(tmp_path):
    text = np.frombuffer(b"enc-depth: 6\0", np.int8)
    np.savez(tmp_path / "model.npz", **TENSORS, **{"special:model.yml": text})
    found = read_marian_file(tmp_path / "model.npz")
    assert found.options == {"enc-depth": "6"}
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(found.tensors[name], expected)


def test_every_cut_is_seen(tmp_path):
    for length in range(len(DATA)):
        with pytest.raises(MarianFileError) as error:
            read(tmp_path, DATA[:length])
        assert "model.bin" in str(error.value) and "\n" not in str(error.value)


def changed(position, code, value):
    return DATA[:position] + struct.pack(code, value) + DATA[position + struct.calcsize(code) :]


TWO = np.float32(2).tobytes()
SHAPES = 16 + 4 * 32 + sum(len(name) + 1 for name in [*TENSORS, "special:model.yml"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA + b"\0\0", "2 bytes follow the last tensor; copy it again"),
        (changed(0, "<Q", 7), "expected Marian's binary format 1, found version 7"),
        (changed(8, "<Q", 2**60), "ends inside its headers: expected .* found .*; copy it again"),
        (changed(16, "<Q", 2**40), "ends inside a name"),
        (changed(24, "<Q", 0x1808), r"Wemb: is of type 0x1808, expected float32 or intgemm8; convert .* marian-conv"),
        (changed(40, "<Q", 5), "Wemb: a shape of .2, 3. needs 10 bytes, found 5"),
        (changed(SHAPES, "<i", -2), r"Wemb: a shape of \[-2, 3\] needs"),
        (
            struct.pack("<6Q", 1, 1, 2, 0x404, 65, 4) + b"w\0" + struct.pack("<65i", *65 * [1]) + bytes(8 + 4),
            "w: expected at most 4 dimensions, found 65",
        ),
        (DATA.replace(TWO, bytes(4)), r"Wemb: expected a multiplier above 0, found 0\.0"),
        (DATA.replace(b"enc-depth", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "special:model.yml is garbled"),
        (DATA.replace(b"special", b"spatial"), "holds no special:model.yml"),
    ],
)
def test_what_a_garbled_file_says(tmp_path, data, message):
    with pytest.raises(MarianFileError, match=message) as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value)


def test_what_a_wrong_npz_says(tmp_path):
    with pytest.raises(MarianFileError, match=r"model.npz: is no whole .npz file \(.*\); copy it again"):
        read(tmp_path, b"PK\3\4 and nothing more", "model.npz")
    np.savez(tmp_path / "model.npz", Wemb=np.zeros(2))
    with pytest.raises(MarianFileError, match="expected float32 for Wemb, found float64"):
        read_marian_file(tmp_path / "model.npz")
    np.savez(tmp_path / "model.npz", Wemb=np.array([None]))
    with pytest.raises(MarianFileError, match="is no whole"):
        read_marian_file(tmp_path / "model.npz")
