"""The speed scoreboard: how it counts and compares, who is missing, that all models are the same, and a quick run."""

import doctest
import itertools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speed import board, layer, measure, padding, scale, train, work
from experiments.speed.__main__ import ROWS, main
from experiments.speed.measure import OURS, Contender, Contest, Goal, Work, alternate, compete, verdict

RATES = {"float32": 1e9, "bfloat16": 2e9}
TINY = work.Sizes(**work.TINY)


@pytest.mark.parametrize("module", [measure, scale, padding], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


# Measuring.


def test_works_take_turns_and_the_first_is_another_in_each_round(monkeypatch):
    looks = itertools.count()
    clock = SimpleNamespace(
        perf_counter=lambda: 0.03 * next(looks), sleep=lambda seconds: None
    )  # each look takes 30 ms
    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr(measure.gc, "collect", lambda: None)  # takes seconds after a thousand tests
    calls = []
    times = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, seconds=0.5)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc" + "bca"  # first how often a turn calls each: once
    np.testing.assert_allclose([times[name] for name in "abc"], np.full((3, 5), 0.03))


def raising(error):
    def build():
        raise error

    return build


def test_who_is_missing_or_fails_was_not_beaten():
    ready = Work(lambda: None, 3.0)
    contenders = [
        Contender(OURS, "float32", lambda: ready),
        Contender("slower", "bfloat16", lambda: ready),
        Contender("absent", "float32", raising(ImportError("no such package"))),
        Contender("broken", "float32", raising(RuntimeError("two\nlines"))),
        Contender("large", "float32", raising(MemoryError("34 GB"))),
        Contender("patient", "float32", lambda: ready, slow=True),
    ]
    goals = [Goal("slower", 0.0), Goal("absent", 1.3)]
    found = compete(Contest("nothing", contenders, 1e3, goals), RATES, quick=True)
    who = found["contenders"]
    assert who[OURS]["ratio"] == 1 and who[OURS]["memory_mb"] == 3
    assert who["slower"]["floor_percent"] == pytest.approx(100 * 1e3 / 2e9 / (who["slower"]["ms"] / 1e3))
    assert who["absent"] == {"precision": "float32", "missing": "no such package"}
    assert who["broken"]["failed"] == "RuntimeError: two lines" and who["large"]["failed"] == "does not fit: 34 GB"
    assert "quick" in who["patient"]["missing"]
    assert [goal["met"] for goal in found["goals"]] == [True, None]


def test_our_own_failure_is_not_a_result():
    with pytest.raises(RuntimeError, match="ours"):
        compete(Contest("nothing", [Contender(OURS, "float32", raising(RuntimeError("ours")))]), RATES, quick=True)


def test_a_goal_from_above():
    assert [verdict("seconds", 2.0, found, at_most=True)["met"] for found in (1.9, 2.1, None)] == [True, False, None]


def test_what_does_not_fit_is_not_run():
    with pytest.raises(MemoryError, match="takes"):
        measure.compiled_work(lambda x: x @ x, jnp.ones((64, 64)), limit_mb=0.001)


def test_operations_of_a_layer_by_hand():
    # 4 sequences of 5 steps, 8 inputs, 8 units, 4 gates: two products of 4 * 5 * 8 * 32 multiplications, three times.
    assert layer.operations(layer.Layer("lstm", 4, 5, 8)) == 3 * 2 * (2 * 4 * 5 * 8 * 32)


def test_operations_of_a_training_step_by_hand():
    data = work.draw(TINY)
    encoder = 2 * (2 * 4 * 5) * 8 * 24
    keys_and_bridges = 4 * 5 * 16 * 16 + 2 * 4 * 16 * 16
    decoder = 4 * 4 * (8 * 64 + 2 * 16 * 64 + 2 * 16 * 16) + 2 * (4 * 4 * 5 * 16)
    output = data.tokens * 16 * 40
    assert work.training_operations(TINY, data) == 3 * 2 * (encoder + keys_and_bridges + decoder + output)


# The same work for everybody.


def test_lengths_spread_and_sentences_end():
    data = work.draw(work.Sizes())
    assert data.tgt.shape == (64, 20) and data.tgt_lengths.max() == 20 and 8 <= data.tgt_lengths.min() < 12
    assert (data.tgt[np.arange(64), data.tgt_lengths - 1] == 2).all() and not data.tgt[~data.tgt_mask].any()
    assert data.tokens == data.tgt_lengths.sum() == len(np.unique(data.index))
    assert 0.6 < data.tokens / data.tgt.size < 0.8


@pytest.mark.parametrize("attention", ["general", "additive"])
def test_torch_trains_a_model_of_the_same_size(attention):
    pytest.importorskip("torch")
    import jax

    from attn_jax import Seq2Seq
    from experiments.speed.torch_translator import Translator

    sizes = work.Sizes(**work.TINY, attention=attention)
    model = Seq2Seq(work.our_config(sizes))
    params = jax.eval_shape(model.init, jax.random.key(0), work.draw(sizes).as_batch())
    ours = sum(leaf.size for leaf in jax.tree.leaves(params))
    theirs = sum(parameter.numel() for parameter in Translator(sizes).parameters())
    second_biases = 2 * (
        3 * sizes.encoder - sizes.encoder
    )  # PyTorch's GRU has two a gate, ours one, and the candidate's
    assert theirs - second_biases == ours


# The scoreboard.


def test_rows_that_are_not_there(capsys):
    with pytest.raises(SystemExit):
        main(["trian"])
    assert "no row 'trian'; there are layer, train" in capsys.readouterr().err


def test_a_contest_that_nobody_entered():
    def absent():
        raise ImportError("not installed")

    found = compete(Contest("nothing", [Contender(OURS, "float32", absent)], goals=[Goal(OURS, 1.0)]), {}, quick=True)
    assert found["contenders"][OURS] == {"precision": "float32", "missing": "not installed"}
    assert found["goals"][0]["met"] is None
    assert board.draw({"nothing": found}) and "not installed" in str(board.contest_table("nothing", found).rows)


@pytest.mark.slow  # a minute with all peers
def test_quick_run(tmp_path, capsys):
    goals = main(["--quick", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    for row in ROWS:
        found = json.loads((tmp_path / f"{row}.json").read_text(encoding="utf-8"))
        assert found["quick"] and found["machine"]["cores"] and found["rates"]["float32"] > 0
        for contest in found["numbers"].get("contests", {}).values() if row != "students" else ():
            assert contest["contenders"][OURS]["ms"] > 0 and contest["operations"] > 0
    drawn = {"layer", "train", "decode", "attention", "scale", "students"}
    assert {file.stem for file in tmp_path.glob("*.png")} == drawn
    assert "not measured" in shown and "left out of a quick run" in shown
    assert any("torch eager" in goal["what"] for each in goals.values() for goal in each)


def test_goals_name_contenders():
    for contest in [each for row in (layer, train) for each in row.contests(quick=True)]:
        assert {goal.peer for goal in contest.goals} <= {contender.name for contender in contest.contenders}
