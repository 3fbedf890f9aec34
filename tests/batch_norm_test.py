import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import ressl_tf
from ressl_tf import batch_norm
from ressl_tf.batch_norm import BatchNormalization

MOMENTUM = 0.8
EPSILON = 1e-2


def values(*shape, seed=0):
    # Off-centre and of different spread in each column.
    spread = np.linspace(0.5, 2.0, shape[-1])
    normal = np.random.default_rng(seed).normal(size=shape)
    return (spread * normal + 1.0).astype(np.float32)


def make_layer(splits, shape, **kwargs):
    """A built layer with weights unlike the initial ones."""
    layer = BatchNormalization(
        splits, momentum=MOMENTUM, epsilon=EPSILON, **kwargs
    )
    layer.build((None, *shape[1:]))
    channels = shape[-1]
    layer.set_weights(
        [
            values(channels, seed=1),  # gamma
            values(channels, seed=2),  # beta
            values(channels, seed=3),  # moving mean
            np.abs(values(channels, seed=4)) + 0.1,  # moving variance
        ]
    )
    return layer


class SlowSplit:
    """Loops over groups, float64."""

    def __init__(self, splits, weights):
        self.splits = splits
        self.gamma, self.beta, self.mean, self.variance = (
            np.asarray(weight, np.float64) for weight in weights
        )

    def __call__(self, x):
        outputs, means, variances = [], [], []
        for group in np.split(np.asarray(x, np.float64), self.splits):
            rows = group.reshape(-1, group.shape[-1])
            mean = sum(rows) / len(rows)
            variance = sum((row - mean) ** 2 for row in rows) / len(rows)
            outputs.append(self.scale(group, mean, variance))
            means.append(mean)
            variances.append(variance)
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * np.mean(means, 0)
        self.variance = MOMENTUM * self.variance + (1 - MOMENTUM) * np.mean(
            variances, 0
        )
        return np.concatenate(outputs)

    def scale(self, x, mean, variance):
        x = (x - mean) / np.sqrt(variance + EPSILON)
        return x * self.gamma + self.beta


@pytest.mark.core
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("shape", [(12, 3), (6, 4, 5, 3)])
@pytest.mark.parametrize("splits", [None, 1, 3])
def test_equals_slow_groups(splits, shape, jit_compile):
    layer = make_layer(splits, shape)
    slow = SlowSplit(splits or 1, layer.get_weights())
    step = tf.function(
        lambda x: layer(x, training=True), jit_compile=jit_compile
    )
    for number in range(3):
        x = values(*shape, seed=number)
        np.testing.assert_allclose(step(x), slow(x), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.moving_mean, slow.mean, rtol=1e-5)
        np.testing.assert_allclose(
            layer.moving_variance, slow.variance, rtol=1e-5
        )


