"""Orders of images: functions of a seed, an epoch and a step."""

import hashlib
import os

import numpy as np
import tensorflow as tf

# Pinned: the default algorithm of stateless draws depends on the device.
ALGORITHM = "philox"
# Each use of the seed draws from a stream of its own.
ORDER_STREAM, VIEW_STREAM = 0, 1


class Reader:
    """What all readers have: so many images, so many steps an epoch.

    Args:
        num_images: N.
        class_names: the name of each label; () for images without labels.
    """

    def __init__(self, num_images, class_names=()):
        self.num_images = num_images
        self.class_names = tuple(class_names)

    def steps_per_epoch(self, batch_size):
        """As the function `steps_per_epoch`."""
        return steps_per_epoch(self.num_images, batch_size)


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


def files_fingerprint(paths):
    """Hexadecimal digest of paths, sizes and times of change of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path))
        try:
            stat = os.stat(path)
        except OSError:  # no longer there, or in a bucket
            continue
        digest.update(f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def stream_key(seed, stream):
    """The key of one use of the seed, int64 (2,), eager: graphs capture it."""
    with tf.device("/CPU:0"):
        return tf.constant([seed, stream], tf.int64)


def fold_in(key, number):
    """The key of number `number` of what `key` stands for."""
    return tf.random.experimental.stateless_fold_in(key, number, alg=ALGORITHM)


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


def epochs(first_epoch, num_steps):
    # As far as the number of a step is an int64.
    return tf.data.Dataset.range(first_epoch, (2**63 - 1) // num_steps - 1)


def permutation(key, size):
    """A uniform permutation of range(size), int32."""
    draws = tf.random.stateless_uniform(
        tf.reshape(size, [1]),
        seed=key,
        minval=None,
        maxval=None,
        dtype=tf.int64,
        alg=ALGORITHM,
    )
    return tf.argsort(draws, stable=True)
