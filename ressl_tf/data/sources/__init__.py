"""Image sets by name: where the pixels come from.

`load("photos")` needs nothing but the installed packages; `tfds:NAME`,
`folder:PATH` and `npz:PATH` read what the user has. A source is a module with
a function `read`, and a line of `SOURCES`.
"""

import numpy as np

from ressl_tf.data.sources import folder
from ressl_tf.data.sources import npz
from ressl_tf.data.sources import photos
from ressl_tf.data.sources import tfds
from ressl_tf.data.sources.image_set import ImageSet
from ressl_tf.data.sources.image_set import require_labels

__all__ = ["SOURCES", "ImageSet", "load", "parse_source", "require_labels"]

# Each takes (what follows the colon, split, image_size, data_dir, max_bad), as
# `load` has them, and returns an `ImageSet`.
SOURCES = {
    "photos": photos.read,
    "tfds": tfds.read,
    "folder": folder.read,
    "npz": npz.read,
}


def load(
    source, split="train", *, image_size=None, data_dir=None, max_bad=None
):
    """Reads one split of a data set into memory.

    Args:
        source: "photos", "tfds:NAME" (NAME as TensorFlow Datasets spells it,
            configuration and version included), "folder:PATH" or "npz:PATH".
        split: "train" or "test". For "tfds:" any other string goes to
            TensorFlow Datasets as it is ("train+unlabelled"), and "test"
            means "validation" where there is no "test".
        image_size: side in pixels to which every image is brought: the shorter
            side is resized (antialiased) and the centre square kept. None
            keeps the stored size.
        data_dir: where TensorFlow Datasets keeps its files; "tfds:" only.
        max_bad: how many image files may be skipped because they cannot be
            read, None for any number; "folder:" only.

    Returns:
        An `ImageSet`. The same arguments give the same images in the same
        order.

    Raises:
        ValueError: unknown source, missing or empty path, a split or a format
            that is not there, images of several sizes without `image_size`,
            more than `max_bad` files that cannot be read.
    """
    kind, argument = parse_source(source, split, image_size)
    return SOURCES[kind](argument, split, image_size, data_dir, max_bad)


def parse_source(source, split="train", image_size=None):
    """Checks the arguments of `load`.

    Returns:
        (kind of the source, what follows its colon).

    Raises:
        ValueError: one of them is malformed.
    """
    kind, _, argument = str(source).partition(":")
    if kind not in SOURCES or (kind == "photos") != (source == "photos"):
        raise ValueError(
            "`source` must be 'photos', 'tfds:NAME', 'folder:PATH' or "
            f"'npz:PATH'. Received: source={source!r}"
        )
    if kind != "photos" and not argument:
        raise ValueError(
            f"`source` must name what to read after '{kind}:', for instance "
            f"'tfds:cifar10' or 'folder:images'. Received: source={source!r}"
        )
    if kind != "tfds" and split not in ("train", "test"):
        raise ValueError(
            "`split` must be 'train' or 'test' (only 'tfds:' sources know "
            f"others). Received: split={split!r}, source={source!r}"
        )
    if image_size is not None and (
        isinstance(image_size, bool)
        or not isinstance(image_size, int | np.integer)
        or image_size < 1
    ):
        raise ValueError(
            "`image_size` must be a positive number of pixels, or None for "
            f"the stored size. Received: image_size={image_size!r}"
        )
    return kind, argument
