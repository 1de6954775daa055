"""The Transformer encoder-decoder: one model for training, decoding and pictures, with the same numbers."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax.decoding.beam import beam_search
from attn_jax.decoding.forced import forced_decode
from attn_jax.models.protocol import BOS_ID, EOS_ID, Batch
from attn_jax.models.transformer import Transformer, TransformerConfig
from tests.jaxprs import assert_products_accumulate_in_float32

SIZES = {"d_model": 8, "num_heads": 2, "ffn_dim": 12, "encoder_layers": 1, "decoder_layers": 1}
DEEP = {"encoder_layers": 2, "decoder_layers": 2}
SRC_VOCAB, TGT_VOCAB = 11, 9


def make(**options):
    vocabularies = {"src_vocab_size": SRC_VOCAB, "tgt_vocab_size": TGT_VOCAB}
    return Transformer(TransformerConfig(**(SIZES | vocabularies | options)))


def make_batch(src_len=5, tgt_len=4):
    """Three pairs of lengths (5, 2), (3, 4) and (2, 3), padded further on request."""
    src = [[4, 7, 5, 9, EOS_ID], [8, 6, EOS_ID], [10, EOS_ID]]
    tgt = [[5, EOS_ID], [4, 8, 6, EOS_ID], [7, 7, EOS_ID]]
    pad = lambda rows, length: np.array([row + [0] * (length - len(row)) for row in rows], np.int32)  # noqa: E731
    src, tgt = pad(src, src_len), pad(tgt, tgt_len)
    return Batch(src=src, src_mask=src != 0, tgt=tgt, tgt_mask=tgt != 0)


def row_of(batch, row):
    """One pair alone, without padding."""
    src, tgt = batch.src[row, batch.src_mask[row]][None], batch.tgt[row, batch.tgt_mask[row]][None]
    return Batch(src=src, src_mask=src != 0, tgt=tgt, tgt_mask=tgt != 0)


def random_variables(model):
    """Random parameters, biases and norms included, in the precision of the test."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    leaves, treedef = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), make_batch()))
    draw = np.random.default_rng(0)
    return jax.tree.unflatten(treedef, [draw.normal(size=leaf.shape).astype(dtype) * 0.4 for leaf in leaves])


@partial(jax.jit, static_argnums=0)
def jitted(static, variables, args, rng):
    model, method, static = static
    rngs = None if rng is None else {"dropout": rng}
    options = {} if rng is None else {"deterministic": False}
    return model.apply(variables, *args, *static, method=method, rngs=rngs, **options)


def apply(model, variables, *args, method=None, static=(), rng=None):
    return jax.device_get(jitted((model, method, static), variables, args, rng))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# -------------------------------------------------------------------------------------------------------------- config


def test_config_round_trips_through_json():
    config = TransformerConfig(src_vocab_size=5, tgt_vocab_size=5, share_embeddings=True, activation="gelu")
    assert TransformerConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide d_model: 8 units cannot be shared by 3 heads"),
        ({"d_model": 5, "num_heads": 1}, "d_model must be even.*found 5"),
        ({"ffn_dim": 0}, "ffn_dim must be at least 1, found 0"),
        ({"dropout": 1.0}, r"dropout is the share dropped, in \[0, 1\); found 1.0"),
        ({"activation": "tanh"}, "activation must be one of gelu, gelu_exact, relu, swish; found 'tanh'"),
        ({"precision": "int8"}, "precision must be one of bfloat16, float32; found 'int8'"),
        ({"alignment_layer": 2}, "alignment_layer must be None or name one of 1 decoder blocks, found 2"),
        ({"share_embeddings": True}, "share_embeddings needs one vocabulary for both sides, found 11 and 9 words"),
    ],
)
def test_what_a_wrong_config_says(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "embeddings"),
    [
        ({"tie_embeddings": False}, SRC_VOCAB * 8 + TGT_VOCAB * 8 + 8 * TGT_VOCAB),
        ({"tie_embeddings": True}, SRC_VOCAB * 8 + TGT_VOCAB * 8),
        ({"tie_embeddings": True, "share_embeddings": True, "src_vocab_size": TGT_VOCAB}, TGT_VOCAB * 8),
    ],
)
@pytest.mark.parametrize("norm_first", [False, True])
def test_parameter_counts(options, embeddings, norm_first):
    model = make(norm_first=norm_first, **DEEP, **options)
    attention, feed_forward, norm = 4 * (8 * 8 + 8), 8 * 12 + 12 + 12 * 8 + 8, 2 * 8
    blocks = 2 * (attention + feed_forward + 2 * norm) + 2 * (2 * attention + feed_forward + 3 * norm)
    last_norms = 2 * norm if norm_first else 0
    created = jax.eval_shape(model.init, jax.random.key(0), make_batch())
    assert count(created) == embeddings + TGT_VOCAB + blocks + last_norms


