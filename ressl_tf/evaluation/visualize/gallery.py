"""The same images as several encoders see them: what is drawn side by side."""

import logging
import os
from typing import Any
from typing import NamedTuple

import numpy as np

from ressl_tf import data
from ressl_tf.evaluation import feature_cache
from ressl_tf.evaluation import knn

logger = logging.getLogger("ressl_tf")

# Of the training images, where there are no test images.
HELD_OUT_SHARE = 0.2


class Gallery(NamedTuple):
    """Images, and the features that each encoder makes of them.

    Attributes:
        source: where they come from.
        query_images: uint8 array (Q, H, W, 3): test images, or, of a source
            that has none, a part of the training images.
        query_labels: integers (Q,), or None.
        bank_images: uint8 array (N, H, W, 3): the other training images.
        bank_labels: integers (N,), or None.
        class_names: name of each label; () without labels.
        features: {name of an encoder: (queries' (Q, C), bank's (N, C))}.
        accuracies: {name of an encoder: its k-NN accuracy, 0 to 1}; empty
            without labels.
    """

    source: str
    query_images: np.ndarray
    query_labels: Any
    bank_images: np.ndarray
    bank_labels: Any
    class_names: tuple
    features: dict
    accuracies: dict


def open_gallery(
    encoders, source=None, data_dir=None, *, seed=0, cache=False, progress=False
):
    """Loads images once for each size, and extracts everybody's features.

    Labels are used if all images have one.

    Args:
        encoders: {name: `subject.Encoder`}.
        source: images, as in `data.load`. Defaults to those of the
            pre-training, which has to be the same for all encoders.
        data_dir: for tensorflow-datasets. Defaults to the pre-training's.
        seed: Integer of at least 0; chooses which training images are queries
            if there are no test images. Defaults to `0`.
        cache: whether to keep features as `Subject.extract` does, where an
            encoder's folder can be written. Defaults to `False`.
        progress: whether to print progress bars. Defaults to `False`.

    Returns:
        A `Gallery`.

    Raises:
        ValueError: if it is not known which images to take, or they cannot be
            loaded.
    """
    source, data_dir = _find_source(encoders, source, data_dir)
    images = {
        size: _load(source, data_dir, size, seed)
        for size in sorted({x.image_size for x in encoders.values()})
    }
    features = {
        name: images[encoder.image_size].extract(encoder, cache, progress)
        for name, encoder in encoders.items()
    }
    shown = images[max(images)]  # in the finest form that there is
    accuracies = {}
    if shown.bank.labels is not None:
        accuracies = {
            name: knn.knn_accuracy(
                bank,
                shown.bank.labels,
                queries,
                shown.queries.labels,
                num_classes=len(shown.bank.class_names),
                k=min(200, len(bank)),
            )
            for name, (queries, bank) in features.items()
        }
    return Gallery(
        source,
        shown.queries.images,
        shown.queries.labels,
        shown.bank.images,
        shown.bank.labels,
        shown.bank.class_names,
        features,
        accuracies,
    )


def short_names(paths):
    """The least of each `Path`'s end that tells it from the others."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


class _Images(NamedTuple):
    """The images of a source in one size.

    `splits` are those that features are made of, {file's name: ImageSet};
    queries and bank are a split each, or the `query_rows` and the other rows
    of the only one.
    """

    queries: Any
    bank: Any
    splits: dict
    query_rows: np.ndarray | None

    def extract(self, encoder, cache, progress):
        """(queries' features, bank's features)."""
        folder = encoder.folder / "features"
        if not (cache and _is_writable(folder)):
            folder = None
        found = {
            split: feature_cache.cached_features(
                encoder,
                image_set.images,
                folder and folder / f"{encoder.file_name(split)}.npz",
                progress=progress,
            )
            for split, image_set in self.splits.items()
        }
        if self.query_rows is None:
            return found["test"], found["train"]
        return (
            found["train"][self.query_rows],
            np.delete(found["train"], self.query_rows, axis=0),
        )


def _find_source(encoders, source, data_dir):
    """(source, data_dir), the pre-training's where None is given."""
    known = {
        name: encoder.config["data"]
        for name, encoder in encoders.items()
        if encoder.config
    }
    if not source:
        sources = {settings["source"] for settings in known.values()}
        if len(sources) != 1:
            raise ValueError(
                "`source` must be given where the pre-training's images are "
                "not known or not the same for all encoders, as photos, "
                "tfds:NAME, folder:PATH or npz:PATH. Received: "
                f"source={source!r}, and pre-training on "
                f"{sorted(sources) or 'nothing known'}"
            )
        source = sources.pop()
    for settings in known.values():
        if not data_dir and settings["source"] == source:
            data_dir = settings["data_dir"]
    return source, data_dir


def _load(source, data_dir, image_size, seed):
    def load(split):
        return data.load(
            source, split=split, image_size=image_size, data_dir=data_dir
        )

    train = load("train")
    try:
        test = load("test")
    except ValueError as error:
        logger.info(
            "no test images, %.0f %% of the training images in their place: %s",
            100 * HELD_OUT_SHARE,
            error,
        )
        count = len(train.images)
        rows = np.random.default_rng(seed).permutation(count)
        rows = np.sort(rows[: max(1, round(HELD_OUT_SHARE * count))])
        bank, queries = _with_labels(
            _select(train, np.delete(np.arange(count), rows)),
            _select(train, rows),
        )
        return _Images(queries, bank, {"train": train}, rows)
    bank, queries = _with_labels(train, test)
    return _Images(queries, bank, {"train": train, "test": test}, None)


def _select(image_set, rows):
    labels = image_set.labels
    return image_set._replace(
        images=image_set.images[rows],
        labels=None if labels is None else labels[rows],
    )


def _with_labels(*image_sets):
    """The sets as they are if all images have labels, or without any."""
    if all(x.labels is not None and x.labels.min() >= 0 for x in image_sets):
        return image_sets
    logger.info("not all images have a label: pictures without classes")
    return [x._replace(labels=None, class_names=()) for x in image_sets]


def _is_writable(folder):
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
