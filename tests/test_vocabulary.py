import json

import numpy as np
import pytest

from attn_jax.data.errors import DataError, MissingFileError, VocabularyError
from attn_jax.data.subwords import load_vocabulary
from attn_jax.data.vocabulary import SPECIAL_TOKENS, WordVocabulary, split_language_token
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, UNK_ID

SENTENCES = ["the cat sat", "the dog sat", "A dog"]


@pytest.fixture
def words():
    return WordVocabulary.build(SENTENCES)


def test_most_frequent_first_and_ties_by_code_point(words):
    assert words.tokens == (*SPECIAL_TOKENS, "dog", "sat", "the", "A", "cat")
    assert WordVocabulary.build(reversed(SENTENCES)) == words


def test_encode_and_decode_by_hand(words):
    assert words.encode("the  bird sat\n") == [6, UNK_ID, 5]
    assert words.encode("") == []
    assert words.encode_batch(["the dog", ""]) == [[6, 4], []]
    assert words.decode([6, UNK_ID, 5]) == "the <unk> sat"
    assert words.pieces([BOS_ID, 6, EOS_ID, PAD_ID]) == ["<s>", "the", "</s>", "<pad>"]
    assert len(words) == 9


def test_decode_stops_at_the_end_and_skips_padding(words):
    assert words.decode(np.array([BOS_ID, 6, PAD_ID, 4, EOS_ID, 5])) == "the dog"
    assert words.decode([]) == ""


def test_language_tokens():
    assert split_language_token(">>fr<< a") == (">>fr<<", " a")
    assert split_language_token(" >>zh-CN<<a") == (">>zh-CN<<", "a")
    for text in ("a >>fr<<", ">> fr<<", ">><<", ">>a>b<<", ""):
        assert split_language_token(text) == ("", text)
    words = WordVocabulary.build([">>fr<< the cat"])
    assert words.pieces(words.encode(">>fr<< the")) == [">>fr<<", "the"]
    assert words.pieces(words.encode(">>de<<")) == ["<unk>"]


def test_limits():
    assert WordVocabulary.build(SENTENCES, max_size=6).tokens[4:] == ("dog", "sat")
    assert WordVocabulary.build(SENTENCES, min_count=2).tokens[4:] == ("dog", "sat", "the")
    for limits in ({"max_size": 4}, {"min_count": 0}, {"min_count": 9}):
        with pytest.raises(VocabularyError):
            WordVocabulary.build(SENTENCES, **limits)


def test_lowercase_belongs_to_the_vocabulary(tmp_path):
    words = WordVocabulary.build(SENTENCES, lowercase=True)
    words.save(tmp_path, "src")
    loaded = load_vocabulary(tmp_path, "src")
    assert loaded == words
    assert loaded.decode(loaded.encode("THE Cat")) == "the cat"


def test_text_that_spells_a_special_token_is_an_unknown_word():
    words = WordVocabulary.build(["</s> <pad> word", "word"])
    assert words.encode("</s> <pad> word") == [UNK_ID, UNK_ID, 4]


@pytest.mark.parametrize("wrong", [9, -1])
def test_an_id_out_of_range_is_named_with_the_size(words, wrong):
    for method in (words.decode, words.pieces):
        with pytest.raises(VocabularyError, match=f"id {wrong} at position 1 .* 9 ids"):
            method([4, wrong])


def test_ids_must_be_one_sentence_of_integers(words):
    for ids in ([[4, 5], [5, 4]], [4.5], np.zeros((0, 2, 3)) + 1.0, ["the"]):
        if np.size(ids):
            with pytest.raises(VocabularyError, match="one sentence of integer ids"):
                words.decode(ids)


@pytest.mark.parametrize(
    "tokens", [("a", "b"), (*SPECIAL_TOKENS, "a", "a"), (*SPECIAL_TOKENS, "a b"), (*SPECIAL_TOKENS, "")]
)
def test_malformed_tokens(tokens):
    with pytest.raises(VocabularyError):
        WordVocabulary(tokens)


def test_save_is_readable_json(words, tmp_path):
    (path,) = words.save(tmp_path, "tgt")
    assert json.loads(path.read_text(encoding="utf-8"))["tokens"] == list(words.tokens)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"kind": "other"}',
        b'{"kind": "words"}',
        b'{"kind": "words", "lowercase": 1, "tokens": []}',
        b'{"kind": "words", "lowercase": true, "tokens": [1, 2, 3, 4, 5]}',
        b'{"kind": "words", "lowercase": true, "tokens": ["a"]}',
    ],
)
def test_a_garbled_file_is_a_typed_error(tmp_path, content):
    (tmp_path / "src.json").write_bytes(content)
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(tmp_path, "src")
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"src\.json: missing; restore"):
        load_vocabulary(tmp_path, "src")
    (tmp_path / "src.json").mkdir()
    with pytest.raises(MissingFileError, match=r"src\.json: cannot be read"):
        load_vocabulary(tmp_path, "src")
    assert issubclass(MissingFileError, DataError)
