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

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ressl_tf.data import sources

__all__ = ["FileReader", "MemoryReader", "Shard", "ShardReader", "open_reader"]

DEFAULT_LANES = 8

# Pinned: the default algorithm of stateless draws depends on the device.
_ALGORITHM = "philox"
# Each use of the seed draws from a stream of its own; views have number 1.
_ORDER_STREAM = 0
_SHARD_ORDER, _ROTATION, _WINDOWS = range(3)
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
        return MemoryReader(image_set.images)
    kind, argument = sources.parse_source(source, split, image_size)
    if kind == "folder":
        paths, _, _ = sources.folder_files(argument, split)
        return FileReader(paths, cache_bytes=cache_bytes)
    if kind != "tfds":
        raise ValueError(
            "`source` must be 'folder:PATH' or 'tfds:NAME' to be streamed: "
            "write this one as shards first, with `python -m "
            f"tools.make_shards`. Received: source={source!r}"
        )
    found = sources.tfds_shards(source, split, data_dir)
    return ShardReader(
        [Shard(*file) for file in found.files],
        set_name=argument,
        name_key=found.name_key,
        image_shape=found.image_shape,
        lanes=lanes,
    )


class _PermutedReader:
    """The order of what can be read in any: each epoch has a permutation.

    Attributes:
        num_images: N.
    """

    def __init__(self, num_images):
        self.num_images = num_images

    def steps_per_epoch(self, batch_size):
        """As the function `steps_per_epoch`."""
        return steps_per_epoch(self.num_images, batch_size)

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
        order_key = stream_key(seed, _ORDER_STREAM)
        own = batch_size // num_workers

        def steps_of_epoch(epoch):
            order = _permutation(fold_in(order_key, epoch), self.num_images)
            order = order[: num_steps * batch_size]
            batches = tf.reshape(order, [num_steps, batch_size])
            rows = batches[:, worker * own : (worker + 1) * own]
            steps = epoch * num_steps + tf.range(num_steps, dtype=tf.int64)
            start = tf.where(epoch == first_epoch, skipped, 0)
            return tf.data.Dataset.from_tensor_slices(
                (steps[start:], rows[start:])
            )

        return _epochs(first_epoch, num_steps).flat_map(steps_of_epoch)


