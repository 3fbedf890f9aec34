"""The small model and the batch that the subjects measure."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ressl_tf import networks
from ressl_tf import optimizers
from ressl_tf.model import ReSSL


class Setup(NamedTuple):
    """Sizes of what is measured; the defaults suit two CPU cores."""

    backbone: str = "resnet18"
    width: int = 16
    stem: str = "cifar"
    image_size: int = 32
    hidden_dim: int = 512  # of projector and predictor
    batch_size: int = 256  # B
    queue_size: int = 4096  # K
    dim: int = 128  # D
    crops: int = 1  # student views, all of `image_size`; one teacher view


def make_networks(setup):
    """Backbone, projector and predictor of these sizes."""
    size = setup.image_size
    backbone = networks.make_backbone(
        setup.backbone, (size, size, 3), stem=setup.stem, width=setup.width
    )
    projector = networks.make_projector(
        backbone.output_shape[-1], setup.hidden_dim, setup.dim
    )
    predictor = networks.make_predictor(setup.dim, setup.hidden_dim)
    return backbone, projector, predictor


def make_model(setup):
    """A compiled `ReSSL` of these sizes."""
    model = ReSSL(*make_networks(setup), queue_size=setup.queue_size)
    model.compile(
        optimizers.make_optimizer("sgd", 0.06, l2=5e-4), jit_compile=False
    )
    return model


def make_batch(setup):
    """One batch of noise, as `fit` would take it."""
    size = setup.image_size
    shape = (setup.batch_size, size, size, 3)
    generator = np.random.default_rng(0)

    def view():
        return tf.constant(generator.normal(size=shape).astype(np.float32))

    return {
        "student": tuple(view() for _ in range(setup.crops)),
        "teacher": (view(),),
    }
