"""Tests of the linear probe that is trained while the student is."""

import logging

import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorflow import keras

from ressl_tf import data
from ressl_tf import monitor
from ressl_tf import train
from ressl_tf import workdir as workdir_lib
from ressl_tf.data import shards
from ressl_tf.evaluation import linear
from ressl_tf.evaluation import supervised

SCHEDULED = {"monitor.log_every_steps": 4, "monitor.eval_every_epochs": 2}
PROBED = {
    **SCHEDULED,
    "monitor.online_probe_every_steps": 3,
    "monitor.online_probe_learning_rate": 4.0,
}
EPOCHS, TOTAL = 3, 3 * tiny.STEPS_PER_EPOCH


@pytest.fixture(autouse=True)
def light(monkeypatch):
    tiny.lighten(monkeypatch)


@pytest.fixture
def source(tmp_path):
    return tiny.write_images(tmp_path)


def run(source, changes, workdir, **options):
    return train.train(tiny.make_config(source, changes), workdir, **options)


def scores(workdir):
    rows = workdir_lib.read_metrics(workdir)
    return [row for row in rows if "probe_accuracy" in row]


def checkpoint_values(workdir, skipped=()):
    path, _ = workdir_lib.latest_checkpoint(workdir)
    reader = tf.train.load_checkpoint(path)
    return {
        name: np.asarray(reader.get_tensor(name))
        for name in reader.get_variable_to_shape_map()
        if not name.startswith(("save_counter", "_CHECK", *skipped))
    }


def assert_same(values, expected):
    assert set(values) == set(expected) and len(expected) > 20
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)


@pytest.mark.core
def test_a_run_with_a_probe_is_the_same_run(source, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ressl_tf")
    run(source, SCHEDULED, tmp_path / "without")
    assert not scores(tmp_path / "without")
    run(source, PROBED, tmp_path / "with")
    assert_same(
        checkpoint_values(tmp_path / "with", ("online_probe",)),
        checkpoint_values(tmp_path / "without"),
    )
    found = scores(tmp_path / "with")
    assert [(row["step"], row["epoch"]) for row in found] == [
        (8, 2.0),
        (TOTAL, 3.0),
    ]
    last = found[-1]
    assert list(last) == ["step", "epoch", "probe_accuracy", "probe_loss"]
    assert last["probe_accuracy"] > 1 / tiny.NUM_CLASSES
    assert 0 < last["probe_loss"] < 2
    message = f"linear probe {100 * last['probe_accuracy']:.2f} %"
    assert message in caplog.text

    # A stop within an epoch, between two steps of the probe and at one.
    for stop in (4, 9):
        run(source, PROBED, tmp_path / "resumed", stop_at_step=stop)
    run(source, PROBED, tmp_path / "resumed")
    assert_same(
        checkpoint_values(tmp_path / "resumed"),
        checkpoint_values(tmp_path / "with"),
    )
    assert scores(tmp_path / "resumed") == found


def make_encoder():
    keras.utils.set_random_seed(3)
    images = keras.Input((tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(5, 3)(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def test_the_probe_is_a_softmax_regression_on_its_own_batches(source, tmp_path):
    encoder = make_encoder()
    before = [np.copy(value) for value in encoder.get_weights()]
    readers = [data.open_reader(source, split) for split in ("train", "test")]
    options = {"nesterov": True, "seed": 7}
    logger = monitor.MetricsLogger(
        tmp_path, log_every=100, steps_per_epoch=5, batch_size=8
    )
    probe = monitor.OnlineProbe(
        encoder,
        *readers,
        logger,
        every_steps=2,
        every_epochs=1,
        total_steps=10,
        batch_size=8,
        learning_rate=32.0,
        seed=7,
    )
    # As Keras calls them, but for the logger, whose step is set.
    for epoch in range(2):
        probe.on_train_begin()
        # The last two steps are one execution.
        for step in [1, 2, 3, 5]:
            logger.step = 5 * epoch + step
            probe.on_train_batch_end(step - 1)
        probe.on_epoch_end(epoch)

    heads = linear.SoftmaxHeads(5, tiny.NUM_CLASSES, [1.0], **options)
    batches = iter(
        data.make_labelled_dataset(
            readers[0],
            supervised.random_crops(tiny.IMAGE_SIZE),
            batch_size=8,
            seed=7,
        )
    )
    losses, expected = [], []
    for step in range(1, 11):
        if step % 2 == 0:
            images, labels = next(batches)
            losses.append(heads.step(encoder(images, training=False), labels))
        if step % 5 == 0:
            images, labels = next(
                iter(
                    data.make_ordered_dataset(
                        readers[1], image_size=tiny.IMAGE_SIZE
                    )
                )
            )
            ((kernel, bias),) = heads.weights()
            features = encoder(tf.cast(images, tf.float32), training=False)
            best = np.argmax(features @ kernel + bias, axis=1)
            expected.append((np.mean(best == labels), np.mean(losses)))
            losses = []
    rows = scores(tmp_path)
    assert [row["step"] for row in rows] == [5, 10]
    for row, (accuracy, loss) in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row["probe_accuracy"], accuracy)
        np.testing.assert_allclose(row["probe_loss"], loss, rtol=1e-5)
    ((kernel, bias),) = heads.weights()
    ((found, found_bias),) = probe.state["heads"].weights()
    np.testing.assert_allclose(found, kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found_bias, bias, rtol=1e-5, atol=1e-6)
    for value, old in zip(encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_streamed_images_and_divergence(source, tmp_path, caplog):
    shards.write_shards(
        source, "tiny", tmp_path / "tfds", splits=("train", "test")
    )
    changes = {
        **PROBED,
        "data.stream": True,
        "data.data_dir": str(tmp_path / "tfds"),
        "monitor.eval_every_epochs": 0,
        "monitor.online_probe_learning_rate": 1e40,
    }
    run("tfds:tiny", changes, tmp_path / "run")
    # Without a k-NN score, after each epoch.
    assert [row["step"] for row in scores(tmp_path / "run")] == [4, 8, 12]
    assert "has diverged: lower `monitor.online_probe_lear" in caplog.text


@pytest.mark.parametrize(
    "labelled, changes, message",
    [
        (False, {}, "`source` must be labelled.*64 of its 64 images"),
        (
            True,
            {"monitor.online_probe_every_steps": -1},
            "`monitor.online_probe_every_steps` must be at least 0.*=-1",
        ),
        (
            True,
            {"monitor.online_probe_learning_rate": 0.0},
            "`monitor.online_probe_learning_rate` must be above 0.*=0.0",
        ),
    ],
)
def test_mistakes_before_the_folder_is_claimed(
    tmp_path, labelled, changes, message
):
    source = tiny.write_images(tmp_path, labelled=labelled)
    with pytest.raises(ValueError, match=message):
        run(source, {**PROBED, **changes}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
