"""The experiments: each runs in seconds, those that are instant hold their findings, and what is counted is exact."""

import ast
import copy
import inspect
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax.data.batching import BatchConfig
from attn_jax.data.grammar import AlignedPair
from experiments import __main__ as command_line
from experiments import (
    benchmark_models,
    birnn,
    compare_attention,
    information_bottleneck,
    nmt,
    teacher_forcing,
    translation_process,
    tutorial_translation,
)
from experiments.__main__ import NAMES, main
from experiments.runner import align_error, entropy, fit, grammar_corpus, load, plain, run_experiment, spread

FOLDER = Path(birnn.__file__).parent
INSTANT = ("qkv_walkthrough", "scaled_dot_product", "temperature")


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


# The notebooks' numbers.


def test_estimates_of_the_notebook():
    found = information_bottleneck.estimate()
    fifty, forty = (np.round(given["retention"], 1).tolist() for given in found["retention"])
    assert (fifty, forty) == ([100, 100, 100, 36.6, 28.4], [100, 100, 100, 45.7, 40.0])
    assert found["compression"] == [10, 20, 40, 100, 200]
    assert [information_bottleneck.verdict(percent, (90, 50)) for percent in (90, 50, 49.9)] == [
        "kept",
        "strained",
        "lost",
    ]


def test_schedules_of_the_notebook():
    strategies = teacher_forcing.strategies(100)
    for name, values in teacher_forcing.NOTEBOOK_SCHEDULES.items():
        np.testing.assert_allclose(strategies[name](np.array(teacher_forcing.POINTS)), values, rtol=0.015, atol=1e-6)


def test_drawing_of_the_notebook_has_one_light_row():
    drawn = translation_process.drawn_matrix()
    assert drawn.shape == (9, 9)
    np.testing.assert_allclose(drawn.sum(axis=1), [1, 1, 1, 1, 1, 1, 1, 0.9, 1])
    assert translation_process.compare(drawn, drawn) == pytest.approx({"correlation": 1, "same_argmax": 1})


def test_mechanisms_of_the_notebook():
    found = compare_attention.notebook_table()
    assert {name: of["parameters"] for name, of in found.items()} == compare_attention.NOTEBOOK
    assert found["additive, 128"]["context"] == (2, 1, 128) and found["additive, 128"]["weights"] == (2, 1, 10)


def size(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_parameters_of_the_tutorial_in_pytorch():
    nn = pytest.importorskip("torch").nn
    encoder = {"embedding": size(nn.Embedding(16, 128)), "recurrent layer": size(nn.GRU(128, 128))}
    decoder = {
        "embedding": size(nn.Embedding(16, 128)),
        "attention": size(nn.Linear(256, 10)),
        "combination": size(nn.Linear(256, 128)),
        "recurrent layer": size(nn.GRU(128, 128)),
        "output": size(nn.Linear(128, 16)),
    }
    assert {"encoder": encoder, "decoder": decoder} == tutorial_translation.TORCH
    assert (sum(encoder.values()), sum(decoder.values())) == (101_120, 138_650)


def test_parameters_of_the_translator_in_pytorch():
    nn = pytest.importorskip("torch").nn
    assert {
        "embeddings": 0,
        "encoder": size(nn.LSTM(100, 256, 2, bidirectional=True)),
        "bridge": 0,
        "decoder": size(nn.LSTM(100, 512, 2)),
        "attention": size(nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, 1)),
        "output": size(nn.Linear(1024, 100)),
    } == nmt.TORCH
    assert sum(nmt.TORCH.values()) == 6_297_189


def test_parameters_of_the_layers_in_pytorch():
    nn = pytest.importorskip("torch").nn
    layers = (nn.RNN(10, 32), nn.GRU(10, 32), nn.LSTM(10, 32), nn.LSTM(10, 32, bidirectional=True))
    assert list(benchmark_models.TORCH.values()) == [size(layer) for layer in layers]
    assert size(nn.RNN(5, 16), nn.RNN(5, 16), nn.Linear(32, 1)) == birnn.TORCH == 769


# What the experiments measure with.


