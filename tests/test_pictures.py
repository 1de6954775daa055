"""From a sentence to its picture, on tiny models that were never trained: every number is that of forced decoding."""

import html
from functools import cache

import jax
import numpy as np
import pytest

from attn_jax.data.batching import Sequences
from attn_jax.data.vocabulary import WordVocabulary
from attn_jax.decoding import Ensemble
from attn_jax.hub import Translator
from attn_jax.metrics.alignment import GoldAlignment
from attn_jax.models.families import build_model
from attn_jax.models.protocol import EOS_ID, UNK_ID, Batch
from attn_jax.pictures import _search, attention_of, is_softmax, maps_bytes, reported
from attn_jax.search_config import SearchConfig
from attn_jax.translation import Translation
from attn_jax.viz.examples import example_data

SRC, TGT = WordVocabulary.build(["a b c d e f g"]), WordVocabulary.build(["A B C D E F G H"])
SENTENCE = "f e d c b"
SETTINGS = {
    "recurrent": {"embed_dim": 4, "encoder_hidden": 4, "decoder_hidden": 8, "encoder_cell": "rnn",
                  "decoder_cell": "rnn", "attention": "multihead", "attention_options": {"num_heads": 2}},
    "transformer": {"d_model": 8, "num_heads": 2, "ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 2,
                    "alignment_layer": 0},
}  # fmt: skip
THREE = SearchConfig(beam=3, n_best=3)


@cache
def make_translator(family, attends=True):
    """Random parameters, spread so that hypotheses differ, and hardly an unknown word."""
    settings = SETTINGS[family] | ({} if attends else {"attention": None, "attention_options": {}})
    model = build_model(family, {"src_vocab_size": len(SRC), "tgt_vocab_size": len(TGT)} | settings)
    (ids, mask), (out, out_mask) = (Sequences.from_ids([[4, 5]]).padded(np.arange(1), 3) for _ in range(2))
    params = jax.jit(model.init)(jax.random.key(0), Batch(ids, mask, out, out_mask))["params"]
    params = jax.tree.map(lambda p: 1.5 * p, params)
    params["output_bias"] = params["output_bias"].at[np.array([UNK_ID, EOS_ID])].add(np.array([-20.0, -6.0]))
    return Translator(model, params, SRC, TGT)


@pytest.fixture(scope="module", params=["recurrent", "transformer"])
def translator(request):
    return make_translator(request.param)


@pytest.fixture(scope="module")
def example(translator):
    return attention_of(translator, f" {SENTENCE} ", THREE, name="tiny")


def test_hypotheses_are_those_of_the_search(translator, example):
    found = translator(SENTENCE, THREE)
    assert (example.src_text, example.name, example.reference) == (SENTENCE, "tiny", None)
    assert example.src_tokens == found[0].src_tokens
    for seen, one in zip(example.hypotheses, found, strict=True):
        assert (seen.tokens, seen.text, seen.label, seen.forced) == (one.tokens, one.text, "", 0)
        assert seen.score == pytest.approx(one.score, abs=1e-5)
        assert sum(seen.log_probs) == pytest.approx(one.log_prob, abs=1e-4)