def test_embeddings_and_first_logits_have_unit_scale(rng):
    model = make(d_model=64, src_vocab_size=500, tgt_vocab_size=500)
    variables = jax.jit(model.init)(rng, make_batch())
    embedding = variables["params"]["src_embed"]["embedding"]
    np.testing.assert_allclose(np.std(embedding) * 8, 1, atol=0.02)
    logits, _ = apply(model, variables, make_batch())
    assert 0.3 < np.std(logits) < 3


# ------------------------------------------------------------------------------------------------------ teacher-forced


def test_shapes():
    model, batch = make(), make_batch()
    logits, weights = jax.eval_shape(model.init_with_output, jax.random.key(0), batch)[0]
    assert (logits.shape, weights.shape) == ((3, 4, TGT_VOCAB), (3, 4, 5))


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False}])
def test_logits_are_the_projected_features(options):
    model, batch = make(**options), make_batch()
    variables = random_variables(model)
    features, weights = apply(model, variables, batch, method="features")
    kernel, bias, vocab_first = model.apply(variables, method="output_weights")
    assert vocab_first == (not options)
    logits, same = apply(model, variables, batch)
    np.testing.assert_allclose(logits, features @ (kernel.T if vocab_first else kernel) + bias, atol=1e-5)
    np.testing.assert_array_equal(weights, same)
    np.testing.assert_allclose(weights.sum(-1)[batch.tgt_mask], 1, rtol=1e-6)


