"""Every attention mechanism, against hand-made numbers, its definition, and other people's implementations."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attn_jax.convert.torch_layouts import multihead
from attn_jax.nn.attention import (
    ATTENTIONS,
    AdditiveAttention,
    ConcatAttention,
    DotAttention,
    GeneralAttention,
    LocalAttention,
    LocationAttention,
    Memory,
    MultiHeadAttention,
    ScaledDotProductAttention,
    make_attention,
)
from tests.jaxprs import assert_products_accumulate_in_float32
from tests.torch_parity import load

BATCH, Q_LEN, KV_LEN, WIDTH, VALUE_WIDTH = 3, 2, 5, 4, 6
LENGTHS = np.array([5, 3, 1])
MASK = np.arange(KV_LEN) < LENGTHS[:, None]
OPTIONS = {"local": {"window": 2}, "location": {"max_len": 7}, "multihead": {"num_heads": 2}}


def make(name, **options):
    return make_attention(name, WIDTH, **(OPTIONS.get(name, {}) | options))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(jax.dtypes.canonicalize_dtype(float))


def parameters(mechanism, query_dim=WIDTH, key_dim=WIDTH):
    """Random parameters, biases included, in the precision of the test."""
    shapes = mechanism.shapes(query_dim, key_dim)
    return {name: normal(100 + i, *shape) * 0.5 for i, (name, shape) in enumerate(shapes.items())}


def setting(name, **options):
    """A mechanism, its parameters, a query, keys and values."""
    mechanism = make(name, **options)
    values = normal(3, BATCH, KV_LEN, WIDTH if name == "multihead" else VALUE_WIDTH)
    return mechanism, parameters(mechanism), normal(1, BATCH, Q_LEN, WIDTH), normal(2, BATCH, KV_LEN, WIDTH), values


def traced_attend(mechanism, params, query, *memory):
    """Context and weights from ``keys, values[, mask]``."""
    memory = memory if len(memory) == 3 else (*memory, None)
    return mechanism.attend_fn(params, query, mechanism.prepare_fn(params, *memory))


jitted_attend = jax.jit(traced_attend, static_argnums=0)


def attend(*args):
    """The same in NumPy: slices and comparisons of the tests need no compilation."""
    return jax.device_get(jitted_attend(*args))


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


# ------------------------------------------------------------------------------------------- numbers of the notebooks


def test_query_key_value_by_hand():
    keys = jnp.array([[[0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]])
    context, weights = DotAttention().apply({}, jnp.array([[[1, 0.5]]]), keys)
    np.testing.assert_allclose(weights[0, 0], [0.36285, 0.25570, 0.38145], atol=5e-6)
    np.testing.assert_allclose(context[0, 0], [0.65916, 0.34084], atol=5e-6)


@pytest.mark.parametrize(
    ("mechanism", "width", "parameter_count"),
    [
        (AdditiveAttention(features=128), 128, 33_153),
        (DotAttention(), 64, 0),
        (GeneralAttention(), 64, 4_096),
        (GeneralAttention(use_bias=True), 64, 4_096 + 64),
        (ConcatAttention(features=64), 64, 8_321),
        (LocalAttention(features=32), 64, 4_096 + 64 * 32 + 32),
        (LocationAttention(max_len=10), 256, 256 * 10 + 10),
        (ScaledDotProductAttention(), 4, 0),
        (MultiHeadAttention(features=8, num_heads=2), 8, 4 * (64 + 8)),
    ],
)
def test_parameter_counts(mechanism, width, parameter_count):
    query, keys = jnp.zeros((2, 1, width)), jnp.zeros((2, 10, width))
    variables = jax.eval_shape(mechanism.init, jax.random.key(0), query, keys)
    assert count(variables) == parameter_count


@pytest.mark.parametrize(
    ("mechanism", "query", "keys", "context", "weights"),
    [
        (AdditiveAttention(features=128), (2, 1, 128), (2, 10, 128), (2, 1, 128), (2, 1, 10)),
        (AdditiveAttention(features=16), (2, 1, 5), (2, 10, 7), (2, 1, 7), (2, 1, 10)),
        (GeneralAttention(), (4, 1, 48), (4, 8, 64), (4, 1, 64), (4, 1, 8)),
        (ScaledDotProductAttention(), (1, 5, 4), (1, 5, 4), (1, 5, 4), (1, 5, 5)),
        (MultiHeadAttention(features=8, num_heads=2), (1, 5, 8), (1, 5, 8), (1, 5, 8), (1, 2, 5, 5)),
        (MultiHeadAttention(features=8, num_heads=4), (2, 3, 5), (2, 7, 6), (2, 3, 8), (2, 4, 3, 7)),
    ],
)
def test_shapes(mechanism, query, keys, context, weights):
    found, _ = jax.eval_shape(mechanism.init_with_output, jax.random.key(0), jnp.zeros(query), jnp.zeros(keys))
    assert [out.shape for out in found] == [context, weights]
    assert mechanism.context_dim(keys[-1]) == context[-1]


# --------------------------------------------------------------------------------------------------------- definitions


def scores_by_definition(name, p, query, keys):
    """The scores of one query ``[d]`` and one key ``[d]``, as the papers write them."""
    if name == "additive":
        hidden = np.tanh(query @ p["query_kernel"] + p["query_bias"] + keys @ p["key_kernel"] + p["key_bias"])
        return hidden @ p["v"] + p["v_bias"][0]
    if name == "concat":
        kernel = np.concatenate([p["query_kernel"], p["key_kernel"]])
        return np.tanh(np.concatenate([query, keys]) @ kernel + p["bias"]) @ p["v"] + p["v_bias"][0]
    if name == "general":
        return query @ p["kernel"].T @ keys
    return query @ keys / (np.sqrt(len(keys)) if name == "scaled_dot" else 1)


@pytest.mark.parametrize("name", ["additive", "concat", "dot", "general", "scaled_dot"])
def test_weights_and_context_follow_the_definition(x64, name):
    mechanism, *arrays = setting(name)
    context, weights = attend(mechanism, *arrays, MASK)
    p, query, keys, values = jax.tree.map(np.asarray, arrays)
    for b, q in np.ndindex(BATCH, Q_LEN):
        scores = [scores_by_definition(name, p, query[b, q], keys[b, k]) for k in range(LENGTHS[b])]
        expected = np.exp(scores) / np.sum(np.exp(scores))
        np.testing.assert_allclose(weights[b, q, : LENGTHS[b]], expected, rtol=1e-12)
        np.testing.assert_allclose(context[b, q], expected @ values[b, : LENGTHS[b]], rtol=1e-12)


def test_location_attention_reads_the_query_alone(x64):
    mechanism, params, query, keys, values = setting("location")
    _, weights = attend(mechanism, params, query, keys, values)
    logits = np.asarray(query @ params["kernel"] + params["bias"])[..., :KV_LEN]
    np.testing.assert_allclose(weights, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(attend(mechanism, params, query, -keys, values)[1], weights)


def test_location_attention_over_padding_by_hand():
    mechanism = LocationAttention(max_len=4, use_bias=False, over_padding=True)
    params, query = {"kernel": np.log(np.array([[1.0, 2.0, 3.0, 4.0]]))}, np.ones((1, 1, 1))
    values, mask = np.ones((1, 3, 1)), np.array([[True, True, False]])
    context, weights = attend(mechanism, params, query, values, values, mask)  # of 4 positions 2 are words
    np.testing.assert_allclose(weights[0, 0], [0.1, 0.2, 0], rtol=1e-6)
    assert context.item() == pytest.approx(0.3)
    values, mask = np.ones((1, 6, 1)), np.arange(6)[None] < 5  # the last word is past all positions
    np.testing.assert_allclose(attend(mechanism, params, query, values, values, mask)[1][0, 0, 3:], [0.4, 0, 0])
    np.testing.assert_allclose(attend(mechanism, params, query, values[:, :4], values[:, :4])[1].sum(), 1, rtol=1e-6)


def test_local_attention_follows_the_definition(x64):
    mechanism, p, query, keys, values = setting("local")
    context, weights = attend(mechanism, p, query, keys, values, MASK)
    for b, q in np.ndindex(BATCH, Q_LEN):
        length, at = LENGTHS[b], np.arange(KV_LEN)
        center = length / (1 + np.exp(-(np.tanh(query[b, q] @ p["center_kernel"]) @ p["center_v"])))
        inside = (np.abs(at - center) <= 2) & MASK[b]
        exp = np.where(inside, np.exp(keys[b] @ p["kernel"] @ query[b, q]), 0)
        expected = exp / exp.sum() * np.exp(-((at - center) ** 2) / 2)  # the Gaussian's deviation is 2 / 2
        np.testing.assert_allclose(weights[b, q], expected, rtol=1e-12)
        np.testing.assert_allclose(context[b, q], expected @ values[b], rtol=1e-12)
    assert not weights[0].all()  # the window cuts


def test_the_predicted_centre_is_learnt_through_the_gaussian(x64):
    mechanism, params, query, keys, values = setting("local", window=20)  # no window ever cuts here
    far = lambda p: jnp.sum(traced_attend(mechanism, p, query, keys, values)[1][..., -1])  # noqa: E731
    gradient = jax.grad(far)(params)
    for name in ("center_kernel", "center_v"):
        numbers = np.ravel(gradient[name])
        assert np.abs(numbers).max() > 1e-4
        moved = params | {name: params[name] + 1e-3 * gradient[name]}
        assert far(moved) > far(params)


def test_one_head_is_scaled_dot_product_attention_of_the_projections(x64):
    mechanism, p, query, keys, values = setting("multihead", num_heads=1)
    project = lambda name, x: x @ p[f"{name}_kernel"] + p[f"{name}_bias"]  # noqa: E731
    plain = attend(
        ScaledDotProductAttention(), {}, project("query", query), project("key", keys), project("value", values), MASK
    )
    context, weights = attend(mechanism, p, query, keys, values, MASK)
    np.testing.assert_allclose(weights[:, 0], plain[1], rtol=1e-12)
    np.testing.assert_allclose(context, project("out", plain[0]), rtol=1e-12)


def test_multihead_attention_equals_flax(x64):
    mechanism, p, query, keys, values = setting("multihead")
    heads = {
        name: {"kernel": p[f"{name}_kernel"].reshape(WIDTH, 2, 2), "bias": p[f"{name}_bias"].reshape(2, 2)}
        for name in ("query", "key", "value")
    }
    heads["out"] = {"kernel": p["out_kernel"].reshape(2, 2, WIDTH), "bias": p["out_bias"]}
    flax = nn.MultiHeadDotProductAttention(num_heads=2, param_dtype=float)
    expected = flax.apply({"params": heads}, query, keys, values, mask=MASK[:, None, None])
    np.testing.assert_allclose(attend(mechanism, p, query, keys, values, MASK)[0], expected, rtol=1e-10)


def test_multihead_attention_equals_torch(x64):
    torch = pytest.importorskip("torch")
    mechanism, p, query, keys, values = setting("multihead")
    theirs = torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True, dtype=torch.float64)
    load(torch, theirs, p, multihead())
    with torch.no_grad():
        expected = theirs(
            *map(torch.tensor, (query, keys, values)), key_padding_mask=torch.tensor(~MASK), average_attn_weights=False
        )
    context, weights = attend(mechanism, p, query, keys, values, MASK)
    np.testing.assert_allclose(context, expected[0].numpy(), rtol=1e-10)
    np.testing.assert_allclose(weights, expected[1].numpy(), rtol=1e-10, atol=1e-15)


# ---------------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("name", ATTENTIONS)
class TestEveryMechanism:
    def test_masked_is_sliced(self, x64, name):
        mechanism, params, query, keys, values = setting(name)
        context, weights = attend(mechanism, params, query, keys, values, MASK)
        if name != "local":  # whose Gaussian comes after the softmax
            np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)
        for b, length in enumerate(LENGTHS):
            row, real = slice(b, b + 1), slice(0, int(length))
            alone = attend(mechanism, params, query[row], keys[row, real], values[row, real])
            np.testing.assert_allclose(context[row], alone[0], rtol=1e-12)
            np.testing.assert_allclose(weights[row, ..., real], alone[1], rtol=1e-12)
            assert not weights[row, ..., length:].any()

    def test_padding_never_matters(self, x64, name):
        # Bit for bit, in values and in gradients, whatever stands in the padding.
        mechanism, params, query, keys, values = setting(name)

        @jax.jit
        def run(keys, values):
            def loss(params, query, keys, values):
                out = traced_attend(mechanism, params, query, keys, values, MASK)
                return jnp.sum(jnp.sin(out[0])), out

            return jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(params, query, keys, values)

        other = [np.where(MASK[..., None], x, 1e3) for x in (keys, values)]
        (grads, out), (other_grads, other_out) = jax.device_get((run(keys, values), run(*other)))
        chex.assert_trees_all_equal(out, other_out)
        chex.assert_trees_all_equal(grads, other_grads)
        assert not grads[2][~MASK].any()
        assert not grads[3][~MASK].any()

    def test_a_row_without_keys_gives_zero_and_finite_gradients(self, name):
        mechanism, params, query, keys, values = setting(name)
        nothing = np.zeros((BATCH, KV_LEN), bool)

        def loss(*arrays):
            out = traced_attend(mechanism, *arrays, nothing)
            return jnp.sum(out[0]), out

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
        grads, (context, weights) = jax.device_get(gradient(params, query, keys, values))
        assert not weights.any()
        bias = params["out_bias"] if name == "multihead" else 0
        np.testing.assert_allclose(context, np.broadcast_to(bias, context.shape), rtol=1e-6)
        assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))

    def test_a_mask_for_every_query(self, x64, name):
        mechanism, params, query, keys, values = setting(name)
        full = np.stack([MASK, np.roll(MASK, 1, axis=1)], axis=1)  # [batch, q_len, kv_len]
        context, weights = attend(mechanism, params, query, keys, values, full)
        for q in range(Q_LEN):
            alone = attend(mechanism, params, query[:, q : q + 1], keys, values, full[:, q])
            np.testing.assert_allclose(context[:, q], alone[0][:, 0], rtol=1e-12)
            np.testing.assert_allclose(weights[..., q, :], alone[1][..., 0, :], rtol=1e-12)

    def test_step_by_step_equals_the_whole(self, x64, name):
        mechanism, params, query, keys, values = setting(name)
        variables = {"params": params}
        run = jax.jit(mechanism.apply, static_argnames="method")
        context, weights = jax.device_get(run(variables, query, keys, values, MASK))
        memory = run(variables, keys, values, MASK, method="prepare")
        for q in range(Q_LEN):
            step = jax.device_get(run(variables, query[:, q : q + 1], memory, method="attend"))
            np.testing.assert_allclose(step[0][:, 0], context[:, q], rtol=1e-12)
            np.testing.assert_allclose(step[1][..., 0, :], weights[..., q, :], rtol=1e-12)

    def test_keys_in_another_order(self, x64, name):
        if name in ("local", "location"):
            pytest.skip("local and location attention know positions")
        mechanism, params, query, keys, values = setting(name)
        order = np.array([3, 0, 4, 1, 2])
        context, weights = attend(mechanism, params, query, keys, values, MASK)
        moved = attend(mechanism, params, query, keys[:, order], values[:, order], MASK[:, order])
        np.testing.assert_allclose(moved[0], context, rtol=1e-12)
        np.testing.assert_allclose(moved[1], weights[..., order], rtol=1e-12)

    def test_finite_differences(self, x64, name):
        mechanism, *arrays = setting(name)
        check_grads(jax.jit(lambda *a: traced_attend(mechanism, *a, MASK)), arrays, order=1, modes=["rev"])

    def test_jit_equals_eager(self, name):
        mechanism, params, *arrays = setting(name)
        run = lambda *a: mechanism.apply({"params": params}, *a)  # noqa: E731
        chex.assert_trees_all_close(jax.jit(run)(*arrays, MASK), run(*arrays, MASK), rtol=1e-6)

    def test_init_creates_what_shapes_names(self, rng, name):
        mechanism, params, *arrays = setting(name)
        created = jax.eval_shape(mechanism.init, rng, *arrays).get("params", {})
        assert {k: v.shape for k, v in created.items()} == {k: v.shape for k, v in params.items()}

    def test_without_bias(self, rng, name):
        mechanism = make(name, use_bias=False)
        assert not [parameter for parameter in mechanism.shapes(WIDTH, WIDTH) if parameter.endswith("bias")]
        context, _ = attend(mechanism, parameters(mechanism), *setting(name)[2:], MASK)
        assert np.isfinite(context).all()

    @pytest.mark.parametrize("normalizer", ["sparsemax", "entmax15"])
    def test_sparse_weights(self, name, normalizer):
        mechanism, params, query, keys, values = setting(name, normalizer=normalizer, temperature=0.1)
        _, weights = attend(mechanism, params, 5 * query, keys, values, MASK)
        if name != "local":
            np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        assert (weights[0] == 0).any()

    def test_temperature_flattens(self, name):
        _, sharp = attend(*setting(name, temperature=0.5))
        _, flat = attend(*setting(name, temperature=50.0))
        assert (flat.max(-1) < sharp.max(-1)).all()
        if name != "local":
            np.testing.assert_allclose(flat, 1 / KV_LEN, atol=0.05)

    def test_bfloat16_products_accumulate_in_float32(self, name):
        mechanism, *arrays = setting(name, precision="bfloat16")
        loss = lambda *a: jnp.sum(traced_attend(mechanism, *a, MASK)[0])  # noqa: E731
        products = assert_products_accumulate_in_float32(jax.grad(loss, argnums=(0, 1, 2, 3)), *arrays)
        kernels = [k for k in mechanism.shapes(WIDTH, WIDTH) if k.endswith("kernel")]
        assert products == 3 * len(kernels)
        exact = attend(setting(name)[0], *arrays, MASK)
        chex.assert_trees_all_close(attend(mechanism, *arrays, MASK), exact, atol=0.1)


def test_dropout_factors_act_on_the_weights_but_not_on_those_returned(x64):
    mechanism, params, query, keys, values = setting("multihead")
    memory = mechanism.prepare_fn(params, keys, values, MASK)
    context, weights = mechanism.attend_fn(params, query, memory)
    dropped, same = mechanism.attend_fn(params, query, memory, kept=jnp.zeros(weights.shape))
    np.testing.assert_array_equal(weights, same)
    np.testing.assert_allclose(dropped, np.broadcast_to(params["out_bias"], context.shape))
    only_first = (np.arange(KV_LEN) == 0) / np.maximum(weights, 1e-9)  # all weight on the first key
    first = Memory(memory.keys[:, :1], memory.values[:, :1], None)
    found, _ = mechanism.attend_fn(params, query, memory, kept=only_first)
    np.testing.assert_allclose(found, mechanism.attend_fn(params, query, first)[0], rtol=1e-10)


def test_a_small_decoder_learns_to_copy(rng):
    # The one-hot query points at the key that is equal to it: general attention must learn a map to the keys' code.
    rows = jnp.eye(4)
    code = jax.random.normal(jax.random.key(5), (4, 4))
    keys, query = jnp.broadcast_to(code, (1, 4, 4)), rows[None]
    mechanism = GeneralAttention()
    params = mechanism.init(rng, query, keys)["params"]

    @jax.jit
    def fit(params):
        loss = lambda p: -jnp.mean(jnp.log(jnp.diagonal(traced_attend(mechanism, p, query, keys, keys)[1][0])))  # noqa: E731
        return jax.lax.fori_loop(
            0, 300, lambda _, p: jax.tree.map(lambda w, g: w - 0.5 * g, p, jax.grad(loss)(p)), params
        )

    _, weights = attend(mechanism, fit(params), query, keys, keys)
    assert np.diagonal(weights[0]).min() > 0.9
