"""The same fixed batches, and a whole epoch, by Joey NMT and by us: each in processes of its own.

Joey NMT is run by its own command line in its own environment: it gets our subwords as words split on spaces, the same
sentences in the same batches, and a model of the same sizes.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from attn_jax import Batch, OptimizerConfig, Seq2Seq
from attn_jax.data.batching import choose_buckets
from attn_jax.data.parallel import read_parallel
from attn_jax.data.subwords import SubwordVocabulary
from attn_jax.data.vocabulary import SPECIAL_TOKENS
from attn_jax.training.step import init_state, make_optimizer, make_train_step
from experiments.speed.measure import OURS, ROOT, complaint, cores, in_child, last_json
from experiments.speed.work import CLIP, LEARNING_RATE, SMOOTHING, Sizes, our_config

BATCHES, BATCH, SHAPES = 100, 64, 8
PIECES = 6000
MODEL = ("attention=general", "dropout=0.0", "share_embeddings=false", "tie_embeddings=false", "embed_dim=256")
"""What `attn-jax train` is told, so that its model is the one that Joey NMT trains."""

JOEY = (
    "import json, joeynmt; from importlib.metadata import version; print(json.dumps({'version': version('joeynmt')}))"
)


def joey_version(python: str) -> dict[str, Any]:
    """``{"version": ...}`` of the Joey NMT that an interpreter has, or ``{"failed": reason}``."""
    try:
        return last_json(subprocess.run([python, "-c", JOEY], check=False, capture_output=True, text=True))
    except OSError as error:
        return {"failed": f"{error}"}


def compare(python: str, data: Path, precisions: Sequence[str], runs: int = 3) -> dict[str, Any]:
    """Target tokens a second over 100 fixed batches, everybody in turn: Joey NMT, and ours at each precision."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = write_batches(data, Path(folder))
        config = joey_config(Path(folder), vocabulary, "fixed", updates=BATCHES, shuffle=False)
        contenders: dict[str, Callable[[], float]] = {"joeynmt": partial(joey_throughput, python, config)}
        for precision in precisions:
            contenders[f"{OURS} {precision}"] = partial(ours_in_child, Path(folder), precision)
        found = {name: [] for name in contenders}
        for _ in range(runs):
            for name, measure in contenders.items():
                found[name].append(measure())
    return {"target_tokens_s": found, "medians": {name: statistics.median(each) for name, each in found.items()}}


