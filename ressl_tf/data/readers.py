"""Readers: which images the batch of a step holds, and where they are.

A reader is asked twice. `steps` says, as a data set, what each step reads:
the order is a pure function of the seed and the step, and costs next to
nothing, so that a run resumes in the middle. `load` turns what one step reads
into images. Between the two, steps can be dealt to other machines.

`MemoryReader` holds the pixels of all images. Two others stream images that
memory does not hold, as they are stored: `FileReader` from image files,
`ShardReader` from the files of TensorFlow Datasets. What they load is encoded
(their attribute `encoded` says so): `decoding.decode` makes pixels of it.
`open_reader` makes any of the three.
"""

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from ressl_tf.data import sources
from ressl_tf.data.order import ORDER_STREAM
from ressl_tf.data.order import Reader
from ressl_tf.data.order import check_integer
from ressl_tf.data.order import epochs
from ressl_tf.data.order import files_fingerprint
from ressl_tf.data.order import fold_in
from ressl_tf.data.order import permutation
from ressl_tf.data.order import stream_key
from ressl_tf.data.shard_reader import DEFAULT_LANES
from ressl_tf.data.shard_reader import Shard
from ressl_tf.data.shard_reader import ShardReader
from ressl_tf.data.sources import tfds
from ressl_tf.data.sources.folder import folder_files

__all__ = ["FileReader", "MemoryReader", "Shard", "ShardReader", "open_reader"]

# Reading files waits more than it computes.
_READ_THREADS = 32
_CHUNK = 10000


def open_reader(
    source,
    split="train",
    *,
    image_size=None,
    data_dir=None,
    max_bad=None,
    stream=False,
    lanes=DEFAULT_LANES,
    cache_bytes=None,
):
    """Opens one split of a data set for training.

    Args:
        source: as in `sources.load`.
        split: as in `sources.load`.
        image_size: as in `sources.load`, for images in memory. Streamed ones
            keep their size: views are cut from them as they are stored.
        data_dir: as in `sources.load`.
        max_bad: as in `sources.load`, for images in memory.
        stream: False reads all images into memory; True reads them while
            training: the files of a "folder:" source, the TFRecord files of a
            "tfds:" source.
        lanes: of `ShardReader`.
        cache_bytes: of `FileReader`.

    Returns:
        A `MemoryReader`, `FileReader` or `ShardReader`.

    Raises:
        ValueError: as `sources.load`; the source cannot be streamed.
    """
    if not stream:
        image_set = sources.load(
            source,
            split,
            image_size=image_size,
            data_dir=data_dir,
            max_bad=max_bad,
        )
        return MemoryReader(*image_set)
    kind, argument = sources.parse_source(source, split, image_size)
    if kind == "folder":
        return FileReader(
            *folder_files(argument, split), cache_bytes=cache_bytes
        )
    if kind != "tfds":
        raise ValueError(
            "`source` must be 'folder:PATH' or 'tfds:NAME' to be streamed: "
            "write this one as shards first, with `python -m "
            f"tools.make_shards`. Received: source={source!r}"
        )
    found = tfds.find_shards(argument, split, data_dir)
    return ShardReader(
        [Shard(*file) for file in found.files],
        set_name=argument,
        name_key=found.name_key,
        class_names=found.class_names,
        image_shape=found.image_shape,
        lanes=lanes,
    )


class _PermutedReader(Reader):
    """The order of what can be read in any: each epoch has a permutation.

    Args:
        num_images: N.
        labels: int64 [N], or None.
        class_names: the name of each label.
    """

    def __init__(self, num_images, labels=None, class_names=()):
        super().__init__(num_images, class_names)
        self.labels = labels
        self._rows = None  # all
        with tf.device("/CPU:0"):
            self._labels = None if labels is None else tf.constant(labels)

    def subset(self, rows):
        """A reader of some of these images alone.

        Args:
            rows: positions of images, integers.

        Raises:
            ValueError: there are none.
        """
        if not len(rows):
            raise ValueError("`rows` must hold at least one. Received: none")
        part = copy.copy(self)
        part.num_images = len(rows)
        part._rows = self._positions()[np.asarray(rows)]
        if self.labels is not None:
            part.labels = self.labels[np.asarray(rows)]
        return part

    def load_labels(self, rows):
        """int32 [b] positions -> int64 [b] labels."""
        return tf.gather(self._labels, rows)

    def in_order(self, batch_size):
        """What batches of every image once read: int32 [b] positions."""
        rows = tf.data.Dataset.from_tensor_slices(self._positions())
        return rows.batch(batch_size)

    def _positions(self):
        """int32 [n] of the images that are read."""
        if self._rows is None:
            return np.arange(self.num_images, dtype=np.int32)
        return self._rows

    def steps(self, batch_size, *, seed, start_step=0, worker=0, num_workers=1):
        """What each step reads, without end.

        Args:
            batch_size: B, over all workers.
            seed: integer.
            start_step: the first step.
            worker: which part of every batch is read, w.
            num_workers: into how many equal parts it is cut, W; divides B.

        Returns:
            A `tf.data.Dataset` of (step, rows): int64 scalar and int32 [B / W],
            the positions of the images in rows w B / W to (w + 1) B / W.
        """
        num_steps = self.steps_per_epoch(batch_size)
        first_epoch, skipped = divmod(start_step, num_steps)
        order_key = stream_key(seed, ORDER_STREAM)
        own = batch_size // num_workers

        def steps_of_epoch(epoch):
            order = permutation(fold_in(order_key, epoch), self.num_images)
            order = order[: num_steps * batch_size]
            if self._rows is not None:
                order = tf.gather(self._rows, order)
            batches = tf.reshape(order, [num_steps, batch_size])
            rows = batches[:, worker * own : (worker + 1) * own]
            steps = epoch * num_steps + tf.range(num_steps, dtype=tf.int64)
            start = tf.where(epoch == first_epoch, skipped, 0)
            return tf.data.Dataset.from_tensor_slices(
                (steps[start:], rows[start:])
            )

        return epochs(first_epoch, num_steps).flat_map(steps_of_epoch)


