"""Transformer blocks: PyTorch, causality, padding, and step by step equal to the whole."""

import math
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attn_jax.convert.torch_layouts import DECODER_BLOCK, ENCODER_BLOCK
from attn_jax.nn.transformer import ACTIVATIONS, DecoderBlock, EncoderBlock, FeedForward, TransformerEncoder
from tests.jaxprs import assert_products_accumulate_in_float32
from tests.torch_parity import load

BATCH, TIME, SRC, WIDTH, HEADS, FFN = 3, 4, 5, 8, 2, 12
SRC_LENGTHS, LENGTHS = np.array([5, 3, 1]), np.array([4, 1, 3])
SRC_MASK, MASK = np.arange(SRC) < SRC_LENGTHS[:, None], np.arange(TIME) < LENGTHS[:, None]
NORMS = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(jax.dtypes.canonicalize_dtype(float))


def sequence():
    return normal(40, BATCH, TIME, WIDTH)


def source():
    return normal(41, BATCH, SRC, WIDTH)


def random_variables(module, *inputs):
    """Random parameters, biases and norms included, in the precision of the test."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.unflatten(treedef, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@partial(jax.jit, static_argnums=(0, 1))
def jitted(module, method, variables, args, rng):
    rngs = None if rng is None else {"dropout": rng}
    options = {} if method else {"deterministic": rng is None}
    return module.apply(variables, *args, rngs=rngs, method=method, **options)


def apply(module, variables, *args, method=None, rng=None):
    """Results in NumPy; with dropout if there is a key."""
    return jax.device_get(jitted(module, method, variables, args, rng))


def encoder(**options):
    block = EncoderBlock(WIDTH, HEADS, FFN, **options)
    return block, random_variables(block, sequence())


def decoder(**options):
    block = DecoderBlock(WIDTH, HEADS, FFN, **options)
    return block, random_variables(block, sequence(), source())


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --------------------------------------------------------------------------------------------------------- feed-forward


def test_feed_forward_by_hand():
    params = {"in_kernel": np.array([[1.0, -1.0]]), "in_bias": np.array([0.0, 1.0])}
    params |= {"out_kernel": np.array([[2.0], [3.0]]), "out_bias": np.array([0.5])}
    outputs = FeedForward(2).apply({"params": params}, np.array([[[2.0], [-1.0]]]))
    # relu([2, -1]) = [2, 0] -> 4.5 and relu([-1, 2]) = [0, 2] -> 6.5
    np.testing.assert_allclose(outputs[0, :, 0], [4.5, 6.5])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", 2),
        ("gelu", 1 + math.tanh(math.sqrt(2 / math.pi) * (2 + 0.044715 * 8))),
        ("swish", 2 / (1 + math.exp(-2))),
    ],
)
def test_activations(name, expected):
    np.testing.assert_allclose(ACTIVATIONS[name](2.0), expected, rtol=1e-6)


def test_positions_do_not_mix(x64):
    layer = FeedForward(FFN)
    variables, inputs = random_variables(layer, sequence()), sequence()
    whole, one = apply(layer, variables, inputs), apply(layer, variables, inputs[:, 1:2])
    np.testing.assert_allclose(whole[:, 1:2], one, atol=1e-12)


# ------------------------------------------------------------------------------------------------ shapes, parameters


def test_shapes_and_parameters_of_the_notebooks_block():
    # Batch 2, length 5, width 8, 2 heads, feed-forward twice as wide: weights (2, 2, 5, 5).
    block = EncoderBlock(8, 2, 16)
    (outputs, weights), variables = jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((2, 5, 8)))
    assert (outputs.shape, weights.shape) == ((2, 5, 8), (2, 2, 5, 5))
    attention, feed_forward, norms = 4 * (8 * 8 + 8), 8 * 16 + 16 + 16 * 8 + 8, 2 * 2 * 8
    assert count(variables) == attention + feed_forward + norms


def test_shapes_and_parameters_of_a_decoder_block():
    block = DecoderBlock(8, 2, 16)
    inputs = jnp.zeros((2, 5, 8)), jnp.zeros((2, 7, 6))  # the source may be of another width
    (outputs, weights), variables = jax.eval_shape(block.init_with_output, jax.random.key(0), *inputs)
    assert (outputs.shape, weights.own.shape, weights.cross.shape) == ((2, 5, 8), (2, 2, 5, 5), (2, 2, 5, 7))
    cross = 2 * (8 * 8 + 8) + 2 * (6 * 8 + 8)
    assert count(variables) == 4 * (8 * 8 + 8) + cross + (8 * 16 + 16 + 16 * 8 + 8) + 3 * 2 * 8


def test_a_post_norm_block_gives_normalised_outputs():
    block = EncoderBlock(WIDTH, HEADS, FFN)
    outputs, _ = jax.device_get(jax.jit(block.init_with_output)(jax.random.key(0), sequence())[0])
    np.testing.assert_allclose(outputs.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(outputs.std(-1, ddof=1), math.sqrt(WIDTH / (WIDTH - 1)), rtol=1e-4)  # 1.069 at width 8


def test_a_pre_norm_stack_normalises_at_the_end():
    settings = {"features": WIDTH, "num_heads": HEADS, "ffn_dim": FFN, "norm_first": True}
    initialise = jax.jit(TransformerEncoder(2, settings).init_with_output)
    (outputs, weights), _ = jax.device_get(initialise(jax.random.key(0), sequence()))
    np.testing.assert_allclose(outputs.mean(-1), 0, atol=1e-6)
    assert weights.shape == (BATCH, 2, HEADS, TIME, TIME)


@NORMS
def test_weights_can_be_left_out(norm_first):
    block, variables = encoder(norm_first=norm_first)
    outputs, weights = apply(block, variables, sequence(), MASK)
    without, nothing = jax.jit(lambda *a: block.apply(*a, return_weights=False))(variables, sequence(), MASK)
    assert nothing is None
    np.testing.assert_array_equal(without, outputs)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    block, variables = decoder(norm_first=norm_first)
    shapes = jax.eval_shape(lambda: block.apply(variables, sequence(), source(), return_weights=False))
    assert shapes[1] is None


# ------------------------------------------------------------------------------------------------------------- PyTorch


@NORMS
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_block_equals_torch(x64, norm_first, activation):
    torch = pytest.importorskip("torch")
    block, variables = encoder(norm_first=norm_first, norm_epsilon=1e-5, activation=activation)
    theirs = torch.nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        FFN,
        0.0,
        (lambda x: torch.nn.functional.gelu(x, approximate="tanh")) if activation == "gelu" else activation,
        batch_first=True,
        norm_first=norm_first,
        dtype=torch.float64,
    )
    load(torch, theirs, variables["params"], ENCODER_BLOCK)
    expected = theirs(torch.tensor(sequence()), src_key_padding_mask=torch.tensor(~MASK)).detach().numpy()
    outputs, _ = apply(block, variables, sequence(), MASK)
    np.testing.assert_allclose(outputs[MASK], expected[MASK], atol=1e-10)


@NORMS
def test_decoder_block_equals_torch(x64, norm_first):
    torch = pytest.importorskip("torch")
    block, variables = decoder(norm_first=norm_first, norm_epsilon=1e-5)
    theirs = torch.nn.TransformerDecoderLayer(
        WIDTH, HEADS, FFN, 0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    load(torch, theirs, variables["params"], DECODER_BLOCK)
    expected = theirs(
        torch.tensor(sequence()),
        torch.tensor(source()),
        tgt_mask=torch.triu(torch.ones(TIME, TIME, dtype=bool), 1),
        memory_key_padding_mask=torch.tensor(~SRC_MASK),
    )
    outputs, _ = apply(block, variables, sequence(), source(), None, SRC_MASK)
    np.testing.assert_allclose(outputs, expected.detach().numpy(), atol=1e-10)


# ----------------------------------------------------------------------------------------------- padding and causality


@partial(jax.jit, static_argnums=0)
def jitted_gradients(block, variables, inputs, rest):
    def loss(variables, inputs):
        outputs, weights = block.apply(variables, inputs, *rest)
        return jnp.sum(jnp.sin(outputs), where=MASK[..., None]), (outputs, weights)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, inputs)


def values_and_gradients(block, variables, inputs, *rest):
    """Of a loss over the real positions alone, with respect to parameters and inputs."""
    (d_variables, d_inputs), (outputs, weights) = jax.device_get(jitted_gradients(block, variables, inputs, rest))
    return outputs, weights, d_variables, d_inputs


@NORMS
def test_padding_never_matters_to_the_encoder(x64, norm_first):
    block, variables = encoder(norm_first=norm_first)
    other = np.where(MASK[..., None], sequence(), 7.0)
    found = values_and_gradients(block, variables, sequence(), MASK)
    changed = values_and_gradients(block, variables, other, MASK)
    np.testing.assert_array_equal(found[0][MASK], changed[0][MASK])
    chex.assert_trees_all_close(found[2], changed[2], atol=1e-14)
    assert not found[3][~MASK].any()
    for b, length in list(enumerate(LENGTHS))[1:]:
        alone, weights = apply(block, variables, sequence()[b : b + 1, :length])
        np.testing.assert_allclose(found[0][b, :length], alone[0], atol=1e-12)
        np.testing.assert_allclose(found[1][b, :, :length, :length], weights[0], atol=1e-12)


@NORMS
def test_padding_never_matters_to_the_decoder(x64, norm_first):
    block, variables = decoder(norm_first=norm_first)
    other, other_source = np.where(MASK[..., None], sequence(), 7.0), np.where(SRC_MASK[..., None], source(), 7.0)
    found = values_and_gradients(block, variables, sequence(), source(), MASK, SRC_MASK)
    changed = values_and_gradients(block, variables, other, other_source, MASK, SRC_MASK)
    np.testing.assert_array_equal(found[0][MASK], changed[0][MASK])
    chex.assert_trees_all_close(found[2], changed[2], atol=1e-14)
    assert not found[3][~MASK].any()
    for b, (length, src_length) in list(enumerate(zip(LENGTHS, SRC_LENGTHS, strict=True)))[1:]:
        alone, weights = apply(block, variables, sequence()[b : b + 1, :length], source()[b : b + 1, :src_length])
        np.testing.assert_allclose(found[0][b, :length], alone[0], atol=1e-12)
        np.testing.assert_allclose(found[1].own[b, :, :length, :length], weights.own[0], atol=1e-12)
        np.testing.assert_allclose(found[1].cross[b, :, :length, :src_length], weights.cross[0], atol=1e-12)


@NORMS
def test_a_position_masked_in_the_middle_is_as_if_it_were_not_there(x64, norm_first):
    # The causal mask alone hides padding at the end from the decoder; a gap needs the mask.
    real = [0, 2, 3]
    mask = np.broadcast_to(np.isin(np.arange(TIME), real), (BATCH, TIME))
    for (block, variables), rest in (
        (encoder(norm_first=norm_first), ()),
        (decoder(norm_first=norm_first), (source(),)),
    ):
        outputs, _ = apply(block, variables, sequence(), *rest, mask)
        without, _ = apply(block, variables, sequence()[:, real], *rest)
        np.testing.assert_allclose(outputs[:, real], without, atol=1e-12)


@NORMS
def test_no_position_sees_the_future(norm_first):
    block, variables = decoder(norm_first=norm_first)
    outputs = lambda inputs: block.apply(variables, inputs, source())[0]  # noqa: E731
    jacobian = jax.jit(jax.jacobian(lambda x: outputs(x).sum((0, -1))))(sequence())  # [time, batch, time, width]
    sees = np.abs(jacobian).max((1, 3)) > 0
    np.testing.assert_array_equal(sees, np.tril(np.ones((TIME, TIME), bool)))


@NORMS
def test_a_source_without_words_gives_finite_gradients(norm_first):
    block, variables = decoder(norm_first=norm_first)
    nothing = np.zeros((BATCH, SRC), bool)
    _, weights, d_variables, d_inputs = values_and_gradients(block, variables, sequence(), source(), MASK, nothing)
    assert not weights.cross.any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((d_variables, d_inputs)))


# -------------------------------------------------------------------------------------------------------- step by step


def take_steps(block, variables, inputs, memory, cache):
    outputs, weights = [], []
    for t in range(TIME):
        position = np.full(inputs.shape[:2], t)
        output, looked, cache = apply(block, variables, inputs[:, :, t], cache, position, memory, method="step")
        outputs.append(output)
        weights.append(looked)
    return np.stack(outputs, axis=2), np.stack(
        weights, axis=3
    )  # [batch, beam, time, d], [batch, heads, beam, time, src]


@NORMS
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_steps_equal_the_whole_sequence(norm_first, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        block, variables = decoder(norm_first=norm_first)
        beams = [sequence(), normal(50, BATCH, TIME, WIDTH)]
        memory = apply(block, variables, source(), SRC_MASK, method="prepare")
        cache = block.empty_cache(BATCH, TIME + 2, dtype)  # room to spare changes nothing
        assert cache.keys.shape == (BATCH, 1, TIME + 2, HEADS, WIDTH // HEADS)
        cache = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=1), cache)
        outputs, weights = take_steps(block, variables, np.stack(beams, axis=1), memory, cache)
        assert outputs.dtype == dtype
        for beam, inputs in enumerate(beams):
            expected, looked = apply(block, variables, inputs, source(), None, SRC_MASK)
            np.testing.assert_allclose(outputs[:, beam], expected, atol=tolerance)
            np.testing.assert_allclose(weights[:, :, beam], looked.cross, atol=tolerance)


def test_hypotheses_may_stand_at_different_positions(x64):
    block, variables = decoder()
    whole, _ = apply(block, variables, sequence(), source())
    memory = apply(block, variables, source(), method="prepare")
    cache = block.empty_cache(BATCH, TIME, "float64")
    for t in range(TIME):  # the second row waits one step: its first position is written twice
        position = np.array([[t], [max(t - 1, 0)], [t]])
        inputs = np.take_along_axis(sequence(), position[..., None], axis=1)
        outputs, _, cache = apply(block, variables, inputs, cache, position, memory, method="step")
        expected = np.take_along_axis(np.asarray(whole), position[..., None], axis=1)
        np.testing.assert_allclose(outputs, expected, atol=1e-12)


# --------------------------------------------------------------------------------------- dropout, precision, gradients


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"attention_dropout": 0.5}])
def test_dropout_draws_from_its_stream_and_can_be_turned_off(options):
    (plain, variables), (block, _) = decoder(), decoder(**options)
    args = variables, sequence(), source(), MASK, SRC_MASK
    first, second = (apply(block, *args, rng=jax.random.key(seed))[0] for seed in (1, 2))
    np.testing.assert_array_equal(apply(block, *args, rng=jax.random.key(1))[0], first)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(apply(block, *args)[0], apply(plain, *args)[0])


def test_attention_dropout_returns_the_weights_before_it():
    block, variables = encoder(attention_dropout=0.5)
    _, weights = apply(block, variables, sequence(), MASK, rng=jax.random.key(0))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


@NORMS
def test_finite_differences(x64, norm_first):
    block, variables = decoder(norm_first=norm_first, activation="swish")
    run = jax.jit(lambda *a: block.apply(*a, MASK, SRC_MASK)[0])
    check_grads(run, (variables, sequence(), source()), order=1, modes=["rev"])


def test_jit_equals_eager():
    block, variables = decoder()
    args = variables, sequence(), source(), MASK, SRC_MASK
    chex.assert_trees_all_close(apply(block, *args), block.apply(*args), atol=1e-5)


def test_bfloat16_products_accumulate_in_float32():
    block, variables = decoder(precision="bfloat16")
    loss = lambda v, *a: jnp.sum(block.apply(v, *a, MASK, SRC_MASK)[0])  # noqa: E731
    gradient = jax.grad(loss, argnums=(0, 1, 2))
    assert assert_products_accumulate_in_float32(gradient, variables, sequence(), source()) == 3 * (4 + 4 + 2)
    outputs, _ = apply(block, variables, sequence(), source())
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, apply(decoder()[0], variables, sequence(), source())[0], atol=0.1)


def test_a_block_learns_which_position_came_first(rng):
    # Two random vectors, one marked: the last position must say the sign of the marked one. Only attention can.
    inputs = normal(60, 32, 4, WIDTH)
    inputs[:, :, 0] = np.arange(4) == 1
    labels = np.sign(inputs[:, 1, 1])
    block = EncoderBlock(WIDTH, 1, 16, norm_first=True)
    head = nn.Dense(1)
    block_rng, head_rng = jax.random.split(rng)
    params = jax.jit(block.init)(block_rng, inputs), jax.jit(head.init)(head_rng, inputs[:, -1])

    def loss(params):
        outputs, _ = block.apply(params[0], inputs)
        logits = head.apply(params[1], outputs[:, -1])[:, 0]
        return jnp.mean(jnp.logaddexp(0, -labels * logits))

    @jax.jit
    def fit(params):
        step = lambda _, p: jax.tree.map(lambda w, g: w - 0.3 * g, p, jax.grad(loss)(p))  # noqa: E731
        return loss(jax.lax.fori_loop(0, 200, step, params))

    assert fit(params) < 0.1


# -------------------------------------------------------------------------------------------------------- wrong inputs
