"""SGD as torch has it.

Keras' own differs in two ways that matter to a recipe: its `weight_decay` is
decoupled from the gradient, and its momentum buffer holds learning rate times
gradient, so that a change of the learning rate acts late.
"""

import tensorflow as tf
from tensorflow import keras

from ressl_tf import keras_compat
from ressl_tf.optimizers import checks


@keras.utils.register_keras_serializable(package="ressl_tf")
class MomentumSGD(keras_compat.Optimizer):
    """SGD with momentum and the L2 term in the gradient (torch's SGD).

        g <- g + l2 w
        v <- momentum v + g
        w <- w - learning_rate v            (momentum v + g with Nesterov)

    Args:
        learning_rate: float above 0 or a `LearningRateSchedule`.
        momentum: in [0, 1).
        l2: weight decay, at least 0.
        nesterov: whether to look ahead.
        exclude_bias_and_norm: whether biases and normalisation get no L2
            term. Which those are, `ReSSL.compile` says; elsewhere they are
            the variables of rank 0 and 1.
        name: name of the optimiser.

    Raises:
        ValueError: for a value out of its range.
    """

    slot_names = ("momentum",)

    def __init__(
        self,
        learning_rate,
        momentum=0.9,
        l2=0.0,
        nesterov=False,
        exclude_bias_and_norm=False,
        name="MomentumSGD",
    ):
        super().__init__(learning_rate, name)
        checks.check_fraction("momentum", momentum)
        checks.check_not_negative("l2", l2)
        self.momentum = momentum
        # Not named `weight_decay`: Keras would apply that for itself,
        # decoupled from the gradient.
        self.l2 = l2
        self.nesterov = nesterov
        self.exclude_bias_and_norm = exclude_bias_and_norm

    def update(self, gradient, variable, slots, learning_rate, excluded):
        if not excluded:
            gradient = self._regularised(gradient, variable)
        velocity = self.momentum * tf.convert_to_tensor(slots[0]) + gradient
        slots[0].assign(velocity)
        if self.nesterov:
            velocity = self.momentum * velocity + gradient
        variable.assign_sub(learning_rate * velocity)

    def _regularised(self, gradient, variable):
        if self.l2 == 0:
            return gradient
        return gradient + self.l2 * tf.convert_to_tensor(variable)

    def get_config(self):
        config = super().get_config()
        config.update(
            momentum=self.momentum,
            l2=self.l2,
            nesterov=self.nesterov,
            exclude_bias_and_norm=self.exclude_bias_and_norm,
        )
        return config