def ours_in_child(folder: Path, precision: str) -> float:
    """Our target tokens a second, from a process of its own; only the first one compiles, which is not timed."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    done = in_child("fixed_batches", environment=cache, path=str(folder / "fixed.npz"), precision=precision)
    if "failed" in done:
        raise RuntimeError(f"our run over the fixed batches failed: {done['failed']}")
    return done["tokens_s"]


def write_batches(data: Path, folder: Path) -> SubwordVocabulary:
    """Draws 6,400 pairs of Multi30k into batches of similar length, for us as arrays and for Joey NMT as text.

    Sorted by length, 64 pairs are a batch, and the batches come in random order. Ours are padded to the eight shapes
    that `choose_buckets` finds for the batches' longest sides.
    """
    train = read_parallel(data / "multi30k/train.de.gz", data / "multi30k/train.en.gz")
    pairs = [(src, tgt) for src, tgt in zip(train.src, train.tgt, strict=True)]
    vocabulary = SubwordVocabulary.train([*train.src, *train.tgt], vocab_size=PIECES)
    rng = np.random.default_rng(0)
    chosen = [pairs[i] for i in rng.choice(len(pairs), BATCHES * BATCH, replace=False)]
    ids = [[[*side, 2] for side in vocabulary.encode_batch(list(texts))] for texts in zip(*chosen, strict=True)]
    lengths = np.array([[len(side) for side in texts] for texts in ids]).T  # [pairs, 2]
    groups = np.argsort(lengths.max(1), kind="stable").reshape(BATCHES, BATCH)
    longest = lengths[groups].max(1)  # [batches, 2]
    bounds = choose_buckets(longest, SHAPES)  # shortest first
    shapes = [next(bound for bound in bounds if (batch <= bound).all()) for batch in longest]
    order = rng.permutation(BATCHES)
    arrays = {
        f"{side}_{number}": padded([ids[column][row] for row in groups[group]], shapes[group][column])
        for number, group in enumerate(order)
        for column, side in enumerate(("src", "tgt"))
    }
    np.savez(folder / "fixed.npz", vocab=len(vocabulary), **arrays)
    rows = groups[order].ravel()
    for column, side in enumerate(("de", "en")):
        write_pieces(folder / f"fixed.{side}", vocabulary, [chosen[row][column] for row in rows])
        write_pieces(folder / f"dev.{side}", vocabulary, [pair[column] for pair in chosen[:2]])
    return vocabulary


def padded(rows: list[list[int]], length: int) -> np.ndarray:
    """``[batch, length]`` ids, 0 after the end of each."""
    return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


def write_pieces(path: Path, vocabulary: SubwordVocabulary, texts: list[str]) -> None:
    """A text as pieces with spaces between them."""
    lines = (" ".join(vocabulary.pieces(ids)) for ids in vocabulary.encode_batch(texts))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def our_throughput(path: str, precision: str) -> dict[str, float]:
    """Target tokens a second over the batches of a file, from host arrays, after one step of every shape."""
    with np.load(path) as file:
        sides = [[file[f"{side}_{number}"] for number in range(BATCHES)] for side in ("src", "tgt")]
        vocab = int(file["vocab"])
    most = {}  # the largest number of real targets of each shape: the static size of its packed logits
    for src, tgt in zip(*sides, strict=True):
        shape = src.shape + tgt.shape
        most[shape] = max(most.get(shape, 0), int((tgt > 0).sum()))
    batches = [as_batch(src, tgt, most[src.shape + tgt.shape]) for src, tgt in zip(*sides, strict=True)]
    model = Seq2Seq(our_config(Sizes(vocab=vocab, precision=precision)))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant", clip=CLIP), BATCHES)
    state, rng = init_state(model, optimizer, batches[0], jax.random.key(0)), jax.random.key(1)
    step = make_train_step(model, optimizer, smoothing=SMOOTHING)
    for batch in {batch.src.shape + batch.tgt.shape: batch for batch in batches}.values():
        state, found = step(state, batch, rng)
    jax.block_until_ready((state, found))
    began = time.perf_counter()
    for batch in batches:
        state, found = step(state, batch, rng)
    jax.block_until_ready((state, found))
    seconds = time.perf_counter() - began
    return {"tokens_s": sum(int(batch.tgt_mask.sum()) for batch in batches) / seconds, "shapes": len(most)}


def as_batch(src: np.ndarray, tgt: np.ndarray, capacity: int) -> Batch:
    """Padded ids as a batch whose real targets are packed into ``capacity``."""
    index = np.full(capacity, tgt.size, np.int32)
    real = np.flatnonzero(tgt > 0)
    index[: len(real)] = real
    return Batch(src, src > 0, tgt, tgt > 0, index)


def joey_config(folder: Path, vocabulary: SubwordVocabulary, train: str, **training: Any) -> Path:
    """Writes Joey NMT's configuration and vocabulary for a model of our sizes; JSON is YAML."""
    sizes = Sizes()
    pieces = vocabulary.pieces(range(len(SPECIAL_TOKENS), len(vocabulary)))
    (folder / "pieces.txt").write_text("\n".join(["<unk>", "<pad>", "<s>", "</s>", *pieces]) + "\n", encoding="utf-8")
    side = {"level": "word", "max_length": -1, "voc_file": str(folder / "pieces.txt"), "lowercase": False}
    layer = {"type": "recurrent", "num_layers": 1, "dropout": 0.0, "embeddings": {"embedding_dim": sizes.embed}}
    config = {
        "name": train,
        "model_dir": str(folder / f"joey_{train}"),
        "use_cuda": False,
        "data": {
            "train": str(folder / train),
            "dev": str(folder / "dev"),
            "dataset_type": "plain",
            "src": {"lang": "de", **side},
            "trg": {"lang": "en", **side},
        },
        "testing": {"beam_size": 1, "batch_size": BATCH, "eval_metrics": ["bleu"], "max_output_length": 60},
        "training": {
            "optimizer": "adam",
            "adam_betas": [0.9, 0.98],
            "learning_rate": LEARNING_RATE,
            "scheduling": "exponential",  # with a factor of 1; its default does not run with PyTorch 2.13
            "decrease_factor": 1.0,
            "clip_grad_norm": CLIP,
            "label_smoothing": SMOOTHING,
            "loss": "crossentropy",
            "normalization": "tokens",
            "batch_size": BATCH,
            "batch_type": "sentence",
            "epochs": 1,
            "logging_freq": BATCHES,
            "validation_freq": 10**9,
            "early_stopping_metric": "loss",
            "overwrite": True,
            **training,
        },
        "model": {
            "encoder": {**layer, "rnn_type": "gru", "hidden_size": sizes.encoder, "bidirectional": True},
            "decoder": {
                **layer,
                "rnn_type": "lstm",
                "hidden_size": sizes.decoder,
                "hidden_dropout": 0.0,
                "attention": "luong",
                "input_feeding": True,
                "init_hidden": "bridge",
            },
        },
    }
    path = folder / f"{train}.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def run_joey(python: str, config: Path) -> str:
    """Trains with Joey NMT's command line; what it wrote to its log."""
    command = [python, "-m", "joeynmt", "train", str(config), "--skip-test"]
    environment = {**os.environ, "OMP_NUM_THREADS": f"{cores()}"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=config.parent, env=environment)
    if done.returncode:
        raise RuntimeError(f"joeynmt failed: {complaint(done)}")
    return done.stdout + done.stderr


