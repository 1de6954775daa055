"""The main job end to end, through the command line, on text drawn from the bundled grammar."""

import gzip
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from attn_jax import cli
from attn_jax.data.grammar import generate
from attn_jax.hub import Translator
from attn_jax.run import run_training
from attn_jax.training import journal, loop

TINY = ["embed_dim=16", "encoder_hidden=16", "decoder_hidden=32", "dropout=0.1"]


def train_command(text, out, *more):
    files = ["--src", text / "train.en", "--tgt", text / "train.fr.gz", "--valid-src", text / "valid.tsv"]
    options = [
        "--vocab-size",
        "200",
        "--batch-tokens",
        "1024",
        "--buckets",
        "2",
        "--precision",
        "float32",
        "--warmup",
        "20",
    ]
    return [*map(str, ["train", *files, "--out", out, *options, *more, "--set", *TINY])]


def run(capsys, *args):
    cli.main([str(arg) for arg in args])
    return capsys.readouterr().out


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(arg) for arg in args])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("attn-jax: error: ") and error.count("\n") == 1 and "Traceback" not in error, error
    return error


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    pairs = [(" ".join(p.src), " ".join(p.tgt)) for p in generate(330, seed=3)]
    train, valid = pairs[:300], pairs[300:]
    (folder / "train.en").write_text("".join(f"{en}\n" for en, _ in train), encoding="utf-8")
    with gzip.open(folder / "train.fr.gz", "wt", encoding="utf-8") as file:
        file.write("".join(f"{fr}\n" for _, fr in train))
    (folder / "valid.tsv").write_text("".join(f"{en}\t{fr}\n" for en, fr in valid), encoding="utf-8")
    (folder / "test.en").write_text("".join(f"{en}\n" for en, _ in valid), encoding="utf-8")
    (folder / "test.fr").write_text("".join(f"{fr}\n" for _, fr in valid), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "deen"
    cli.main(train_command(text, out, "--steps", "24", "--valid-every", "12", "--lowercase"))
    return out


def test_the_run_folder(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "samples.txt",
        "checkpoints",
        "model",
    } <= names
    model = {path.name for path in (trained / "model").iterdir()}
    assert {"config.json", "params.safetensors", "src.json", "src.model", "MODEL_CARD.md", "manifest.json"} <= model
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "valid"] == [12, 24]
    end = records[-1]
    assert end["kind"] == "end"
    assert end["traces"]["gradient"] == end["traces"]["shapes"] and end["traces"]["update"] == 1
    assert len(json.loads((trained / "data.json").read_text())) >= 1


def test_evaluate(trained, text, capsys):
    found = json.loads(run(capsys, "evaluate", trained, "--src", text / "test.en", "--ref", text / "test.fr", "--json"))
    assert 0 <= found["BLEU"]["value"] <= 100 and "case:lc" in found["BLEU"]["signature"] and found["sentences"] == 30


def test_translate_keeps_lines(trained, text, capsys, monkeypatch):
    lines = ["i am a student", "", "the quick brown fox", "unbekanntes wort !"]
    feed = lambda: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode() + b"\n")))  # noqa: E731
    feed()
    out = run(capsys, "translate", trained, "--beam", "2").split("\n")
    assert len(out) == 5 and out[1] == "" and out[4] == ""
    feed()
    n_best = run(capsys, "translate", trained, "--beam", "3", "--n-best", "2").splitlines()
    assert [line.split(" ||| ")[0] for line in n_best if line.startswith(("0", "2", "3"))] == [
        "0",
        "0",
        "2",
        "2",
        "3",
        "3",
    ]


