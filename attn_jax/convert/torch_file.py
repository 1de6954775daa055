"""Tensors out of what ``torch.save`` wrote, without torch and without unpickling.

A file of torch 1.6 or newer is a zip archive: ``NAME/data.pkl`` describes a dictionary of tensors in the language of
pickle, and ``NAME/data/0, 1, ...`` hold the numbers. An older one is a row of pickles (a magic number, a version, the
machine, the description, the names of the storages) and then the numbers of each storage, after their count in 64 bits.

Unpickling may run any code. Here the description is read by an interpreter that knows the few instructions such a
dictionary needs. A name in it is never looked up: it is one of the handful below, each with its meaning here, or the
file is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from reprlib import repr  # of bounded length and time, whatever is nested
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import jax.numpy as jnp
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch DoubleStorage": np.dtype(np.float64),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}
"""What a storage may hold, by the name it has in the file."""

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
"""What a file of torch before 1.6 begins with."""

DAMAGE = (BadZipFile, EOFError, LookupError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
"""What reading a damaged file, or one made to look like a file of torch, may raise."""

FindStorage = Callable[[str, str, int], np.ndarray]
"""The numbers ``[length]`` of a storage by its kind (of `DTYPES`), name and least length."""


class TorchFileError(ValueError):
    """A file is no dictionary of tensors, or asks for more than that; the message names it and the remedy."""


class _Name(NamedTuple):
    """``module name`` as the file says it: not looked up."""

    text: str


class _Storage(NamedTuple):
    """The numbers of a storage, which no instruction of a description but a reference to it can make."""

    numbers: np.ndarray  # [length]


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a dictionary of tensors, such as a state dict.

    Args:
      path: what ``torch.save`` wrote.

    Returns:
      Arrays by name, of the types they have in the file.

    Raises:
      TorchFileError: for anything but a dictionary of dense tensors, and for a damaged file.
    """
    with Path(path).open("rb") as file:
        try:
            return _tensors(_read(file))
        except TorchFileError as error:
            raise TorchFileError(f"{path}: {error}") from None
        except DAMAGE as error:
            raise TorchFileError(f"{path}: damaged ({error}); copy it again from where it came") from error


def _read(file: BinaryIO) -> Any:
    """What was saved, in either format."""
    head = file.read(len(ZIP))
    file.seek(0)
    if head == ZIP:
        with ZipFile(file) as archive:
            return _read_archive(archive)
    if head.startswith(PICKLE):
        with mmap(
            file.fileno(), 0, access=ACCESS_READ
        ) as pickles:  # whose read never makes room for more than there is
            return _read_pickles(pickles)
    raise TorchFileError(f"expected what torch.save wrote, found a file that begins with {head!r}")


def _tensors(saved: Any) -> dict[str, np.ndarray]:
    """Copies of the tensors of a dictionary."""
    if not isinstance(saved, dict):
        raise TorchFileError(f"expected a dictionary of tensors, found {type(saved).__name__}; save the state_dict()")
    for name, tensor in saved.items():
        if not isinstance(tensor, np.ndarray):
            found = f"{repr(name)} of type {type(tensor).__name__}"
            raise TorchFileError(f"expected tensors by name, found {found}; save the model's state_dict() alone")
    return {name: tensor.copy() for name, tensor in saved.items()}


