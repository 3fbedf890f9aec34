"""Tests of fine-tuning on few labels."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from ressl_tf import data
from ressl_tf.evaluation import finetune
from ressl_tf.evaluation import linear
from ressl_tf.evaluation import supervised

NUM_IMAGES = 24
NUM_CLASSES = 3
SIZE = 8
BATCH = 8
FROZEN = finetune.Protocol(3, 0.0, 4.0)
TRAINED = finetune.Protocol(3, 0.5, 4.0)


def make_reader(count, seed, labels=None):
    """Noise, in which every class has a channel of its own."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (count, SIZE, SIZE, 3))
    classes = np.arange(count) % NUM_CLASSES
    images[np.arange(count), :, :, classes] += 100
    names = [str(number) for number in range(NUM_CLASSES)]
    labels = classes if labels is None else labels
    return data.MemoryReader(images.astype(np.uint8), labels, names)


def make_encoder():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(6, 3, use_bias=False)(x)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.ReLU()(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def tune(encoder, protocol=TRAINED, reader=None, test_reader=None, **options):
    return finetune.finetune(
        encoder,
        reader or make_reader(NUM_IMAGES, 0),
        test_reader or make_reader(30, 1),
        protocol,
        view=supervised.random_crops(SIZE),
        batch_size=BATCH,
        **options,
    )


@pytest.mark.core
def test_a_frozen_backbone_does_not_move():
    encoder = make_encoder()
    before = [np.copy(value) for value in encoder.get_weights()]
    result = tune(encoder, FROZEN)
    for old, new in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)  # statistics, too
    # It is the linear probe on the same crops but for Nesterov's momentum.
    (probe,) = linear.augmented_linear_probe(
        lambda images: encoder(images, training=False),
        make_reader(NUM_IMAGES, 0),
        np.zeros((2, 6), np.float32),
        np.zeros(2, np.int64),
        view=supervised.random_crops(SIZE),
        learning_rates=(4.0,),
        epochs=3,
        batch_size=BATCH,
        nesterov=False,
    )
    assert result["train_loss"] == pytest.approx(probe["train_loss"], rel=1e-4)
    assert 0 <= result["accuracy"] <= 1 and "top5_accuracy" not in result


@pytest.mark.core
def test_both_learning_rates_by_hand():
    """One epoch of three steps, the gradients by a tape of its own."""
    protocol = finetune.Protocol(1, 0.5, 4.0)
    encoder, expected = make_encoder(), make_encoder()
    result = tune(encoder, protocol)
    kernel, bias = map(
        tf.Variable, linear.initial_weights(6, NUM_CLASSES, seed=0)
    )
    groups = [
        (expected.trainable_variables, 0.5 * BATCH / 256),
        ([kernel, bias], 4.0 * BATCH / 256),
    ]
    velocities = [[0.0] * len(variables) for variables, _ in groups]
    batches = data.make_labelled_dataset(
        make_reader(NUM_IMAGES, 0),
        supervised.random_crops(SIZE),
        batch_size=BATCH,
        seed=0,
    )
    losses = []
    for step, (images, labels) in enumerate(batches.take(3)):
        with tf.GradientTape() as tape:
            logits = expected(images, training=True) @ kernel + bias
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            )
        losses.append(float(loss))
        gradients = tape.gradient(loss, [list(g) for g, _ in groups])
        factor = 0.5 * (1 + np.cos(np.pi * step / 3))
        for own, velocity, (variables, rate) in zip(
            gradients, velocities, groups, strict=True
        ):
            for n, variable in enumerate(variables):
                velocity[n] = 0.9 * velocity[n] + own[n]
                variable.assign(variable - rate * factor * velocity[n])
    assert result["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    for found, value, start in zip(
        encoder.get_weights(),
        expected.get_weights(),
        make_encoder().get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(found, value, atol=1e-5)
        assert np.abs(found - start).max() > 1e-4  # statistics, too
    # Whole test images, statistics of the training.
    reader = make_reader(30, 1)
    images, labels = next(
        iter(data.make_ordered_dataset(reader, image_size=SIZE))
    )
    logits = expected(tf.cast(images, tf.float32), training=False) @ kernel
    found = np.argmax(logits + bias, axis=1)
    assert result["accuracy"] == pytest.approx(np.mean(found == labels))


class Stopped(Exception):
    pass


def test_a_stopped_one_goes_on(tmp_path, monkeypatch):
    encoder = make_encoder()
    whole = tune(encoder)
    save = tf.train.CheckpointManager.save

    def stop(self, *arguments, **options):
        save(self, *arguments, **options)
        raise Stopped

    with monkeypatch.context() as context:
        context.setattr(tf.train.CheckpointManager, "save", stop)
        with pytest.raises(Stopped):
            tune(make_encoder(), workdir=tmp_path)
    for _ in range(2):  # one epoch done; done
        again = make_encoder()
        assert tune(again, workdir=tmp_path) == whole
        for a, b in zip(
            again.get_weights(), encoder.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_shuffled_labels_stay_at_chance():
    generator = np.random.default_rng(2)
    labels = generator.integers(0, NUM_CLASSES, 600)
    reader = make_reader(
        NUM_IMAGES, 0, generator.permutation(np.arange(NUM_IMAGES) % 3)
    )
    result = tune(
        make_encoder(),
        reader=reader,
        test_reader=make_reader(600, 1, labels),
    )
    assert abs(result["accuracy"] - 1 / 3) < 0.08  # a deviation of 0.019


@pytest.mark.parametrize(
    "protocol, message",
    [
        (TRAINED._replace(epochs=0), "`epochs`.*epochs=0"),
        (
            TRAINED._replace(head_learning_rate=0.0),
            "`head_learning_rate` must be above 0",
        ),
        (
            TRAINED._replace(backbone_learning_rate=-0.1),
            "`backbone_learning_rate` must be at least 0.*-0.1",
        ),
        (
            TRAINED._replace(head_learning_rate=1e40),
            "diverged in epoch 1 of 3. Lower",
        ),
    ],
)
def test_wrong_protocols(protocol, message):
    with pytest.raises(ValueError, match=message):
        tune(make_encoder(), protocol)


def test_the_papers_protocols():
    assert finetune.PROTOCOLS["1pct"] == (60, 0.0, 0.1)
    assert finetune.PROTOCOLS["10pct"] == (20, 0.02, 0.2)
