"""Classes of TensorFlow Addons, where it is installed."""

import inspect

import tensorflow as tf
from tensorflow import keras

PREFIX = "Addons>"


def find_class(name):
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
    short_name = name[len(PREFIX) :]
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
        f"`name` must be {PREFIX} and one of {', '.join(sorted(usable))}: "
        f"{reason}. Received: name={name!r}"
    )
