"""The speed scoreboard: how it counts and compares, who is missing, that all models are the same, and a quick run."""

import dataclasses
import doctest
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import Seq2Seq
from attn_jax.convert.torch import COLUMNS, ENTRIES, VECTOR, Rule, from_torch, under
from attn_jax.convert.torch_layouts import EMBEDDING, linear, recurrent_stack
from attn_jax.training.step import batch_loss
from experiments.speed import (
    attention,
    board,
    decode,
    epoch,
    flax_translator,
    layer,
    measure,
    padding,
    peers,
    scale,
    train,
    work,
)
from experiments.speed.__main__ import ROWS, main, save
from experiments.speed.measure import (
    OURS,
    Contender,
    Contest,
    Goal,
    OnlyOurs,
    Section,
    Work,
    alternate,
    compete,
    verdict,
    verdicts,
)

RATES = {"float32": 1e9, "bfloat16": 2e9}
TINY = work.Sizes(**work.TINY)


@pytest.mark.parametrize("module", [measure, scale, padding], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


# Measuring.


def called_in_turn(monkeypatch, look, **options):
    """Who of three is called when, and the times of each, where a look at the clock takes ``look`` seconds."""
    looks, calls = itertools.count(), []
    clock = SimpleNamespace(perf_counter=lambda: look * next(looks), sleep=lambda seconds: None)
    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr(measure.gc, "collect", lambda: None)  # takes seconds after a thousand tests
    times = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, **options)
    return "".join(calls), times


def test_works_take_turns_and_the_first_is_another_in_each_round(monkeypatch):
    calls, times = called_in_turn(monkeypatch, 0.03, seconds=0.5)
    assert calls == "abc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc" + "bbccaa"  # first how often: once, after another
    np.testing.assert_allclose([times[name] for name in "abc"], np.full((3, 5), 0.03))


def test_a_first_call_of_more_than_ten_seconds_is_the_only_one(monkeypatch):
    calls, times = called_in_turn(monkeypatch, 11.0, seconds=1000)
    assert calls == "abc" and [times[name].tolist() for name in "abc"] == [[11.0]] * 3


def test_a_call_that_is_known_to_be_slow_is_not_made_again(monkeypatch):
    calls, times = called_in_turn(monkeypatch, 0.03, seconds=0.2, known={"a": 11.0})
    assert "a" not in calls and times["a"].tolist() == [11.0] and len(times["b"]) > 1


def raising(error):
    def build(*_, **__):
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


def test_narrow_products_are_not_judged_where_there_are_none():
    contenders = [
        Contender(OURS, "bfloat16", lambda: Work(lambda: None)),
        Contender("plain", "bfloat16", lambda: Work(lambda: None)),
        Contender("patient", "bfloat16", raising(RuntimeError("called")), slow=True),
    ]
    contest = Contest("nothing", contenders, goals=[Goal("plain", 0.0), Goal("patient", 0.0)], seconds=0)
    found = compete(contest, {"float32": 2e9, "bfloat16": 1e9})
    assert "no bfloat16 products" in found["contenders"]["patient"]["missing"]
    assert found["goals"][0]["found"] > 0 and [goal["met"] for goal in found["goals"]] == [None, None]


def test_our_own_failure_is_not_a_result():
    with pytest.raises(RuntimeError, match="ours"):
        compete(Contest("nothing", [Contender(OURS, "float32", raising(RuntimeError("ours")))]), RATES, quick=True)


def test_a_goal_from_above():
    assert [verdict("seconds", 2.0, found, at_most=True)["met"] for found in (1.9, 2.1, None)] == [True, False, None]


def test_goals_of_memory_and_of_what_does_not_fit():
    ours, memory = {"ms": 2.0, "memory_mb": 1.0}, [Goal("dense", 8.0, of="memory_mb")]
    assert verdicts({OURS: ours, "dense": {"ms": 1.0, "memory_mb": 9.0}}, memory)[0]["found"] == 9
    alone = [
        verdicts({OURS: ours, "dense": dense}, [OnlyOurs("dense")])[0]["met"]
        for dense in ({"failed": "does not fit: 34 GB"}, {"ms": 1.0}, {"missing": "not installed"}, {"failed": "else"})
    ]
    assert alone == [True, False, None, None]


