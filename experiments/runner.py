"""What every experiment shares: its command line, its results on disk, and a jitted loop for small models.

An experiment is a module of this package with three things:

- ``Config``: a frozen dataclass whose defaults are the full run, with a class method ``quick()`` that takes seconds;
- ``run(config) -> Result``: trains, measures, draws;
- ``verify(numbers)``: asserts what the full run found, so that a regression is seen.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import attn_jax
from attn_jax import Batch, OptimizerConfig, plot_attention, save_figure
from attn_jax.data.batching import BatchConfig, Batches, Sequences, build_batches
from attn_jax.data.grammar import AlignedPair, split
from attn_jax.data.vocabulary import WordVocabulary
from attn_jax.metrics import alignment_error_rate, weights_to_links
from attn_jax.models.protocol import EOS_ID
from attn_jax.training.loop import BatchSource
from attn_jax.training.step import TrainState, make_optimizer, make_train_step

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's palette: apart for every kind of colour vision."""


class Grid(NamedTuple):
    """A table: a title, the names of its columns, and its rows of text and numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Result(NamedTuple):
    """What an experiment found: ``numbers`` for ``results.json``, tables to print, figures by file name."""

    numbers: Mapping[str, Any]
    tables: Sequence[Grid] = ()
    figures: Mapping[str, Figure] = {}


# ----------------------------------------------------------------------------------------------------- running them


def load(name: str) -> Any:
    """The module of an experiment."""
    return importlib.import_module(f"experiments.{name}")


def compile_quickly() -> None:
    """Plain kernels and few optimisations, where compilation is most of the time; call it before anything is computed.

    The newer kernels of XLA:CPU take two to three times as long to compile, and small programs are not worth dividing.
    """
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
    if jax.__version_info__[:2] == (0, 10):  # later ones do not know the flag, and XLA ends a process that gives it
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    jax.config.update("jax_disable_most_optimizations", True)


def run_experiment(name: str, arguments: Sequence[str], *, quick: bool, out: Path) -> Result:
    """Runs an experiment, prints its tables, and writes ``results.json`` and its figures to ``out / name``.

    Args:
      name: of the module.
      arguments: ``--field value`` for fields of its ``Config``; other settings are not held to the findings.
      quick: starts from ``Config.quick()``; such a run is too short to be held to the findings.
      out: the folder of all results.

    Raises:
      RefusedError: for no seeds at all, before it starts.
    """
    module = load(name)
    start = module.Config.quick() if quick else module.Config()
    config = tyro.cli(module.Config, args=list(arguments), default=start, prog=f"python -m experiments {name}")
    if getattr(config, "seeds", 1) < 1:
        raise RefusedError(f"--seeds must be at least 1, found {config.seeds}")
    began = time.perf_counter()
    result = module.run(config)
    seconds = time.perf_counter() - began
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "experiment": name,
        "quick": quick,
        "config": dataclasses.asdict(config),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__}
        | {"attn_jax": attn_jax.__version__},
        "device": jax.devices()[0].device_kind,
        "numbers": plain(result.numbers),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    figures = [save_figure(figure, folder / file) for file, figure in result.figures.items()]
    console = Console(width=120)
    for table in result.tables:
        console.print(as_rich(table))
    console.print(f"{name}: {seconds:.1f} s; {', '.join(str(path) for path in (folder / 'results.json', *figures))}")
    if config == module.Config():
        module.verify(record["numbers"])
        console.print(f"{name}: its findings hold")
    return result


class RefusedError(ValueError):
    """A run that does not start; one line with the remedy."""


def plain(value: Any) -> Any:
    """``value`` as JSON takes it: arrays as lists, numbers with six digits."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}")
    return value.item() if isinstance(value, np.generic) else value


def as_rich(grid: Grid) -> Table:
    """A table as rich prints it."""
    table = Table(title=grid.title, title_justify="left")
    for index, column in enumerate(grid.columns):
        table.add_column(column, justify="right" if index else "left")
    for row in grid.rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else f"{cell}" for cell in row))
    return table


# ---------------------------------------------------------------------------------------------------- small trainings


class Fit(NamedTuple):
    """Trained parameters with a leading axis of runs (seeds), and what was measured, each ``[runs, epochs]``."""

    params: Any
    history: dict[str, np.ndarray]


