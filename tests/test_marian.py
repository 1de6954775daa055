"""Marian models against transformers: numbers, every attention, ids of every search, text."""

from __future__ import annotations

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attn_jax.decoding.search import search, split
from attn_jax.hub import Translator
from attn_jax.models.protocol import PAD_ID, Batch
from attn_jax.pretrained import load_marian
from attn_jax.search_config import SearchConfig
from tests.marian_folders import random_sources, write_folder

torch = pytest.importorskip("torch", reason="needs torch: pip install torch")
transformers = pytest.importorskip("transformers", reason='needs transformers: pip install ".[parity]"')

SENTENCES, LONGEST = 100, 20


def shrink(tensors):
    """Leaves so little of what goes into the encoder's second norms that their epsilon counts."""
    for name in tensors:
        if name.startswith("model.encoder") and ("self_attn_layer_norm" in name or "fc2" in name):
            tensors[name] *= 1e-3


SPACE = {
    "opus-mt": {},
    "one layer, gelu, unscaled": {
        "encoder_layers": 1, "decoder_layers": 1, "activation_function": "gelu", "scale_embedding": False
    },
    "separate, relu": {
        "share_encoder_decoder_embeddings": False, "activation_function": "relu", "encoder_layers": 1,
    },
    "untied, separate, other decoder": {
        "share_encoder_decoder_embeddings": False, "tie_word_embeddings": False, "decoder_layers": 1,
        "decoder_attention_heads": 2, "decoder_ffn_dim": 40, "encoder_attention_heads": 8, "scale_embedding": False,
    },
    "little into a norm": {"encoder_layers": 1, "decoder_layers": 1, "change": shrink},
}  # fmt: skip
names = pytest.mark.parametrize("name", SPACE)


def read(folder):
    return transformers.MarianMTModel.from_pretrained(folder, attn_implementation="eager").eval()


def balance(folder, share=0.25):
    """Makes the end of a sentence the most likely token at that share of the steps of long greedy translations."""
    model, tensors = read(folder), load_file(folder / "model.safetensors")
    sources = torch.tensor(np.random.default_rng(5).integers(1, 40, (40, 8)))
    with torch.no_grad():
        settings = {"num_beams": 1, "min_length": 24, "max_length": 24, "return_dict_in_generate": True}
        steps = model.generate(input_ids=sources, output_logits=True, **settings).logits[:-1]
    logits = torch.cat(steps)
    behind = logits[:, 1:-1].max(-1).values - logits[:, 0]  # without padding, the last one
    tensors["final_logits_bias"][0, 0] += np.quantile(behind.numpy(), share)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Pair:
    """A folder as both libraries read it, and random sentences."""

    def __init__(self, folder):
        self.folder = folder
        self.theirs = read(folder)
        self.ours = Translator(*load_marian(folder))
        tgt_vocab = folder / "target_vocab.json"
        self.src_ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        self.tgt_ids = json.loads(tgt_vocab.read_text(encoding="utf-8")) if tgt_vocab.exists() else self.src_ids
        self.sources = random_sources(self.src_ids, np.random.default_rng(1), SENTENCES, LONGEST)

    def our_id(self, side):
        """Our id of each of theirs."""
        ids = getattr(self, f"{side}_ids")
        of_token = {token: i for i, token in enumerate(getattr(self.ours, f"{side}_vocab").tokens)}
        return np.array([of_token[token] for token in sorted(ids, key=ids.get)])

    @property
    def inputs(self):
        """The sources padded: their ids and mask as tensors, and our batch."""
        length = LONGEST + 1
        ids = np.full((SENTENCES, length), self.src_ids["<pad>"])
        mask = np.zeros(ids.shape, bool)
        for row, sentence in enumerate(self.sources):
            ids[row, : len(sentence) + 1], mask[row, : len(sentence) + 1] = [*sentence, 0], True
        src = np.where(mask, self.our_id("src")[ids], PAD_ID).astype(np.int32)
        return torch.tensor(ids), torch.tensor(mask.astype(np.int64)), Batch(src=src, src_mask=mask)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return cache(lambda name: Pair(balance(write_folder(tmp_path_factory.mktemp("marian") / "model", **SPACE[name]))))


def errors(pair):
    """The largest differences of encoder, logits and every attention, in forced decoding of random targets."""
    ids, mask, batch = pair.inputs
    targets = random_sources(pair.tgt_ids, np.random.default_rng(2), SENTENCES, LONGEST - 1)
    tgt = np.full((SENTENCES, LONGEST), pair.tgt_ids["<pad>"])
    for row, sentence in enumerate(targets):
        tgt[row, : len(sentence) + 1] = [*sentence, 0]
    tgt_mask = np.arange(LONGEST) < np.array([len(sentence) + 1 for sentence in targets])[:, None]
    start = np.full((SENTENCES, 1), pair.theirs.config.decoder_start_token_id)
    with torch.no_grad():
        theirs = pair.theirs(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=torch.tensor(np.concatenate([start, tgt[:, :-1]], 1)),
            output_attentions=True,
        )
    our_tgt = np.where(tgt_mask, pair.our_id("tgt")[tgt], PAD_ID).astype(np.int32)
    batch = batch.replace(tgt=our_tgt, tgt_mask=tgt_mask)

    @jax.jit
    def run(params, batch):
        variables = {"params": params}
        logits, _ = pair.ours.model.apply(variables, batch)
        encoded, _ = pair.ours.model.apply(variables, batch, method="encode")
        return encoded, logits, pair.ours.model.apply(variables, batch, method="attention_maps")

    encoded, logits, maps = jax.device_get(run(pair.ours.params, batch))
    real = {"encoder": batch.src_mask, "decoder": tgt_mask, "cross": tgt_mask}
    found = {
        "encoder": np.abs(encoded - theirs.encoder_last_hidden_state.numpy())[batch.src_mask].max(),
        "logits": np.abs(logits[..., pair.our_id("tgt")] - theirs.logits.numpy())[tgt_mask].max(),
    }
    for kind, mask in real.items():
        expected = np.stack([layer.numpy() for layer in getattr(theirs, f"{kind}_attentions")], 1)
        rows = np.broadcast_to(mask[:, None, None, :], expected.shape[:-1])  # those of padding are 0 here alone
        found[f"{kind} attention"] = np.abs(maps[kind] - expected)[rows].max()
    return found


