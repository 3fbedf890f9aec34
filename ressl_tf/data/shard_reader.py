"""A reader of TFRecord files that memory does not hold."""

from typing import NamedTuple

import tensorflow as tf

from ressl_tf.data.order import ALGORITHM
from ressl_tf.data.order import ORDER_STREAM
from ressl_tf.data.order import Reader
from ressl_tf.data.order import check_integer
from ressl_tf.data.order import epochs
from ressl_tf.data.order import files_fingerprint
from ressl_tf.data.order import fold_in
from ressl_tf.data.order import permutation
from ressl_tf.data.order import stream_key

DEFAULT_LANES = 8

_SHARD_ORDER, _ROTATION, _WINDOWS = range(3)


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


class ShardReader(Reader):
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
        class_names: the name of each value of the records' feature "label";
            () if they have none.
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
        class_names=(),
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
        super().__init__(
            sum(shard.num_records for shard in self.shards), class_names
        )
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
        order_key = stream_key(seed, ORDER_STREAM)
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

            windows = epochs(first_epoch, num_steps)
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

    def load_labels(self, records):
        """String [b] records -> int64 [b] labels."""
        spec = {"label": tf.io.FixedLenFeature([], tf.int64)}
        return tf.io.parse_example(records, spec)["label"]

    def fingerprint(self):
        """Hexadecimal digest of which records these are."""
        files = files_fingerprint([shard.path for shard in self.shards])
        return f"{files} {[shard[1:] for shard in self.shards]}"

    def in_order(self, batch_size):
        """What batches of every image once read: string [b] records."""
        shards = tf.data.Dataset.from_tensor_slices(
            (self._paths, self._skips, self._lengths)
        )
        return shards.flat_map(_read).batch(batch_size)

    def _windows(self, epoch_key, lane, first, num_records):
        """Permuted windows of a lane in one epoch, from number `first` on."""
        lane_key = fold_in(fold_in(epoch_key, _WINDOWS), lane)

        def permuted(number, records):
            key = fold_in(lane_key, number)
            return tf.gather(records, permutation(key, tf.size(records)))

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
            alg=ALGORITHM,
        )
        begin = rotation + lane * (self.num_images // self.lanes) + begin
        begin = tf.math.floormod(begin, self.num_images)
        end = begin + num_records
        order = permutation(fold_in(epoch_key, _SHARD_ORDER), len(self.shards))
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
