"""MoCo v2 and NNCLR-like, settings of the model, against what they are."""

import moco_reference
import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from configs import cifar10_moco_v2
from configs import cifar10_nnclr
from ressl_tf import recipe

SIZE = 2  # images of 2x2x3
BATCH = 4


def images(seed):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)


def make_backbone(input_shape, **settings):
    """Dense, in place of the recipe's network."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    return keras.Model(
        inputs, keras.layers.Dense(5, "tanh", name="backbone")(x)
    )


def tiny_model(config, monkeypatch):
    """The recipe's model with networks of a few units and a short queue."""
    monkeypatch.setattr(recipe.networks, "make_backbone", make_backbone)
    config["data"]["image_size"] = SIZE
    config["projector"].update(hidden_dim=6, output_dim=8)
    config["predictor"].update(hidden_dim=8)
    config["method"].update(queue_size=10)
    config["train"].update(batch_size=BATCH)
    # An epoch is a step: the learning rate rises for ten of them.
    durations = recipe.make_durations(config, steps_per_epoch=1)
    assert (durations.total, durations.warmup) == (200, 10)
    return recipe.make_model(config, durations)


def fit(model, *views):
    data = {"student": (views[0],), "teacher": (views[1],)}
    history = model.fit(tf.data.Dataset.from_tensors(data), verbose=0).history
    return {name: values[0] for name, values in history.items()}


def encoder_weights(branch):
    layers = {
        "Aa": branch.backbone.get_layer("backbone"),
        "Bb": branch.projector.get_layer("hidden"),
        "Cc": branch.projector.get_layer("output"),
    }
    return {
        name: value
        for names, layer in layers.items()
        for name, value in zip(names, layer.get_weights(), strict=True)
    }


@pytest.mark.core
def test_the_moco_setting_is_moco_v2(monkeypatch):
    config = cifar10_moco_v2.get_config().to_dict()
    config["method"]["teacher_momentum"] = 0.8  # or it hardly moves in 9 steps
    config["optimizer"]["base_learning_rate"] = 64.0  # 1.0 for a batch of 4
    model = tiny_model(config, monkeypatch)
    assert model.predictor is None
    moco = moco_reference.MoCo(
        encoder_weights(model.student),
        np.asarray(model.queue.keys),
        m=0.8,
        temperature=0.2,
        sgd_momentum=0.9,
        weight_decay=5e-4,
    )
    start = encoder_weights(model.student)
    for step in range(9):  # 36 keys go round a queue of 10 over three times
        views = images(2 * step), images(2 * step + 1)
        report = fit(model, *views)
        loss = moco.step(*views, learning_rate=step / 10)
        np.testing.assert_allclose(report["loss"], loss, rtol=1e-4)
        assert report["loss"] == report["info_nce"]
        for branch, encoder in (
            (model.student, moco.query_encoder),
            (model.teacher, moco.key_encoder),
        ):
            for name, value in encoder_weights(branch).items():
                np.testing.assert_allclose(
                    value, encoder.weights[name], atol=1e-4, err_msg=name
                )
        pointer = int(tf.convert_to_tensor(model.queue.pointer))
        np.testing.assert_allclose(
            np.roll(np.asarray(model.queue.keys), -pointer, axis=0),
            moco.queue,
            atol=1e-4,
        )
    moved = encoder_weights(model.student)
    assert all(np.abs(moved[k] - start[k]).max() > 0.01 for k in start)


@pytest.mark.core
def test_the_nnclr_setting_names_the_nearest_key(monkeypatch):
    config = cifar10_nnclr.get_config().to_dict()
    model = tiny_model(config, monkeypatch)
    for step in range(3):
        strong, weak = images(2 * step), images(2 * step + 1)
        queue = np.asarray(model.queue.keys, np.float64)
        # The teacher is about to move to where it will be.
        teacher = [
            0.99 * old + 0.01 * new
            for old, new in zip(
                trainable(model.teacher), trainable(model.student), strict=True
            )
        ]
        z1 = model.student(strong, training=True)
        z1 = unit(model.predictor(z1, training=True))
        report = fit(model, strong, weak)
        for now, expected in zip(
            trainable(model.teacher), teacher, strict=True
        ):
            np.testing.assert_allclose(now, expected, atol=1e-6)
        z2 = unit(model.teacher(weak, training=True))
        nearness = np.sort(z2 @ queue.T)
        # Or one-hot would be too much to ask of this temperature.
        assert (nearness[:, -1] - nearness[:, -2]).min() > 0.015
        logits = z1 @ queue.T / 0.1
        log_p1 = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        nearest = np.argmax(z2 @ queue.T, axis=1)
        expected = -log_p1[np.arange(BATCH), nearest].mean()
        np.testing.assert_allclose(report["loss"], expected, rtol=1e-4)
        assert report["target_entropy"] < 1e-3


def trainable(branch):
    return [np.array(variable) for variable in branch.trainable_variables]


def unit(embeddings):
    embeddings = np.asarray(embeddings, np.float64)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
