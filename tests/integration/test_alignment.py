"""Guided training and alignment through the command line, on the bundled grammar with its gold alignments."""

import io
import json

import jax
import pytest
from test_main_job import fails, run

from attn_jax import cli, demo
from attn_jax.data.grammar import generate
from attn_jax.metrics import format_pharaoh, parse_pharaoh, symmetrise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Text, its alignments, and a model of two guided steps whose joint vocabulary reads both languages."""
    folder = tmp_path_factory.mktemp("align")
    pairs = generate(60, seed=5)
    for name, lines in {
        "en": [" ".join(pair.src) for pair in pairs],
        "fr": [" ".join(pair.tgt) for pair in pairs],
        "align": [format_pharaoh(set(pair.alignment)) for pair in pairs],
    }.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = ["--src", folder / "en", "--tgt", folder / "fr", "--valid-src", folder / "en", "--valid-tgt", folder / "fr"]
    tiny = ["embed_dim=8", "encoder_hidden=8", "decoder_hidden=8", "encoder_cell=rnn", "decoder_cell=rnn"]
    options = ["--steps", "2", "--vocab-size", "150", "--buckets", "1", "--precision", "float32"]
    guided = ["--alignments", folder / "align", "--guided-weight", "0.5", "--guided-until", "1"]
    cli.main([str(arg) for arg in ["train", *text, "--out", folder / "run", *options, *guided, "--set", *tiny]])
    return folder


def test_a_guided_run_states_its_alignments(folder):
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["training"]["guided_weight"] == 0.5 and config["training"]["guided_until"] == 1
    files = json.loads((folder / "run" / "data.json").read_text())["train"]
    assert [file["path"].rsplit("/", 1)[1] for file in files] == ["en", "fr", "align"]


def test_align(folder, capsys, monkeypatch):
    """Both directions, what joins them, and the scores; as many lines as pairs; and they guide a training."""
    lines = (folder / "en").read_text(encoding="utf-8").splitlines()
    (folder / "blank.en").write_text("\n".join(["x" * 10_001, *lines[1:]]) + "\n", encoding="utf-8")
    there = ["align", folder / "run", "--src", folder / "blank.en", "--tgt", folder / "fr"]
    back = ["align", folder / "run", "--src", folder / "fr", "--tgt", folder / "blank.en"]
    forward, backward = (parse_pharaoh(run(capsys, *command)) for command in (there, back))
    assert len(forward) == len(backward) == 60 and not forward[0].sure and all(pair.sure for pair in forward[1:])
    for method in ("intersection", "grow-diag-final-and"):
        joint = parse_pharaoh(run(capsys, *there, "--reverse", folder / "run", "--symmetrise", method))
        for pair, one, other in zip(joint, forward, backward, strict=True):
            assert pair.sure == symmetrise(one.sure, {(i, j) for j, i in other.sure}, method)
    gold = ["--gold", folder / "align", "--out", folder / "found"]
    said = run(capsys, *there, "--reverse", folder / "run", *gold).splitlines()
    assert [line.split(":")[0] for line in said] == ["forward", "backward", "grow-diag-final-and"]
    assert "AER " in said[0] and "precision " in said[0] and "recall " in said[0]
    assert [pair.sure for pair in parse_pharaoh((folder / "found").read_text())] == [pair.sure for pair in joint]
    cli.main([str(arg) for arg in [*there, "--gold", folder / "found", "--reverse", folder / "run"]])
    perfect, left_out = capsys.readouterr()
    assert "blank.en (60 lines); 1 too long (line 1)" in left_out
    assert perfect.splitlines()[2].startswith("grow-diag-final-and: AER 0.00%, precision 100.00%, recall 100.00%")

    guided = set()

    def train(model, batches, *_, **__):  # only what a training would start with
        for entry in batches.epoch_plan(1, 0):
            rows = batches.make_batch(entry).links[:, 0]
            guided.update(int(entry.rows[row]) for row in rows if row < len(entry.rows))
        raise ValueError("far enough")

    monkeypatch.setattr("attn_jax.run.train", train)
    text = ["--src", folder / "en", "--tgt", folder / "fr", "--valid-src", folder / "en", "--valid-tgt", folder / "fr"]
    own = ["--alignments", folder / "found", "--out", folder / "own", "--vocab-size", "150", "--precision", "float32"]
    assert "far enough" in fails(capsys, "train", *text, *own)
    assert guided == {line for line, pair in enumerate(joint) if pair.sure} == set(range(1, 60))


def test_what_align_and_train_refuse(folder, capsys, monkeypatch):
    (folder / "short").write_text("0-0\n", encoding="utf-8")
    files = ["--src", folder / "en", "--tgt", folder / "fr"]
    assert "has 60 lines but" in fails(
        capsys, "align", folder / "run", "--src", folder / "en", "--tgt", folder / "short"
    )
    assert "has 1 lines and" in fails(capsys, "align", folder / "run", *files, "--gold", folder / "short")
    absent = ["--out", folder / "absent" / "links"]  # said before anything is loaded
    assert "create it first" in fails(capsys, "align", folder / "none", *files, *absent)
    assert "would replace a file that is read" in fails(
        capsys, "align", folder / "none", *files, "--out", folder / "run" / ".." / "en"
    )
    assert "at most 1" in fails(capsys, "align", folder / "none", *files, "--threshold", "3")
    assert "name the model of the other one" in fails(capsys, "align", folder / "none", *files, "--symmetrise", "union")
    (folder / "long").write_text("0-0\n" + "0-0 " * 3000 + "\n", encoding="utf-8")
    assert "long:2: expected links such as 3-4, found a line too long" in fails(
        capsys, "align", folder / "run", *files, "--gold", folder / "long"
    )
    assert "try 0.2" in fails(capsys, "align", folder / "run", *files, "--method", "threshold")
    train = ["train", *files, "--valid-src", folder / "en", "--valid-tgt", folder / "fr", "--out", folder / "new"]
    assert "has 1 lines and" in fails(capsys, *train, "--alignments", folder / "short")
    assert "needs attention" in fails(capsys, *train, "--alignments", folder / "align", "--set", "attention=null")
    assert "change nothing" in fails(capsys, *train, "--alignments", folder / "align", "--guided-weight", "0")
    assert "do nothing without --alignments" in fails(capsys, *train, "--guided-weight", "0.3")
    assert not (folder / "new").exists()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the dog\n")))
    assert "without --replace-unknown" in fails(capsys, "translate", folder / "run", "--dictionary", folder / "fr")
    assert "vocabulary of words" in fails(capsys, "translate", folder / "run", "--replace-unknown")


@pytest.mark.slow
def test_the_guided_demo(tmp_path):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        result = demo.run_demo(demo.DemoConfig(guided_weight=0.5), tmp_path / "demo")
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    assert result.aer <= 5 and result.bleu >= 93
