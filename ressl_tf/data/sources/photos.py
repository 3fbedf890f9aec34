"""Crops of pictures that scikit-image and scikit-learn ship: "photos"."""

import itertools
from pathlib import Path

import numpy as np

from ressl_tf.data.image_files import fit_square
from ressl_tf.data.image_files import to_rgb
from ressl_tf.data.sources.image_set import make_image_set

NAMES = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "ihc",
    "retina",
    "rocket",
    "motorcycle_left",
    "brick",
    "grass",
    "gravel",
    "camera",
    "coins",
    "page",
    "china",
    "flower",
)
CROPS_PER_CLASS = {"train": 500, "test": 100}
CROP_SIZE = 48
IMAGE_SIZE = 32


def read(_, split, image_size, *__):
    """Reads a split, as `sources.load`."""
    from PIL import Image

    size = image_size or IMAGE_SIZE
    count = CROPS_PER_CLASS[split]
    images = np.empty((len(NAMES) * count, size, size, 3), np.uint8)
    position = 0
    for class_index, path in enumerate(_paths()):
        with Image.open(path) as file:
            picture = to_rgb(file)
        corners = corners_of(*picture.size, class_index, split, count)
        for left, top in zip(*(c.tolist() for c in corners), strict=True):
            # Cut first: a resize of a box also looks at pixels around it,
            # which may belong to the other split.
            crop = picture.crop((left, top, left + CROP_SIZE, top + CROP_SIZE))
            images[position] = fit_square(crop, size)
            position += 1
    labels = np.repeat(np.arange(len(NAMES)), count)
    return make_image_set(images, labels, NAMES, "photos")


def _paths():
    import skimage
    import sklearn.datasets

    # The files themselves: some of scikit-image's loaders ask for the
    # downloader pooch although the picture is in the wheel.
    folders = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.datasets.__file__).parent / "images",
    )
    for name in NAMES:
        candidates = [
            folder / (name + suffix)
            for folder, suffix in itertools.product(folders, (".png", ".jpg"))
        ]
        found = [path for path in candidates if path.is_file()]
        if not found:
            raise ValueError(
                f"The picture {name!r} of source='photos' is missing from the "
                "installed scikit-image and scikit-learn. Install their "
                "ordinary wheels, or use another `source`."
            )
        yield found[0]


def corners_of(width, height, class_index, split, count):
    """Top left corners of the crops of one picture of `photos`.

    Train crops lie within the left 70 % of the columns, test crops within the
    rest: the splits share no pixel. Corners are uniform, drawn by
    `np.random.default_rng((class_index, 0 if split == "train" else 1))`,
    columns first.

    Returns:
        (lefts, tops), each int64 [count].
    """
    boundary = width * 7 // 10
    first, end = (0, boundary) if split == "train" else (boundary, width)
    generator = np.random.default_rng((class_index, int(split != "train")))
    lefts = generator.integers(first, end - CROP_SIZE + 1, count)
    tops = generator.integers(0, height - CROP_SIZE + 1, count)
    return lefts, tops
