"""LARS and SGD as the paper's recipes use them, and optimisers by name.

Keras' own SGD differs from torch's in two ways that matter to a recipe: its
`weight_decay` is decoupled from the gradient, and its momentum buffer holds
learning rate times gradient, so that a change of the learning rate acts
late. The two classes here are torch's.
"""

import tensorflow as tf
from tensorflow import keras

from ressl_tf import keras_compat


@keras.utils.register_keras_serializable(package="ressl_tf")
class MomentumSGD(keras_compat.Optimizer):
    """SGD with momentum and the L2 term in the gradient (torch's SGD).

        g <- g + l2 w
        v <- momentum v + g
        w <- w - learning_rate v            (momentum v + g with Nesterov)

    Args:
        learning_rate: float above 0 or a `LearningRateSchedule`.
        momentum: in [0, 1).
        l2: weight decay, at least 0; applied to every variable.
        nesterov: whether to look ahead.
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
        name="MomentumSGD",
    ):
        super().__init__(learning_rate, name)
        if not 0 <= momentum < 1:
            raise ValueError(
                f"`momentum` must be in [0, 1). Received: momentum={momentum}"
            )
        if l2 < 0:
            raise ValueError(f"`l2` must be at least 0. Received: l2={l2}")
        self.momentum = momentum
        self.l2 = l2
        self.nesterov = nesterov

    def update(self, gradient, variable, slots, learning_rate):
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
            momentum=self.momentum, l2=self.l2, nesterov=self.nesterov
        )
        return config


@keras.utils.register_keras_serializable(package="ressl_tf")
class LARS(MomentumSGD):
    """Layer-wise adaptive rate scaling, as the paper's ImageNet recipe.

    `MomentumSGD` where the gradient of each variable of rank above 1, its L2
    term included, is scaled by trust |w| / |g| (1 if either is 0). Variables
    of rank 1 (biases, batch-normalisation gamma and beta) get neither decay
    nor scaling.

    Args:
        learning_rate: float above 0 or a `LearningRateSchedule`.
        momentum: in [0, 1).
        l2: weight decay, at least 0.
        trust: η, above 0.
        name: name of the optimiser.

    Raises:
        ValueError: for a value out of its range.
    """

    def __init__(
        self,
        learning_rate,
        momentum=0.9,
        l2=1e-6,
        trust=0.001,
        name="LARS",
    ):
        super().__init__(learning_rate, momentum=momentum, l2=l2, name=name)
        if not trust > 0:
            raise ValueError(
                f"`trust` must be above 0. Received: trust={trust}"
            )
        self.trust = trust

    def _regularised(self, gradient, variable):
        if len(variable.shape) <= 1:
            return gradient
        gradient = super()._regularised(gradient, variable)
        weight_norm = tf.norm(tf.convert_to_tensor(variable))
        gradient_norm = tf.norm(gradient)
        scale = tf.where(
            (weight_norm > 0) & (gradient_norm > 0),
            self.trust * tf.math.divide_no_nan(weight_norm, gradient_norm),
            1.0,
        )
        return gradient * scale

    def get_config(self):
        config = super().get_config()
        config.pop("nesterov")
        config["trust"] = self.trust
        return config


OPTIMIZERS = {"sgd": MomentumSGD, "lars": LARS}


def make_optimizer(name, learning_rate, **kwargs):
    """An optimiser by name.

    Args:
        name: "sgd" (`MomentumSGD`) or "lars" (`LARS`).
        learning_rate: float above 0 or a `LearningRateSchedule`.
        **kwargs: the class's other arguments.

    Returns:
        A Keras optimiser.

    Raises:
        ValueError: for an unknown name or argument.
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"`name` must be one of {', '.join(OPTIMIZERS)}; any Keras "
            "optimizer can be passed to `compile` instead. "
            f"Received: name={name!r}"
        )
    try:
        return OPTIMIZERS[name](learning_rate, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"Optimizer {name!r} was given an argument that it does not "
            f"have: {error}. Received: {kwargs}"
        ) from error
