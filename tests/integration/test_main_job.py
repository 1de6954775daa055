"""The main job end to end, through the command line, on text drawn from the bundled grammar."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
from functools import cache, partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from attn_jax import cli, demo, doctor, hub, progress
from attn_jax.data.batching import BatchConfig, Sequences, inference_batches
from attn_jax.data.grammar import generate
from attn_jax.hub import Translator
from attn_jax.nn.attention import ATTENTIONS
from attn_jax.progress import Progress
from attn_jax.run import run_training
from attn_jax.run_config import DataConfig, RunConfig
from attn_jax.training import checkpoints, journal, loop, step
from attn_jax.training.loop import TrainConfig
from attn_jax.verbs import attend

TRAINED = ["--steps", "24", "--valid-every", "12", "--lowercase", "--learning-rate", "0.02"]
TINY = ["embed_dim=16", "encoder_hidden=16", "decoder_hidden=32", "dropout=0.1"]


def train_command(text, out, *more):
    files = ["--src", text / "train.en", "--tgt", text / "train.fr.gz", "--valid-src", text / "valid.tsv"]
    options = ["--vocab-size", "200", "--batch-tokens", "1024", "--buckets", "2", "--precision", "float32",
               "--warmup", "20"]  # fmt: skip
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


@cache
def make_text(base):
    """Parallel text in plain, gzip and two-column files, made once a session."""
    folder = base / "text"
    folder.mkdir()
    pairs = [(" ".join(p.src), " ".join(p.tgt)) for p in generate(330, seed=3)]
    train, valid = pairs[:300], pairs[300:]
    (folder / "train.en").write_text("".join(f"{en}\n" for en, _ in train), encoding="utf-8")
    with gzip.open(folder / "train.fr.gz", "wt", encoding="utf-8") as file:
        file.write("".join(f"{fr}\n" for _, fr in train))
    (folder / "valid.tsv").write_text("".join(f"{en}\t{fr}\n" for en, fr in valid), encoding="utf-8")
    (folder / "few.tsv").write_text("the dog sleeps\tle chien dort\n" * 4, encoding="utf-8")
    (folder / "test.en").write_text("".join(f"{en}\n" for en, _ in valid), encoding="utf-8")
    (folder / "test.fr").write_text("".join(f"{fr}\n" for _, fr in valid), encoding="utf-8")
    return folder


@cache
def make_trained(base):
    """A run of 24 steps that every test may read, and none may change."""
    out = base / "runs" / "deen"
    cli.main(train_command(make_text(base), out, *TRAINED))
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_trained(tmp_path_factory.getbasetemp())


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
    data = json.loads((trained / "data.json").read_text())
    assert [Path(file["path"]).name for file in data["train"]] == ["train.en", "train.fr.gz"]
    content = (Path(data["train"][1]["path"])).read_bytes()
    assert data["train"][1]["sha256"] == hashlib.sha256(content).hexdigest() and len(data["valid"]) == 1
    assert {path.name for path in (trained / "vocabulary").iterdir()} == {"src.json", "src.model"}


def test_evaluate(trained, text, tmp_path, capsys):
    for name in ("test.en", "test.fr"):
        lines = (text / name).read_text(encoding="utf-8").splitlines()
        lines[4] = "  " if name == "test.en" else lines[4]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = ["--src", tmp_path / "test.en", "--ref", tmp_path / "test.fr"]
    found = json.loads(run(capsys, "evaluate", trained, *files, "--json"))
    assert 0 <= found["BLEU"]["value"] <= 100 and "case:lc" in found["BLEU"]["signature"]
    assert (found["sentences"], found["left_blank"], found["changed"]) == (29, 0, None) and found["seconds"] > 0
    assert found["read"]["kept"] == 29 and found["read"]["skipped"] == {"empty": {"count": 1, "first_lines": [5]}}
    assert [file["lines"] for file in found["read"]["files"]] == [30, 30]
    out = run(capsys, "evaluate", trained, *files, "--beam", "1", "--precision", "bfloat16").splitlines()
    assert "29 kept of" in out[0] and "1 empty on one side (line 5)" in out[0]
    assert re.match(r"BLEU \d+\.\d\d   nrefs:1\|case:lc\|", out[1]) and re.match(r"chrF \d+\.\d\d   nrefs:1\|", out[2])
    assert re.match(r"29 sentences in \d+\.\d s, compilation included", out[3])
    changed, share = re.fullmatch(r"(\d+) of them \((.*)%\) differ from those in float32", out[4]).groups()
    assert float(share) == round(100 * int(changed) / 29, 1)


def test_translate_keeps_lines(trained, capsys, monkeypatch):
    def translate(*options):
        lines = ["i am a student", "", "a " * 40, "the quick brown fox", "unbekanntes wort !"]
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode() + b"\n")))
        cli.main(["translate", str(trained), *options])
        return capsys.readouterr()

    monkeypatch.setattr(hub, "MAX_SRC_LEN", 30)
    out, error = translate("--beam", "2")
    out = out.split("\n")
    assert len(out) == 6 and out[1] == out[2] == out[5] == "" and error.count("\n") == 1
    assert "1 lines longer than 30 tokens were left blank; split them" in error
    n_best = [line.split(" ||| ") for line in translate("--beam", "2", "--n-best", "2")[0].splitlines()]
    assert [fields[0] for fields in n_best] == ["0", "0", "1", "2", "3", "3", "4", "4"]
    assert n_best[0][1] == out[0] and float(n_best[0][2]) >= float(n_best[1][2])
    assert [n_best[place][2] for place in (2, 3)] == ["0.0000", "-inf"]  # blank for sure; not translated


def test_attend(trained, tmp_path, capsys, monkeypatch):
    run(capsys, "attend", trained, "i am a student", "--out", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "student" in page and "http://" not in page.replace("http://www.w3.org", "")
    run(capsys, "attend", trained, "i am a student", "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(attend, "LARGE_PAGE", 50_000)
    cli.main(["attend", str(trained), "i am a student", "--out", str(tmp_path / "a.html")])
    megabytes = f"{(tmp_path / 'a.html').stat().st_size / 1e6:.1f} MB"
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert megabytes in warning and "a smaller --beam" in warning


def test_padding_and_company_change_nothing(trained):
    translator = Translator.load(trained)
    sentences = ["i am a student", "the dog sleeps", "we are engineers and they are artists", "he is a teacher"]
    together = translator(sentences, beam=4, n_best=2)
    for sentence, found in zip(sentences, together, strict=True):
        for one, other in zip(found, translator(sentence, beam=4, n_best=2), strict=True):
            assert one.tokens == other.tokens
            assert abs(one.score - other.score) < 1e-5
            np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


def test_beam_attention_is_the_forced_attention(trained, text):
    """Of every hypothesis that ended, and that is written in the words that its text is read in again."""
    translator = Translator.load(trained)
    sentences, checked = (text / "test.en").read_text(encoding="utf-8").splitlines(), 0
    pairs = [(s, h) for s, found in zip(sentences, translator(sentences, n_best=5), strict=True) for h in found]
    forced = translator.score([sentence for sentence, _ in pairs], [found.text for _, found in pairs])
    for (_, found), again in zip(pairs, forced, strict=True):
        if again.tokens == found.tokens:
            np.testing.assert_allclose(again.attention, found.attention, atol=1e-5)
            assert abs(again.log_probs.sum() - found.log_prob) < 1e-4
            checked += bool(found.text)
    assert checked >= 5


def test_interrupt_and_resume_equal_one_run(text, tmp_path, capsys):
    command = lambda out, *more: train_command(text, tmp_path / out, "--steps", "12", "--valid-every", "6", *more)  # noqa: E731
    cli.main(command("whole"))
    original = loop.make_train_step

    def interrupting(*args, **kwargs):
        update = original(*args, **kwargs)

        def at_seven(state, *rest):
            if int(state.step) == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return update(state, *rest)

        at_seven.jitted = update.jitted
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
    # of the last step: the model may be that of an earlier one
    whole, parts = (checkpoints.average(tmp_path / name / "checkpoints", [12]) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    for name in ("whole", "parts"):
        records = journal.read_metrics(tmp_path / name / "metrics.jsonl")
        assert [r["step"] for r in records if r["kind"] == "valid"] == [6, 12]


def test_fine_tuning_starts_from_the_model(trained, text, tmp_path, capsys):
    out = tmp_path / "tuned"
    options = ["--steps", "1", "--learning-rate", "1e-9", "--init-from", trained]
    command = train_command(text, out, *options)[: -len(TINY) - 1]
    said = run(capsys, *command, "--set", "dropout=0")  # all other settings are those of the model
    assert "compiling" in said
    before, after = Translator.load(trained), Translator.load(out)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before.params, after.params)
    assert after.model.config == dataclasses.replace(before.model.config, dropout=0)
    assert json.loads((out / "config.json").read_text())["model"]["encoder_hidden"] == 16
    error = fails(capsys, *command, "--model", "transformer", "--overwrite")
    assert "holds a recurrent model, and the run asks for a transformer one; leave --model out" in error


def test_transformer_by_the_same_commands(text, tmp_path, capsys):
    out = tmp_path / "transformer"
    few = ["--steps", "2", "--buckets", "1", "--valid-src", text / "few.tsv"]
    command = train_command(text, out, *few, "--model", "transformer")[: -len(TINY)]
    cli.main([*command, "d_model=16", "num_heads=2", "ffn_dim=32", "encoder_layers=2", "decoder_layers=2"])
    long = " ".join(["the dog sleeps and the cat eats"] * 6)  # more than 40 words
    found = Translator.load(out)(long, beam=2)[0]
    assert found.attention.shape == (len(found.tokens), len(found.src_tokens))
    run(capsys, "attend", out, long, "--beam", "2", "--out", tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    (seen,) = data["examples"][0]["models"]
    best, src = seen["hypotheses"][0], len(seen["source"]["tokens"])
    tgt = len(best["tokens"])
    assert src >= 40 and best["tokens"] == list(found.tokens)
    shapes = [part["shape"] for part in (best["cross"], seen["encoder"], best["decoder"])]
    assert shapes == [[2, 2, tgt, src], [2, 2, src, src], [2, 2, tgt, tgt]]
    error = fails(capsys, *command[:-1], "--teacher-forcing", "linear", "--overwrite", "--set", "d_model=16")
    assert "Transformer" in error


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
        with mock.patch.dict(ATTENTIONS):  # a block registers an attention of its own
            exec(compile(block, "README.md", "exec"), {})
    assert "bilinear_tanh" not in ATTENTIONS


def test_demo_in_small(tmp_path, capsys, monkeypatch):
    model = {"embed_dim": 8, "encoder_hidden": 8, "decoder_hidden": 8, "encoder_cell": "rnn", "decoder_cell": "rnn"}
    small = partial(demo.DemoConfig, train=200, valid=20, test=20, model=model)
    monkeypatch.setattr(demo, "DemoConfig", small)
    command = ["demo", "--out", tmp_path / "demo", "--steps", "4", "--precision", "float32"]
    out = run(capsys, *command)
    found = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert found["baseline_bleu"] < 50 and 0 <= found["aer"] <= 100
    assert f"BLEU {found['bleu']:.2f} on held-out" in out and f"AER  {found['aer']:.2f} %" in out
    assert out.count("  -> ") == 6 and out.count(" nats)") == 6
    for name in ("attention.png", "attention.html", "results.json", "model/params.safetensors"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    before = (tmp_path / "demo" / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(demo, "split", None)  # it says so at once
        assert "holds a run already" in fails(capsys, *command)
    assert (tmp_path / "demo" / "metrics.jsonl").read_bytes() == before
    run(capsys, *command, "--resume")
    assert json.loads((tmp_path / "demo" / "results.json").read_text()) == found


@pytest.fixture
def optimised():
    """What runs for minutes is worth compiling well; see ``conftest.py``."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_the_demo(optimised, tmp_path):
    result = demo.run_demo(demo.DemoConfig(), tmp_path / "demo")
    assert result.bleu >= 95 and result.aer <= 10 and result.baseline_bleu < 50