def test_peers_on_cpu_are_missing_where_jax_runs_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for build in (train.torch_training, decode.torch_search, attention.in_torch, layer.in_torch):
        with pytest.raises(ImportError, match="torch is measured on CPU only; JAX runs on gpu here"):
            build(TINY, work.draw(TINY))
    with pytest.raises(ImportError, match="ctranslate2 is measured on CPU only"):
        decode.ct2_search(None, work.draw(TINY))


def test_what_does_not_fit_is_not_run():
    with pytest.raises(MemoryError, match="takes"):
        measure.compiled_work(lambda x: x @ x, jnp.ones((64, 64)), limit_mb=0.001)


def test_operations_of_a_layer_by_hand():
    # 4 sequences of 5 steps, 8 inputs, 8 units, 4 gates: two products of 4 * 5 * 8 * 32 multiplications, three times.
    assert layer.operations(layer.Layer("lstm", 4, 5, 8)) == 3 * 2 * (2 * 4 * 5 * 8 * 32)


def test_operations_of_a_training_step_by_hand():
    data = work.draw(TINY)
    encoder = 2 * (2 * 4 * 5) * 8 * 24
    of_source = 2 * (4 * 5 * 16 * 16) + 2 * 4 * 16 * 16  # the keys, the values of the readout, the bridges
    decoder = 4 * 4 * (2 * 16 * 64 + 16 * 16) + 2 * (4 * 4 * 5 * 16)
    output = data.tokens * (8 * 64 + 16 * 40)  # and the decoder's inputs: of real targets alone
    assert work.training_operations(TINY, data) == 3 * 2 * (encoder + of_source + decoder + output)


# The same work for everybody.


def test_lengths_spread_and_sentences_end():
    data = work.draw(work.Sizes())
    assert data.tgt.shape == (64, 20) and data.tgt_lengths.max() == 20 and 8 <= data.tgt_lengths.min() < 12
    assert (data.tgt[np.arange(64), data.tgt_lengths - 1] == 2).all() and not data.tgt[~data.tgt_mask].any()
    assert data.tokens == data.tgt_lengths.sum() == len(np.unique(data.index))
    assert 0.6 < data.tokens / data.tgt.size < 0.8


def shapes_of(sizes):
    """Our model, and the shapes of its parameters."""
    model = Seq2Seq(work.our_config(sizes))
    return model, jax.eval_shape(model.init, jax.random.key(0), work.draw(sizes).as_batch())["params"]


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("attention", ["general", "additive"])
def test_torch_trains_a_model_of_the_same_size(attention):
    pytest.importorskip("torch")
    from experiments.speed.torch_translator import Translator

    sizes = work.Sizes(**work.TINY, attention=attention)
    theirs = sum(parameter.numel() for parameter in Translator(sizes).parameters())
    second_biases = 2 * (3 * sizes.encoder - sizes.encoder)  # PyTorch: two a gate; ours: one, and the candidate's
    assert theirs - second_biases == count(shapes_of(sizes)[1])


@pytest.mark.parametrize("attention", ["general", "additive"])
def test_flax_trains_a_model_of_the_same_size(attention):
    sizes = work.Sizes(**work.TINY, attention=attention)
    data = work.draw(sizes)
    model = flax_translator.Translator(sizes, unrolled=False)
    arrays = (data.src, data.src_lengths, data.src_mask, data.tgt)
    assert count(jax.eval_shape(model.init, jax.random.key(0), *arrays)) == count(shapes_of(sizes)[1])


def translator_layout(attention):
    """PyTorch's translator as ours."""
    mechanism = {
        "general": linear("key", "kernel", None),
        "additive": (
            *linear("key", "key_kernel", "key_bias"),
            *linear("query", "query_kernel", "query_bias"),
            Rule(("v.weight",), ("v",), VECTOR),
            Rule(("v.bias",), ("v_bias",), ENTRIES),
        ),
    }[attention]
    return (
        *under("src_embed", "src_embed", EMBEDDING),
        *under("tgt_embed", "tgt_embed", EMBEDDING),
        *under("encoder", "encoder", recurrent_stack("gru", both_ways=True)),
        *linear("bridge_hidden", "bridges_0_hidden/kernel", "bridges_0_hidden/bias"),
        *linear("bridge_cell", "bridges_0_cell/kernel", "bridges_0_cell/bias"),
        *under("attention", "decoder/attention", mechanism),
        *linear("input", "decoder/input", "decoder/bias_0"),
        Rule(("recurrent.weight",), ("decoder/recurrent_0", "decoder/fed"), COLUMNS),
        *linear("readout", "decoder/readout_state", "decoder/readout_bias"),
        *linear("readout_context", "decoder/readout_context", None),
        *linear("output", "output_kernel", "output_bias"),
    )


