"""Half precision: the same training, with float32 where it matters."""

import graphs
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorflow import keras

import ressl_tf
from ressl_tf import networks

SIZE = 8  # images of 8x8x3
BATCH = 32
QUEUE_SIZE = 37  # a number that no other dimension has
NUM_PATTERNS = 4


def views(seed):
    """One step's batch: noisy views of a few patterns, a new draw a step."""
    generator = np.random.default_rng(0)
    patterns = generator.normal(size=(NUM_PATTERNS, SIZE, SIZE, 3))
    generator = np.random.default_rng(seed)
    images = patterns[generator.integers(0, NUM_PATTERNS, BATCH)]
    return {
        role: (
            (images + strength * generator.normal(size=images.shape)).astype(
                np.float32
            ),
        )
        for role, strength in (("student", 0.5), ("teacher", 0.1))
    }


def make_dataset(steps):
    batches = [views(seed) for seed in range(1, steps + 1)]
    stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *batches)
    return tf.data.Dataset.from_tensor_slices(stacked)


def loss_scale(optimizer):
    scale = getattr(optimizer, "dynamic_scale", None)  # Keras 3
    if scale is None:
        scale = optimizer.loss_scale
    return float(tf.convert_to_tensor(scale))


def make_model(
    monkeypatch, policy, initial_scale=None, learning_rate=0.003, **settings
):
    """The same start under every policy.

    Temperatures higher than the paper's: at 0.04, every rounding error of a
    similarity is multiplied by 25, and runs of nets this small part within
    ten steps, whatever their precision.
    """
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy(policy)
    monkeypatch.setitem(
        networks.RESNETS, "tiny", networks.Architecture("basic", (1, 1))
    )
    backbone = ressl_tf.make_backbone(
        "tiny", (SIZE, SIZE, 3), stem="cifar", width=8
    )
    defaults = {
        "queue_size": QUEUE_SIZE,
        "student_temperature": 0.2,
        "teacher_temperature": 0.1,
        "teacher_momentum": 0.9,
        "alpha": 0.5,
    }
    model = ressl_tf.ReSSL(
        backbone,
        ressl_tf.make_projector(backbone.output_shape[-1], 16, 12),
        ressl_tf.make_predictor(12, 16),
        **defaults | settings,
    )
    optimizer = ressl_tf.make_optimizer("sgd", learning_rate)
    if initial_scale is not None:
        optimizer = tiny.loss_scaled(optimizer, initial_scale)
    model.compile(optimizer)
    return model


def student_weights(model):
    return [np.array(v) for v in model.trainable_variables]


def relative_difference(values, expected):
    """|values - expected| / |expected| of lists of arrays, as one vector."""
    values, expected = (
        np.concatenate([np.ravel(array) for array in arrays])
        for arrays in (values, expected)
    )
    return np.linalg.norm(values - expected) / np.linalg.norm(expected)


def train(model, num_steps):
    """What `fit` measures in every step, and how the weights have moved."""
    before = student_weights(model)
    history = model.fit(
        make_dataset(num_steps),
        epochs=num_steps,
        steps_per_epoch=1,
        shuffle=False,
        verbose=0,
    ).history
    moves = [
        new - old
        for new, old in zip(student_weights(model), before, strict=True)
    ]
    return history, moves


