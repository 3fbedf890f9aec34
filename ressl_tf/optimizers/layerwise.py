"""LARS and LAMB: each layer's step in proportion to its weights."""

import tensorflow as tf
from tensorflow import keras

from ressl_tf import keras_compat
from ressl_tf.optimizers import checks
from ressl_tf.optimizers.sgd import MomentumSGD


@keras.utils.register_keras_serializable(package="ressl_tf")
class LARS(MomentumSGD):
    """Layer-wise adaptive rate scaling, as the paper's ImageNet recipe.

    `MomentumSGD` where the gradient of each variable, its L2 term included,
    is scaled by trust |w| / |g| (1 if either is 0). Biases and normalisation
    get neither decay nor scaling. Which those are, `ReSSL.compile` says;
    elsewhere they are the variables of rank 0 and 1.

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
        super().__init__(
            learning_rate,
            momentum=momentum,
            l2=l2,
            exclude_bias_and_norm=True,
            name=name,
        )
        if not trust > 0:
            raise ValueError(
                f"`trust` must be above 0. Received: trust={trust}"
            )
        self.trust = trust

    def _regularised(self, gradient, variable):
        gradient = super()._regularised(gradient, variable)
        return gradient * _trust_ratio(variable, gradient, self.trust)

    def get_config(self):
        config = super().get_config()
        del config["nesterov"], config["exclude_bias_and_norm"]
        config["trust"] = self.trust
        return config


@keras.utils.register_keras_serializable(package="ressl_tf")
class LAMB(keras_compat.Optimizer):
    """Layer-wise adaptive moments for large batches.

        m <- beta_1 m + (1 - beta_1) g
        v <- beta_2 v + (1 - beta_2) g²
        r <- m' / (sqrt(v') + epsilon) + weight_decay_rate w
        w <- w - learning_rate |w| / |r| r

    with m' = m / (1 - beta_1^t) and v' = v / (1 - beta_2^t) in step t = 1, 2,
    ..., and 1 instead of |w| / |r| if either is 0.

    Args:
        learning_rate: float above 0 or a `LearningRateSchedule`.
        beta_1: in [0, 1).
        beta_2: in [0, 1).
        epsilon: above 0.
        weight_decay_rate: at least 0.
        exclude_bias_and_norm: whether biases and normalisation get neither
            decay nor the ratio. Which those are, `ReSSL.compile` says;
            elsewhere they are the variables of rank 0 and 1.
        name: name of the optimiser.

    Raises:
        ValueError: for a value out of its range.

    Reference:
        You et al., Large Batch Optimization for Deep Learning, 2020,
        https://arxiv.org/abs/1904.00962, algorithm 2.
    """

    slot_names = ("mean", "mean_square")

    def __init__(
        self,
        learning_rate,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        weight_decay_rate=0.0,
        exclude_bias_and_norm=True,
        name="LAMB",
    ):
        super().__init__(learning_rate, name)
        checks.check_fraction("beta_1", beta_1)
        checks.check_fraction("beta_2", beta_2)
        if not epsilon > 0:
            raise ValueError(
                f"`epsilon` must be above 0. Received: epsilon={epsilon}"
            )
        checks.check_not_negative("weight_decay_rate", weight_decay_rate)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.weight_decay_rate = weight_decay_rate  # see `MomentumSGD`
        self.exclude_bias_and_norm = exclude_bias_and_norm

    def update(self, gradient, variable, slots, learning_rate, excluded):
        step = tf.cast(self.iterations, gradient.dtype) + 1.0
        moments = []
        for slot, beta, value in (
            (slots[0], self.beta_1, gradient),
            (slots[1], self.beta_2, tf.square(gradient)),
        ):
            moment = beta * tf.convert_to_tensor(slot) + (1.0 - beta) * value
            slot.assign(moment)
            moments.append(moment / (1.0 - tf.pow(beta, step)))
        mean, mean_square = moments
        update = mean / (tf.sqrt(mean_square) + self.epsilon)
        if not excluded:
            update += self.weight_decay_rate * tf.convert_to_tensor(variable)
            update *= _trust_ratio(variable, update)
        variable.assign_sub(learning_rate * update)

    def get_config(self):
        config = super().get_config()
        config.update(
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            weight_decay_rate=self.weight_decay_rate,
            exclude_bias_and_norm=self.exclude_bias_and_norm,
        )
        return config


def _trust_ratio(variable, update, trust=1.0):
    """trust |w| / |update|, or 1 if either norm is 0."""
    weight_norm = tf.norm(tf.convert_to_tensor(variable))
    update_norm = tf.norm(update)
    return tf.where(
        (weight_norm > 0) & (update_norm > 0),
        trust * tf.math.divide_no_nan(weight_norm, update_norm),
        1.0,
    )
