"""The k-NN score of a run, while it trains."""

import logging

from tensorflow import keras

from ressl_tf.evaluation import features
from ressl_tf.evaluation import knn

logger = logging.getLogger("ressl_tf")


class KNNMonitor(keras.callbacks.Callback):
    """Scores the student's backbone by k nearest neighbours.

    Args:
        encoder: `keras.Model` from 0-255 images to features; shares the
            student's variables.
        train_set: labelled `ImageSet` that is voted by.
        test_set: labelled `ImageSet` that is scored.
        metrics_logger: `MetricsLogger` that the score goes to.
        every_epochs: epochs between two scores; the end of the run always
            gets one.
        total_steps: number of steps of the run.
        k: number of neighbours.
        temperature: of their weights.
    """

    def __init__(
        self,
        encoder,
        train_set,
        test_set,
        metrics_logger,
        *,
        every_epochs,
        total_steps,
        k,
        temperature,
    ):
        super().__init__()
        self.extract = features.FeatureExtractor(encoder)
        self.train_set = train_set
        self.test_set = test_set
        self.metrics_logger = metrics_logger
        self.every_epochs = every_epochs
        self.total_steps = total_steps
        self.k = min(k, len(train_set.images))
        self.temperature = temperature

    def on_epoch_end(self, epoch, logs=None):
        if not self.metrics_logger.is_due(self.every_epochs, self.total_steps):
            return
        accuracy = knn.knn_accuracy(
            self.extract(self.train_set.images),
            self.train_set.labels,
            self.extract(self.test_set.images),
            self.test_set.labels,
            num_classes=len(self.train_set.class_names),
            k=self.k,
            temperature=self.temperature,
        )
        self.metrics_logger.write(
            {
                "step": self.metrics_logger.step,
                "epoch": self.metrics_logger.epoch,
                "knn_accuracy": accuracy,
            }
        )
        logger.info(
            "epoch %g: k-NN accuracy %.2f %% (k = %d)",
            self.metrics_logger.epoch,
            100 * accuracy,
            self.k,
        )
