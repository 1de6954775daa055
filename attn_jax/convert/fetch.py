"""Marian models from the Hugging Face hub, by explicit command.

What is verified: a branch is first resolved to a commit; every file then has the size and the hash that the hub states
for that commit, SHA-256 for large files and git's SHA-1 for small ones. That finds a damaged or exchanged download. It
does not say who made the model: for that the hub is believed. A manifest keeps the commit, what the hub stated, and the
SHA-256 of every file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attn_jax.storage import manifest
from attn_jax.storage.download import DownloadError, Expected, download, read_url

HUB = "https://huggingface.co"
OWNER = "Helsinki-NLP"
FORMAT = "attn_jax fetched model, 1"
NEEDED = ("config.json", "vocab.json", "source.spm", "target.spm")
OPTIONAL = ("generation_config.json", "target_vocab.json", "README.md")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The first that there is."""


def fetch_marian(
    name: str,
    folder: str | Path,
    *,
    revision: str = "main",
    hub: str = HUB,
    on_file: Callable[[str], Any] = lambda line: None,
) -> Path:
    """Downloads what `attn_jax.convert.marian.read_marian` reads. The same call goes on with an interrupted download.

    Args:
      name: such as ``opus-mt-en-fr`` (of Helsinki-NLP), or ``owner/name``.
      folder: where the files go.
      revision: a commit, a tag or a branch.
      hub: the server.
      on_file: called with a line about each file.

    Returns:
      The folder.

    Raises:
      ValueError: for what is no name of a model, and for a file that is not what the hub states.
      DownloadError: for a server that cannot be reached, and for a model that is not there or lacks a file.
    """
    name = name if "/" in name else f"{OWNER}/{name}"
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        raise ValueError(f"expected the name of a model, such as opus-mt-en-fr, found {name!r}")
    if not re.fullmatch(r"\w[\w.-]*", revision, re.ASCII):
        raise ValueError(f"expected the name of a revision, such as main or a commit, found {revision!r}")
    listing = read_url(f"{hub}/api/models/{name}/revision/{revision}?blobs=true")
    commit, files = _files(listing, name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, expected in files.items():
        download(f"{hub}/{name}/resolve/{commit}/{file}", folder / file, expected)
        on_file(f"{file}  {expected.size:,} bytes, {expected.kind} {expected.digest}")
    stated = {file: f"{expected.kind} {expected.digest}" for file, expected in files.items()}
    manifest.write_manifest(folder, format=FORMAT, name=name, commit=commit, hub=hub, stated=stated)
    return folder


def _files(listing: Any, name: str) -> tuple[str, dict[str, Expected]]:
    """The commit, and what the hub states of each file that is needed."""
    try:
        commit = listing["sha"]
        stated = {entry["rfilename"]: _expected(entry) for entry in listing["siblings"]}
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"commit {commit!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise DownloadError(f"{name}: the server's list of files cannot be read ({error!r}); try again") from error
    missing = [file for file in NEEDED if file not in stated]
    weights = [file for file in WEIGHTS if file in stated]
    if missing or not weights:
        lacks = ", ".join([*missing, *([] if weights else [" or ".join(WEIGHTS)])])
        raise DownloadError(f"{name}: lacks {lacks}; is it a Marian model with weights for PyTorch?")
    return commit, {file: stated[file] for file in (*NEEDED, *OPTIONAL, weights[0]) if file in stated}


def _expected(entry: Mapping[str, Any]) -> Expected:
    large = entry.get("lfs")
    if large:
        return Expected(int(large["size"]), "sha256", str(large["sha256"]))
    return Expected(int(entry["size"]), "git", str(entry["blobId"]))