@pytest.mark.parametrize("splits", [None, 3])
@pytest.mark.parametrize("shape", [(12, 3), (6, 4, 5, 3)])
def test_gradients_by_hand(shape, splits):
    layer = make_layer(splits, shape)
    splits = splits or 1
    x, upstream = values(*shape), values(*shape, seed=5)
    with tf.GradientTape() as tape:
        inputs = tf.constant(x)
        tape.watch(inputs)
        loss = tf.reduce_sum(layer(inputs, training=True) * upstream)
    gradients = tape.gradient(loss, [inputs, *layer.trainable_variables])

    gamma = np.asarray(layer.gamma)
    expected, for_gamma = [], 0
    for group, up in zip(
        np.split(x, splits), np.split(upstream, splits), strict=True
    ):
        axes = tuple(range(x.ndim - 1))
        deviation = np.sqrt(group.var(axes) + EPSILON)
        hat = (group - group.mean(axes)) / deviation
        for_gamma += (up * hat).sum(axes)
        centred = up - up.mean(axes) - hat * (up * hat).mean(axes)
        expected.append(gamma / deviation * centred)
    for gradient, by_hand in zip(
        gradients,
        [np.concatenate(expected), for_gamma, upstream.sum(axes)],
        strict=True,
    ):
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("splits", [None, 1])
def test_one_group_is_keras_own(splits):
    split = make_layer(splits, (6, 4, 4, 3))
    # Synchronised, because Keras 2's fused kernel corrects the variance.
    own = keras.layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=EPSILON, synchronized=True
    )
    own.build((None, 4, 4, 3))
    own.set_weights(split.get_weights())
    for number in range(3):
        x = values(6, 4, 4, 3, seed=number)
        np.testing.assert_allclose(
            split(x, training=True), own(x, training=True), atol=1e-4
        )
    for a, b in zip(split.get_weights(), own.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("frozen", [False, True])
def test_inference_is_keras_own(frozen):
    split = make_layer(3, (6, 4, 4, 3))
    own = keras.layers.BatchNormalization(epsilon=EPSILON)
    own.build((None, 4, 4, 3))
    own.set_weights(split.get_weights())
    before = split.get_weights()
    split.trainable = not frozen
    x = values(5, 4, 4, 3)  # 5 rows do not make 3 groups, and need not
    np.testing.assert_array_equal(
        split(x, training=frozen), own(x, training=False)
    )
    for old, new in zip(before, split.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_without_gamma_and_beta():
    layer = BatchNormalization(2, center=False, scale=False, epsilon=1e-7)
    x = np.float32([[1.0], [3.0], [10.0], [30.0]])
    np.testing.assert_allclose(
        layer(x, training=True), [[-1], [1], [-1], [1]], atol=1e-4
    )
    assert len(layer.weights) == 2


def test_batch_size_may_be_unknown():
    layer = make_layer(3, (6, 2))
    slow = SlowSplit(3, layer.get_weights())

    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def step(x):
        outputs = layer(x, training=True)
        assert outputs.shape.as_list() == [None, 2]
        return outputs

    for size in (6, 9):
        x = values(size, 2, seed=size)
        np.testing.assert_allclose(step(x), slow(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        step(values(7, 2))


@pytest.mark.core
def test_shapes_stay_static():
    layer = make_layer(3, (6, 4, 4, 2))
    function = tf.function(lambda x: layer(x, training=True))
    concrete = function.get_concrete_function(tf.TensorSpec([6, 4, 4, 2]))
    assert concrete.output_shapes == [6, 4, 4, 2]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_statistics_are_float32_under_mixed_precision(policy):
    keras.mixed_precision.set_global_policy(policy)
    layer = make_layer(2, (8, 4, 4, 3))
    slow = SlowSplit(2, layer.get_weights())
    half = layer.compute_dtype
    # Squares of these overflow in float16.
    x = tf.cast(300.0 * values(8, 4, 4, 3), half)
    outputs = layer(x, training=True)
    assert outputs.dtype == half
    expected = slow(tf.cast(x, tf.float32))
    np.testing.assert_allclose(
        tf.cast(outputs, tf.float32), expected, rtol=1e-2, atol=2e-2
    )
    for weight in layer.weights:
        assert weight.dtype == "float32"
    np.testing.assert_allclose(layer.moving_mean, slow.mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, slow.variance, rtol=1e-5)


def local_copies(strategy, variable):
    variable = variable.value if hasattr(variable, "path") else variable
    return [
        copy.numpy() for copy in strategy.experimental_local_results(variable)
    ]


@pytest.mark.core
@pytest.mark.parametrize("splits", [None, 2, 4])
def test_two_replicas_equal_one(two_replicas, splits):
    shape = (8, 3, 3, 2)
    upstream = values(*shape, seed=9)
    one = make_layer(splits, shape)
    with two_replicas.scope():
        two = make_layer(splits, shape)

    def step(layer, x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=True)
            loss = tf.reduce_sum(outputs * upstream)
        own, *shared = tape.gradient(loss, [x, *layer.trainable_variables])
        return outputs, own, shared

    @tf.function
    def two_steps(x):
        def replica_step():
            context = tf.distribute.get_replica_context()
            index = context.replica_id_in_sync_group
            outputs, own, shared = step(
                two,
                tf.reshape(x, [2, 4, *shape[1:]])[index],
                tf.constant(upstream.reshape(2, 4, *shape[1:]))[index],
            )
            shared = context.all_reduce(tf.distribute.ReduceOp.SUM, shared)
            return context.all_gather([outputs, own], axis=0), shared

        return two_replicas.run(replica_step)

    for number in range(3):
        x = tf.constant(values(*shape, seed=number))
        outputs, own, shared = step(one, x, upstream)
        (outputs2, own2), shared2 = tf.nest.map_structure(
            lambda value: two_replicas.experimental_local_results(value)[0],
            two_steps(x),
        )
        for a, b in zip(
            [outputs, own, *shared], [outputs2, own2, *shared2], strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        for name in ("moving_mean", "moving_variance"):
            copies = local_copies(two_replicas, getattr(two, name))
            np.testing.assert_array_equal(copies[0], copies[1])
            np.testing.assert_allclose(copies[0], getattr(one, name), rtol=1e-6)


def test_keeps_its_splits_when_saved_and_cloned(tmp_path):
    model = ressl_tf.make_projector(3, 4, 2, bn_splits=2)
    model(values(8, 3), training=True)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = values(8, 3, seed=1)
    expected = np.asarray(model(x, training=True))
    for other in (loaded, clone):
        layer = other.get_layer("hidden_bn")
        assert isinstance(layer, BatchNormalization)
        assert (layer.splits, layer.momentum, layer.epsilon) == (2, 0.9, 1e-5)
        np.testing.assert_allclose(other(x, training=True), expected)
        np.testing.assert_allclose(
            other.get_weights()[3], model.get_weights()[3]
        )


# Shuffling.


def seeds(step):
    return tf.constant([7, step], tf.int64)


@pytest.mark.core
@pytest.mark.parametrize("jit_compile", [False, True])
def test_shuffle_and_back(jit_compile):
    rows = np.arange(16, dtype=np.int32)

    @tf.function(jit_compile=jit_compile)
    def there_and_back(seed):
        shuffled, restore = batch_norm.shuffle(tf.constant(rows), seed)
        return shuffled, restore(shuffled)

    orders = []
    for step in range(3):
        shuffled, restored = there_and_back(seeds(step))
        np.testing.assert_array_equal(restored, rows)
        np.testing.assert_array_equal(np.sort(shuffled), rows)
        eager, _ = batch_norm.shuffle(tf.constant(rows), seeds(step))
        np.testing.assert_array_equal(shuffled, eager)
        orders.append(tuple(shuffled.numpy()))
    assert len({*orders, tuple(rows)}) == 4


def test_every_order_is_as_likely():
    first = [
        int(batch_norm.shuffle(tf.range(4), seeds(step))[0][0])
        for step in range(400)
    ]
    # Four deviations of a binomial of 400 draws at 1/4.
    assert np.abs(np.bincount(first, minlength=4) - 100).max() < 35


@pytest.mark.core
def test_shuffles_over_replicas_as_on_one(two_replicas):
    images = values(8, 2, 2, 3)

    @tf.function
    def step(seed):
        def replica_step():
            context = tf.distribute.get_replica_context()
            own = tf.reshape(images, [2, 4, 2, 2, 3])[
                context.replica_id_in_sync_group
            ]
            shuffled, restore = batch_norm.shuffle(own, seed)
            assert shuffled.shape == own.shape  # static, for the teacher
            return context.all_gather([shuffled, restore(shuffled)], axis=0)

        return two_replicas.run(replica_step)

    for number in range(3):
        shuffled, restored = (
            two_replicas.experimental_local_results(value)
            for value in step(seeds(number))
        )
        expected, _ = batch_norm.shuffle(tf.constant(images), seeds(number))
        for replica in range(2):
            np.testing.assert_array_equal(shuffled[replica], expected)
            np.testing.assert_array_equal(restored[replica], images)


def sharing(function, batch):
    """(B, B) booleans: whether image j moves the output of image i."""
    images = values(batch, 3)
    outputs = np.asarray(function(images))
    moved = []
    for image in range(batch):
        changed = images.copy()
        changed[image] += 1.0
        differences = np.abs(np.asarray(function(changed)) - outputs)
        moved.append(differences.max(axis=1) > 1e-6)
    return np.stack(moved)


def test_shuffling_hides_who_shares_statistics():
    batch, splits = 16, 4
    layer = make_layer(splits, (batch, 3))

    def student(images):
        return layer(images, training=True)

    def teacher(images):
        shuffled, restore = batch_norm.shuffle(images, seeds(0))
        return restore(layer(shuffled, training=True))

    # Unshuffled, teacher and student share statistics within the same groups.
    own_group = np.kron(np.eye(splits), np.ones((4, 4))).astype(bool)
    np.testing.assert_array_equal(sharing(student, batch), own_group)

    order, _ = batch_norm.shuffle(tf.range(batch), seeds(0))
    expected = np.zeros((batch, batch), bool)
    for group in np.split(order.numpy(), splits):
        expected[np.ix_(group, group)] = True
    shuffled = sharing(teacher, batch)
    np.testing.assert_array_equal(shuffled, expected)
    # Each image meets others in the teacher than in the student.
    assert (shuffled != own_group).any(axis=1).all()


# Conversion.


def batch_norms(network):
    return [
        layer
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def randomize(network):
    """Weights as after training: no statistics of 0 and 1."""
    random = np.random.default_rng(0)
    network.set_weights(
        [
            weight + 0.1 * np.abs(random.normal(size=weight.shape))
            for weight in network.get_weights()
        ]
    )


APPLICATIONS = {
    "EfficientNetB0": (49, {}),
    "MobileNetV3Large": (46, {"include_preprocessing": False}),
    "ResNet50": (53, {}),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("MobileNetV3Large", marks=pytest.mark.core),
        "EfficientNetB0",
        "ResNet50",
    ],
)
def test_converts_keras_applications(name):
    count, kwargs = APPLICATIONS[name]
    network = getattr(keras.applications, name)(
        weights=None,
        include_top=False,
        pooling="avg",
        input_shape=(32, 32, 3),
        **kwargs,
    )
    originals = batch_norms(network)
    assert len(originals) == count
    # In turn: what was converted is converted again, and back.
    for splits in (4, None, "plain"):
        if splits == "plain":
            converted = batch_norm.plain_batch_norm(network)
        else:
            converted = ressl_tf.convert_batch_norm(
                network, splits=splits, momentum=None, epsilon=None
            )
        for old, new in zip(originals, batch_norms(converted), strict=True):
            assert new.name == old.name
            assert new.momentum == old.momentum
            assert new.epsilon == old.epsilon
            if splits == "plain":
                assert type(new) is keras.layers.BatchNormalization
            else:
                assert type(new) is BatchNormalization
                assert new.splits == splits
        assert converted.name == network.name
        for a, b in zip(
            network.get_weights(), converted.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        images = values(2, 32, 32, 3)
        expected = np.asarray(network(images, training=False))
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(
            converted(images, training=False), expected, rtol=1e-4, atol=1e-5
        )
        network = converted


def nested_network():
    """A functional model, a sequential one in it, and one in that."""
    inner = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Conv2D(3, 1),
            keras.layers.BatchNormalization(name="inner_bn"),
        ],
        name="inner",
    )
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.BatchNormalization(axis=3, name="middle_bn")(inner(inputs))
    middle = keras.Model(inputs, x, name="middle")

    inputs = keras.Input((4, 4, 3), name="images")
    shared = keras.layers.BatchNormalization(name="shared_bn")
    frozen = keras.layers.BatchNormalization(name="frozen_bn", trainable=False)
    x = shared(middle(inputs)) + shared(inputs)
    x = keras.layers.GlobalAveragePooling2D()(frozen(x))
    return keras.Model(inputs, keras.layers.Dense(2)(x), name="outer")


@pytest.mark.core
@pytest.mark.parametrize("splits", [None, 2])
def test_converts_models_inside_models(splits):
    network = nested_network()
    randomize(network)
    converted = ressl_tf.convert_batch_norm(network, splits=splits)
    names = [layer.name for layer in batch_norms(network)]
    assert sorted(names) == ["frozen_bn", "inner_bn", "middle_bn", "shared_bn"]
    layers = batch_norms(converted)
    assert [layer.name for layer in layers] == names
    for layer in layers:
        assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        assert layer.trainable == (layer.name != "frozen_bn")
        assert type(layer) is BatchNormalization
        assert layer.splits == splits
    assert len(converted.weights) == len(network.weights)

    images = values(4, 4, 4, 3)
    kept = ressl_tf.convert_batch_norm(
        network, splits=splits, momentum=None, epsilon=None
    )
    expected = network(images, training=False)
    np.testing.assert_allclose(
        kept(images, training=False), expected, rtol=1e-5, atol=1e-6
    )
    # The copy has weights of its own.
    before = network.get_weights()
    converted(images, training=True)
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not np.array_equal(
        network.get_layer("shared_bn").moving_mean,
        converted.get_layer("shared_bn").moving_mean,
    )


def test_converts_an_application_inside_a_model():
    backbone = keras.applications.MobileNetV3Small(
        weights=None,
        include_top=False,
        input_shape=(32, 32, 3),
        include_preprocessing=False,
    )
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(backbone(x))
    network = keras.Model(inputs, x)
    converted = ressl_tf.convert_batch_norm(
        network, splits=2, momentum=None, epsilon=None
    )
    assert len(batch_norms(converted)) == len(batch_norms(network)) == 34
    assert all(layer.splits == 2 for layer in batch_norms(converted))
    images = 255 * values(2, 32, 32, 3)
    np.testing.assert_allclose(
        converted(images, training=False),
        network(images, training=False),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.core
def test_conversion_keeps_the_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    network = ressl_tf.make_projector(3, 4, 2)
    keras.mixed_precision.set_global_policy("float32")
    for splits in (2, None):
        converted = ressl_tf.convert_batch_norm(network, splits=splits)
        layer = converted.get_layer("hidden_bn")
        assert (layer.compute_dtype, layer.variable_dtype) == (
            "bfloat16",
            "float32",
        )
        assert converted(values(2, 3)).dtype == "float32"


@pytest.mark.parametrize("splits", [None, 2])
def test_a_plain_network_needs_no_ressl_tf(splits):
    network = ressl_tf.make_backbone(
        "resnet18", (8, 8, 3), width=2, bn_splits=splits
    )
    assert "ressl_tf" in network.to_json()
    assert "ressl_tf" not in batch_norm.plain_batch_norm(network).to_json()


@pytest.mark.core
def test_converts_under_a_strategy(two_replicas):
    network = nested_network()
    with two_replicas.scope():
        converted = ressl_tf.convert_batch_norm(network)
        assert batch_norm.check([converted]) is None
        with pytest.raises(ValueError, match="'.*_bn' is not synchronised"):
            batch_norm.check([network])
    copies = local_copies(
        two_replicas, converted.get_layer("shared_bn").moving_mean
    )
    assert len(copies) == 2


@pytest.mark.core
def test_a_copy_keeps_how_batches_are_normalised():
    # The configuration of Keras 2's layer does not say that it is.
    synchronized = nested_network()
    for layer in batch_norms(synchronized):
        layer.synchronized = True
        layer.fused = False
    split = ressl_tf.make_projector(3, 4, 2, bn_splits=2)
    own = nested_network()
    for network in (synchronized, split, own):
        randomize(network)
        copy = batch_norm.copy(network)
        for old, new in zip(
            batch_norms(network), batch_norms(copy), strict=True
        ):
            assert old is not new
            assert type(old) is type(new)
            assert old.synchronized == new.synchronized
            assert old.trainable == new.trainable
            assert getattr(old, "splits", 0) == getattr(new, "splits", 0)
        for a, b in zip(network.get_weights(), copy.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        copy.set_weights([0 * weight for weight in copy.get_weights()])
        assert any(weight.any() for weight in network.get_weights())
    assert all(layer.synchronized for layer in batch_norms(synchronized))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.norm = keras.layers.BatchNormalization(name="hidden_inside")

    def call(self, inputs, training=False):
        return self.norm(inputs, training=training)


def around(layer):
    inputs = keras.Input((5, 3))
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize(
    "convert, message",
    [
        (
            lambda: ressl_tf.convert_batch_norm(Subclassed()),
            "`network` must be a functional or sequential.*Subclassed",
        ),
        (
            lambda: ressl_tf.convert_batch_norm(around(Subclassed())),
            "'hidden_inside' cannot be converted: it is part of the "
            "Subclassed 'subclassed'",
        ),
        (
            lambda: ressl_tf.convert_batch_norm(
                around(
                    keras.layers.TimeDistributed(
                        keras.layers.BatchNormalization(), name="each"
                    )
                )
            ),
            "cannot be converted: it is part of the TimeDistributed 'each'",
        ),
        (
            lambda: ressl_tf.convert_batch_norm(nested_network(), splits=0),
            "`splits` must be at least 1.*splits=0",
        ),
        (
            lambda: ressl_tf.convert_batch_norm(
                around(keras.layers.BatchNormalization(axis=1)), splits=2
            ),
            "`axis` must be -1.*axis=",
        ),
        (
            lambda: ressl_tf.convert_batch_norm(nested_network(), momentum=1.0),
            "`momentum` must be in.*momentum=1.0",
        ),
        (
            lambda: ressl_tf.convert_batch_norm(nested_network(), epsilon=0),
            "`epsilon` must be above 0.*epsilon=0",
        ),
    ],
)
def test_what_cannot_be_converted(convert, message):
    with pytest.raises(ValueError, match=message):
        convert()


# What networks must have in common.


def projectors(*splits):
    return [ressl_tf.make_projector(3, 4, 2, bn_splits=s) for s in splits]


def test_check_finds_the_splits():
    assert batch_norm.check(projectors(4, 4)) == 4
    assert batch_norm.check(projectors(None, None)) is None
    assert batch_norm.check([ressl_tf.make_projector(3, batch_norm=False)]) is (
        None
    )
    # Frozen layers ignore the batch.
    frozen = ressl_tf.make_projector(3, 4, 2)
    frozen.trainable = False
    assert batch_norm.check([*projectors(4), frozen]) == 4


@pytest.mark.core
def test_check_looks_into_every_kind_of_model():
    with pytest.raises(ValueError, match="splits=2 .*splits=None"):
        batch_norm.check([*projectors(2), Subclassed()])
    inner = ressl_tf.make_backbone("resnet18", (8, 8, 3), width=1, bn_splits=2)
    inputs = keras.Input((8, 8, 3))
    nested = keras.Model(inputs, inner(inputs))
    assert batch_norm.check([nested]) == 2


@pytest.mark.parametrize(
    "splits, message",
    [
        ((2, 4), "splits=2 of 'hidden_bn', splits=4 of 'hidden_bn'"),
        ((2, None), "splits=2 of 'hidden_bn', splits=None of 'hidden_bn'"),
        ((None, 2), "splits=2 of 'hidden_bn', splits=None of 'hidden_bn'"),
    ],
)
def test_check_refuses_a_mixture(splits, message):
    with pytest.raises(ValueError, match=message):
        batch_norm.check(projectors(*splits))


@pytest.mark.core
def test_check_under_two_replicas(two_replicas):
    outside = around(keras.layers.BatchNormalization(name="own"))
    synchronized = around(keras.layers.BatchNormalization(synchronized=True))
    with two_replicas.scope():
        assert batch_norm.check([*projectors(None), synchronized]) is None
        assert batch_norm.check(projectors(2)) == 2
        with pytest.raises(ValueError, match="'own' is not synchronised"):
            batch_norm.check([outside])
        with pytest.raises(
            ValueError, match="multiple of the 2 replicas, such as 4.*splits=3"
        ):
            batch_norm.check(projectors(3))
    assert batch_norm.check([outside]) is None


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"splits": 0}, "`splits` must be at least 1.*splits=0"),
        ({"splits": 2, "axis": 1}, "`axis` must be -1.*axis=1"),
        (
            {"splits": 2, "synchronized": True},
            "`synchronized` must be False.*synchronized=True",
        ),
        ({"splits": 2, "renorm": True}, "`renorm` must be False.*renorm=True"),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        BatchNormalization(**kwargs)


def test_masks_are_refused():
    layer = make_layer(2, (4, 3, 2))
    x, mask = values(4, 3, 2), np.ones((4, 3), bool)
    with pytest.raises(ValueError, match="`mask` must be None in training"):
        layer(x, training=True, mask=mask)
    layer(x, training=False, mask=mask)


@pytest.mark.core
def test_bad_batches(two_replicas):
    with pytest.raises(
        ValueError, match="the 7 rows of a replica do not make 3.*splits=3"
    ):
        make_layer(3, (6, 2))(values(7, 2), training=True)
    with two_replicas.scope():
        layer = make_layer(3, (6, 2))
        with pytest.raises(ValueError, match="`splits` must be a multiple"):
            layer(values(6, 2), training=True)
