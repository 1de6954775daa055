"""The attention viewer: one HTML file without network, framework or server, made from examples.

``page/page.html`` is the frame, ``page/*.css`` the looks, ``page/*.js`` the behaviour; a page is all of them and the
data in one file. A strict Content-Security-Policy admits exactly these, by hash, so nothing in a token can ever run or
load. The data are described in `attn_jax.viz.examples`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from attn_jax.viz.examples import VERSION, AttentionExample, example_data

STYLES = ("page.css", "views.css")
SCRIPTS = (
    "base.js",
    "data.js",
    "state.js",
    "lines.js",
    "matrix.js",
    "tree.js",
    "readout.js",
    "scene.js",
    "controls.js",
    "main.js",
)
LIVE_SCRIPTS = (*SCRIPTS[:-1], "live.js", SCRIPTS[-1])
FRAME_HEIGHT = 900  # [px] in a notebook


def attention_page(examples: Sequence[AttentionExample], title: str = "Attention") -> str:
    """The HTML page that shows examples; it opens from disk, loads nothing and sends nothing.

    Args:
      examples: at least one.
      title: the heading.

    Returns:
      The page. Write it as UTF-8.

    Raises:
      ValueError: if there is no example, or one does not fit together; the message says which.

    >>> from attn_jax.viz.examples import AttentionHypothesis
    >>> page = attention_page([AttentionExample(src_tokens=["<b>"], hypotheses=[
    ...     AttentionHypothesis(tokens=["gras"], weights=[[1.0]])])])
    >>> "<b>" in page
    False
    """
    if not examples:
        raise ValueError("attention page: expected at least one example, found none")
    data = [example_data(example, f"attention page, example {n}") for n, example in enumerate(examples)]
    return _page({"version": VERSION, "title": title, "live": None, "examples": data}, SCRIPTS)[0]


def live_page(title: str, *, max_beam: int, max_chars: int) -> tuple[str, str]:
    """The page of a server that translates: without examples, with a form, and with leave to ask that server only.

    Args:
      title: the heading.
      max_beam: the widest beam the form offers.
      max_chars: the longest sentence.

    Returns:
      The page, and the Content-Security-Policy that is in it, for the server's header.
    """
    live = {"max_beam": max_beam, "max_chars": max_chars}
    return _page({"version": VERSION, "title": title, "live": live, "examples": []}, LIVE_SCRIPTS)


def attention_frame(examples: Sequence[AttentionExample], title: str = "Attention", height: int = FRAME_HEIGHT) -> str:
    """The page in an ``iframe`` of its own, apart from what surrounds it, for a notebook's output cell.

    Args:
      examples: at least one.
      title: the heading.
      height: of the frame, in CSS pixels.

    >>> from attn_jax.viz.examples import AttentionHypothesis
    >>> frame = attention_frame([AttentionExample(src_tokens=["a"], hypotheses=[
    ...     AttentionHypothesis(tokens=["b"], weights=[[1.0]])])])
    >>> frame.startswith('<iframe sandbox="allow-scripts allow-downloads"')
    True
    """
    page = html.escape(attention_page(examples, title))
    return (
        f'<iframe sandbox="allow-scripts allow-downloads" title="{html.escape(title)}" width="100%" '
        f'height="{height}" style="border: 0" srcdoc="{page}"></iframe>'
    )


def write_attention_page(
    path: str | os.PathLike[str], examples: Sequence[AttentionExample], title: str = "Attention"
) -> Path:
    """Writes ``attention_page(examples, title)`` to a file that opens from disk.

    Args:
      path: ends in ``.html``. Its folder must exist; a file there is replaced.
      examples: at least one.
      title: the heading.

    Returns:
      The path.

    Raises:
      ValueError: for another suffix, a missing folder, or what ``attention_page`` rejects.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        found = repr(path.suffix) if path.suffix else "no suffix"
        raise ValueError(f"{path}: expected a file name ending in .html, found {found}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; create it first")
    path.write_text(attention_page(examples, title), encoding="utf-8", newline="\n")
    return path


def script_safe_json(data: object) -> str:
    r"""JSON that no HTML parser can mistake for markup: ``<``, ``>`` and ``&`` are escaped, and all beyond ASCII.

    >>> script_safe_json({"a": "</script>"})
    '{"a":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page(data: dict, scripts: Sequence[str]) -> tuple[str, str]:
    """The page and its policy."""
    style, script = ("".join(map(_part, names)) for names in (STYLES, scripts))
    connect = "connect-src 'self'; " if data["live"] else ""
    policy = (
        f"default-src 'none'; {connect}style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    fill = {
        "policy": policy,
        "title": html.escape(data["title"]).encode("ascii", "xmlcharrefreplace").decode(),
        "style": style,
        "script": script,
        "data": script_safe_json(data),
    }
    # One pass: a title or token that reads like a slot is not filled in turn.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], _part("page.html")), policy


@functools.cache
def _part(name: str) -> str:
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The Content-Security-Policy source that admits exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
