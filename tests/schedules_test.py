import math

import numpy as np
import pytest
import tensorflow as tf

from ressl_tf import schedules


@pytest.mark.core
@pytest.mark.parametrize(
    "step, expected",
    [
        (0, 0.0),
        (1, 0.05),
        (9, 0.45),
        (10, 0.5),  # the end of the warm-up is the start of the cosine
        (35, 0.25 * (1 + math.cos(math.pi / 4))),
        (60, 0.25),
        (109, 0.25 * (1 + math.cos(math.pi * 0.99))),
        (110, 0.0),
        (111, 0.0),
        (500, 0.0),
    ],
)
def test_warmup_cosine(step, expected):
    schedule = schedules.WarmupCosine(0.5, total_steps=110, warmup_steps=10)
    np.testing.assert_allclose(schedule(step), expected, atol=1e-7)
    np.testing.assert_allclose(
        tf.function(schedule)(tf.constant(step, tf.int64)), expected, atol=1e-7
    )


def test_warmup_cosine_without_warmup_starts_at_the_peak():
    schedule = schedules.WarmupCosine(0.5, total_steps=10)
    np.testing.assert_allclose(schedule(0), 0.5)


@pytest.mark.parametrize(
    "step, expected", [(0, 0.0), (5, 0.25), (9, 0.45), (10, 0.5)]
)
def test_a_run_may_end_within_its_warmup(step, expected):
    schedule = schedules.WarmupCosine(0.5, total_steps=6, warmup_steps=10)
    np.testing.assert_allclose(schedule(step), expected, atol=1e-7)


def test_warmup_cosine_round_trip():
    schedule = schedules.WarmupCosine(0.5, total_steps=110, warmup_steps=10)
    again = schedules.WarmupCosine.from_config(schedule.get_config())
    np.testing.assert_array_equal(again(7), schedule(7))
    np.testing.assert_array_equal(again(70), schedule(70))


@pytest.mark.parametrize(
    "step, expected",
    [
        (0, 0.996),
        (25, 1 - 0.004 * (math.cos(math.pi / 4) + 1) / 2),
        (50, 0.998),
        (99, 1 - 0.004 * (math.cos(math.pi * 0.99) + 1) / 2),
        (100, 1.0),
        (101, 1.0),
    ],
)
def test_cosine_momentum(step, expected):
    momentum = schedules.cosine_momentum(0.996, total_steps=100)
    np.testing.assert_allclose(momentum(step), expected, atol=1e-7)


@pytest.mark.parametrize(
    "warmup_steps, step, expected",
    [(4, 0, 0.0), (4, 1, 0.25), (4, 3, 0.75), (4, 4, 1.0), (4, 5, 1.0)]
    + [(0, 0, 1.0), (0, 9, 1.0)],
)
def test_linear_alpha(warmup_steps, step, expected):
    alpha = schedules.linear_alpha(warmup_steps)
    np.testing.assert_allclose(alpha(step), expected)


@pytest.mark.core
@pytest.mark.parametrize(
    "warmup_steps, final, step, expected",
    [(4, 0.6, 0, 0.0), (4, 0.6, 1, 0.15), (4, 0.6, 4, 0.6), (4, 0.6, 9, 0.6)]
    + [(0, 0.6, 0, 0.6), (0, 0.6, 9, 0.6)]
    + [(4, 0.0, 0, 0.0), (4, 0.0, 9, 0.0), (0, 0.0, 0, 0.0), (0, 0, 9, 0.0)]
    + [(4, 1, 2, 0.5), (0, 1, 0, 1.0)],
)
def test_linear_alpha_to_another_value(warmup_steps, final, step, expected):
    alpha = schedules.linear_alpha(warmup_steps, final)
    for now in (step, tf.constant(step, tf.int64)):
        assert alpha(now).dtype == tf.float32
        np.testing.assert_allclose(alpha(now), expected)


@pytest.mark.parametrize(
    "batch_size, expected",
    [(64, 0.015), (255, 0.06 * 255 / 256), (256, 0.06), (1024, 0.24)],
)
def test_scaled_learning_rate(batch_size, expected):
    peak = schedules.scaled_learning_rate(0.06, batch_size)
    assert peak == pytest.approx(expected)


@pytest.mark.core
@pytest.mark.parametrize(
    "given, expected",
    [
        ({"epochs": 10}, 1950),
        ({"epochs": 10.0, "steps": 0}, 1950),
        ({"epochs": 0.5}, 98),
        ({"epochs": 0.002}, 0),
        ({"steps": 7}, 7),
        ({"epochs": 0.0, "steps": 1000}, 1000),
        ({}, 0),
        ({"epochs": 0, "steps": 0}, 0),
    ],
)
def test_duration_in_steps(given, expected):
    steps = schedules.duration_in_steps("warmup_", steps_per_epoch=195, **given)
    assert steps == expected
    assert isinstance(steps, int)


@pytest.mark.parametrize(
    "prefix, given, message",
    [
        (
            "warmup_",
            {"epochs": 1, "steps": 2},
            "one of `warmup_epochs` and `warmup_steps`, and 0 for the other. "
            "Received: warmup_epochs=1, warmup_steps=2",
        ),
        (
            "train.",
            {"epochs": 0.5, "steps": 1},
            "one of `train.epochs` and `train.steps`.*Received: "
            "train.epochs=0.5, train.steps=1",
        ),
        ("warmup_", {"epochs": -1}, "at least 0.*Received: warmup_epochs=-1"),
        ("train.", {"steps": -2}, "at least 0.*Received: train.steps=-2"),
        ("warmup_", {"steps": 1.5}, "whole number. Received: warmup_steps=1.5"),
    ],
)
def test_wrong_durations(prefix, given, message):
    with pytest.raises(ValueError, match=message):
        schedules.duration_in_steps(prefix, steps_per_epoch=195, **given)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: schedules.WarmupCosine(0.0, 10), "Received: peak=0.0"),
        (lambda: schedules.WarmupCosine(1.0, 0), "total_steps=0"),
        (lambda: schedules.WarmupCosine(1.0, 10, -1), "warmup_steps=-1"),
        (lambda: schedules.cosine_momentum(1.1, 10), "initial=1.1"),
        (lambda: schedules.cosine_momentum(0.9, 0), "total_steps=0"),
        (lambda: schedules.linear_alpha(-1), "warmup_steps=-1"),
        (lambda: schedules.linear_alpha(4, 1.1), "`final` .*final=1.1"),
        (lambda: schedules.linear_alpha(0, -0.1), "`final` .*final=-0.1"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
