"""Matplotlib pictures of attention. No pyplot: a figure is a plain object, safe in threads, with no global state."""

from __future__ import annotations

import functools
import math
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

GOLD_COLOR = "#d55e00"  # vermilion of Okabe and Ito: apart from blues for every kind of colour vision
INK, FRAME = "#22303c", "#c8ced4"
CELL_INCHES, LONGEST_SIDE_INCHES = 0.34, 36.0  # a cell shrinks once a side would pass the latter
LONGEST_LABEL = 24  # characters
PAD_INCHES = 0.12
SUFFIXES = (".png", ".svg", ".pdf")


def plot_attention(
    weights: ArrayLike,
    src_tokens: Sequence[str],
    tgt_tokens: Sequence[str],
    *,
    cmap: str | Colormap = "Blues",
    title: str | None = None,
    gold: Iterable[tuple[int, int]] | None = None,
    annotate: bool = False,
    ax: Axes | None = None,
) -> Figure:
    """Draws attention weights as a heatmap: source tokens on top, target tokens on the left, dark = heavy.

    The figure grows with the sentence, so that cells stay square and labels legible. Colours run from 0 to the largest
    weight, as the colour bar says.

    Args:
      weights: ``[tgt_len, src_len]``, nonnegative.
      src_tokens: ``src_len`` tokens of any script. Characters that no installed font has are drawn as boxes.
      tgt_tokens: ``tgt_len`` tokens.
      cmap: a matplotlib colour map. The default is safe for colour-blind readers and in grey.
      title: a heading, or None.
      gold: links ``(source, target)`` from 0 to outline, or None.
      annotate: writes the weight into each cell where it rounds to at least 0.01.
      ax: axes to draw into instead of a new figure; their size is left alone.

    Returns:
      The figure; see ``save_figure``.

    Raises:
      ValueError: if the tokens do not match the weights, a weight is negative or not finite, or a link is out of range.

    References:
      Bahdanau, Cho and Bengio 2015, "Neural machine translation by jointly learning to align and translate", figure 3,
      arXiv:1409.0473.

    >>> figure = plot_attention([[0.9, 0.1], [0.2, 0.8]], ["the", "cat"], ["le", "chat"], gold=[(0, 0), (1, 1)])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['the', 'cat']
    """
    weights = np.asarray(weights, dtype=np.float64)
    src_len, tgt_len = len(src_tokens), len(tgt_tokens)
    gold = sorted(set(gold or ()))
    _check(weights, src_len, tgt_len, gold)

    # [inches] one cell; for given axes it only sets the size of letters
    cell = min(CELL_INCHES, LONGEST_SIDE_INCHES / max(src_len, tgt_len))
    figure = Figure(dpi=150, facecolor="white") if ax is None else ax.figure
    if ax is None:
        FigureCanvasAgg(figure)
        own_ax, color_ax = figure.add_axes((0, 0, 1, 1)), figure.add_axes((0, 0, 0.1, 1))
    else:
        own_ax, color_ax = ax, None

    top = max(float(weights.max()), 1e-12)  # an all-zero map still has a scale
    mesh = own_ax.pcolormesh(
        weights,
        cmap=cmap,
        vmin=0.0,
        vmax=top,
        edgecolors="white",
        linewidth=0.8 if cell > 0.2 else 0.0,
        rasterized=weights.size > 10_000,  # keeps svg and pdf small
    )
    own_ax.invert_yaxis()
    own_ax.set_aspect("auto" if ax is None else "equal")
    _label_axes(own_ax, src_tokens, tgt_tokens, cell)
    if annotate:
        _annotate(own_ax, weights, mesh, cell)
    for source, target in gold:
        own_ax.add_patch(
            Rectangle((source + 0.04, target + 0.04), 0.92, 0.92, fill=False, edgecolor=GOLD_COLOR, linewidth=1.6)
        )
    if gold:
        box = Rectangle((0, 0), 1, 1, fill=False, edgecolor=GOLD_COLOR, linewidth=1.6, label="gold alignment")
        own_ax.legend(
            handles=[box],
            loc="upper left",
            bbox_to_anchor=(0, 0),
            borderaxespad=0.4,
            borderpad=0,
            handlelength=1,
            handleheight=1,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
        )
    if title:
        text, families = _printable([title])
        own_ax.set_title(text[0], loc="left", pad=10, fontsize=11, color=INK, family=families, parse_math=False)

    bar = figure.colorbar(mesh, cax=color_ax, ax=own_ax if color_ax is None else None)
    bar.set_label("attention weight", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, color=FRAME, labelcolor=INK, length=3)
    bar.outline.set_visible(False)
    if color_ax is not None:
        _fit(figure, own_ax, color_ax, width=src_len * cell, height=tgt_len * cell)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160) -> Path:
    """Writes a figure; the suffix of the path chooses the format.

    Args:
      figure: what ``plot_attention`` returned.
      path: ends in ``.png``, ``.svg`` or ``.pdf``. Its folder must exist.
      dpi: dots per inch of a PNG.

    Returns:
      The path.

    Raises:
      ValueError: for another suffix or a missing folder.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        found = repr(suffix) if suffix else "no suffix"
        raise ValueError(f"{path}: expected a file name ending in {', '.join(SUFFIXES)}, found {found}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; create it first")
    # Without a date, the same picture gives the same bytes tomorrow.
    metadata = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    figure.savefig(path, dpi=dpi, format=suffix[1:], metadata=metadata)
    return path


def _check(weights: np.ndarray, src_len: int, tgt_len: int, gold: list[tuple[int, int]]) -> None:
    if weights.shape != (tgt_len, src_len):
        raise ValueError(
            f"attention heatmap: expected weights of shape [tgt_len={tgt_len}, src_len={src_len}], one row a target "
            f"token and one column a source token, found {list(weights.shape)}"
        )
    if not weights.size:
        raise ValueError("attention heatmap: expected at least one token a side, found none")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError("attention heatmap: expected finite weights >= 0; pass weights, not scores")
    for source, target in gold:
        if not (0 <= source < src_len and 0 <= target < tgt_len):
            raise ValueError(
                f"attention heatmap: gold link {source}-{target} (source-target, from 0) is out of range for "
                f"{src_len} source and {tgt_len} target tokens"
            )


def _label_axes(ax: Axes, src_tokens: Sequence[str], tgt_tokens: Sequence[str], cell: float) -> None:
    """Tokens at the middle of their cells, as many as the cells leave room for."""
    labels, families = _printable([_label(token) for token in (*src_tokens, *tgt_tokens)])
    size = min(10.5, max(4.0, cell * 72 * 0.62))  # points
    stride = math.ceil(1.1 * size / (cell * 72))  # label every stride-th token where even the smallest letters collide
    src_len = len(src_tokens)
    narrow = max(map(len, labels[:src_len])) <= 2
    ax.xaxis.tick_top()
    ax.set_xticks(np.arange(0, src_len, stride) + 0.5, labels[:src_len:stride])
    ax.set_yticks(np.arange(0, len(tgt_tokens), stride) + 0.5, labels[src_len::stride])
    for label in ax.get_xticklabels():
        label.set(rotation=0 if narrow else 50, ha="center" if narrow else "left", rotation_mode="anchor")
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        label.set(fontsize=size, color=INK, family=families, parse_math=False)
    ax.tick_params(length=0, pad=4)
    for spine in ax.spines.values():
        spine.set(color=FRAME, linewidth=0.8)


def _annotate(ax: Axes, weights: np.ndarray, mesh: object, cell: float) -> None:
    """The number in each cell, in the one of two inks that stands out."""
    for target, source in np.argwhere(weights >= 0.005):
        weight = weights[target, source]
        red, green, blue, _ = mesh.to_rgba(weight)
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
        text = f"{weight:.2f}".removeprefix("0") if weight < 1 else f"{weight:.3g}"
        ax.text(
            source + 0.5,
            target + 0.5,
            text,
            ha="center",
            va="center",
            color=INK if light else "white",
            fontsize=max(2.5, cell * 72 * 0.3),
        )


def _fit(figure: Figure, ax: Axes, color_ax: Axes, width: float, height: float) -> None:
    """Gives the heatmap ``width x height`` inches and the figure exactly the room its text needs beside that."""
    gap, bar_width, bar_height = 0.2, 0.13, min(max(height, 1.3), 4.0)

    def place(left: float, bottom: float) -> None:
        figure_width, figure_height = figure.get_size_inches()
        bar_bottom = bottom + height - bar_height
        for axes, box in (
            (ax, (left, bottom, width, height)),
            (color_ax, (left + width + gap, bar_bottom, bar_width, bar_height)),
        ):
            x, y, w, h = box
            axes.set_position((x / figure_width, y / figure_height, w / figure_width, h / figure_height))

    figure.set_size_inches(width + 1, height + 1)
    place(0, 0)
    bounds = figure.get_tightbbox(figure.canvas.get_renderer())  # inches
    figure.set_size_inches(bounds.width + 2 * PAD_INCHES, bounds.height + 2 * PAD_INCHES)
    place(PAD_INCHES - bounds.x0, PAD_INCHES - bounds.y0)


def _label(token: str) -> str:
    """A token as a short label that shows at least something."""
    shown = {"": "∅", " ": "␣"}.get(token, token).replace("\n", "↵").replace("\t", "⇥")
    return shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"


def _printable(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts without characters that no font can draw, and the font families that draw the rest.

    Matplotlib falls back along a list of families, but warns for a family or a character it cannot find.
    """
    default = font_manager.FontProperties()
    font = font_manager.get_font(font_manager.findfont(default))
    missing = {char for char in set("".join(texts)) if not font.get_char_index(ord(char))}
    families, found = _fallback_families(frozenset(missing)) if missing else ((), frozenset())
    box = "□" if font.get_char_index(ord("□")) else "?"
    # Invisible format characters (joiners, direction marks) vanish; anything else leaves a box.
    table = {ord(char): None if unicodedata.category(char) == "Cf" else box for char in missing - found}
    return [text.translate(table) for text in texts], [*default.get_family(), *families]


@functools.lru_cache(maxsize=64)
def _fallback_families(missing: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed families that together have as many of the missing characters as any could, and those characters."""
    families, found = [], set()
    regular = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and str(entry.weight) in {"400", "normal", "regular", "book"}
    }
    for name in sorted(regular, key=lambda name: (not _preferred(name), name)):
        wanted = missing - found
        if not wanted:
            break
        if name.startswith("Last Resort"):  # has a box for everything and a warning with it
            continue
        try:
            font = font_manager.get_font(regular[name])
        except (OSError, RuntimeError):  # a font file that cannot be read is no fallback
            continue
        has = {char for char in wanted if font.get_char_index(ord(char))}
        if has:
            families.append(name)
            found |= has
    return tuple(families), frozenset(found)


def _preferred(name: str) -> bool:
    """Sans-serif families of wide coverage, to be tried before anything else that happens to have the letters."""
    starts = ("Noto Sans", "Source Han Sans", "PingFang", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei", "Arial Uni")
    return name.startswith((*starts, "WenQuanYi", "Malgun Gothic", "Segoe UI", "DejaVu Sans"))
