import sys
from pathlib import Path

import numpy as np
import pytest
import slow_optimizers
import tensorflow as tf
from tensorflow import keras

import ressl_tf
from ressl_tf import keras_compat
from ressl_tf import optimizers

# Computed by torch in float64: start, gradients and learning rate of 12 steps.
TORCH = np.load(Path(__file__).parent / "data" / "optimizers.npz")
VARIABLES = range(3)  # of ranks 2, 1 and 4
STEPS = range(12)


class TorchLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        rates = tf.constant(TORCH["lr"], tf.float32)
        return tf.gather(rates, tf.cast(step, tf.int32))

    def get_config(self):
        return {}


def start():
    make = getattr(keras, "Variable", tf.Variable)
    return [make(TORCH[f"w0/{i}"].astype(np.float32)) for i in VARIABLES]


def train(optimizer, variables, steps=STEPS):
    for step in steps:
        gradients = [
            tf.constant(TORCH[f"g{step}/{i}"], tf.float32) for i in VARIABLES
        ]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))


TORCH_CASES = {
    "sgd": ("sgd", {"weight_decay": float(TORCH["sgd/weight_decay"])}),
    "nesterov": (
        "sgd",
        {
            "weight_decay": float(TORCH["nesterov/weight_decay"]),
            "nesterov": True,
        },
    ),
    "lars": (
        "lars",
        {
            "trust": float(TORCH["lars/eta_weight_decay"][0]),
            "weight_decay": float(TORCH["lars/eta_weight_decay"][1]),
        },
    ),
}
CASES = {
    **TORCH_CASES,
    "sgd_excluding": (
        "sgd",
        {"weight_decay": 0.1, "exclude_bias_and_norm": True},
    ),
    "adam": ("adam", {"momentum": 0.8}),
    "adamw": ("adamw", {"weight_decay": 0.1}),
    "lamb": ("lamb", {"weight_decay": 0.1, "momentum": 0.8}),
    "lamb_of_all": (
        "lamb",
        {
            "weight_decay": 0.1,
            "exclude_bias_and_norm": False,
            "beta_2": 0.95,
            "epsilon": 1e-3,
        },
    ),
}


def make(case, learning_rate=None):
    name, kwargs = CASES[case]
    return ressl_tf.make_optimizer(
        name, learning_rate or TorchLearningRate(), **kwargs
    )


@pytest.mark.core
@pytest.mark.parametrize("case", TORCH_CASES)
def test_equals_torch(case):
    optimizer, variables = make(case), start()
    optimizer.build(variables)
    train(optimizer, variables)
    for i in VARIABLES:
        np.testing.assert_allclose(
            variables[i], TORCH[f"{case}/{i}"], rtol=1e-5, atol=1e-7
        )


def slow(case, i, excluded):
    name, kwargs = CASES[case]
    kwargs = {"weight_decay": 0.0, **kwargs}
    kwargs.pop("exclude_bias_and_norm", None)
    return slow_optimizers.OPTIMIZERS[name](
        TORCH[f"w0/{i}"],
        [TORCH[f"g{step}/{i}"] for step in STEPS],
        TORCH["lr"],
        excluded=excluded,
        **kwargs,
    )


@pytest.mark.core
@pytest.mark.parametrize("case", CASES)
def test_equals_slow_reference(case):
    # Which variables the optimiser is told to leave out; None: not told.
    for told in (None, {0}, {1, 2}, set()):
        optimizer, variables = make(case), start()
        excluded = told
        if told is None:
            # Its own rule is by rank; Keras' AdamW has none.
            asks = getattr(optimizer, "exclude_bias_and_norm", False)
            excluded = {1} if asks and case != "adamw" else set()
        else:
            optimizer.exclude_from_weight_decay(
                var_list=[variables[i] for i in told]
            )
        optimizer.build(variables)
        train(optimizer, variables)
        for i in VARIABLES:
            np.testing.assert_allclose(
                variables[i],
                slow(case, i, i in excluded),
                rtol=1e-4,
                atol=1e-5,
                err_msg=f"variable {i}, told {told}",
            )


def test_exclusion_makes_a_difference():
    """Or the test above would not see it."""
    for case in CASES:
        if case != "adam":
            for i in VARIABLES:
                difference = slow(case, i, True) - slow(case, i, False)
                assert np.abs(difference).max() > 2e-4, case


@pytest.mark.core
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
    for i in VARIABLES:
        np.testing.assert_array_equal(others[i], variables[i])


@pytest.mark.core
@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    optimizer = make(case, 0.25)
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert float(tf.convert_to_tensor(again.learning_rate)) == 0.25
    _, kwargs = CASES[case]
    names = {
        "weight_decay": ("l2", "weight_decay_rate", "weight_decay"),
        "momentum": ("momentum", "beta_1"),
    }
    for argument, value in kwargs.items():
        if case == "adamw" and argument == "exclude_bias_and_norm":
            continue
        found = [
            n for n in names.get(argument, (argument,)) if hasattr(again, n)
        ]
        assert getattr(again, found[0]) == value


