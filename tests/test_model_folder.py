"""The model folder: exact round trips, one-line errors for every missing or garbled file, atomic replacement."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from attn_jax.storage import manifest, model_folder
from attn_jax.storage.files import IntegrityError, plain, put_in_place, read_json, replaced_name, saving_name
from attn_jax.storage.model_folder import ModelFolderError, load_model_folder, save_model_folder

CONFIG = {"d_model": 4, "words": ["été", "naïve"], "dropout": 0.1, "tied": None}
PARAMS = {
    "encoder": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([1.0, -0.0, 3.5], jnp.bfloat16)},
    "scale": np.float32(0.1).reshape(()),
    "empty": np.zeros((0, 3), np.float32),
}


def save(path, **changes):
    kwargs = {
        "files": {"source.vocab": b"a\nb\n", "target.vocab": lambda p: p.write_text("c\n")},
        "card": "# A model\n",
    }
    return save_model_folder(path, changes.pop("config", CONFIG), changes.pop("params", PARAMS), **kwargs | changes)


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model")


def reseal(folder, name):
    """Makes the manifest agree with a file changed by hand, to reach the checks behind the hashes."""
    (folder / manifest.NAME).unlink()
    manifest.write_manifest(folder, format=model_folder.FORMAT)
    assert name in manifest.read_manifest(folder)["files"]


def test_round_trip_is_exact(folder):
    config, params, path = load_model_folder(str(folder))
    assert config == CONFIG and path == folder
    assert (path / "source.vocab").read_bytes() == b"a\nb\n" and (path / "target.vocab").read_text() == "c\n"
    assert (path / "MODEL_CARD.md").read_text() == "# A model\n"
    assert params.keys() == PARAMS.keys()
    for found, saved in [
        (params["encoder"]["kernel"], PARAMS["encoder"]["kernel"]),
        (params["encoder"]["bias"], PARAMS["encoder"]["bias"]),
        (params["scale"], PARAMS["scale"]),
        (params["empty"], PARAMS["empty"]),
    ]:
        assert type(found) is np.ndarray and found.dtype == saved.dtype and found.shape == saved.shape
        assert found.tobytes() == np.asarray(saved).tobytes()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]  # no scratch folder is left


def test_hand_computed_hash(tmp_path):
    folder = save(tmp_path / "m", files={"abc": b"abc"})
    entry = json.loads((folder / "manifest.json").read_text())["files"]["abc"]
    # the test vector of FIPS 180-2, appendix B.1
    assert entry == {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


def test_strides_are_respected(tmp_path):
    """safetensors writes the memory of an array as it lies; a transposed view must not come back scrambled."""
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3).T
    loaded = load_model_folder(save(tmp_path / "m", params={"kernel": kernel})).params["kernel"]
    np.testing.assert_array_equal(loaded, [[0, 3], [1, 4], [2, 5]])


def test_a_folder_of_model_folders(folder):
    with pytest.raises(ModelFolderError, match="expected a run or model folder, found nothing of one"):
        load_model_folder(folder.parent)


@pytest.mark.parametrize(
    "name", ["config.json", "params.safetensors", "MODEL_CARD.md", "source.vocab", "manifest.json"]
)
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=rf"{name}: missing; copy the model folder again") as error:
        load_model_folder(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["config.json", "params.safetensors", "MODEL_CARD.md", "target.vocab", "manifest.json"]
)
def test_every_flipped_byte_is_noticed(folder, name):
    whole = (folder / name).read_bytes()
    for place in np.linspace(0, len(whole) - 1, 40).astype(int):
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if name == "manifest.json" and json.loads(whole) == _tolerant(folder / name):
            continue  # white space
        with pytest.raises(ModelFolderError, match="manifest" if name == "manifest.json" else name) as error:
            load_model_folder(folder)
        assert "\n" not in str(error.value)
    (folder / name).write_bytes(whole)
    load_model_folder(folder)


def _tolerant(path):
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_differing_hash_names_both(folder):
    (folder / "source.vocab").write_bytes(b"a\nB\n")
    expected = manifest.read_manifest(folder)["files"]["source.vocab"]["sha256"]
    with pytest.raises(
        ModelFolderError, match=f"source.vocab: sha256 differs: expected {expected}, found [0-9a-f]{{64}}"
    ):
        load_model_folder(folder)


def test_truncated(folder):
    (folder / "params.safetensors").write_bytes((folder / "params.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelFolderError, match=r"params.safetensors: expected \d+ bytes, found \d+"):
        load_model_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "d_model": 4,\n  oops\n}', r"config.json:3:3: not valid JSON"),
        (b'{"a": "\xff"}', "config.json: not UTF-8 at byte 7"),
        (b"[" * 100_000, "config.json: not valid JSON .nested too deeply"),
        (b"[1]", "config.json: expected a JSON object, found list"),
    ],
)
def test_garbled_config(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelFolderError, match=message):
        load_model_folder(folder)


def test_broken_header_and_dtype(folder):
    path = folder / "params.safetensors"
    for content in (b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}rest"):
        path.write_bytes(content)
        reseal(folder, path.name)
        with pytest.raises(ModelFolderError, match=r"params.safetensors: safetensors header broken \("):
            load_model_folder(folder)
    save_file({"encoder.codes": np.zeros(3, np.int8)}, path)
    reseal(folder, path.name)
    with pytest.raises(
        ModelFolderError, match=r"tensor encoder.codes of unexpected dtype: expected F32 or BF16, found I8"
    ):
        load_model_folder(folder)
    save_file({"a": np.zeros(3, np.float32), "a.b": np.zeros(3, np.float32)}, path)
    reseal(folder, path.name)
    with pytest.raises(ModelFolderError, match=r"params.safetensors: the name 'a' is also the beginning of 'a.b'"):
        load_model_folder(folder)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "expected an object with an entry 'files'"),
        (
            {"files": {"../../secret": {"bytes": 1, "sha256": ""}}},
            r"expected a file name inside the folder, found '../../s",
        ),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, "expected a file name inside the folder"),
        ({"files": {"config.json": 3}}, "expected 'bytes' and 'sha256' for config.json, found 3"),
        ({"files": {}}, "expected format 'attn_jax model folder, 1', found None"),
        ({"files": {}, "format": model_folder.FORMAT}, "does not list config.json"),
    ],
)
def test_forged_manifest(folder, record, message):
    if record:
        record["sha256"] = manifest._own_sha256(record)
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ModelFolderError, match=rf"manifest.json: {message}"):
        load_model_folder(folder)


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/b", "a\\b", "", ".", "..", ".hidden", "c:x", "a\nb", "config.json", "manifest.json"]
)
def test_extra_names_stay_inside(tmp_path, name):
    with pytest.raises(ModelFolderError, match=r"^files: expected"):
        save(tmp_path / "m", files={name: b""})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {"a": np.zeros(2)}}, "expected float32 or bfloat16 for a, found float64; cast it first"),
        ({"params": {"a": {"b": 1.0}}}, "for a.b, found float;"),
        ({"params": {"a": {}}}, "for a, found"),
        ({"params": {"a.b": np.zeros(2, np.float32)}}, "without a dot"),
        ({"params": {0: np.zeros(2, np.float32)}}, "non-empty strings"),
        ({"config": {"a": {1: 2}}}, "config.json: expected string keys"),
        ({"config": {"a": object()}}, "config.json: expected something that JSON can hold; found object"),
        ({"files": {"v": lambda path: None}}, "the function for v wrote no file"),
    ],
)
def test_what_cannot_be_saved(tmp_path, changes, message):
    with pytest.raises(ModelFolderError, match=message):
        save(tmp_path / "m", **changes)
    assert not list(tmp_path.iterdir())


def test_overwrite_only_when_asked(folder):
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ModelFolderError, match="is not empty; choose another folder, or allow overwriting"):
        save(folder, config={"d_model": 8})
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    (folder / "notes.txt").write_text("mine")
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").write_bytes(b"png")
    save(folder, config={"d_model": 8}, files={"other.vocab": b""}, overwrite=True)
    assert load_model_folder(folder).config == {"d_model": 8}
    assert not (folder / "source.vocab").exists()  # the former model's own file
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "figures" / "a.png").is_file()
    save(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_never_replaces_what_is_no_model(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelFolderError, match=r"not known to be a model folder \(.*manifest.json: missing\)"):
        save(home, overwrite=True)
    (home / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(ModelFolderError, match=r"manifest.json is not a model folder's"):
        save(home, overwrite=True)
    with pytest.raises(ModelFolderError, match="found a file"):
        save(home / "thesis.tex", overwrite=True)
    with pytest.raises(ModelFolderError, match="found a file"):
        load_model_folder(home / "thesis.tex")
    assert (home / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_folder_is_as_good_as_none(tmp_path, overwrite):
    (tmp_path / "model").mkdir()
    assert load_model_folder(save(tmp_path / "model", overwrite=overwrite)).config == CONFIG
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_comes_into_an_empty_folder_meanwhile_is_not_lost(tmp_path):
    path = tmp_path / "model"
    path.mkdir()

    def write(scratch):
        scratch.write_bytes(b"a")
        (path / "thesis.tex").write_text("years of work")

    with pytest.raises(ModelFolderError, match="model: is not empty"):
        save(path, files={"source.vocab": write})
    assert [p.name for p in tmp_path.iterdir()] == ["model"] and [p.name for p in path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = save(tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_failing_save_leaves_the_old_model(folder, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(folder, config={"d_model": 8}, files={"v": fail}, overwrite=True)
    assert load_model_folder(folder).config == CONFIG and [p.name for p in folder.parent.iterdir()] == ["model"]


def test_leftovers_of_a_kill(folder):
    """A killed save leaves a half-written scratch folder; between two renames, the old model under another name."""
    saving_name(folder).mkdir()
    (saving_name(folder) / "params.safetensors").write_bytes(b"half")
    assert load_model_folder(folder).config == CONFIG
    save(folder, config={"d_model": 8}, overwrite=True)
    assert load_model_folder(folder).config == {"d_model": 8} and not saving_name(folder).exists()
    folder.rename(replaced_name(folder))
    with pytest.raises(
        ModelFolderError, match=r"interrupted save left the model in .*\.model\.replaced: rename it to model"
    ):
        load_model_folder(folder)
    save(folder)
    assert load_model_folder(folder).config == CONFIG and not replaced_name(folder).exists()


def test_put_in_place_killed_between_renames(tmp_path, monkeypatch):
    old, new = tmp_path / "x", tmp_path / ".x.saving"
    for path in (old, new):
        path.mkdir()
        (path / "who").write_text(path.name)
    rename = Path.rename

    def killed(path, target):
        if path == new:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(new, old)
    assert (replaced_name(old) / "who").read_text() == "x"


def test_absent(tmp_path):
    with pytest.raises(ModelFolderError, match=r"nowhere: missing; expected a model folder: check the name"):
        load_model_folder(tmp_path / "nowhere")
    assert issubclass(ModelFolderError, ValueError)


def test_plain_and_read_json(tmp_path):
    assert plain([jnp.float32(1.5), np.array([[1, 2]]), float("inf"), True, Path("a") / "b", None]) == (
        [1.5, [[1, 2]], "inf", True, "a/b", None]
    )
    assert np.isnan(float(plain(jnp.nan)))
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_json(tmp_path)
