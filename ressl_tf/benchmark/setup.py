"""What the subjects measure: the small model, batches, views, pictures."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ressl_tf import augment
from ressl_tf import networks
from ressl_tf import optimizers
from ressl_tf.model import ReSSL

# The paper's strong view of ImageNet, where it is not that of small images;
# its min_area is the crop's.
IMAGENET_STRONG = {
    "min_area": 0.14,
    "saturation": 0.2,
    "blur_kernel": 23,
    "solarize": 0.1,
}
# Up to Tiny ImageNet's size, views are those of small images.
_LARGEST_SMALL = 64


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
    gradient_accumulation_steps: int = 1


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
        optimizers.make_optimizer("sgd", 0.06, weight_decay=5e-4),
        gradient_accumulation_steps=setup.gradient_accumulation_steps,
        jit_compile=False,
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


def make_views(size):
    """The recipes' two views of this size, {"strong": ..., "weak": ...}."""
    options = {} if size <= _LARGEST_SMALL else IMAGENET_STRONG
    return {
        "strong": augment.strong_view(size, **options),
        "weak": augment.weak_view(size),
    }


def stored_size(size):
    """Side of the images that views of this size are cut from: 256 for 224."""
    return size if size <= _LARGEST_SMALL else round(size * 8 / 7)


def make_pictures(number, size):
    """Squares cut out of photographs, at random and always the same.

    Args:
        number: how many.
        size: height and width in pixels.

    Returns:
        uint8 array (number, size, size, 3).
    """
    import sklearn.datasets
    from PIL import Image

    photographs = sklearn.datasets.load_sample_images().images  # 427 x 640
    generator = np.random.default_rng(0)
    pictures = np.empty((number, size, size, 3), np.uint8)
    for index in range(number):
        photograph = photographs[index % len(photographs)]
        height, width, _ = photograph.shape
        side = int(generator.integers(height // 4, height + 1))
        left = int(generator.integers(width - side + 1))
        top = int(generator.integers(height - side + 1))
        pictures[index] = Image.fromarray(photograph).resize(
            (size, size), box=(left, top, left + side, top + side)
        )
    return pictures


def jpeg_files(folder):
    """The JPEG files in a folder or in folders below it, sorted.

    Raises:
        ValueError: if there is none.
    """
    paths = sorted(
        path
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in (".jpeg", ".jpg")
    )
    if not paths:
        raise ValueError(
            "`folder` must hold JPEG files (.jpeg, .jpg). "
            f"Received: folder={str(folder)!r}"
        )
    return paths