def test_all_layers_and_heads_and_the_map_that_the_search_reports(translator, example):
    """The picture's maps come from one pass over the whole sentence, the search's from its steps: equal to 1e-5."""
    layers = {"recurrent": 1, "transformer": 2}["transformer" if example.encoder is not None else "recurrent"]
    for seen, one in zip(example.hypotheses, translator(SENTENCE, THREE), strict=True):
        assert seen.weights.shape == (layers, 2, len(seen.tokens), len(example.src_tokens)) and seen.softmax
        np.testing.assert_allclose(seen.weights.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(reported(translator.model, seen.weights), one.attention, atol=1e-5)
        if example.encoder is not None:
            assert example.encoder.shape == (1, 2, 6, 6)
            np.testing.assert_allclose(example.encoder.sum(-1), 1, atol=1e-5)
            np.testing.assert_allclose(seen.decoder.sum(-1), 1, atol=1e-5)
            assert not np.triu(seen.decoder, 1).any()


def test_how_large_all_maps_are(translator, example):
    seen = example.hypotheses[0]
    maps = [m for m in (example.encoder, seen.decoder, seen.weights) if m is not None]
    sizes = len(example.src_tokens), len(seen.tokens)
    assert maps_bytes(translator.model, 3, *sizes) == 3 * 4 * sum(m.size for m in maps)


def test_alternatives_hold_the_token_where_it_is_likely(example):
    for seen in example.hypotheses:
        for token, log_prob, step in zip(seen.tokens, seen.log_probs, seen.alternatives, strict=True):
            values = [p for _, p in step]
            assert len(step) == 5 and values == sorted(values, reverse=True)
            assert np.exp(values).sum() <= 1 + 1e-5
            assert dict(step).get(token, log_prob) == pytest.approx(log_prob, abs=1e-4)
            assert token in dict(step) or log_prob <= values[-1] + 1e-5


def test_the_tree_leads_to_every_hypothesis(example):
    tree = example.tree
    for seen, leaf in zip(example.hypotheses, tree.leaves, strict=True):
        path, at = [], leaf
        while at >= 0:
            path.append(tree.tokens[at])
            at = tree.parents[at]
        assert tuple(reversed(path)) == seen.tokens
        assert tree.log_probs[leaf] == pytest.approx(sum(seen.log_probs), abs=1e-4)
    example_data(example)  # all of it fits together


def test_a_forced_word_and_what_follows(translator, example):
    best = example.hypotheses[0]
    word = next(token for token, _ in best.alternatives[1] if token not in (best.tokens[1], "</s>"))
    forced = attention_of(translator, SENTENCE, THREE, prefix=(best.tokens[0], word))
    for seen, leaf in zip(forced.hypotheses, forced.tree.leaves, strict=True):
        assert seen.tokens[:2] == (best.tokens[0], word) and seen.forced == 2 and leaf is not None
        assert seen.log_probs[0] == pytest.approx(best.log_probs[0], abs=1e-5)  # nothing is renormalised
    ended = attention_of(translator, SENTENCE, THREE, prefix=(*best.tokens[:2], "</s>"))
    assert [seen.tokens for seen in ended.hypotheses] == [(*best.tokens[:2], "</s>")] and ended.tree is None
    with pytest.raises(ValueError, match="no token 'a'"):
        attention_of(translator, SENTENCE, THREE, prefix=("a",))
    with pytest.raises(ValueError, match="no token 'a'"):
        attention_of(translator, SENTENCE, THREE, prefix=("a", "</s>"))


def test_samples():
    translator = make_translator("recurrent")
    config = SearchConfig(sample=True, num_samples=4, seed=3)
    one, two = (attention_of(translator, SENTENCE, config) for _ in range(2))
    assert one.tree is None and [h.tokens for h in one.hypotheses] == [h.tokens for h in two.hypotheses]
    assert len({h.tokens for h in one.hypotheses}) == len(one.hypotheses) > 1
    found = [Translation(text, 0.0, (text, "</s>"), None, ("a", "</s>"), 0.0) for text in "ABA"]
    targets, _ = _search(lambda *args, **options: found, SENTENCE, config, ())
    assert [target.text for target in targets] == ["A", "B"]  # in the order they were drawn, each once


def test_reference_and_gold(translator, example):
    gold = GoldAlignment(frozenset({(0, 1)}), frozenset({(0, 1), (4, 0)}))
    shown = attention_of(translator, SENTENCE, THREE, reference="H A", gold=gold)
    *found, reference = shown.hypotheses
    assert [h.tokens for h in found] == [h.tokens for h in example.hypotheses]
    assert (reference.label, reference.tokens, shown.reference) == ("reference", ("H", "A", "</s>"), "H A")
    assert reference.gold == [(0, 1)] and set(reference.possible) == {(0, 1), (4, 0)}
    assert all(h.gold is None for h in found) and shown.tree.leaves[-1] is None
    (only,) = attention_of(translator, SENTENCE, prefix=reference.tokens, reference="H A", gold=gold).hypotheses
    assert (only.label, only.gold) == ("", [(0, 1)])  # what is found and is the reference too is shown once
    with pytest.raises(ValueError, match=r"gold link 5-0 .* out of range for 5 source and 2 target words"):
        attention_of(translator, SENTENCE, THREE, reference="H A", gold=GoldAlignment(frozenset({(5, 0)}), frozenset()))
    with pytest.raises(ValueError, match="give the reference too"):
        attention_of(translator, SENTENCE, THREE, gold=gold)


def test_notebooks_show_a_page(translator, example):
    for shown in (example, translator(SENTENCE, THREE)[1]):
        assert shown._repr_html_().startswith("<iframe sandbox=")
    assert '"softmax":true' in html.unescape(example._repr_html_())
    assert '"softmax":true' not in html.unescape(translator(SENTENCE, THREE)[1]._repr_html_())  # a mean over heads
    assert translator("", THREE)[0]._repr_html_() is None


def test_what_cannot_be_shown():
    plain = make_translator("recurrent", attends=False)
    with pytest.raises(ValueError, match="trained without attention"):
        attention_of(plain, "a", prefix=("A", "</s>"))
    with pytest.raises(ValueError, match="found nothing"):
        attention_of(plain, " ")
    with pytest.raises(ValueError, match="longer than 1024 tokens"):
        attention_of(plain, "a " * 1024)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"attention_options": {"normalizer": "sparsemax"}}, False),
        ({"attention": "local"}, False),
        ({"attention": "location"}, True),
        ({"attention": "location", "attention_options": {"over_padding": True}}, False),
    ],
)
def test_what_a_temperature_can_be_applied_to(settings, expected):
    sizes = {"src_vocab_size": 5, "tgt_vocab_size": 5}
    model = build_model("recurrent", {"attention": "general"} | sizes | settings)
    assert is_softmax(model) == expected
    assert not is_softmax(Ensemble((model, model.clone())))  # its map is a mean