def test_yardsticks_of_a_diagonal_pair():
    diagonal = AlignedPair(("a", "b"), ("c", "d"), ((0, 0), (1, 1)))
    crossed = AlignedPair(("a", "b"), ("c", "d"), ((0, 1), (1, 0)))
    assert compare_attention.yardsticks([diagonal]) == {"diagonal": 0, "one gold link a word": 0}
    assert compare_attention.yardsticks([crossed]) == {"diagonal": 1, "one gold link a word": 0}
    padded = np.eye(3)[None]  # the third row and column are padding
    assert (align_error(padded, [diagonal]), align_error(padded, [crossed])) == (0, 100)


def test_entropy_counts_what_sums_to_one():
    assert entropy(np.array([0.25, 0.25])) == pytest.approx(np.log(2))


def test_where_the_tutorial_looks():
    """Two pairs "i am a student </s>" and "we are engineers </s> <pad>", attended as they should be."""
    src, tgt = np.array([[9, 8, 7, 6, 2], [9, 8, 7, 2, 0]]), np.array([[9, 8, 7, 2], [9, 8, 7, 2]])
    batch = tutorial_translation.Batch(src=src, src_mask=src > 0, tgt=tgt, tgt_mask=tgt > 0)
    weights = np.eye(5)[np.array([[0, 1, 3, 4], [0, 1, 2, 3]])][None]
    found = tutorial_translation.looks(weights, batch)
    assert found["own_word"].tolist() == [1] and found["entropy"].tolist() == [0] and found["weight_on_padding"] == 0
    assert tutorial_translation.looks(weights[..., ::-1], batch)["weight_on_padding"] == 1


def test_short_sentences_come_first():
    corpus = grammar_corpus(200, 0, batching=BatchConfig(batch_tokens=256, num_buckets=2))
    source = nmt.ShortFirst(corpus.batches, steps=5)
    widths = [batch.src.shape[1] for batch, _ in zip(source.stream(0), range(40), strict=False)]
    assert set(widths[:5]) == {min(widths)} and len(set(widths[5:])) == 2
    resumed = next(source.stream(0, start=7))
    np.testing.assert_array_equal(resumed.src, next(corpus.batches.stream(0, 2)).src)


# The runner.


def test_fit_trains_every_schedule_with_every_seed():
    """``loss = (w - value)^2`` ends at the schedule's value, whatever the seed; the seeds start apart."""
    found = fit(
        lambda rng: jax.random.normal(rng, ()),
        lambda params, batch, rng, value: (params - value) ** 2 + 0 * batch.sum(),
        jnp.zeros((4, 1)),
        optimizer=optax.sgd(0.25),
        epochs=20,
        batch_size=2,
        seeds=2,
        measure=lambda params, rng: {"twice": 2 * params},
        schedules=np.stack([np.full(20, 1.0), np.full(20, -3.0)]),
    )
    np.testing.assert_allclose(found.params, [1, 1, -3, -3], atol=1e-5)
    assert found.history["loss"].shape == (4, 20)
    np.testing.assert_allclose(found.history["twice"][:, -1], 2 * np.asarray(found.params), atol=1e-6)
    assert found.history["loss"][0, 0] != found.history["loss"][1, 0]


def test_results_are_plain():
    value = {1: np.float32(1 / 3), "a": (jnp.arange(2), [np.bool_(True)]), "text": "t"}
    assert plain(value) == {"1": 0.333333, "a": [[0, 1], [True]], "text": "t"}
    assert spread([1, 2, 3]) == "2 ± 1" and spread([2]) == "2 ± 0"