def test_the_schedule_survives_a_round_trip():
    schedule = ressl_tf.schedules.WarmupCosine(0.5, 20, 4)
    for name in optimizers.OPTIMIZERS:
        optimizer = ressl_tf.make_optimizer(name, schedule)
        config = keras.optimizers.serialize(optimizer)
        again = keras.optimizers.deserialize(config)
        assert type(again) is type(optimizer)
        np.testing.assert_array_equal(again._learning_rate(3), schedule(3))


def one_step(optimizer, variable, gradient):
    make_variable = getattr(keras, "Variable", tf.Variable)
    variable = make_variable(np.array(variable, np.float32))
    optimizer.build([variable])
    optimizer.apply_gradients([(tf.constant(gradient), variable)])
    return np.asarray(variable)


def one_lars_step(variable, gradient, **kwargs):
    return one_step(optimizers.LARS(0.5, **kwargs), variable, gradient)


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
    "variable, gradient, weight_decay_rate, expected",
    [
        # m' / sqrt(v') is (1, -1) in the first step, whatever |g|; |w| = 5.
        ([[3.0, 4.0]], [[9.0, -0.1]], 0.0, [[3 - 12.5**0.5 / 2, 5.767767]]),
        # r = (1 + 1 * 3, -1 + 1 * 4) = (4, 3) and |r| = |w|.
        ([[3.0, 4.0]], [[9.0, -0.1]], 1.0, [[3.0 - 2.0, 4.0 - 1.5]]),
        ([[0.0]], [[2.0]], 0.1, [[-0.5]]),  # |w| = 0: not scaled
        ([[3.0]], [[0.0]], 0.0, [[3.0]]),  # |r| = 0: nothing to scale
        ([3.0, 4.0], [9.0, -0.1], 1.0, [2.5, 4.5]),  # rank 1: neither
    ],
)
def test_lamb_by_hand(variable, gradient, weight_decay_rate, expected):
    optimizer = optimizers.LAMB(0.5, weight_decay_rate=weight_decay_rate)
    moved = one_step(optimizer, variable, gradient)
    np.testing.assert_allclose(moved, expected, rtol=1e-4)


@keras.utils.register_keras_serializable(package="optimizers_test")
class Scale(keras.layers.Layer):
    """A vector that is called bias and is none, and a bias that is none."""

    bias = True

    def build(self, input_shape):
        self.scale = self.add_weight(
            name="bias", shape=(input_shape[-1],), initializer="ones"
        )
        self.built = True

    def call(self, inputs):
        return inputs * self.scale


