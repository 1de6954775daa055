import math

import numpy as np
import pytest

from attn_jax.functional.positions import sinusoidal_encoding, sinusoidal_positions


def test_by_hand():
    table = sinusoidal_positions(4, 6)
    assert table.shape == (4, 6)
    np.testing.assert_array_equal(table[0], [0, 1, 0, 1, 0, 1])
    angle = 3 / 10000 ** (4 / 6)
    np.testing.assert_allclose(table[3, 4:], [math.sin(angle), math.cos(angle)], rtol=1e-6)


def test_halves_are_the_same_numbers_in_another_order():
    interleaved, halves = sinusoidal_positions(7, 8), sinusoidal_positions(7, 8, interleaved=False)
    np.testing.assert_array_equal(halves[:, :4], interleaved[:, 0::2])
    np.testing.assert_array_equal(halves[:, 4:], interleaved[:, 1::2])


def test_the_product_of_two_positions_depends_on_their_distance():
    table = np.asarray(sinusoidal_positions(50, 16))
    products = table @ table.T
    np.testing.assert_allclose(np.diag(products, 5), products[0, 5], rtol=1e-5)


def test_far_positions_are_exact():
    assert sinusoidal_positions(5001, 2)[5000, 0] == np.float32(math.sin(5000.0))


def test_the_lowest_frequency_can_be_one_in_ten_thousand():
    table = sinusoidal_positions(8, 6, interleaved=False, inclusive=True)
    angles = 7 / np.array([1, 100, 10000])
    np.testing.assert_allclose(table[7], [*np.sin(angles), *np.cos(angles)], rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"interleaved": False}, {"interleaved": False, "inclusive": True}])
def test_an_encoding_is_its_row_of_the_table(options):
    table = np.asarray(sinusoidal_positions(60, 6, **options))
    where = np.array([[0, 59], [7, 31]])
    np.testing.assert_allclose(sinusoidal_encoding(where, 6, **options), table[where], atol=1e-5)


@pytest.mark.parametrize("d_model", [0, 5])
def test_odd_width_is_refused(d_model):
    with pytest.raises(ValueError, match=f"even d_model.*found {d_model}"):
        sinusoidal_positions(3, d_model)