def test_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments"])
    main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)
    monkeypatch.setattr("sys.argv", ["experiments", "all", "--seeds", "3"])
    with pytest.raises(SystemExit):
        main()
    assert "'all' takes no settings of a single experiment, found --seeds 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["birnn", "--seeds", "0"], "--seeds must be at least 1, found 0"),
        (["temperature", "--out", __file__], "is no folder; choose another --out"),
        (["temperature", "--quick", "--out", "full"], "holds a full run, which a quick one would replace"),
    ],
)
def test_what_is_refused_before_it_runs(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "temperature").mkdir(parents=True)
    (tmp_path / "full" / "temperature" / "results.json").write_text('{"quick": false}')
    monkeypatch.setattr(command_line, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(command_line, "compile_quickly", lambda: None)
    monkeypatch.setattr("sys.argv", ["experiments", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_the_settings_of_one_are_listed(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "use_compilation_cache", lambda: None)
    monkeypatch.setattr("sys.argv", ["experiments", "birnn", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "--hidden" in capsys.readouterr().out


def test_all_are_run_and_what_does_not_hold_is_named(tmp_path, monkeypatch):
    def wrong(numbers):
        raise AssertionError("the weights")

    two = ("qkv_walkthrough", "temperature")
    monkeypatch.setattr(command_line, "NAMES", two)
    monkeypatch.setattr(command_line, "use_compilation_cache", lambda: None)
    monkeypatch.setattr("sys.argv", ["experiments", "all", "--out", str(tmp_path)])
    main()
    for name in two:
        (tmp_path / name / "results.json").unlink()
    monkeypatch.setattr(load(two[0]), "verify", wrong)
    with pytest.raises(SystemExit, match="findings that do not hold:\nqkv_walkthrough: the weights"):
        main()
    assert all((tmp_path / name / "results.json").exists() for name in two)


def test_the_readme_names_what_exists():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "__main__", "runner"}
    assert files == set(NAMES)
    assert all(f"| `{name}` |" in readme and f"`{name}.py`" in readme for name in NAMES)
    assert not any(word in text for text in (readme, *(load(name).__doc__ for name in NAMES))
                   for word in ("...", "to be done", "not run"))  # fmt: skip
    tests = set(re.findall(r"`(test_\w+)(?:\[NAME\])?`", readme))
    assert tests and tests <= set(globals())


# The runs themselves.


@pytest.mark.parametrize("name", NAMES)
def test_quick_run(name, tmp_path):
    result = run_experiment(name, [], quick=True, out=tmp_path)
    found = results(tmp_path / name)
    assert found["quick"] and found["experiment"] == name and found["numbers"] and result.tables
    for file, figure in result.figures.items():
        assert (tmp_path / name / file).stat().st_size > 5000
        drawn = [ax for ax in figure.axes if ax.has_data() and not hasattr(ax, "_colorbar")]
        titled = [any(ax.get_title(side) for side in ("left", "center")) for ax in drawn]
        assert drawn and (all(titled) or (name == "tutorial_translation" and figure.get_suptitle())), f"{file} titles"
        named = [(ax.get_xlabel() or words(ax.xaxis)) and (ax.get_ylabel() or words(ax.yaxis)) for ax in drawn]
        assert all(named), f"{file} needs names of axes"
    verify_to_the_end(load(name), found["numbers"])


def words(axis):
    """Whether the ticks of an axis are named, or there are none."""
    return not len(axis.get_ticklocs()) or any(re.search("[a-z]", text.get_text()) for text in axis.get_ticklabels())


class Forgiving(ast.NodeTransformer):
    """Goes on after an assertion that fails."""

    def visit_Assert(self, node):
        handler = ast.ExceptHandler(ast.Name("AssertionError", ast.Load()), None, [ast.Pass()])
        return ast.Try([node], [handler], [], [])

    visit_Expr = visit_Assert


def verify_to_the_end(module, numbers):
    """Runs every line of ``verify`` on the numbers of a quick run: they need not hold, but have every name."""
    if module is compare_attention:
        numbers["mechanisms"] = dict.fromkeys(compare_attention.MECHANISMS, *numbers["mechanisms"].values())
    tree = Forgiving().visit(ast.parse(inspect.getsource(module.verify)))
    scope = dict(vars(module))
    exec(compile(ast.fix_missing_locations(tree), module.__file__, "exec"), scope)
    scope["verify"](numbers)


@pytest.fixture(scope="module", params=INSTANT)
def instant(request, tmp_path_factory):
    """A full run, which holds itself to its findings: the module and the numbers."""
    folder = tmp_path_factory.mktemp("full")
    run_experiment(request.param, [], quick=False, out=folder)
    return load(request.param), results(folder / request.param)["numbers"]


def test_full_run_of_what_is_instant(instant):
    module, numbers = instant
    module.verify(numbers)


WRONG = {
    "qkv_walkthrough": ("weights", 0, 0.36),
    "scaled_dot_product": ("row_sums", 0, 0.9),
    "temperature": ("temperatures", 0, {"entropy": 9.0, "distance_to_mean": 0.0}),
}


def test_verify_sees_a_wrong_number(instant):
    module, numbers = instant
    key, index, value = WRONG[module.__name__.removeprefix("experiments.")]
    wrong = copy.deepcopy(numbers)
    wrong[key][index] = value
    with pytest.raises(AssertionError):
        module.verify(wrong)
