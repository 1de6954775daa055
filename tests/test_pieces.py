"""Vocabularies whose list is not the cutter's."""

import json
import sys

import pytest

from attn_jax.data.errors import VocabularyError
from attn_jax.data.pieces import PieceVocabulary
from attn_jax.data.subwords import load_vocabulary
from attn_jax.data.vocabulary import SPECIAL_TOKENS
from tests.marian_folders import ENGLISH, numbered, pieces


@pytest.fixture(scope="module")
def vocabulary():
    model = pieces(ENGLISH, 60)
    tokens = [token for token in numbered(model) if token not in ("</s>", "<unk>", "<pad>")]
    return PieceVocabulary((*SPECIAL_TOKENS, *tokens), model)


def test_ids_are_those_of_the_list(vocabulary):
    for text in ("the cat sat", "a man with a hat"):
        ids = vocabulary.encode(text)
        assert (
            [vocabulary.tokens[i] for i in ids] == vocabulary._sp.encode(text, out_type=str) == vocabulary.pieces(ids)
        )
        assert ids != vocabulary._sp.encode(text) and vocabulary.decode([*ids, 2, 9]) == text
    assert vocabulary.encode_batch(["the cat", "a"]) == [vocabulary.encode("the cat"), vocabulary.encode("a")]
    assert len(vocabulary) == len(vocabulary.tokens) and not vocabulary.lowercase


def test_special_cases(vocabulary):
    language = vocabulary.tokens.index(">>fr<<")
    assert vocabulary.encode(">>fr<< the cat") == [language, *vocabulary.encode("the cat")]
    assert vocabulary.encode(">>xx<< the cat") == [3, *vocabulary.encode("the cat")]
    assert 3 in vocabulary.encode("日") and vocabulary.encode("") == []
    assert vocabulary.pieces([0, 1, 2, 3]) == list(SPECIAL_TOKENS)
    assert vocabulary.decode([1, 3, *vocabulary.encode("the cat"), 0]) == "the cat"
    assert not {0, 1, 2} & set(vocabulary.encode("</s> <pad> <s>"))  # text that spells a special token is text
    with pytest.raises(VocabularyError, match="id 9999 at position 0"):
        vocabulary.decode([9999])


def test_on_disk(vocabulary, tmp_path):
    paths = vocabulary.save(tmp_path, "src")
    assert [path.name for path in paths] == ["src.json", "src.model"]
    assert load_vocabulary(tmp_path, "src") == vocabulary
    fields = json.loads(paths[0].read_text())
    for change, message in (
        ({"tokens": [1]}, "every token must be a string"),
        ({"tokens": fields["tokens"][1:]}, "expected pieces that start with"),
        ({"tokens": [*fields["tokens"], fields["tokens"][5]]}, "found one twice"),
        ({"sha256": "0"}, "is not the file whose sha256"),
        ({"punctuation": None}, "expected 'punctuation' to be a str"),
    ):
        paths[0].write_text(json.dumps(fields | change))
        with pytest.raises(VocabularyError, match=message):
            load_vocabulary(tmp_path, "src")


def test_punctuation(vocabulary, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(VocabularyError, match=r"sacremoses, which is not installed: pip install"):
        PieceVocabulary(vocabulary.tokens, vocabulary.model, "en")
    monkeypatch.undo()
    pytest.importorskip("sacremoses", reason='needs sacremoses: pip install ".[pretrained]"')
    normal = PieceVocabulary(vocabulary.tokens, vocabulary.model, "en")
    assert normal.encode("he said : “no”") == vocabulary.encode('he said: "no"') == normal.encode('he said: "no"')
