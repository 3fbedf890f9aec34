"""Fine-tuning on few labels: the semi-supervised protocol of ImageNet."""

from typing import NamedTuple

import tensorflow as tf
from tensorflow import keras

from ressl_tf import keras_compat
from ressl_tf import optimizers
from ressl_tf import schedules
from ressl_tf.evaluation import supervised
from ressl_tf.evaluation.features import check_positive_integer
from ressl_tf.evaluation.linear import initial_weights


class Protocol(NamedTuple):
    """How a network is fine-tuned.

    Attributes:
        epochs: of the labelled images, from 1.
        backbone_learning_rate: for a batch of 256; 0 freezes the backbone,
            which then runs in inference mode.
        head_learning_rate: for a batch of 256, above 0.
    """

    epochs: int
    backbone_learning_rate: float
    head_learning_rate: float


# The paper's, for 1 % and 10 % of ImageNet's labels.
PROTOCOLS = {
    "1pct": Protocol(60, 0.0, 0.1),
    "10pct": Protocol(20, 0.02, 0.2),
}


def finetune(
    encoder,
    reader,
    test_reader,
    protocol,
    *,
    view,
    batch_size=256,
    seed=0,
    shorter_side=None,
    workdir=None,
    progress=False,
):
    """Trains a classifier on top of an encoder, and the encoder with it.

    SGD with momentum 0.9, a cosine to 0 over the steps, no weight decay; both
    learning rates grow with the batch. The paper does not say how the head
    starts (here: `linear.initial_weights`), nor its momentum. A backbone that
    is trained uses the statistics of its batches, as in pre-training.

    Args:
        encoder: trainable `keras.Model` from float32 (B, H, W, 3) images in
            0-255 to features (B, C), as `load_encoder` returns it. It is
            trained in place.
        reader: Labelled reader of the training images.
        test_reader: Labelled reader of the test images.
        protocol: `Protocol`.
        view: View that cuts random crops, of 0-255 images; as
            `supervised.random_crops` makes it.
        batch_size: Integer of at least 1. Defaults to `256`; at most the
            number of images.
        seed: Integer of at least 0. Defaults to `0`.
        shorter_side: of test images, as in `data.make_ordered_dataset`.
        workdir: Folder where the state is kept after each epoch, and from
            where the same call goes on. Defaults to `None`, for neither.
        progress: Whether to show a progress bar. Defaults to `False`.

    Returns:
        Dictionary with "accuracy", "top5_accuracy" (only with more than five
        classes) and "train_loss" (mean over the last epoch).

    Raises:
        ValueError: If an argument is out of its range, or training diverges.
    """
    _check(protocol)
    check_positive_integer("batch_size", batch_size)
    total = protocol.epochs * reader.steps_per_epoch(batch_size)
    frozen = protocol.backbone_learning_rate == 0
    head = _make_head(encoder, len(reader.class_names), seed)
    parts = [(head, protocol.head_learning_rate)]
    if not frozen:
        parts.append((encoder, protocol.backbone_learning_rate))
    trained = []
    for network, rate in parts:
        schedule = schedules.WarmupCosine(
            schedules.scaled_learning_rate(rate, batch_size), total, 0
        )
        optimizer = optimizers.make_optimizer("sgd", schedule)
        keras_compat.build(optimizer, network.trainable_variables)
        trained.append((network, optimizer))

    def train_step(images, labels, _):
        with tf.GradientTape() as tape:
            features = encoder(images, training=not frozen)
            if frozen:
                features = tf.stop_gradient(features)
            logits = head(features)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            )
        gradients = tape.gradient(
            loss, [network.trainable_variables for network, _ in trained]
        )
        for own, (network, optimizer) in zip(gradients, trained, strict=True):
            optimizer.apply_gradients(
                zip(own, network.trainable_variables, strict=True)
            )
        return loss

    loss = supervised.train(
        train_step,
        reader,
        view,
        state={
            "encoder": encoder,
            "head": head,
            "optimizers": [optimizer for _, optimizer in trained],
        },
        epochs=protocol.epochs,
        batch_size=batch_size,
        seed=seed,
        workdir=workdir,
        name="fine-tuning",
        settings=protocol,
        progress=progress,
    )

    @tf.function(reduce_retracing=True)
    def classify(images):
        return head(encoder(images, training=False))

    result = supervised.score(
        classify, test_reader, encoder.input_shape[1], shorter_side
    )
    return {**result, "train_loss": float(loss)}


def _make_head(encoder, num_classes, seed):
    num_features = encoder.output_shape[-1]
    head = keras.layers.Dense(num_classes, dtype="float32", name="head")
    head.build((None, num_features))
    head.set_weights(initial_weights(num_features, num_classes, seed))
    return head


def _check(protocol):
    check_positive_integer("epochs", protocol.epochs)
    if not protocol.head_learning_rate > 0:
        raise ValueError(
            "`head_learning_rate` must be above 0. "
            f"Received: head_learning_rate={protocol.head_learning_rate}"
        )
    if not protocol.backbone_learning_rate >= 0:
        raise ValueError(
            "`backbone_learning_rate` must be at least 0, which freezes the "
            "backbone. Received: backbone_learning_rate="
            f"{protocol.backbone_learning_rate}"
        )
