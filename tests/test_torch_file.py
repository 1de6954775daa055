"""Files of torch: read like torch, without torch and without running them."""

import collections
import io
import pickle
import zipfile

import numpy as np
import pytest

from attn_jax.convert.torch_file import TorchFileError, read_torch_file


def archive(path, description, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("model/data.pkl", description)
        for name, numbers in enumerate(storages):
            file.writestr(f"model/data/{name}", np.asarray(numbers, np.float32).tobytes())
    return path


def pickles(path, saved, names=("0",), storages=(range(6),), machine=None):
    """The format before torch 1.6."""
    machine = {"little_endian": True} if machine is None else machine
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, machine)]
    data = [len(numbers).to_bytes(8, "little") + np.asarray(numbers, np.float32).tobytes() for numbers in storages]
    path.write_bytes(b"".join([*head, saved, description(list(names)), *data]))
    return path


class Reference:
    """Pickles a tensor as torch does, without torch."""

    def __init__(self, *arguments, function="torch._utils _rebuild_tensor_v2"):
        self.arguments, self.function = arguments, function


def description(value):
    """Pickle in which names are just written down."""
    out = io.BytesIO()

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return ("storage", Name(obj[0]), *obj[1:]) if isinstance(obj, Stored) else None

        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Name):
                self.write(b"c" + obj.replace(" ", "\n").encode() + b"\n")
            elif isinstance(obj, Reference):
                self.save(Name(obj.function))
                self.save(obj.arguments)
                self.write(b"R")
            else:
                super().save(obj, save_persistent_id)

    Pickler(out, protocol=2).dump(value)
    return out.getvalue()


class Name(str):
    pass


class Stored(tuple):
    pass


def tensor(shape=(2, 3), strides=(3, 1), offset=0, kind="torch FloatStorage", length=6):
    return Reference(Stored((kind, "0", "cpu", length)), offset, shape, strides, False, None)


def test_a_dictionary_by_hand(tmp_path):
    file = archive(tmp_path / "a.bin", description({"w": tensor(), "t": tensor((3, 2), (1, 3))}), [range(6)])
    found = read_torch_file(file)
    assert found["w"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["w"].dtype == np.float32
    assert found["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert not np.shares_memory(found["w"], found["t"]) and found["w"].flags.writeable


def old(length=6, name="0", view=None, **changes):
    """`tensor` as torch before 1.6 pickles it."""
    made = tensor(length=length, **changes)
    kind, _, device, _ = made.arguments[0]
    made.arguments = (Stored((kind, name, device, length, view)), *made.arguments[1:])
    return made


def test_a_dictionary_of_old_by_hand(tmp_path):
    value = {"t": old(shape=(3, 2), strides=(1, 3)), "one": old(1, "1", shape=(), strides=())}
    found = read_torch_file(pickles(tmp_path / "a.bin", description(value), ["0", "1"], [range(6), [7]]))
    assert found["t"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["one"] == 7


@pytest.mark.parametrize(
    ("value", "others", "message"),
    [
        ({"w": old(view=("1", 0, 6))}, {}, "expected a reference to a storage"),
        ({"w": old(1 << 40)}, {}, "expected 1099511627776 numbers of float32, found a file of"),
        ({"w": old(), "v": old(5)}, {}, "says two things of the storage 0"),
        ({"w": old()}, {"names": ["1"]}, r"expected the numbers of 1 storages, found \['1'\]"),
        ({"w": old()}, {"names": [tensor()]}, "damaged"),
        ({"w": old()}, {"storages": [range(5)]}, "ends inside the storage 0, or is damaged there"),
        ({"w": old()}, {"storages": [range(7)]}, "ends inside the storage 0, or is damaged there"),
        ({"w": old()}, {"machine": {"little_endian": False}}, "holds big-endian numbers"),
        ({"w": old()}, {"machine": []}, "is a pickle, but not one that torch.save wrote"),
        ({"w": Reference("echo", function="os system")}, {}, "refused: asks to run 'os system'"),
    ],
)
def test_what_of_old_is_refused(tmp_path, value, others, message):
    with pytest.raises(TorchFileError, match=message) as raised:
        read_torch_file(pickles(tmp_path / "a.bin", description(value), **others))
    assert "a.bin" in str(raised.value) and "\n" not in str(raised.value)


def test_every_cut_of_an_old_file_is_seen(tmp_path):
    whole = pickles(tmp_path / "a.bin", description({"w": old()})).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.bin").write_bytes(whole[:length])
        with pytest.raises(TorchFileError, match=r"cut\.bin: .*(copy it again|torch.save wrote)"):
            read_torch_file(tmp_path / "cut.bin")


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Evil(), "refused: asks to run '__builtin__ exec'"),
        ({"w": Reference("echo", function="os system")}, "refused: asks to run 'os system'"),
        ({"w": Reference("1", function="builtins eval")}, "refused: asks to run"),
        ({"w": tensor(kind="torch ComplexFloatStorage")}, "refused: expected a storage of FloatStorage"),
        ({"w": tensor((9,), (1,))}, "reaches past the 6 numbers"),
        ({"w": tensor((1 << 40,), (0,))}, "reaches past the 6 numbers"),
        ({"w": tensor(offset=-1)}, "expected a tensor, found offset -1"),
        ({"w": Reference(tensor(), 4, (2,), (1,))}, "expected the storage of a tensor, found ndarray"),
        ({"w": tensor(length=7)}, "expected 7 numbers of float32 in data/0, found 6"),
        ({"w": 3}, "expected tensors by name, found 'w' of type int"),
        ([tensor()], "expected a dictionary of tensors, found list"),
        ({(1, 2): tensor()}, r"expected tensors by name, found \(1, 2\) as a name"),
        # a tuple of the same tuple twice, 60 deep: 2^60 of them to hash, or to write out
        (b"\x80\x02})" + 60 * b"q\x00h\x00\x86" + b"Ns.", "expected tensors by name"),
        (b"\x80\x02)" + 60 * b"q\x00h\x00\x86" + b"Q.", "expected a reference to a storage"),
        ({"w": tensor((1, 6), (2**62, 1))}, "damaged"),
        ({"w": pickle.PickleBuffer}, "expected tensors by name, found 'w' of type _Name"),
    ],
)
def test_what_is_refused(tmp_path, value, message):
    text = pickle.dumps(value, 2) if isinstance(value, Evil) else value
    text = text if isinstance(text, bytes) else description(value)
    with pytest.raises(TorchFileError, match=message) as raised:
        read_torch_file(archive(tmp_path / "a.bin", text, [range(6)]))
    assert "a.bin" in str(raised.value) and "\n" not in str(raised.value)


