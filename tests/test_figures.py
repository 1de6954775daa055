"""Heatmaps: what is drawn, without global state."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from attn_jax import viz

SRC = ("the", "black", "cat", "</s>")
TGT = ("le", "chat", "noir", "</s>")
WEIGHTS = np.array([[0.9, 0.05, 0.05, 0.0], [0.1, 0.1, 0.7, 0.1], [0.0, 0.8, 0.2, 0.0], [0.0, 0.0, 0.25, 0.75]])
GOLD = ((0, 0), (2, 1), (1, 2))
NASTY = (
    "<img src=x onerror=stolen=1>",
    "</script><script>stolen=2</script>",
    "&lt;",
    "{{data}}",
    "\u2028",
    "\ud800",
    "",
)


def heatmap(figure):
    """The axes and colours of the heatmap and the axes of its colour bar."""
    return figure.axes[0], figure.axes[0].collections[0], figure.axes[1]


class TestPlotAttention:
    def test_what_is_where(self):
        figure = viz.plot_attention(WEIGHTS, SRC, TGT, title="a title", gold=GOLD)
        axes, mesh, bar = heatmap(figure)
        assert isinstance(figure, Figure)
        np.testing.assert_array_equal(mesh.get_array().reshape(4, 4), WEIGHTS)
        assert mesh.get_clim() == (0.0, 0.9)
        assert heatmap(viz.plot_attention([[0.5, 0.25]], "ab", "c"))[1].get_clim() == (0.0, 0.5)  # from 0, always
        assert [label.get_text() for label in axes.get_xticklabels()] == list(SRC)
        assert [label.get_text() for label in axes.get_yticklabels()] == list(TGT)
        assert axes.xaxis.get_ticks_position() == "top"
        assert axes.yaxis_inverted()  # the first target token is at the top
        assert axes.get_title(loc="left") == "a title"
        assert bar.get_ylabel() == "attention weight"
        assert [patch.get_xy() for patch in axes.patches] == [(s + 0.04, t + 0.04) for s, t in sorted(GOLD)]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["gold alignment"]

    def test_no_gold_no_legend(self):
        assert heatmap(viz.plot_attention(WEIGHTS, SRC, TGT))[0].get_legend() is None

    def test_annotations(self):
        axes = heatmap(viz.plot_attention([[1.0, 0.004, 0.126]], "abc", "x", annotate=True))[0]
        assert [text.get_text() for text in axes.texts] == ["1", ".13"]
        assert axes.texts[0].get_color() == "white"  # on the darkest cell

    def test_colour_map_runs_from_light_to_dark(self):
        mesh = heatmap(viz.plot_attention(WEIGHTS, SRC, TGT))[1]
        luminance = mesh.to_rgba(np.linspace(0, 0.9, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luminance) < 0).all()

    def test_the_figure_grows_with_the_sentence_and_cells_stay_square(self):
        def inches(src_len, tgt_len):
            figure = viz.plot_attention(np.ones((tgt_len, src_len)), ["tok"] * src_len, ["tok"] * tgt_len)
            box = figure.axes[0].get_position()
            width, height = figure.get_size_inches()
            assert box.width * width / src_len == pytest.approx(box.height * height / tgt_len)
            return width, height

        (small, _), (wide, low), (_, tall) = inches(5, 5), inches(30, 5), inches(5, 40)
        assert wide - small == pytest.approx(25 * 0.34, abs=1e-6)
        assert tall > low
        assert max(inches(300, 3)) < 40

    def test_every_letter_is_inside(self):
        figure = viz.plot_attention(WEIGHTS, [*SRC[:3], "a-rather-long-last-token"], TGT, title="long " * 20)
        bounds = figure.get_tightbbox(figure.canvas.get_renderer())
        width, height = figure.get_size_inches()
        assert bounds.x0 >= 0.1
        assert bounds.y0 >= 0.1
        assert bounds.x1 <= width - 0.1
        assert bounds.y1 <= height - 0.1

    def test_given_axes_keep_their_figure(self):
        figure = Figure(figsize=(6, 3))
        left, right = figure.subplots(1, 2)
        assert viz.plot_attention(WEIGHTS, SRC, TGT, ax=right) is figure
        assert len(right.collections) == 1
        assert not left.collections
        assert tuple(figure.get_size_inches()) == (6, 3)

    def test_any_text_is_drawn_without_a_warning(self, tmp_path):
        tokens = ["猫", "שלום", "$x_$", "\U0010fffd", "\n", "", " ", "\ud800", "می\u200cخواهم", "x" * 100]
        figure = viz.plot_attention(np.ones((1, 10)), tokens, ["ok"], title="$ 日本語 \U0010fffd")
        labels = [label.get_text() for label in heatmap(figure)[0].get_xticklabels()]
        assert labels[2:8] == ["$x_$", "□", "↵", "∅", "␣", "□"]
        assert len(labels[9]) == 24
        viz.save_figure(figure, tmp_path / "any.png")  # warnings are errors here

    @pytest.mark.parametrize(
        ("weights", "src", "gold", "message"),
        [
            (WEIGHTS.T[:3], SRC, (), r"\[tgt_len=4, src_len=4\].*found \[3, 4\]"),
            (np.zeros((4, 0)), (), (), "at least one token a side"),
            (-WEIGHTS, SRC, (), "pass weights, not scores"),
            (WEIGHTS * np.nan, SRC, (), "finite"),
            (WEIGHTS, SRC, [(0, 4)], "gold link 0-4 .* out of range for 4 source and 4 target tokens"),
        ],
    )
    def test_errors(self, weights, src, gold, message):
        with pytest.raises(ValueError, match=message):
            viz.plot_attention(weights, src, TGT, gold=gold)


class TestSaveFigure:
    def test_png_has_the_size_of_the_figure(self, tmp_path):
        figure = viz.plot_attention(WEIGHTS, SRC, TGT)
        path = viz.save_figure(figure, tmp_path / "map.png", dpi=100)
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            np.testing.assert_allclose(image.size, figure.get_size_inches() * 100, atol=1)
            colours = np.asarray(image.convert("RGB"), dtype=int)
        assert (colours.min(axis=-1) > 250).mean() > 0.2  # paper
        assert (colours[..., 2] - colours[..., 0] > 60).mean() > 0.02  # blue cells

    def test_svg_and_pdf(self, tmp_path):
        figure = viz.plot_attention(WEIGHTS, SRC, TGT)
        assert b"<svg" in viz.save_figure(figure, str(tmp_path / "map.SVG")).read_bytes()
        assert viz.save_figure(figure, tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")

    def test_errors(self, tmp_path):
        figure = Figure()
        with pytest.raises(ValueError, match=r"expected a file name ending in \.png, \.svg, \.pdf, found '\.gif'"):
            viz.save_figure(figure, tmp_path / "map.gif")
        with pytest.raises(ValueError, match="found no suffix"):
            viz.save_figure(figure, tmp_path / "map")
        with pytest.raises(ValueError, match=r"there is no folder .*; create it first"):
            viz.save_figure(figure, tmp_path / "missing" / "map.png")

    def test_no_global_state(self, tmp_path):
        code = (
            "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
            "from attn_jax.viz.figures import plot_attention, save_figure\n"
            f"save_figure(plot_attention([[1.0]], ['a'], ['b']), {str(tmp_path / 'map.png')!r})\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n"
            "assert matplotlib.rcParams.copy() == before"
        )
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)

    def test_threads(self, tmp_path):
        def draw(name):
            return viz.save_figure(
                viz.plot_attention(WEIGHTS, SRC, TGT, title="t"), tmp_path / f"{name}.png"
            ).read_bytes()

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(draw, range(4)))) == 1
