"""Shards: a data set written as the TFRecord files of TensorFlow Datasets.

What `readers.ShardReader` streams. There is no format of our own: the result
is a prepared TensorFlow Datasets folder, which "tfds:NAME" reads everywhere.

It is written shard by shard. Until all are there, they lie in a folder that is
no version of the set, beside notes of what they hold; the same call, made
again, writes those that are missing.
"""

import contextlib
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ressl_tf.data import sources
from ressl_tf.data.decoding import BadImages
from ressl_tf.data.image_files import default_max_bad
from ressl_tf.data.image_files import fit_square
from ressl_tf.data.image_files import to_rgb
from ressl_tf.data.sources.folder import folder_files

__all__ = ["write_shards"]

_VERSION = "1.0.0"
_SHARD_BYTES = 64 * 2**20
_CHUNK = 256


def write_shards(
    source,
    name,
    folder,
    *,
    splits=("train",),
    num_shards=None,
    image_size=None,
    keep_files=False,
    max_bad=None,
    data_dir=None,
):
    """Writes a data set as shards, shuffled; continues where it was ended.

    The files of "folder:" sources pass one at a time; what any other source
    holds is read into memory first. The order of the images, and so what is
    in which shard, is fixed: however often the writing was ended, the result
    is the same.

    Args:
        source: as in `sources.load`.
        name: of the new set: lower case letters, digits and underscores.
        folder: where TensorFlow Datasets keeps its files: they are written to
            folder/name/1.0.0.
        splits: "train", "test" or both; whatever the source has for "tfds:".
        num_shards: files per split; None makes one of every 64 MB of the
            source's files, or of pixels.
        image_size: as in `sources.load`, to make the images smaller once.
        keep_files: False stores pixels, as lossless PNG; True stores the JPEG
            files of a "folder:" source as they are, which is smaller and
            faster.
        max_bad: how many files of a "folder:" source may be skipped because
            they cannot be read; None means `image_files.default_max_bad`.
        data_dir: as in `sources.load`.

    Returns:
        {split: number of images}.

    Raises:
        ValueError: as `sources.load`; the name is taken or malformed, or what
            was begun under it is something else; `keep_files` cannot be;
            `num_shards` is not from 1 to the number of images; more than
            `max_bad` files, or all of a split, cannot be read.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
        raise ValueError(
            "`name` must be lower case letters, digits and underscores, a "
            f"letter first. Received: name={name!r}"
        )
    kind, _ = sources.parse_source(source, image_size=image_size)
    if keep_files and (kind != "folder" or image_size):
        raise ValueError(
            "`keep_files` goes with 'folder:' sources and without "
            f"`image_size`. Received: keep_files=True, source={source!r}, "
            f"image_size={image_size}"
        )
    target = _Target(Path(folder).expanduser(), name)
    opened = {
        split: _open_files(source, split, image_size, keep_files)
        if kind == "folder"
        else _open_images(source, split, image_size, data_dir)
        for split in splits
    }
    shards = {split: _deal(opened[split], num_shards) for split in opened}
    num_images = sum(len(images.names) for images in opened.values())
    if max_bad is None:
        max_bad = default_max_bad(num_images)
    bad = BadImages(max_bad, "max_bad")
    target.begin(
        {
            "source": str(source),
            "image_size": image_size,
            "keep_files": keep_files,
            "num_shards": {split: len(shards[split]) for split in opened},
            "images": {split: opened[split].digest for split in opened},
        }
    )
    features = _features(list(opened.values()))
    notes = {split: [] for split in opened}
    with _progress_bar(num_images) as progress:
        for split, images in opened.items():
            for number, positions in enumerate(shards[split]):
                path = target.path(split, number, len(shards[split]))
                note = target.note(path)
                if note is None:
                    target.write(
                        path, images, positions, features, bad, progress
                    )
                    note = target.note(path)
                else:
                    for skipped in note["bad"]:
                        bad.add(skipped)
                    progress.update(len(positions))
                notes[split].append(note)
    counts = {
        split: sum(note["num_images"] for note in notes[split])
        for split in opened
    }
    if not all(counts.values()):
        raise ValueError(
            "`source` must hold readable images. Received: "
            f"source={source!r}, of which can be read: {counts}"
        )
    target.finish(features, notes, f"Written from {source}.")
    return counts


class _Images(NamedTuple):
    """One split of what is to be written.

    Attributes:
        encode: maps a position to the bytes of its image file.
        names: of the images.
        file_names: what to store as such, or None.
        labels: list, or None.
        class_names: as in `sources.ImageSet`.
        shape: (H, W, 3), None where it varies.
        num_bytes: of all images, before.
        digest: of what they are.
    """

    encode: Callable[[int], bytes]
    names: list
    file_names: list | None
    labels: list | None
    class_names: tuple
    shape: tuple
    num_bytes: int
    digest: str


def _open_images(source, split, image_size, data_dir):
    from PIL import Image

    found = sources.load(
        source, split, image_size=image_size, data_dir=data_dir
    )
    images = found.images
    labels = None if found.labels is None else found.labels.tolist()
    digest = hashlib.sha256(np.ascontiguousarray(images))
    digest.update(json.dumps(labels).encode())
    return _Images(
        encode=lambda position: _png(Image.fromarray(images[position])),
        names=[f"image {position}" for position in range(len(images))],
        file_names=None,
        labels=labels,
        class_names=tuple(found.class_names),
        shape=images.shape[1:],
        num_bytes=images.nbytes,
        digest=digest.hexdigest(),
    )


def _open_files(source, split, image_size, keep_files):
    _, path = sources.parse_source(source, split)
    files, labels, class_names = folder_files(path, split)
    labels = labels and list(labels)
    root = Path(path).expanduser()
    file_names = [file.relative_to(root).as_posix() for file in files]
    sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
    content = json.dumps([file_names, sizes, labels]).encode()
    return _Images(
        encode=lambda position: _encode_file(
            files[position], image_size, keep_files
        ),
        names=[str(file) for file in files],
        file_names=file_names,
        labels=labels,
        class_names=tuple(class_names),
        shape=(image_size, image_size, 3),
        num_bytes=sum(sizes),
        digest=hashlib.sha256(content).hexdigest(),
    )


def _encode_file(path, image_size, keep_files):
    """The bytes of a JPEG file, or those of a PNG of its pixels."""
    from PIL import Image

    with Image.open(path) as image:
        # Decoders disagree about JPEG in the colours of print.
        if keep_files and image.format == "JPEG" and image.mode in ("RGB", "L"):
            image.load()  # Raises if it is damaged.
            return path.read_bytes()
        return _png(fit_square(to_rgb(image), image_size))


def _png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _features(opened):
    """The features of the records, as TensorFlow Datasets describes them."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=opened[0].shape)}
    class_names = next((s.class_names for s in opened if s.labels), ())
    if class_names:
        features["label"] = tfds.features.ClassLabel(names=class_names)
    if opened[0].file_names:
        features["file_name"] = tfds.features.Text()
    return tfds.features.FeaturesDict(features)


