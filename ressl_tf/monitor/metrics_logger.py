"""Rows of metrics.jsonl and TensorBoard, and what they warn of."""

import logging
import math
import resource
import sys
import time

import tensorflow as tf
from tensorflow import keras

from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import collapse

logger = logging.getLogger("ressl_tf")


class NotFiniteError(RuntimeError):
    """A loss or a weight is no longer a number; training has stopped."""


class MetricsLogger(keras.callbacks.Callback):
    """Writes metrics.jsonl and TensorBoard scalars every few steps.

    Every number that `fit` reports is the mean over the steps since the last
    row: the means start anew with each row, not with each epoch. `alpha`,
    `teacher_momentum` and `learning_rate` are those of the row's last step.
    Values leave the device here and nowhere else.

    Args:
        workdir: `Path` of the folder of the run.
        log_every: steps between two rows, rounded up to whole executions of
            `steps_per_execution` steps; the last step of an epoch and of the
            run always gets one.
        steps_per_epoch: number of steps of a full epoch.
        batch_size: global batch, for `images_per_second`.
        first_step: steps done before this `fit`.

    Raises:
        NotFiniteError: from within `fit`, when the loss is not finite; there
            is no row then.
    """

    def __init__(
        self, workdir, *, log_every, steps_per_epoch, batch_size, first_step=0
    ):
        super().__init__()
        self.workdir = workdir
        self.log_every = log_every
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.step = first_step
        self.writer = tf.summary.create_file_writer(
            str(workdir / "tensorboard")
        )
        self._collapsed_windows = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_first = self.step
        self._start_window()

    def on_train_batch_begin(self, batch, logs=None):
        if self._window_start is None:
            # Here and not after a row: Keras reads the means at an epoch's
            # end. Sums from 0 also make a row a function of its steps alone,
            # to the last bit, wherever the run was resumed.
            self.model.reset_metrics()
            self._window_start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        windows = self.step // self.log_every
        # `batch` counts within the epoch, and by several steps at a time
        # where one execution does several.
        self.step = self._epoch_first + batch + 1
        if self.step // self.log_every > windows:
            self.log()

    def on_epoch_end(self, epoch, logs=None):
        self.log()

    @property
    def epoch(self):
        """Epochs done, a fraction within one."""
        return round(self.step / self.steps_per_epoch, 4)

    def is_due(self, every_epochs, total_steps):
        """Whether a whole period of epochs, or the run, ends with this step."""
        epochs, rest = divmod(self.step, self.steps_per_epoch)
        return self.step == total_steps or (
            rest == 0 and epochs % every_epochs == 0
        )

    def log(self):
        """Writes a row of the steps since the last one."""
        steps = self.step - self._window_first
        if steps == 0:
            return
        row = {
            "step": self.step,
            "epoch": self.epoch,
            **{
                mean.name: float(tf.convert_to_tensor(mean.result()))
                for mean in self.model.metrics
            },
            **self._schedules(),
            "images_per_second": round(
                steps
                * self.batch_size
                / (time.perf_counter() - self._window_start),
                1,
            ),
            "peak_memory_gib": round(peak_memory_bytes() / 2**30, 3),
        }
        self._check(row)
        self.write(row)
        self._start_window()

    def write(self, row):
        """Appends a row to metrics.jsonl and TensorBoard."""
        workdir_lib.append_metrics(self.workdir, row)
        with self.writer.as_default():
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    tf.summary.scalar(name, value, step=row["step"])
        self.writer.flush()

    def _start_window(self):
        self._window_first = self.step
        # The clock starts at the next batch, so that what happens between
        # epochs (scoring, saving) does not count as training.
        self._window_start = None

    def _schedules(self):
        model, last_step = self.model, self.step - 1
        # float16's loss scaling wraps the optimiser.
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        learning_rate = getattr(
            optimizer, "_learning_rate", optimizer.learning_rate
        )
        if callable(learning_rate):
            learning_rate = learning_rate(last_step)
        return {
            "alpha": float(model.alpha(last_step)),
            "teacher_momentum": float(model.teacher_momentum(last_step)),
            "learning_rate": float(tf.convert_to_tensor(learning_rate)),
        }

    def _check(self, row):
        if not math.isfinite(row["loss"]):
            raise NotFiniteError(
                f"The loss is {row['loss']} at step {row['step']}. Lower "
                "`optimizer.base_learning_rate` or lengthen "
                "`train.warmup_epochs`, and continue in a new folder; the "
                "last good checkpoint is kept."
            )
        target_entropy = row["target_entropy"]
        queue_size = self.model.queue.size
        if not collapse.is_collapsed(
            row["embedding_std"], target_entropy, queue_size
        ):
            self._collapsed_windows = 0
            return
        self._collapsed_windows += 1
        if self._collapsed_windows == collapse.PATIENCE:
            logger.warning(
                "The embeddings have collapsed: at step %d their deviation is "
                "%.3f of what it should be, and the target has %.1f %% of a "
                "uniform one's entropy. Lower `method.teacher_temperature` "
                "(%g; the student's is %g), use batch normalisation in the "
                "heads, the predictor, InfoNCE warm-up, or a weaker teacher "
                "view.",
                row["step"],
                row["embedding_std"],
                100 * collapse.uniformity(target_entropy, queue_size),
                self.model.teacher_temperature,
                self.model.student_temperature,
            )


def peak_memory_bytes():
    """Peak resident set of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
