"""Images with several labels each: VOC2007."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ressl_tf.data.image_files import fit_square
from ressl_tf.data.sources.tfds import open_builder

_CHUNK = 256


class MultiLabelSet(NamedTuple):
    """One split, in memory.

    Attributes:
        images: uint8 [N, S, S, 3].
        targets: int8 [N, C]: 1 where an image has a class, 0 where not, -1
            where it has objects of it that are marked as difficult, and no
            others: VOC counts such an image neither way.
        class_names: C names.
    """

    images: np.ndarray
    targets: np.ndarray
    class_names: tuple[str, ...]


def load_voc2007(split, *, image_size, shorter_side=None, data_dir=None):
    """Reads VOC2007 as TensorFlow Datasets has it, `voc/2007`.

    Args:
        split: "train+validation", "test" or another one of its splits.
        image_size: S. The shorter side of an image is resized to
            `shorter_side`, antialiased, and the centre cut out.
        shorter_side: in pixels, at least S. None for S.
        data_dir: where TensorFlow Datasets keeps its files.

    Returns:
        A `MultiLabelSet`.

    Raises:
        ValueError: the set cannot be read, or `shorter_side` is too small.
    """
    import tensorflow_datasets as tfds

    shorter_side = shorter_side or image_size
    if shorter_side < image_size:
        raise ValueError(
            f"`shorter_side` must be at least the image size, {image_size}. "
            f"Received: shorter_side={shorter_side}"
        )
    builder = open_builder("voc/2007", data_dir)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    names = tuple(builder.info.features["labels"].names)
    images, targets = [], []

    def fit(image):
        return _centre(image, image_size, shorter_side)

    with ThreadPoolExecutor() as pool:
        pending = []
        for element in dataset.as_numpy_iterator():
            target = np.zeros(len(names), np.int8)
            target[element["labels"]] = -1
            target[element["labels_no_difficult"]] = 1
            targets.append(target)
            pending.append(element["image"])
            if len(pending) == _CHUNK:  # full-size images take memory
                images.extend(pool.map(fit, pending))
                pending.clear()
        images.extend(pool.map(fit, pending))
    return MultiLabelSet(np.stack(images), np.stack(targets), names)


def _centre(image, size, shorter_side):
    """uint8 [H, W, 3] -> uint8 [size, size, 3]."""
    from PIL import Image

    square = np.asarray(fit_square(Image.fromarray(image), shorter_side))
    first = (shorter_side - size) // 2
    # A copy, or each would keep its square in memory.
    return square[first : first + size, first : first + size].copy()
