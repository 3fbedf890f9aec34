"""Labelled batches: cropped at random to train on, whole to evaluate on."""

import collections
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from ressl_tf.data import decoding
from ressl_tf.data.decoding import BadImages
from ressl_tf.data.image_files import default_max_bad
from ressl_tf.data.pipeline import Views
from ressl_tf.data.pipeline import replace_bad


def make_labelled_dataset(
    reader, view, *, batch_size, seed, start_step=0, bad_images=None
):
    """Batches of views and their labels, without end.

    As `make_train_dataset`: the batch of step t depends on `seed` and t alone,
    an epoch sees no image twice, and what is left of whole batches is
    other images in each epoch.

    Args:
        reader: with labels, see `readers`.
        view: as one of the views of `make_train_dataset`.
        batch_size: B, at most the number of images.
        seed: integer.
        start_step: step of the first batch.
        bad_images: as in `make_train_dataset`.

    Returns:
        An infinite `tf.data.Dataset` of (float32 [B, S, S, 3], int64 [B]).

    Raises:
        ValueError: the reader has no labels, or as `make_train_dataset`.
    """
    check_labelled(reader)
    bad_images = bad_images or BadImages(default_max_bad(reader.num_images))
    views = Views((view,), (), seed=seed, augment_on="host")

    def make(step, what):
        batch = views.make(reader, what, step, None)
        return {**batch, "labels": reader.load_labels(what)}

    dataset = reader.steps(batch_size, seed=seed, start_step=start_step)
    dataset = dataset.map(
        make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    if reader.encoded:
        dataset = dataset.map(lambda batch: replace_bad(batch, bad_images))
    dataset = dataset.map(lambda batch: (batch["student"][0], batch["labels"]))
    return dataset.prefetch(tf.data.AUTOTUNE)


def make_ordered_dataset(
    reader, *, image_size, batch_size=256, shorter_side=None, bad_images=None
):
    """Every image once, in the order of the set, with its label.

    Args:
        reader: with labels, see `readers`.
        image_size: S. Images that are not yet squares of that size are
            resized, antialiased, until their shorter side is `shorter_side`,
            and their centre is cut out.
        batch_size: of what is read at once.
        shorter_side: in pixels, at least S. Defaults to `None`, for S: the
            largest square. The usual protocol of ImageNet is 256 for S = 224.
        bad_images: `BadImages`; images that cannot be read are left out, so
            that a batch may be smaller. None for the default number of them.

    Returns:
        A finite `tf.data.Dataset` of (uint8 [b, S, S, 3], int64 [b]).

    Raises:
        ValueError: the reader has no labels, or `shorter_side` is below
            `image_size`.
    """
    check_labelled(reader)
    shorter_side = shorter_side or image_size
    if shorter_side < image_size:
        raise ValueError(
            "`shorter_side` must be at least the image size, "
            f"{image_size}. Received: shorter_side={shorter_side}"
        )
    bad_images = bad_images or BadImages(default_max_bad(reader.num_images))

    def load(what):
        labels = reader.load_labels(what)
        if not reader.encoded:
            images = reader.load(what)
            if images.shape[1:3] != (image_size, image_size):
                images = tf.map_fn(
                    lambda image: decoding.centre_square(
                        image, image_size, shorter_side
                    ),
                    images,
                )
            return images, labels
        encoded, names = reader.load(what)
        images, readable = decoding.decode_squares(
            encoded, image_size, shorter_side
        )
        bad_images.check(names, readable)
        return (
            tf.boolean_mask(images, readable),
            tf.boolean_mask(labels, readable),
        )

    dataset = reader.in_order(batch_size).map(
        load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def balanced_rows(labels, fraction, seed=0):
    """Which images a class-balanced part of a set holds.

    The same share of every class, rounded, and at least one image of each.

    Args:
        labels: integers [N].
        fraction: of each class's images, in (0, 1].
        seed: integer from 0; another one draws other images.

    Returns:
        int64 [n] positions, ascending.

    Raises:
        ValueError: `fraction` is out of its range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            "`fraction` must be above 0 and at most 1. "
            f"Received: fraction={fraction}"
        )
    generator = np.random.default_rng([seed])
    rows = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(members)))
        rows.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(rows))


def listed_rows(reader, path):
    """Which images of a folder a list of files names.

    Args:
        reader: `FileReader`.
        path: of a text file with one image a line: its file name, or the end
            of its path ("n01440764/n01440764_10026.JPEG").

    Returns:
        int64 [n] positions, in the order of the list.

    Raises:
        ValueError: the list or an image of it does not exist, or a line means
            several images.
    """
    try:
        lines = Path(path).read_text().split("\n")
    except OSError as error:
        raise ValueError(
            "`file_list` must be a text file. "
            f"Received: file_list={str(path)!r} ({error.strerror})"
        ) from error
    found = collections.defaultdict(list)
    wanted = [line.strip() for line in lines if line.strip()]
    depths = {line.count("/") + 1 for line in wanted}
    for row, file in enumerate(reader.paths):
        parts = os.fsdecode(file).split("/")
        for depth in depths:
            found["/".join(parts[-depth:])].append(row)
    for line in wanted:
        if len(found[line]) != 1:
            raise ValueError(
                "`file_list` must name files of the source, each by a name "
                f"that no other has. Received: {line!r}, which "
                f"{len(found[line])} files have"
            )
    return np.array([found[line][0] for line in wanted], np.int64)


def check_labelled(reader):
    """Refuses a reader that a probe cannot use.

    Raises:
        ValueError: its images have no labels.
    """
    if not reader.class_names:
        raise ValueError(
            "`source` must be labelled: one folder per class, an .npz with "
            "labels, or a data set with class labels. Received: a source "
            f"whose {reader.num_images} images have none"
        )
