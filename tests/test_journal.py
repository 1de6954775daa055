"""The run folder: never overwritten by accident, no record lost or torn, rewound on resume, data and place recorded."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.training import journal as journal_module
from attn_jax.training import run_folder
from attn_jax.training.environment import PACKAGES, environment, git_revision
from attn_jax.training.journal import RunFolderError, format_samples, read_metrics
from attn_jax.training.run_folder import NAMES, alone, check_alone, create


@pytest.fixture
def run(tmp_path):
    """A run with every one of its files, and one file of the user's."""
    journal = create(tmp_path / "run")
    journal.write_config({"d_model": 4})
    journal.write_data({"train": [{"path": "train.de", "sha256": "aa"}]})
    journal.log(10, {"loss": 2.5})
    journal.write_samples(10, [{"source": "ein hund .", "output": "a dog ."}])
    for folder in (journal.checkpoints, journal.model, journal.vocabulary):
        folder.mkdir()
        (folder / "weights").write_bytes(b"w")
    (journal.folder / "notes.txt").write_text("mine")
    return journal


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_never_overwritten_by_accident(run):
    before = contents(run.folder)
    assert {name.split("/")[0] for name in before} == {*NAMES, "notes.txt"}
    message = (
        r"run: holds a run already \(config.json\); go on with --resume, replace it with --overwrite, or choose an"
    )
    with pytest.raises(RunFolderError, match=message) as error:
        create(run.folder)
    assert "\n" not in str(error.value) and contents(run.folder) == before


