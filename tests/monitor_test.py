"""Tests of the callbacks, driven by hand: no training here."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

import ressl_tf
from ressl_tf import data
from ressl_tf import model as model_lib
from ressl_tf import monitor
from ressl_tf import optimizers
from ressl_tf import schedules
from ressl_tf import workdir as workdir_lib


class FakeModel:
    """What the callbacks ask of a model; `run_step` sets the measurements."""

    student_temperature = 0.1
    teacher_temperature = 0.04

    def __init__(self, optimizer=None):
        self.metrics = [
            keras.metrics.Mean(name=name) for name in model_lib.METRICS
        ]
        self.optimizer = optimizer or optimizers.make_optimizer(
            "sgd", schedules.WarmupCosine(0.5, 20, 4)
        )
        self.queue = ressl_tf.KeyQueue(100, 2)
        self.alpha = schedules.linear_alpha(8)
        self.teacher_momentum = schedules.cosine_momentum(0.9, 20)
        self.variables = [tf.Variable([1.0, 2.0], name="w")]
        self.stop_training = False

    def reset_metrics(self):
        for mean in self.metrics:
            mean.reset_state()


def run(callbacks, model, measurements, epoch_steps=5, first_step=0):
    """Calls the callbacks as `fit` does, one measurement a step."""
    for callback in callbacks:
        callback.set_model(model)
    position = first_step % epoch_steps
    for number, values in enumerate(measurements):
        if number == 0 or position == 0:
            model.reset_metrics()
            batch = 0
            for callback in callbacks:
                callback.on_epoch_begin(0)
        for callback in callbacks:
            callback.on_train_batch_begin(batch)
        for mean in model.metrics:
            mean.update_state(values.get(mean.name, 1.0))
        for callback in callbacks:
            callback.on_train_batch_end(batch)
        batch += 1
        position = (position + 1) % epoch_steps
        if position == 0 or number == len(measurements) - 1:
            for callback in callbacks:
                callback.on_epoch_end(0)


def make_logger(workdir, log_every=2, **kwargs):
    return monitor.MetricsLogger(
        workdir,
        log_every=log_every,
        steps_per_epoch=5,
        batch_size=32,
        **kwargs,
    )


@pytest.mark.core
def test_rows_are_the_means_of_their_steps(tmp_path):
    losses = np.random.default_rng(0).normal(6.0, 1.0, 12)
    run([make_logger(tmp_path)], FakeModel(), [{"loss": x} for x in losses])
    rows = workdir_lib.read_metrics(tmp_path)
    # Every second step, the end of an epoch, the end of the run.
    assert [row["step"] for row in rows] == [2, 4, 5, 6, 8, 10, 12]
    epochs = [0.4, 0.8, 1.0, 1.2, 1.6, 2.0, 2.4]
    assert [row["epoch"] for row in rows] == epochs
    first = 0
    for row in rows:
        expected = losses[first : row["step"]].mean()
        np.testing.assert_allclose(row["loss"], expected, rtol=1e-6)
        first = row["step"]


@pytest.mark.core
def test_keys_and_schedules_of_a_row(tmp_path):
    run([make_logger(tmp_path, log_every=3)], FakeModel(), [{}] * 6)
    row = workdir_lib.read_metrics(tmp_path)[-1]
    assert list(row) == [
        "step",
        "epoch",
        *model_lib.METRICS,
        "alpha",
        "teacher_momentum",
        "learning_rate",
        "images_per_second",
        "peak_memory_gib",
    ]
    # Of step 5, the last of the row; steps count from 0.
    assert row["step"] == 6
    np.testing.assert_allclose(row["alpha"], 5 / 8)
    np.testing.assert_allclose(
        row["teacher_momentum"], 1 - 0.1 * (np.cos(np.pi * 5 / 20) + 1) / 2
    )
    np.testing.assert_allclose(
        row["learning_rate"],
        0.5 * (1 + np.cos(np.pi * (5 - 4) / (20 - 4))) / 2,
        rtol=1e-6,
    )
    assert row["images_per_second"] > 0
    assert 0.05 < row["peak_memory_gib"] < 1000


@pytest.mark.parametrize("wrapped", [False, True])
def test_learning_rate_of_a_number_and_of_a_scaled_optimizer(tmp_path, wrapped):
    optimizer = optimizers.make_optimizer("sgd", 0.25)
    if wrapped:
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    run([make_logger(tmp_path)], FakeModel(optimizer), [{}] * 2)
    assert workdir_lib.read_metrics(tmp_path)[0]["learning_rate"] == 0.25


def test_a_resumed_logger_counts_on(tmp_path):
    logger = make_logger(tmp_path, first_step=7)
    run([logger], FakeModel(), [{"loss": x} for x in (1, 3, 5)], first_step=7)
    rows = workdir_lib.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [8, 10]
    assert [row["loss"] for row in rows] == [1.0, 4.0]


def test_a_window_is_the_same_to_the_last_bit_wherever_it_started(tmp_path):
    losses = np.random.default_rng(1).normal(6.0, 1.0, 40).astype(np.float32)
    measurements = [{"loss": x} for x in losses]
    values = {}
    for name, first in (("whole", 0), ("resumed", 16)):
        logger = monitor.MetricsLogger(
            tmp_path / name,
            log_every=4,
            steps_per_epoch=40,
            batch_size=1,
            first_step=first,
        )
        run([logger], FakeModel(), measurements[first:], 40, first)
        rows = workdir_lib.read_metrics(tmp_path / name)
        values[name] = [row["loss"] for row in rows if row["step"] > 16]
    assert len(values["whole"]) == 6
    assert values["whole"] == values["resumed"]


def test_tensorboard_has_the_same_scalars(tmp_path):
    run([make_logger(tmp_path)], FakeModel(), [{"loss": x} for x in (1, 2, 6)])
    found = {}
    for path in (tmp_path / "tensorboard").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                found[event.step, value.tag] = number
    expected = {
        (row["step"], name): value
        for row in workdir_lib.read_metrics(tmp_path)
        for name, value in row.items()
        if name not in ("step", "epoch")
    }
    assert len(expected) == 2 * 12 and set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_without_a_row(tmp_path, value):
    losses = [{"loss": x} for x in (1.0, 2.0, 3.0, value, 5.0)]
    message = (
        f"The loss is {value} at step 4. Lower `optimizer.base_learning_rate` "
        "or lengthen `train.warmup_epochs`.*last good checkpoint is kept"
    )
    with pytest.raises(monitor.NotFiniteError, match=message):
        run([make_logger(tmp_path)], FakeModel(), losses)
    rows = workdir_lib.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2]


@pytest.mark.parametrize(
    "deviations, warnings",
    [
        ([0.0, 0.0], 0),
        ([0.0, 0.0, 0.0], 1),
        ([0.0] * 9, 1),
        ([0.1] * 9, 0),
        ([0.0999] * 9, 1),
        ([0.0, 0.0, 0.1, 0.0, 0.0], 0),
        ([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], 2),
    ],
)
def test_collapse_is_warned_of(tmp_path, caplog, deviations, warnings):
    logger = make_logger(tmp_path, log_every=1)
    with caplog.at_level(logging.WARNING, "ressl_tf"):
        run([logger], FakeModel(), [{"embedding_std": x} for x in deviations])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warnings
    for message in messages:
        assert "The embeddings have collapsed" in message
        assert "(0.04; the student's is 0.1)" in message
        assert "the predictor" in message
    if warnings:
        assert f"is {deviations[0]:.3f} of" in messages[0]
        assert "at step 3 " in messages[0]


@pytest.mark.parametrize("share, warnings", [(0.9899, 0), (0.9901, 1)])
def test_a_uniform_target_is_warned_of(tmp_path, caplog, share, warnings):
    logger = make_logger(tmp_path, log_every=1)
    entropy = share * math.log(100)  # of a queue of 100 keys
    with caplog.at_level(logging.WARNING, "ressl_tf"):
        run([logger], FakeModel(), [{"target_entropy": entropy}] * 4)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warnings
    for message in messages:
        assert "has 99.0 % of a uniform one's entropy" in message


class FakeManager:
    def __init__(self):
        self.saved = []

    @property
    def latest_checkpoint(self):
        return f"checkpoints/step-{self.saved[-1]}" if self.saved else None

    def save(self, checkpoint_number):
        self.saved.append(checkpoint_number)


def make_saver(tmp_path, every_epochs, total_steps, stops=(), **kwargs):
    logger = make_logger(tmp_path, log_every=100, **kwargs)
    saver = monitor.Saver(
        FakeManager(),
        logger,
        every_epochs=every_epochs,
        total_steps=total_steps,
        should_stop=lambda step: step in stops,
    )
    return logger, saver


@pytest.mark.parametrize(
    "every_epochs, total_steps, expected",
    [
        (1, 20, [5, 10, 15, 20]),
        (2, 20, [10, 20]),
        (3, 20, [15, 20]),
        (9, 20, [20]),
        (2, 17, [10, 17]),  # the last epoch is not a whole one
        (9, 3, [3]),
    ],
)
def test_when_checkpoints_are_saved(
    tmp_path, every_epochs, total_steps, expected
):
    logger, saver = make_saver(tmp_path, every_epochs, total_steps)
    run([logger, saver], FakeModel(), [{}] * total_steps)
    assert saver.manager.saved == expected


def test_a_stop_saves_logs_and_ends(tmp_path):
    logger, saver = make_saver(tmp_path, 1, 20, stops=(3, 10))
    model = FakeModel()
    run([logger, saver], model, [{"loss": x} for x in (1, 2, 6)])
    assert model.stop_training and saver.manager.saved == [3]
    rows = workdir_lib.read_metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(3, 3.0)]
    run([logger, saver], model, [{}] * 7, first_step=3)
    assert saver.manager.saved == [3, 5, 10]  # 10 once


@pytest.mark.core
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_variable_that_is_not_finite_is_not_saved(tmp_path, value):
    logger, saver = make_saver(tmp_path, 1, 20)
    model = FakeModel()
    model.variables.insert(0, tf.Variable([3], name="step"))
    run([logger, saver], model, [{}] * 5)
    model.variables[-1].assign([1.0, value])
    with pytest.raises(
        monitor.NotFiniteError,
        match="The variable w.* is not finite at step 10. Lower `optimizer.b",
    ):
        run([logger, saver], model, [{}] * 5)
    assert saver.manager.saved == [5]


def make_sets():
    """Two classes, black and white; one test image of three is mislabelled."""
    images = np.zeros((6, 4, 4, 3), np.uint8)
    images[1::2] = 255
    labels = np.arange(6) % 2
    train_set = data.ImageSet(images, labels, ("black", "white"))
    test_labels = np.array([0, 1, 1])
    return train_set, data.ImageSet(images[:3], test_labels, ("black", "white"))


@pytest.mark.parametrize(
    "every_epochs, total_steps, expected",
    [(1, 15, [5, 10, 15]), (2, 15, [10, 15]), (2, 12, [10, 12]), (9, 4, [4])],
)
def test_knn_score(tmp_path, caplog, every_epochs, total_steps, expected):
    logger = make_logger(tmp_path, log_every=100)
    score = monitor.KNNMonitor(
        lambda images: images[:, 0, 0] / 255.0 + [1.0, 0.0, 0.0],
        *make_sets(),
        logger,
        every_epochs=every_epochs,
        total_steps=total_steps,
        k=3,
        temperature=0.1,
    )
    with caplog.at_level(logging.INFO, "ressl_tf"):
        run([logger, score], FakeModel(), [{}] * total_steps)
    rows = [
        row
        for row in workdir_lib.read_metrics(tmp_path)
        if "knn_accuracy" in row
    ]
    assert [row["step"] for row in rows] == expected
    for row in rows:
        assert list(row) == ["step", "epoch", "knn_accuracy"]
        assert row["epoch"] == row["step"] / 5
        np.testing.assert_allclose(row["knn_accuracy"], 2 / 3)
    message = caplog.records[-1].getMessage()
    epoch = f"epoch {total_steps / 5:g}"
    assert message == f"{epoch}: k-NN accuracy 66.67 % (k = 3)"


def test_knn_asks_no_more_neighbours_than_there_are(tmp_path):
    score = monitor.KNNMonitor(
        lambda images: images[:, 0, 0],
        *make_sets(),
        SimpleNamespace(),
        every_epochs=1,
        total_steps=5,
        k=200,
        temperature=0.1,
    )
    assert score.k == 6


def test_no_score_within_an_epoch(tmp_path):
    logger = make_logger(tmp_path)
    score = monitor.KNNMonitor(
        lambda images: images[:, 0, 0],
        *make_sets(),
        logger,
        every_epochs=1,
        total_steps=20,
        k=3,
        temperature=0.1,
    )
    run([logger, score], FakeModel(), [{}] * 3)  # stopped
    rows = workdir_lib.read_metrics(tmp_path)
    assert not any("knn_accuracy" in row for row in rows)
