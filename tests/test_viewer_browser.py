"""The attention page in a real browser; nothing it does leaves an error behind or asks for anything."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from attn_jax import viz
from tests.test_viewer import NASTY, example, nasty
from tests.viewer_examples import ARABIC, SCORES, SOURCE, TOKENS, deep, huge, mixed, right_to_left, softmax


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    compared = deep("one", others=[deep("two", encoder=None)])
    pages = [example(), nasty(), deep(), compared, right_to_left(), huge(), mixed()]
    return viz.write_attention_page(tmp_path_factory.mktemp("page") / "attention.html", pages, title="Test")


@pytest.fixture
def page(browser, path):
    """The page, opened from disk at a desktop's size; afterwards: no error, no request but for itself."""
    browser("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    browser.mouse((1, 1))
    browser.open(path.as_uri())
    yield browser
    assert browser.trouble() == []
    assert browser.requests() == [path.as_uri()]


def token(side, index):
    return f"document.querySelectorAll('{side} .token')[{index}]"


def texts(selector):
    return f"Array.from(document.querySelectorAll('{selector}'), node => node.textContent)"


def by_id(name):
    return f"document.getElementById('{name}')"


def show(page, index):
    page.js(f"showExample({index})")


def turn(page, name, value):
    """Sets a select or slider as its user would."""
    page.js(f"(n => {{ n.value = {value!r}; for (const e of ['input', 'change']) n.dispatchEvent(new Event(e)); }})"
            f"({by_id(name)})")  # fmt: skip


COL, ROW = ".looked-at", ".looking"
MATRIX = "document.querySelector('input[value=matrix]')"
CHOSEN = texts(".token.chosen")
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
SHOWN = "Array.from(panels[0].table.weights)"


class TestPointing:
    def test_hover_highlights_the_other_side_and_click_pins(self, page):
        page.mouse(page.middle(token(ROW, 1)))
        assert page.js(texts("#readout li")) == ["cat0.700", "the0.100", "black0.100", "</s>0.100"]
        assert page.js(texts("#readout h2")) == ["chat"]
        assert page.js("document.querySelectorAll('.looked-at [data-weight]').length") == 4
        page.mouse(page.middle(token(COL, 1)))
        assert page.js(texts("#readout li"))[:2] == ["noir0.800", "chat0.100"]
        page.mouse((5, 5))
        assert page.js(texts("#readout li")) == []
        page.click(token(ROW, 2))
        page.mouse((5, 5))
        assert page.js(CHOSEN) == ["noir"]
        assert page.js(f"{token(ROW, 2)}.getAttribute('aria-pressed')") == "true"
        page.click(token(ROW, 2))
        page.mouse((5, 5))
        assert page.js(CHOSEN) == []

    def test_keys_in_the_line_view(self, page):
        page.js(f"{token(COL, 0)}.focus({{ focusVisible: true }})")
        page.key("ArrowRight")
        assert page.js(CHOSEN) == ["black"]
        page.key("ArrowDown")  # to the token it is tied to most
        assert page.js(CHOSEN) == ["noir"]
        page.key("Enter")
        assert page.js(f"{by_id('announcer')}.textContent").startswith("Pinned. noir: black 0.800")
        page.key("Escape")
        assert page.js(CHOSEN) == []

    def test_matrix(self, page):
        page.click(f"{MATRIX}.nextElementSibling")
        page.js("document.querySelector('.matrix').focus()")
        for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
            page.key(key)
        page.js(DRAWN)
        assert page.js(texts(".tip")) == ["chat ← black0.100", ""]
        # From there one cell to the right with the mouse.
        x, y = page.js("(r => [r.x + r.width / 2, r.bottom])(document.querySelector('.tip').getBoundingClientRect())")
        page.mouse((x + 40, y + 20))
        page.js(DRAWN)
        assert page.js(texts(".tip"))[0] == "chat ← cat0.700"
        assert "4 output tokens by 4 source tokens" in page.js("document.querySelector('.matrix').ariaLabel")
        width = page.js("document.querySelector('.sheet canvas').width")
        page.js("document.querySelector('.matrix').focus()")
        page.key("+")
        assert page.js("document.querySelector('.zoom button').disabled") is False
        assert page.js("document.querySelector('.sheet canvas').width") == width  # a window onto it

    def test_tokens_cannot_run(self, page):
        page.click(by_id("next"))
        assert page.js(f"{by_id('example')}.selectedIndex") == 1
        for view in (token(ROW, 0), f"{MATRIX}.nextElementSibling"):
            page.click(view)
        page.js(DRAWN)
        assert page.js("typeof stolen") == "undefined"
        assert page.js("document.images.length") == 0
        assert page.js(f"{by_id('source')}.textContent") == NASTY[1]
        assert "stolen" in page.js("toSvg(sheet(shownPanels()))")  # and nothing breaks the picture either
        ET.fromstring(page.js("toSvg(sheet(shownPanels()))"))


class TestChoosing:
    def test_hypotheses_and_gold(self, page):
        halos = "document.querySelectorAll('.panel g:first-child .halo').length"
        assert page.js(halos) == 3
        page.click(by_id("gold"))
        assert page.js(halos) == 0
        page.click(token(ROW, 3))
        page.click("document.querySelectorAll('button.hypothesis')[1]")
        assert page.js(CHOSEN) == []  # a pin of another hypothesis means nothing here
        assert page.js(texts(".looking .token")) == ["un", "chat"]
        assert page.js(f"{by_id('gold')}.closest('label').hidden")
        assert page.js(texts(".score")) == ["score −0.250", "score −1.500"]

    def test_possible_links_are_dashed(self, page):
        """At rest, on hover and on paper; a link that is both is a sure one."""
        links = "{ gold: [[0, 0]], possible: [[0, 0], [1, 1]] }"
        page.js(f"Object.assign(examples[0].models[0].hypotheses[0], {links}); showExamples(examples)")
        halos = "Array.from(document.querySelectorAll('.panel {} .halo'), node => node.getAttribute('class'))"
        assert page.js(halos.format("g:first-child")) == ["halo possible", "halo"]
        page.mouse(page.middle(token(ROW, 1)))
        assert page.js(halos.format("g:last-child")) == ["halo possible"]
        svg = ET.fromstring(page.js("toSvg(sheet(shownPanels()))"))
        paths = list(svg.iter("{http://www.w3.org/2000/svg}path"))
        assert [path.get("stroke-dasharray") for path in paths[:2]] == ["8 9", None]

    def test_layers_and_heads(self, page):
        show(page, 2)
        weights = softmax(SCORES)
        shown = lambda: np.array(page.js(SHOWN)).reshape(5, 4)  # noqa: E731
        np.testing.assert_allclose(shown(), weights.mean((0, 1)), atol=2e-4)
        turn(page, "layer", "1")
        np.testing.assert_allclose(shown(), weights[1].mean(0), atol=2e-4)
        turn(page, "head", "max")
        np.testing.assert_allclose(shown(), weights[1].max(0), atol=2e-4)
        page.click("document.querySelectorAll('#head-grid button')[2]")
        np.testing.assert_allclose(shown(), weights[0, 2], atol=2e-4)
        assert page.js(f"[{by_id('layer')}.value, {by_id('head')}.value]") == ["0", "2"]
        assert page.js("document.querySelectorAll('#head-grid [aria-pressed=true]').length") == 1
        page.key("Enter")  # the button kept the focus
        np.testing.assert_allclose(shown(), weights.mean((0, 1)), atol=2e-4)

    def test_encoder_and_decoder(self, page):
        show(page, 2)
        page.click("document.querySelector('input[value=encoder]').nextElementSibling")
        assert page.js(texts(".looking .token")) == page.js(texts(".looked-at .token")) == list(SOURCE)
        page.click("document.querySelector('input[value=decoder]').nextElementSibling")
        assert page.js(texts(".looked-at .token")) == ["<s>", *TOKENS[:-1]]  # it reads what it wrote before
        page.click(token(ROW, 1))
        assert page.js(texts("#readout .facts"))[0].startswith("probability 25.0 % · entropy")
        show(page, 0)  # has none: back to what it has
        assert page.js("[state.kind, document.getElementById('kinds').hidden]") == ["cross", True]

    def test_temperature_is_the_softmax_of_scores(self, page):
        show(page, 2)
        turn(page, "layer", "1")
        turn(page, "head", "2")
        for log2 in (1, -1):
            turn(page, "temperature", str(log2))
            expected = softmax(SCORES[1, 2] / 2**log2)
            np.testing.assert_allclose(np.array(page.js(SHOWN)).reshape(5, 4), expected, atol=1e-3)
        assert "Recomputed" in page.js(f"{by_id('temperature-note')}.textContent")
        assert not page.js(f"{by_id('temperature-note')}.hidden")
        page.click(by_id("temperature-reset"))
        assert page.js(f"[state.temperature, {by_id('temperature-note')}.hidden]") == [1, True]

    def test_temperature_of_a_peaked_long_row(self, page):
        show(page, 5)
        turn(page, "temperature", "2")
        expected = softmax(np.where(np.arange(500), -33, 0) / 4)
        assert expected[0] < 0.9
        np.testing.assert_allclose(page.js("Array.from(panels[0].table.weights.slice(0, 500))"), expected, atol=1e-3)

    def test_temperature_is_1_wherever_a_map_is_no_softmax(self, page):
        show(page, 6)
        turn(page, "temperature", "1")
        assert "recomputed at temperature 2.00" in page.js("captionOf(panels[0])")
        page.click(by_id("compare"))
        assert page.js(f"[state.temperature, {by_id('temperature')}.value, {by_id('temperature')}.disabled]") == [
            1,
            "0",
            True,
        ]
        assert "recomputed" not in page.js("panels.map(captionOf).join()")
        assert page.js("panels.map(panel => tableData(panel).map.temperature)") == [1, 1]
        np.testing.assert_allclose(np.array(page.js(SHOWN)).reshape(4, 4)[0], [0.9, 0.05, 0.05, 0.0], atol=1e-4)

    def test_entropy_and_alternatives(self, page):
        show(page, 2)
        weights = softmax(SCORES).mean((0, 1))
        entropies = -(weights * np.log2(weights)).sum(-1)
        np.testing.assert_allclose(page.js("Array.from(panels[0].table.entropies)"), entropies, atol=1e-3)
        page.click(token(ROW, 1))
        assert page.js(texts("#readout .alternatives li")) == ["▁ch25.0 %", "<b>5.0 %"]
        assert page.js(texts("#readout .facts")) == [f"probability 25.0 % · entropy {entropies[1]:.2f} of 2.00 bits"]

    def test_pieces_become_words(self, page):
        show(page, 2)
        page.click(by_id("merged"))
        assert page.js(texts(".looking .token")) == ["les", "chats", "</s>"]
        assert page.js(texts(".looked-at .token")) == ["the", "cats", "</s>"]
        plain = softmax(SCORES).mean((0, 1))
        words = np.stack([plain[:, 0], plain[:, 1] + plain[:, 2], plain[:, 3]], axis=1)
        words = np.stack([words[0], words[1:4].mean(0), words[4]])
        np.testing.assert_allclose(np.array(page.js(SHOWN)).reshape(3, 3), words, atol=2e-4)
        assert page.js("[panels[0].table.gold.size, panels[0].table.possible.size]") == [2, 2]
        page.click(token(ROW, 1))
        assert page.js(texts("#readout .facts"))[0].startswith("probability 12.5 %")  # of all three pieces

    def test_search_tree(self, page):
        show(page, 2)
        page.click("document.querySelector('#search summary')")
        node = lambda n: f"document.querySelectorAll('#tree-picture .node')[{n}]"  # noqa: E731
        assert page.js("document.querySelectorAll('#tree-picture .node').length") == 9
        assert page.js(texts("#tree-picture .node"))[4:6] == ["</s>1 · −0.500", "▁chiens"]
        page.mouse(page.middle(node(5)))
        assert "probability 36.8 %" in page.js(f"{by_id('tree-note')}.textContent")
        page.click(node(5))
        assert page.js(texts(".looking .token")) == ["▁les", "▁chiens", "</s>"]
        page.js(f"{node(0)}.focus()")
        page.key("ArrowRight")
        page.key("Enter")
        assert page.js("state.picks[0].hypothesis") == 0
        assert page.js("document.querySelectorAll('.node.chosen').length") == 5
        page.key("ArrowLeft")  # the node kept the focus
        assert page.js(f"document.activeElement === {node(0)}")

    def test_comparison(self, page):
        show(page, 3)
        page.click(by_id("compare"))
        assert page.js(texts("#readout h4 span")) == [" one · les chats", " two · les chats"]
        page.mouse(page.middle(token(".panel:nth-child(2) .looked-at", 0)))  # the same sentence on both sides
        assert page.js(CHOSEN) == ["▁the", "▁the"]
        kinds = page.js("document.getElementById('kinds').textContent")
        assert kinds.split() == ["Attention", "Cross", "Encoder", "Decoder"]
        assert page.js("document.querySelector('input[value=encoder]').parentElement.hidden")  # only one model has it
        page.js("(n => { n.value = '0 1'; n.dispatchEvent(new Event('change')); })(panels[1].pick)")
        assert page.js(texts(".panel:nth-child(2) .looking .token")) == ["▁les", "▁chiens", "</s>"]
        page.mouse(page.middle(token(".panel:nth-child(1) .looking", 0)))  # the same first word
        assert page.js(CHOSEN) == ["▁les", "▁les"]
        page.mouse(page.middle(token(".panel:nth-child(1) .looking", 1)))
        assert page.js(CHOSEN) == ["▁ch"]


class TestKeeping:
    @pytest.fixture
    def folder(self, browser, tmp_path):
        browser("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        return tmp_path

    def test_json(self, page, folder):
        show(page, 2)
        turn(page, "head", "1")
        page.click(by_id("save-json"))
        (data,) = json.loads(page.saved(folder, "attention-cross-3.json"))["shown"]
        assert (data["rows"], data["columns"]) == (list(TOKENS), list(SOURCE))
        assert data["map"] == {"kind": "cross", "layer": "mean", "head": 1, "temperature": 1, "words": False}
        np.testing.assert_allclose(data["weights"], softmax(SCORES)[:, 1].mean(0), atol=3e-4)

    def test_json_stands_alone(self, page, folder):
        """With whole words in the rows, what is of each piece comes with the pieces and their words."""
        show(page, 2)
        page.click(by_id("merged"))
        page.click(by_id("save-json"))
        (data,) = json.loads(page.saved(folder, "attention-cross-3.json"))["shown"]
        assert data["rows"] == ["les", "chats", "</s>"]
        assert data["source"] == {"tokens": list(SOURCE), "words": [0, 1, 1, 2]}
        given = data["hypothesis"]
        assert (given["tokens"], given["words"]) == (list(TOKENS), [0, 1, 1, 1, 2])
        assert len(given["log_probs"]) == len(given["alternatives"]) == 5 and given["possible"] == [[0, 0], [3, 4]]
        assert "cross" not in given

    def test_svg_and_png(self, page, folder):
        for number, view in enumerate(("lines", "matrix")):
            page.js(f"showExample({number * 2}); choose({{ view: {view!r}, compare: true }})")
            page.click(by_id("save-svg"))
            root = ET.fromstring(page.saved(folder, f"attention-cross-{number * 2 + 1}.svg"))
            words = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
            assert {"chat", "noir"} <= words if number == 0 else {"▁ch", "▁cat"} <= words
            page.click(by_id("save-png"))
            png = page.saved(folder, f"attention-cross-{number * 2 + 1}.png")
            assert png.startswith(b"\x89PNG")
            width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
            assert [width, height] == [2 * float(root.get(name)) for name in ("width", "height")]
        page.js("HTMLCanvasElement.prototype.toBlob = (done) => done(null)")  # a canvas beyond what the browser draws
        page.click(by_id("save-png"))
        page.until(f"{by_id('announcer')}.textContent === 'This picture is too large for PNG; save it as SVG.'")


class TestLooks:
    def test_right_to_left_and_cjk(self, page):
        show(page, 4)
        assert page.js("[document.querySelector('.looked-at').dir, document.querySelector('.looking').dir]") == [
            "rtl",
            "ltr",
        ]
        left = lambda n: page.middle(token(COL, n))[0]  # noqa: E731
        assert left(0) > left(1) > left(2)
        page.click(f"{MATRIX}.nextElementSibling")
        page.js("document.querySelector('.matrix').focus()")
        page.key("ArrowDown")  # the first cell: top right
        page.key("ArrowLeft")
        page.js(DRAWN)
        assert page.js(texts(".tip"))[0] == f"猫 ← {ARABIC[1]}0.000"

    def test_500_by_500_stays_fluid(self, page):
        show(page, 5)
        page.click(f"{MATRIX}.nextElementSibling")
        spent = """((cell) => {
          const start = performance.now();
          point({ panel: 0, row: cell * 7, col: cell * 11 });
          panels[0].matrix.draw();
          return performance.now() - start;
        })"""
        for _ in range(2):  # at a size to read, and as a whole
            assert np.median([page.js(f"{spent}({cell})") for cell in range(20)]) < 50  # ms
            page.js("for (let n = 0; n < 20; n++) document.querySelector('.zoom button').click()")
        assert page.js("document.querySelector('.sheet').offsetWidth <= document.querySelector('.matrix').clientWidth")

    def test_many_heads_stay_fluid(self, page):
        """Another temperature of 12 heads of 300 x 300: all of the page's work, and no jump to the corner."""
        page.js("""
            const many = structuredClone(examples[2]), [one] = many.models, [best] = one.hypotheses, n = 300;
            const side = { tokens: range(n).map((k) => `w${k}`), words: range(n) };
            const weights = btoa("\\x10\\x40".repeat(12 * n * n));
            const cross = { shape: [2, 6, n, n], softmax: true, weights };
            Object.assign(best, side, { cross, decoder: null, gold: [], possible: [] });
            Object.assign(one, { source: side, encoder: null, hypotheses: [best], tree: null });
            showExamples([many]); choose({ view: "matrix" })
            document.querySelector(".matrix").scrollTo(400, 300)
            function spent(temperature) {
              const start = performance.now();
              choose({ temperature });
              return performance.now() - start;
            }
        """)
        assert min(page.js(f"spent({1 + k / 10})") for k in range(1, 9)) < 400  # ms
        assert page.js("(({ scrollLeft: x, scrollTop: y }) => [x, y])(document.querySelector('.matrix'))") == [400, 300]

    def test_a_phone(self, page):
        page("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        for index in (0, 2, 4):
            opened = "document.getElementById('search').open = true"
            for act in (f"showExample({index})", opened, f"{MATRIX}.click()", f"{by_id('compare')}.click()"):
                page.js(act)
                page.js(DRAWN)
                assert page.js("document.documentElement.scrollWidth") == 390

    def test_dark_and_colours(self, page):
        look = "[getComputedStyle(document.body).backgroundColor, ramp[0].fill]"
        light = page.js(look)
        page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        page.until(f"ramp[0].fill !== {light[1]!r}")
        dark = page.js(look)
        assert (light[0], dark[0]) == ("rgb(250, 249, 246)", "rgb(18, 22, 27)") and light[1] != dark[1]
        for media in ("dark", "light"):
            page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": media}])
            page.until(f"(ramp[0].fill === {light[1]!r}) === {str(media == 'light').lower()}")
            for colours in ("cividis", "grey", "blue"):
                turn(page, "colours", colours)
                levels = page.js("ramp.map(({ channels: [r, g, b] }) => 0.2126 * r + 0.7152 * g + 0.0722 * b)")
                steps = np.diff(levels) * (1 if media == "dark" else -1)
                assert (steps > -1.5).all() and abs(levels[-1] - levels[0]) > 150  # heavier is ever further from paper
        page("Emulation.setEmulatedMedia", features=[])

    def test_everything_has_a_name(self, page):
        show(page, 2)
        page.js("document.getElementById('search').open = true; choose({ view: 'matrix', compare: true })")
        tree = page("Accessibility.getFullAXTree")["nodes"]
        nameless = [
            node["role"]["value"]
            for node in tree
            if node.get("role", {}).get("value") in ("button", "combobox", "checkbox", "radio", "slider", "application")
            and not node["ignored"]
            and not node["name"].get("value")
        ]
        assert nameless == [] and len(re.findall("Layer", str(tree))) >= 6