def _deal(images, num_shards):
    """The positions of the images of each shard, shuffled: a list of arrays."""
    num_images = len(images.names)
    if num_shards is None:
        num_shards = math.ceil(images.num_bytes / _SHARD_BYTES)
        num_shards = min(max(num_shards, 1), num_images)
    if not 1 <= num_shards <= num_images:
        raise ValueError(
            "`num_shards` must be from 1 to the number of images "
            f"({num_images}). Received: num_shards={num_shards}"
        )
    order = np.random.default_rng(0).permutation(num_images)
    return np.array_split(order, num_shards)


def _progress_bar(total):
    """A bar on stderr if that is a terminal."""
    import tqdm

    return tqdm.tqdm(
        desc="writing images", total=total, disable=None, leave=False
    )


class _Target:
    """Where a set is written, and what of it is done.

    Shards are whole as soon as they have their names: each is written under
    another one, and the note of what it holds before it gets its own. The
    folder that holds them is a version of the set only when it is renamed,
    last.

    Args:
        folder: where TensorFlow Datasets keeps its files.
        name: of the set.

    Raises:
        ValueError: such a set is there.
    """

    def __init__(self, folder, name):
        self._name = name
        self._folder = folder / name
        self._unfinished = self._folder / "unfinished"
        self._shards = self._unfinished / "shards"
        self._notes = self._unfinished / "notes"
        if (self._folder / _VERSION).exists() or (
            self._folder.exists() and not self._unfinished.exists()
        ):
            raise ValueError(
                f"`name` must be new. Received: name={name!r}, but "
                f"{self._folder} is there; remove it or take another name"
            )

    def begin(self, plan):
        """Makes the folders, or finds those that the same plan has made."""
        plan = json.dumps(plan, indent=2)
        file = self._unfinished / "plan.json"
        self._shards.mkdir(parents=True, exist_ok=True)
        self._notes.mkdir(exist_ok=True)
        if not file.exists():
            _write_text(file, plan)
        if file.read_text() != plan:
            raise ValueError(
                "`name` must be new, or the arguments and images those that "
                f"it was begun with. Received: name={self._name!r}, which was "
                f"begun otherwise, as {file} says; remove {self._folder} or "
                "take another name"
            )

    def path(self, split, number, num_shards):
        """Where to write a shard."""
        return self._template(split).sharded_filepath(
            shard_index=number, num_shards=num_shards
        )

    def note(self, path):
        """The note of a shard that is done, or None."""
        file = self._notes / f"{path.name}.json"
        return json.loads(file.read_text()) if path.exists() else None

    def write(self, path, images, positions, features, bad, progress):
        """Writes a shard and its note."""
        begun = self._notes / path.name
        note = {"num_images": 0, "num_bytes": 0, "bad": []}

        def encode(position):
            try:
                example = {"image": images.encode(position)}
            except Exception as error:  # Decoders raise anything.
                return error
            if "label" in features:
                labels = images.labels
                example["label"] = labels[position] if labels else -1
            if "file_name" in features:
                example["file_name"] = images.file_names[position]
            return features.serialize_example(example)

        with (
            ThreadPoolExecutor() as pool,
            tf.io.TFRecordWriter(str(begun)) as writer,
        ):
            for start in range(0, len(positions), _CHUNK):
                chunk = positions[start : start + _CHUNK].tolist()
                for position, record in zip(
                    chunk, pool.map(encode, chunk), strict=True
                ):
                    progress.update()
                    if isinstance(record, Exception):
                        note["bad"].append(images.names[position])
                        bad.add(images.names[position])
                        continue
                    writer.write(record)
                    note["num_images"] += 1
                    note["num_bytes"] += len(record)
        _write_text(self._notes / f"{path.name}.json", json.dumps(note))
        begun.rename(path)

    def finish(self, features, notes, description):
        """Describes the set, and makes the folder of its shards its version.

        Args:
            features: of the records.
            notes: {split: the note of each shard}.
            description: of the set.
        """
        import tensorflow_datasets as tfds

        split_infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[note["num_images"] for note in found],
                num_bytes=sum(note["num_bytes"] for note in found),
                filename_template=self._template(split),
            )
            for split, found in notes.items()
        ]
        # It prints what it does.
        with contextlib.redirect_stdout(io.StringIO()):
            tfds.folder_dataset.write_metadata(
                data_dir=self._shards,
                features=features,
                split_infos=split_infos,
                version=_VERSION,
                filename_template=self._template(),
                check_data=False,
                description=description,
            )
        self._shards.rename(self._folder / _VERSION)
        shutil.rmtree(self._unfinished)

    def _template(self, split=None):
        import tensorflow_datasets as tfds

        return tfds.core.ShardedFileTemplate(
            data_dir=self._shards,
            dataset_name=self._name,
            split=split,
            filetype_suffix="tfrecord",
        )


def _write_text(path, text):
    """Writes a file that is whole or not there."""
    begun = path.with_name(f"{path.name}.begun")
    begun.write_text(text)
    begun.rename(path)
