"""Every optimiser of `make_optimizer` in `ReSSL.fit`."""

import importlib.util

import numpy as np
import pytest
import slow_optimizers
import tensorflow as tf
from tensorflow import keras

import ressl_tf
from ressl_tf import batch_norm
from ressl_tf import keras_compat
from ressl_tf import schedules
from ressl_tf import workdir

SIZE = 4  # images of 4x4x3
BATCH = 8
OURS = ("sgd", "lars", "adam", "adamw", "lamb")
ADDONS = ("LAMB", "NovoGrad", "SGDW", "LazyAdam")
needs_addons = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_addons") is None,
    reason="TensorFlow Addons is on TensorFlow 2.15 alone",
)
NAMES = [
    *OURS,
    *(pytest.param(f"Addons>{name}", marks=needs_addons) for name in ADDONS),
]
# By which each learns about as much in the few steps here.
LEARNING_RATES = {"sgd": 0.1, "lars": 20.0, "lamb": 0.03, "Addons>SGDW": 0.1}
LEARNING_RATES["Addons>LAMB"] = LEARNING_RATES["lamb"]
STEPS = 6


def make_optimizer(name, **kwargs):
    """With a warm-up and a fall of the learning rate within the steps."""
    if name not in ("adam", "Addons>LazyAdam"):
        kwargs.setdefault("weight_decay", 0.01)
    peak = LEARNING_RATES.get(name, 0.003)
    return ressl_tf.make_optimizer(
        name, schedules.WarmupCosine(peak, STEPS + 1, 2), **kwargs
    )


def make_networks():
    """Backbone, projector, predictor: convolution, batch norm, dense."""
    bias = "random_normal"  # 0 would not decay
    images = keras.Input((SIZE, SIZE, 3))
    # Without the tanh batch norm undoes the bias: its gradient is rounding
    # errors alone, which Adam scales up to steps like any others.
    x = keras.layers.Conv2D(
        4, 3, activation="tanh", bias_initializer=bias, name="conv"
    )(images)
    x = batch_norm.BatchNormalization(
        gamma_initializer="random_normal",
        beta_initializer="random_normal",
        name="bn",
    )(x)
    x = keras.layers.Activation("tanh")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    networks = [keras.Model(images, x, name="backbone")]
    for units, name in ((4, "projector"), (4, "predictor")):
        inputs = keras.Input((networks[-1].output_shape[-1],))
        dense = keras.layers.Dense(units, bias_initializer=bias, name="dense")
        outputs = keras.layers.Activation("linear", dtype="float32")(
            dense(inputs)
        )
        networks.append(keras.Model(inputs, outputs, name=name))
    return networks


def make_model(optimizer, networks=None):
    model = ressl_tf.ReSSL(
        *(networks or make_networks()),
        queue_size=24,
        student_temperature=0.2,
        teacher_temperature=0.1,
        teacher_momentum=0.9,
    )
    model.compile(optimizer)
    return model


def make_dataset(steps):
    """Batches of the given steps."""
    data = {
        role: (
            np.stack(
                [
                    np.random.default_rng([seed, step])
                    .normal(size=(BATCH, SIZE, SIZE, 3))
                    .astype(np.float32)
                    for step in steps
                ]
            ),
        )
        for seed, role in enumerate(("student", "teacher"))
    }
    return tf.data.Dataset.from_tensor_slices(data)


def fit(model, steps):
    model.fit(make_dataset(steps), verbose=0, shuffle=False)


def weights(model):
    """{layer and variable: array} of what the optimiser trains."""
    networks = (model.student.backbone, model.student.projector)
    return {
        f"{network.name}/{layer.name}/{i}": np.array(variable)
        for network in (*networks, model.predictor)
        for layer in network.layers
        for i, variable in enumerate(layer.trainable_variables)
    }


def silence(predictor):
    """Makes a predictor's embeddings constant: no gradient goes below it."""
    layer = predictor.get_layer("dense")
    layer.set_weights([np.zeros((4, 4)), np.ones(4)])
    layer.trainable = False