def every_role():
    """A network with a layer of each kind, some of them in an inner model."""
    layers = keras.layers
    inputs = keras.Input((4, 4, 6))
    x = layers.Conv2D(6, 3, padding="same", name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    x = layers.GroupNormalization(2, name="group")(x)
    x = layers.UnitNormalization(name="unit")(x)
    x = Scale(name="scale")(x)
    stem = keras.Model(inputs, x, name="stem")
    images = keras.Input((4, 4, 6))
    x = ressl_tf.batch_norm.BatchNormalization(name="ours")(stem(images))
    x = layers.Conv2D(6, 1, use_bias=False, name="no_bias")(x)
    x = layers.BatchNormalization(scale=False, name="keras_bn")(x)
    x = layers.Reshape((16, 6))(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.LayerNormalization(name="layer")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(images, layers.Dense(5, name="dense")(x))


def path(variable):
    return (variable.path if keras_compat.KERAS_3 else variable.name).split(
        ":"
    )[0]


@pytest.mark.core
def test_biases_and_normalisation_by_their_role():
    network = every_role()
    found = optimizers.bias_and_norm_variables([network])
    # Keras' names are an oracle for Keras' layers.
    expected = [
        variable
        for variable in network.trainable_variables
        if path(variable).split("/")[-1] in ("bias", "gamma", "beta")
        and "scale" not in path(variable)
    ]
    assert {id(each) for each in found} == {id(each) for each in expected}
    # Conv, depthwise, separable, dense, four of attention; two of each
    # normalisation, one of which has no gamma and one nothing at all.
    assert len(found) == len({id(each) for each in found}) == 8 + 7
    # What a rule by rank, or by names, would have got wrong.
    assert sorted(len(each.shape) for each in found) == [1] * 12 + [2] * 3
    left = [
        variable
        for variable in network.trainable_variables
        if id(variable) not in {id(each) for each in found}
    ]
    assert sorted(len(each.shape) for each in left)[0] == 1
    assert len(left) == 1 + 1 + 1 + 2 + 1 + 4 + 1  # the scale; kernels


@pytest.mark.core
def test_frozen_layers_have_no_roles():
    network = every_role()
    for name in ("keras_bn", "dense"):
        network.get_layer(name).trainable = False
    assert len(optimizers.bias_and_norm_variables([network])) == 13


@pytest.mark.core
@pytest.mark.parametrize("name", ["sgd", "lars", "lamb"])
def test_exclusion_comes_before_build(name):
    optimizer, variables = ressl_tf.make_optimizer(name, 0.1), start()
    optimizer.build(variables)
    with pytest.raises(ValueError, match="before.*the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_list=variables[:1])
    other = ressl_tf.make_optimizer(name, 0.1)
    with pytest.raises(ValueError, match=r"Received: var_names=\['bias'\]"):
        other.exclude_from_weight_decay(var_names=["bias"])


@pytest.mark.core
@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("sgd", None, False),
        ("sgd", True, True),
        ("lars", None, True),
        ("lars", True, True),
        ("adamw", None, True),
        ("adamw", False, False),
        ("lamb", None, True),
        ("lamb", False, False),
    ],
)
def test_who_excludes_biases_and_normalisation(name, value, expected):
    optimizer = ressl_tf.make_optimizer(name, 0.1, exclude_bias_and_norm=value)
    assert optimizer.exclude_bias_and_norm is expected


@pytest.mark.core
def test_adam_is_keras_own():
    for name, kind in (
        ("adam", keras.optimizers.Adam),
        ("adamw", keras.optimizers.AdamW),
    ):
        for value in (None, True, False):
            optimizer = ressl_tf.make_optimizer(
                name, 0.1, exclude_bias_and_norm=value
            )
            assert type(optimizer) is kind


@pytest.mark.core
@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"name": "adamm"},
            "`name` must be one of sgd, lars, adam, adamw, lamb, or Addons>NAM"
            ".*'adamm'",
        ),
        ({"name": None}, "Received: name=None"),
        ({"name": "sgd", "momentum": 1.0}, "`momentum`.*momentum=1.0"),
        ({"name": "adam", "momentum": -0.1}, "`momentum`.*momentum=-0.1"),
        (
            {"name": "sgd", "weight_decay": -1.0},
            "`weight_decay` must be at least 0. Received: weight_decay=-1.0",
        ),
        ({"name": "adamw", "weight_decay": float("nan")}, "weight_decay=nan"),
        (
            {"name": "adam", "weight_decay": 0.1},
            "`weight_decay` must be 0.*use adamw.*weight_decay=0.1",
        ),
        (
            {"name": "lars", "exclude_bias_and_norm": False},
            "`exclude_bias_and_norm` must be True or None for lars.*=False",
        ),
        (
            {"name": "sgd", "exclude_bias_and_norm": "yes"},
            "True, False or None. Received: exclude_bias_and_norm='yes'",
        ),
        ({"name": "lars", "trust": 0.0}, "Received: trust=0.0"),
        ({"name": "lamb", "beta_2": 1.0}, "Received: beta_2=1.0"),
        ({"name": "lamb", "epsilon": 0.0}, "Received: epsilon=0.0"),
        (
            {"name": "sgd", "l2": 0.1},
            "`l2` must not be given: `weight_decay` .*Received: l2=0.1",
        ),
        (
            {"name": "adamw", "beta_1": 0.8},
            "`beta_1` must not be given: `momentum` .*Received: beta_1=0.8",
        ),
        *(
            ({"name": name, "weight_dekay": 1.0}, "weight_dekay")
            for name in ("sgd", "lars", "adam", "adamw", "lamb")
        ),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ressl_tf.make_optimizer(learning_rate=0.1, **kwargs)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: optimizers.MomentumSGD(0.1, l2=-1.0), "Received: l2=-1.0"),
        (
            lambda: optimizers.MomentumSGD(0.1, momentum=1.0),
            "Received: momentum=1.0",
        ),
        (lambda: optimizers.LAMB(0.1, beta_1=1.0), "Received: beta_1=1.0"),
        (
            lambda: optimizers.LAMB(0.1, weight_decay_rate=-1.0),
            "Received: weight_decay_rate=-1.0",
        ),
    ],
)
def test_bad_values_of_the_classes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.core
def test_addons_elsewhere_says_what_it_needs(monkeypatch):
    """As where it is not installed, whatever this environment has."""
    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    with pytest.raises(
        ValueError,
        match=r"'Addons>LAMB' needs TensorFlow 2.15 with TensorFlow Addons: "
        r'pip install "ressl-tf\[addons\]", on Python up to 3.11.*May 2024.*'
        r"2.16 or later.*TensorFlow 2\.",
    ):
        ressl_tf.make_optimizer("Addons>LAMB", 0.1)