def test_attend(trained, tmp_path, capsys):
    run(capsys, "attend", trained, "i am a student", "--out", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "student" in page and "http://" not in page.replace("http://www.w3.org", "")
    run(capsys, "attend", trained, "i am a student", "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_padding_and_company_change_nothing(trained):
    translator = Translator.load(trained)
    sentences = ["i am a student", "the dog sleeps", "we are engineers and they are artists", "he is a teacher"]
    together = translator(sentences, beam=4, n_best=2)
    for sentence, found in zip(sentences, together, strict=True):
        for one, other in zip(found, translator(sentence, beam=4, n_best=2), strict=True):
            assert one.tokens == other.tokens
            assert abs(one.score - other.score) < 1e-5
            np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


def test_beam_attention_is_the_forced_attention(trained):
    translator = Translator.load(trained)
    for found in translator("the quick brown fox sleeps", beam=5, n_best=5):
        if found.tokens[-1] == "</s>" and found.text:
            forced = translator.score(["the quick brown fox sleeps"], [found.text])[0]
            if forced.tokens == found.tokens:
                np.testing.assert_allclose(forced.attention, found.attention, atol=1e-5)
                assert abs(forced.log_probs.sum() - found.log_prob) < 1e-4


def test_interrupt_and_resume_equal_one_run(text, tmp_path, capsys):
    command = lambda out, *more: train_command(text, tmp_path / out, "--steps", "12", "--valid-every", "6", *more)  # noqa: E731
    cli.main(command("whole"))
    original = loop.make_train_step

    def interrupting(*args, **kwargs):
        step = original(*args, **kwargs)

        def at_seven(state, *rest):
            if int(state.step) == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return step(state, *rest)

        at_seven.jitted = step.jitted
        return at_seven

    loop.make_train_step = interrupting
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main(command("parts"))
    finally:
        loop.make_train_step = original
    assert stop.value.code == 130
    assert "--resume" in capsys.readouterr().err
    cli.main(command("parts", "--resume"))
    whole, parts = (Translator.load(tmp_path / name).params for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    for name in ("whole", "parts"):
        records = journal.read_metrics(tmp_path / name / "metrics.jsonl")
        assert [r["step"] for r in records if r["kind"] == "valid"] == [6, 12]


def test_fine_tuning_starts_from_the_model(trained, text, tmp_path, capsys):
    out = tmp_path / "tuned"
    cli.main(train_command(text, out, "--steps", "1", "--learning-rate", "1e-9", "--init-from", trained))
    before, after = Translator.load(trained).params, Translator.load(out).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, after)


def test_transformer_by_the_same_commands(text, tmp_path, capsys):
    out = tmp_path / "transformer"
    command = train_command(text, out, "--steps", "2", "--model", "transformer")[: -len(TINY)]
    cli.main([*command, "d_model=16", "num_heads=2", "ffn_dim=32", "encoder_layers=1", "decoder_layers=1"])
    found = Translator.load(out)("i am a student", beam=2)[0]
    assert found.attention.shape == (len(found.tokens), len(found.src_tokens))
    run(capsys, "attend", out, "i am a student", "--out", tmp_path / "t.html")
    error = fails(capsys, *command[:-1], "--teacher-forcing", "linear", "--overwrite", "--set", "d_model=16")
    assert "Transformer" in error


# ----------------------------------------------------------------------------------------------------------- bad input


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


def test_odd_lines_are_counted(text, tmp_path, capsys):
    odd = ["a\u0000b", "", "x" * 1_000_000, "fine\r"]
    (tmp_path / "odd.en").write_text(
        "\ufeff" + "".join(f"{line}\n" for line in [*odd, *["the dog sleeps"] * 40]), newline=""
    )
    (tmp_path / "odd.fr").write_text("le chien dort\n" * 44)
    command = train_command(text, tmp_path / "out", "--steps", "1", "--vocabulary", "word")
    command[command.index("--src") + 1] = str(tmp_path / "odd.en")
    command[command.index("--tgt") + 1] = str(tmp_path / "odd.fr")
    out = run(capsys, *command[: -len(TINY)], *TINY, "tie_embeddings=false")
    assert "41 kept" in out and "NUL" in out and "too long" in out and "empty" in out and "Windows" in out


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
    assert "expected a sentence" in fails(capsys, "attend", trained, " ")
    assert ".png" in fails(capsys, "attend", trained, "hello", "--out", tmp_path / "a.gif")
    assert "NAME=VALUE" in fails(capsys, *train_command(text, tmp_path / "o"), "oops")
    assert "unknown settings" in fails(capsys, *train_command(text, tmp_path / "o"), "colour=blue")
    assert not (tmp_path / "o").exists()
    with pytest.raises(ValueError, match="vocabulary"):
        Translator.load(trained).tgt_vocab.decode([10**6])


# -------------------------------------------------------------------------------------------------------------- README


def blocks(language):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", readme, re.S)


def test_python_of_the_readme(trained, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    shutil.copytree(trained, tmp_path / "runs" / "deen")
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) >= 2
    for block in found:
        exec(compile(block, "README.md", "exec"), {})


def test_demo_in_small(tmp_path):
    from attn_jax.demo import DemoConfig, run_demo

    config = DemoConfig(train=200, valid=20, test=20, steps=4, precision="float32",
                        model={"embed_dim": 8, "encoder_hidden": 8, "decoder_hidden": 16})  # fmt: skip
    result = run_demo(config, tmp_path / "demo")
    assert result.baseline_bleu < 50
    assert 0 <= result.aer <= 100
    for name in ("attention.png", "attention.html", "results.json", "model/params.safetensors"):
        assert (tmp_path / "demo" / name).stat().st_size > 0


def test_configs_survive_json(text, tmp_path):
    from attn_jax.run import DataConfig, RunConfig
    from attn_jax.training.loop import TrainConfig

    config = RunConfig(data=DataConfig(src=text / "valid.tsv", valid_src=text / "valid.tsv", vocabulary="word"),
                       model={"embed_dim": 8, "encoder_hidden": 8, "decoder_hidden": 8},
                       training=TrainConfig(steps=1, metric="perplexity"), precision="float32")  # fmt: skip
    assert json.loads(json.dumps(config.as_json()))["training"]["steps"] == 1
    _, result = run_training(config, tmp_path / "words")
    assert result.metrics["perplexity"] > 1
