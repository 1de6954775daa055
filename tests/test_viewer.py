"""The attention page, as text and in a real browser."""

import base64
import hashlib
import html.parser
import json
import os
import re
import shutil

import numpy as np
import pytest

from attn_jax import viz
from tests.browser import Browser

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


def example(**changes):
    best = viz.AttentionHypothesis(tokens=TGT, weights=WEIGHTS, score=-0.25, gold=GOLD)
    second = viz.AttentionHypothesis(tokens=("un", "chat"), weights=WEIGHTS[:2], score=-1.5, text="Un chat.")
    return viz.AttentionExample(
        **{"src_tokens": SRC, "hypotheses": (best, second), "reference": "le chat noir"} | changes
    )


def nasty():
    hypothesis = viz.AttentionHypothesis(tokens=NASTY, weights=np.eye(len(NASTY)))
    return viz.AttentionExample(src_tokens=NASTY, hypotheses=[hypothesis], reference=NASTY[0], src_text=NASTY[1])


class Page(html.parser.HTMLParser):
    """Tags, attributes and the text of styles and scripts, as an HTML parser other than ours sees them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.raw, self.open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "script"):
            self.raw.append((dict(attrs).get("type", tag), ""))
            self.open = tag

    def handle_endtag(self, tag):
        self.open = None if tag == self.open else self.open

    def handle_data(self, data):
        if self.open:
            kind, text = self.raw[-1]
            self.raw[-1] = kind, text + data

    @property
    def data(self):
        return json.loads(dict(self.raw)["application/json"])


class TestAttentionPage:
    def test_data(self):
        data = Page(viz.attention_page([example()], title="A & B")).data
        assert data["version"] == 1
        assert data["title"] == "A & B"
        (shown,) = data["examples"]
        assert shown["source"] == {"tokens": list(SRC), "text": "the black cat"}
        assert shown["reference"] == "le chat noir"
        best, second = shown["hypotheses"]
        assert best["weights"] == WEIGHTS.tolist()
        assert best["gold"] == [[0, 0], [1, 2], [2, 1]]
        assert (best["text"], best["score"]) == ("le chat noir", -0.25)
        assert (second["text"], second["gold"]) == ("Un chat.", None)

    def test_weights_are_rounded_to_four_places(self):
        hypothesis = viz.AttentionHypothesis(tokens=["a"], weights=np.float32([[1 / 3, 1e-9]]))
        (shown,) = Page(viz.attention_page([example(src_tokens=["x", "y"], hypotheses=[hypothesis])])).data["examples"]
        assert shown["hypotheses"][0]["weights"] == [[0.3333, 0]]

    def test_subwords_become_text(self):
        src = ["▁un", "do", "▁it", "</s>"]
        page = viz.attention_page([example(src_tokens=src)])
        assert Page(page).data["examples"][0]["source"]["text"] == "undo it"

    def test_tokens_stay_data(self):
        page = viz.attention_page([nasty()], title=NASTY[1] + NASTY[0])
        parsed = Page(page)
        assert [tag for tag, _ in parsed.tags].count("script") == 2  # the data and the behaviour
        assert "img" not in dict(parsed.tags)
        assert [
            attribute for _, attributes in parsed.tags for attribute in attributes if attribute.startswith("on")
        ] == []
        (shown,) = parsed.data["examples"]
        assert tuple(shown["source"]["tokens"]) == tuple(shown["hypotheses"][0]["tokens"]) == NASTY
        (line,) = [line for line in page.split("\n") if 'id="data"' in line]
        payload = line.partition(">")[2].removesuffix("</script>")
        assert not set("<>&\u2028\u2029") & set(payload)
        page.encode("utf-8")  # a lone surrogate in a token does not keep the page from being written

    def test_the_policy_admits_exactly_what_is_there(self):
        page = Page(viz.attention_page([nasty()]))
        (policy,) = [
            attributes["content"]
            for tag, attributes in page.tags
            if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
        ]
        inline = dict(page.raw)

        def source(text):
            return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

        assert policy.split("; ") == [
            "default-src 'none'",
            f"style-src {source(inline['style'])}",
            f"script-src {source(inline['script'])}",
            "base-uri 'none'",
            "form-action 'none'",
        ]

    def test_one_small_file_that_loads_nothing(self):
        page = viz.attention_page([example()])
        assert len(page.encode()) < 200_000
        assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"]  # a name, not an address
        assert not [tag for tag, attributes in Page(page).tags if attributes.keys() & {"src", "href", "style"}]
        assert not re.search(r"@import|url\(", page)
        assert "{{" not in page
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch("):
            assert forbidden not in page

    def test_says_what_attention_is_not(self):
        assert "not an explanation" in " ".join(viz.attention_page([example()]).split())

    def test_write(self, tmp_path):
        path = viz.write_attention_page(tmp_path / "attention.html", [example()], title="数")
        assert path.read_bytes().decode("utf-8") == viz.attention_page([example()], title="数")
        with pytest.raises(ValueError, match=r"ending in \.html, found '\.png'"):
            viz.write_attention_page(tmp_path / "attention.png", [example()])
        with pytest.raises(ValueError, match="does not exist; create it first"):
            viz.write_attention_page(tmp_path / "missing" / "attention.html", [example()])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"weights": WEIGHTS[:3]}, r"example 1, hypothesis 0: .*\[tgt_len=4, src_len=4\].*found \[3, 4\]"),
            ({"weights": -WEIGHTS}, "pass weights, not scores"),
            ({"weights": WEIGHTS + np.inf}, "finite weights"),
            ({"score": float("nan")}, "expected a finite score or None, found nan"),
            ({"gold": [(4, 0)]}, "gold link 4-0 .* out of range"),
            ({"tokens": ()}, "at least one target token"),
        ],
    )
    def test_errors(self, changes, message):
        hypothesis = viz.AttentionHypothesis(**{"tokens": TGT, "weights": WEIGHTS} | changes)
        with pytest.raises(ValueError, match=message):
            viz.attention_page([example(), example(hypotheses=[hypothesis])])

    def test_nothing_to_show(self):
        with pytest.raises(ValueError, match="at least one example"):
            viz.attention_page([])
        with pytest.raises(ValueError, match=r"example 0: .* found 4 tokens and 0 hypotheses"):
            viz.attention_page([example(hypotheses=())])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None or os.name != "posix":
        pytest.skip("no Chromium on the path; on Debian: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, tmp_path):
    """The page of two examples, opened from disk at a desktop's size; afterwards: no error, no request but itself."""
    path = viz.write_attention_page(tmp_path / "attention.html", [example(), nasty()], title="Test")
    browser("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    browser.mouse((1, 1))
    browser.open(path.as_uri())
    yield browser
    assert browser.seen("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    requests = [seen["request"]["url"] for seen in browser.seen("Network.requestWillBeSent")]
    assert requests == [path.as_uri()]


def token(side, index):
    return f"document.querySelectorAll('#{side}-tokens .token')[{index}]"


def texts(selector):
    return f"Array.from(document.querySelectorAll('{selector}'), node => node.textContent)"


MATRIX = "document.querySelector('input[value=matrix]')"
CHOSEN = "Array.from(document.querySelectorAll('.token.chosen'), node => node.textContent)"
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


class TestInTheBrowser:
    def test_hover_highlights_the_other_side_and_click_pins(self, page):
        page.mouse(page.middle(token("tgt", 1)))
        assert page.js(texts("#readout li")) == ["cat0.700", "the0.100", "black0.100", "</s>0.100"]
        assert page.js(texts("#readout h2")) == ["chat"]
        assert page.js("document.querySelectorAll('#src-tokens [data-weight]').length") == 4
        page.mouse(page.middle(token("src", 1)))
        assert page.js(texts("#readout li"))[:2] == ["noir0.800", "chat0.100"]
        page.mouse((5, 5))
        assert page.js(texts("#readout li")) == []
        page.click(token("tgt", 2))
        page.mouse((5, 5))
        assert page.js(CHOSEN) == ["noir"]
        assert page.js(f"{token('tgt', 2)}.getAttribute('aria-pressed')") == "true"
        page.click(token("tgt", 2))
        page.mouse((5, 5))
        assert page.js(CHOSEN) == []

    def test_keys_in_the_line_view(self, page):
        page.js(f"{token('src', 0)}.focus({{ focusVisible: true }})")
        page.key("ArrowRight")
        assert page.js(CHOSEN) == ["black"]
        page.key("ArrowDown")  # to the token it is tied to most
        assert page.js(CHOSEN) == ["noir"]
        page.key("Enter")
        assert page.js("document.getElementById('announcer').textContent").startswith("Pinned. noir: black 0.800")
        page.key("Escape")
        assert page.js(CHOSEN) == []

    def test_matrix(self, page):
        page.click(f"{MATRIX}.nextElementSibling")
        page.js("document.getElementById('matrix').focus()")
        page.key("ArrowDown")
        page.key("ArrowDown")
        page.key("ArrowRight")
        page.js(DRAWN)
        assert page.js("document.getElementById('tip').textContent") == "chat ← black0.100"
        # From there one cell to the right with the mouse.
        x, y = page.js("(r => [r.x + r.width / 2, r.bottom])(document.getElementById('tip').getBoundingClientRect())")
        page.mouse((x + 40, y + 20))
        page.js(DRAWN)
        assert page.js("document.getElementById('tip').textContent") == "chat ← cat0.700"
        assert "4 output tokens by 4 source tokens" in page.js("document.getElementById('matrix').ariaLabel")

    def test_hypotheses_and_gold(self, page):
        halos = "document.querySelectorAll('#gold-strokes .halo').length"
        assert page.js(halos) == 3
        page.click("document.getElementById('gold')")
        assert page.js(halos) == 0
        page.click(token("tgt", 3))
        page.click("document.querySelectorAll('button.hypothesis')[1]")
        assert page.js(CHOSEN) == []  # a pin of another hypothesis means nothing here
        assert page.js(texts("#tgt-tokens .token")) == ["un", "chat"]
        assert page.js("document.getElementById('gold-choice').hidden")
        assert page.js(texts(".score")) == ["score −0.250", "score −1.500"]

    def test_tokens_cannot_run(self, page):
        page.click("document.getElementById('next')")
        assert page.js("document.getElementById('example').selectedIndex") == 1
        for view in (token("tgt", 0), f"{MATRIX}.nextElementSibling"):
            page.click(view)
        page.js(DRAWN)
        assert page.js("typeof stolen") == "undefined"
        assert page.js("document.images.length") == 0
        assert page.js("document.getElementById('source').textContent") == NASTY[1]

    def test_a_phone(self, page):
        page("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        for click in ("0", f"{MATRIX}.click()"):
            page.js(click)
            page.js(DRAWN)
            assert page.js("document.documentElement.scrollWidth") == 390

    def test_dark(self, page):
        paper = "getComputedStyle(document.body).backgroundColor"
        light = page.js(paper)
        page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        dark = page.js(paper)
        page("Emulation.setEmulatedMedia", features=[])
        assert (light, dark) == ("rgb(250, 249, 246)", "rgb(18, 22, 27)")
