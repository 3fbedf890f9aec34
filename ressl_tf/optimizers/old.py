"""Optimisers by name: the paper's SGD and LARS, LAMB, Keras' and Addons'.

Keras' own SGD differs from torch's in two ways that matter to a recipe: its
`weight_decay` is decoupled from the gradient, and its momentum buffer holds
learning rate times gradient, so that a change of the learning rate acts
late. `MomentumSGD` and `LARS` are as torch has them.
"""

import inspect

import tensorflow as tf
from tensorflow import keras

from ressl_tf import keras_compat

# All of whose variables are normalisation (gamma, beta, scale).
NORMALIZATIONS = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",  # Keras 3 alone
        "UnitNormalization",
    )
    if hasattr(keras.layers, name)
)


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
        _check_fraction("momentum", momentum)
        _check_not_negative("l2", l2)
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
        _check_fraction("beta_1", beta_1)
        _check_fraction("beta_2", beta_2)
        if not epsilon > 0:
            raise ValueError(
                f"`epsilon` must be above 0. Received: epsilon={epsilon}"
            )
        _check_not_negative("weight_decay_rate", weight_decay_rate)
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


def bias_and_norm_variables(networks):
    """The biases and normalisation variables of networks, by their role.

    A bias is what a layer calls its `bias`, of whatever rank: that of
    attention has two. Of a normalisation layer it is every trainable variable.
    All others are not: kernels, embeddings, tokens, scales of other layers.

    Args:
        networks: list of built `keras.Model`.

    Returns:
        A list of variables.
    """
    found = []
    for network in networks:
        for layer in network._flatten_layers():
            if isinstance(layer, NORMALIZATIONS):
                found += layer.trainable_variables
            else:
                # Some layers call other things their bias.
                bias = getattr(layer, "bias", None)
                found += [
                    variable
                    for variable in layer.trainable_variables
                    if variable is bias
                ]
    return found


def exclude_by_role(optimizer, networks):
    """Leaves biases and normalisation out, if the optimiser asks for that.

    Those of `make_optimizer` ask by `exclude_bias_and_norm`; any other is left
    as it is. To be called before the optimiser is built.

    Args:
        optimizer: a Keras optimiser.
        networks: list of built `keras.Model`: what it trains.
    """
    optimizer = keras_compat.unwrapped(optimizer)
    if getattr(optimizer, "exclude_bias_and_norm", False):
        optimizer.exclude_from_weight_decay(
            var_list=bias_and_norm_variables(networks)
        )


OPTIMIZERS = {
    "sgd": MomentumSGD,
    "lars": LARS,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "lamb": LAMB,
}
ADDONS = "Addons>"
# What the classes call the two settings that `make_optimizer` has for all.
MOMENTUM = ("momentum", "beta_1", "beta1")
WEIGHT_DECAY = ("l2", "weight_decay", "weight_decay_rate")


def make_optimizer(
    name,
    learning_rate,
    *,
    momentum=0.9,
    weight_decay=0.0,
    exclude_bias_and_norm=None,
    **kwargs,
):
    """An optimiser by name.

    - sgd: `MomentumSGD`; weight decay is an L2 term in the gradient, of all
      variables by default.
    - lars: `LARS`; an L2 term in the gradient, never of biases and
      normalisation.
    - adam: Keras' `Adam`; no weight decay.
    - adamw: Keras' `AdamW`; decoupled, times the learning rate; not of biases
      and normalisation by default.
    - lamb: `LAMB`; in the update before its ratio; not of biases and
      normalisation by default, which then have no ratio either.
    - Addons>NAME: TensorFlow Addons' class, with what it has, of all variables.
      The decay of its SGDW and AdamW is decoupled and not times the learning
      rate: it has to be that much smaller, and does not fall with a schedule.

    `ReSSL.compile` tells the optimiser which variables are biases and
    normalisation, by their role. Used without `ReSSL`, sgd, lars and lamb take
    the variables of rank 0 and 1 for them; adamw has to be told by Keras'
    `exclude_from_weight_decay`, which its `get_config` does not keep.

    Args:
        name: "sgd", "lars", "adam", "adamw", "lamb", or the name that
            TensorFlow Addons registers, as "Addons>NovoGrad".
        learning_rate: float above 0 or a `LearningRateSchedule`.
        momentum: in [0, 1); beta_1 of adam, adamw and lamb.
        weight_decay: at least 0; what it means, see above.
        exclude_bias_and_norm: whether biases and normalisation are left out;
            None for the optimiser's own custom. LARS has no other way than
            True, Addons none by their role: give its class
            `exclude_from_weight_decay`, a list of patterns of names.
        **kwargs: the class's other arguments.

    Returns:
        A Keras optimiser.

    Raises:
        ValueError: for an unknown name or argument, a value out of its range
            or one that this optimiser cannot have.
    """
    _check_fraction("momentum", momentum)
    _check_not_negative("weight_decay", weight_decay)
    if exclude_bias_and_norm not in (None, True, False):
        raise ValueError(
            "`exclude_bias_and_norm` must be True, False or None. "
            f"Received: exclude_bias_and_norm={exclude_bias_and_norm!r}"
        )
    from_addons = str(name).startswith(ADDONS)
    if from_addons:
        optimizer_class = _addons_class(name)
    elif name in OPTIMIZERS:
        optimizer_class = OPTIMIZERS[name]
    else:
        raise ValueError(
            f"`name` must be one of {', '.join(OPTIMIZERS)}, or {ADDONS}NAME; "
            "any Keras optimizer can be passed to `compile` instead. "
            f"Received: name={name!r}"
        )
    if name == "adam" and weight_decay:
        raise ValueError(
            "`weight_decay` must be 0 for adam, whose steps would rescale it; "
            "use adamw. "
            f"Received: weight_decay={weight_decay}"
        )
    if name == "lars" and exclude_bias_and_norm is False:
        raise ValueError(
            "`exclude_bias_and_norm` must be True or None for lars, which is "
            "defined without them; use sgd or lamb. "
            "Received: exclude_bias_and_norm=False"
        )
    if from_addons and exclude_bias_and_norm:
        raise ValueError(
            "`exclude_bias_and_norm` must be False or None for an optimizer "
            "of Addons, which knows variables by their names alone; give "
            'exclude_from_weight_decay=["bias", "gamma", "beta"], which LAMB, '
            "SGDW and AdamW have. "
            f"Received: exclude_bias_and_norm=True, name={name!r}"
        )
    shared = [("momentum", momentum, 0.9, MOMENTUM)]
    if name != "adam":
        shared.append(("weight_decay", weight_decay, 0.0, WEIGHT_DECAY))
    arguments = _translate(name, optimizer_class, shared, kwargs)
    if exclude_bias_and_norm is not None and name in ("sgd", "lamb"):
        arguments["exclude_bias_and_norm"] = exclude_bias_and_norm
    try:
        optimizer = optimizer_class(
            learning_rate=learning_rate, **arguments, **kwargs
        )
    except TypeError as error:
        raise ValueError(
            f"Optimizer {name!r} was given an argument that it does not "
            f"have: {error}. Received: {kwargs}"
        ) from error
    if name == "adamw":
        # For `exclude_by_role`; Keras' class has no argument of this.
        optimizer.exclude_bias_and_norm = exclude_bias_and_norm is not False
    return optimizer