@names
def test_numbers(pair, name):
    found = errors(pair(name))
    print(name, found)
    assert max(found.values()) <= 1e-4, found


@partial(jax.jit, static_argnames=("model", "config", "max_len"))
def searched(model, params, batch, numbers, *, config, max_len):
    state = model.apply({"params": params}, batch, max_len, method="start")
    step = partial(model.apply, {"params": params}, method="step")
    ids = jnp.arange(batch.src.shape[0])
    return search(config, numbers, step, state, max_len=max_len, sentence_ids=ids, src_mask=batch.src_mask)


def identical(pair, **generation):
    """How many of the sentences have the same ids in both libraries, and the lengths there were."""
    ids, mask, batch = pair.inputs
    settings = {"num_beams": 4, "max_length": 24} | generation
    with torch.no_grad():
        theirs = pair.theirs.generate(input_ids=ids, attention_mask=mask, **settings).numpy()[:, 1:]
    (pair.folder / "generation_config.json").write_text(
        json.dumps(pair.theirs.generation_config.to_dict() | settings), encoding="utf-8"
    )
    config = load_marian(pair.folder).search
    compiled, numbers = split(config)
    found = searched(pair.ours.model, pair.ours.params, batch, numbers, config=compiled, max_len=config.max_len)
    tokens, lengths = jax.device_get((found.tokens[:, 0], found.lengths[:, 0]))
    our_id = pair.our_id("tgt")
    same = 0
    for row, expected in enumerate(theirs.tolist()):
        expected_ids = our_id[expected[: expected.index(0) + 1]]
        same += tokens[row, : lengths[row]].tolist() == expected_ids.tolist()
    return same, lengths


@names
@pytest.mark.parametrize("beams", [1, 4, 6])
def test_ids(pair, name, beams):
    same, lengths = identical(pair(name), num_beams=beams)
    print(name, beams, f"{same}/{SENTENCES}", "lengths", np.bincount(lengths))
    assert same == SENTENCES
    assert len(set(lengths.tolist())) > 1  # some end before their limit


OTHER_SEARCHES = {
    "first": {"early_stopping": True},
    "never": {"early_stopping": "never", "length_penalty": 0.6},
    "short": {"length_penalty": -1.0, "early_stopping": "never"},
    "long": {"length_penalty": 2.0, "max_length": 9},
    "renormalised": {"renormalize_logits": True, "no_repeat_ngram_size": 2, "min_length": 6, "num_beams": 6},
}


@pytest.mark.parametrize("options", OTHER_SEARCHES.values(), ids=OTHER_SEARCHES.keys())
def test_ids_of_other_searches(pair, options):
    same, lengths = identical(pair("opus-mt"), **options)
    print(options, f"{same}/{SENTENCES}", "lengths", np.bincount(lengths))
    assert same == SENTENCES


TEXTS = [
    "the cat sat on the mat", ">>fr<< a man is here", "two  dogs\u00a0run \u2026", "xyz 123 @@", "a",
    "where is the book in the street ?", "\u201cno,\u201d he said", "the children play . it is cold",
]  # fmt: skip


@pytest.mark.parametrize("name", ["opus-mt", "separate, relu"])
def test_text(pair, name, tmp_path):
    """Pieces and translations of text, by a folder that was converted, saved and loaded."""
    pair = pair(name)
    pair.ours.save(tmp_path / "model")
    ours = Translator.load(tmp_path / "model")
    assert ours.search == pair.ours.search != SearchConfig()
    tokenizer = transformers.MarianTokenizer.from_pretrained(pair.folder)
    texts = [text for text in TEXTS if name == "opus-mt" or not text.startswith(">>")]
    sides = [(ours.src_vocab, pair.src_ids, tokenizer(texts)["input_ids"])]
    sides.append((ours.tgt_vocab, pair.tgt_ids, tokenizer(text_target=texts)["input_ids"]))
    for vocabulary, ids, theirs in sides:
        token_of = {number: token for token, number in ids.items()}
        expected = [[token_of[number] for number in numbers] for numbers in theirs]
        assert [[*vocabulary.pieces(found), "</s>"] for found in vocabulary.encode_batch(texts)] == expected
    with torch.no_grad():
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        theirs = pair.theirs.generate(**batch, num_beams=4, max_length=24).tolist()
    found = [best[0].text for best in ours(texts)]
    ids = [row[1 : row.index(0)] for row in theirs]  # their tokenizer does not know the target's padding
    assert found == tokenizer.batch_decode(ids, skip_special_tokens=True)
