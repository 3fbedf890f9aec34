"""The checkpoints of a run."""

import numpy as np
import tensorflow as tf
from tensorflow import keras

from ressl_tf.monitor.metrics_logger import NotFiniteError


class Saver(keras.callbacks.Callback):
    """Saves checkpoints at epoch ends and when the run is asked to stop.

    Args:
        manager: `tf.train.CheckpointManager` of the run.
        metrics_logger: `MetricsLogger`; knows the step, and gets the last row
            before an early end.
        every_epochs: epochs between two checkpoints; the end of the run
            always gets one.
        total_steps: number of steps of the run.
        should_stop: function of the step; True ends the run after that step.
        saved_step: step of the checkpoint that the run started from; None if
            there was none.

    Raises:
        NotFiniteError: from within `fit`, instead of saving a variable that
            is not finite.
    """

    def __init__(
        self,
        manager,
        metrics_logger,
        *,
        every_epochs,
        total_steps,
        should_stop,
        saved_step=None,
    ):
        super().__init__()
        self.manager = manager
        self.metrics_logger = metrics_logger
        self.every_epochs = every_epochs
        self.total_steps = total_steps
        self.should_stop = should_stop
        self.saved_step = saved_step

    def on_train_batch_end(self, batch, logs=None):
        step = self.metrics_logger.step
        if self.should_stop(step):
            self.metrics_logger.log()
            self.save()
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if self.metrics_logger.is_due(self.every_epochs, self.total_steps):
            self.save()

    def save(self):
        """Saves a checkpoint, unless this step has one."""
        step = self.metrics_logger.step
        if step == self.saved_step:
            return
        self._check_finite(step)
        self.manager.save(checkpoint_number=step)
        self.saved_step = step

    def _check_finite(self, step):
        # The loss of this step may be finite and its gradient not.
        for variable in self.model.variables:
            value = tf.convert_to_tensor(variable)
            if value.dtype.is_floating and not np.all(np.isfinite(value)):
                raise NotFiniteError(
                    f"The variable {variable.name} is not finite at step "
                    f"{step}. Lower `optimizer.base_learning_rate` or "
                    "lengthen `train.warmup_epochs`, and continue in a new "
                    "folder; the last good checkpoint is kept."
                )