def as_ours(model, shapes, attention):
    """Our parameters from PyTorch's translator."""
    state = {name: array.detach().numpy() for name, array in model.state_dict().items()}
    return from_torch(state, translator_layout(attention), shapes)


@pytest.mark.parametrize("attention", ["general", "additive"])
def test_torch_computes_the_same_loss(attention):
    torch = pytest.importorskip("torch")
    from experiments.speed.torch_translator import Translator

    sizes = work.Sizes(**work.TINY, attention=attention)
    data, (ours, shapes), theirs = work.draw(sizes), shapes_of(sizes), Translator(sizes)
    src, tgt, lengths, index = (
        torch.from_numpy(array).long() for array in (data.src, data.tgt, data.src_lengths, data.index)
    )
    encoded, padding_mask = theirs.encode(src, lengths), torch.from_numpy(~data.src_mask)
    features = theirs.decode(tgt, encoded[0], padding_mask, *encoded[1:])
    total = batch_loss(ours, as_ours(theirs, shapes, attention), data.as_batch(), smoothing=work.SMOOTHING)
    for which in (index, None):
        loss = theirs.loss(features, tgt, which).item()
        np.testing.assert_allclose(float(total.loss / total.count), loss, rtol=1e-5)


def test_torch_with_narrow_products():
    pytest.importorskip("torch")
    narrow = dataclasses.replace(TINY, precision="bfloat16")
    train.torch_training(narrow, work.draw(TINY)).call()
    assert decode.torch_search(narrow, work.draw(TINY), beam=3, steps=4).call().shape == (TINY.batch, 4)


@pytest.mark.parametrize("beam", [1, 3])
def test_torch_finds_the_same_words(beam, monkeypatch):
    torch = pytest.importorskip("torch")
    from experiments.speed import torch_decoding

    data, (ours, shapes), theirs = work.draw(TINY), shapes_of(TINY), torch_decoding.Translator(TINY)
    with torch.no_grad():
        theirs.output.bias[torch_decoding.EOS] = -100.0  # ours ranks a sentence without an end after those with one
    monkeypatch.setattr(torch_decoding, "Translator", lambda sizes: theirs)
    sources = data.as_batch().replace(tgt=None, tgt_mask=None, tgt_index=None)
    params = {"params": as_ours(theirs, shapes, "general")}
    found = decode.search(ours, params, sources, beam=beam, steps=6).tokens[:, 0]
    assert torch_decoding.searching(TINY, data, beam=beam, steps=6).call().tolist() == found.tolist()


def test_torch_finds_the_largest_in_two_stages():
    torch = pytest.importorskip("torch")
    from experiments.speed.torch_decoding import top_k

    values = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 1000), np.float32))
    for k in (1, 5, 20):
        expected, found = values.topk(k), top_k(values, k)
        assert torch.equal(found[0], expected.values) and torch.equal(found[1], expected.indices)


# The scoreboard.


