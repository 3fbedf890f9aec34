"""Linear probes on features that were extracted once: the small-set protocol.

Shapes use N for images, M for test images, C for features.
"""

import numpy as np
import tensorflow as tf
import tqdm

from ressl_tf.evaluation.features import check_positive_integer
from ressl_tf.evaluation.linear.heads import SoftmaxHeads
from ressl_tf.evaluation.linear.heads import check_data
from ressl_tf.evaluation.linear.heads import check_seed
from ressl_tf.evaluation.linear.heads import evaluate


def linear_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    *,
    num_classes,
    learning_rate=10.0,
    **options,
):
    """Trains a softmax regression by SGD, the paper's small-set protocol.

    The features are used as they come, neither standardised nor normalised.
    SGD without weight decay, as `SoftmaxHeads` does it. The last, smaller
    batch of an epoch is used. The paper does not say how the weights start or
    are shuffled: `initial_weights` and `epoch_order` are our choice.

    Args:
        train_features, train_labels, test_features, test_labels, num_classes:
            As in `linear_probes`.
        learning_rate: Positive float. Defaults to `10.0`.
        **options: The other arguments of `linear_probes`.

    Returns:
        Dictionary with "accuracy" (top-1 on the test images, 0 to 1),
        "top5_accuracy" (only with more than five classes), "train_accuracy",
        "train_loss" (mean cross-entropy of the final weights) and "weights",
        the float32 arrays kernel (C, num_classes) and bias (num_classes,).

    Raises:
        ValueError: If an argument has the wrong shape, type or range, or if
            training diverges.
    """
    (result,) = linear_probes(
        train_features,
        train_labels,
        test_features,
        test_labels,
        num_classes=num_classes,
        learning_rates=(learning_rate,),
        **options,
    )
    return result


def linear_probes(
    train_features,
    train_labels,
    test_features,
    test_labels,
    *,
    num_classes,
    learning_rates,
    momentum=0.9,
    epochs=100,
    milestones=(60, 80),
    decay=0.1,
    batch_size=256,
    seed=0,
    progress=False,
):
    """`linear_probe` with several learning rates, in one pass over the data.

    Args:
        train_features: (N, C).
        train_labels: Integers (N,) in [0, num_classes).
        test_features: (M, C).
        test_labels: Integers (M,) in [0, num_classes).
        num_classes: Integer of at least 2.
        learning_rates: Positive floats.
        momentum: Float in [0, 1). Defaults to `0.9`.
        epochs: Integer of at least 1. Defaults to `100`.
        milestones: Epochs (counted from 0) from whose beginning on the
            learning rate is multiplied by `decay`. Defaults to `(60, 80)`.
        decay: Positive float. Defaults to `0.1`.
        batch_size: Integer of at least 1. Defaults to `256`.
        seed: Integer of at least 0. Defaults to `0`.
        progress: Whether to print a progress bar. Defaults to `False`.

    Returns:
        A list with the result of `linear_probe` for each learning rate, or
        None for one that diverged.

    Raises:
        ValueError: If an argument has the wrong shape, type or range, or if
            training diverges with all learning rates.
    """
    data = check_data(
        train_features, train_labels, test_features, test_labels, num_classes
    )
    check_positive_integer("epochs", epochs)
    check_positive_integer("batch_size", batch_size)
    if not decay > 0:
        raise ValueError(
            "`decay` should be positive; leave `milestones` empty for a "
            f"constant learning rate. Received: decay={decay!r}"
        )
    train_features, train_labels = data[:2]
    heads = SoftmaxHeads(
        train_features.shape[1],
        num_classes,
        learning_rates,
        momentum=momentum,
        seed=seed,
    )
    features = tf.convert_to_tensor(train_features)
    labels = tf.convert_to_tensor(train_labels)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((), tf.float32),
        ]
    )
    def train_epoch(order, factor):
        """Returns the sums of the losses, (R,)."""
        total = tf.zeros([len(learning_rates)])
        for start in tf.range(0, tf.shape(order)[0], batch_size):
            batch = order[start : start + batch_size]
            losses = heads.step(
                tf.gather(features, batch), tf.gather(labels, batch), factor
            )
            total += losses * tf.cast(tf.shape(batch)[0], tf.float32)
        return total

    # Or TensorFlow would warn of a function that is traced for every probe.
    train_epoch = train_epoch.get_concrete_function()
    bar = tqdm.trange(
        epochs,
        desc="linear probe",
        unit="epoch",
        disable=None if progress else True,
        leave=False,
    )
    for epoch in bar:
        order = epoch_order(len(labels), seed, epoch)
        factor = decay ** sum(epoch >= milestone for milestone in milestones)
        losses = train_epoch(
            tf.convert_to_tensor(order), tf.constant(factor, tf.float32)
        )
        if not np.isfinite(losses).any():
            break
        bar.set_postfix(loss=np.nanmin(losses) / len(labels))
    bar.close()
    weights = heads.weights()
    if not any(weights):
        raise ValueError(
            f"The linear probe diverged in epoch {epoch + 1} of {epochs}: "
            "its loss or its weights are not finite. Lower `learning_rate`, "
            "or scale the features down. Received: learning_rate="
            f"{', '.join(map(str, learning_rates))} and features of absolute "
            f"values up to {np.abs(train_features).max():.3g}"
        )
    return [pair and evaluate(*data, *pair) for pair in weights]


def choose_learning_rate(
    train_features, train_labels, *, num_classes, learning_rates, **options
):
    """The learning rate that is best on a tenth of the training images.

    That tenth is drawn by the seed and not trained on; no test image is
    looked at. Train again with the rate, on all training images.

    Args:
        train_features: (N, C), N at least 10.
        train_labels: Integers (N,) in [0, num_classes).
        num_classes: Integer of at least 2.
        learning_rates: Positive floats.
        **options: As in `linear_probes`.

    Returns:
        One of `learning_rates`; of equally good ones the first.

    Raises:
        ValueError: As `linear_probes`, or if there are less than 10 images.
    """
    number = len(train_labels)
    if number < 10:
        raise ValueError(
            "`learning_rates` should be one if there are too few images to "
            f"choose by. Received: {number} images"
        )
    order = epoch_order(number, options.get("seed", 0), 0)
    held_out, kept = order[: number // 10], order[number // 10 :]
    train_features = np.asarray(train_features)
    train_labels = np.asarray(train_labels)
    results = linear_probes(
        train_features[kept],
        train_labels[kept],
        train_features[held_out],
        train_labels[held_out],
        num_classes=num_classes,
        learning_rates=learning_rates,
        **options,
    )
    return max(
        zip(learning_rates, results, strict=True),
        key=lambda pair: pair[1]["accuracy"] if pair[1] else -1.0,
    )[0]


def epoch_order(num_examples, seed, epoch):
    """The order of the images in one epoch, a function of seed and epoch.

    Args:
        num_examples: Integer N.
        seed: Integer of at least 0.
        epoch: Integer of at least 0.

    Returns:
        int32 array (N,), a permutation of 0 to N - 1.

    Raises:
        ValueError: If `seed` is not an integer of at least 0.
    """
    check_seed(seed)
    # The 1 keeps epoch 0 apart from the initial weights: numpy's generators
    # take [seed] and [seed, 0] for the same seed.
    generator = np.random.default_rng([seed, epoch, 1])
    return generator.permutation(num_examples).astype(np.int32)
