"""What a user gets wrong: one line, exit code 2, and nothing on the disk that was not there before."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from test_main_job import TINY, TRAINED, fails, make_text, make_trained, run, train_command

from attn_jax import cli, run_config
from attn_jax import run as runs
from attn_jax.hub import Translator
from attn_jax.training import journal, run_folder
from attn_jax.training.loop import TrainResult
from attn_jax.verbs.train import Train, model_settings


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_trained(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the trained run that a test may change."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def config_of(run):
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "2"], "training.seed 1, found 2"),
        (["--no-lowercase"], "data.lowercase True, found False"),
        (["--precision", "bfloat16"], "precision float32, found bfloat16"),
        (["--batch-tokens", "512"], "data.batching.batch_tokens 1024, found 512"),
        (["--label-smoothing", "0"], "training.label_smoothing 0.1, found 0.0"),
        (["--vocab-size", "150"], "data.vocab_size 200, found 150"),
        (["--model", "transformer"], "family recurrent, found transformer"),
        (["decoder_hidden=16"], "model.decoder_hidden 32, found 16"),
        (["attention=additive"], "model.attention nothing, found additive"),
        (['attention_options={"num_heads": 2}'], "model.attention_options"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_resume_holds_a_run_to_its_settings(copy, text, capsys, options, said):
    before = contents(copy)
    flags, settings = options if options[0].startswith("--") else [], options if "=" in options[0] else []
    error = fails(capsys, *train_command(text, copy, *TRAINED, "--resume", *flags), *settings)
    assert f"the run was started with {said}" in error and "start anew with --overwrite" in error
    assert contents(copy) == before


def test_resume_of_a_tuned_run_needs_no_other_model(copy, trained, text, tmp_path, capsys):
    """Settings and vocabularies are in the run folder, so nothing that happens to the first model can change them."""
    base, out = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(trained / "model", base)
    command = train_command(text, out, "--init-from", base)[: -len(TINY) - 1]
    run(capsys, *command, "--steps", "1")
    assert config_of(out)["data"]["lowercase"] and config_of(out)["data"]["vocab_size"] == 200
    shutil.rmtree(out / "checkpoints")  # as if it had been stopped before the first one: it starts from the model again
    run(capsys, *command, "--steps", "1", "--resume", "--learning-rate", "1e-9")
    before, after = Translator.load(trained).params, Translator.load(out).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, after)
    shutil.rmtree(base)
    run(capsys, *command, "--steps", "2", "--resume")
    assert Translator.load(out).src_vocab == Translator.load(trained).src_vocab
    error = fails(capsys, *train_command(text, out, "--steps", "3", "--resume"))
    assert f"the run was started with --init-from {base}; resume with it" in error
    (out / "vocabulary" / "src.json").unlink()
    assert "src.json" in fails(capsys, *command, "--steps", "3", "--resume")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--vocabulary", "word"], "vocabulary bpe, and the run asks for word"),
        (["--vocab-size", "150"], "vocab_size 200, and the run asks for 150"),
        (["--separate"], "separate False, and the run asks for True"),
    ],
)
def test_a_tuned_run_keeps_the_vocabulary(trained, text, tmp_path, capsys, options, said):
    command = train_command(text, tmp_path / "out", "--init-from", trained, "--lowercase", *options)
    assert f"holds a vocabulary with {said}; leave it out" in fails(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_resume_with_other_text(copy, text, tmp_path, capsys):
    lines = (text / "train.en").read_text(encoding="utf-8").splitlines()
    (tmp_path / "other.en").write_text("\n".join([*lines[:-1], "the dog sleeps"]) + "\n", encoding="utf-8")
    before = contents(copy)
    error = fails(capsys, *train_command(text, copy, *TRAINED, "--resume", "--src", tmp_path / "other.en"))
    assert "other.en: the run in" in error and "was started with other train text" in error
    assert contents(copy) == before


def test_resume_may_go_on_for_longer(copy, text, tmp_path, capsys, monkeypatch):
    """More steps, files that have moved, and a precision that would be measured differently today."""
    monkeypatch.setattr(run_config, "faster_precision", lambda: "bfloat16")
    shutil.copy(text / "train.en", tmp_path / "moved.en")
    more = ["--steps", "25", "--precision", "auto", "--src", tmp_path / "moved.en"]
    assert "precision float32" in run(capsys, *train_command(text, copy, *TRAINED, "--resume", *more))
    config = config_of(copy)
    assert config["precision"] == "float32" and config["training"]["steps"] == 25
    assert config["data"]["src"] == str(tmp_path / "moved.en")
    records = journal.read_metrics(copy / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "valid"] == [12, 24, 25]
    assert [r["step"] for r in records if r["kind"] == "end"] == [24, 25]


def test_resume_of_garbled_settings(copy, text, capsys):
    for content, said in (("{}", "nothing, found"), ("[]", "expected a JSON object"), ("{", "1:2: not valid JSON")):
        (copy / "config.json").write_text(content)
        before = contents(copy)
        assert said in fails(capsys, *train_command(text, copy, *TRAINED, "--resume", "--precision", "auto"))
        assert contents(copy) == before


# ----------------------------------------------------------------------------------------------------------- overwrite


def test_overwrite_touches_nothing_before_everything_is_checked(copy, text, tmp_path, capsys):
    (copy / "notes.txt").write_text("mine")
    before = contents(copy)
    long = "the quick brown fox jumps over the lazy dog " * 8
    (tmp_path / "long.tsv").write_text(f"{long}\t{long}\n" * 3)
    for flags, settings, said in (
        (["--seed", "-1"], [], "seed must be between"),
        (["--init-from", copy, "--lowercase"], ["embed_dim=8"], "the parameters to start from do not fit the model"),
        (["--init-from", tmp_path], [], "expected a run or model folder, found nothing of one"),
        (["--valid-src", tmp_path / "long.tsv", "--max-len", "60"], [], "none of the 3 pairs has at most max_len 60"),
        (["--valid-src", tmp_path / "absent.tsv"], [], "absent.tsv"),
        ([], ["colour=blue"], "unknown settings"),
        (["--resume"], [], "found both; choose one"),
    ):
        assert said in fails(capsys, *train_command(text, copy, "--steps", "1", "--overwrite", *flags), *settings)
        assert contents(copy) == before


def test_overwrite_replaces_the_run(copy, text, capsys, monkeypatch):
    (copy / "notes.txt").write_text("mine")
    monkeypatch.setattr(run_config, "faster_precision", lambda: "float32")
    before = contents(copy)
    run(capsys, *train_command(text, copy, "--steps", "1", "--overwrite", "--precision", "auto"))
    assert [r["step"] for r in journal.read_metrics(copy / "metrics.jsonl")] == [1, 1, 1]  # train, valid, end
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"00000001"}
    config = config_of(copy)
    assert config["precision"] == "float32" and not config["data"]["lowercase"] and config["training"]["steps"] == 1
    assert (copy / "notes.txt").read_text() == "mine"
    assert (copy / "model" / "params.safetensors").read_bytes() != before["model/params.safetensors"]
    assert len(json.loads((copy / "environment.json").read_text())) == 1


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("dropout=abc", "dropout"),
        ("dropout=1.0", "dropout"),
        ("dropout=NaN", "dropout"),
        ("embed_dim=x", "embed_dim"),
        ("embed_dim=0", "embed_dim"),
        ('bidirectional="no"', "bidirectional"),
        ("bidirectional=no", "bidirectional"),
        ("encoder_layers=1.5", "encoder_layers"),
        ("encoder_layers=true", "encoder_layers"),
        ("attention=[1]", "attention"),
        ("attention=bahdanau", "additive"),
        ('attention_options={"foo":1}', "foo"),
        ("attention_options=1", "attention_options"),
        ("encoder_cell=null", "encoder_cell"),
        ("=1", "NAME=VALUE"),
        ("src_vocab_size", "NAME=VALUE"),
        ("src_vocab_size=50", "src_vocab_size (--set) follows from the vocabulary (--vocab-size)"),
        ("precision=bfloat16", "precision (--set) follows from --precision"),
    ],
)
def test_settings_that_make_no_model(text, tmp_path, capsys, item, said):
    assert said in fails(capsys, *train_command(text, tmp_path / "out"), item)
    assert not (tmp_path / "out").exists()


def test_what_the_options_alone_can_tell_is_told_before_any_text_is_read(tmp_path, capsys):
    absent = [tmp_path / "absent.en", "--valid-src", tmp_path / "absent.tsv", "--out", tmp_path / "out"]
    for options, said in (
        (["--set", "dropout=2"], "dropout"),
        (["--set", "decoder_cell=sru"], "decoder_cell"),
        (["--init-from", tmp_path / "none"], "none"),
        ([], "absent.tsv"),  # the smaller file before the larger one
    ):
        assert said in fails(capsys, "train", "--src", *absent, *options)
        assert not (tmp_path / "out").exists()


def test_set_may_be_given_more_than_once():
    files = [Path("a"), Path("b")]
    train = Train(src=files[0], valid_src=files[1], out=files[0], set=(("dropout=0.1", "attention=none"), ("x=[1]",)))
    assert model_settings(train).items() >= {"dropout": 0.1, "attention": None, "tie_embeddings": True}.items()
    assert model_settings(train)["x"] == [1]
    command = ["train", "--src", "a", "--valid-src", "b", "--out", "c", "--set", "x=1", "y=2", "--set", "z=3"]
    verb = tyro.extras.subcommand_cli_from_dict(cli.VERBS, args=command)
    assert verb.set == (("x=1", "y=2"), ("z=3",))


def test_numbers_that_make_no_run(text, tmp_path, capsys):
    for options, said in (
        (["--learning-rate", "0"], "learning_rate"),
        (["--learning-rate", "nan"], "learning_rate"),
        (["--weight-decay", "nan"], "weight_decay"),
        (["--teacher-forcing-value", "2"], "teacher_forcing_value"),
        (["--max-len", "2"], "max_len 2"),
        (["--vocab-size", "4"], "try --vocab-size 6000"),
        (["--vocabulary", "word", "--vocab-size", "4"], "try --vocab-size 6000"),
    ):
        assert said in fails(capsys, *train_command(text, tmp_path / "out", *options))
        assert not (tmp_path / "out").exists()


def test_settings_that_the_text_does_not_fit(text, tmp_path, capsys):
    (tmp_path / "long.tsv").write_text("a b " * 40 + "\ta b\n", encoding="utf-8")
    (tmp_path / "tokens.tsv").write_text(">>xx<< ein mann\ta man\n", encoding="utf-8")
    files = ["--src", tmp_path / "long.tsv", "--valid-src", text / "few.tsv", "--out", tmp_path / "out"]
    words = ["train", *files, "--vocabulary", "word", "--set"]
    assert "location attention sees 64 source positions" in fails(capsys, *words, "attention=location")
    assert "share_embeddings needs one vocabulary" in fails(capsys, *words, "share_embeddings=true")
    error = fails(capsys, *words[:-1], "--valid-src", tmp_path / "tokens.tsv")
    assert "sentence 1 (>>xx<< ein mann): unknown language token >>xx<<" in error
    assert "steps must be at least 1" in fails(capsys, "demo", "--steps", "0", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")])
def test_out_of_memory(capsys, monkeypatch, error):
    @dataclasses.dataclass
    class Heavy:
        def run(self):
            raise error

    monkeypatch.setitem(cli.VERBS, "doctor", Heavy)
    assert f"error: {cli.OUT_OF_MEMORY}" in fails(capsys, "doctor")


def test_a_model_without_attention_and_a_vocabulary_a_side(text, tmp_path, capsys, monkeypatch):
    """Separate unigram vocabularies, from end to end; and all but the picture works without attention."""
    out = tmp_path / "plain"
    options = ["--steps", "1", "--separate", "--vocabulary", "unigram", "--vocab-size", "120", "--buckets", "1",
               "--valid-src", text / "few.tsv"]  # fmt: skip
    command = *train_command(text, out, *options), "attention=null", "encoder_cell=rnn"
    said = run(capsys, *command)
    assert "120 source and 120 target pieces" in said
    names = {path.name for path in (out / "model").iterdir()}
    assert {"src.json", "src.model", "tgt.json", "tgt.model"} <= names
    assert not config_of(out)["model"]["share_embeddings"]
    error = fails(capsys, "attend", out, "i am a student", "--beam", "1", "--out", tmp_path / "a.html")
    assert "trained without attention, so there is nothing to draw" in error and not (tmp_path / "a.html").exists()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"i am a student\n")))
    assert run(capsys, "translate", out, "--beam", "1").count("\n") == 1
    (out / "vocabulary" / "tgt.json").unlink()  # the source's would fit as well, with other words
    assert "tgt.json" in fails(capsys, *command, "--resume")


# -------------------------------------------------------------------------------------------------------- text, folders


def test_pictures_are_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(Translator, "load", load)
    error = fails(capsys, "attend", tmp_path / "absent", "hello", "--out", tmp_path / "a.gif")
    assert "a.gif: expected a name that ends in .html, " in error and ".png" in error
    assert "expected a sentence" in fails(capsys, "attend", tmp_path / "absent", " ")
    for option in ("--reference", "--gold", "--compare"):
        error = fails(capsys, "attend", tmp_path / "absent", "hello", option, "a", "--out", tmp_path / "a.png")
        assert "a picture shows the best hypothesis alone" in error


def test_a_run_without_a_model(text, tmp_path, capsys, monkeypatch):
    run_folder.create(tmp_path / "run")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    for verb in (["translate", tmp_path / "run"], ["attend", tmp_path / "run", "hello"]):
        assert "this run has no model yet; go on with --resume" in fails(capsys, *verb)


def test_a_run_is_never_overwritten(trained, text, capsys):
    before = (trained / "metrics.jsonl").read_bytes()
    assert "--resume" in fails(capsys, *train_command(text, trained, "--steps", "1"))
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_bad_text_leaves_no_folder(text, tmp_path, capsys):
    (tmp_path / "short.fr").write_text("un\n")
    (tmp_path / "latin.en").write_bytes(b"caf\xe9\n" * 300)
    (tmp_path / "empty.en").write_bytes(b"")
    for source, target, said in (
        (text / "train.en", tmp_path / "short.fr", "300"),
        (tmp_path / "latin.en", text / "train.fr.gz", "latin.en:1"),
        (tmp_path / "empty.en", text / "train.fr.gz", "empty.en"),
        (tmp_path / "none.en", text / "train.fr.gz", "none.en"),
    ):
        args = ["train", "--src", source, "--tgt", target, "--valid-src", text / "valid.tsv", "--out", tmp_path / "out"]
        assert said in fails(capsys, *args)
        assert not (tmp_path / "out").exists()


def test_odd_lines_are_counted(text, tmp_path, capsys, monkeypatch):
    kept = []
    result = TrainResult({}, {}, step=0, averaged=1, traces={})
    monkeypatch.setattr(runs, "train_on_text", lambda config, read, *rest: kept.append(read()[0]) or (None, result))
    odd = ["a\u0000b", "", "x" * 1_000_000, "fine\r"]
    (tmp_path / "odd.en").write_text(
        "\ufeff" + "".join(f"{line}\n" for line in [*odd, *["the dog sleeps"] * 40]), newline=""
    )
    (tmp_path / "odd.fr").write_text("le chien dort\n" * 44)
    files = ["--src", tmp_path / "odd.en", "--tgt", tmp_path / "odd.fr"]
    out = run(capsys, *train_command(text, tmp_path / "out", *files))
    assert "41 kept" in out and "NUL" in out and "too long" in out and "empty" in out and "Windows" in out
    assert len(kept[0]) == 41 and kept[0].src[:2] == ("fine", "the dog sleeps")


@pytest.mark.parametrize("name", ["config.json", "params.safetensors", "src.model", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "garbled"])
def test_damaged_model_folder(trained, tmp_path, capsys, monkeypatch, name, damage):
    folder = tmp_path / "model"
    shutil.copytree(trained / "model", folder)
    if damage == "missing":
        (folder / name).unlink()
    else:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2] + b"?" + data[len(data) // 2 + 1 :])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    assert name in fails(capsys, "translate", folder)


def test_other_errors(trained, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    assert "unknown language token" in fails(capsys, "attend", trained, ">>xx<< hello", "--out", tmp_path / "a.html")
    assert "n_best" in fails(capsys, "translate", trained, "--n-best", "9", "--beam", "2")
    with pytest.raises(ValueError, match="vocabulary"):
        Translator.load(trained).tgt_vocab.decode([10**6])
