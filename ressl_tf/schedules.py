"""Learning rate, teacher momentum and alpha as functions of the step.

Steps count from 0: `schedule(0)` is the value of the first training step. A
schedule takes a Python number or a scalar integer tensor and returns a
float32 scalar tensor, so it may stand inside a `tf.function`.
"""

import math

import tensorflow as tf
from tensorflow import keras


@keras.utils.register_keras_serializable(package="ressl_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then half a cosine down to 0, per step.

    A class, as Keras optimisers take and serialise it:

        step < warmup_steps:  peak * step / warmup_steps
        afterwards:           peak * (1 + cos(pi * progress)) / 2,
        progress = (step - warmup_steps) / (total_steps - warmup_steps)

    At `total_steps` and beyond the value is 0. A run that is shorter than its
    warm-up ends within the rise.

    Args:
        peak: highest learning rate, above 0.
        total_steps: number of steps of the whole run, at least 1.
        warmup_steps: number of steps of the warm-up; 0 starts at `peak`.

    Raises:
        ValueError: for a value out of its range.
    """

    def __init__(self, peak, total_steps, warmup_steps=0):
        super().__init__()
        if not peak > 0:
            raise ValueError(
                f"`peak` must be a learning rate above 0. Received: peak={peak}"
            )
        for name, value, lowest in (
            ("total_steps", total_steps, 1),
            ("warmup_steps", warmup_steps, 0),
        ):
            if value < lowest:
                raise ValueError(
                    f"`{name}` must be at least {lowest}. "
                    f"Received: {name}={value}"
                )
        self.peak = float(peak)
        self.total_steps = int(total_steps)
        self.warmup_steps = int(warmup_steps)

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        warmup = step / max(self.warmup_steps, 1)
        progress = (step - self.warmup_steps) / max(
            self.total_steps - self.warmup_steps, 1
        )
        cosine = (1.0 + tf.cos(math.pi * tf.minimum(progress, 1.0))) / 2.0
        return self.peak * tf.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self):
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
        }


def scaled_learning_rate(base_learning_rate, batch_size):
    """The linear scaling rule: the base is for a global batch of 256."""
    return base_learning_rate * batch_size / 256.0


def cosine_momentum(initial, total_steps):
    """Teacher momentum that rises from `initial` to 1 along half a cosine.

    m_t = 1 - (1 - m_0) (cos(π t / T) + 1) / 2, the paper's schedule for
    ImageNet (m_0 = 0.996).

    Args:
        initial: m_0, in [0, 1].
        total_steps: T, at least 1; from there on the momentum is 1.

    Returns:
        A function of the step.

    Raises:
        ValueError: for a value out of its range.
    """
    if not 0 <= initial <= 1:
        raise ValueError(
            "`initial` must be a momentum in [0, 1]. "
            f"Received: initial={initial}"
        )
    if total_steps < 1:
        raise ValueError(
            "`total_steps` must be at least 1. "
            f"Received: total_steps={total_steps}"
        )

    def momentum(step):
        progress = tf.minimum(tf.cast(step, tf.float32) / total_steps, 1.0)
        return 1.0 - (1.0 - initial) * (tf.cos(math.pi * progress) + 1.0) / 2.0

    return momentum


def linear_alpha(warmup_steps, final=1.0):
    """The weight of the relational loss: α = min(step / warmup_steps, 1).

    Equation 7 of the paper. It does not say how long the warm-up is; the
    recipes here use the steps of the learning rate's warm-up.

    Args:
        warmup_steps: at least 0; 0 means that α is `final` from the start.
        final: what α rises to, in [0, 1], and then keeps: 1 for the paper's
            method, 0 for InfoNCE alone from start to end (MoCo).

    Returns:
        A function of the step.

    Raises:
        ValueError: if `warmup_steps` is negative or `final` is not in [0, 1].
    """
    if warmup_steps < 0:
        raise ValueError(
            "`warmup_steps` must be at least 0 (0: no warm-up). "
            f"Received: warmup_steps={warmup_steps}"
        )
    if not 0 <= final <= 1:
        raise ValueError(
            "`final` must be a weight in [0, 1] (1: the relational loss "
            f"alone, 0: InfoNCE alone). Received: final={final}"
        )

    def alpha(step):
        if warmup_steps == 0:
            return tf.constant(final, tf.float32)
        progress = tf.cast(step, tf.float32) / warmup_steps
        return final * tf.minimum(progress, 1.0)

    return alpha


def duration_in_steps(prefix, *, epochs=0, steps=0, steps_per_epoch):
    """One duration given in epochs or in steps, not both, as steps.

    Args:
        prefix: of the two settings' names, for messages: "train.warmup_" of
            `train.warmup_epochs` and `train.warmup_steps`.
        epochs: number of epochs, may be fractional; 0 if not given.
        steps: whole number of steps; 0 if not given.
        steps_per_epoch: at least 1.

    Returns:
        An int, at least 0; 0 if neither is given.

    Raises:
        ValueError: if both are given, or for a value out of its range.
    """
    given = {f"{prefix}epochs": epochs, f"{prefix}steps": steps}
    for setting, value in given.items():
        if value < 0:
            raise ValueError(
                f"`{setting}` must be at least 0 (0: not given). "
                f"Received: {setting}={value}"
            )
    if steps != int(steps):
        raise ValueError(
            f"`{prefix}steps` must be a whole number. "
            f"Received: {prefix}steps={steps}"
        )
    if epochs and steps:
        raise ValueError(
            f"Give one of {' and '.join(f'`{each}`' for each in given)}, and "
            "0 for the other. Received: "
            + ", ".join(f"{each}={value}" for each, value in given.items())
        )
    return int(steps) if steps else round(epochs * steps_per_epoch)
