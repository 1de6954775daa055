"""Where a program runs: what a reader needs to know to run it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("attn-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "safetensors", "sentencepiece")


def environment() -> dict[str, Any]:
    """Where a program runs: versions, devices, cores, memory (GB), command line, git revision of the folder it is in.

    What cannot be found out is None.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "cores": _cores(),
        "memory_gb": _memory_gb(),
        "git": git_revision(Path.cwd()),
    }


def git_revision(folder: Path) -> dict[str, Any] | None:
    """``{"revision": ..., "dirty": ...}`` of the checkout that ``folder`` is in; None without one, or without git.

    ``dirty`` says whether tracked files differ from the revision.
    """
    revision = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if revision is None else {"revision": revision, "dirty": None if status is None else bool(status)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int | None:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
