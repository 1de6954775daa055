"""The run folder: whether it can be claimed, for one process alone, and what is removed from it.

A folder is known as a run by its ``environment.json``; what is in it, ``journal`` says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attn_jax.storage.files import IntegrityError, read_json, remove_folder, replaced_name, write_json
from attn_jax.training.environment import environment
from attn_jax.training.journal import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    ENVIRONMENT,
    METRICS,
    MODEL,
    SAMPLES,
    VOCABULARY,
    Journal,
    RunFolderError,
)

try:
    import fcntl
except ImportError:  # on Windows, as on file systems without locks, two processes in one folder go unnoticed
    fcntl = None

NAMES = (CONFIG, ENVIRONMENT, DATA, METRICS, SAMPLES, CHECKPOINTS, MODEL, VOCABULARY)
RUNNING = ".running"


def check(out: str | Path, *, overwrite: bool = False, resume: bool = False) -> list[str]:
    """Whether a run folder can be claimed as asked; changes nothing.

    Args:
      out: the run folder.
      overwrite: as for `create`.
      resume: as for `create`.

    Returns:
      The names of what a run left there.

    Raises:
      RunFolderError: when there is a run and neither was asked for, when there is none to resume, when what is there
        cannot be told to be a run, and when nothing can be written there.
    """
    out = Path(out)
    if overwrite and resume:
        raise RunFolderError("expected --resume or --overwrite, found both; choose one")
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise RunFolderError(f"{out}: expected a folder or nothing, found a file; choose another --out")
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise RunFolderError(f"{out}: {nearest} is a file, so no folder can be made in it; choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunFolderError(f"{out}: nothing can be written in {nearest}; choose another --out, or allow it")
    there = [name for name in NAMES if (out / name).exists()]
    if resume:
        if CONFIG not in there:
            instead = "with --overwrite" if there else "without --resume"
            raise RunFolderError(f"{out}: no run to resume ({CONFIG} is missing); start it {instead}")
    elif there and not overwrite:
        raise RunFolderError(
            f"{out}: holds a run already ({there[0]}); go on with --resume, replace it with --overwrite, "
            "or choose another --out"
        )
    elif there and not _is_run(out):
        raise RunFolderError(
            f"{out}: holds {there[0]}, but no {ENVIRONMENT} of a run, so nothing was removed; "
            "remove it by hand, or choose another --out"
        )
    return there


def check_alone(out: str | Path) -> None:
    """Whether no other process trains in a run folder; changes nothing.

    Raises:
      RunFolderError: when one does.
    """
    if (Path(out) / RUNNING).exists():
        with alone(out):
            pass


@contextmanager
def alone(out: str | Path) -> Iterator[None]:
    """Keeps other processes from training in a run folder while the block runs; the system ends that with the process.

    Raises:
      RunFolderError: when another process trains there.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / RUNNING, "a", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(
                    f"{out}: another process trains here; wait until it ends, stop it, or choose another --out"
                ) from error
            except OSError:
                pass
        yield


def create(out: str | Path, *, overwrite: bool = False, resume: bool = False) -> Journal:
    """Claims a run folder and records the environment in it. Check what else can fail before overwriting a run.

    Args:
      out: the run folder; made if it is not there. Other files in it are left alone.
      overwrite: removes the run that is there. Only what a run writes is removed.
      resume: goes on with the run that is there, after mending a last line that a crash tore.

    Returns:
      The journal of the run.

    Raises:
      RunFolderError: see `check`. Nothing is changed then.
    """
    there, out = check(out, overwrite=overwrite, resume=resume), Path(out)
    starts = _read_starts(out) if resume else []
    if there and not resume:
        remove_folder(replaced_name(out / MODEL))  # of a save that was killed; without a run it is not ours
        for name in sorted(there, key=lambda name: name == ENVIRONMENT):  # last: until then it is still known as a run
            _remove(out / name)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ENVIRONMENT, [*starts, environment()])
    journal = Journal(out)
    if resume:
        journal.mend()
    return journal


def _remove(path: Path) -> None:
    """Removes a file, a folder, or a link to one, but not what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_run(out: Path) -> bool:
    try:
        starts = read_json(out / ENVIRONMENT)
    except IntegrityError:
        return False
    return (
        isinstance(starts, list)
        and bool(starts)
        and all(isinstance(start, dict) and "packages" in start for start in starts)
    )


def _read_starts(out: Path) -> Sequence[Any]:
    if not (out / ENVIRONMENT).exists():
        return []
    if not _is_run(out):
        raise RunFolderError(f"{out / ENVIRONMENT}: expected the environments of a run; move it away and resume again")
    return read_json(out / ENVIRONMENT)