def joey_throughput(python: str, config: Path) -> float:
    """Target tokens a second of all updates but its start, as Joey NMT reports them."""
    found = re.search(rf"Step:\s+{BATCHES}\b.*?Tokens per Sec:\s+(\d+)", run_joey(python, config))
    if not found:
        raise RuntimeError("joeynmt reported no tokens per second")
    return float(found[1])


def whole_epoch(python: str, data: Path, precisions: Sequence[str]) -> dict[str, Mapping[str, float]]:
    """One epoch of Multi30k with one greedy validation, everything included: start, data, checkpoints.

    Ours starts from text, trains its subwords too, and compiles without a cache; Joey NMT gets its pieces ready. They
    train the same model, each in batches of its own kind: ours hold 2,048 tokens of both sides, padding included, in
    buckets of similar length, Joey NMT's 64 pairs.

    Returns:
      ``seconds`` by name.

    Raises:
      RuntimeError: if one of them fails.
    """
    names = [data / f"multi30k/{part}.{side}.gz" for part in ("train", "val") for side in ("de", "en")]
    flags = ("--src", "--tgt", "--valid-src", "--valid-tgt")
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        texts = {part: read_parallel(*names[2 * i : 2 * i + 2]) for i, part in enumerate(("train", "dev"))}
        vocabulary = SubwordVocabulary.train([*texts["train"].src, *texts["train"].tgt], vocab_size=PIECES)
        for part, text in texts.items():
            for side, sentences in (("de", text.src), ("en", text.tgt)):
                write_pieces(Path(folder) / f"{part}.{side}", vocabulary, list(sentences))
        updates = len(list(texts["train"].src)) // BATCH
        config = joey_config(
            Path(folder), vocabulary, "train", logging_freq=updates, validation_freq=updates, updates=updates
        )
        began = time.perf_counter()
        run_joey(python, config)
        seconds["joeynmt"] = time.perf_counter() - began
        for precision in precisions:
            files = [argument for pair in zip(flags, map(str, names), strict=True) for argument in pair]
            out = ["--out", f"{folder}/{precision}", "--epochs", "1", "--precision", precision]
            settings = [argument for setting in MODEL for argument in ("--set", setting)]
            settings += ["--vocab-size", str(PIECES)]
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
            began = time.perf_counter()
            command = [sys.executable, "-m", "attn_jax", "train", *files, *out, *settings]
            done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment)
            if done.returncode:
                raise RuntimeError(f"attn-jax train failed: {complaint(done)}")
            seconds[f"{OURS} {precision}"] = time.perf_counter() - began
    return {"seconds": seconds}
