import inspect

import numpy as np
import pytest
import reference
import tensorflow as tf
from tensorflow import keras

import ressl_tf
from ressl_tf import batch_norm
from ressl_tf import losses
from ressl_tf import model as model_lib

SIZE = 2  # images of 2x2x3
BATCH = 4


def images(seed, batch=BATCH, size=SIZE):
    return (
        np.random.default_rng(seed)
        .normal(size=(batch, size, size, 3))
        .astype(np.float32)
    )


def pooled_backbone():
    """One for images of any size: each pixel by itself, then the mean."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Dense(5, "tanh", name="backbone")(inputs)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def tiny_networks(predictor=True, backbone=None):
    """Backbone, projector and predictor that `reference.Network` mirrors."""
    if backbone is None:
        inputs = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.Flatten()(inputs)
        x = keras.layers.Dense(5, "tanh", name="backbone")(x)
        backbone = keras.Model(inputs, x)
    projector = ressl_tf.make_projector(5, 6, 3)
    q = None
    if predictor:
        inputs = keras.Input((3,))
        outputs = keras.layers.Dense(3, use_bias=False, name="predictor")(
            inputs
        )
        q = keras.Model(inputs, outputs)
    return backbone, projector, q


def tiny_model(predictor=True, backbone=None, **kwargs):
    settings = {"queue_size": 10, "student_temperature": 0.2, "seed": 1}
    networks = tiny_networks(predictor, backbone)
    model = ressl_tf.ReSSL(*networks, **settings | kwargs)
    model.compile(
        ressl_tf.make_optimizer("sgd", 0.05, momentum=0.9, weight_decay=0.01)
    )
    return model


def branch_weights(branch):
    kernel, bias = branch.backbone.get_layer("backbone").get_weights()
    hidden = branch.projector.get_layer("hidden").get_weights()[0]
    bn = branch.projector.get_layer("hidden_bn").get_weights()
    output, output_bias = branch.projector.get_layer("output").get_weights()
    weights = {
        "backbone": kernel,
        "backbone_bias": bias,
        "hidden": hidden,
        "gamma": bn[0],
        "beta": bn[1],
        "output": output,
        "output_bias": output_bias,
    }
    return weights, bn[2], bn[3]


def assert_branch_equals(branch, network):
    weights, mean, variance = branch_weights(branch)
    for name, value in weights.items():
        np.testing.assert_allclose(
            value, network.weights[name], atol=5e-5, err_msg=name
        )
    np.testing.assert_allclose(mean, network.moving_mean, atol=2e-5)
    np.testing.assert_allclose(variance, network.moving_variance, atol=2e-5)


def batch(*seeds, num_student=1):
    views = tuple(images(seed) for seed in seeds)
    return {"student": views[:num_student], "teacher": views[num_student:]}


@pytest.mark.core
@pytest.mark.parametrize(
    "student_sizes, teacher_sizes, make_backbone, num_steps",
    [
        # 28 keys go round a queue of 10 almost three times.
        pytest.param([SIZE], [SIZE], lambda: None, 7, id="one crop"),
        pytest.param([SIZE] * 2, [SIZE] * 2, lambda: None, 7, id="two crops"),
        # Images differ less after the mean over them: float32 parts sooner.
        pytest.param([4, 3, 1], [4], pooled_backbone, 5, id="multi-crop"),
    ],
)
def test_steps_equal_slow_reference(
    student_sizes, teacher_sizes, make_backbone, num_steps
):
    """Loss, gradients, EMA, queue and pointer over some steps of `fit`."""
    model = tiny_model(
        backbone=make_backbone(),
        teacher_temperature=0.05,
        infonce_temperature=0.3,
        teacher_momentum=0.8,
        alpha=ressl_tf.schedules.linear_alpha(3),
    )
    trainer = reference.Trainer(
        branch_weights(model.student)[0],
        model.predictor.get_weights()[0],
        np.asarray(model.queue.keys),
        student_temperature=0.2,
        teacher_temperature=0.05,
        infonce_temperature=0.3,
        teacher_momentum=0.8,
        warmup_steps=3,
        learning_rate=0.05,
        momentum=0.9,
        l2=0.01,
    )
    for step in range(num_steps):
        views = tuple(
            images(10 * step + number, size=size)
            for number, size in enumerate(student_sizes + teacher_sizes)
        )
        data = {
            "student": views[: len(student_sizes)],
            "teacher": views[len(student_sizes) :],
        }
        history = model.fit(
            tf.data.Dataset.from_tensors(data), verbose=0, shuffle=False
        ).history
        loss, relation, info_nce = trainer.step(
            data["student"], data["teacher"]
        )
        np.testing.assert_allclose(history["loss"], [loss], rtol=1e-4)
        np.testing.assert_allclose(history["relation"], [relation], rtol=1e-4)
        np.testing.assert_allclose(history["info_nce"], [info_nce], rtol=1e-4)
        assert_branch_equals(model.student, trainer.student)
        assert_branch_equals(model.teacher, trainer.teacher)
        np.testing.assert_allclose(
            model.predictor.get_weights()[0], trainer.predictor, atol=2e-5
        )
        np.testing.assert_allclose(
            model.queue.keys, trainer.queue.keys, atol=2e-5
        )
        pointer = int(tf.convert_to_tensor(model.queue.pointer))
        assert pointer == trainer.queue.pointer
        assert int(tf.convert_to_tensor(model.step)) == step + 1


@pytest.mark.core
def test_teacher_starts_as_a_copy_of_its_own():
    model = tiny_model()
    for student, teacher in zip(
        model.student.get_weights(), model.teacher.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(student, teacher)
    shared = {id(v) for v in model.student.variables}
    assert not shared & {id(v) for v in model.teacher.variables}


def test_optimizer_trains_student_and_predictor_alone():
    model = tiny_model()
    expected = (
        model.student.trainable_variables + model.predictor.trainable_variables
    )
    assert [id(v) for v in model.trainable_variables] == [
        id(v) for v in expected
    ]
    without = tiny_model(predictor=False)
    assert len(without.trainable_variables) == len(expected) - 1


def test_teacher_with_momentum_one_stays():
    model = tiny_model(teacher_momentum=1.0)
    before = [v.numpy() for v in model.teacher.trainable_variables]
    model.fit(tf.data.Dataset.from_tensors(batch(0, 1)).repeat(3), verbose=0)
    for old, new in zip(before, model.teacher.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_teacher_uses_batch_statistics_of_its_own():
    model = tiny_model(teacher_momentum=1.0)
    data = batch(0, 1)
    model.fit(tf.data.Dataset.from_tensors(data), verbose=0)
    x = data["teacher"][0].reshape(BATCH, -1)
    weights, mean, _ = branch_weights(model.teacher)
    hidden = np.tanh(x @ weights["backbone"]) @ weights["hidden"]
    np.testing.assert_allclose(mean, 0.1 * hidden.mean(axis=0), atol=1e-5)
    assert not np.allclose(mean, branch_weights(model.student)[1], atol=1e-3)


@pytest.mark.parametrize("alpha, key", [(1.0, "relation"), (0.0, "info_nce")])
def test_alpha_blends_the_losses(alpha, key):
    model = tiny_model(alpha=alpha)
    history = model.fit(
        tf.data.Dataset.from_tensors(batch(0, 1)), verbose=0
    ).history
    assert history["loss"] == history[key]


def test_schedules_see_the_step_from_zero():
    seen = []

    def spy(step):
        tf.py_function(lambda s: seen.append(int(s)), [step], [])
        return tf.constant(0.5)

    model = tiny_model(alpha=spy)
    model.fit(tf.data.Dataset.from_tensors(batch(0, 1)).repeat(3), verbose=0)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("num_student, num_teacher", [(2, 2), (3, 1)])
def test_several_views_are_the_mean_of_their_pairs(num_student, num_teacher):
    model = tiny_model(teacher_momentum=1.0)
    views = [images(seed) for seed in range(num_student + num_teacher)]
    student, teacher = views[:num_student], views[num_student:]
    queue = np.array(model.queue.keys)
    embeddings = [
        model.predictor(model.student(view, training=True)) for view in student
    ]
    targets = [model.teacher(view, training=True) for view in teacher]
    pairs = [
        (i, (1 - i) if num_teacher == 2 else 0) for i in range(num_student)
    ]
    expected = np.mean(
        [
            reference.relation(
                np.asarray(embeddings[i])[row],
                np.asarray(targets[j])[row],
                queue,
                0.2,
                0.04,
            )
            for i, j in pairs
            for row in range(BATCH)
        ]
    )
    data = {"student": tuple(student), "teacher": tuple(teacher)}
    history = model.fit(tf.data.Dataset.from_tensors(data), verbose=0).history
    np.testing.assert_allclose(history["relation"], [expected], rtol=1e-4)
    # Only the first teacher view is enqueued.
    np.testing.assert_allclose(
        np.array(model.queue.keys)[:BATCH],
        ressl_tf.losses.normalize(targets[0]),
        atol=1e-5,
    )
    np.testing.assert_array_equal(model.queue.keys[BATCH:], queue[BATCH:])


def test_unpaired_views_are_refused():
    model = tiny_model()
    data = batch(0, 1, 2)
    data["teacher"] = tuple(data["teacher"]) * 2
    with pytest.raises(ValueError, match="1 student views and 4 teacher view"):
        model.fit(tf.data.Dataset.from_tensors(data), verbose=0)


def test_embedding_std_is_one_when_spread_and_zero_when_collapsed():
    model = tiny_model()
    objective = ressl_tf.losses.Objective(*[tf.constant(0.0)] * 6)
    spread = tf.random.stateless_normal((4096, 3), (1, 2))
    for embedding, expected in (
        (spread, 1.0),
        (tf.ones((16, 3)) * tf.range(1.0, 17.0)[:, None], 0.0),
    ):
        model.reset_metrics()
        result = model._measure(objective, embedding)
        np.testing.assert_allclose(result["embedding_std"], expected, atol=0.01)


def test_predict_gives_the_students_features():
    model = tiny_model()
    x = images(0)
    np.testing.assert_allclose(
        model.predict(x, verbose=0),
        model.student.backbone(x, training=False),
        rtol=1e-6,
    )


@keras.utils.register_keras_serializable(package="test")
class Subclassed(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.flatten = keras.layers.Flatten()
        self.dense = keras.layers.Dense(units)

    def call(self, x, training=False):
        return self.dense(self.flatten(x))

    def get_config(self):
        return {"units": self.units, "name": self.name}


def test_a_subclassed_backbone_works_wrapped():
    inputs = keras.Input((SIZE, SIZE, 3))
    backbone = keras.Model(inputs, Subclassed(5)(inputs))
    _, projector, predictor = tiny_networks()
    model = ressl_tf.ReSSL(backbone, projector, predictor, queue_size=10)
    model.compile(ressl_tf.make_optimizer("sgd", 0.1))
    np.testing.assert_array_equal(
        model.teacher.backbone.get_weights()[0], backbone.get_weights()[0]
    )
    before = backbone.get_weights()[0]
    model.fit(tf.data.Dataset.from_tensors(batch(0, 1)), verbose=0)
    assert not np.array_equal(before, backbone.get_weights()[0])


@pytest.mark.parametrize(
    "policy", ["float32", "mixed_bfloat16", "mixed_float16"]
)
def test_trains_in_every_precision(policy):
    keras.mixed_precision.set_global_policy(policy)
    model = tiny_model()
    before = [np.array(v) for v in model.trainable_variables]
    history = model.fit(
        # float16 skips the steps until its loss scale has come down.
        tf.data.Dataset.from_tensors(batch(0, 1)).repeat(16),
        verbose=0,
    ).history
    assert np.isfinite(history["loss"]).all()
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert new.dtype == "float32"
        if np.ndim(old) > 1:
            assert not np.array_equal(old, new)


def test_xla_gives_the_same_step():
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = ressl_tf.ReSSL(*tiny_networks(), queue_size=10)
        model.compile(
            ressl_tf.make_optimizer("sgd", 0.1), jit_compile=jit_compile
        )
        data = tf.data.Dataset.from_tensors(batch(0, 1)).repeat(3)
        history = model.fit(data, verbose=0).history
        results.append((history["loss"], np.array(model.queue.keys)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-5)


@pytest.mark.core
def test_two_replicas_equal_one(two_replicas):
    results = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = tiny_model(teacher_momentum=0.5)
        # The projector's batch norm is synchronised in both.
        data = {
            role: (np.concatenate([images(10 * seed + s) for s in range(5)]),)
            for seed, role in enumerate(("student", "teacher"))
        }
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(BATCH)
        history = model.fit(dataset, verbose=0, shuffle=False).history
        results.append((history, model))
    (one, single), (two, mirrored) = results
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
    for a, b in zip(
        single.student.get_weights() + single.teacher.get_weights(),
        mirrored.student.get_weights() + mirrored.teacher.get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(tf.convert_to_tensor(mirrored.queue.keys)),
        single.queue.keys,
        atol=1e-5,
    )


@pytest.mark.core
def test_split_batch_norm_shuffles_the_teacher_alone():
    inputs = keras.Input((SIZE, SIZE, 3))
    backbone = keras.Model(inputs, keras.layers.Flatten()(inputs))
    projector = ressl_tf.make_projector(12, 6, 3, bn_splits=2)
    model = ressl_tf.ReSSL(backbone, projector, queue_size=2 * BATCH, seed=3)
    model.compile(ressl_tf.make_optimizer("sgd", 0.1))
    assert model.bn_splits == 2
    keys = []
    for step in range(2):
        view = images(10 + step)
        # The teacher after its move: at first it is the student's copy, and
        # then a part of the way to the student that has learnt.
        teacher = batch_norm.copy(projector)
        weight = 0.99 if step else 0.0
        teacher.set_weights(
            [
                weight * old + (1 - weight) * new
                for old, new in zip(
                    model.teacher.projector.get_weights(),
                    model.student.projector.get_weights(),
                    strict=True,
                )
            ]
        )
        features = view.reshape(BATCH, -1)
        seed = tf.constant([3, step], tf.int64)
        shuffled, restore = batch_norm.shuffle(features, seed)
        expected = restore(teacher(shuffled, training=True))
        keys.append(losses.normalize(expected))
        unshuffled = losses.normalize(teacher(features, training=True))
        assert np.abs(unshuffled - keys[-1]).max() > 0.01
        model.train_step({"student": (images(step),), "teacher": (view,)})
    np.testing.assert_allclose(
        model.queue.keys, np.concatenate(keys), atol=1e-5
    )


@pytest.mark.core
def test_the_teacher_keeps_what_batch_norm_is(two_replicas):
    with two_replicas.scope():
        inputs = keras.Input((5,))
        layer = keras.layers.BatchNormalization(synchronized=True, name="bn")
        projector = keras.Model(inputs, layer(inputs))
        model = ressl_tf.ReSSL(tiny_networks()[0], projector, queue_size=10)
    assert model.teacher.projector.get_layer("bn").synchronized


def test_networks_that_would_differ_between_replicas(two_replicas):
    inputs = keras.Input((5,))
    network = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
    with two_replicas.scope(), pytest.raises(ValueError, match="synchronised"):
        ressl_tf.ReSSL(tiny_networks()[0], network, queue_size=10)


def spatial_backbone():
    inputs = keras.Input((SIZE, SIZE, 3))
    return keras.Model(inputs, keras.layers.Conv2D(5, 1)(inputs))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"teacher_temperature": 0.2},
            "`teacher_temperature` must be smaller.*teacher_temperature=0.2, "
            "student_temperature=0.2",
        ),
        ({"student_temperature": 0.0}, "`student_temperature`.*above 0"),
        ({"teacher_temperature": -0.1}, "`teacher_temperature`.*above 0"),
        ({"infonce_temperature": 0.0}, "`infonce_temperature`.*above 0"),
        ({"teacher_momentum": 1.1}, "`teacher_momentum` must be in.*1.1"),
        ({"alpha": -0.1}, "`alpha` must be in.*alpha=-0.1"),
        ({"alpha": "half"}, "`alpha` must be in.*alpha='half'"),
        ({"queue_size": 0}, "`size` must be at least 1"),
    ],
)
def test_bad_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**kwargs)


def test_flat_targets_on_request():
    model = tiny_model(teacher_temperature=0.2, allow_flat_target=True)
    assert model.teacher_temperature == model.student_temperature
    # One step below the threshold needs no permission.
    tiny_model(teacher_temperature=0.1999)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: None}, "`backbone` must be a built keras.Model"),
        ({0: spatial_backbone}, "`backbone` must return one vector an image"),
        (
            {1: lambda: ressl_tf.make_projector(7, 4, 3)},
            "`projector` must take the 5 values",
        ),
        (
            {2: lambda: ressl_tf.make_predictor(4, 4)},
            "`predictor` must take the 3 values",
        ),
        (
            {2: lambda: ressl_tf.make_projector(3, 4, 5)},
            "`predictor` must return as many values as `projector`: 3",
        ),
        ({2: lambda: Subclassed(3)}, "`predictor` must be a built.* wrap a"),
    ],
)
def test_networks_that_do_not_fit(change, message):
    networks = list(tiny_networks())
    for index, make in change.items():
        networks[index] = make and make()
    with pytest.raises(ValueError, match=message):
        ressl_tf.ReSSL(*networks, queue_size=10)


def test_compile_refuses_a_loss():
    model = ressl_tf.ReSSL(*tiny_networks(), queue_size=10)
    with pytest.raises(ValueError, match="`loss` must not be given"):
        model.compile(ressl_tf.make_optimizer("sgd", 0.1), loss="mse")


def test_train_step_is_one_page():
    source = inspect.getsource(model_lib.ReSSL.train_step)
    assert len(source.splitlines()) <= 65
