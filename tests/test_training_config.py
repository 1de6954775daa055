"""The settings of a training: what they refuse, and the schedules that they ask for."""

import numpy as np
import pytest

from attn_jax.training.loop import TrainConfig, guided_schedule, teacher_forcing_schedule


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({}, None),
        ({"teacher_forcing_value": 0.3}, [0.3, 0.3, 0.3, 0.3]),
        ({"teacher_forcing": "linear"}, [1, 0.75, 0.5, 0.05]),
        ({"teacher_forcing": "linear", "teacher_forcing_value": 0.5}, [1, 0.875, 0.75, 0.525]),
        ({"teacher_forcing": "cosine"}, [1, 0.85355, 0.5, 0.00616]),
        ({"teacher_forcing": "cosine", "teacher_forcing_value": 0.2}, [1, 0.88284, 0.6, 0.20492]),
        ({"teacher_forcing": "exponential"}, [1, 0.97, 0.97**2, 0.97**3.8]),  # by epochs
        ({"teacher_forcing": "inverse_sigmoid"}, [10 / 11, *(10 / (10 + np.exp(e / 10)) for e in (1, 2, 3.8))]),
    ],
)
def test_teacher_forcing_over_a_run(settings, values):
    schedule = teacher_forcing_schedule(TrainConfig(**settings), total_steps=20, steps_per_epoch=5)
    if values is None:
        assert schedule is None
        return
    np.testing.assert_allclose([float(schedule(step)) for step in (0, 5, 10, 19)], values, atol=1e-5)


def test_guided_weight_over_a_run():
    assert guided_schedule(TrainConfig()) is None
    assert [guided_schedule(TrainConfig(guided_weight=0.5))(step) for step in (0, 99)] == [0.5, 0.5]
    assert [guided_schedule(TrainConfig(guided_weight=0.5, guided_until=7))(step) for step in (0, 6, 7)] == [
        0.5,
        0.5,
        0,
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -5}, "steps must not be negative, found -5"),
        ({"steps": 0, "epochs": 0}, "expected epochs >= 1 or steps >= 1, found 0 and 0"),
        ({"valid_every": -1}, "valid_every must not be negative, found -1"),
        ({"checkpoint_every": -2}, "checkpoint_every must not be negative, found -2"),
        ({"patience": -1}, "patience must not be negative, found -1"),
        ({"guided_weight": -0.1}, "guided_weight must not be negative, found -0.1"),
        ({"log_every": 0}, "log_every must be at least 1, found 0"),
        ({"keep_best": 0}, "keep_best must be at least 1, found 0"),
        ({"seed": -1}, r"seed must be between 0 and 2\*\*32 - 1, found -1"),
        ({"seed": 2**32}, "found 4294967296"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), found 1.0"),
        ({"teacher_forcing_value": 1.5}, "teacher_forcing_value is a probability, found 1.5"),
        ({"teacher_forcing": "scheduled"}, "must be one of constant, linear, exponential, inverse_sigmoid, cosine; f"),
    ],
)
def test_train_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