def test_rows_that_are_not_there(capsys):
    with pytest.raises(SystemExit):
        main(["trian"])
    assert "no row 'trian'; there are layer, train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["padding", "--joey", "python"], "not among those asked for"),
        (["peers", "--joey", "no/such/python"], "no interpreter no/such/python"),
        (["padding", "--out", __file__], "--out"),
    ],
)
def test_options_that_cannot_work_stop_before_anything_is_measured(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_an_interruption_says_where(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(padding, "run", raising(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as stopped:
        main(["padding", "--quick", "--out", str(tmp_path)])
    assert stopped.value.code == 130 and "interrupted in the row padding" in capsys.readouterr().err


def test_a_contest_that_nobody_entered():
    def absent():
        raise ImportError("not installed")

    found = compete(Contest("nothing", [Contender(OURS, "float32", absent)], goals=[Goal(OURS, 1.0)]), {}, quick=True)
    assert found["contenders"][OURS] == {"precision": "float32", "missing": "not installed"}
    assert found["goals"][0]["met"] is None
    assert board.draw({"nothing": found}) and "not installed" in str(board.contest_table("nothing", found).rows)


def test_what_does_not_fit_on_a_gpu():
    full = Contender("peer", "float32", raising(RuntimeError("RESOURCE_EXHAUSTED: Out of memory")))
    ready = Contender(OURS, "float32", lambda: Work(lambda: None))
    found = compete(Contest("full", [ready, full], goals=[OnlyOurs("peer")]), {}, quick=True)
    assert found["contenders"]["peer"]["failed"].startswith("does not fit") and found["goals"][0]["met"]


def test_a_contest_that_we_could_not_enter():
    contenders = [
        Contender(OURS, "float32", raising(MemoryError("34 GB"))),
        Contender("peer", "float32", lambda: Work(lambda: None)),
    ]
    found = compete(Contest("nothing", contenders), {}, quick=True)
    assert found["contenders"]["peer"]["ms"] > 0 and found["contenders"]["peer"]["ratio"] is None
    assert board.draw({"nothing": found}) and "34 GB" in str(board.contest_table("nothing", found).rows)


fail = raising(RuntimeError("joeynmt failed: no such option"))


def test_a_peer_that_fails_leaves_the_other_measurements(tmp_path, monkeypatch):
    (tmp_path / "multi30k").mkdir()
    monkeypatch.setenv("ATTN_JAX_DATA", str(tmp_path))
    seconds = {"attn_jax float32": 2.0, "attn_jax bfloat16": 1.0, "joeynmt": 5.0}
    rates = {"target_tokens_s": {name: [1 / of] for name, of in seconds.items()}}
    rates["medians"] = {name: 1 / of for name, of in seconds.items()}
    monkeypatch.setattr(epoch, "joey_version", lambda joey: {"version": "2.3.0"})
    for compare, whole, expected in (
        (fail, lambda *_: {"seconds": seconds}, [None, None, True, False]),
        (lambda *_: rates, fail, [True, False, None, None]),
    ):
        monkeypatch.setattr(epoch, "compare", compare)
        monkeypatch.setattr(epoch, "whole_epoch", whole)
        found = peers.run(whole_epoch=True)
        assert [goal["met"] for goal in found.goals] == expected
        assert "no such option" in str(found.tables[-1].rows) and len(found.tables) == 3
    alone = {name: of for name, of in seconds.items() if "bfloat16" not in name}
    monkeypatch.setattr(epoch, "compare", fail)
    monkeypatch.setattr(epoch, "whole_epoch", lambda *_: {"seconds": alone})
    found = peers.run(whole_epoch=True, precisions=("float32",))
    assert [goal["met"] for goal in found.goals] == [None, None, None, False]
    assert "no bfloat16 products here" in str(found.tables[-1].rows)


def test_json_has_no_nan(tmp_path):
    save(tmp_path, "scale", Section({"slope": np.nan}, []), {}, 1.0, quick=True)
    assert json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))["numbers"] == {"slope": None}


def test_a_row_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(padding, "run", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["padding", "peers", "--quick", "--out", str(tmp_path)])
    assert stopped.value.code == 1 and [path.name for path in tmp_path.iterdir()] == ["peers.json"]
    told = capsys.readouterr()
    assert "no such option" in told.out and "failed: padding" in told.err


def test_the_cheapest_row(tmp_path, capsys):
    goals = main(["padding", "--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "padding.json").read_text(encoding="utf-8"))
    assert found["quick"] and found["machine"]["threads"] >= 1 and found["goals"] == list(goals["padding"])
    assert "left out of a quick run" in capsys.readouterr().out


@pytest.mark.slow  # a minute with all peers
def test_quick_run(tmp_path, capsys):
    goals = main(["--quick", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    for row in ROWS:
        found = json.loads((tmp_path / f"{row}.json").read_text(encoding="utf-8"))
        assert found["quick"] and found["machine"]["cores"] and found["rates"]["float32"] > 0
        contests = found["numbers"].get("contests", {})
        assert {goal["contest"] for goal in found["goals"] if contests} <= set(contests)
        for contest in contests.values() if row != "students" else ():
            assert contest["contenders"][OURS]["ms"] > 0 and contest["operations"] > 0
    drawn = {"layer", "train", "decode", "attention", "scale", "students"}
    assert {file.stem for file in tmp_path.glob("*.png")} == drawn
    assert "not judged" in shown and "left out of a quick run" in shown
    assert any("torch eager" in goal["what"] for each in goals.values() for goal in each)


def test_goals_name_contenders():
    for contest in [each for row in (attention, decode, layer, train) for each in row.contests()]:
        assert {goal.peer for goal in contest.goals} <= {contender.name for contender in contest.contenders}