def fit(
    init: Callable[[jax.Array], Any],
    loss: Callable[[Any, Any, jax.Array, jax.Array], jax.Array],
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int,
    seeds: int,
    measure: Callable[[Any, jax.Array], Mapping[str, jax.Array]] = lambda params, rng: {},
    schedules: np.ndarray | None = None,
) -> Fit:
    """Trains one small model for several seeds at once: an epoch is one jitted scan, mapped over the seeds.

    Args:
      init: ``rng -> params``.
      loss: ``(params, batch, rng, value) -> scalar``, the mean over a batch; ``value`` is the schedule's.
      data: a pytree with leaves ``[samples, ...]``; each seed shuffles it anew at every epoch, and leaves out the
        samples that do not fill a batch.
      optimizer: from optax.
      epochs: passes over the data.
      batch_size: samples a step.
      seeds: how many.
      measure: ``(params, rng) -> numbers``, after each epoch, beside the mean training ``loss``.
      schedules: ``[schedules, epochs]``, what ``loss`` is given; each is trained with every seed, so that there are
        ``schedules * seeds`` runs instead of ``seeds``, those of the first schedule first. None: one of zeros.
    """
    schedules = np.zeros((1, epochs), np.float32) if schedules is None else np.asarray(schedules, np.float32)
    samples = jax.tree.leaves(data)[0].shape[0]
    steps = samples // batch_size

    @jax.jit
    def start(seed: jax.Array) -> tuple[Any, Any, jax.Array]:
        init_rng, rng = jax.random.split(jax.random.key(seed))
        params = init(init_rng)
        return params, optimizer.init(params), rng

    def one_epoch(
        state: tuple[Any, Any, jax.Array], value: jax.Array, epoch: jax.Array, data: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        params, opt_state, rng = state
        order_rng, step_rng, measure_rng = jax.random.split(jax.random.fold_in(rng, epoch), 3)
        order = jax.random.permutation(order_rng, samples)[: steps * batch_size].reshape(steps, batch_size)

        def step(carry, index_and_rows):
            params, opt_state = carry
            index, rows = index_and_rows
            batch = jax.tree.map(lambda x: x[rows], data)
            mean, grads = jax.value_and_grad(loss)(params, batch, jax.random.fold_in(step_rng, index), value)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), mean

        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), (jnp.arange(steps), order))
        return (params, opt_state, rng), {"loss": losses.mean(), **measure(params, measure_rng)}

    values = np.repeat(schedules, seeds, axis=0)  # [runs, epochs]
    # One seed after the other: batched QR factorisations of orthogonal parameters can block all threads of XLA:CPU.
    runs = [start(seed) for seed in range(seeds)] * len(schedules)
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    run_epoch = jax.jit(jax.vmap(one_epoch, in_axes=(0, 0, None, None)), donate_argnums=0)
    data, found = jax.tree.map(jnp.asarray, data), []
    for epoch in range(epochs):
        state, numbers = run_epoch(state, values[:, epoch], jnp.int32(epoch), data)
        found.append(jax.device_get(numbers))
    return Fit(state[0], {name: np.stack([numbers[name] for numbers in found], axis=1) for name in found[0]})


def apply_seeds(function: Callable, params: Any, *inputs: Any) -> Any:
    """``function(params, *inputs)`` for each seed's parameters, jitted; the results gain a leading seed axis."""
    return jax.device_get(jax.jit(jax.vmap(function, in_axes=(0, *(None for _ in inputs))))(params, *inputs))


def one_seed(params: Any, seed: int = 0) -> Any:
    """The parameters of one seed."""
    return jax.tree.map(lambda leaf: leaf[seed], params)


