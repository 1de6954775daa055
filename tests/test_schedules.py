import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.functional.schedules import (
    SCHEDULES,
    constant_schedule,
    cosine_schedule,
    exponential_schedule,
    inverse_sigmoid_schedule,
    linear_schedule,
)

EPOCHS = jnp.array([0, 25, 50, 75, 99])
ALL = [
    constant_schedule(1.0),
    linear_schedule(100),
    exponential_schedule(0.97),
    inverse_sigmoid_schedule(10),
    cosine_schedule(100),
]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant_schedule(0.3), [0.3, 0.3, 0.3, 0.3, 0.3]),
        (linear_schedule(100), [1, 0.75, 0.5, 0.25, 0.01]),
        (exponential_schedule(0.97), [1, 0.467, 0.218, 0.102, 0.049]),
        (inverse_sigmoid_schedule(10), [0.909, 0.451, 0.063, 0.0055, 0.0005]),
        (cosine_schedule(100), [1, 0.854, 0.5, 0.146, 0.0002]),
    ],
    ids=["constant", "linear", "exponential", "inverse sigmoid", "cosine"],
)
def test_notebook_values(schedule, values):
    found = [schedule(int(epoch)) for epoch in EPOCHS]
    for value, printed in zip(found, values, strict=True):
        digits = 4 if printed < 0.01 else 3
        assert round(float(value), digits) == printed


def test_exact_equations():
    e = np.array([0.0, 25, 50, 75, 99])
    expected = [np.ones(5), 1 - e / 100, 0.97**e, 10 / (10 + np.exp(e / 10)), (1 + np.cos(np.pi * e / 100)) / 2]
    for schedule, values in zip(ALL, expected, strict=True):
        np.testing.assert_allclose(schedule(EPOCHS), values, rtol=1e-5, atol=1e-7)


def test_probabilities_never_rise_and_stay_in_range_for_ever():
    steps = jnp.array([0, 1, 10, 99, 100, 101, 10_000, 10_000_000])
    for schedule in ALL:
        values = np.asarray(schedule(steps))
        assert ((values >= 0) & (values <= 1)).all()
        assert (np.diff(values) <= 0).all()


def test_start_and_end():
    for make in (linear_schedule, cosine_schedule):
        schedule = make(10, start=0.9, end=0.2)
        np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 99)], [0.9, 0.55, 0.2, 0.2], rtol=1e-6)


def test_traced_steps_do_not_recompile():
    for schedule in ALL:
        traced = jax.jit(chex.assert_max_traces(schedule, 1))
        np.testing.assert_allclose([traced(step) for step in (3, 40)], [schedule(3), schedule(40)], rtol=1e-6)


def test_names():
    assert list(SCHEDULES) == ["constant", "linear", "exponential", "inverse_sigmoid", "cosine"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant_schedule(1.5), r"value must be a probability in \[0, 1\], found 1.5"),
        (lambda: linear_schedule(0), "steps must be positive, found 0"),
        (lambda: cosine_schedule(10, end=-1), "end must be a probability"),
        (lambda: exponential_schedule(1.2), r"rate must be in \(0, 1\], found 1.2"),
        (lambda: inverse_sigmoid_schedule(0.5), "k must be at least 1, found 0.5"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
