"""The attention decoder by itself: a step is a row of the scan, narrow products, and what it says of wrong shapes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.nn.attention import AdditiveAttention, GeneralAttention, MultiHeadAttention
from attn_jax.nn.decoder import AttentionDecoder
from tests.jaxprs import assert_products_accumulate_in_float32

BATCH, TIME, SRC, WIDTH, HIDDEN = 3, 4, 5, 6, 8
MASK = np.arange(SRC) < np.array([5, 3, 1])[:, None]
KINDS = {
    "luong": {"attention": GeneralAttention(), "num_layers": 2, "residual": True},
    "bahdanau": {
        "attention": AdditiveAttention(features=4),
        "attend_first": True,
        "input_feeding": False,
        "readout": "concat",
    },
    "heads": {"attention": MultiHeadAttention(features=4, num_heads=2), "query_with_input": True, "cell": "gru"},
    "none": {"attention": None, "cell": "rnn", "readout": "state"},
}


def make(kind="luong", **options):
    return AttentionDecoder(HIDDEN, 7, **(KINDS[kind] | options))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(jax.dtypes.canonicalize_dtype(float))


def arrays(decoder):
    """Embedded inputs, keys, and the first state of each layer."""
    states = [normal(10 + layer, 2, BATCH, HIDDEN) for layer in range(decoder.num_layers)]
    carry = tuple(tuple(state) if decoder.cell == "lstm" else state[0] for state in states)
    return normal(1, BATCH, TIME, 3), normal(2, BATCH, SRC, WIDTH), carry


def random_variables(decoder):
    embedded, keys, carry = arrays(decoder)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), embedded, keys, MASK, carry)
    leaves, treedef = jax.tree.flatten(shapes)
    return jax.tree.unflatten(treedef, [0.5 * normal(20 + i, *leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_scan(x64, kind):
    decoder = make(kind)
    variables, (embedded, keys, carry) = random_variables(decoder), arrays(decoder)
    features, weights = jax.jit(decoder.apply)(variables, embedded, keys, MASK, carry)
    assert features.shape == (BATCH, TIME, decoder.apply(variables, WIDTH, method="width"))
    memory, state = decoder.apply(variables, keys, MASK, carry, method="start")
    step = jax.jit(partial(decoder.apply, method="step"))
    for t in range(TIME):
        state, now, looked = step(variables, embedded[:, t, None], memory, state)
        np.testing.assert_allclose(now[:, 0], features[:, t], atol=1e-10)
        if weights is not None:
            np.testing.assert_allclose(looked[..., 0, :], weights[..., t, :], atol=1e-10)
            assert not np.asarray(weights).swapaxes(1, -1)[~MASK].any()
    assert (weights is None) == (kind == "none")


def test_hypotheses_of_a_beam_go_their_own_ways(x64):
    decoder = make()
    variables, (embedded, keys, carry) = random_variables(decoder), arrays(decoder)
    step = jax.jit(partial(decoder.apply, method="step"))
    memory, state = decoder.apply(variables, keys, MASK, carry, method="start")
    wide = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=1), state)
    both, _, _ = step(variables, embedded[:, :2], memory, wide)
    _, features, weights = step(variables, embedded[:, 2:], memory, both)
    for beam in range(2):
        alone, _, _ = step(variables, embedded[:, beam, None], memory, state)
        _, expected, looked = step(variables, embedded[:, 2 + beam, None], memory, alone)
        np.testing.assert_allclose(features[:, beam], expected[:, 0], atol=1e-12)
        np.testing.assert_allclose(weights[:, beam], looked[:, 0], atol=1e-12)


@pytest.mark.parametrize(("kind", "matrices"), [("luong", 8), ("bahdanau", 5), ("heads", 9)])
def test_bfloat16_products_accumulate_in_float32(kind, matrices):
    mechanism = KINDS[kind]["attention"].clone(precision="bfloat16")
    decoder = make(kind, precision="bfloat16", attention=mechanism)
    variables, (embedded, keys, carry) = random_variables(decoder), arrays(decoder)
    assert len([leaf for leaf in jax.tree.leaves(variables) if leaf.ndim == 2]) == matrices
    loss = lambda v: jnp.sum(decoder.apply(v, embedded, keys, MASK, carry)[0])  # noqa: E731
    assert assert_products_accumulate_in_float32(jax.grad(loss), variables) >= 3 * matrices - 1
    memory, state = decoder.apply(variables, keys, MASK, carry, method="start")
    step = lambda state: decoder.apply(variables, embedded[:, :1], memory, state, method="step")  # noqa: E731
    of_source = {"luong": 2, "bahdanau": 1, "heads": 2}[kind]  # once a sentence: keys, values, the readout's context
    assert assert_products_accumulate_in_float32(step, state) == matrices - of_source
    exact = make(kind).apply(variables, embedded, keys, MASK, carry)[0]
    np.testing.assert_allclose(decoder.apply(variables, embedded, keys, MASK, carry)[0], exact, atol=0.15)


# -------------------------------------------------------------------------------------------------------- wrong inputs

MASKS = [
    (np.ones((BATCH, SRC)), "type float.* bool"),
    (np.ones((BATCH, SRC - 1), bool), r"shape \(3, 4\) but expected \(3, 5\)"),
    (np.ones((BATCH, TIME, SRC), bool), r"shape \(3, 4, 5\) but expected \(3, 5\)"),
]


@pytest.mark.parametrize("kind", ["luong", "none"])
@pytest.mark.parametrize(("mask", "message"), MASKS)
def test_what_a_wrong_mask_says(kind, mask, message):
    decoder = make(kind)
    variables, (embedded, keys, carry) = random_variables(decoder), arrays(decoder)
    for method, args in (
        ("__call__", (embedded, keys, mask, carry)),
        ("prepare", (keys, mask)),
        ("start", (keys, mask, carry)),
    ):
        with pytest.raises(AssertionError, match=f"(?s){message}"):
            jax.eval_shape(partial(decoder.apply, method=method), variables, *args)


@pytest.mark.parametrize("method", ["__call__", "start"])
def test_what_a_wrong_carry_says(method):
    decoder = make()
    variables, (embedded, keys, carry) = random_variables(decoder), arrays(decoder)

    def call(carry):
        args = (embedded, keys, MASK, carry) if method == "__call__" else (keys, MASK, carry)
        return jax.eval_shape(lambda: decoder.apply(variables, *args, method=method))

    with pytest.raises(ValueError, match=r"a tuple of 2 states, one for each layer \(num_layers\), found 1"):
        call(carry[:1])
    with pytest.raises(ValueError, match=r"a tuple of 2 states, one for each layer \(num_layers\), found 3"):
        call(carry + carry[:1])
    with pytest.raises(ValueError, match=r"a tuple of 2 states.*found a ndarray"):
        call(carry[0][0])
    with pytest.raises(AssertionError, match=r"(?s)\(3, 7\).*\(3, 8\)"):
        call(jax.tree.map(lambda leaf: leaf[:, :7], carry))
    with pytest.raises(AssertionError, match=r"(?s)\(2, 8\).*\(3, 8\)"):
        call(jax.tree.map(lambda leaf: leaf[:2], carry))


def test_what_a_wrong_step_says():
    decoder = make()
    variables, (embedded, keys, carry) = random_variables(decoder), arrays(decoder)
    memory, state = decoder.apply(variables, keys, MASK, carry, method="start")
    for inputs, message in (
        (embedded[:, 0], "rank 2 .* but expected 3"),
        (embedded[:, :2], r"\(3, 1\).*\(3, 2\)"),
        (embedded[:2, :1], r"\(3,\).*\(2,\)"),
    ):
        with pytest.raises(AssertionError, match=f"(?s){message}"):
            decoder.apply(variables, inputs, memory, state, method="step")


def test_masks_may_be_traced_or_numpy_or_absent():
    decoder = make()
    variables, (embedded, keys, carry) = random_variables(decoder), arrays(decoder)
    run = jax.jit(decoder.apply)
    traced, _ = run(variables, embedded, keys, MASK, carry)
    constant, _ = jax.jit(lambda *args: decoder.apply(*args, MASK, carry))(variables, embedded, keys)
    np.testing.assert_allclose(traced, constant, atol=1e-6)
    everywhere, _ = run(variables, embedded, keys, np.ones_like(MASK), carry)
    np.testing.assert_allclose(run(variables, embedded, keys, None, carry)[0], everywhere, atol=1e-6)
