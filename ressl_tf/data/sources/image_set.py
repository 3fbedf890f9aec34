"""One split of a data set in memory, and what is checked of it."""

from typing import NamedTuple

import numpy as np


class ImageSet(NamedTuple):
    """One split of a data set, in memory.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: int64 [N], -1 where an image of a partly labelled set has no
            label; None where no image has one.
        class_names: the name of each label; () where `labels` is None.
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]


def make_image_set(images, labels, class_names, source):
    """What a source has read, checked.

    Args:
        images: uint8 [N, H, W, 3].
        labels: integers [N], or None; -1 where an image has none.
        class_names: strings, or None for the labels' own numbers.
        source: for the messages.

    Raises:
        ValueError: no image, or labels that do not fit.
    """
    if not len(images):
        raise ValueError(
            f"`source` must hold images. Received: source={source!r}, "
            "which holds none"
        )
    if labels is None or np.all(labels == -1):
        return ImageSet(images, None, ())
    if class_names is None:
        class_names = map(str, range(int(labels.max()) + 1))
    class_names = tuple(class_names)
    if len(labels) != len(images):
        raise ValueError(
            "`source` must hold one label per image. Received: "
            f"source={source!r} with {len(images)} images and {len(labels)} "
            "labels"
        )
    if labels.min() < -1 or labels.max() >= len(class_names):
        raise ValueError(
            f"`source` must hold labels from 0 to {len(class_names) - 1}, or "
            f"-1 where unlabelled. Received: source={source!r} with labels "
            f"from {labels.min()} to {labels.max()}"
        )
    return ImageSet(images, labels.astype(np.int64), class_names)


def integer_labels(labels, source):
    """Labels as int64 [N]; Keras writes them as [N, 1].

    Raises:
        ValueError: other shapes and types; `source` is for the message.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "`source` must hold one integer label per image. Received: "
            f"source={source!r} with labels {labels.dtype} {labels.shape}"
        )
    return labels.astype(np.int64)


def require_labels(image_set, source):
    """Refuses a set that a probe cannot use.

    Args:
        image_set: an `ImageSet`.
        source: what it was loaded from, for the message.

    Raises:
        ValueError: some image has no label.
    """
    if image_set.labels is None:
        missing = len(image_set.images)
    else:
        missing = int(np.sum(image_set.labels < 0))
    if missing:
        raise ValueError(
            "`source` must be labelled to be probed, but "
            f"{missing} of its {len(image_set.images)} images have no label. "
            "Give a labelled set or split (one folder per class, an .npz "
            f"with labels). Received: source={source!r}"
        )
