"""Files from a server: each is resumed where it stopped, and none has its name before its hash is the one expected."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from attn_jax.storage.files import IntegrityError

CHUNK = 1 << 20  # [bytes] read at once
TIMEOUT = 60.0  # [s] without an answer


class DownloadError(OSError):
    """A server that cannot be reached, or does not give what was asked for; one line with the remedy."""


class Expected(NamedTuple):
    """What a file must be.

    Attributes:
      size: in bytes.
      kind: of the hash, ``sha256``, or ``git``: git's SHA-1 of a file with its size before it.
      digest: in hexadecimal.
    """

    size: int
    kind: str
    digest: str


def digest_of(path: Path, kind: str) -> str:
    """The hash of a file, of a kind of `Expected`."""
    hashed = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


def read_url(url: str) -> Any:
    """The JSON at an address.

    Raises:
      DownloadError: when there is none.
    """
    try:
        with _open(url) as answer:
            return json.load(answer)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: broke off ({error}); try again") from error
    except ValueError as error:
        raise DownloadError(f"{url}: expected JSON ({error}); is it the right server?") from error


def download(url: str, path: Path, expected: Expected) -> Path:
    """Downloads a file, unless it is there already; what an interrupted download left is gone on with.

    Args:
      url: its address, http or https.
      path: where it goes; until it is whole it is ``.NAME.part`` beside that.
      expected: its size and hash.

    Returns:
      The path.

    Raises:
      DownloadError: when the server cannot be reached, or stops early: the same call goes on from there.
      IntegrityError: for a file that is not the one expected. It is removed.
    """
    if path.is_file() and path.stat().st_size == expected.size and digest_of(path, expected.kind) == expected.digest:
        return path
    part = path.with_name(f".{path.name}.part")
    done = part.stat().st_size if part.is_file() else 0
    if done < expected.size:
        with _open(url, {"Range": f"bytes={done}-"} if done else {}) as answer:
            goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
            with part.open("ab" if goes_on else "wb") as file:
                _copy(answer, file, expected.size, url)
    if (size := part.stat().st_size) < expected.size:
        raise DownloadError(f"{url}: stopped after {size:,} of {expected.size:,} bytes; the same command goes on")
    if size > expected.size or (found := digest_of(part, expected.kind)) != expected.digest:
        part.unlink()
        found = f"{size:,} bytes" if size > expected.size else found
        raise IntegrityError(
            f"{url}: expected {expected.size:,} bytes with {expected.kind} {expected.digest}, found {found}; try again"
        )
    return part.replace(path)


def _open(url: str, headers: dict[str, str] | None = None) -> Any:
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url}: expected an address that begins with https://")
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        remedy = "check the name" if error.code < 429 else "try again later"
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}; {remedy}") from None
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: cannot be reached ({getattr(error, 'reason', error)}); try again") from error


def _copy(answer: Any, file: Any, most: int, url: str) -> None:
    """Writes what comes, and stops at more than ``most`` bytes."""
    try:
        while file.tell() <= most and (chunk := answer.read(CHUNK)):
            file.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: broke off ({error}); the same command goes on") from error
