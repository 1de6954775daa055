"""What the Transformer's rooms say of wrong shapes and settings."""

import jax
import numpy as np
import pytest

from attn_jax.nn.transformer import DecoderBlock, EncoderBlock, FeedForward
from tests.test_nn_transformer import BATCH, TIME, WIDTH, apply, decoder, source


@pytest.mark.parametrize(
    ("module", "shapes", "message"),
    [
        (FeedForward(4), ((5, 8),), r"has rank 2 \(shape \(5, 8\)\) but expected 3"),
        (EncoderBlock(8, 2, 4), ((2, 5, 6),), r"shape \(2, 5, 6\) but expected \(None, None, 8\)"),
        (EncoderBlock(8, 2, 4), ((2, 5, 8), (2, 4)), r"shape \(2, 4\) but expected \(2, 5\)"),
        (DecoderBlock(8, 2, 4), ((2, 5, 6), (2, 3, 8)), r"shape \(2, 5, 6\) but expected \(None, None, 8\)"),
        (DecoderBlock(8, 2, 4), ((2, 5, 8), (3, 3, 8)), r"(?s)not equal.*\(2, 5, 8\).*\(3, 3, 8\)|prefix"),
        (DecoderBlock(8, 2, 4), ((2, 5, 8), (2, 3, 8), None, (2, 4)), r"shape \(2, 4\) but expected \(2, 3\)"),
    ],
)
def test_what_a_wrong_shape_says(module, shapes, message):
    arrays = [None if s is None else np.zeros(s, bool if len(s) == 2 and i else float) for i, s in enumerate(shapes)]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        jax.eval_shape(module.init, jax.random.key(0), *arrays)


def test_what_a_wrong_step_says():
    block, variables = decoder()
    memory = apply(block, variables, source(), method="prepare")
    cache = block.empty_cache(BATCH, TIME)
    with pytest.raises(AssertionError, match=r"(?s)\(3, 1, 4, 2, 4\).*\(3, 2, 4, 2, None\)"):
        block.apply(variables, np.zeros((BATCH, 2, WIDTH)), cache, np.zeros((BATCH, 2), int), memory, method="step")


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="8 units cannot be shared by 3 heads"):
        jax.eval_shape(EncoderBlock(8, 3, 4).init, jax.random.key(0), np.zeros((1, 2, 8)))
