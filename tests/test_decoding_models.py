"""The searches on real models, a recurrent one and a Transformer: brute force, invariance, and prefixes."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.decoding import Ensemble, beam_search, ensemble_params, forced_decode, greedy, sample
from attn_jax.models.protocol import BOS_ID, EOS_ID, PAD_ID, Batch, search_variables
from attn_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from attn_jax.models.ssru import SSRUTransformer, SSRUTransformerConfig
from attn_jax.models.transformer import Transformer, TransformerConfig
from attn_jax.nn.attention import ATTENTIONS
from tests.jaxprs import equations

VOCAB, MAX_LEN = 6, 3
WORDS = range(EOS_ID + 1, VOCAB)
WIDE = 9 * 4  # at the last step: 9 prefixes of 2 words, each may end or go on with one of 3
FAMILIES = ("recurrent", "transformer")
ALL = (*FAMILIES, "ensemble")


def make(family):
    """A small model of a family, or a recurrent one with the attention of that name."""
    words = {"src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB}
    blocks = {"d_model": 8, "num_heads": 2, "ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
    if family == "transformer":
        return Transformer(TransformerConfig(**words, **blocks))
    if family == "ssru":
        return SSRUTransformer(SSRUTransformerConfig(**words, **blocks))
    mechanism = {"attention": family, "attention_features": 4} if family in ATTENTIONS else {}
    widths = {"embed_dim": 4, "encoder_hidden": 4, "decoder_hidden": 8 if "dot" in family else 6}
    return Seq2Seq(Seq2SeqConfig(**words, **widths, **mechanism))


def batch_of(sources, src_len):
    src = np.array([[*source, *[PAD_ID] * (src_len - len(source))] for source in sources], np.int32)
    return Batch(src=src, src_mask=src != PAD_ID)


SOURCES = ([3, 4, 5, 4, EOS_ID], [5, 3, EOS_ID], [4, EOS_ID])
BATCH = batch_of(SOURCES, 5)


@cache
def model_and_variables(family):
    """A model with random parameters, large enough for sentences that differ, and not eager to end them."""
    if family == "ensemble":
        models, members = zip(*map(model_and_variables, FAMILIES), strict=True)
        return Ensemble(models), {"params": ensemble_params([variables["params"] for variables in members])}
    model = make(family)
    example = BATCH.replace(tgt=np.full((3, 2), 3), tgt_mask=np.ones((3, 2), bool))
    leaves, treedef = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), example))
    draw = np.random.default_rng(2)
    leaves = [draw.normal(0, 0.7, leaf.shape).astype(np.float32) for leaf in leaves]
    variables = jax.tree.unflatten(treedef, leaves)
    variables["params"]["output_bias"] = np.where(np.arange(VOCAB) == EOS_ID, np.float32(-1.5), np.float32(0))
    return model, variables


@cache
def searcher(family, search, **options):
    """One compiled search: ``(batch, prefix, first, *rest)``."""
    model, variables = model_and_variables(family)
    variables = search_variables(model, variables["params"])
    max_len = options.pop("max_len", MAX_LEN)

    @jax.jit
    def run(batch, prefix, first, *rest):
        state = model.apply(variables, batch, max_len, prefix, method="start")
        step = partial(model.apply, variables, method="step")
        given = {} if first is None else {"first": first}
        return search(step, state, *rest, max_len=max_len, **given, **options)

    return lambda batch, prefix=None, first=None, *rest: jax.device_get(run(batch, prefix, first, *rest))


@cache
def whole_pass(family):
    model, variables = model_and_variables(family)
    return jax.jit(lambda batch: model.apply(variables, batch)[0])


def log_probs_of(family, source, targets):
    """``log p(token)`` at every position of the targets ``[n, time]``, from one teacher-forced pass."""
    if family == "ensemble":
        return np.mean([log_probs_of(member, source, targets) for member in FAMILIES], axis=0)
    batch = batch_of([source] * len(targets), len(source))
    logits = whole_pass(family)(batch.replace(tgt=targets, tgt_mask=targets != PAD_ID))
    return np.asarray(jax.nn.log_softmax(logits))


def every_sequence(family, source):
    """(tokens, log_prob, finished) of all sequences, finished ones first and the likely ones before the others."""
    words = [prefix for length in range(MAX_LEN + 1) for prefix in itertools.product(WORDS, repeat=length)]
    found = [(*prefix, EOS_ID) if len(prefix) < MAX_LEN else prefix for prefix in words]
    padded = np.array([[*tokens, *[PAD_ID] * (MAX_LEN - len(tokens))] for tokens in found], np.int32)
    chosen = np.take_along_axis(log_probs_of(family, source, padded), padded[..., None], -1)[..., 0]
    totals = np.sum(chosen, axis=1, where=padded != PAD_ID)
    outcomes = [(list(t), p, t[-1] == EOS_ID) for t, p in zip(found, totals.tolist(), strict=True)]
    return sorted(outcomes, key=lambda one: (one[2], one[1]), reverse=True)


@pytest.mark.parametrize("family", ALL)
def test_a_wide_beam_is_brute_force(family):
    found = searcher(family, beam_search, beam=WIDE, n_best=20)(BATCH)
    for row, source in enumerate(SOURCES):
        expected = every_sequence(family, source)
        lengths = found.lengths[row]
        assert [found.tokens[row, i, :n].tolist() for i, n in enumerate(lengths)] == [one[0] for one in expected[:20]]
        assert found.finished[row].tolist() == [one[2] for one in expected[:20]]
        np.testing.assert_allclose(found.log_probs[row], [one[1] for one in expected[:20]], atol=1e-4)
    assert len({row.tobytes() for row in found.tokens}) > 1  # the source matters


@pytest.mark.parametrize("family", ALL)
def test_a_beam_of_one_is_greedy(family):
    narrow = searcher(family, beam_search, beam=1, max_len=6)(BATCH)
    plain = searcher(family, greedy, max_len=6)(BATCH)
    np.testing.assert_array_equal(narrow.tokens, plain.tokens)
    assert plain.lengths.max() > 2
    np.testing.assert_allclose(narrow.log_probs, plain.log_probs, atol=1e-5)
    np.testing.assert_allclose(narrow.weights, plain.weights, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_padding_nor_the_other_sentences_change_a_search(family):
    search = searcher(family, beam_search, beam=3, n_best=3, max_len=6, length_penalty=0.6)
    whole = search(BATCH)
    company = search(batch_of([[3, 3, 3, EOS_ID], *SOURCES[::-1]], 8))
    alone = search(batch_of(SOURCES[1:2], 3))
    for row, other, place in ((0, company, 3), (1, company, 2), (2, company, 1), (1, alone, 0)):
        np.testing.assert_array_equal(other.tokens[place], whole.tokens[row])
        for name in ("scores", "log_probs"):
            np.testing.assert_allclose(getattr(other, name)[place], getattr(whole, name)[row], atol=1e-5)
        length = len(SOURCES[row])
        np.testing.assert_allclose(other.weights[place, ..., :length], whole.weights[row, ..., :length], atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ prefixes

FORCED = np.array([[4, 3], [5, 5], [3, 4]], np.int32)  # what every translation must begin with
PREFIX, FIRST = np.stack([np.full(3, BOS_ID), FORCED[:, 0]], axis=1), FORCED[:, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_goes_on_from_a_prefix(family):
    found = searcher(family, greedy, max_len=5)(BATCH, PREFIX, FIRST)
    for row, source in enumerate(SOURCES):
        tokens = found.tokens[row, 0, : found.lengths[row, 0]]
        following = log_probs_of(family, source, np.concatenate([FORCED[row], tokens])[None])[0, 2:]
        following = np.where(np.isin(np.arange(VOCAB), [PAD_ID, BOS_ID]), -np.inf, following)
        assert tokens.tolist() == following.argmax(-1).tolist()
        np.testing.assert_allclose(found.log_probs[row, 0], following.max(-1).sum(), atol=1e-4)


def test_sampling_goes_on_from_a_prefix():
    expected = searcher("recurrent", greedy, max_len=5)(BATCH, PREFIX, FIRST)
    found = searcher("recurrent", sample, max_len=5, top_k=1)(BATCH, PREFIX, FIRST, jax.random.key(0))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beam_goes_on_from_a_prefix(family):
    found = searcher(family, beam_search, max_len=1, beam=4, n_best=4)(BATCH, PREFIX, FIRST)
    for row, source in enumerate(SOURCES):
        following = log_probs_of(family, source, np.append(FORCED[row], EOS_ID)[None])[0, 2, EOS_ID:]
        words = EOS_ID + 1 + np.argsort(-following[1:])
        assert found.tokens[row, :, 0].tolist() == [EOS_ID, *words]  # what is finished comes first
        np.testing.assert_allclose(found.log_probs[row], [following[0], *-np.sort(-following[1:])], atol=1e-5)


@pytest.mark.parametrize("search", [greedy, partial(beam_search, beam=2)])
def test_what_a_wrong_first_token_says(search):
    model, variables = model_and_variables("recurrent")
    state = jax.eval_shape(lambda: model.apply(variables, BATCH, 2, method="start"))
    step = partial(model.apply, variables, method="step")
    for first, message in ((FIRST[:2], r"shape \(2,\) but expected \(3"), (FIRST * 1.0, "type float.* int")):
        with pytest.raises(AssertionError, match=f"(?s){message}"):
            jax.eval_shape(lambda state, first=first: search(step, state, max_len=2, first=jnp.asarray(first)), state)


@pytest.mark.parametrize("family", [*ALL, "ssru"])
def test_attention_is_exact_under_every_rule(family):
    """Of every hypothesis of two diverse groups, and the sums that the members of an ensemble give it."""
    model, variables = model_and_variables(family)
    start = partial(model.apply, variables, method="start")
    step = partial(model.apply, variables, method="step")
    rules = {"beam": 6, "n_best": 4, "groups": 2, "length_penalty": 0.6, "coverage_penalty": 0.3, "max_len": 12,
             "no_repeat_ngram": 2, "min_len": 2, "src_mask": BATCH.src_mask}  # fmt: skip

    @jax.jit
    def run(batch):
        found = beam_search(step, start(batch, 12), prefix=np.array([[4, 3], [5, 0], [0, 0]]), **rules)
        return found, forced_decode(step, start(batch, 12), found.tokens)

    found, forced = jax.device_get(run(BATCH))
    assert (found.lengths >= 2).all() and (found.lengths > 2).any() and found.finished.any()
    assert found.tokens[0, :, :2].tolist() == [[4, 3]] * 4 and found.tokens[1, :, 0].tolist() == [5] * 4
    np.testing.assert_allclose(found.log_probs, forced.log_probs, atol=2e-5)
    np.testing.assert_allclose(found.weights, forced.weights, atol=1e-5)
    np.testing.assert_allclose(found.weights.sum(-1), np.arange(12) < found.lengths[..., None], atol=1e-5)
    for row, source in enumerate(SOURCES):
        following = log_probs_of(family, source, found.tokens[row])
        chosen = np.take_along_axis(following, found.tokens[row][..., None], -1)[..., 0]
        np.testing.assert_allclose(found.log_probs[row], chosen.sum(-1, where=found.tokens[row] != PAD_ID), atol=1e-4)


def test_an_ensemble_looks_where_its_members_look_on_average():
    forced = {}
    for family in ALL:
        model, variables = model_and_variables(family)
        state = model.apply(variables, BATCH, 2, method="start")
        forced[family] = forced_decode(partial(model.apply, variables, method="step"), state, FORCED).weights
    mean = np.mean([forced[family] for family in FAMILIES], axis=0)
    np.testing.assert_allclose(forced["ensemble"], mean, atol=1e-6)


# ------------------------------------------------------------------------------------------------ what a step computes


@pytest.mark.parametrize("family", [*ALL, "ssru", *ATTENTIONS])
def test_the_source_is_never_tiled_and_the_state_moves_by_one_gather(family):
    """In the loop what is as long as the source is an attention map, and each leaf of the state is gathered once.

    The tanh of additive and concat attention is ``[batch, beam, src_len, features]`` by nature, in passing; what is
    stored of the source has no beam there either: the loop reads the memory as ``start`` made it.
    """
    model, variables = model_and_variables(family)
    rows, src_len, beam, max_len = 3, 37, 7, 11  # numbers that no width of the models equals
    batch = Batch(src=np.full((rows, src_len), 3), src_mask=np.ones((rows, src_len), bool))
    state = jax.eval_shape(lambda: model.apply(variables, batch, max_len, method="start"))
    step = partial(model.apply, variables, method="step")
    program = jax.make_jaxpr(lambda state: beam_search(step, state, max_len=max_len, beam=beam))(state)
    (loop,) = (eqn for eqn in equations(program) if eqn.primitive.name == "while")
    inside = list(equations(loop.params["body_jaxpr"]))
    memory = {leaf.shape for leaf in jax.tree.leaves(state.memory)}
    maps = [(rows, beam, src_len), (max_len, rows, beam, src_len)]
    assert {var.aval.shape for var in loop.invars if src_len in var.aval.shape} <= {*memory, *maps}
    if family not in ("additive", "concat"):
        shapes = [out.aval.shape for eqn in inside for out in eqn.outvars]
        assert {shape[-1] for shape in shapes if src_len in shape} == {src_len}
    gathers = [
        (eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape) for eqn in inside if eqn.primitive.name == "gather"
    ]
    gathered = Counter(after for before, after in gathers if before == after)  # the others look embeddings up
    moved = Counter((rows, beam, *leaf.shape[2:]) for leaf in jax.tree.leaves(state.dynamic))
    assert all(gathered[shape] == leaves for shape, leaves in moved.items())
