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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MissingFileError("a.de: cannot be read")])
def test_what_the_sentences_raise_is_what_comes_out(error):
    def sentences():
        yield from SENTENCES
        raise error

    with pytest.raises(type(error)) as caught:
        SubwordVocabulary.train(sentences(), vocab_size=30)
    assert caught.value is error


TWO_TARGETS = [f"{token} {text}" for token in (">>fr<<", " >>en<<", ">>x,\"y'<<") for text in SENTENCES]


@pytest.fixture(scope="module", params=ALGORITHMS)
def two_targets(request):
    return SubwordVocabulary.train(TWO_TARGETS, vocab_size=34, algorithm=request.param)


def test_language_tokens_are_whole(two_targets):
    for token in (">>fr<<", ">>en<<", ">>x,\"y'<<"):
        assert two_targets.pieces(two_targets.encode(token)) == [token]
    ids = two_targets.encode(">>fr<< ein hund läuft")
    assert two_targets.pieces(ids) == [">>fr<<", *two_targets.pieces(two_targets.encode("ein hund läuft"))]
    assert two_targets.decode([BOS_ID, *ids, EOS_ID]) == ">>fr<< ein hund läuft"
    assert two_targets.encode("  >>fr<<ein hund läuft") == ids
    assert two_targets.encode_batch(TWO_TARGETS) == [two_targets.encode(text) for text in TWO_TARGETS]
    for unknown in (">>de<<", ">>FR<<", ">> fr <<"):
        assert unknown not in two_targets.pieces(two_targets.encode(unknown))


def test_language_tokens_survive_sampling(two_targets):
    texts = [">>fr<< " + text for text in SENTENCES]
    for alpha in (0.0, 0.5, 1.0):
        samples = two_targets.sample_batch(texts, alpha=alpha, seed=1)
        assert {two_targets.pieces(ids)[0] for ids in samples} == {">>fr<<"}
        assert [two_targets.decode(ids) for ids in samples] == texts


def test_language_tokens_in_lower_case_come_back_from_disk(tmp_path):
    vocabulary = SubwordVocabulary.train([">>FR<< Ein MANN", ">>fr<< ein hut"], vocab_size=17, lowercase=True)
    vocabulary.save(tmp_path, "src")
    loaded = load_vocabulary(tmp_path, "src")
    assert loaded == vocabulary
    assert loaded.pieces(loaded.encode(">>Fr<<")) == [">>fr<<"]
    assert loaded.decode(loaded.encode(">>Fr<< EIN Hut")) == ">>fr<< ein hut"


def test_too_many_language_tokens_are_named():
    with pytest.raises(VocabularyError, match=r"vocab_size 100 is smaller than the \d+ characters, language tokens"):
        SubwordVocabulary.train([f">>{i}<< ein mann" for i in range(200)], vocab_size=100)


def test_vocab_size_too_large_names_the_largest_possible():
    with pytest.raises(
        VocabularyError, match=r"vocab_size 9000 is too large .* use --vocab-size \d+ or less"
    ) as caught:
        SubwordVocabulary.train(SENTENCES, vocab_size=9000)
    largest = int(str(caught.value).split()[-3])
    assert len(SubwordVocabulary.train(SENTENCES, vocab_size=largest)) == largest
    with pytest.raises(VocabularyError):
        SubwordVocabulary.train(SENTENCES, vocab_size=largest + 1)


def test_vocab_size_too_small_names_the_smallest_possible():
    with pytest.raises(VocabularyError, match=r"vocab_size 10 is smaller than the \d+ characters"):
        SubwordVocabulary.train(SENTENCES, vocab_size=10)
    with pytest.raises(VocabularyError, match="vocab_size > 4"):
        SubwordVocabulary.train(SENTENCES, vocab_size=4)


def test_no_text_and_an_unknown_algorithm():
    for text in ([], ["", "  "], [">>fr<<"]):
        with pytest.raises(VocabularyError, match="found none"):
            SubwordVocabulary.train(text, vocab_size=10)
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
