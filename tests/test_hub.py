"""The translator on a tiny model that was never trained: order, limits, blanks, scores, folders, and bounded traces."""

from unittest import mock

import chex
import jax
import numpy as np
import pytest

from attn_jax import hub
from attn_jax.data.batching import Sequences
from attn_jax.data.vocabulary import WordVocabulary
from attn_jax.hub import Translator, token_strings
from attn_jax.models.families import build_model
from attn_jax.models.protocol import EOS_ID, UNK_ID, Batch
from attn_jax.nn.attention import ATTENTIONS
from attn_jax.storage.model_folder import ModelFolderError
from attn_jax.training import run_folder

SRC, TGT = WordVocabulary.build(["a b c d e f g"]), WordVocabulary.build(["A B C D E F G H"])
SENTENCES = ["a b c", "", "g", "f e d c b a g f e d c b a", "a x c", " \t", "d d"]


def make_translator(src=SRC, tgt=TGT, seed=0, **settings):
    """Random parameters, spread so that hypotheses differ, and hardly an unknown word."""
    settings = {"embed_dim": 4, "encoder_hidden": 4, "decoder_hidden": 8, "attention": "dot", "encoder_cell": "rnn",
                "decoder_cell": "rnn"} | settings  # fmt: skip
    model = build_model("recurrent", {"src_vocab_size": len(src), "tgt_vocab_size": len(tgt)} | settings)
    (ids, mask), (out, out_mask) = (Sequences.from_ids([[4, 5]]).padded(np.arange(1), 3) for _ in range(2))
    params = jax.jit(model.init)(jax.random.key(seed), Batch(ids, mask, out, out_mask))["params"]
    params = jax.tree.map(lambda p: 3 * p, params)
    params["output_bias"] = params["output_bias"].at[UNK_ID].add(-9.0)
    return Translator(model, params, src, tgt)


@pytest.fixture(scope="module")
def translator():
    return make_translator()


@pytest.fixture(scope="module")
def found(translator):
    return translator(SENTENCES, beam=4, n_best=3)


def test_a_list_keeps_its_order_and_its_blanks(translator, found):
    assert len(found) == len(SENTENCES)
    for sentence, hypotheses in zip(SENTENCES, found, strict=True):
        if not sentence.strip():
            assert hypotheses == [hub.Translation("", 0.0, (), None, (), 0.0)]
            continue
        words = [word if word in SRC.tokens else "<unk>" for word in sentence.split()]
        assert len(hypotheses) == 3 and len({h.tokens for h in hypotheses}) == 3
        for h in hypotheses:
            assert h.src_tokens == (*words, "</s>")
            assert h.attention.shape == (len(h.tokens), len(h.src_tokens))
            np.testing.assert_allclose(h.attention.sum(-1), 1, atol=1e-5)
            assert h.text == " ".join(token for token in h.tokens if token not in ("</s>", "<pad>", "<s>"))
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    assert len({hypotheses[0].tokens for hypotheses in found}) >= 4


def test_a_sentence_is_a_list_of_one(translator, found):
    alone = translator(SENTENCES[0], beam=4, n_best=3)
    assert [h.tokens for h in alone] == [h.tokens for h in found[0]]
    assert translator([]) == [] and translator(["", " "], beam=1)[1][0].text == ""


def test_search_and_forced_decoding_agree(translator, found):
    """Log-probabilities and attention of every hypothesis that ended are those of forced decoding."""
    ended = [(s, h) for s, hypotheses in zip(SENTENCES, found, strict=True) for h in hypotheses if h.text]
    ended = [(s, h) for s, h in ended if h.tokens[-1] == "</s>" and h.text.split() == list(h.tokens[:-1])]
    scored = translator.score([s for s, _ in ended], [h.text for _, h in ended])
    for (_, h), forced in zip(ended, scored, strict=True):
        assert forced.tokens == h.tokens and forced.src_tokens == h.src_tokens
        np.testing.assert_allclose(forced.attention, h.attention, atol=1e-5)
        assert forced.log_probs.shape == (len(h.tokens),)
        assert forced.log_probs.sum() == pytest.approx(h.log_prob, abs=1e-4)
        penalty = ((5 + len(h.tokens)) / 6) ** 0.6
        assert h.score == pytest.approx(h.log_prob / penalty, abs=1e-4)
    assert len(ended) >= 5


def test_lengths(translator, monkeypatch):
    """A model that never ends a sentence writes as many tokens as each sentence may have, whatever its company."""
    bias = translator.params["output_bias"].at[EOS_ID].set(-99.0)
    monkeypatch.setattr(translator, "params", translator.params | {"output_bias": bias})
    for sentence, (h,) in zip(SENTENCES, translator(SENTENCES, beam=1), strict=True):
        assert len(h.tokens) == (2 * (len(sentence.split()) + 1) + 8 if sentence.strip() else 0)
    assert [len(h.tokens) for h in translator("a b c", beam=2, n_best=2, max_len=5)] == [5, 5]


def test_sentences_that_are_too_long_are_left_blank(translator, monkeypatch):
    monkeypatch.setattr(hub, "MAX_SRC_LEN", 5)  # with the end of sentence
    fits, too_long, last = translator(["a b c d", "a b c d e", "g"], beam=1)
    assert fits[0].src_tokens and not too_long[0].src_tokens and too_long[0].text == "" and last[0].src_tokens
    assert translator.max_src_len == 5