@pytest.mark.core
def test_half_precision_follows_float32(monkeypatch):
    num_steps = 24
    expected, expected_moves = train(
        make_model(monkeypatch, "float32"), num_steps
    )
    # There is something to follow: it learns.
    assert expected["loss"][-1] < 0.7 * expected["loss"][0]
    for policy, scale in (("mixed_bfloat16", None), ("mixed_float16", 2**10)):
        model = make_model(monkeypatch, policy, scale)
        history, moves = train(model, num_steps)
        # Measured: 1.5 % for bfloat16, which has 8 bits, and 1 % for float16.
        for name in ("loss", "relation", "info_nce", "embedding_std"):
            np.testing.assert_allclose(
                history[name],
                expected[name],
                rtol=0.05,
                err_msg=f"{name}, {policy}",
            )
        # Measured: 0.19 and 0.10 after all steps.
        assert relative_difference(moves, expected_moves) < 0.4, policy


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_state_stays_float32(monkeypatch, policy):
    model = make_model(monkeypatch, policy)
    train(model, 1)
    half = model.student.backbone.compute_dtype
    assert half == policy.removeprefix("mixed_")  # there is half precision
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    variables = [
        *model.student.variables,
        *model.teacher.variables,
        *model.predictor.variables,
        *model.queue.variables,
        *optimizer.variables,
    ]
    for variable in variables:
        dtype = tf.dtypes.as_dtype(variable.dtype)
        assert dtype == tf.float32 or dtype.is_integer, variable


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_relations_are_float32_inside(monkeypatch, policy):
    """Of the traced step: networks in half precision, losses in float32."""
    half = tf.dtypes.as_dtype(policy.removeprefix("mixed_"))
    model = make_model(monkeypatch, policy)
    specs = (tf.TensorSpec((BATCH, SIZE, SIZE, 3)),)
    step = tf.function(model.train_step).get_concrete_function(
        {"student": specs, "teacher": specs}
    )
    nodes = list(graphs.walk(step))
    convolutions = [
        node for node in nodes if node.operation.startswith("Conv2D")
    ]
    assert convolutions
    assert all(node.types == {half} for node in convolutions)

    of_the_queue = [
        node
        for node in nodes
        if any(shape.rank and QUEUE_SIZE in shape for shape in node.shapes)
    ]
    # Both similarity matrices, softmax of both, the queue's new keys.
    seen = [node.operation for node in of_the_queue]
    assert seen.count("MatMul") >= 2
    assert {"Exp", "TensorScatterUpdate"} <= set(seen)
    for node in of_the_queue:
        assert half not in node.types, node
    # What has no K left: (B,) losses and their means.
    for node in nodes:
        if node.operation in ("Log", "Log1p", "Softplus"):
            assert node.types == {tf.float32}, node
    for value in step.structured_outputs.values():
        assert value.dtype == tf.float32


@pytest.mark.core
def test_float16_skips_steps_until_the_scale_fits(monkeypatch):
    """A step whose gradient overflows changes no weight, but goes on."""
    scale = 2.0**20
    model = make_model(monkeypatch, "mixed_float16", scale)
    # A teacher away from its student, so that it moves from the start.
    for variable in model.teacher.trainable_variables:
        variable.assign(1.1 * tf.convert_to_tensor(variable))
    skipped = []
    for number, batch in enumerate(make_dataset(12)):
        before = student_weights(model)
        slots = [np.array(v) for v in momenta(model)]
        teacher = model.teacher.get_weights()
        keys = np.array(model.queue.keys)
        history = model.fit(
            tf.data.Dataset.from_tensors(batch), shuffle=False, verbose=0
        ).history
        assert np.isfinite(history["loss"]).all()

        skipped.append(loss_scale(model.optimizer) < scale)
        if skipped[-1]:
            assert loss_scale(model.optimizer) == scale / 2
        scale = loss_scale(model.optimizer)
        assert equal(before, student_weights(model)) == skipped[-1]
        assert equal(slots, momenta(model)) == skipped[-1]

        assert not equal(teacher, model.teacher.get_weights())
        assert not equal([keys], [model.queue.keys])
        assert int(tf.convert_to_tensor(model.step)) == number + 1
        pointer = int(tf.convert_to_tensor(model.queue.pointer))
        assert pointer == (number + 1) * BATCH % QUEUE_SIZE
    # Later ones may be skipped again: gradients grow, too.
    assert all(skipped[:3]) and not all(skipped)


def momenta(model):
    return [
        variable
        for variable in model.optimizer.inner_optimizer.variables
        if len(variable.shape) > 0
    ]


def equal(arrays, others):
    return all(
        np.array_equal(np.array(array), np.array(other))
        for array, other in zip(arrays, others, strict=True)
    )


@pytest.mark.core
def test_small_gradients_survive_float16_scaled(monkeypatch):
    """A high temperature makes gradients that float16 rounds to zero."""
    temperature = 1e5
    moves = {}
    for policy, scale in (
        ("float32", None),
        ("mixed_float16", 1.0),
        ("mixed_float16", 2.0**15),
    ):
        model = make_model(
            monkeypatch,
            policy,
            scale,
            learning_rate=0.01 * temperature,
            student_temperature=temperature,
            alpha=1.0,
        )
        _, moves[scale] = train(model, 1)
    expected = moves[None]
    # Measured: 0.02 and 1.26.
    assert relative_difference(moves[2.0**15], expected) < 0.1
    assert relative_difference(moves[1.0], expected) > 0.5
    # Some of the first kernel's gradients are gone altogether.
    assert (moves[1.0][0] == 0).any()
    assert not (expected[0] == 0).any()
