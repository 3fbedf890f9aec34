"""A linear probe of a run, trained while the student is.

Unlike the k-NN score it needs no features of all training images at once: it
also watches runs whose images are streamed.
"""

import logging

import numpy as np
import tensorflow as tf
from tensorflow import keras

from ressl_tf import data
from ressl_tf.evaluation import linear
from ressl_tf.evaluation import supervised

logger = logging.getLogger("ressl_tf")


class OnlineProbe(keras.callbacks.Callback):
    """Trains a softmax regression on what the student's backbone gives.

    Every few steps of the run, one step of SGD (Nesterov's momentum 0.9, a
    constant learning rate, no weight decay) on a batch of labelled random
    crops. The backbone runs in inference mode, outside of any gradient tape:
    neither its weights nor its batch statistics change. The batch is a function
    of the run's step, so a resumed run sees the same ones.

    With each score a row goes to metrics.jsonl: `probe_accuracy`, top-1 on all
    test images, and `probe_loss`, the mean cross-entropy of the batches since
    the last score. The probe runs behind the student, whose features change:
    after the run `tools.linear_probe` finds more.

    Args:
        encoder: `keras.Model` from 0-255 images to features; shares the
            student's variables.
        reader: labelled reader of the training images.
        test_reader: labelled reader of the test images.
        metrics_logger: `MetricsLogger` that knows the step and takes the rows.
        every_steps: steps of the run between two steps of the probe, from 1.
            Those within one execution of several steps come after it.
        every_epochs: epochs between two scores; the end of the run always
            gets one.
        total_steps: number of steps of the run.
        batch_size: of the probe; of fewer images, all.
        learning_rate: for a batch of 256, above 0.
        seed: of first weights, order and crops.

    Attributes:
        state: {name: object} for a `tf.train.Checkpoint`, all that it needs to
            go on.

    Raises:
        ValueError: if the images have no labels, or a number is out of its
            range.
    """

    def __init__(
        self,
        encoder,
        reader,
        test_reader,
        metrics_logger,
        *,
        every_steps,
        every_epochs,
        total_steps,
        batch_size,
        learning_rate,
        seed,
    ):
        super().__init__()
        for each in (reader, test_reader):
            data.check_labelled(each)
        self.test_reader = test_reader
        self.metrics_logger = metrics_logger
        self.every_steps = every_steps
        self.every_epochs = every_epochs
        self.total_steps = total_steps
        self.image_size = encoder.input_shape[1]
        batch_size = min(batch_size, reader.num_images)
        heads = linear.SoftmaxHeads(
            encoder.output_shape[-1],
            len(reader.class_names),
            [learning_rate * batch_size / 256],
            nesterov=True,
            seed=seed,
        )
        losses, count = tf.Variable(0.0), tf.Variable(0.0)
        self.state = {"heads": heads, "losses": losses, "count": count}

        @tf.function
        def train_step(images, labels):
            features = encoder(images, training=False)
            loss = heads.step(tf.cast(features, tf.float32), labels)
            losses.assign_add(loss[0])
            count.assign_add(1.0)

        @tf.function(reduce_retracing=True)
        def classify(images):
            features = tf.cast(encoder(images, training=False), tf.float32)
            return tf.matmul(features, heads.kernel[:, 0]) + heads.bias[0]

        def make_batches(start_step):
            return iter(
                data.make_labelled_dataset(
                    reader,
                    supervised.random_crops(self.image_size),
                    batch_size=batch_size,
                    seed=seed,
                    start_step=start_step,
                )
            )

        self._train_step, self._classify = train_step, classify
        self._make_batches, self._batches = make_batches, None

    def on_train_begin(self, logs=None):
        # `fit` may be called several times in a run.
        if self._batches is None:
            self._done = self.metrics_logger.step // self.every_steps
            self._batches = self._make_batches(self._done)

    def on_train_batch_end(self, batch, logs=None):
        due = self.metrics_logger.step // self.every_steps
        for _ in range(due - self._done):
            self._train_step(*next(self._batches))
        self._done = due

    def on_epoch_end(self, epoch, logs=None):
        if not self.metrics_logger.is_due(self.every_epochs, self.total_steps):
            return
        accuracy = supervised.score(
            self._classify, self.test_reader, self.image_size
        )["accuracy"]
        losses, count = self.state["losses"], self.state["count"]
        row = {
            "step": self.metrics_logger.step,
            "epoch": self.metrics_logger.epoch,
            "probe_accuracy": accuracy,
        }
        if count > 0:
            row["probe_loss"] = float(losses / count)
            if not np.isfinite(row["probe_loss"]):
                logger.warning(
                    "the online linear probe has diverged: lower "
                    "`monitor.online_probe_learning_rate`"
                )
        self.metrics_logger.write(row)
        losses.assign(0.0)
        count.assign(0.0)
        logger.info(
            "epoch %g: accuracy of the online linear probe %.2f %%",
            self.metrics_logger.epoch,
            100 * accuracy,
        )