def count_params(params: Any) -> int:
    """Numbers in a pytree."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


# --------------------------------------------------------------------------------------- training on batches of text


class Corpus(NamedTuple):
    """Sentence pairs of the bundled grammar, none in both parts, with word vocabularies and batches to train on."""

    train: Sequence[AlignedPair]
    test: Sequence[AlignedPair]
    src_vocab: WordVocabulary
    tgt_vocab: WordVocabulary
    batches: Batches


def grammar_corpus(
    train: int,
    test: int,
    *,
    batching: BatchConfig,
    seed: int = 1,
    keep: Callable[[AlignedPair], bool] = lambda pair: True,
) -> Corpus:
    """Draws ``train + test`` pairs from the grammar, and leaves out those that ``keep`` says no to."""
    parts = split(train, 0, test, seed)
    train_pairs, test_pairs = ([pair for pair in part if keep(pair)] for part in (parts[0], parts[2]))
    src, tgt = sentences(train_pairs)
    vocabularies = WordVocabulary.build(src), WordVocabulary.build(tgt)
    sides = [Sequences.from_texts(*side) for side in zip((src, tgt), vocabularies, strict=True)]
    return Corpus(train_pairs, test_pairs, *vocabularies, build_batches(*sides, batching))


def sentences(pairs: Sequence[AlignedPair]) -> tuple[list[str], list[str]]:
    """The source and the target sentences of pairs, words split by spaces."""
    return [" ".join(pair.src) for pair in pairs], [" ".join(pair.tgt) for pair in pairs]


def held_batch(corpus: Corpus, src_len: int, tgt_len: int) -> Batch:
    """All held-out pairs of a corpus as one batch, ends of sentences included."""
    sides = zip(sentences(corpus.test), (corpus.src_vocab, corpus.tgt_vocab), (src_len, tgt_len), strict=True)
    (src, src_mask), (tgt, tgt_mask) = (
        Sequences.from_texts(texts, vocabulary).padded(np.arange(len(corpus.test)), length)
        for texts, vocabulary, length in sides
    )
    return Batch(src=src, src_mask=src_mask, tgt=tgt, tgt_mask=tgt_mask)


def align_error(weights: np.ndarray, pairs: Sequence[AlignedPair]) -> float:
    """Alignment error rate in percent of the heaviest links of ``weights [pairs, tgt_len, src_len]`` against gold."""
    links = [weights_to_links(w[: len(p.tgt), : len(p.src)]) for w, p in zip(weights, pairs, strict=True)]
    return 100 * alignment_error_rate(links, [set(pair.alignment) for pair in pairs]).error_rate


class Trained(NamedTuple):
    """Trained parameters, the loss of each update in nats a token, what was measured on the way, and the seconds."""

    params: Any
    losses: np.ndarray
    measured: Sequence[Mapping[str, float]]
    seconds: float


def train_batches(
    model: Any,
    source: BatchSource,
    *,
    steps: int,
    optimizer: OptimizerConfig,
    seed: int = 0,
    every: int = 0,
    measure: Callable[[Any], Mapping[str, float]] = lambda params: {},
) -> Trained:
    """Trains a sequence-to-sequence model in a plain loop.

    Args:
      model: a linen module of the decoding protocol's families.
      source: gives the batches, in an order that follows from the seed.
      steps: updates.
      optimizer: see `attn_jax.training.step.OptimizerConfig`.
      seed: of parameters, order and dropout.
      every: updates between calls of ``measure``; 0: none.
      measure: ``params -> numbers``.
    """
    began = time.perf_counter()
    transformation, train_step = _train_step(model, optimizer, steps)
    init_rng, step_rng = jax.random.split(jax.random.key(seed))
    stream, sums, measured = source.stream(seed), [], []
    token = np.full((1, 1), EOS_ID)  # one is enough to know every shape, and costs no compilation of the scans
    params = model.init(init_rng, Batch(src=token, src_mask=token > 0, tgt=token, tgt_mask=token > 0))["params"]
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=transformation.init(params))
    for step in range(1, steps + 1):
        state, found = train_step(state, next(stream), step_rng)
        sums.append((found.nll, found.tokens))
        if every and step % every == 0:
            measured.append({"step": step, **measure(state.params)})
    nll, tokens = np.array(jax.device_get(sums)).T
    return Trained(state.params, nll / tokens, measured, time.perf_counter() - began)


@functools.cache
def _train_step(model: Any, optimizer: OptimizerConfig, steps: int) -> tuple[optax.GradientTransformation, Callable]:
    """Shared by all seeds and sources of a model, so that each shape is compiled once."""
    transformation = make_optimizer(optimizer, steps)
    return transformation, make_train_step(model, transformation)


# --------------------------------------------------------------------------------------------------------- drawing


def new_figure(rows: int = 1, columns: int = 1, *, width: float = 4.6, height: float = 3.4) -> tuple[Figure, Any]:
    """A figure without pyplot, and its axes ``[rows, columns]``; width and height are of one panel, in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


def band(ax: Any, x: Sequence[float], values: np.ndarray, *, label: str, color: str, **line: Any) -> None:
    """Draws the mean over seeds of ``values [seeds, points]``, with a band from the smallest to the largest."""
    values = np.asarray(values)
    ax.plot(x, values.mean(axis=0), label=label, color=color, **line)
    ax.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.18, linewidth=0)


def attention_panels(
    panels: Sequence[tuple[str, np.ndarray, Sequence[str], Sequence[str]]],
    *,
    keys: str = "source token",
    queries: str = "target token, in the order written",
) -> Figure:
    """Attention maps side by side on one scale from 0 to 1, the weights written into their cells.

    Args:
      panels: a title, ``weights [tgt_len, src_len]``, source tokens and target tokens for each.
      keys: name of the axis of sources.
      queries: name of the axis of targets.
    """
    figure, axes = new_figure(1, len(panels), width=4.4, height=4.0)
    figure.get_layout_engine().set(h_pad=0.12)  # else the titles touch the edge
    for ax, (title, weights, source, target) in zip(axes[0], panels, strict=True):
        plot_attention(weights, source, target, ax=ax)
        mesh = ax.collections[0]
        mesh.colorbar.remove()
        mesh.set_clim(0, 1)
        for row, column in np.argwhere(weights >= 0.005):
            weight = weights[row, column]
            ink = "white" if weight > 0.5 else "#22303c"
            ax.text(column + 0.5, row + 0.5, f"{weight:.2f}", ha="center", va="center", fontsize=7, color=ink)
        ax.set_title(title, fontsize=9, pad=8)
        ax.set_xlabel(keys, fontsize=8)
        ax.set_ylabel(queries, fontsize=8)
    figure.colorbar(mesh, ax=list(axes[0]), shrink=0.6, pad=0.02).set_label("attention weight", fontsize=8)
    figure.draw_without_rendering()  # places the titles above the slanted tick labels; the layout then makes room
    return figure


def entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy in nats of each row; rows that do not sum to 1 (local attention) are normalised first."""
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return -(weights * np.log(np.maximum(weights, 1e-30))).sum(-1)


def spread(values: Any, digits: int = 3) -> str:
    """``mean ± standard deviation`` over seeds."""
    values = np.asarray(values, np.float64)
    return f"{values.mean():.{digits}g} ± {values.std(ddof=1) if values.size > 1 else 0:.2g}"