@pytest.mark.parametrize("norm_first", [False, True])
def test_padding_and_the_rest_of_the_batch_never_matter(x64, norm_first):
    model = make(norm_first=norm_first)
    variables, batch = random_variables(model), make_batch()

    @jax.jit
    def run(batch):
        def loss(variables):
            logits, weights = model.apply(variables, batch)
            return jnp.sum(jnp.sin(logits), where=batch.tgt_mask[..., None]), (logits, weights)

        return jax.grad(loss, has_aux=True)(variables)

    grads, (logits, weights) = jax.device_get(run(batch))
    longer_grads, (longer, _) = jax.device_get(run(make_batch(src_len=7, tgt_len=6)))
    np.testing.assert_allclose(longer[:, :4][batch.tgt_mask], logits[batch.tgt_mask], atol=1e-12)
    for found, expected in zip(jax.tree.leaves(longer_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-11)
    for row in (1, 2):
        alone, looked = apply(model, variables, row_of(batch, row))
        np.testing.assert_allclose(logits[row, : alone.shape[1]], alone[0], atol=1e-12)
        np.testing.assert_allclose(weights[row, : alone.shape[1], : looked.shape[2]], looked[0], atol=1e-12)


def test_ids_in_the_padding_never_matter():
    model, batch = make(), make_batch()
    variables = random_variables(model)
    garbage = batch.replace(src=np.where(batch.src_mask, batch.src, 3), tgt=np.where(batch.tgt_mask, batch.tgt, 3))
    for found, expected in zip(apply(model, variables, garbage), apply(model, variables, batch), strict=True):
        np.testing.assert_array_equal(found[batch.tgt_mask], expected[batch.tgt_mask])


def test_a_token_is_predicted_from_those_before_it(x64):
    model, batch = make(), make_batch()
    variables = random_variables(model)
    logits, _ = apply(model, variables, batch)
    for position in range(3):
        changed = batch.tgt.copy()
        changed[:, position] = 3
        other, _ = apply(model, variables, batch.replace(tgt=changed))
        np.testing.assert_array_equal(other[:, : position + 1], logits[:, : position + 1])
        assert np.abs(other[1, position + 1] - logits[1, position + 1]).max() > 1e-3


def test_word_order_matters_on_both_sides(x64):
    model, batch = make(), row_of(make_batch(), 1)
    variables = random_variables(model)
    logits, _ = apply(model, variables, batch)
    assert np.abs(apply(model, variables, batch.replace(src=batch.src[:, [1, 0, 2]]))[0] - logits).max() > 1e-3
    swapped = apply(model, variables, batch.replace(tgt=batch.tgt[:, [1, 0, 2, 3]]))[0]
    assert np.abs(swapped[:, 2:] - logits[:, 2:]).max() > 1e-3


def test_a_teacher_forcing_probability_is_refused():
    model, batch = make(), make_batch()
    with pytest.raises(ValueError, match="no teacher-forcing probability; use the constant schedule 1"):
        jax.eval_shape(partial(model.init, teacher_forcing=0.5), jax.random.key(0), batch)


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"dropout": 0.0, "attention_dropout": 0.3}])
def test_dropout_draws_from_its_stream_and_can_be_turned_off(options):
    batch, plain, model = make_batch(), make(dropout=0.0), make(**options)
    variables = random_variables(plain)
    first, second = (apply(model, variables, batch, rng=jax.random.key(seed))[0] for seed in (1, 2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(apply(model, variables, batch)[0], apply(plain, variables, batch)[0])


# ----------------------------------------------------------------------------------------------------------- attention


def test_attention_maps_of_every_layer_and_head():
    model, batch = make(**DEEP), make_batch()
    variables = random_variables(model)
    maps = apply(model, variables, batch, method="attention_maps")
    shapes = {"encoder": (3, 2, 2, 5, 5), "decoder": (3, 2, 2, 4, 4), "cross": (3, 2, 2, 4, 5)}
    assert {name: value.shape for name, value in maps.items()} == shapes
    rows = {"encoder": batch.src_mask, "decoder": batch.tgt_mask, "cross": batch.tgt_mask}
    columns = {"encoder": batch.src_mask, "decoder": batch.tgt_mask, "cross": batch.src_mask}
    for name, value in maps.items():
        real = rows[name][:, None, None, :]
        np.testing.assert_allclose(value.sum(-1), np.broadcast_to(real, value.shape[:-1]), atol=1e-6)
        assert not value[~np.broadcast_to(columns[name][:, None, None, None], value.shape)].any()
    assert not np.triu(maps["decoder"], 1).any()
    assert np.abs(maps["cross"][:, 0] - maps["cross"][:, 1]).max() > 1e-3
    assert np.abs(maps["cross"][:, :, 0] - maps["cross"][:, :, 1]).max() > 1e-3


@pytest.mark.parametrize("layer", [None, -1, 0])
def test_the_reported_map_is_the_mean_over_heads_and_layers(layer):
    model, batch = make(alignment_layer=layer, **DEEP), make_batch()
    variables = random_variables(model)
    maps = apply(model, variables, batch, method="attention_maps")
    _, weights = apply(model, variables, batch)
    expected = maps["cross"].mean((1, 2)) if layer is None else maps["cross"][:, layer].mean(1)
    np.testing.assert_allclose(weights[batch.tgt_mask], expected[batch.tgt_mask], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ decoding


def steps(model, variables, batch, fed, state):
    """Feeds ``[batch, beam, time]`` tokens; gives logits and weights ``[batch, beam, time, ...]`` and the state."""
    logits, weights = [], []
    for t in range(fed.shape[2]):
        out = apply(model, variables, fed[:, :, t], state, method="step")
        logits.append(out.logits)
        weights.append(out.weights)
        state = out.state
    return np.stack(logits, 2), np.stack(weights, 2), state


@pytest.mark.parametrize(
    ("norm_first", "dtype", "tolerance"),
    [(False, "float32", 1e-5), (False, "float64", 1e-10), (True, "float64", 1e-10)],
)
def test_steps_equal_the_teacher_forced_pass(norm_first, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        model, batch = make(norm_first=norm_first, **DEEP), make_batch()
        variables = random_variables(model)
        logits, weights = apply(model, variables, batch)
        fed = np.concatenate([np.full((3, 1), BOS_ID), batch.tgt[:, :-1]], axis=1)[:, None]
        state = apply(model, variables, batch, method="start", static=(6,))
        found, looked, _ = steps(model, variables, batch, fed, state)
        assert found.dtype == dtype
        np.testing.assert_allclose(found[:, 0][batch.tgt_mask], logits[batch.tgt_mask], atol=tolerance)
        np.testing.assert_allclose(looked[:, 0][batch.tgt_mask], weights[batch.tgt_mask], atol=tolerance)


def test_the_state_keeps_the_protocol():
    model, batch = make(), make_batch()
    state = apply(model, random_variables(model), batch, method="start", static=(6,))
    assert all(leaf.shape[:2] == (3, 1) for leaf in jax.tree.leaves(state.dynamic))
    assert all(leaf.shape[0] == 3 and 5 in leaf.shape for leaf in jax.tree.leaves(state.memory))
    assert {leaf.shape for leaf in jax.tree.leaves(state.memory)} == {(3, 5, 2, 4), (3, 1, 5)}
    wide = state.replace(dynamic=jax.tree.map(lambda leaf: np.repeat(leaf, 4, axis=1), state.dynamic))
    out = jax.eval_shape(
        lambda s: model.apply(random_variables(model), np.full((3, 4), BOS_ID), s, method="step"), wide
    )
    assert (out.logits.shape, out.weights.shape) == ((3, 4, TGT_VOCAB), (3, 4, 5))
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, out.state, wide)
    assert all(jax.tree.leaves(same))  # so a search can loop over it


def test_a_prefix_is_as_if_it_had_been_fed(x64):
    model, batch = make(), make_batch()
    variables = random_variables(model)
    prefix, fed = np.array([[1, 4], [1, 5], [1, 6]]), np.array([[[5, 7]], [[3, 3]], [[8, 4]]])
    whole = apply(model, variables, batch, method="start", static=(4,))
    expected, _, _ = steps(model, variables, batch, np.concatenate([prefix[:, None], fed], axis=2), whole)
    state = jax.device_get(jax.jit(lambda p: model.apply(variables, batch, 2, p, method="start"))(prefix))
    found, _, last = steps(model, variables, batch, fed, state)
    np.testing.assert_allclose(found, expected[:, :, 2:], atol=1e-12)
    np.testing.assert_array_equal(last.dynamic.position, 4)


def test_beam_search_scores_equal_forced_decoding():
    model, batch = make(), make_batch()
    variables = random_variables(model)

    @jax.jit
    def search():
        step = lambda tokens, state: model.apply(variables, tokens, state, method="step")  # noqa: E731
        start = model.apply(variables, batch, 5, method="start")
        found = beam_search(step, start, max_len=5, beam=3)
        return found, forced_decode(step, start, found.tokens)

    found, forced = jax.device_get(search())
    np.testing.assert_allclose(found.log_probs, forced.log_probs, atol=1e-4)
    np.testing.assert_allclose(found.weights, forced.weights, atol=1e-5)


# ------------------------------------------------------------------------------------------------- precision, learning


def test_jit_equals_eager():
    model, batch = make(), make_batch()
    variables = random_variables(model)
    for found, expected in zip(apply(model, variables, batch), model.apply(variables, batch), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_products_accumulate_in_float32():
    model, batch = make(precision="bfloat16"), make_batch()
    variables = random_variables(model)
    gradient = jax.grad(lambda v: jnp.sum(model.apply(v, batch)[0]))
    weights = (4 + 2) + (8 + 2) + 1
    assert assert_products_accumulate_in_float32(gradient, variables) == 3 * weights
    exact = apply(make(), variables, batch)[0]
    np.testing.assert_allclose(apply(model, variables, batch)[0], exact, atol=0.15)
    state = apply(model, variables, batch, method="start", static=(4,))
    step = lambda s: model.apply(variables, np.full((3, 1), BOS_ID), s, method="step")  # noqa: E731
    assert assert_products_accumulate_in_float32(step, state) == 10 + 1 - 2


def test_it_learns_three_pairs_by_heart(rng):
    model, batch = make(d_model=16, ffn_dim=32, dropout=0.0), make_batch()
    optimizer = optax.adam(0.01)

    def loss(variables):
        logits, _ = model.apply(variables, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.tgt)
        return jnp.sum(losses, where=batch.tgt_mask) / batch.tgt_mask.sum()

    @jax.jit
    def fit(variables):
        def update(_, state):
            updates, moments = optimizer.update(jax.grad(loss)(state[0]), state[1])
            return optax.apply_updates(state[0], updates), moments

        variables, _ = jax.lax.fori_loop(0, 150, update, (variables, optimizer.init(variables)))
        step = lambda tokens, state: model.apply(variables, tokens, state, method="step")  # noqa: E731
        found = beam_search(step, model.apply(variables, batch, 4, method="start"), max_len=4, beam=1)
        return loss(variables), found.tokens[:, 0]

    final, tokens = fit(jax.jit(model.init)(rng, batch))
    assert final < 0.05
    np.testing.assert_array_equal(tokens, batch.tgt)


# -------------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"src": np.zeros((3, 5, 2))}, r"rank 3 .* but expected 2"),
        ({"src_mask": np.ones((3, 4), bool)}, r"shape \(3, 4\) but expected \(3, 5\)"),
        ({"src_mask": np.ones((3, 5))}, "type float.* bool"),
        ({"tgt": np.zeros((3, 4, 2)), "tgt_mask": np.ones((3, 4), bool)}, r"rank 3 .* but expected 2"),
        ({"tgt_mask": np.ones((3, 5), bool)}, r"shape \(3, 5\) but expected \(3, 4\)"),
        ({"tgt_mask": np.ones((3, 4), int)}, "type int.* bool"),
        ({"tgt": np.zeros((2, 4), int), "tgt_mask": np.ones((2, 4), bool)}, r"prefixes: \[\(3,\), \(2,\)\]"),
    ],
)
def test_what_a_wrong_shape_says(changes, message):
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        jax.eval_shape(make().init, jax.random.key(0), make_batch().replace(**changes))


def test_tokens_of_the_wrong_rank():
    model, batch = make(), make_batch()
    variables = random_variables(model)
    state = apply(model, variables, batch, method="start", static=(4,))
    with pytest.raises(AssertionError, match=r"rank 1 .* but expected 2"):
        model.apply(variables, np.zeros(3, int), state, method="step")
    with pytest.raises(AssertionError, match=r"(?s)\(3, 1\).*\(3, 2\)"):
        model.apply(variables, np.zeros((3, 2), int), state, method="step")