def _translate(name, optimizer_class, shared, kwargs):
    """The settings that `make_optimizer` has for all, as the class has them.

    Args:
        name: of the optimiser.
        optimizer_class: its class.
        shared: list of (setting, value, default, what classes may call it).
        kwargs: the class's other arguments.

    Returns:
        A dict of keyword arguments.
    """
    parameters = inspect.signature(optimizer_class).parameters
    arguments = {}
    for setting, value, default, names in shared:
        found = [each for each in names if each in parameters]
        if found:
            arguments[found[0]] = float(value)  # Addons takes no integers
        elif value != default:
            raise ValueError(
                f"`{setting}` must be left at {default} for {name}, which has "
                f"none. Received: {setting}={value}"
            )
        for each in found:
            if each in kwargs:
                raise ValueError(
                    f"`{each}` must not be given: `{setting}` is the name for "
                    f"it here. Received: {each}={kwargs[each]!r}"
                )
    return arguments


def _addons_class(name):
    """A class of TensorFlow Addons by the name that it is registered by."""
    try:
        # Imported here: it says on import that it has ended.
        import tensorflow_addons
    except ImportError as error:
        raise ValueError(
            f"`name` {name!r} needs TensorFlow 2.15 with TensorFlow Addons: "
            'pip install "ressl-tf[addons]", on Python up to 3.11. Addons '
            "ended in May 2024 and cannot be imported beside TensorFlow 2.16 "
            "or later. "
            f"Received: name={name!r}, TensorFlow {tf.__version__}"
        ) from error
    parameters = {
        each: inspect.signature(optimizer_class).parameters
        for each, optimizer_class in vars(tensorflow_addons.optimizers).items()
        if inspect.isclass(optimizer_class)
        and issubclass(optimizer_class, keras.optimizers.legacy.Optimizer)
        and optimizer_class.__module__.startswith("tensorflow_addons")
    }
    wrappers = [
        each
        for each, arguments in parameters.items()
        if {"optimizer", "optimizers_and_layers"} & set(arguments)
    ]
    usable = [
        each
        for each, arguments in parameters.items()
        if "learning_rate" in arguments and each not in wrappers
    ]
    short_name = name[len(ADDONS) :]
    if short_name in usable:
        return getattr(tensorflow_addons.optimizers, short_name)
    if short_name in wrappers:
        reason = (
            f"{short_name} wraps other optimizers, which a name does not give,"
            " and cannot make their variables on several replicas"
        )
    elif short_name in parameters:
        reason = f"{short_name} has no learning rate that a schedule could set"
    else:
        reason = "there is no such optimizer in Addons"
    raise ValueError(
        f"`name` must be {ADDONS} and one of {', '.join(sorted(usable))}: "
        f"{reason}. Received: name={name!r}"
    )


def _check_fraction(argument, value):
    if not 0 <= value < 1:
        raise ValueError(
            f"`{argument}` must be in [0, 1). Received: {argument}={value}"
        )


def _check_not_negative(argument, value):
    if not value >= 0:
        raise ValueError(
            f"`{argument}` must be at least 0. Received: {argument}={value}"
        )