@pytest.mark.parametrize("name", NAMES)
def test_each_single_trace_of_a_run_is_enough(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(RunFolderError, match=f"holds a run already \\({name}\\)"):
        create(tmp_path)
    with pytest.raises(
        RunFolderError, match=rf"holds {name}, but no environment.json of a run, so nothing was removed"
    ):
        create(tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_overwrite_removes_the_run_and_nothing_else(run, tmp_path):
    weights = tmp_path / "elsewhere"
    run.checkpoints.rename(weights)
    run.checkpoints.symlink_to(weights)
    (run.folder / ".model.replaced").mkdir()
    (run.folder / ".model.replaced" / "config.json").touch()  # of a save that was killed
    create(str(run.folder), overwrite=True)
    assert contents(run.folder).keys() == {"environment.json", "notes.txt"} and (weights / "weights").is_file()
    assert len(json.loads((run.folder / "environment.json").read_text())) == 1


@pytest.mark.parametrize("text", ["[]", "{}", "[1]", "no JSON"])
def test_foreign_folders_are_not_removed(tmp_path, text):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(RunFolderError, match="nothing was removed"):
        create(tmp_path, overwrite=True)
    assert (tmp_path / "checkpoints").is_dir() and (tmp_path / "environment.json").read_text() == text


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_model_that_is_of_no_run_stays(tmp_path, overwrite):
    (tmp_path / ".model.replaced").mkdir()  # all that a killed save of a translator left
    create(tmp_path, overwrite=overwrite)
    assert (tmp_path / ".model.replaced").is_dir()


def test_resume_goes_on(run):
    before = contents(run.folder)
    journal = create(run.folder, resume=True)
    assert journal.read_config() == {"d_model": 4} and journal.read_metrics()[0]["loss"] == 2.5
    after = contents(run.folder)
    starts = json.loads(after.pop("environment.json"))
    assert len(starts) == 2 and starts[:1] == json.loads(before.pop("environment.json")) and after == before


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"no run to resume \(config.json is missing\); start it without --resume"):
        create(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    create(tmp_path / "new")  # and is killed before it writes its configuration
    with pytest.raises(RunFolderError, match="start it with --overwrite"):
        create(tmp_path / "new", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="found a file; choose another --out"):
        create(tmp_path / "file")
    with pytest.raises(RunFolderError, match="file is a file, so no folder can be made in it; choose another --out"):
        create(tmp_path / "file" / "below" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="found a file; choose another --out"):
        create(tmp_path / "link")
    with pytest.raises(RunFolderError, match="found both; choose one"):
        create(tmp_path / "new", resume=True, overwrite=True)


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(RunFolderError, match=r"run: nothing can be written in .*; choose another --out, or allow it"):
        create(tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()


def test_one_process_trains_in_a_folder(tmp_path):
    code = f"import attn_jax.training.run_folder as f, sys; f.check_alone({str(tmp_path / 'run')!r})"
    with alone(tmp_path / "run"):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "run: another process trains here; wait until it ends, stop it, or choose another --out" in other.stderr
    check_alone(tmp_path / "run")
    check_alone(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_folder, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    with alone(tmp_path / "run"):
        check_alone(tmp_path / "run")


def test_garbled_records(run):
    (run.folder / "config.json").write_text('{"d_model": }')
    with pytest.raises(RunFolderError, match=r"config.json:1:13: not valid JSON .*; restore the file, or start anew"):
        run.read_config()
    (run.folder / "data.json").write_text("")
    with pytest.raises(RunFolderError, match=r"data.json:1:1: not valid JSON"):
        run.check_data({})
    (run.folder / "environment.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"environment.json: expected the environments of a run; move it away"):
        create(run.folder, resume=True)


def test_metrics_are_strict_json_lines(run):
    run.log(20, {"loss": jnp.float32(jnp.nan), "bleu": np.float64(12.5), "words": "café"})
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 3 and lines[-1] == ""

    def refuse(word):
        raise AssertionError(word)

    record = json.loads(lines[1], parse_constant=refuse)
    assert {**record, "time": 0} == {"step": 20, "time": 0, "loss": "nan", "bleu": 12.5, "words": "café"}
    assert run.read_metrics()[1] == record
    with pytest.raises(RunFolderError, match="other than 'step' and 'time', found 'step'"):
        run.log(30, {"step": 3})


@pytest.mark.parametrize("torn", [b"{", b'{"step": 20, "lo', b'{"step": 2', b"\0\0\0\0", "é".encode()[:1], b"20"])
def test_a_torn_last_line_is_left_out_and_mended(run, torn):
    path = run.folder / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(torn)
    assert [r["step"] for r in run.read_metrics()] == [10]
    create(run.folder, resume=True).log(20, {"loss": 1.0})
    assert [r["step"] for r in run.read_metrics()] == [10, 20] and torn not in path.read_bytes().split(b"\n")


def test_a_whole_last_line_without_its_end_is_kept(run):
    path = run.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert [r["step"] for r in run.read_metrics()] == [10]
    create(run.folder, resume=True).log(20, {})
    assert [r["step"] for r in run.read_metrics()] == [10, 20]


def test_an_earlier_bad_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(RunFolderError, match=r"metrics.jsonl:2: expected a JSON object with a step"):
        read_metrics(path)
    assert read_metrics(tmp_path / "absent") == []


def test_rewind_drops_what_will_be_written_once_more(run):
    for step in (20, 30):
        run.log(step, {"loss": 1.0})
        run.write_samples(step, [{"source": "== step 5 ==", "output": "x\u2028== step 99 ==\n== step 1 =="}])
    samples = (run.folder / "samples.txt").read_text(encoding="utf-8")
    assert run.rewind(30) == 0 and (run.folder / "samples.txt").read_text(encoding="utf-8") == samples
    with (run.folder / "samples.txt").open("a") as file:
        file.write("== step 30 ==\n  torn")
    assert run.rewind(20) == 1 and [r["step"] for r in run.read_metrics()] == [10, 20]
    found = (run.folder / "samples.txt").read_text(encoding="utf-8")
    assert found == samples[: samples.index("== step 30 ==")] and found.endswith("\\n== step 1 ==\n\n")
    run.log(30, {})
    assert [r["step"] for r in run.read_metrics()] == [10, 20, 30]
    assert run.rewind(0) == 3 and run.read_metrics() == [] and (run.folder / "samples.txt").read_text() == ""


def test_samples_read_well():
    text = format_samples(7, [{"source": "ein", "reference": "a"}, {"output": "b\r\nc"}])
    assert text == "== step 7 ==\n  source     ein\n  reference  a\n\n  output  b\\r\\nc\n\n"


def test_a_resumed_run_reads_the_same_data(run):
    data = {"train": [{"path": "train.de", "sha256": "aa"}, {"path": "train.en", "sha256": "bb"}], "valid": []}
    run.write_data(data)
    assert json.loads((run.folder / "data.json").read_text()) == data
    run.check_data({**data, "train": [{**file, "path": "moved"} for file in data["train"]]})  # the content counts
    other = {**data, "train": [data["train"][0], {"path": "other.en", "sha256": "cc"}]}
    with pytest.raises(RunFolderError, match=r"other.en: the run in .* started with other train text: expected bb"):
        run.check_data(other)
    with pytest.raises(RunFolderError, match="started with other valid text: expected no file, found dd; resume with"):
        run.check_data({**data, "valid": [{"path": "valid.de", "sha256": "dd"}]})
    with pytest.raises(RunFolderError, match="started with other train text: expected aa, found no file"):
        run.check_data({"valid": []})


@pytest.mark.parametrize("text", ["[]", "3", '{"train": 1}', '{"train": [{}]}', "", None])
def test_garbled_data(run, text):
    (run.folder / "data.json").unlink() if text is None else (run.folder / "data.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"data.json.*; restore the file, or start anew with --overwrite"):
        run.check_data({"train": []})


def test_a_short_write_is_an_error(run, monkeypatch):
    monkeypatch.setattr(journal_module.os, "write", lambda descriptor, content: len(content) - 1)
    with pytest.raises(OSError, match="is the disk full"):
        run.log(20, {})


def test_environment(tmp_path):
    found = environment()
    assert found["packages"].keys() == set(PACKAGES) and found["packages"]["jax"] and found["cores"] >= 1
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and found["devices"] and found["memory_gb"] > 0
    assert json.loads(json.dumps(found)) == found


def test_git_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision(tmp_path) is None  # no checkout
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    try:
        for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
            subprocess.run([*git, *command], check=True, capture_output=True)
    except OSError:
        pytest.skip("git is not installed")
    found = git_revision(tmp_path)
    assert len(found["revision"]) == 40 and found["dirty"] is False
    (tmp_path / "file").write_text("new")
    subprocess.run([*git, "add", "file"], check=True)
    assert git_revision(tmp_path)["dirty"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) is None  # no git
