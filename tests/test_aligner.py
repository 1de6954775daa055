"""Word alignments from attention and for guided training: words and tokens, files, batches, and the loss."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_jax.aligner import align_words, read_links, token_links
from attn_jax.data.batching import BatchConfig, Sequences, build_batches
from attn_jax.data.parallel import ParallelText, ReadReport, read_parallel
from attn_jax.data.subwords import SubwordVocabulary
from attn_jax.data.words import TokenLinks, word_sizes
from attn_jax.decoding.ensemble import Ensemble
from attn_jax.hub import Translator
from attn_jax.metrics import merge_tokens, weights_to_links
from attn_jax.models.families import build_model
from attn_jax.models.posterior import posterior_attention
from attn_jax.models.protocol import EOS_ID, Batch
from attn_jax.training.step import batch_loss
from tests.random_params import random_params
from tests.test_hub import SRC, TGT, make_translator

SOURCES = ["a b c", "", "g", "f e d c b a g f e d c b a", "a zz c", "d d"]
TARGETS = ["A B", "A", "C D E F", "H G F E D C B A H", " ", "B zz"]


def test_words_and_their_tokens():
    pieces = SubwordVocabulary.train(["ein mann", "eine frau", "ein hut"], vocab_size=20)
    sentence = "ein  hutmann frau"
    (sizes,) = word_sizes([sentence], pieces)
    assert [len(pieces.encode(word)) for word in sentence.split()] == sizes.tolist()
    assert sizes.sum() == len(pieces.encode(sentence)) and len(sizes) == 3
    assert [s.tolist() for s in word_sizes(SOURCES[:2], SRC)] == [[1, 1, 1], []]


def test_merging_by_hand():
    weights = [[0.5, 0.25, 0.25, 0], [0.1, 0.2, 0.3, 0.4], [0, 0, 0, 1]]
    # Words of 2, 0 and 1 source tokens, of 2 and 0 target tokens; the last row and column are the end of sentence.
    np.testing.assert_allclose(merge_tokens(weights, [2, 0, 1], [2, 0]), [[0.525, 0, 0.275], [0, 0, 0]])
    assert merge_tokens(weights, [], []).shape == (0, 0)


@pytest.fixture(scope="module")
def translator():
    return make_translator()


def test_links_are_those_of_forced_decoding(translator):
    """Step by step, sentence by sentence; blank sides have none; order and number of lines are kept."""
    links = align_words(translator, SOURCES, TARGETS, weights="attention", batch_tokens=16)
    filled = [i for i in range(len(SOURCES)) if SOURCES[i].strip() and TARGETS[i].strip()]
    assert [bool(pair) for pair in links] == [i in filled for i in range(len(SOURCES))]
    assert len(set(links)) >= 4
    for i in filled:
        (forced,) = translator.score([SOURCES[i]], [TARGETS[i]])
        assert links[i] == weights_to_links(forced.attention[:-1, :-1])
        assert {target for _, target in links[i]} == set(range(len(TARGETS[i].split())))
    (few,) = align_words(translator, SOURCES[:1], TARGETS[:1], weights="attention", method="threshold", threshold=0.34)
    assert len(few) == (translator.score(SOURCES[:1], TARGETS[:1])[0].attention[:-1, :-1] >= 0.34).sum()


def test_the_posterior_is_what_aligns_unless_told_otherwise(translator):
    pair = ["a b c"], ["A B C D"]
    (links,) = align_words(translator, *pair)
    ids = [np.array([[*vocabulary.encode(text), EOS_ID]]) for vocabulary, (text,) in zip((SRC, TGT), pair, strict=True)]
    batch = Batch(ids[0], ids[0] > 0, ids[1], ids[1] > 0)
    weights = posterior_attention(translator.model, translator.params, batch)[0]
    assert links == weights_to_links(weights[:-1, :-1])
    assert links != align_words(translator, *pair, weights="attention")[0]
    with pytest.raises(ValueError, match="weights must be 'posterior' or 'attention', found 'prior'"):
        align_words(translator, *pair, weights="prior")


def test_other_models_align_by_attention():
    blocks = {"d_model": 8, "num_heads": 2, "ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
    model = build_model("transformer", {"src_vocab_size": len(SRC), "tgt_vocab_size": len(TGT)} | blocks)
    ids = np.array([[4, EOS_ID]])
    params = model.init(jax.random.key(0), Batch(ids, ids > 0, ids, ids > 0))["params"]
    transformer = Translator(model, params, SRC, TGT)
    by_default, by_attention = (align_words(transformer, ["a b"], ["A B"], weights=w) for w in (None, "attention"))
    assert by_default == by_attention
    with pytest.raises(ValueError, match="posterior is that of recurrent encoder-decoders"):
        align_words(transformer, ["a b"], ["A B"], weights="posterior")


def test_what_cannot_be_aligned(translator, monkeypatch):
    monkeypatch.setattr("attn_jax.hub.MAX_SRC_LEN", 3)
    assert align_words(translator, ["a b", "a b c"], ["A", "A"])[1] == frozenset()
    with monkeypatch.context() as patch:  # a word that alone is two tokens more than within its sentence
        patch.setattr("attn_jax.aligner.word_sizes", lambda texts, _: [np.array([3, 1]) for _ in texts])
        assert align_words(translator, ["a b"], ["A B"]) == [frozenset()]
    with pytest.raises(ValueError, match="an ensemble cannot align; align with one of its models"):
        align_words(SimpleNamespace(model=Ensemble((translator.model, translator.model))), ["a"], ["A"])
    with pytest.raises(ValueError, match="found 1 and 2 sentences"):
        align_words(translator, ["a"], ["A", "B"])
    with pytest.raises(ValueError, match="trained without attention"):
        align_words(make_translator(attention=None, input_feeding=False), ["a"], ["A"])


# ------------------------------------------------------------------------------------------------------ links of a file


def test_read_links_follows_the_lines_that_were_kept(tmp_path):
    for name, text in (("a.en", "a b\n\nc d e\n"), ("a.fr", "A\nB\nC D\n"), ("a.align", "0-0 1?0\n0-0\n2-1 0-0\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    text = read_parallel(tmp_path / "a.en", tmp_path / "a.fr")
    linked = read_links(tmp_path / "a.align", text)
    assert linked.links == [{(0, 0)}, {(2, 1), (0, 0)}] and linked.src == text.src
    assert [file.lines for file in linked.report.files] == [3, 3, 3]
    (tmp_path / "a.align").write_text("0-0\n0-0\n2-2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.align:3: a link points behind the end of a pair of 3 and 2 words"):
        read_links(tmp_path / "a.align", text)
    for line, found in (("0-0 " * 3000, "too long"), ("0-0\0", "with NUL characters")):
        (tmp_path / "a.align").write_text(f"0-0\n{line}\n0-0\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f"a.align:2: expected links such as 3-4, found a line {found}"):
            read_links(tmp_path / "a.align", text)
    (tmp_path / "a.align").write_text("0-0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.align has 1 lines and .*a.en 3; they must correspond"):
        read_links(tmp_path / "a.align", text)


def test_token_links():
    pieces = SubwordVocabulary.train(["ein mann", "eine frau", "ein hut"], vocab_size=20)
    text = ParallelText(
        ("hut ein", "a"), ("A B", "A"), ReadReport(files=(), kept=2, skipped={}), links=[{(1, 0)}, {(0, 0)}]
    )
    sides = Sequences.from_texts(text.src, pieces), Sequences.from_texts(text.tgt, TGT)
    found = token_links(text, (pieces, TGT), sides)
    first, last = len(pieces.encode("hut")), len(pieces.encode("hut ein"))
    assert found.flat[: found.offsets[1]].tolist() == [[0, s] for s in range(first, last)]
    with pytest.raises(ValueError, match="needs the word alignments of the training text"):
        token_links(ParallelText(text.src, text.tgt, text.report), (pieces, TGT), sides)
    odd = Sequences.from_ids([[5], [5, 6, 7]])  # tokens that are not those of the words: no links
    assert token_links(text, (pieces, TGT), (odd, sides[1])).counts.tolist() == [0, 0]


LINKED = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32)), min_size=1, max_size=40
)  # words of both sides, and a seed for their links


@settings(max_examples=30)
@given(LINKED, st.integers(0, 2))
def test_every_link_is_in_the_batch_of_its_pair(pairs, epoch):
    """Nothing is lost, whatever the epoch; the shape of a bucket's links is fixed."""
    links = []
    for src, tgt, seed in pairs:
        chosen = np.random.default_rng(seed).random((src, tgt)) < 0.4
        links.append({(int(i), int(j)) for i, j in np.argwhere(chosen)})
    sizes = [[np.ones(pair[side], int) for pair in pairs] for side in (0, 1)]
    sides = [Sequences.from_ids([i + 10] * pair[side] for i, pair in enumerate(pairs)) for side in (0, 1)]
    config = BatchConfig(batch_tokens=80, num_buckets=3, row_multiple=2)
    batches = build_batches(*sides, config, TokenLinks.from_words(links, *sizes))
    shapes, found = {}, {i: set() for i in range(len(pairs))}
    for entry in batches.epoch_plan(1, epoch):
        batch = batches.make_batch(entry)
        assert shapes.setdefault(entry.bucket, batch.links.shape) == batch.links.shape
        for row, target, source in batch.links.tolist():
            if row < len(entry.rows):
                assert batch.tgt_mask[row, target] and batch.src_mask[row, source]
                found[int(batch.src[row, 0]) - 10].add((source, target))
    assert [found[i] for i in range(len(pairs))] == links
    assert build_batches(*sides, config).batch_at(1, 0).links is None


