"""The smallest run there is: what the tests of training and export share."""

import numpy as np
import tensorflow as tf
from tensorflow import keras

from configs import photos
from ressl_tf import networks
from ressl_tf import recipe
from ressl_tf import train

NUM_IMAGES = 64
NUM_TEST_IMAGES = 24
NUM_CLASSES = 4
IMAGE_SIZE = 16
BATCH_SIZE = 16
STEPS_PER_EPOCH = NUM_IMAGES // BATCH_SIZE


def write_images(folder, labelled=True):
    """Writes noisy images of 4 brightnesses; returns the source's name."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", NUM_IMAGES), ("test", NUM_TEST_IMAGES)):
        labels = np.arange(count) % NUM_CLASSES
        noise = generator.integers(0, 128, (count, IMAGE_SIZE, IMAGE_SIZE, 3))
        images = noise + 40 * labels[:, None, None, None]
        arrays[f"x_{split}"] = images.astype(np.uint8)
        if labelled:
            arrays[f"y_{split}"] = labels
    path = folder / "images.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


SETTINGS = {
    "data.image_size": IMAGE_SIZE,
    "backbone.stem": "small",
    "backbone.width": 4,
    "method.queue_size": 40,
    "train.batch_size": BATCH_SIZE,
    "train.epochs": 3.0,
    "monitor.log_every_steps": 2,
    "monitor.eval_every_epochs": 0,
    "monitor.knn_neighbours": 5,
}


def make_config(source, changes=None, backbone="tiny"):
    """The quick form of the photos recipe, smaller still.

    Args:
        source: as in `data.load`.
        changes: {"train.epochs": 2.0, ...}.
        backbone: "tiny" needs `add_backbone` or `lighten`.

    Returns:
        A nested dict.
    """
    config = photos.get_config("quick").to_dict()
    config["data"]["source"] = source
    config["backbone"]["name"] = backbone
    for key, value in {**SETTINGS, **(changes or {})}.items():
        *folders, name = key.split(".")
        part = config
        for folder in folders:
            part = part[folder]
        if name not in part:
            raise KeyError(key)
        part[name] = value
    return config


class PlainView:
    """A view that compiles in no time: noise of its own seed, normalised.

    With `side`, its top left corner alone.
    """

    def __init__(self, strength, side=None):
        self.strength = strength
        self.side = side

    def apply(self, images, seed, rows=None):
        images = tf.cast(images, tf.float32) / 127.5 - 1.0
        first, batch_size = rows or (0, images.shape[0])
        noise = tf.random.stateless_normal(
            [batch_size, *images.shape[1:]], seed
        )
        own = noise[first : first + images.shape[0]]
        return (images + self.strength * own)[:, : self.side, : self.side]


def plain_views(config):
    """As many plain views as a recipe has, of their sizes."""
    views = {}
    for role, strength in (("student", 0.5), ("teacher", 0.1)):
        settings = config["views"][role]
        sides = settings["size"] or [None] * settings["crops"]
        views[role] = tuple(PlainView(strength, side) for side in sides)
    return views


def add_backbone(monkeypatch):
    """Adds the backbone "tiny"."""
    monkeypatch.setitem(
        networks.RESNETS, "tiny", networks.Architecture("basic", (1, 1))
    )


def lighten(monkeypatch):
    """Adds the backbone "tiny" and replaces the views by plain ones."""
    add_backbone(monkeypatch)
    monkeypatch.setattr(recipe, "make_views", plain_views)


def make_run(folder, changes=None):
    """A finished run in folder/run; `lighten` comes first."""
    source = write_images(folder)
    workdir = folder / "run"
    changes = {"train.epochs": 1.0, **(changes or {})}
    return workdir, train.train(make_config(source, changes), workdir)


def loss_scaled(optimizer, initial_scale):
    """What `compile` makes of the optimiser, with a scale of one's own."""
    if hasattr(keras.optimizers, "LossScaleOptimizer"):  # Keras 3
        wrapper = keras.optimizers.LossScaleOptimizer
    else:
        wrapper = keras.mixed_precision.LossScaleOptimizer
    return wrapper(optimizer, initial_scale=initial_scale)


def assert_near(found, expected, name="", share=3e-4):
    """Every difference is at most `share` of the largest expected value.

    For what is added in another order: that is 1e-7 of the scale a step, which
    batch normalisation and the temperatures multiply, and may be any share of
    a single value near 0. 1e-6 is of biases before batch normalisation, which
    are noise alone.
    """
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=share * scale + 1e-6, err_msg=name
    )


def random_images(count):
    """uint8 (count, H, W, 3) that no run has seen."""
    return np.random.default_rng(5).integers(
        0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8
    )