def test_every_function_is_traced_once_a_shape(text, tmp_path, monkeypatch):
    """Two epochs with two validations, and a third epoch after a resume in the same process; and settings as JSON."""
    lengths = [len(line.split()) for line in (text / "test.en").read_text(encoding="utf-8").splitlines()]
    sequences = Sequences.from_ids([4] * length for length in lengths)
    searches = len({batch.src.shape for _, batch in inference_batches(sequences)})
    originals = [(step, "batch_loss"), (hub, "search"), (hub, "forced_decode")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in originals]
    limits = {"batch_loss": 2 + 2, "search": searches, "forced_decode": 1}  # shapes of training and validation
    before = hub.searches()
    model = {"embed_dim": 8, "encoder_hidden": 8, "decoder_hidden": 8, "encoder_cell": "rnn", "decoder_cell": "gru"}
    for epochs in (2, 3):
        chex.clear_trace_counter()
        for owner, name, original in originals:
            monkeypatch.setattr(owner, name, chex.assert_max_traces(original, n=limits[name]))
        config = RunConfig(
            data=DataConfig(src=text / "valid.tsv", valid_src=text / "valid.tsv", vocabulary="word",
                            batching=BatchConfig(batch_tokens=512, num_buckets=2)),
            model=model, training=TrainConfig(epochs=epochs, metric="perplexity"), precision="float32")  # fmt: skip
        assert json.loads(json.dumps(config.as_json()))["training"]["epochs"] == epochs
        translator, result = run_training(config, tmp_path / "words", resume=epochs == 3)
        assert result.traces == {"gradient": 2, "update": 1, "shapes": 2} and hub.searches() == before + searches
        for tgt in ("le chien dort", "un homme"):
            translator.score(["the dog sleeps", "a man"], [tgt, tgt])
    records = journal.read_metrics(tmp_path / "words" / "metrics.jsonl")
    assert sum(r["kind"] == "valid" for r in records) == 3 and result.metrics["perplexity"] > 1


