"""The attention page as text: its data, what may run, what may load; tests/test_viewer_browser.py opens it."""

import base64
import hashlib
import html
import html.parser
import json
import re
from importlib.resources import files

import numpy as np
import pytest

from attn_jax import viz
from attn_jax.viz.examples import STEPS, example_data, pack_weights, unpack_weights
from attn_jax.viz.viewer import LIVE_SCRIPTS, STYLES, live_page

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


def unpacked(packed):
    return unpack_weights(packed["weights"]).reshape(packed["shape"])


class TestData:
    def test_one_model(self):
        data = Page(viz.attention_page([example()], title="A & B")).data
        assert (data["version"], data["title"], data["live"]) == (3, "A & B", None)
        (shown,) = data["examples"]
        assert (shown["text"], shown["reference"]) == ("the black cat", "le chat noir")
        (model,) = shown["models"]
        assert model["source"] == {"tokens": list(SRC), "words": [0, 1, 2, 3]}
        assert model["encoder"] is model["tree"] is None
        best, second = model["hypotheses"]
        assert best["cross"]["shape"] == [1, 1, 4, 4] and best["cross"]["softmax"] and best["decoder"] is None
        np.testing.assert_allclose(unpacked(best["cross"])[0, 0], WEIGHTS, rtol=2 / STEPS)
        assert best["gold"] == [[0, 0], [1, 2], [2, 1]]
        assert (best["text"], best["score"], best["label"]) == ("le chat noir", -0.25, "")
        assert (second["text"], second["gold"]) == ("Un chat.", None)

    def test_weights_keep_their_ratio(self):
        """Off by no more than 6e-5, and 1 / 1000 of themselves down to exp(-63); 0 stays 0."""
        weights = np.exp(-np.linspace(0, 63, 5000)).astype(np.float32)
        found = unpack_weights(pack_weights(weights))
        np.testing.assert_allclose(found, weights, rtol=1e-3)
        np.testing.assert_allclose(found, weights, atol=6e-5, rtol=0)
        assert unpack_weights(pack_weights([0.0, 1.0, 1.001, 1e-30])).tolist() == [0, 1, 1, 0]
        assert len(pack_weights(np.ones(30))) == 80  # 16 bits each, in base64

    @pytest.mark.parametrize("temperature", [0.25, 4])
    def test_any_temperature_of_the_page(self, temperature):
        """Rows of 500, from almost even to so peaked that all weights but one are below 1e-26."""
        for spread in (0.1, 1, 4, 16, 33, 60):
            scores = -spread * np.random.default_rng(0).uniform(size=(20, 500))
            scores[:10] = -spread
            scores[:15, 0] = 0
            rows = [np.exp(s - s.max(-1, keepdims=True)) for s in (scores, scores / temperature)]
            weights, expected = (row / row.sum(-1, keepdims=True) for row in rows)
            found = unpack_weights(pack_weights(weights.astype(np.float32))).reshape(20, 500) ** (1 / temperature)
            np.testing.assert_allclose(found / found.sum(-1, keepdims=True), expected, atol=1e-3, rtol=0)

    def test_everything(self):
        """Layers, heads, encoder and decoder maps, alternatives, a tree, and another model of other tokens."""
        rng = np.random.default_rng(0)
        maps = lambda *shape: rng.dirichlet(np.ones(shape[-1]), shape[:-1])  # noqa: E731
        tokens = ("▁le", "s", "</s>")
        hypothesis = viz.AttentionHypothesis(
            tokens=tokens,
            weights=maps(2, 3, 3, 4),
            decoder=maps(2, 3, 3, 3),
            log_probs=np.log([0.5, 0.25, 1.0]),
            alternatives=[[("▁le", -0.69), ("<b>", -1.0)], [("s", -1.39)], []],
            forced=1,
            label="reference",
            possible=[(0, 1)],
        )
        tree = viz.SearchTree(tokens=["▁le", "s", "x"], parents=[-1, 0, 0], log_probs=[-0.7, -2.1, -3], leaves=[1])
        other = example(name="other", src_tokens=("a", "b", "c", "d"))
        whole = example(hypotheses=[hypothesis], encoder=maps(1, 2, 4, 4), tree=tree, name="one", others=[other])
        data = example_data(whole)
        one, two = data["models"]
        assert (one["name"], two["name"], two["source"]["tokens"]) == ("one", "other", list("abcd"))
        assert one["encoder"]["shape"] == [1, 2, 4, 4]
        (found,) = one["hypotheses"]
        np.testing.assert_allclose(unpacked(found["decoder"]), hypothesis.decoder, atol=1e-4)
        assert found["words"] == [0, 0, 1] and found["log_probs"] == [-0.6931, -1.3863, 0.0]
        assert found["alternatives"][0] == [["▁le", -0.69], ["<b>", -1.0]]
        assert (found["forced"], found["label"], found["possible"]) == (1, "reference", [[0, 1]])
        assert one["tree"] == {"tokens": ["▁le", "s", "x"], "parents": [-1, 0, 0], "log_probs": [-0.7, -2.1, -3.0],
                               "leaves": [1]}  # fmt: skip
        json.dumps(data)