class MemoryReader(_PermutedReader):
    """Images in memory: each epoch visits them in its own permutation.

    Args:
        images: uint8 [N, H, W, 3]; one copy is kept in host memory.

    Attributes:
        num_images: N.
        num_bytes: of what the graph of `load` holds: the images.
        image_shape: (H, W, 3).

    Raises:
        ValueError: `images` is no uint8 [N, H, W, 3] array.
    """

    encoded = False

    def __init__(self, images):
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
        super().__init__(len(images))
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
        cache_bytes: where the files together have no more bytes than this,
            they are read once, when the reader is opened, and kept in memory
            as they are, encoded (twice for a moment). None: a quarter of the
            memory that is free then. 0: never.

    Attributes:
        num_images: N.
        num_bytes: of what the graph of `load` holds: the paths, and the files
            if they are kept in memory.
        image_shape: None: sizes differ, or might.

    Raises:
        ValueError: `cache_bytes` is negative.
    """

    encoded = True
    image_shape = None

    def __init__(self, paths, *, cache_bytes=None):
        if cache_bytes is None:
            cache_bytes = _free_memory() // 4
        check_integer("cache_bytes", cache_bytes, 0)
        paths = [os.fsencode(path) for path in paths]
        super().__init__(len(paths))
        self.num_bytes = sum(map(len, paths))
        files = _read_files(paths, cache_bytes) if cache_bytes else None
        with tf.device("/CPU:0"):
            self._paths = tf.constant(paths)
            self._files = None if files is None else tf.constant(files)
        if files is not None:
            self.num_bytes += sum(map(len, files))

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


class Shard(NamedTuple):
    """A run of records in one TFRecord file.

    Attributes:
        path: of the file.
        skip: records before the run.
        num_records: of the run.
    """

    path: str
    skip: int
    num_records: int


class ShardReader:
    """Images streamed from TFRecord files, shuffled without a long buffer.

    Every epoch lays the shards one behind the other, in an order of its own,
    closes them to a ring, and cuts the ring at a random place into L lanes of
    N // L consecutive records. Lane l supplies rows l B / L to (l + 1) B / L of
    each batch, so a worker reads the lanes of its own rows and no other
    record. Within a lane, each `window` of consecutive records is permuted
    before it is decoded. So an epoch of N // B steps sees no image twice; the
    less than B + L records that are left over are others in every epoch.

    A batch then mixes L places of the set, and L windows at a time: shuffle
    the records when they are written, as TensorFlow Datasets does.

    To resume, whole windows are skipped unread, and of the first one the
    records already seen are read but not decoded.

    Args:
        shards: of `Shard`s.
        set_name: what to call the set in messages.
        name_key: the feature of a record that names its image, if there is
            one; else an image is called by its record's 64-bit fingerprint
            (`tf.fingerprint`).
        image_shape: (H, W, 3) if all images have it.
        lanes: L, divides the batch size; a multiple of the number of workers.
        window: records permuted together. Up to three windows per lane are in
            memory at a time, encoded as in the files.

    Attributes:
        num_images: N.
        num_bytes: of what the graph of `load` holds: 0.
        image_shape: as given.

    Raises:
        ValueError: a file is missing; `lanes` or `window` is below 1.
    """

    encoded = True

    def __init__(
        self,
        shards,
        *,
        set_name,
        name_key=None,
        image_shape=None,
        lanes=DEFAULT_LANES,
        window=1024,
    ):
        check_integer("lanes", lanes, 1)
        check_integer("window", window, 1)
        self.shards = tuple(shards)
        missing = [
            shard.path
            for shard in self.shards
            if not tf.io.gfile.exists(shard.path)
        ]
        if missing:
            raise ValueError(
                "`shards` must be files that exist. Received: "
                f"{len(self.shards)} shards, of which {len(missing)} do not "
                f"({missing[0]}, ...). Prepare the set again, or copy what is "
                "missing"
            )
        self.num_images = sum(shard.num_records for shard in self.shards)
        self.num_bytes = 0
        self.lanes = lanes
        self.window = window
        self.image_shape = image_shape
        self._set_name = set_name
        self._name_key = name_key
        paths, skips, lengths = zip(*self.shards, strict=True)
        with tf.device("/CPU:0"):
            self._paths = tf.constant(paths)
            self._skips = tf.constant(skips, tf.int64)
            self._lengths = tf.constant(lengths, tf.int64)

    def steps_per_epoch(self, batch_size):
        """As the function `steps_per_epoch`."""
        return steps_per_epoch(self.num_images, batch_size)

    def steps(self, batch_size, *, seed, start_step=0, worker=0, num_workers=1):
        """What each step reads, without end.

        Args:
            batch_size: B, over all workers.
            seed: integer.
            start_step: the first step.
            worker: which part of every batch is read, w.
            num_workers: into how many equal parts it is cut, W.

        Returns:
            A `tf.data.Dataset` of (step, records): int64 scalar and string
            [B / W], the records of rows w B / W to (w + 1) B / W.

        Raises:
            ValueError: `lanes` does not divide `batch_size`, or `num_workers`
                not `lanes`.
        """
        num_steps = self.steps_per_epoch(batch_size)
        self._check_lanes(batch_size, num_workers)
        first_epoch, skipped = divmod(start_step, num_steps)
        order_key = stream_key(seed, _ORDER_STREAM)
        rows = batch_size // self.lanes
        skipped_windows, skipped_records = divmod(skipped * rows, self.window)

        def records_of_lane(lane):
            def windows_of_epoch(epoch):
                first = tf.where(epoch == first_epoch, skipped_windows, 0)
                return self._windows(
                    fold_in(order_key, epoch),
                    lane,
                    tf.cast(first, tf.int64),
                    num_steps * rows,
                )

            windows = _epochs(first_epoch, num_steps)
            windows = windows.flat_map(windows_of_epoch).prefetch(1)
            return windows.unbatch().skip(skipped_records).batch(rows)

        own = self.lanes // num_workers
        lanes = tf.data.Dataset.range(worker * own, (worker + 1) * own)
        parts = lanes.interleave(
            records_of_lane,
            cycle_length=own,
            num_parallel_calls=own,
            deterministic=True,
        )
        batches = parts.batch(own, drop_remainder=True)
        batches = batches.map(lambda lanes: tf.reshape(lanes, [own * rows]))
        return batches.enumerate(start_step)

    def load(self, records):
        """String [b] records -> the files in them, and what to call these."""
        keys = ["image"] + ([self._name_key] if self._name_key else [])
        example = tf.io.parse_example(
            records, {key: tf.io.FixedLenFeature([], tf.string) for key in keys}
        )
        if self._name_key:
            return example["image"], example[self._name_key]
        numbers = _hexadecimal(tf.fingerprint(records))
        name = tf.strings.join(["record ", numbers, f" of {self._set_name}"])
        return example["image"], name

    def _windows(self, epoch_key, lane, first, num_records):
        """Permuted windows of a lane in one epoch, from number `first` on."""
        lane_key = fold_in(fold_in(epoch_key, _WINDOWS), lane)

        def permuted(number, records):
            key = fold_in(lane_key, number)
            return tf.gather(records, _permutation(key, tf.size(records)))

        begin = first * self.window
        pieces = self._pieces(epoch_key, lane, begin, num_records - begin)
        records = tf.data.Dataset.from_tensor_slices(pieces).flat_map(_read)
        windows = records.batch(self.window).enumerate()
        return windows.map(lambda n, records: permuted(first + n, records))

    def _pieces(self, epoch_key, lane, begin, num_records):
        """Where records `begin`, `begin` + 1, ... of a lane are to be found.

        Returns:
            (paths, records to skip, records to take), one row per file.
        """
        rotation = tf.random.stateless_uniform(
            [],
            seed=fold_in(epoch_key, _ROTATION),
            minval=0,
            maxval=self.num_images,
            dtype=tf.int64,
            alg=_ALGORITHM,
        )
        begin = rotation + lane * (self.num_images // self.lanes) + begin
        begin = tf.math.floormod(begin, self.num_images)
        end = begin + num_records
        order = _permutation(fold_in(epoch_key, _SHARD_ORDER), len(self.shards))
        # Twice around the ring: a lane may run across the place of closure.
        order = tf.concat([order, order], axis=0)
        lengths = tf.gather(self._lengths, order)
        starts = tf.cumsum(lengths, exclusive=True)
        firsts = tf.maximum(starts, begin)
        takes = tf.minimum(starts + lengths, end) - firsts
        skips = tf.gather(self._skips, order) + firsts - starts
        paths = tf.gather(self._paths, order)
        wanted = tf.where(takes > 0)[:, 0]
        return tuple(tf.gather(x, wanted) for x in (paths, skips, takes))

    def _check_lanes(self, batch_size, num_workers):
        if batch_size % self.lanes or self.lanes % num_workers:
            fitting = [
                str(number)
                for number in range(num_workers, batch_size + 1, num_workers)
                if batch_size % number == 0
            ]
            fitting = ", ".join(fitting) or "none: change `batch_size`"
            raise ValueError(
                f"`lanes` must divide the batch of {batch_size} images and be "
                f"a multiple of the number of workers, {num_workers} (these "
                f"are: {fitting}). Received: lanes={self.lanes}"
            )


def _read(path, skip, take):
    records = tf.data.TFRecordDataset(path).skip(skip).take(take)
    # A file that holds less than its index says ends the run.
    return records.apply(tf.data.experimental.assert_cardinality(take))


def _hexadecimal(numbers):
    """uint8 [b, n] -> string [b], two digits each."""
    numbers = tf.cast(numbers, tf.int32)
    digits = tf.reshape(tf.stack([numbers // 16, numbers % 16], -1), [-1, 16])
    return tf.strings.reduce_join(
        tf.gather(tf.constant(list("0123456789abcdef")), digits), axis=1
    )


def steps_per_epoch(num_images, batch_size):
    """Number of whole batches in an epoch; the rest of the images is dropped.

    Raises:
        ValueError: `batch_size` is below 1 or above `num_images`.
    """
    if not 1 <= batch_size <= num_images:
        raise ValueError(
            "`batch_size` must be from 1 to the number of images "
            f"({num_images}). Received: batch_size={batch_size!r}. Give a "
            "smaller batch or more images."
        )
    return num_images // batch_size


def stream_key(seed, stream):
    """The key of one use of the seed, int64 (2,), eager: graphs capture it."""
    with tf.device("/CPU:0"):
        return tf.constant([seed, stream], tf.int64)


def fold_in(key, number):
    """The key of number `number` of what `key` stands for."""
    return tf.random.experimental.stateless_fold_in(key, number, alg=_ALGORITHM)


def check_integer(name, value, lowest):
    """Raises ValueError unless `value` is an integer from `lowest` to 2^63."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | np.integer)
        or not lowest <= value < 2**63
    ):
        raise ValueError(
            f"`{name}` must be an integer of at least {lowest}. "
            f"Received: {name}={value!r}"
        )


def _epochs(first_epoch, num_steps):
    # As far as the number of a step is an int64.
    return tf.data.Dataset.range(first_epoch, (2**63 - 1) // num_steps - 1)


def _permutation(key, size):
    """A uniform permutation of range(size), int32."""
    draws = tf.random.stateless_uniform(
        tf.reshape(size, [1]),
        seed=key,
        minval=None,
        maxval=None,
        dtype=tf.int64,
        alg=_ALGORITHM,
    )
    return tf.argsort(draws, stable=True)