def assert_decayed(model, before, name, decays_all=False):
    """The weights are what decay alone makes of them in all steps."""
    after = weights(model)
    assert len(before) == 6  # of convolution, batch norm and projector
    for key, start in before.items():
        decays = decays_all or start.ndim > 1
        expected = slow_optimizers.OPTIMIZERS[name](
            start,
            [np.zeros_like(start)] * STEPS,
            [0.1] * STEPS,
            excluded=not decays,
            weight_decay=0.5,
        )
        np.testing.assert_allclose(after[key], expected, rtol=1e-5, err_msg=key)
        if decays:
            assert np.linalg.norm(after[key]) < np.linalg.norm(start)
        else:
            np.testing.assert_array_equal(after[key], start)


@pytest.mark.core
@pytest.mark.parametrize(
    "name, exclude, decays_all",
    [
        ("sgd", None, True),
        ("sgd", True, False),
        ("lars", None, False),
        ("adamw", None, False),
        ("adamw", False, True),
        ("lamb", None, False),
        ("lamb", False, True),
    ],
)
def test_weight_decay_alone(name, exclude, decays_all):
    """Without gradients, what moves a variable is its decay."""
    networks = make_networks()
    silence(networks[-1])
    optimizer = ressl_tf.make_optimizer(
        name, 0.1, weight_decay=0.5, exclude_bias_and_norm=exclude
    )
    model = make_model(optimizer, networks)
    before = weights(model)
    fit(model, range(STEPS))
    assert_decayed(model, before, name, decays_all)


@pytest.mark.core
@pytest.mark.parametrize(
    "name, policy", [("lars", "mixed_float16"), ("adamw", "float32")]
)
def test_compiling_again_changes_nothing(name, policy):
    """Nothing of the optimiser: neither its state nor what it excludes."""
    keras.mixed_precision.set_global_policy(policy)
    networks = make_networks()
    silence(networks[-1])
    given = ressl_tf.make_optimizer(name, 0.1, weight_decay=0.5)
    model = make_model(given, networks)
    before = weights(model)
    fit(model, range(2))
    optimizer = model.optimizer
    model.compile(optimizer)
    assert model.optimizer is optimizer
    if keras_compat.KERAS_3:  # Keras 2 wraps an optimiser for float16 once
        model.compile(given)
    fit(model, range(2, STEPS))
    assert_decayed(model, before, name)


@pytest.mark.core
def test_a_bias_of_rank_two_does_not_decay():
    """Attention's, which a rule by rank would decay."""
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Reshape((SIZE * SIZE, 3))(images)
    x = keras.layers.MultiHeadAttention(
        2, 3, bias_initializer="random_normal", name="attention"
    )(x, x)
    backbone = keras.Model(images, keras.layers.GlobalAveragePooling1D()(x))
    projector, predictor = (make_networks()[2] for _ in range(2))
    inputs = keras.Input((3,))
    projector = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    silence(predictor)
    model = make_model(
        ressl_tf.make_optimizer("lars", 100.0, weight_decay=0.5),
        [backbone, projector, predictor],
    )
    layer = backbone.get_layer("attention")
    before = [np.array(each) for each in layer.trainable_variables]
    fit(model, range(1))
    after = [np.array(each) for each in layer.trainable_variables]
    shapes = [each.shape for each in before]
    assert (2, 3) in shapes and len(shapes) == 8
    for old, new in zip(before, after, strict=True):
        # Kernels are of rank 3 here.
        assert np.array_equal(old, new) == (old.ndim < 3)


@pytest.mark.core
def test_an_optimizer_of_the_users_own_is_left_alone():
    networks = make_networks()
    silence(networks[-1])
    model = make_model(keras.optimizers.AdamW(0.1, weight_decay=0.5), networks)
    before = weights(model)
    fit(model, range(2))
    for key, after in weights(model).items():
        np.testing.assert_allclose(after, before[key] * 0.95**2, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_and_replicas(name, two_replicas, tmp_path):
    """2 + 4 steps are 6, to the last bit; on two replicas, nearly."""

    def restored():
        # Other weights at first, and an optimiser without a past.
        model = make_model(make_optimizer(name))
        manager = workdir.checkpoint_manager(tmp_path, model, keep=1)
        manager.checkpoint.restore(
            manager.latest_checkpoint
        ).assert_existing_objects_matched()
        fit(model, range(2, STEPS))
        iterations = tf.convert_to_tensor(model.optimizer.iterations)
        assert int(iterations) == STEPS
        return weights(model)

    model = make_model(make_optimizer(name))
    fit(model, range(2))
    workdir.checkpoint_manager(tmp_path, model, keep=1).save()
    saved = weights(model)
    fit(model, range(2, STEPS))
    whole = weights(model)
    for key, after in restored().items():
        np.testing.assert_array_equal(after, whole[key], err_msg=key)
    with two_replicas.scope():
        mirrored = restored()
    for key, after in mirrored.items():
        np.testing.assert_allclose(
            after, whole[key], rtol=1e-3, atol=1e-5, err_msg=key
        )
        assert np.abs(after - saved[key]).max() > 1e-3, key


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name, policy):
    keras.mixed_precision.set_global_policy(policy)
    model = make_model(make_optimizer(name))
    assert model.student.backbone.compute_dtype == policy[len("mixed_") :]
    optimizer = keras_compat.unwrapped(model.optimizer)
    assert (optimizer is model.optimizer) == (policy == "mixed_bfloat16")
    start = weights(model)
    fit(model, range(STEPS))
    for key, after in weights(model).items():
        assert after.dtype == np.float32
        assert np.isfinite(after).all()
        assert np.abs(after - start[key]).max() > 1e-4, key
    # A property in Keras, a method of Addons' classes.
    variables = optimizer.variables
    variables = variables() if callable(variables) else variables
    for variable in variables:
        dtype = tf.dtypes.as_dtype(variable.dtype)
        assert dtype == tf.float32 or dtype.is_integer, variable


