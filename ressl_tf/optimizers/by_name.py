"""`make_optimizer`: the paper's optimisers, Keras' and Addons', by name."""

import inspect

from tensorflow import keras

from ressl_tf.optimizers import addons
from ressl_tf.optimizers import checks
from ressl_tf.optimizers.layerwise import LAMB
from ressl_tf.optimizers.layerwise import LARS
from ressl_tf.optimizers.sgd import MomentumSGD

OPTIMIZERS = {
    "sgd": MomentumSGD,
    "lars": LARS,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "lamb": LAMB,
}
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
    checks.check_fraction("momentum", momentum)
    checks.check_not_negative("weight_decay", weight_decay)
    if exclude_bias_and_norm not in (None, True, False):
        raise ValueError(
            "`exclude_bias_and_norm` must be True, False or None. "
            f"Received: exclude_bias_and_norm={exclude_bias_and_norm!r}"
        )
    from_addons = str(name).startswith(addons.PREFIX)
    if from_addons:
        optimizer_class = addons.find_class(name)
    elif name in OPTIMIZERS:
        optimizer_class = OPTIMIZERS[name]
    else:
        raise ValueError(
            f"`name` must be one of {', '.join(OPTIMIZERS)}, or "
            f"{addons.PREFIX}NAME; any Keras optimizer can be passed to "
            "`compile` instead. "
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
