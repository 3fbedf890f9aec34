"""Tests of the probe on features of new crops in every epoch."""

import math

import numpy as np
import pytest
import tensorflow as tf

from ressl_tf import data
from ressl_tf.evaluation import linear
from ressl_tf.evaluation import supervised

NUM_IMAGES = 30
NUM_CLASSES = 3
SIZE = 8
BATCH = 8
EPOCHS = 4


def encode(images):
    """Nine features of an image: mean colours of three parts."""
    images = images / 255.0
    parts = [images[:, :3], images[:, 3:5], images[:, 5:]]
    return tf.concat([tf.reduce_mean(p, axis=(1, 2)) for p in parts], axis=1)


def make_images(count, seed):
    """Noise, in which every class has a channel of its own."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (count, SIZE, SIZE, 3))
    labels = np.arange(count) % NUM_CLASSES
    images[np.arange(count), :, :, labels] += 100
    return images.astype(np.uint8), labels


@pytest.fixture
def reader():
    names = [str(number) for number in range(NUM_CLASSES)]
    return data.MemoryReader(*make_images(NUM_IMAGES, 0), names)


@pytest.fixture
def scored():
    images, labels = make_images(24, 1)
    return encode(tf.cast(images, tf.float32)).numpy(), labels


def probe(reader, scored, **options):
    return linear.augmented_linear_probe(
        encode,
        reader,
        *scored,
        view=supervised.random_crops(SIZE),
        **{
            "learning_rates": (8.0,),
            "epochs": EPOCHS,
            "batch_size": BATCH,
            **options,
        },
    )


def slow_probe(reader, learning_rate):
    """Nesterov's SGD in float64 on the same crops, the cosine by hand."""
    kernel, bias = linear.initial_weights(9, NUM_CLASSES, 0)
    weights = np.vstack([kernel, bias]).astype(np.float64)
    velocity = np.zeros_like(weights)
    total = EPOCHS * (NUM_IMAGES // BATCH)
    batches = data.make_labelled_dataset(
        reader, supervised.random_crops(SIZE), batch_size=BATCH, seed=0
    )
    losses = []
    for step, (images, labels) in enumerate(batches.take(total)):
        features = encode(images).numpy().astype(np.float64)
        features = np.hstack([features, np.ones((BATCH, 1))])
        logits = features @ weights
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = odds / odds.sum(axis=1, keepdims=True)
        rows = np.arange(BATCH)
        losses.append(-np.log(error[rows, labels.numpy()]).mean())
        error[rows, labels.numpy()] -= 1.0
        gradient = features.T @ error / BATCH
        velocity = 0.9 * velocity + gradient
        rate = learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
        weights -= rate * (0.9 * velocity + gradient)
    return weights, np.mean(losses[-(NUM_IMAGES // BATCH) :])


def test_equals_the_slow_version(reader, scored):
    (result,) = probe(reader, scored)
    # 8 for a batch of 256 is 0.25 for one of 8.
    weights, loss = slow_probe(reader, 8.0 * BATCH / 256)
    kernel, bias = result["weights"]
    np.testing.assert_allclose(kernel, weights[:-1], atol=1e-4)
    np.testing.assert_allclose(bias, weights[-1], atol=1e-4)
    assert np.abs(kernel).max() > 0.1
    assert result["train_loss"] == pytest.approx(loss, rel=1e-4)
    features, labels = scored
    found = (features @ weights[:-1] + weights[-1]).argmax(axis=1)
    assert result["accuracy"] == pytest.approx(np.mean(found == labels))
    assert result["accuracy"] > 0.6
    assert "top5_accuracy" not in result


def test_several_learning_rates_in_one_pass(reader, scored):
    rates = (8.0, 1e40, 1.0)
    results = probe(reader, scored, learning_rates=rates)
    assert results[1] is None
    for rate, result in zip(rates, results, strict=True):
        if result is not None:
            (alone,) = probe(reader, scored, learning_rates=(rate,))
            for a, b in zip(result["weights"], alone["weights"], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)


class Stopped(Exception):
    pass


def test_a_stopped_probe_goes_on(reader, scored, tmp_path, monkeypatch):
    (whole,) = probe(reader, scored)
    steps = []
    step = tf.train.CheckpointManager.save

    def stop(self, *arguments, **options):
        step(self, *arguments, **options)
        steps.append(self)
        if len(steps) == 2:
            raise Stopped

    with monkeypatch.context() as context:
        context.setattr(tf.train.CheckpointManager, "save", stop)
        with pytest.raises(Stopped):
            probe(reader, scored, workdir=tmp_path)
    seen = []
    labelled = data.make_labelled_dataset

    def watched(*arguments, **options):
        seen.append(options["start_step"])
        return labelled(*arguments, **options)

    monkeypatch.setattr(data, "make_labelled_dataset", watched)
    for expected in (2, EPOCHS):  # half done; done
        (result,) = probe(reader, scored, workdir=tmp_path)
        assert seen[-1] == expected * (NUM_IMAGES // BATCH)
        assert result["train_loss"] == whole["train_loss"]
        for a, b in zip(result["weights"], whole["weights"], strict=True):
            np.testing.assert_array_equal(a, b)


def test_shuffled_labels_stay_at_chance(scored):
    images, labels = make_images(NUM_IMAGES, 0)
    features, _ = scored
    generator = np.random.default_rng(3)
    names = [str(number) for number in range(NUM_CLASSES)]
    reader = data.MemoryReader(images, generator.permutation(labels), names)
    features = np.repeat(features, 20, axis=0)
    shuffled = generator.integers(0, NUM_CLASSES, len(features))
    (result,) = probe(reader, (features, shuffled))
    assert abs(result["accuracy"] - 1 / 3) < 0.1  # a deviation of 0.02


def test_divergence_and_wrong_arguments(reader, scored):
    with pytest.raises(ValueError, match="diverged.*Lower.*learning_rates"):
        probe(reader, scored, learning_rates=(1e40,))
    with pytest.raises(ValueError, match="`epochs`.*Received: epochs=0"):
        probe(reader, scored, epochs=0)
    with pytest.raises(ValueError, match="`batch_size`.*batch_size=31"):
        probe(reader, scored, batch_size=31)
