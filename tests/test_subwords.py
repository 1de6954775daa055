import os

import pytest

from attn_jax.data.errors import MissingFileError, VocabularyError
from attn_jax.data.subwords import SubwordVocabulary, load_vocabulary
from attn_jax.data.vocabulary import SPECIAL_TOKENS
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, UNK_ID

SENTENCES = [
    "ein mann mit hut spielt gitarre",
    "eine frau mit rotem hut",
    "ein hund läuft im gras",
    "zwei hunde spielen",
] * 3
ALGORITHMS = ("bpe", "unigram")


@pytest.fixture(scope="module", params=ALGORITHMS)
def subwords(request):
    return SubwordVocabulary.train(SENTENCES, vocab_size=32, algorithm=request.param)


def test_special_ids_are_pinned(subwords):
    assert len(subwords) == 32
    assert subwords.pieces([PAD_ID, BOS_ID, EOS_ID, UNK_ID]) == list(SPECIAL_TOKENS)


def test_text_survives_the_round_trip(subwords):
    for text in SENTENCES[:4]:
        ids = subwords.encode(text)
        assert min(ids) > UNK_ID
        assert subwords.decode(ids) == text
        assert subwords.decode([BOS_ID, *ids, EOS_ID, 7, PAD_ID]) == text
        assert "".join(subwords.pieces(ids)).replace("▁", " ").strip() == text
    assert subwords.encode_batch(SENTENCES) == [subwords.encode(text) for text in SENTENCES]
    assert subwords.encode("") == [] and subwords.decode([]) == ""


def test_text_that_spells_a_special_token_never_gives_a_special_id(subwords):
    ids = subwords.encode("<s> ein </s> <pad>")
    assert not {PAD_ID, BOS_ID, EOS_ID} & set(ids) and UNK_ID in ids


def test_compatibility_characters_are_normalised(subwords):
    assert subwords.encode("ｅｉｎ\u3000mann") == subwords.encode("ein mann")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_is_deterministic_and_silent(algorithm, capfd):
    once, twice = (SubwordVocabulary.train(iter(SENTENCES), vocab_size=30, algorithm=algorithm) for _ in range(2))
    assert once.model == twice.model
    assert capfd.readouterr() == ("", "")


def test_training_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SubwordVocabulary.train(SENTENCES, vocab_size=30)
    assert os.listdir(tmp_path) == []


def test_a_long_sentence_is_trained_on():
    text = " ".join(["wort"] * 2000 + ["qx"])  # more bytes than the default limit of the trainer, 4192
    vocabulary = SubwordVocabulary.train([text], vocab_size=13)
    assert vocabulary.decode(vocabulary.encode("qx")) == "qx"


def test_vocab_size_too_large_names_the_largest_possible():
    with pytest.raises(VocabularyError, match=r"vocab_size 9000 is too large .* largest possible is") as caught:
        SubwordVocabulary.train(SENTENCES, vocab_size=9000)
    largest = int(str(caught.value).split()[-1])
    assert len(SubwordVocabulary.train(SENTENCES, vocab_size=largest)) == largest
    with pytest.raises(VocabularyError):
        SubwordVocabulary.train(SENTENCES, vocab_size=largest + 1)


def test_vocab_size_too_small_names_the_smallest_possible():
    with pytest.raises(VocabularyError, match=r"vocab_size 10 is smaller than the \d+ characters"):
        SubwordVocabulary.train(SENTENCES, vocab_size=10)
    with pytest.raises(VocabularyError, match="vocab_size > 4"):
        SubwordVocabulary.train(SENTENCES, vocab_size=4)


def test_no_text_and_an_unknown_algorithm():
    with pytest.raises(VocabularyError, match="found none"):
        SubwordVocabulary.train(["", "  "], vocab_size=10)
    with pytest.raises(VocabularyError, match="'bpe' or 'unigram'"):
        SubwordVocabulary.train(SENTENCES, vocab_size=30, algorithm="word")


def test_samples_differ_between_seeds_and_spell_the_same_text(subwords):
    once, again, other = (subwords.sample_batch(SENTENCES, alpha=0.5, seed=seed) for seed in (1, 1, 2))
    assert once == again != other
    assert [subwords.decode(ids) for ids in once] == SENTENCES
    with pytest.raises(VocabularyError, match="alpha"):
        subwords.sample_batch(SENTENCES, alpha=2.0, seed=0)


def test_save_and_load_with_lowercase(tmp_path):
    vocabulary = SubwordVocabulary.train(["Ein MANN", "ein hut"], vocab_size=16, lowercase=True)
    files = vocabulary.save(tmp_path, "src")
    assert sorted(path.name for path in files) == sorted(os.listdir(tmp_path)) == ["src.json", "src.model"]
    loaded = load_vocabulary(tmp_path, "src")
    assert loaded == vocabulary and loaded.lowercase
    assert loaded.decode(loaded.encode("EIN Hut")) == "ein hut"
    assert loaded.sample_batch(["EIN"], alpha=0.0, seed=0) == [loaded.encode("ein")]


def test_out_of_range_ids(subwords):
    for method in (subwords.decode, subwords.pieces):
        with pytest.raises(VocabularyError, match=r"id 32 at position 0 .* 32 ids"):
            method([32])


def test_a_garbled_or_missing_model_is_a_typed_error(tmp_path):
    vocabulary = SubwordVocabulary.train(SENTENCES, vocab_size=30)
    vocabulary.save(tmp_path, "src")
    (tmp_path / "src.model").write_bytes(vocabulary.model[:-1])
    with pytest.raises(VocabularyError, match="sha256"):
        load_vocabulary(tmp_path, "src")
    (tmp_path / "src.model").unlink()
    with pytest.raises(MissingFileError, match=r"src\.model"):
        load_vocabulary(tmp_path, "src")
    for model in (b"", b"no model"):
        with pytest.raises(VocabularyError):
            SubwordVocabulary(model)
