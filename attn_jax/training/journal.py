"""The records of a run: what was run, where, on which data, and how it went, written so that a crash loses no line.

In a run folder: ``config.json``, ``environment.json`` (one entry a start), ``data.json`` (SHA-256 of each file read),
``metrics.jsonl`` (one record a line), ``samples.txt`` (translations at each validation), ``checkpoints/``, and
``model/`` (the best model).
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax.traverse_util import empty_node, flatten_dict

from attn_jax.storage.files import IntegrityError, plain, read_json, write_json

CONFIG, ENVIRONMENT, DATA, METRICS, SAMPLES = (
    "config.json",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "samples.txt",
)
CHECKPOINTS, MODEL, VOCABULARY = "checkpoints", "model", "vocabulary"
_HEADER = "== step "
_REMEDY = "restore the file, or start anew with --overwrite or another --out"


class RunFolderError(ValueError):
    """A run folder cannot be used as asked; the message says why, and the remedy."""


@dataclass(frozen=True)
class Journal:
    """Writes and reads the records of one run. Make it with ``run_folder.create``.

    Attributes:
      folder: the run folder.
    """

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def model(self) -> Path:
        """The folder of the best model."""
        return self.folder / MODEL

    @property
    def vocabulary(self) -> Path:
        """The folder of the vocabularies."""
        return self.folder / VOCABULARY

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes ``config.json``."""
        write_json(self.folder / CONFIG, config)

    def read_config(self) -> dict[str, Any]:
        """Reads ``config.json``.

        Raises:
          RunFolderError: when it is missing or garbled, with the line and the column.
        """
        try:
            config = read_json(self.folder / CONFIG)
        except IntegrityError as error:
            raise RunFolderError(f"{error}; {_REMEDY}") from error
        if not isinstance(config, dict):
            raise RunFolderError(f"{self.folder / CONFIG}: expected a JSON object; {_REMEDY}")
        return config

    def check_config(self, config: Mapping[str, Any], may_change: Collection[str]) -> None:
        """Compares the settings of a resumed run with those that it was started with.

        Args:
          config: the settings now.
          may_change: settings, as ``"training.epochs"``, that a resumed run may change.

        Raises:
          RunFolderError: naming a setting that differs, with both values.
        """
        then, now = (
            flatten_dict(plain(values), keep_empty_nodes=True, sep=".") for values in (self.read_config(), config)
        )
        then, now = ({k: {} if v is empty_node else v for k, v in values.items()} for values in (then, now))
        for name in sorted(then.keys() | now.keys()):
            values = [str(settings.get(name, "nothing")) for settings in (then, now)]
            if values[0] != values[1] and not name.startswith(tuple(may_change)):
                raise RunFolderError(
                    f"{self.folder}: the run was started with {name} {values[0]}, found {values[1]}; "
                    "resume with the same settings, or start anew with --overwrite or another --out"
                )

    def write_data(self, data: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Writes ``data.json``.

        Args:
          data: for each part (``"train"``) its files, each with at least ``path`` and ``sha256``.
        """
        write_json(self.folder / DATA, data)

    def check_data(self, data: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Holds a resumed run to the content it was started with; files may have moved.

        Args:
          data: as for `write_data`.

        Raises:
          RunFolderError: when ``data.json`` is garbled, or a file has other content.
        """
        try:
            known = read_json(self.folder / DATA)
            then = {part: [file["sha256"] for file in files] for part, files in known.items()}
        except IntegrityError as error:
            raise RunFolderError(f"{error}; {_REMEDY}") from error
        except (AttributeError, TypeError, KeyError):
            raise RunFolderError(f"{self.folder / DATA}: expected files with their sha256; {_REMEDY}") from None
        for part in sorted(then.keys() | data.keys()):
            files = data.get(part, ())
            for expected, file in itertools.zip_longest(then.get(part, ()), files, fillvalue={}):
                found = file and file["sha256"]
                if expected != found:
                    raise RunFolderError(
                        f"{file['path'] if file else self.folder}: the run in {self.folder} was started with other "
                        f"{part} text: expected {expected or 'no file'}, found {found or 'no file'}; resume with the "
                        "same files, or start anew with --overwrite or another --out"
                    )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record to ``metrics.jsonl``: ``step``, ``time`` (seconds since 1970) and ``values``.

        Raises:
          RunFolderError: when ``values`` has a ``step`` or ``time`` of its own.
        """
        if taken := {"step", "time"} & values.keys():
            raise RunFolderError(f"expected names other than 'step' and 'time', found {sorted(taken)[0]!r}")
        record = plain({"step": step, "time": round(time.time(), 3), **values})
        _append(self.folder / METRICS, json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records of ``metrics.jsonl``, as ``read_metrics`` gives them."""
        return read_metrics(self.folder / METRICS)

    def write_samples(self, step: int, samples: Iterable[Mapping[str, str]]) -> None:
        """Appends sample translations to ``samples.txt``.

        Args:
          step: the number of updates done.
          samples: for each, what is shown under which label: ``{"source": ..., "reference": ..., "output": ...}``.
        """
        _append(self.folder / SAMPLES, format_samples(step, samples))

    def mend(self) -> None:
        """Ends the last line of ``metrics.jsonl``, or cuts it off when a crash tore it: the next record starts anew."""
        path = self.folder / METRICS
        content = path.read_bytes() if path.exists() else b""
        end = content.rfind(b"\n") + 1
        if content[end:]:
            os.truncate(path, end)
            if _parse(content[end:]) is not None:
                _append(path, content[end:].decode() + "\n")

    def rewind(self, step: int) -> int:
        """Drops records and samples of later steps: a run resumed from ``step`` writes them once more.

        Returns:
          How many records were dropped.
        """
        records = self.read_metrics()
        kept = [record for record in records if record["step"] <= step]
        if len(kept) < len(records):
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
            _replace(self.folder / METRICS, "".join(lines))
        if (self.folder / SAMPLES).exists():
            text = (self.folder / SAMPLES).read_text(encoding="utf-8", errors="replace")
            _replace(self.folder / SAMPLES, _samples_until(text, step))
        return len(records) - len(kept)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads records, one JSON object a line; a last line that a crash tore is left out.

    Args:
      path: a ``metrics.jsonl``; when it is not there, there are no records.

    Returns:
      The records in their order. Numbers that are not finite are the words ``"nan"``, ``"inf"``, ``"-inf"``.

    Raises:
      RunFolderError: for an earlier line that is no record, naming the file and the line.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    records = []
    for number, line in enumerate(lines[: last + 1]):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < last:
            raise RunFolderError(f"{path}:{number + 1}: expected a JSON object with a step; remove or mend the line")
    return records


def format_samples(step: int, samples: Iterable[Mapping[str, str]]) -> str:
    r"""The text of sample translations: a header, then each label with its text.

    >>> print(format_samples(500, [{"source": "ein Hund .", "output": "a dog ."}]), end="")
    == step 500 ==
      source  ein Hund .
      output  a dog .
    <BLANKLINE>
    """
    blocks = []
    for sample in samples:
        width = max(map(len, sample), default=0)
        blocks.append("".join(f"  {label:{width}}  {_one_line(text)}\n" for label, text in sample.items()))
    return f"{_HEADER}{step} ==\n" + "".join(block + "\n" for block in blocks)


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _samples_until(text: str, step: int) -> str:
    """The blocks of ``samples.txt`` up to a step. Texts are indented, so no text looks like a header."""
    kept, keeping = [], True
    for line in text.removesuffix("\n").split("\n"):  # not splitlines, for which U+2028 in a text ends a line too
        if line.startswith(_HEADER):
            number = line.removeprefix(_HEADER).split(" ")[0]
            keeping = number.isdigit() and int(number) <= step
        if keeping:
            kept.append(line + "\n")
    return "".join(kept)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _append(path: Path, text: str) -> None:
    """Appends in one write, so that neither a crash nor another writer leaves half of it between two others."""
    content = text.encode("utf-8", errors="replace")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        if (written := os.write(descriptor, content)) < len(content):
            raise OSError(f"{path}: only {written} of {len(content)} bytes were written; is the disk full?")
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.saving")
    scratch.write_bytes(text.encode("utf-8"))
    scratch.replace(path)