class TestAttentionPage:
    def test_subwords_become_text(self):
        src = ["▁un", "do", "▁it", "</s>"]
        page = viz.attention_page([example(src_tokens=src)])
        assert Page(page).data["examples"][0]["text"] == "undo it"

    def test_tokens_stay_data(self):
        page = viz.attention_page([nasty()], title=NASTY[1] + NASTY[0])
        parsed = Page(page)
        assert [tag for tag, _ in parsed.tags].count("script") == 2  # the data and the behaviour
        assert "img" not in dict(parsed.tags)
        assert [
            attribute for _, attributes in parsed.tags for attribute in attributes if attribute.startswith("on")
        ] == []
        (shown,) = parsed.data["examples"]
        (model,) = shown["models"]
        assert tuple(model["source"]["tokens"]) == tuple(model["hypotheses"][0]["tokens"]) == NASTY
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

    def test_a_live_page_may_ask_its_server_and_nothing_else(self):
        page, policy = live_page("Live", max_beam=4, max_chars=99)
        parsed = Page(page)
        assert parsed.data == {"version": 3, "title": "Live", "live": {"max_beam": 4, "max_chars": 99}, "examples": []}
        assert "connect-src 'self'" in policy and html.escape(policy, quote=False) in page
        assert re.findall(r"fetch\(([^,]*)", page) == ['"/api/translate"']
        assert len(page.encode()) < 200_000

    def test_no_part_is_long(self):
        parts = {path.name: path for path in (files(viz) / "page").iterdir()}
        assert set(parts) == {*STYLES, *LIVE_SCRIPTS, "page.html"}
        for name, path in parts.items():
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, name

    def test_a_notebook_shows_a_frame(self):
        frame = example()._repr_html_()
        (tag,) = Page(frame).tags
        assert tag[0] == "iframe" and tag[1]["sandbox"] == "allow-scripts allow-downloads"
        assert tag[1]["srcdoc"] == viz.attention_page([example()])

    def test_says_what_attention_is_not(self):
        assert "not an explanation" in " ".join(viz.attention_page([example()]).split())

    def test_write(self, tmp_path):
        path = viz.write_attention_page(tmp_path / "attention.html", [example()], title="数")
        assert path.read_bytes().decode("utf-8") == viz.attention_page([example()], title="数")
        with pytest.raises(ValueError, match=r"ending in \.html, found '\.png'"):
            viz.write_attention_page(tmp_path / "attention.png", [example()])
        with pytest.raises(ValueError, match=r"there is no folder .*; create it first"):
            viz.write_attention_page(tmp_path / "missing" / "attention.html", [example()])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"weights": WEIGHTS[:3]}, r"example 1, hypothesis 0: .*\[tgt_len=4, src_len=4\].*found \[3, 4\]"),
            ({"weights": -WEIGHTS}, "pass weights, not scores"),
            ({"weights": 2 * WEIGHTS}, "from 0 to 1; pass weights, not scores"),
            ({"decoder": WEIGHTS[:, :2]}, r"decoder: expected weights of shape \[tgt_len=4, tgt_len=4\]"),
            ({"log_probs": [0.0]}, "expected log_probs for each of 4 target tokens, found 1"),
            ({"alternatives": [[("a", float("nan"))]] * 4}, "expected a finite score"),
            ({"weights": WEIGHTS + np.inf}, "finite weights"),
            ({"score": float("nan")}, "expected a finite score or log-probability or None, found nan"),
            ({"gold": [(4, 0)]}, "gold link 4-0 .* out of range"),
            ({"tokens": ()}, "at least one target token"),
        ],
    )
    def test_errors(self, changes, message):
        hypothesis = viz.AttentionHypothesis(**{"tokens": TGT, "weights": WEIGHTS} | changes)
        with pytest.raises(ValueError, match=message):
            viz.attention_page([example(), example(hypotheses=[hypothesis])])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"parents": [-1]}, "expected as many parents and log_probs as tokens"),
            ({"parents": [0, -1]}, "expected every parent before its children"),
            ({"leaves": [1, 2]}, "expected leaves among 2 nodes"),
            ({"leaves": [1]}, r"a leaf a hypothesis \(2\)"),
        ],
    )
    def test_a_tree_that_is_none(self, changes, message):
        fields = {"tokens": ["a", "b"], "parents": [-1, 0], "log_probs": [-1.0, -2.0], "leaves": [1, None]}
        with pytest.raises(ValueError, match=message):
            viz.attention_page([example(tree=viz.SearchTree(**fields | changes))])

    def test_nothing_to_show(self):
        with pytest.raises(ValueError, match="at least one example"):
            viz.attention_page([])
        with pytest.raises(ValueError, match=r"example 0: .* found 4 tokens and 0 hypotheses"):
            viz.attention_page([example(hypotheses=())])