def test_the_capacity_holds_the_worst_batch():
    """Eight of sixty-four pairs have sixteen links each; they may meet in one batch of eight."""
    every = {(i, j) for i in range(4) for j in range(4)}
    sizes = [np.ones(4, int)] * 64
    sequences = Sequences.from_ids([[9] * 4] * 64)
    links = TokenLinks.from_words([every if pair % 8 == 0 else () for pair in range(64)], sizes, sizes)
    (bucket,) = build_batches(sequences, sequences, BatchConfig(batch_tokens=80, num_buckets=1), links).buckets
    assert (bucket.batch_size, bucket.links) == (8, 128)
    assert links.padded(np.arange(0, 64, 8), 128)[-1].tolist() == [7, 3, 3]


# ------------------------------------------------------------------------------------------------------------- the loss


LINKS = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 2], [1, 1, 1], [2, 0, 0]], np.int32)  # the last one fills up


def make_problem(family, **options):
    model = build_model(family, {"src_vocab_size": 9, "tgt_vocab_size": 9} | options)
    rng = np.random.default_rng(0)
    src, tgt = (rng.integers(4, 9, (2, length)).astype(np.int32) for length in (3, 2))
    batch = Batch(src, np.ones((2, 3), bool), tgt, np.ones((2, 2), bool), np.arange(4, dtype=np.int32), LINKS)
    return model, batch, random_params(model, batch)


