"""A linear probe on new crops in every epoch: the protocol of ImageNet."""

import math

import tensorflow as tf

from ressl_tf.evaluation import supervised
from ressl_tf.evaluation.features import check_positive_integer
from ressl_tf.evaluation.linear.heads import SoftmaxHeads
from ressl_tf.evaluation.linear.heads import score


def augmented_linear_probe(
    encoder,
    reader,
    test_features,
    test_labels,
    *,
    view,
    learning_rates=(0.1,),
    epochs=90,
    batch_size=256,
    momentum=0.9,
    nesterov=True,
    seed=0,
    workdir=None,
    progress=False,
):
    """Trains softmax regressions on the features of random crops.

    The paper's protocol for ImageNet: 90 epochs of SGD with Nesterov's
    momentum, learning rate 0.1 for a batch of 256, a cosine to 0 over the
    steps, no weight decay. The encoder runs in inference mode and gets no
    gradient.

    Args:
        encoder: Callable from float32 (B, H, W, 3) images in 0-255 to (B, C)
            features, as `FeatureExtractor` takes it.
        reader: Labelled reader of the training images (`data.open_reader`).
        test_features: (M, C) features of the test images, not augmented.
        test_labels: Integers (M,).
        view: View that cuts the crops, of 0-255 images; as
            `supervised.random_crops` makes it.
        learning_rates: Positive floats for a batch of 256, scaled by the
            batch. Defaults to `(0.1,)`.
        epochs: Integer of at least 1. Defaults to `90`.
        batch_size: Integer of at least 1. Defaults to `256`.
        momentum: Float in [0, 1). Defaults to `0.9`.
        nesterov: Whether the momentum is Nesterov's. Defaults to `True`.
        seed: Integer of at least 0. Defaults to `0`.
        workdir: Folder where the state is kept after each epoch, and from
            where the same call goes on. Defaults to `None`, for neither.
        progress: Whether to show a progress bar. Defaults to `False`.

    Returns:
        A list with a dictionary for each learning rate, None for one that
        diverged: "accuracy", "top5_accuracy" (only with more than five
        classes), "train_loss" (mean over the last epoch's crops, while they
        were trained on) and "weights".

    Raises:
        ValueError: If an argument has the wrong type or range, or if training
            diverges with all learning rates.
    """
    check_positive_integer("epochs", epochs)
    check_positive_integer("batch_size", batch_size)
    heads = SoftmaxHeads(
        test_features.shape[1],
        len(reader.class_names),
        [rate * batch_size / 256 for rate in learning_rates],
        momentum=momentum,
        nesterov=nesterov,
        seed=seed,
    )

    def train_step(images, labels, part_done):
        factor = 0.5 * (1.0 + tf.cos(math.pi * part_done))
        features = tf.cast(encoder(images), tf.float32)
        return heads.step(features, labels, factor)

    losses = supervised.train(
        train_step,
        reader,
        view,
        state={"heads": heads},
        shape=[len(learning_rates)],
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        workdir=workdir,
        name="linear probe",
        settings=f"learning_rates={', '.join(map(str, learning_rates))}",
        progress=progress,
    )
    return [
        pair and _result(test_features, test_labels, pair, float(loss))
        for pair, loss in zip(heads.weights(), losses, strict=True)
    ]


def _result(test_features, test_labels, weights, train_loss):
    test = score(test_features, test_labels, *weights)
    result = {"accuracy": test["top1"], "train_loss": train_loss}
    if len(weights[1]) > 5:
        result["top5_accuracy"] = test["top5"]
    return {**result, "weights": weights}
