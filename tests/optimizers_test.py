from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import ressl_tf
from ressl_tf import optimizers

# Computed by torch in float64: start, gradients and learning rate of 12 steps.
TORCH = np.load(Path(__file__).parent / "data" / "optimizers.npz")


class TorchLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        rates = tf.constant(TORCH["lr"], tf.float32)
        return tf.gather(rates, tf.cast(step, tf.int32))

    def get_config(self):
        return {}


def start():
    make = getattr(keras, "Variable", tf.Variable)
    return [make(TORCH[f"w0/{i}"].astype(np.float32)) for i in range(3)]


def train(optimizer, variables, steps):
    for step in steps:
        gradients = [
            tf.constant(TORCH[f"g{step}/{i}"], tf.float32) for i in range(3)
        ]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))


CASES = {
    "sgd": ("sgd", {"l2": float(TORCH["sgd/weight_decay"])}),
    "nesterov": (
        "sgd",
        {"l2": float(TORCH["nesterov/weight_decay"]), "nesterov": True},
    ),
    "lars": (
        "lars",
        {
            "trust": float(TORCH["lars/eta_weight_decay"][0]),
            "l2": float(TORCH["lars/eta_weight_decay"][1]),
        },
    ),
}


def make(case):
    name, kwargs = CASES[case]
    return ressl_tf.make_optimizer(name, TorchLearningRate(), **kwargs)


@pytest.mark.core
@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case):
    optimizer, variables = make(case), start()
    optimizer.build(variables)
    train(optimizer, variables, range(12))
    for i in range(3):
        np.testing.assert_allclose(
            variables[i], TORCH[f"{case}/{i}"], rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("case", CASES)
def test_continues_from_a_checkpoint(case, tmp_path):
    optimizer, variables = make(case), start()
    optimizer.build(variables)
    train(optimizer, variables, range(5))
    path = tf.train.Checkpoint(optimizer=optimizer, variables=variables).save(
        str(tmp_path / "step")
    )
    train(optimizer, variables, range(5, 12))

    again, others = make(case), start()
    again.build(others)
    tf.train.Checkpoint(optimizer=again, variables=others).restore(path)
    assert int(tf.convert_to_tensor(again.iterations)) == 5
    train(again, others, range(5, 12))
    for i in range(3):
        np.testing.assert_array_equal(others[i], variables[i])


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    name, kwargs = CASES[case]
    optimizer = ressl_tf.make_optimizer(name, 0.25, momentum=0.8, **kwargs)
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert float(tf.convert_to_tensor(again.learning_rate)) == 0.25
    for argument, value in {"momentum": 0.8, **kwargs}.items():
        assert getattr(again, argument) == value


def one_lars_step(variable, gradient, **kwargs):
    make_variable = getattr(keras, "Variable", tf.Variable)
    variable = make_variable(np.array(variable, np.float32))
    optimizer = optimizers.LARS(0.5, **kwargs)
    optimizer.build([variable])
    optimizer.apply_gradients([(tf.constant(gradient), variable)])
    return np.asarray(variable)


def test_lars_by_hand():
    # |w| = 5, |g| = 2: the gradient is scaled by 0.1 * 5 / 2.
    moved = one_lars_step([[3.0], [4.0]], [[2.0], [0.0]], l2=0.0, trust=0.1)
    np.testing.assert_allclose(moved, [[3.0 - 0.5 * 0.25 * 2.0], [4.0]])


def test_lars_leaves_rank_one_alone():
    moved = one_lars_step([3.0, 4.0], [2.0, 0.0], l2=0.1, trust=0.1)
    np.testing.assert_allclose(moved, [2.0, 4.0])


@pytest.mark.parametrize(
    "variable, gradient, expected",
    [
        ([[0.0]], [[2.0]], [[-1.0]]),  # |w| = 0: not scaled
        ([[3.0]], [[0.0]], [[3.0]]),  # |g| = 0: nothing to scale
    ],
)
def test_lars_with_zero_norms(variable, gradient, expected):
    moved = one_lars_step(variable, gradient, l2=0.0, trust=0.1)
    np.testing.assert_allclose(moved, expected)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"name": "adamm"}, "`name` must be one of sgd, lars.*'adamm'"),
        ({"name": "sgd", "momentum": 1.0}, "Received: momentum=1.0"),
        ({"name": "sgd", "l2": -1.0}, "Received: l2=-1.0"),
        ({"name": "lars", "trust": 0.0}, "Received: trust=0.0"),
        ({"name": "sgd", "weight_dekay": 1.0}, "weight_dekay"),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ressl_tf.make_optimizer(learning_rate=0.1, **kwargs)
