import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.functional.masks import causal_mask, combine_masks, expand_mask, padding_mask


def test_notebook_masks():
    padding = padding_mask(jnp.array([3, 5, 2, 4]), 5)
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    np.testing.assert_array_equal(padding, np.array(expected, bool))
    np.testing.assert_array_equal(causal_mask(5), np.tril(np.ones((5, 5), bool)))
    both = combine_masks(expand_mask(padding), causal_mask(5))
    assert both.shape == (4, 5, 5)
    np.testing.assert_array_equal(both[2].astype(int), [[1, 0, 0, 0, 0], *[[1, 1, 0, 0, 0]] * 4])
    assert padding.dtype == both.dtype == bool


def test_lengths_of_zero_and_beyond_the_end():
    np.testing.assert_array_equal(padding_mask(jnp.array([0, 9]), 2), [[False, False], [True, True]])


def test_causal_offset_is_a_row_of_the_full_mask():
    full = causal_mask(6)
    np.testing.assert_array_equal(causal_mask(1, 6, offset=3), full[3:4])
    np.testing.assert_array_equal(causal_mask(2, 6, offset=2), full[2:4])
    np.testing.assert_array_equal(jax.jit(lambda t: causal_mask(1, 6, t))(jnp.array(4)), full[4:5])


def test_expand_leaves_full_masks_alone():
    full = jnp.ones((2, 3, 4), bool)
    assert expand_mask(full) is full
    assert expand_mask(full[:, 0]).shape == (2, 1, 4)


def test_combine_takes_none():
    mask = causal_mask(2)
    assert combine_masks() is None
    assert combine_masks(None, None) is None
    assert combine_masks(None, mask) is mask
    np.testing.assert_array_equal(combine_masks(mask, None, ~mask), np.zeros((2, 2), bool))
