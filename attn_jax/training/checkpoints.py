"""Checkpoints of a training state: Orbax writes the arrays, a SHA-256 manifest says whether they are still the same.

A checkpoint is a folder named by its step, with ``arrays/`` and ``manifest.json``. It is written beside its place and
renamed, so that a process killed at any moment leaves the earlier ones as they were. A run has one writer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from attn_jax.storage import manifest
from attn_jax.storage.files import IntegrityError, fresh_folder, put_in_place, remove_folder
from attn_jax.storage.names import nest

FORMAT = "attn_jax checkpoint, 1"
ARRAYS = "arrays"
_FOLDER = re.compile(r"(\d{8,})|\.(\d{8,})\.replaced")  # the second: all that a save killed between two renames left


class CheckpointError(ValueError):
    """A checkpoint cannot be saved or restored; the message says which, why, and the remedy."""


class CheckpointWarning(UserWarning):
    """A checkpoint is not what was written, and was skipped."""


class Restored(NamedTuple):
    """``state`` as it was saved at ``step``, with the ``metrics`` that were saved beside it."""

    step: int
    state: Any
    metrics: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay: the ``last`` ones and the ``best`` ones by a metric.

    Attributes:
      last: how many of the highest steps stay, at least 1. With 2, a corrupt one still has an older one behind it.
      best: how many of the best by ``metric`` stay besides.
      metric: a name in the ``metrics`` that ``save`` is given. Checkpoints without it, or where it is NaN, are not
        among the best.
      mode: ``"max"`` when more is better (BLEU), ``"min"`` when less is (loss).
    """

    last: int = 3
    best: int = 0
    metric: str = "loss"
    mode: Literal["min", "max"] = "min"

    def __post_init__(self):
        if self.last < 1 or self.best < 0:
            raise ValueError(f"expected last >= 1 and best >= 0, found last={self.last}, best={self.best}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"expected mode 'min' or 'max', found {self.mode!r}")


def save(
    folder: str | Path,
    step: int,
    state: Any,
    metrics: Mapping[str, Any] | None = None,
    keep: Keep = Keep(),
) -> Path:
    """Writes a checkpoint and then removes those that need not stay. When it returns, the checkpoint is on the disk.

    Checkpoints of higher steps are removed too: they belong to a future that a resume from an earlier step gave up.

    Args:
      folder: the folder of all checkpoints of a run.
      step: the number of updates done, at least 0. A checkpoint of the same step is replaced.
      state: any pytree of arrays, numbers and PRNG keys.
      metrics: what is known of this state, for ``best_steps`` and for the reader.
      keep: which checkpoints stay.

    Returns:
      The folder of this checkpoint.

    Raises:
      CheckpointError: for a leaf that is no array, number or key, naming it.
    """
    if step < 0:
        raise CheckpointError(f"expected a step >= 0, found {step}")
    path = Path(folder).resolve() / f"{step:08d}"
    leaves = {name: _as_numpy(name, leaf) for name, leaf in _named_leaves(state).items()}
    described = {name: [array.dtype.name, list(array.shape)] for name, array in leaves.items()}
    stored = nest(_without_empty(leaves), "/")

    for leftover in path.parent.glob(".*.saving"):
        remove_folder(leftover)
    scratch = fresh_folder(path)
    try:
        with _orbax() as orbax:
            orbax.save(scratch / ARRAYS, stored)
        manifest.write_manifest(scratch, format=FORMAT, step=step, metrics=dict(metrics or {}), leaves=described)
        put_in_place(scratch, path)
    finally:
        remove_folder(scratch)
    for later in steps(folder):
        if later > step:
            _remove(folder, later)
    prune(folder, keep)
    return path


def restore(folder: str | Path, like: Any, step: int | None = None) -> Restored:
    """Reads the newest checkpoint that is still what was written.

    Args:
      folder: the folder of all checkpoints of a run.
      like: a state of the same structure, shapes and dtypes, such as a freshly initialised one (its arrays may be
        ``jax.ShapeDtypeStruct``). Leaves come back in its types and on its devices.
      step: take this one and no other.

    Returns:
      The step found, which may be lower than ``latest_step``; the state; and its metrics.

    Warns:
      CheckpointWarning: naming the bad file of each checkpoint that was skipped.

    Raises:
      CheckpointError: when no checkpoint is left, and when ``like`` does not fit the one found.
    """
    folder = Path(folder).resolve()
    candidates = [(found, path) for found, path in _candidates(folder) if step in (None, found)]
    if not candidates:
        there = f"there are {', '.join(map(str, steps(folder)))}" if steps(folder) else "there is none"
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise CheckpointError(f"{folder}: {wanted}, {there}; start training afresh, or name another folder or step")
    for found, path in candidates:
        try:
            record = _verify(path)
        except IntegrityError as error:
            warnings.warn(f"skipped the checkpoint of step {found}: {error}", CheckpointWarning, stacklevel=2)
        else:
            return Restored(found, _read_like(path, record, like), record["metrics"])
    raise CheckpointError(
        f"{folder}: none of {len(candidates)} checkpoint(s) is what was written (last looked at: {candidates[-1][1]}); "
        "copy one from a backup, restore another step, or start training afresh"
    )


def average(folder: str | Path, steps: Sequence[int], part: str = "params") -> dict[str, Any]:
    r"""The mean of the parameters over checkpoints, ``\bar\theta = \frac{1}{n} \sum_i \theta_i``, summed in float64.

    Args:
      folder: the folder of all checkpoints of a run.
      steps: which ones.
      part: the entry or attribute of the saved states that holds the parameters, a nested dict.

    Returns:
      A nested dict of numpy arrays in the dtypes of the checkpoints.

    Raises:
      CheckpointError: when one of the checkpoints is missing or not what was written (an average over fewer would be
        another model), holds other parameters than the first, or an array that is not of floats.

    References:
      Vaswani et al., "Attention Is All You Need", section 6.1: averages the last 5 or 20 checkpoints. arXiv:1706.03762.
    """
    if not steps:
        raise CheckpointError("expected at least one step to average over, found none")
    folder, total, expected = Path(folder).resolve(), {}, None
    for step in steps:
        paths = [path for found, path in _candidates(folder) if found == step]
        if not paths:
            raise CheckpointError(f"{folder}: no checkpoint of step {step}; average over others")
        try:
            record = _verify(paths[0])
        except IntegrityError as error:
            raise CheckpointError(f"{error}; leave step {step} out of the average") from error
        leaves = {name: entry for name, entry in record["leaves"].items() if name.startswith(f"{part}/")}
        expected = leaves if expected is None else expected
        if not leaves or leaves != expected:
            what = "differ from those of step " + str(steps[0]) if leaves else "are missing"
            raise CheckpointError(f"{paths[0]}: the arrays of {part!r} {what}; average over checkpoints of one model")
        for name, array in _read(paths[0], leaves).items():
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise CheckpointError(f"{paths[0]}: expected floats to average, found {array.dtype} for {name}")
            total[name] = total.get(name, 0.0) + array.astype(np.float64)
    mean = {name: (total[name] / len(steps)).astype(jnp.dtype(dtype)) for name, (dtype, _) in expected.items()}
    return nest(mean, "/")[part]


def steps(folder: str | Path) -> list[int]:
    """The steps of which there is a checkpoint, ascending. Whether each is still what was written is not looked at."""
    return sorted({step for step, _ in _candidates(Path(folder))})


def latest_step(folder: str | Path) -> int | None:
    """The highest of ``steps``, or None when there is none."""
    return max(steps(folder), default=None)


def best_steps(folder: str | Path, keep: Keep) -> list[int]:
    """The steps of the ``keep.best`` best checkpoints by ``keep.metric``, best first; of equals, the later one."""
    values = {}
    for step, path in reversed(_candidates(Path(folder))):
        with contextlib.suppress(IntegrityError, KeyError, TypeError, ValueError):
            value = float(manifest.read_manifest(path)["metrics"][keep.metric])
            if not math.isnan(value):
                values[step] = value if keep.mode == "max" else -value
    return sorted(values, key=lambda step: (values[step], step), reverse=True)[: keep.best]


def whole(folder: str | Path, steps: Sequence[int]) -> list[int]:
    """Those of ``steps`` whose checkpoint is still what was written.

    Warns:
      CheckpointWarning: naming the bad file of each other.
    """
    found = []
    for step, path in _candidates(Path(folder)):
        if step in steps and step not in found:
            try:
                _verify(path)
            except IntegrityError as error:
                warnings.warn(f"skipped the checkpoint of step {step}: {error}", CheckpointWarning, stacklevel=2)
            else:
                found.append(step)
    return [step for step in steps if step in found]


def prune(folder: str | Path, keep: Keep) -> list[int]:
    """Removes the checkpoints that need not stay, and returns their steps."""
    staying = {*steps(folder)[-keep.last :], *best_steps(folder, keep)}
    gone = [step for step in steps(folder) if step not in staying]
    for step in gone:
        _remove(folder, step)
    return gone


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths, newest first; of one step, the one in its place before the one that was being replaced."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    ranked = sorted(((int(match[1] or match[2]), bool(match[1]), path) for match, path in found), reverse=True)
    return [(step, path) for step, _, path in ranked]


def _remove(folder: str | Path, step: int) -> None:
    """Removes a checkpoint, its manifest first: what a kill leaves of it then counts as incomplete."""
    for found, path in _candidates(Path(folder)):
        if found == step:
            (path / manifest.NAME).unlink(missing_ok=True)
            remove_folder(path)


def _verify(path: Path) -> dict[str, Any]:
    record = manifest.verify(path)
    if record.get("format") != FORMAT:
        raise IntegrityError(f"{path / manifest.NAME}: expected format {FORMAT!r}, found {record.get('format')!r:.60}")
    return record


def _named_leaves(state: Any) -> dict[str, Any]:
    """The leaves of a pytree by the path to them, ``params/encoder/kernel``."""
    pairs = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(named) < len(pairs):
        raise CheckpointError("expected a state whose leaves have different names; found two paths that read the same")
    try:
        nest(named, "/")
    except IntegrityError as error:
        raise CheckpointError(f"expected a state whose leaves can be told apart; {error}") from error
    return named


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(name: str, leaf: Any) -> np.ndarray:
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise CheckpointError(f"expected an array, a number or a key for {name!r}, found {type(leaf).__name__}")
    return array


def _without_empty(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Orbax refuses arrays without elements; their shape in the manifest is all there is to know."""
    return {name: array for name, array in leaves.items() if array.size}


def _read(path: Path, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads the arrays that ``leaves`` (name -> dtype and shape, as in the manifest) names, and no others."""
    blank = {name: np.empty(shape, jnp.dtype(dtype)) for name, (dtype, shape) in leaves.items()}
    item = nest(_without_empty(blank), "/")
    with _orbax() as orbax:
        from orbax.checkpoint import RestoreArgs, args

        as_numpy = jax.tree.map(lambda _: RestoreArgs(restore_type=np.ndarray), item)
        read = orbax.restore(
            path / ARRAYS, args=args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
        )
    return blank | flatten_dict(read, sep="/")


def _read_like(path: Path, record: Mapping[str, Any], like: Any) -> Any:
    wanted, saved = _named_leaves(like), record["leaves"]
    for name, leaf in wanted.items():
        if name not in saved:
            raise CheckpointError(f"{path}: has no {name!r}; {_REMEDY}")
        dtype, shape = saved[name]
        described = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else _shaped(leaf)
        if (described.dtype.name, list(described.shape)) != (dtype, shape):
            raise CheckpointError(
                f"{path}: expected {described.dtype.name}{list(described.shape)} for {name!r}, "
                f"found {dtype}{shape}; {_REMEDY}"
            )
    if extra := sorted(saved.keys() - wanted.keys()):
        raise CheckpointError(f"{path}: holds {extra[0]!r}, which the state here has not; {_REMEDY}")
    arrays = _read(path, saved)
    return jax.tree.unflatten(jax.tree.structure(like), [_as_like(arrays[name], leaf) for name, leaf in wanted.items()])


_REMEDY = "resume with the configuration it was saved with"


def _shaped(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf)


def _as_like(array: np.ndarray, leaf: Any) -> Any:
    """``array`` in the type of ``leaf`` and, for arrays of JAX, on its devices."""
    if isinstance(leaf, (bool, int, float, complex)):
        return type(leaf)(array.item())
    if isinstance(leaf, np.generic):
        return array[()]
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return array
    sharding = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) or leaf.committed else None
    if _is_key(leaf):
        impl = jax.random.key_impl(jnp.empty((), leaf.dtype))
        return jax.device_put(jax.random.wrap_key_data(jnp.asarray(array), impl=impl), sharding)
    return jax.device_put(array, sharding)


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """An Orbax checkpointer, imported only now (it takes 0.3 s) and silent below the level of errors.

    Without compression: float32 weights shrink by 8 % and take twice as long.
    """
    import orbax.checkpoint

    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        handler = orbax.checkpoint.PyTreeCheckpointHandler(use_compression=False)
        with contextlib.closing(orbax.checkpoint.Checkpointer(handler)) as checkpointer:
            yield checkpointer
    finally:
        log.setLevel(level)
