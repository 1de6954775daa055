"""Marian folders: what becomes of ids, settings and searches, and what is refused. Needs no other library."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attn_jax.convert.errors import ConversionError
from attn_jax.convert.marian import FAMILY, read_marian
from attn_jax.convert.marian_search import search_settings
from attn_jax.data.vocabulary import SPECIAL_TOKENS
from attn_jax.hub import Translator
from attn_jax.models.families import build_model
from attn_jax.models.protocol import IMPOSSIBLE, Batch
from attn_jax.pictures import attention_of
from attn_jax.pretrained import load_marian
from attn_jax.search_config import SearchConfig
from attn_jax.storage.files import IntegrityError
from attn_jax.storage.manifest import write_manifest
from attn_jax.storage.model_folder import ModelFolderError
from attn_jax.verbs.convert import Convert
from tests.marian_folders import write_folder

ONE = {"encoder_layers": 1, "decoder_layers": 1}


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("marian"), **ONE)


@pytest.fixture
def copy(tmp_path):
    return lambda **options: write_folder(tmp_path / "copy", **ONE | options)


def test_ids_and_rows(folder):
    found, theirs = read_marian(folder), load_file(folder / "model.safetensors")
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokens = found.tgt.tokens
    assert tokens[:4] == SPECIAL_TOKENS and sorted(tokens) == sorted([*ids, "<s>"])
    assert [ids[token] for token in tokens[4:]] == sorted(ids[token] for token in tokens[4:])
    embedding, shared = found.params["src_embed"]["embedding"], theirs["model.shared.weight"]
    for i, token in enumerate(tokens):
        np.testing.assert_array_equal(embedding[i], shared[ids["<pad>" if token == "<s>" else token]])
    bias = theirs["final_logits_bias"][0]
    assert found.params["output_bias"][:4].tolist() == [bias[ids["<pad>"]], IMPOSSIBLE, bias[0], bias[1]]


@pytest.mark.parametrize(
    "options", [{}, {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False, "decoder_ffn_dim": 40}]
)
def test_parameters_are_those_of_the_model(copy, options):
    found = read_marian(copy(**options))
    model = build_model(FAMILY, found.settings)
    ids, mask = np.full((1, 3), 5, np.int32), np.ones((1, 3), bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0), Batch(ids, mask, ids, mask))["params"]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found.params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert found.src is not found.tgt  # two cutters, even where the list is one


@pytest.mark.parametrize("of_today", [True, False])
def test_a_file_of_torch_is_the_same(folder, copy, of_today):
    torch = pytest.importorskip("torch", reason="needs torch: pip install torch")
    other = copy()
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    saved = {name: torch.tensor(array) for name, array in tensors.items()}
    torch.save(saved, other / "pytorch_model.bin", _use_new_zipfile_serialization=of_today)
    jax.tree.map(np.testing.assert_array_equal, read_marian(other).params, read_marian(folder).params)


def test_half_precision(copy):
    other = copy()
    tensors = load_file(other / "model.safetensors")
    save_file({name: array.astype(np.float16) for name, array in tensors.items()}, other / "model.safetensors")
    kernel = read_marian(other).params["encoder"]["block_0"]["ffn"]["in_kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, tensors["model.encoder.layers.0.fc1.weight"].astype(np.float16).T)


def lose(tensors):
    del tensors["model.encoder.layers.0.fc1.bias"]
    tensors["model.encoder.layers.0.fc9.bias"] = np.zeros(3, np.float32)


def widen(tensors):
    tensors["model.decoder.layers.0.fc2.weight"] = np.zeros((16, 99), np.float32)


def untie(tensors):
    tensors["lm_head.weight"] = tensors["model.shared.weight"].copy()
    tensors["lm_head.weight"][5, 1] += 0.5


def learn(tensors):
    tensors["model.encoder.embed_positions.weight"] = np.zeros((64, 16), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose, r"missing: model.encoder.layers.0.fc1.bias \[24\]; not expected: model.encoder.layers.0.fc9.bias \[3\]"),
        (widen, r"expected model.decoder.layers.0.fc2.weight \[16, 24\], found \[16, 99\]"),
        (
            untie,
            "lm_head.weight to be a copy of model.shared.weight, found 1 rows that differ, the first 5 by up to 0.5",
        ),
        (learn, "expected sinusoids in model.encoder.embed_positions.weight, found numbers 1 away"),
    ],
)
def test_other_weights(copy, change, message):
    with pytest.raises(ConversionError, match=message):
        read_marian(copy(change=change))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"model_type": "bart"}, "expected model_type 'marian', found 'bart'"),
        ("config.json", {"activation_function": "tanh"}, "expected activation_function of .*, found 'tanh'"),
        ("config.json", {"vocab_size": 5}, "vocab.json: expected 5 tokens as config.json says, found"),
        ("config.json", {"decoder_start_token_id": 999}, "expected decoder_start_token_id below .*, found 999"),
        ("config.json", {"encoder_ffn_dim": 25}, r"fc1.weight \[25, 16\], found \[24, 16\]"),
        ("config.json", {"d_model": "16"}, r"config.json: d_model must be of type int, found '16' of type str"),
        ("config.json", {"encoder_layers": 2.0}, "config.json: encoder_layers must be of type int, found 2.0"),
        ("config.json", {"activation_function": ["relu"]}, "config.json: activation_function must be of type str"),
        ("config.json", {"encoder_layers": 0}, "config.json: encoder_layers must be at least 1, found 0"),
        ("config.json", {"encoder_attention_heads": 3}, "config.json: num_heads must divide d_model"),
        ("config.json", {"dropout": 2}, r"config.json: dropout is the share dropped, in \[0, 1\); found 2.0"),
        ("vocab.json", {"one more": 0}, "expected an object with the ids 0, 1, 2"),
        ("vocab.json", {"<pad>": "9"}, "expected an object with the ids 0, 1, 2"),
        ("generation_config.json", {"decoder_start_token_id": 0}, "expected decoder_start_token_id .* found 0"),
        (
            "generation_config.json",
            {"repetition_penalty": 1.5},
            "asks for what this search cannot do: repetition_penalty",
        ),
        ("generation_config.json", {"bad_words_ids": [[7, 8]]}, "expected bad_words_ids .*, padding alone, found"),
        ("generation_config.json", {"eos_token_id": 3}, "expected eos_token_id 0 as in the vocabulary .*, found 3"),
        ("generation_config.json", {"early_stopping": "soon"}, "expected early_stopping true, false or 'never'"),
        ("generation_config.json", {"num_beams": 0}, "generation_config.json: num_beams must be at least 1, found 0"),
        (
            "generation_config.json",
            {"num_beams": "4"},
            "generation_config.json: num_beams must be of type int, found '4'",
        ),
        ("generation_config.json", {"max_length": 1}, "generation_config.json: max_length must be at least 2, found 1"),
        ("generation_config.json", {"length_penalty": "x"}, "generation_config.json: length_penalty must be of type"),
        ("generation_config.json", {"length_penalty": float("nan")}, "generation_config.json: asks .* a finite number"),
        (
            "generation_config.json",
            {"min_length": 99},
            "generation_config.json: asks .* min_len must be at most max_len",
        ),
        ("generation_config.json", {"penalty_alpha": 0.6, "top_k": 4}, "cannot do: penalty_alpha 0.6"),
    ],
)
def test_other_settings(copy, name, changes, message):
    folder = copy()
    edit(folder, name, **changes)
    with pytest.raises(ConversionError, match=message) as error:
        load_marian(folder)
    assert "\n" not in str(error.value)


def test_generation_settings_of_an_older_folder(copy):
    folder = copy(num_beams=3, max_length=9)
    (folder / "generation_config.json").unlink()
    search = load_marian(folder).search
    assert (search.beam, search.max_len, search.forced_end) == (3, 8, True)
    edit(folder, "config.json", num_beams=0)
    with pytest.raises(ConversionError, match=r"/config.json: num_beams must be at least 1, found 0"):
        load_marian(folder)
    (folder / "generation_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConversionError, match=r"generation_config.json: expected an object, found list"):
        load_marian(folder)


def test_what_was_fetched_is_verified(copy):
    folder = copy()
    write_manifest(folder)
    read_marian(folder)
    edit(folder, "generation_config.json", num_beams=2)
    with pytest.raises(IntegrityError, match=r"generation_config.json: .*; fetch it again, or remove manifest.json if"):
        read_marian(folder)


def test_missing_files(copy, tmp_path):
    with pytest.raises(ConversionError, match=r"missing; expected a folder with config.json"):
        read_marian(tmp_path / "absent")
    for name in ("source.spm", "model.safetensors", "vocab.json", "config.json"):
        folder = copy()
        (folder / name).unlink()
        with pytest.raises((ConversionError, IntegrityError), match=r"missing|neither .* nor"):
            read_marian(folder)


def test_how_to_search():
    def settings(**given):
        return search_settings(given, eos=0, pad=9, start=9, where="generation_config.json")

    usual = {"num_beams": 6, "max_length": 512, "bad_words_ids": [[9]], "forced_eos_token_id": 0, "do_sample": False}
    config = SearchConfig(**settings(**usual))
    assert (config.beam, config.max_len, config.stop, config.forced_end) == (6, 511, "current", True)
    assert (config.length_penalty, config.length_offset, config.renormalize) == (1.0, 0.0, False)
    limits = [settings(**given)["max_len"] for given in ({}, {"max_length": 20}, {"max_new_tokens": 7})]
    assert limits == [20, 19, 7]
    stops = [settings(early_stopping=value)["stop"] for value in (True, False, "never")]
    assert stops == ["full", "current", "safe"]
    assert not settings(forced_eos_token_id=None)["forced_end"] and settings(renormalize_logits=True)["renormalize"]


def test_the_command_and_the_folder(folder, tmp_path, capsys):
    Convert(form="marian", source=folder, out=tmp_path / "model").run()
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    translator, direct = Translator.load(tmp_path / "model"), Translator(*load_marian(folder))
    assert translator.search == direct.search and translator.search.beam == 4
    assert translator.src_vocab == direct.src_vocab and translator.tgt_vocab == direct.tgt_vocab
    (best,) = translator("the cat sat on the mat")
    assert best.attention.shape == (len(best.tokens), len(best.src_tokens)) and best.src_tokens[-1] == "</s>"
    assert best.tokens[-1] == "</s>" and len(best.tokens) <= translator.search.max_len
    example = attention_of(translator, "the cat sat on the mat")
    layers, heads, src_len = 1, 4, len(example.src_tokens)
    assert example.encoder.shape == (layers, heads, src_len, src_len)
    assert len(example.hypotheses) == translator.search.beam
    for hypothesis in example.hypotheses:
        tgt_len = len(hypothesis.tokens)
        assert hypothesis.weights.shape == (layers, heads, tgt_len, src_len)
        assert hypothesis.decoder.shape == (layers, heads, tgt_len, tgt_len)
    with pytest.raises(ValueError, match="unknown language token >>de<<"):
        translator(">>de<< the cat")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["search"] == {
        name: value
        for name, value in dataclasses.asdict(translator.search).items()
        if value != getattr(SearchConfig(), name)
    }


@pytest.mark.parametrize("search", [{"beam": "4"}, {"beam": 0}, {"width": 4}, [4]])
def test_a_folder_that_searches_otherwise(folder, tmp_path, search):
    from attn_jax.storage.model_folder import load_model_folder, save_model_folder

    Translator(*load_marian(folder)).save(tmp_path / "model")
    config, params, path = load_model_folder(tmp_path / "model")
    files = {name: (path / name).read_bytes() for name in ("src.json", "src.model", "tgt.json", "tgt.model")}
    save_model_folder(tmp_path / "other", config | {"search": search}, params, files=files, card="")
    with pytest.raises(ModelFolderError, match="search"):
        Translator.load(tmp_path / "other")
