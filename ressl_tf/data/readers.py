"""Readers: which images the batch of a step holds, and their pixels.

A reader is asked twice. `steps` says, as a data set, what each step reads:
the order is a pure function of the seed and the step, and costs next to
nothing, so that a run resumes in the middle. `load` turns what one step reads
into pixels. Between the two, steps can be dealt to other machines.

`MemoryReader` holds the images; `ShardReader` streams sets that memory does
not hold from the files of TensorFlow Datasets. `open_reader` makes either.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ressl_tf.data import sources

__all__ = ["MemoryReader", "Shard", "ShardReader", "open_reader"]

DEFAULT_LANES = 8

# Pinned: the default algorithm of stateless draws depends on the device.
_ALGORITHM = "philox"
# Each use of the seed draws from a stream of its own; views have number 1.
_ORDER_STREAM = 0
_SHARD_ORDER, _ROTATION, _WINDOWS = range(3)


def open_reader(
    source,
    split="train",
    *,
    image_size=None,
    data_dir=None,
    stream=False,
    lanes=DEFAULT_LANES,
):
    """Opens one split of a data set for training.

    Args:
        source: as in `sources.load`.
        split: as in `sources.load`.
        image_size: as in `sources.load`. Streamed images are resized by
            TensorFlow, those in memory by PIL: they may differ by one level
            of 255, and do not where nothing has to be resized.
        data_dir: as in `sources.load`.
        stream: False reads all images into memory; True streams them from
            TFRecord files while training ("tfds:" sources only).
        lanes: of `ShardReader`; what is read into memory has none.

    Returns:
        A `MemoryReader` or a `ShardReader`.

    Raises:
        ValueError: as `sources.load`; or what is to be streamed is not in
            TFRecord files.
    """
    if not stream:
        image_set = sources.load(
            source, split, image_size=image_size, data_dir=data_dir
        )
        return MemoryReader(image_set.images)
    shards, feature = sources.tfds_shards(source, split, image_size, data_dir)
    shape = (image_size,) * 2 if image_size else tuple(feature.shape[:2])

    def load(record):
        example = {"image": tf.io.FixedLenFeature([], tf.string)}
        encoded = tf.io.parse_single_example(record, example)["image"]
        return _to_shape(feature.decode_example(encoded), shape)

    return ShardReader(
        [Shard(*shard) for shard in shards], load, (*shape, 3), lanes=lanes
    )


class MemoryReader:
    """Images in memory: each epoch visits them in its own permutation.

    Args:
        images: uint8 [N, H, W, 3]; one copy is kept in host memory.

    Attributes:
        num_images: N.
        num_bytes: of the images, in memory.

    Raises:
        ValueError: `images` is no uint8 [N, H, W, 3] array.
    """

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
        self.num_images = len(images)
        self.num_bytes = images.nbytes
        # An eager tensor, so that the graph of `load` captures it rather than
        # holds it; on the host, where tf.data runs.
        with tf.device("/CPU:0"):
            self._pixels = tf.constant(images)

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

    def load(self, rows):
        """int32 [b] positions -> uint8 [b, H, W, 3]."""
        return tf.gather(self._pixels, rows)


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
        load_record: maps a scalar string, one record, to uint8 [H, W, 3].
        image_shape: (H, W, 3).
        lanes: L, divides the batch size; a multiple of the number of workers.
        window: records permuted together. Up to three windows per lane are in
            memory at a time, encoded as in the files.

    Attributes:
        num_images: N.
        num_bytes: in memory beside the windows: 0.

    Raises:
        ValueError: a file is missing; `lanes` or `window` is below 1.
    """

    def __init__(
        self,
        shards,
        load_record,
        image_shape,
        *,
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
        self._load_record = load_record
        self._image_spec = tf.TensorSpec(image_shape, tf.uint8)
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
        """String [b] records -> uint8 [b, H, W, 3]."""
        return tf.map_fn(
            self._load_record, records, fn_output_signature=self._image_spec
        )

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


def _to_shape(image, shape):
    """uint8 [H, W, 1, 3 or 4] -> uint8 [*shape, 3], as `sources.load`.

    Brings the shorter side to `shape`, a square, and keeps the centre; images
    of that shape stay as they are.
    """
    if image.shape[-1] == 1:
        image = tf.image.grayscale_to_rgb(image)
    image = image[..., :3]
    if tuple(image.shape[:2]) == shape:
        return image
    # Not tf.image.resize: the centre square may begin at half a pixel.
    extent = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = shape[0] / tf.reduce_min(extent)
    offset = (shape[0] - extent * scale) / 2
    image = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=shape,
        scale=tf.stack([scale, scale]),
        translation=offset,
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.saturate_cast(tf.round(image), tf.uint8)


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
