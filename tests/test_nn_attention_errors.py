"""What attention says of wrong shapes, settings and lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.nn.attention import (
    ATTENTIONS,
    DotAttention,
    LocationAttention,
    Memory,
    MultiHeadAttention,
    ScaledDotProductAttention,
    make_attention,
)
from tests.test_nn_attention import make, setting


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (3, 5, 4), (3, 5, 4), None), r"has shape \(3, 4\)"),
        (((3, 2, 4), (5, 4), (5, 4), None), r"rank.*(2|\(2\))"),
        (((2, 2, 4), (3, 5, 4), (3, 5, 4), None), r"shape \(2, 2, 4\).*\(3, None, None\)"),
        (((3, 2, 4), (3, 5, 4), (3, 6, 4), None), r"shape \(3, 6, 4\).*\(3, 5, None\)"),
        (((3, 2, 4), (3, 5, 4), (3, 5, 4), (3, 4)), r"shape \(3, 4\).*\(3, 5\)"),
        (((3, 2, 4), (3, 5, 4), (3, 5, 4), (3, 3, 5)), r"shape \(3, 3, 5\).*\(3, 2, 5\)"),
    ],
)
def test_what_a_wrong_shape_says(rng, name, shapes, message):
    *arrays, mask = [None if shape is None else np.zeros(shape) for shape in shapes]
    mask = None if mask is None else mask == 0
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        jax.eval_shape(make(name).init, rng, *arrays, mask)


def test_a_mask_must_be_boolean(rng):
    with pytest.raises(AssertionError, match="bool"):
        DotAttention().apply({}, jnp.zeros((1, 1, 2)), jnp.zeros((1, 3, 2)), mask=jnp.ones((1, 3)))


def test_wrong_rank_of_a_step(rng):
    mechanism, params, query, keys, values = setting("additive")
    memory = Memory(keys, values, None)
    with pytest.raises(AssertionError, match=r"has rank 2 \(shape \(2, 4\)\) but expected 3"):
        mechanism.apply({"params": params}, query[0], memory, method="attend")


@pytest.mark.parametrize("mechanism", [DotAttention(), ScaledDotProductAttention()])
def test_unequal_widths_name_the_remedy(mechanism):
    with pytest.raises(ValueError, match=r"found 3 and 2; use general attention"):
        mechanism.apply({}, jnp.zeros((1, 1, 3)), jnp.zeros((1, 4, 2)))


def test_heads_must_divide_the_width(rng):
    with pytest.raises(ValueError, match="8 units cannot be shared by 3 heads"):
        MultiHeadAttention(features=8, num_heads=3).init(rng, jnp.zeros((1, 1, 8)), jnp.zeros((1, 1, 8)))


def test_a_source_too_long_for_location_attention(rng):
    with pytest.raises(ValueError, match="knows 4 source positions, found a source of length 5"):
        LocationAttention(max_len=4).init(rng, jnp.zeros((1, 1, 8)), jnp.zeros((1, 5, 8)))


def test_padding_may_reach_past_the_positions_that_location_attention_knows(rng):
    mechanism, query, keys = LocationAttention(max_len=4), jnp.ones((1, 1, 8)), jnp.ones((1, 7, 8))
    variables = mechanism.init(rng, query, keys[:, :4])
    run = jax.jit(mechanism.apply)
    padded = run(variables, query, keys, mask=np.arange(7)[None] < 3)
    alone = run(variables, query, keys[:, :3])
    np.testing.assert_allclose(padded[0], alone[0], rtol=1e-6)
    np.testing.assert_allclose(padded[1], np.pad(alone[1], ((0, 0), (0, 0), (0, 4))), rtol=1e-6)


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="unknown attention 'luong'; choose one of additive"):
        make_attention("luong", 8)
    with pytest.raises(ValueError, match="dot attention has no option 'num_heads'; it has normalizer"):
        make_attention("dot", 8, num_heads=2)
    with pytest.raises(ValueError, match="additive attention has no option 'name'; it has features, normalizer"):
        make_attention("additive", 8, name="mine")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dot", {"normalizer": "hardmax"}, "normalizer must be one of entmax15, softmax, sparsemax; found 'hardmax'"),
        ("dot", {"precision": "fp8"}, "precision must be one of bfloat16, float32; found 'fp8'"),
        ("dot", {"temperature": 0}, "temperature must be positive, found 0"),
        ("dot", {"temperature": "hot"}, "temperature must be of type float, found 'hot' of type str"),
        ("dot", {"use_bias": 1}, "use_bias must be of type bool, found 1 of type int"),
        ("additive", {"features": 0}, "features must be at least 1, found 0"),
        ("local", {"window": 0}, "window must be at least 1, found 0"),
        ("location", {"max_len": -1}, "max_len must be at least 1, found -1"),
        ("multihead", {"num_heads": 3}, "8 units cannot be shared by 3 heads"),
        ("multihead", {"num_heads": True}, "num_heads must be of type int, found True of type bool"),
        ("multihead", {"num_heads": 0}, "num_heads must be at least 1, found 0"),
    ],
)
def test_what_a_wrong_option_says(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_attention(name, 8, **options)


@pytest.mark.parametrize("name", ["general", "multihead"])
def test_a_query_of_another_batch_says_so(name):
    mechanism, params, query, keys, _ = setting(name)
    memory = mechanism.prepare_fn(params, keys, keys, None)
    with pytest.raises(AssertionError, match=r"(?s)shape \(2, 2, 4\).*\(3, None, None\)"):
        mechanism.apply({"params": params}, query[:2], memory, method="attend")
