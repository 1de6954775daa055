"""Unknown words replaced through the attention: by hand, and in a translator's text."""

import numpy as np
import pytest

from attn_jax.data.subwords import SubwordVocabulary
from attn_jax.decoding import replace_unknown_words
from attn_jax.models.protocol import UNK_ID
from tests.test_hub import SRC, make_translator

ATTENTION = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.3, 0.4, 0.3]])


def test_by_hand():
    tokens, words = ["<unk>", "b", "<unk>"], ["Zoé", "3,5", "x"]
    assert replace_unknown_words(tokens, ATTENTION, words) == ("Zoé", "b", "3,5")
    assert replace_unknown_words(tokens, ATTENTION, words, {"Zoé": "Zoe", "x": "y"}) == ("Zoe", "b", "3,5")
    assert replace_unknown_words(["a", "b", "c"], ATTENTION, words, {"Zoé": "Zoe"}) == ("a", "b", "c")
    assert replace_unknown_words(["<unk>"], np.zeros((1, 0)), []) == ("<unk>",)  # nothing to copy
    with pytest.raises(ValueError, match=r"expected attention of shape \[3, 2\].*found \[3, 3\]"):
        replace_unknown_words(tokens, ATTENTION, words[:2])


@pytest.fixture(scope="module")
def translator():
    """One that writes nothing but unknown words."""
    made = make_translator(embed_dim=8)
    made.params = made.params | {"output_bias": made.params["output_bias"].at[UNK_ID].add(1e3)}
    return made


def test_the_translators_option(translator):
    sentences = ["a Zoé c", "", "g 3,5"]
    options = {"beam": 2, "n_best": 2, "max_len": 3}
    plain = translator(sentences, **options)
    copied = translator(sentences, replace_unknown={}, **options)
    dictionary = {"Zoé": "ZOE", "3,5": "3.5", "a": "A", "c": "C"}
    looked_up = translator(sentences, replace_unknown=dictionary, **options)
    changed = 0
    for sentence, *all_found in zip(sentences, plain, copied, looked_up, strict=True):
        words = sentence.split()
        for before, copy, entry in zip(*all_found, strict=True):
            assert before.tokens == copy.tokens == entry.tokens  # what the model wrote
            if not sentence:
                assert copy.text == ""
                continue
            for found, known in ((copy, {}), (entry, dictionary)):
                looked = (words[row[: len(words)].argmax()] for row in before.attention)
                expected = [known.get(w, w) if t == "<unk>" else t for w, t in zip(looked, before.tokens, strict=True)]
                assert found.text.split() == [word for word in expected if word != "</s>"]
            changed += copy.text != before.text
    assert changed >= 3


def test_what_cannot_be_replaced():
    pieces = SubwordVocabulary.train(["ein mann", "eine frau"], vocab_size=20)
    with pytest.raises(ValueError, match="needs a vocabulary of words"):
        make_translator(src=SRC, tgt=pieces)("a", replace_unknown={})
    with pytest.raises(ValueError, match="needs attention"):
        make_translator(attention=None, input_feeding=False)("a", replace_unknown={})