class MemoryReader(_PermutedReader):
    """Images in memory: each epoch visits them in its own permutation.

    Args:
        images: uint8 [N, H, W, 3]; one copy is kept in host memory.
        labels: int64 [N], or None.
        class_names: the name of each label.

    Attributes:
        num_images: N.
        num_bytes: of what the graph of `load` holds: the images.
        image_shape: (H, W, 3).

    Raises:
        ValueError: `images` is no uint8 [N, H, W, 3] array.
    """

    encoded = False

    def __init__(self, images, labels=None, class_names=()):
        images = np.asarray(images)
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[-1] != 3
        ):
            raise ValueError(
                "`images` must be uint8 [N, H, W, 3]. Received: images of "
                f"{images.dtype} {images.shape}"
            )
        super().__init__(len(images), labels, class_names)
        self.num_bytes = images.nbytes
        self.image_shape = images.shape[1:]
        # An eager tensor, so that the graph of `load` captures it rather than
        # holds it; on the host, where tf.data runs.
        with tf.device("/CPU:0"):
            self._pixels = tf.constant(images)

    def load(self, rows):
        """int32 [b] positions -> uint8 [b, H, W, 3]."""
        return tf.gather(self._pixels, rows)


class FileReader(_PermutedReader):
    """Image files: each epoch visits them in its own permutation.

    Any file can be next, so on a disk that is slow to find them, and memory
    that does not hold them, shards are faster.

    Args:
        paths: of the files.
        labels: integers [N], or None.
        class_names: the name of each label.
        cache_bytes: where the files together have no more bytes than this,
            they are read once, when the reader is opened, and kept in memory
            as they are, encoded (twice for a moment). None: a quarter of the
            memory that is free then. 0: never.

    Attributes:
        num_images: N.
        paths: of all files, bytes.
        num_bytes: of what the graph of `load` holds: the paths, and the files
            if they are kept in memory.
        image_shape: None: sizes differ, or might.

    Raises:
        ValueError: `cache_bytes` is negative.
    """

    encoded = True
    image_shape = None

    def __init__(self, paths, labels=None, class_names=(), *, cache_bytes=None):
        if cache_bytes is None:
            cache_bytes = _free_memory() // 4
        check_integer("cache_bytes", cache_bytes, 0)
        paths = [os.fsencode(path) for path in paths]
        self.paths = paths
        if labels is not None:
            labels = np.asarray(labels, np.int64)
        super().__init__(len(paths), labels, class_names)
        self.num_bytes = sum(map(len, paths))
        files = _read_files(paths, cache_bytes) if cache_bytes else None
        with tf.device("/CPU:0"):
            self._paths = tf.constant(paths)
            self._files = None if files is None else tf.constant(files)
        if files is not None:
            self.num_bytes += sum(map(len, files))

    def fingerprint(self):
        """Hexadecimal digest of which files these are, and of what size."""
        return files_fingerprint([self.paths[row] for row in self._positions()])

    def load(self, rows):
        """int32 [b] positions -> the files, string [b], and their paths.

        A file that cannot be read is empty, which is no image.
        """
        paths = tf.gather(self._paths, rows)
        if self._files is not None:
            return tf.gather(self._files, rows), paths
        # Only data sets can ignore errors: those that can be read, and which.
        files = tf.data.Dataset.from_tensor_slices(paths).enumerate()
        files = files.map(
            lambda row, path: (row, tf.io.read_file(path)),
            num_parallel_calls=_READ_THREADS,
        ).ignore_errors()
        size = tf.size(rows, tf.int64)
        files = files.concatenate(tf.data.Dataset.from_tensors((size, b"")))
        found, files = files.batch(size + 1).get_single_element()
        files = tf.scatter_nd(found[:, None], files, size[None] + 1)[:-1]
        return tf.ensure_shape(files, rows.shape), paths


def _free_memory():
    """Bytes of memory that this process may still use."""
    known = "SC_AVPHYS_PAGES" in os.sysconf_names  # Not on a Mac.
    pages = os.sysconf("SC_AVPHYS_PAGES" if known else "SC_PHYS_PAGES")
    free = pages * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:  # A container may have less than its machine.
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # Has none.
        return free
    return min(free, max(limit - used, 0))


def _read_files(paths, max_bytes):
    """The files' bytes, b"" where there are none; None if above the limit."""
    import tqdm

    def size(path):
        try:
            return os.stat(path).st_size
        except OSError:
            return 0

    def read(path):
        try:
            return Path(os.fsdecode(path)).read_bytes()
        except OSError:
            return b""

    def of_all(function):
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for start in range(0, len(paths), _CHUNK):
                yield from pool.map(function, paths[start : start + _CHUNK])

    if sum(of_all(size)) > max_bytes:
        return None
    return list(
        tqdm.tqdm(
            of_all(read),
            "reading files",
            len(paths),
            disable=None,  # Unless stderr is a terminal.
            leave=False,
        )
    )