def test_other_instructions_are_refused(tmp_path):
    for text in (b"\x80\x02(ios\nsystem\n.", b"\x80\x02cos\nsystem\n)\x81.", b"cos\nsystem\n(Vecho\ntR."):
        with pytest.raises(TorchFileError, match="refused"):
            read_torch_file(archive(tmp_path / "a.bin", text))
    for text in (b"", b"\x80\x02", b"\x80\x02R.", b"\x80\x02h\x07.", b"nonsense"):
        with pytest.raises(TorchFileError, match=r"description|damaged"):
            read_torch_file(archive(tmp_path / "a.bin", text))


def test_damaged_and_other_files(tmp_path):
    good = archive(tmp_path / "a.bin", description({"w": tensor()}), [range(6)])
    (tmp_path / "cut.bin").write_bytes(good.read_bytes()[:-40])
    (tmp_path / "pickle.bin").write_bytes(5 * pickle.dumps({}, 2))
    (tmp_path / "page.bin").write_bytes(b"<!doctype html>")
    packed = archive(tmp_path / "packed.bin", description({"w": tensor()}), [range(6)], zipfile.ZIP_DEFLATED)
    empty = archive(tmp_path / "empty.bin", description({"w": tensor()}))
    for file, message in (
        ("cut.bin", "damaged"),
        ("pickle.bin", "is a pickle, but not one that torch.save wrote"),
        ("page.bin", "expected what torch.save wrote, found a file that begins with b'<!do'"),
        (packed.name, "expected data.pkl as it is, found it compressed"),
        (empty.name, "damaged"),
    ):
        with pytest.raises(TorchFileError, match=message):
            read_torch_file(tmp_path / file)
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "absent.bin")


def test_what_torch_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch: pip install torch")
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
    tensors = collections.OrderedDict(model.state_dict())
    tensors |= {"view": base.T[1:3], "shared": base, "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    tensors |= {str(kind): base.to(kind) for kind in kinds} | {"parameter": torch.nn.Parameter(base)}
    for value in (tensors, model.state_dict()):
        for of_today in (True, False):
            torch.save(value, tmp_path / "saved", _use_new_zipfile_serialization=of_today)
            found = read_torch_file(tmp_path / "saved")
            assert list(found) == list(value)
            for key, expected in value.items():
                assert found[key].dtype.name == str(expected.dtype).removeprefix("torch.")
                np.testing.assert_array_equal(found[key].astype(np.float64), expected.detach().double().numpy(), key)
    torch.save(model, tmp_path / "whole")
    with pytest.raises(TorchFileError, match="refused"):
        read_torch_file(tmp_path / "whole")