# ------------------------------------------------------------------------------------------------- what a person sees


def shown(console, events):
    with Progress(console) as bar:
        for kind, event in events:
            bar.event(kind, event)
    return console.file.getvalue()


def numbers(step):
    return {"step": step, "total": 100, "epoch": step / 50, "loss": 1.25, "perplexity": 3.5,
            "src_tokens_per_s": 12345.6, "tgt_tokens_per_s": 999.4}  # fmt: skip


EVENTS = [
    ("note", {"text": "40 kept [red] of a.de"}),
    ("step", numbers(25)),
    ("valid", {"step": 25, "total": 100, "best": True, "bleu": 12.3456, "nll": 1.0}),
    ("step", numbers(75)),
    ("valid", {"step": 75, "total": 100, "best": False, "bleu": 11.0, "perplexity": 2.0}),
]


def test_progress_without_a_terminal(monkeypatch):
    clock = iter([0.0, 0.0, 120.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert shown(Console(file=io.StringIO(), width=40), EVENTS).splitlines() == [
        "40 kept [red] of a.de",
        "step 25/100  epoch 0.50  loss 1.250  ppl 3.50  12,346 src/s  999 tgt/s",
        "step 25/100  validation: bleu 12.35  (best)",
        "step 75/100  epoch 1.50  loss 1.250  ppl 3.50  12,346 src/s  999 tgt/s  eta 1.0 min",
        "step 75/100  validation: bleu 11, perplexity 2",
    ]


def test_progress_on_a_terminal():
    out = shown(Console(file=io.StringIO(), width=160, force_terminal=True, highlight=False), EVENTS)
    assert "40 kept [red] of a.de" in out and "validation: bleu 12.35  (best)" in out and "75/100" in out


def test_doctor(capsys, monkeypatch):
    clock = count()
    monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=lambda: 0.3 * next(clock)))  # 25 steps
    out = run(capsys, "doctor")
    for said in ("jax", "devices", "cores", "memory_gb", "float32", "bfloat16", "GF/s", "self-test    passed: loss"):
        assert said in out
    monkeypatch.setattr(doctor, "self_test", lambda: (2.0, 1.9, 3, 5.0))
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor"])
    assert stop.value.code == 1
    assert "FAILED: the loss did not fall: loss 2.00 -> 1.90 in 3 steps" in capsys.readouterr().out