def test_location_attention_sees_so_far():
    for options, most in (({}, 64), ({"max_len": 9}, 9), ({"max_len": 9999}, hub.MAX_SRC_LEN)):
        settings = {"src_vocab_size": len(SRC), "tgt_vocab_size": len(TGT), "attention": "location"}
        model = build_model("recurrent", settings | {"attention_options": options})
        assert Translator(model, None, SRC, TGT).max_src_len == most
    with pytest.raises(ValueError, match=r"sentence 2 \(a a .*\): has 10 tokens, and this model sees 9; split it"):
        make_translator(attention="location", attention_options={"max_len": 9}).score(["a", "a " * 9], ["A", "A"])


def test_without_attention(tmp_path):
    plain = make_translator(attention=None, input_feeding=False)
    found = plain("a b", beam=2)[0]
    assert found.attention is None and found.tokens
    assert plain.score(["a b"], ["A"])[0].attention is None


def test_other_parameters_take_the_place_of_all_that_a_search_reads():
    translator, other = make_translator(), make_translator()
    other.params = jax.tree.map(lambda leaf: leaf[..., ::-1], other.params)
    before, expected = translator("a b c", beam=2), other("a b c", beam=2)
    assert before[0].score != expected[0].score
    translator.params = other.params
    assert translator("a b c", beam=2)[0].score == expected[0].score
    assert translator.score(["a b"], ["A"])[0].log_prob == other.score(["a b"], ["A"])[0].log_prob


def test_every_shape_is_traced_once(monkeypatch):
    """Batches of the same shape share a search and a forced decoding, however many calls bring them."""
    chex.clear_trace_counter()
    for name in ("search", "forced_decode"):
        monkeypatch.setattr(hub, name, chex.assert_max_traces(getattr(hub, name), n=1))
    translator, before = make_translator(embed_dim=5), hub.searches()  # a model that no other test has
    for penalty, text in ((0.0, ["a b c", "d", "e f"]), (0.6, ["a", "", "b", "c d e f", "g"])):
        translator(text, beam=2, length_penalty=penalty)
        translator.score([line for line in text if line], ["A B C"] + ["A"] * (2 if penalty == 0 else 3))
    assert hub.searches() == before + 1


def test_a_mechanism_that_takes_the_place_of_another_is_compiled_anew():
    class Flat(ATTENTIONS["dot"]):
        def scores(self, params, query, keys, einsum):
            return 0 * super().scores(params, query, keys, einsum)

    with mock.patch.dict(ATTENTIONS):
        ATTENTIONS["mine"] = ATTENTIONS["dot"]
        translator = make_translator(attention="mine")
        before = translator.score(["a b c"], ["A"])[0].attention
        ATTENTIONS["mine"] = Flat
        np.testing.assert_allclose(translator.score(["a b c"], ["A"])[0].attention, 0.25, rtol=1e-6)
    assert np.ptp(before) > 1e-3


@pytest.mark.parametrize("joint", [True, False])
def test_a_model_folder_gives_the_same_translator(tmp_path, joint):
    before = make_translator(tgt=SRC if joint else TGT, share_embeddings=joint)
    before.save(tmp_path / "model")
    after = Translator.load(tmp_path / "model")
    assert (after.src_vocab is after.tgt_vocab) == joint
    assert (tmp_path / "model" / "tgt.json").exists() != joint
    assert after.model.config == before.model.config
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    with pytest.raises(ModelFolderError):
        before.save(tmp_path / "model")
    before.save(tmp_path / "model", overwrite=True, card="# Mine\n")
    assert (tmp_path / "model" / "MODEL_CARD.md").read_text() == "# Mine\n"


def test_a_run_without_a_model(tmp_path):
    run_folder.create(tmp_path / "run")
    with pytest.raises(ModelFolderError, match="run: this run has no model yet; go on with --resume until"):
        Translator.load(tmp_path / "run")


def test_what_it_refuses(translator):
    with pytest.raises(ValueError, match="the model has 11 src ids and the vocabulary 12; they must agree"):
        Translator(translator.model, translator.params, TGT, TGT)
    with pytest.raises(ValueError, match="the model has 12 tgt ids and the vocabulary 11"):
        Translator(translator.model, translator.params, SRC, SRC)
    for n_best in (0, 3):
        with pytest.raises(ValueError, match=f"n_best must be between 1 and beam = 2, found {n_best}; widen"):
            translator("a", beam=2, n_best=n_best)
    with pytest.raises(ValueError, match="expected as many targets as sources, found 1 and 2 sentences"):
        translator.score(["a"], ["A", "B"])
    with pytest.raises(ValueError, match=r"sentence 2 .>>fr<< b.: unknown language token >>fr<<"):
        translator(["a", ">>fr<< b"])


def test_a_language_token_of_the_vocabulary_is_no_error():
    source = WordVocabulary.build([">>fr<< a b c d e f"])
    assert make_translator(src=source)(">>fr<< a", beam=1)[0].src_tokens == (">>fr<<", "a", "</s>")


def test_token_strings():
    assert token_strings(SRC, [4, 5, EOS_ID]) == ("a", "b", "</s>")
    assert token_strings(SRC, np.array([4, UNK_ID])) == ("a", "<unk>") and token_strings(SRC, []) == ()
