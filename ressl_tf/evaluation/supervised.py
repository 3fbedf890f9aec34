"""Training on labelled images, resumed where it was stopped, and its score."""

import numpy as np
import tensorflow as tf
import tqdm

from ressl_tf import data


def random_crops(image_size):
    """The usual crop of classifiers, of 0-255 images; the paper names none.

    Encoders normalise by themselves, so the crops stay in 0 to 255.

    Args:
        image_size: H and W of the crops.

    Returns:
        A view, as `augment.make_view` makes it.

    Raises:
        ValueError: If `image_size` is out of its range.
    """
    # Takes seconds to load, and not every probe cuts crops.
    from ressl_tf import augment

    return augment.make_view(
        image_size,
        min_area=0.08,
        flip=0.5,
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
    )


def train(
    train_step,
    reader,
    view,
    *,
    state,
    shape=(),
    epochs,
    batch_size,
    seed=0,
    workdir=None,
    name,
    settings,
    progress=False,
):
    """Calls a step for each batch of some epochs of a reader's images.

    Args:
        train_step: Function of images, labels and the part of the training
            that is done (float32 scalar from 0 to below 1) that changes the
            state and returns losses of `shape`; it is traced once.
        reader: Labelled reader of the images.
        view: View that cuts the crops.
        state: {name: what a `tf.train.Checkpoint` can hold}, all that the
            step changes.
        shape: of the losses. Defaults to `()`.
        epochs: Integer of at least 1.
        batch_size: Integer of at least 1; at most the number of images.
        seed: Integer of at least 0. Defaults to `0`.
        workdir: Folder where the state is kept after each epoch, and from
            where the same call goes on. Defaults to `None`, for neither.
        name: of the progress bar and of the error.
        settings: Text for the error, what to lower.
        progress: Whether to show a progress bar. Defaults to `False`.

    Returns:
        Array of `shape`, mean losses over the last epoch.

    Raises:
        ValueError: If no loss of an epoch is finite.
    """
    steps_per_epoch = reader.steps_per_epoch(batch_size)
    total = epochs * steps_per_epoch
    losses = tf.Variable(tf.zeros(shape))  # their sums over an epoch
    done = tf.Variable(0, dtype=tf.int64)
    manager = None
    if workdir is not None:
        manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(losses=losses, step=done, **state),
            str(workdir),
            max_to_keep=1,
        )
        manager.restore_or_initialize()

    @tf.function
    def step(images, labels):
        part = tf.cast(done, tf.float32) / total
        losses.assign_add(train_step(images, labels, part))
        done.assign_add(1)

    batches = iter(
        data.make_labelled_dataset(
            reader,
            view,
            batch_size=batch_size,
            seed=seed,
            start_step=int(done),
        )
    )
    with tqdm.tqdm(
        desc=name,
        total=total,
        initial=int(done),
        unit="step",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for epoch in range(int(done) // steps_per_epoch, epochs):
            losses.assign(tf.zeros(shape))
            for _ in range(steps_per_epoch):
                step(*next(batches))
                bar.update()
            if not np.isfinite(losses).any():
                raise ValueError(
                    f"The {name} diverged in epoch {epoch + 1} of {epochs}. "
                    f"Lower the learning rate. Received: {settings}"
                )
            if manager is not None:
                manager.save()
    return losses.numpy() / steps_per_epoch


def score(classify, reader, image_size, shorter_side=None):
    """Accuracy on all images of a reader.

    Args:
        classify: Function from float32 (B, H, W, 3) images in 0-255 to logits
            (B, N).
        reader: Labelled reader of the images.
        image_size: H and W.
        shorter_side: as in `data.make_ordered_dataset`.

    Returns:
        Dictionary with "accuracy" and, of more than five classes,
        "top5_accuracy".
    """
    hits, number = np.zeros(5), 0
    for images, labels in data.make_ordered_dataset(
        reader, image_size=image_size, shorter_side=shorter_side
    ):
        logits = classify(tf.cast(images, tf.float32))
        num_classes = logits.shape[-1]
        best = tf.math.top_k(logits, min(5, num_classes)).indices.numpy()
        found = best == labels.numpy()[:, None]
        hits[: found.shape[1]] += found.sum(axis=0)
        number += len(found)
    result = {"accuracy": float(hits[0] / number)}
    if num_classes > 5:
        result["top5_accuracy"] = float(hits.sum() / number)
    return result
