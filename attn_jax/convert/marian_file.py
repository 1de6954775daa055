"""Marian's own model files, as float32 arrays: the binary format, version 1, and ``.npz``.

The binary format is ``version, count`` (64 bits each), ``count`` headers (length of the name, type, rank, length of the
data; 64 bits each), all names, all shapes (32 bits a number), padding after its length, and all data; little-endian.
A tensor of type ``intgemm8`` holds whole numbers from -127 to 127 and after them the float32 by which they are divided;
all but embeddings lie transposed. (Marian, src/common/binary.cpp and src/graph/expression_graph_packable.h.)
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

OPTIONS = "special:model.yml"
"""The tensor that is no tensor: the options that the model was trained with."""
MAX_RANK = 4
"""Dimensions of Marian's tensors (CONST_SHAPE_DIMS)."""
INT8, FLOAT32, INTGEMM8 = 0x0101, 0x0404, 0x4101
"""The types that are read; a type for one kind of processor (``intgemm8avx512``, ``packed8avx2``) is not among them."""

Options = dict[str, str | list[str]]


class MarianFileError(ValueError):
    """A file that is not Marian's, or not whole; the message is one line: the file, what is wrong, the remedy."""


class MarianFile(NamedTuple):
    """``tensors`` by Marian's names, float32; and the ``options`` of the training, as text."""

    tensors: dict[str, np.ndarray]
    options: Options


def read_marian_file(path: str | Path) -> MarianFile:
    """Reads ``model.bin`` or ``model.npz``; whole numbers become the float32 that they stand for.

    Args:
      path: the file.

    Returns:
      The tensors, kernels as ``[inputs, outputs]``, and the options.

    Raises:
      MarianFileError: for a file that is cut or garbled, of another format, or for one kind of processor.
      OSError: if there is no such file.
    """
    path = Path(path)
    items = _read_npz(path) if path.suffix == ".npz" else _read_binary(path)
    if OPTIONS not in items:
        raise MarianFileError(f"{path}: holds no {OPTIONS}, the options of the training; take the file Marian saved")
    try:
        text = items.pop(OPTIONS).tobytes().rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise MarianFileError(f"{path}: {OPTIONS} is garbled ({error.reason}); copy the file again") from error
    return MarianFile(items, parse_options(text))


def parse_options(text: str) -> Options:
    r"""The flat YAML of Marian's options: ``name: value``, and lists with an entry a line.

    >>> parse_options("enc-depth: 6\ndim-vocabs:\n  - 32000\n  - 32000\nskip: ''\ntied-layers: []")
    {'enc-depth': '6', 'dim-vocabs': ['32000', '32000'], 'skip': '', 'tied-layers': ''}
    """
    options: Options = {}
    name = ""
    for line in text.splitlines():
        if line.lstrip().startswith("- "):
            options[name] = [*(options.get(name) or ()), line.lstrip()[2:].strip()]
        elif ":" in line:
            name, _, value = line.partition(":")
            options[name] = value.strip().strip("\"'").removeprefix("[").removesuffix("]")
    return options


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:  # numpy leaves a bad file open
            items = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise MarianFileError(f"{path}: is no whole .npz file ({error}); copy it again") from error
    for name, array in items.items():
        if array.dtype != (np.int8 if name == OPTIONS else np.float32):
            raise MarianFileError(f"{path}: expected float32 for {name}, found {array.dtype}; convert the .npz to it")
    return items


def _read_binary(path: Path) -> dict[str, np.ndarray]:
    data, position = path.read_bytes(), 0

    def take(size: int, what: str) -> bytes:
        nonlocal position
        position += size
        if position > len(data):
            raise MarianFileError(
                f"{path}: ends inside {what}: expected {position:,} bytes so far, found {len(data):,}; copy it again"
            )
        return data[position - size : position]

    version, count = struct.unpack("<2Q", take(16, "its version"))
    if version != 1:
        raise MarianFileError(f"{path}: expected Marian's binary format 1, found version {version}; name a model.bin")
    headers = list(struct.iter_unpack("<4Q", take(32 * count, "its headers")))
    names = [take(length, "a name").rstrip(b"\0").decode(errors="replace") for length, _, _, _ in headers]
    shapes = [struct.unpack(f"<{rank}i", take(4 * rank, "a shape")) for _, _, rank, _ in headers]
    take(struct.unpack("<Q", take(8, "its padding"))[0], "its padding")
    items = {}
    for name, shape, (_, kind, _, length) in zip(names, shapes, headers, strict=True):
        items[name] = _tensor(f"{path}: {name}", name, kind, shape, take(length, name))
    if position < len(data):
        raise MarianFileError(f"{path}: {len(data) - position:,} bytes follow the last tensor; copy it again")
    return items


def _tensor(where: str, name: str, kind: int, shape: tuple[int, ...], data: bytes) -> np.ndarray:
    if kind not in (INT8, FLOAT32, INTGEMM8):
        raise MarianFileError(
            f"{where}: is of type {kind:#x}, expected float32 or intgemm8; convert the model with "
            "marian-conv --gemm-type intgemm8 (not a type of one processor) or float32"
        )
    if len(shape) > MAX_RANK:
        raise MarianFileError(f"{where}: expected at most {MAX_RANK} dimensions, found {len(shape)}; copy it again")
    size = math.prod(shape)
    needed = 4 * size if kind == FLOAT32 else size + 4 * (kind == INTGEMM8)
    if min(shape, default=1) < 1 or len(data) < needed:
        raise MarianFileError(f"{where}: a shape of {list(shape)} needs {needed:,} bytes, found {len(data):,}")
    if kind == FLOAT32:
        return np.frombuffer(data, "<f4", size).reshape(shape)
    numbers = np.frombuffer(data, np.int8, size)
    if kind == INT8:
        return numbers.reshape(shape)
    multiplier = struct.unpack_from("<f", data, size)[0]
    if not 0 < multiplier < math.inf:
        raise MarianFileError(f"{where}: expected a multiplier above 0, found {multiplier}; copy it again")
    embedding = name.endswith("Wemb")
    numbers = numbers.reshape(shape if embedding else shape[::-1])
    return (numbers if embedding else numbers.T) / np.float32(multiplier)
