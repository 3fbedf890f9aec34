"""A batch in parts: the same step as with all of it at once."""

import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorflow import keras

import ressl_tf
from ressl_tf import accumulation
from ressl_tf import losses

SIZE = 4  # images of 4x4x3
BATCH = 8


def make_model(strategy=None, steps=1, batch_norm=False, policy="float32"):
    """Batch normalisation in the projector, or nowhere."""
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy(policy)
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        inputs = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.Flatten()(inputs)
        x = keras.layers.Dense(6, "tanh")(x)
        model = ressl_tf.ReSSL(
            keras.Model(inputs, x),
            ressl_tf.make_projector(6, 16, 8, batch_norm=batch_norm),
            ressl_tf.make_predictor(8, 16, batch_norm=False),
            queue_size=20,  # goes round within three steps
            student_temperature=0.2,
            teacher_temperature=0.1,
            teacher_momentum=0.8,
            alpha=0.5,
        )
        optimizer = ressl_tf.make_optimizer("sgd", 0.02)
        if policy == "mixed_float16":
            optimizer = tiny.loss_scaled(optimizer, 2**10)
        model.compile(optimizer, gradient_accumulation_steps=steps)
    return model


def batches(count, num_student=1, num_teacher=1):
    generator = np.random.default_rng(0)

    def views(number):
        shape = (count, BATCH, SIZE, SIZE, 3)
        return tuple(
            generator.normal(size=shape).astype(np.float32)
            for _ in range(number)
        )

    data = {"student": views(num_student), "teacher": views(num_teacher)}
    return tf.data.Dataset.from_tensor_slices(data)


def train(model, dataset):
    history = model.fit(
        dataset, epochs=5, steps_per_epoch=1, shuffle=False, verbose=0
    ).history
    return history, [np.array(v) for v in model.trainable_variables]


def assert_same_training(model, expected, dataset, share=1e-4):
    before = [np.array(v) for v in expected.trainable_variables]
    history, weights = train(model, dataset)
    expected_history, expected_weights = train(expected, dataset)
    del expected_history["agreement"]  # all or nothing
    for name, values in expected_history.items():
        tiny.assert_near(history[name], values, name, share)
    for new, right, old in zip(weights, expected_weights, before, strict=True):
        tiny.assert_near(new, right, share=share)
        assert np.abs(right - old).max() > 1e-5  # it learns
    # In the order of the rows, after 40 keys in a queue of 20.
    tiny.assert_near(model.queue.keys, expected.queue.keys, share=share)
    assert int(tf.convert_to_tensor(model.queue.pointer)) == 0
    for new, right in zip(
        model.teacher.get_weights(), expected.teacher.get_weights(), strict=True
    ):
        tiny.assert_near(new, right, share=share)


@pytest.mark.core
@pytest.mark.parametrize("steps", [2, 8])
def test_the_same_as_at_once(steps):
    assert_same_training(make_model(steps=steps), make_model(), batches(5))


@pytest.mark.parametrize("views", [(2, 2), (3, 1)])
def test_several_views(views):
    assert_same_training(make_model(steps=4), make_model(), batches(5, *views))


@pytest.mark.core
def test_on_two_replicas(two_replicas):
    assert_same_training(
        make_model(two_replicas, steps=2),
        make_model(two_replicas),
        batches(5),
    )


def test_scaled_losses():
    """float16: the scale is taken out once, of the sum."""
    assert_same_training(
        make_model(steps=4, policy="mixed_float16"),
        make_model(policy="mixed_float16"),
        batches(5),
        share=0.01,
    )


def test_batch_statistics_are_those_of_the_parts():
    """Documented: each part moves the moving mean."""
    model = make_model(steps=2, batch_norm=True)
    data = next(iter(batches(1)))
    layer = model.student.projector.get_layer("hidden_bn")
    hidden = keras.Model(
        model.student.projector.input,
        model.student.projector.get_layer("hidden").output,
    )
    hidden = hidden(model.student.backbone(data["student"][0])).numpy()
    model.train_step(data)
    expected = np.zeros(16)
    for part in np.split(hidden, 2):
        expected = 0.9 * expected + 0.1 * part.mean(axis=0)
    np.testing.assert_allclose(layer.moving_mean, expected, atol=1e-6)


def objective(value):
    return losses.Objective(
        *[tf.constant(value)] * len(losses.Objective._fields)
    )


def test_parts_by_hand():
    seen = []

    def learn(part):
        rows = part["x"][0]
        seen.append(rows.numpy().tolist())
        total = tf.reduce_sum(rows)
        return accumulation.Learnt(
            [total, None], objective(float(total)), rows[:, None], -rows
        )

    batch = {"x": (tf.range(6.0),)}
    result = accumulation.accumulate(learn, batch, 3)
    assert seen == [[0, 1], [2, 3], [4, 5]]
    assert float(result.gradients[0]) == 15 and result.gradients[1] is None
    assert [float(value) for value in result.objective] == [5.0] * 6
    np.testing.assert_array_equal(result.embedding[:, 0], range(6))
    np.testing.assert_array_equal(result.keys, [-x for x in range(6)])


def test_one_part_after_the_other():
    """In a graph a part must wait for the gradients of the one before."""

    @tf.function
    def step(batch):
        def learn(part):
            return accumulation.Learnt(
                [tf.reduce_sum(tf.sin(part), name="gradient")],
                objective(0.0),
                part,
                part,
            )

        return accumulation.accumulate(learn, batch, 3)

    graph = step.get_concrete_function(tf.TensorSpec([6])).graph
    waits = {
        node.name: [dependency.name for dependency in node.control_inputs]
        for node in graph.get_operations()
        if node.type == "Identity" and node.control_inputs
    }
    assert len(waits) == 2  # not the first one
    assert ["gradient"] in waits.values()


@pytest.mark.parametrize(
    "steps, message",
    [
        (3, "divide the batch on a replica, 8 rows.*steps=3"),
        (0, "must be at least 1.*steps=0"),
    ],
)
def test_bad_values(steps, message):
    with pytest.raises(ValueError, match=message):
        make_model(steps=steps).fit(batches(1), verbose=0)
