"""The training pipeline: batches of views as a pure function of the step."""

import numpy as np
import tensorflow as tf

from ressl_tf.sources import SOURCES
from ressl_tf.sources import ImageSet
from ressl_tf.sources import load
from ressl_tf.sources import require_labels

__all__ = [
    "SOURCES",
    "ImageSet",
    "load",
    "make_train_dataset",
    "require_labels",
    "steps_per_epoch",
]

# Pinned: the default algorithm of stateless draws depends on the device.
_ALGORITHM = "philox"
_ORDER_STREAM, _VIEW_STREAM = 0, 1


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


def make_train_dataset(
    images,
    *,
    batch_size,
    student_views,
    teacher_views,
    seed,
    start_step=0,
    num_parallel_calls=tf.data.AUTOTUNE,
):
    """Batches of views for training, without end.

    The batch of step t depends on `seed` and t alone: epoch
    t // steps_per_epoch visits the images in its own permutation, and view
    number v (student views first) gets a seed made of (seed, v, t). A run
    resumed with `start_step` therefore sees what the uninterrupted one would
    have seen, and no image is decoded or augmented to get there.

    Args:
        images: uint8 [N, H, W, 3]; one copy is kept in host memory.
        batch_size: B, images per step over all replicas.
        student_views: objects whose `apply(images, seed)` maps a uint8
            [B, H, W, 3] tensor and an int64 [2] seed to float32 [B, S, S, 3],
            drawing nothing but from the seed.
        teacher_views: the same.
        seed: integer; another seed gives other orders and other views.
        start_step: step of the first batch.
        num_parallel_calls: batches made at once; changes no batch.

    Returns:
        An infinite `tf.data.Dataset` of
        {"student": (views...), "teacher": (views...)}.

    Raises:
        ValueError: `images` is no uint8 [N, H, W, 3] array, no views, or
            `batch_size`, `start_step` or `seed` is out of range.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            "`images` must be uint8 [N, H, W, 3]. Received: images of "
            f"{images.dtype} {images.shape}"
        )
    num_steps = steps_per_epoch(len(images), batch_size)
    _check_integer("start_step", start_step, 0)
    _check_integer("seed", seed, -(2**63))
    student_views = _check_views("student_views", student_views)
    teacher_views = _check_views("teacher_views", teacher_views)

    # An eager tensor, so that the functions below capture it rather than
    # write it into their graphs; on the host, where tf.data runs.
    with tf.device("/CPU:0"):
        pixels = tf.constant(images)
        order_seed = tf.constant([seed, _ORDER_STREAM], tf.int64)
        view_seed = tf.constant([seed, _VIEW_STREAM], tf.int64)
    first_epoch, skipped = divmod(start_step, num_steps)

    def epoch_batches(epoch):
        draws = tf.random.stateless_uniform(
            [len(images)],
            seed=_fold_in(order_seed, epoch),
            minval=None,
            maxval=None,
            dtype=tf.int64,
            alg=_ALGORITHM,
        )
        order = tf.argsort(draws, stable=True)[: num_steps * batch_size]
        batches = tf.reshape(order, [num_steps, batch_size])
        steps = epoch * num_steps + tf.range(num_steps, dtype=tf.int64)
        start = tf.where(epoch == first_epoch, skipped, 0)
        return tf.data.Dataset.from_tensor_slices(
            (steps[start:], batches[start:])
        )

    def make_batch(step, indices):
        batch = tf.gather(pixels, indices)
        results = []
        for number, view in enumerate(student_views + teacher_views):
            key = _fold_in(view_seed, tf.constant(number, tf.int64))
            result = view.apply(batch, _fold_in(key, step))
            results.append(tf.ensure_shape(result, [batch_size, None, None, 3]))
        return {
            "student": tuple(results[: len(student_views)]),
            "teacher": tuple(results[len(student_views) :]),
        }

    last_epoch = (2**63 - 1) // num_steps - 1
    dataset = tf.data.Dataset.range(first_epoch, last_epoch)
    dataset = dataset.flat_map(epoch_batches)
    dataset = dataset.map(
        make_batch, num_parallel_calls=num_parallel_calls, deterministic=True
    )
    # Keras then asks for steps_per_epoch instead of counting for ever.
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )
    options = tf.data.Options()
    options.deterministic = True
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _fold_in(seed, number):
    return tf.random.experimental.stateless_fold_in(
        seed, number, alg=_ALGORITHM
    )


def _check_integer(name, value, lowest):
    if (
        isinstance(value, bool)
        or not isinstance(value, int | np.integer)
        or not lowest <= value < 2**63
    ):
        raise ValueError(
            f"`{name}` must be an integer of at least {lowest}. "
            f"Received: {name}={value!r}"
        )


def _check_views(name, views):
    if not isinstance(views, list | tuple) or not views:
        raise ValueError(
            f"`{name}` must be a list or tuple of at least one view. "
            f"Received: {name}={views!r}"
        )
    for view in views:
        if not callable(getattr(view, "apply", None)):
            raise ValueError(
                f"`{name}` must hold objects with apply(images, seed). "
                f"Received: {name}={views!r}"
            )
    return tuple(views)
