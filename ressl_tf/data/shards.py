"""Shards: a data set written as the TFRecord files of TensorFlow Datasets.

What `readers.ShardReader` streams. There is no format of our own: the result
is a prepared TensorFlow Datasets folder, which "tfds:NAME" reads everywhere.
"""

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ressl_tf.data import sources
from ressl_tf.data.image_files import fit_square
from ressl_tf.data.image_files import to_rgb

__all__ = ["write_shards"]

_VERSION = "1.0.0"


def write_shards(
    source,
    name,
    folder,
    *,
    splits=("train",),
    num_shards=None,
    image_size=None,
    keep_files=False,
    data_dir=None,
):
    """Writes a data set as shards, shuffled.

    The files of "folder:" sources pass one at a time; what any other source
    holds is read into memory first.

    Args:
        source: as in `sources.load`.
        name: of the new set: lower case letters, digits and underscores.
        folder: where TensorFlow Datasets keeps its files: they are written to
            folder/name/1.0.0.
        splits: "train", "test" or both; whatever the source has for "tfds:".
        num_shards: files per split; None leaves it to TensorFlow Datasets
            (64 MB or more each).
        image_size: as in `sources.load`, to make the images smaller once.
        keep_files: False stores pixels, as lossless PNG; True stores the JPEG
            files of a "folder:" source as they are, which is smaller and
            faster.
        data_dir: as in `sources.load`.

    Returns:
        {split: number of images}.

    Raises:
        ValueError: as `sources.load`; the name is taken or malformed;
            `keep_files` cannot be.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
        raise ValueError(
            "`name` must be lower case letters, digits and underscores, a "
            f"letter first. Received: name={name!r}"
        )
    folder = Path(folder).expanduser()
    if (folder / name).exists():
        raise ValueError(
            f"`name` must be new. Received: name={name!r}, but "
            f"{folder / name} is there; remove it or take another name"
        )
    kind, _ = sources.parse_source(source, image_size=image_size)
    if keep_files and (kind != "folder" or image_size):
        raise ValueError(
            "`keep_files` goes with 'folder:' sources and without "
            f"`image_size`. Received: keep_files=True, source={source!r}, "
            f"image_size={image_size}"
        )
    opened = {
        split: _open_files(source, split, image_size, keep_files)
        if kind == "folder"
        else _open_images(source, split, image_size, data_dir)
        for split in splits
    }
    first = next(iter(opened.values()))
    features = {"image": tfds.features.Image(shape=first.shape)}
    class_names = next((s.class_names for s in opened.values() if s.labels), ())
    if class_names:
        features["label"] = tfds.features.ClassLabel(names=class_names)

    counts = dict.fromkeys(opened, 0)

    def examples(split):
        labels = opened[split].labels
        for number, image in opened[split].images:
            example = {"image": image}
            if class_names:
                example["label"] = int(labels[number]) if labels else -1
            counts[split] += 1
            yield number, example

    tfds.disable_progress_bar()
    # It prints that it downloads.
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version=_VERSION,
            features=tfds.features.FeaturesDict(features),
            split_datasets={split: examples(split) for split in opened},
            data_dir=folder,
            description=f"Written from {source}.",
            download_config=tfds.download.DownloadConfig(
                num_shards=num_shards, try_download_gcs=False
            ),
        )
    return counts


class _Split(NamedTuple):
    images: object  # Of (number, image), each as tfds.features.Image takes it.
    labels: list | None
    class_names: tuple
    shape: tuple


def _open_images(source, split, image_size, data_dir):
    found = sources.load(
        source, split, image_size=image_size, data_dir=data_dir
    )
    labels = None if found.labels is None else found.labels.tolist()
    shape = found.images.shape[1:]
    return _Split(enumerate(found.images), labels, found.class_names, shape)


def _open_files(source, split, image_size, keep_files):
    _, path = sources.parse_source(source, split)
    files, labels, class_names = sources.folder_files(path, split)

    def images():
        for number, file in enumerate(files):
            try:
                yield number, _read_file(file, image_size, keep_files)
            except Exception as error:  # Decoders raise anything.
                warnings.warn(f"Skipped: {file} ({error})", stacklevel=2)

    shape = (image_size, image_size, 3)
    return _Split(images(), labels and list(labels), tuple(class_names), shape)


def _read_file(path, image_size, keep_files):
    """The bytes of a JPEG file, or uint8 [H, W, 3]."""
    from PIL import Image

    with Image.open(path) as image:
        # TensorFlow does not decode JPEG in the colours of print.
        if keep_files and image.format == "JPEG" and image.mode in ("RGB", "L"):
            return path.read_bytes()
        return np.asarray(fit_square(to_rgb(image), image_size))