def _read_archive(archive: ZipFile) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    descriptions = [name for name in members if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(descriptions) != 1:
        raise TorchFileError(f"expected one data.pkl, found {len(descriptions)}; is it a file that torch.save wrote?")
    folder = descriptions[0].removesuffix("data.pkl")

    def member(name: str) -> bytes:
        if members[folder + name].compress_type != ZIP_STORED:  # torch never compresses; a zip bomb does
            raise TorchFileError(f"expected {name} as it is, found it compressed")
        return archive.read(folder + name)

    if folder + "byteorder" in members and member("byteorder") != b"little":
        raise TorchFileError("holds big-endian numbers; save it again on a little-endian machine")
    storages: dict[str, np.ndarray] = {}

    def storage(kind: str, name: str, length: int) -> np.ndarray:
        if name not in storages:
            storages[name] = np.frombuffer(member(f"data/{name}"), DTYPES[kind])
        if storages[name].dtype != DTYPES[kind] or len(storages[name]) < length:
            found = f"{len(storages[name])} of {storages[name].dtype}"
            raise TorchFileError(f"expected {length} numbers of {DTYPES[kind]} in data/{name}, found {found}")
        return storages[name]

    return _interpret(member("data.pkl"), storage)


def _read_pickles(file: mmap) -> Any:
    """What torch before 1.6 saved: the numbers come last, and fill the storages that the description names."""
    storages: dict[str, np.ndarray] = {}

    def storage(kind: str, name: str, length: int) -> np.ndarray:
        if length * DTYPES[kind].itemsize > len(file):
            raise TorchFileError(f"expected {length} numbers of {DTYPES[kind]}, found a file of {len(file)} bytes")
        if name not in storages:
            storages[name] = np.zeros(length, DTYPES[kind])
        found = storages[name]
        if found.dtype != DTYPES[kind] or len(found) != length:
            raise TorchFileError(f"says two things of the storage {name}; copy it again from where it came")
        return found

    magic, version, machine, saved, names = (_interpret(file, storage) for _ in range(5))
    if (magic, version) != (MAGIC, VERSION) or not isinstance(machine, dict):
        raise TorchFileError("is a pickle, but not one that torch.save wrote")
    if machine.get("little_endian") is not True:
        raise TorchFileError("holds big-endian numbers; save it again on a little-endian machine")
    if names != sorted(storages):
        raise TorchFileError(f"expected the numbers of {len(storages)} storages, found {repr(names)}")
    for name, numbers in sorted(storages.items()):
        data = file.read(8 + numbers.nbytes)
        if len(data) < 8 + numbers.nbytes or int.from_bytes(data[:8], "little") != len(numbers):
            raise TorchFileError(f"ends inside the storage {name}, or is damaged there; copy it again")
        numbers[:] = np.frombuffer(data, numbers.dtype, offset=8)
    return saved


def _interpret(description: bytes | mmap, storage: FindStorage) -> Any:
    """What a description, or the next one in a file, describes.

    Attributes of its objects (a state dict's metadata) are left out.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        mark = marks.pop()
        found = stack[mark:]
        del stack[mark:]
        return found

    def last(count: int) -> list[Any]:
        if len(stack) < count:
            raise TorchFileError("its description takes more than it put down")
        found = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return found

    for instruction, value, place in pickletools.genops(description):
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return last(1)[0]
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(value)
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(last(int(instruction.name[-1]))))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "APPEND":
                _list(stack[-2]).append(last(1)[0])
            case "APPENDS":
                items = above_mark()
                _list(stack[-1]).extend(items)
            case "SETITEM":
                name, item = last(2)
                _dict(stack[-1])[_key(name)] = item
            case "SETITEMS":
                items = above_mark()
                _dict(stack[-1]).update(zip(map(_key, items[::2]), items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_Name(value))
            case "STACK_GLOBAL":
                stack.append(_Name(" ".join(last(2))))
            case "BINPERSID":
                stack.append(_stored(last(1)[0], storage))
            case "REDUCE":
                stack.append(_call(*last(2)))
            case "BUILD":
                last(1)
            case other:
                raise TorchFileError(f"refused: its description uses {other} at byte {place}, which no tensor needs")
    raise TorchFileError("its description has no end")


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise TorchFileError(f"its description appends to {type(value).__name__}")
    return value


def _dict(value: Any) -> dict:
    if not isinstance(value, dict):
        raise TorchFileError(f"its description sets an item of {type(value).__name__}")
    return value


def _key(value: Any) -> str:
    """A name; to hash anything else, such as tuples of tuples of tuples, may take for ever."""
    if not isinstance(value, str):
        raise TorchFileError(f"expected tensors by name, found {repr(value)} as a name; save the state_dict() alone")
    return value


def _stored(reference: Any, storage: FindStorage) -> _Storage:
    """The storage that ``("storage", type, name, device, length)`` stands for; before torch 1.6 a None follows."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage" or any(reference[5:]):
        raise TorchFileError(f"expected a reference to a storage, found {repr(reference)}")
    _, kind, name, _, length = reference[:5]
    if not isinstance(kind, _Name) or kind.text not in DTYPES:
        raise TorchFileError(f"refused: expected a storage of {_known()}, found {repr(getattr(kind, 'text', kind))}")
    if not isinstance(name, str) or not name.isalnum() or not isinstance(length, int):
        raise TorchFileError(f"expected the name and length of a storage, found {repr(name)} and {repr(length)}")
    return _Storage(storage(kind.text, name, length))


def _known() -> str:
    return ", ".join(name.removeprefix("torch ") for name in DTYPES)


def _call(name: Any, arguments: tuple) -> Any:
    """What the few functions of a state dict give."""
    match name:
        case _Name("collections OrderedDict") if arguments == ():
            return {}
        case _Name("torch._utils _rebuild_tensor_v2"):
            return _tensor(*arguments[:4])
        case _Name("torch._utils _rebuild_parameter"):
            return arguments[0]
    raise TorchFileError(
        f"refused: asks to run {repr(getattr(name, 'text', name))}; a file of weights needs no code, so do not trust "
        "it. If it is yours, save the model's state_dict() alone"
    )


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """A tensor as a view of its part of a storage, which must hold all of it."""
    if not isinstance(storage, _Storage):
        raise TorchFileError(f"expected the storage of a tensor, found {type(storage).__name__}")
    numbers = storage.numbers
    if any(not isinstance(n, int) or n < 0 for n in [offset, *shape, *strides]) or len(shape) != len(strides):
        raise TorchFileError(f"expected a tensor, found offset {repr(offset)}, shape {repr(shape)}, {repr(strides)}")
    size = math.prod(shape)
    end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1 if size else offset
    if end > numbers.size or size > numbers.size:
        raise TorchFileError(f"a tensor of shape {list(shape)} reaches past the {numbers.size} numbers of its storage")
    bytes_apart = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, bytes_apart, writeable=False)