@needs_addons
@pytest.mark.core
@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        (
            "NovoGrat",
            {},
            "Addons> and one of AdaBelief, .*LAMB, .*SGDW, Yogi: there is no "
            "such optimizer.*'Addons>NovoGrat'",
        ),
        ("TriangularCyclicalLearningRate", {}, "there is no such optimizer"),
        ("SWA", {}, "SWA wraps .*'Addons>SWA'"),
        ("Lookahead", {}, "Lookahead wraps .*'Addons>Lookahead'"),
        ("MovingAverage", {}, "MovingAverage wraps .*'Addons>MovingAverage'"),
        ("MultiOptimizer", {}, "MultiOptimizer wraps .*'Addons>MultiOpt"),
        ("COCOB", {}, "COCOB has no learning rate .*'Addons>COCOB'"),
        (
            "LazyAdam",
            {"weight_decay": 0.1},
            "`weight_decay` must be left at 0.0 for Addons>LazyAdam.*=0.1",
        ),
        (
            "ProximalAdagrad",
            {"momentum": 0.5},
            "`momentum` must be left at 0.9 for Addons>Proximal.*=0.5",
        ),
        ("LAMB", {"exclude_bias_and_norm": True}, "=True, name='Addons>LAMB'"),
        ("SGDW", {"nesterof": True}, "nesterof"),
    ],
)
def test_what_addons_cannot(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ressl_tf.make_optimizer(f"Addons>{name}", 0.1, **kwargs)


@needs_addons
@pytest.mark.core
def test_settings_reach_addons():
    for name, kwargs, expected in (
        ("LAMB", {}, {"beta_1": 0.8, "weight_decay": 0.5}),
        ("NovoGrad", {}, {"beta_1": 0.8, "weight_decay": 0.5}),
        ("SGDW", {"nesterov": True}, {"momentum": 0.8, "weight_decay": 0.5}),
        ("Yogi", {"weight_decay": 0}, {"beta1": 0.8}),
    ):
        optimizer = ressl_tf.make_optimizer(
            f"Addons>{name}",
            schedules.WarmupCosine(0.5, 20, 4),
            **{"momentum": 0.8, "weight_decay": 0.5, **kwargs},
        )
        config = optimizer.get_config()
        assert {key: config[key] for key in expected} == expected
        assert config.get("nesterov", False) == kwargs.get("nesterov", False)
        again = keras.optimizers.deserialize(
            keras.optimizers.serialize(optimizer)
        )
        assert again.get_config() == config


@needs_addons
@pytest.mark.core
def test_addons_sgdw_excludes_by_name():
    networks = make_networks()
    silence(networks[-1])
    optimizer = ressl_tf.make_optimizer(
        "Addons>SGDW",
        0.1,
        weight_decay=0.5,
        exclude_from_weight_decay=["bias", "gamma", "beta"],
    )
    model = make_model(optimizer, networks)
    before = weights(model)
    fit(model, range(2))
    for key, after in weights(model).items():
        # As Addons has it: not times the learning rate.
        factor = 0.5**2 if after.ndim > 1 else 1.0
        np.testing.assert_allclose(after, factor * before[key], rtol=1e-6)