RECURRENT = {"embed_dim": 4, "encoder_hidden": 3, "decoder_hidden": 4}
TRANSFORMER = {"d_model": 8, "num_heads": 2, "ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 2}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("recurrent", RECURRENT | {"attention": "additive"}),
        ("recurrent", RECURRENT | {"attention": "multihead", "attention_options": {"num_heads": 2}}),
        ("transformer", TRANSFORMER),
        ("transformer", TRANSFORMER | {"alignment_layer": 0}),
    ],
    ids=["recurrent", "heads", "transformer", "one block"],
)
def test_guided_loss(x64, family, options):
    """The cross-entropy of the reported attention by hand, and its gradient by finite differences."""
    model, batch, params = make_problem(family, **options)
    params = jax.tree.map(lambda p: 2 * p.astype(jnp.float64), params)

    @jax.jit
    def run(params):
        weights = model.apply({"params": params}, batch, method="features")[1]
        return weights, *(batch_loss(model, params, batch, guided=g) for g in (None, 0.7))

    weights, plain, guided = run(params)
    w = np.asarray(weights if weights.ndim == 3 else weights.mean(1))
    expected = -(np.log(w[0, 0, 1]) + (np.log(w[0, 1, 0]) + np.log(w[0, 1, 2])) / 2 + np.log(w[1, 1, 1])) / 3
    np.testing.assert_allclose(guided.loss - plain.loss, 0.7 * expected * 4, rtol=1e-9)  # 4 target tokens
    assert guided.nll == plain.nll and guided.count == plain.count == 4

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    direction, step = np.random.default_rng(1).normal(size=flat.shape), 1e-6
    losses = [run(unravel(flat + t * direction))[2].loss for t in (-step, step)]
    slope = jax.jit(jax.grad(lambda t: batch_loss(model, unravel(flat + t * direction), batch, guided=0.7).loss))(0.0)
    np.testing.assert_allclose(slope, (losses[1] - losses[0]) / (2 * step), rtol=1e-5)


def test_links_alone_change_nothing():
    """Without a weight the computation is that of a batch without links, operation by operation."""
    model, batch, params = make_problem("recurrent", **RECURRENT)
    trace = lambda batch: str(jax.make_jaxpr(lambda p: batch_loss(model, p, batch))(params))  # noqa: E731
    assert trace(batch) == trace(batch.replace(links=None))


def test_what_cannot_be_guided():
    model, batch, params = make_problem("recurrent", **RECURRENT)
    with pytest.raises(ValueError, match="needs a model with attention and batches with links"):
        batch_loss(model, params, batch.replace(links=None), guided=0.5)
    model, batch, params = make_problem("recurrent", **RECURRENT, attention=None, input_feeding=False)
    with pytest.raises(ValueError, match="needs a model with attention and batches with links"):
        jax.eval_shape(lambda params: batch_loss(model, params, batch, guided=0.5), params)
