"""What differs between Keras 3, Keras 2 and Keras 2.15, each with its reason.

All other modules use `tf.keras` as `from tensorflow import keras`; TensorFlow
decides (`TF_USE_LEGACY_KERAS`) which generation that is.
"""

from importlib import metadata

import tensorflow as tf
from tensorflow import keras

# `keras.ops` exists in Keras 3 alone; `keras.__version__` not in every one.
KERAS_3 = hasattr(keras, "ops")

# Keyword arguments of `add_weight` for state that every replica computes
# alike (the queue, counters). Each generation rejects the other's spelling of
# the aggregation, and under mixed precision both would otherwise hand the
# variable out in half precision.
if KERAS_3:
    STATE_WEIGHT = {"aggregation": "only_first_replica", "autocast": False}
else:
    STATE_WEIGHT = {
        "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        "experimental_autocast": False,
    }


def version():
    """Keras' version."""
    # Keras 2 has no `__version__` where TensorFlow shows it.
    found = getattr(keras, "__version__", None)
    if found is None:
        is_own = keras.__name__.startswith("tf_keras")
        found = metadata.version("tf-keras" if is_own else "keras")
    return found


def tf_variable(variable):
    """The `tf.Variable` behind a Keras variable; Keras 2's is one itself."""
    return variable.value if KERAS_3 else variable


def scale_loss(optimizer, loss):
    """The loss to differentiate: scaled where float16 needs it."""
    if hasattr(optimizer, "scale_loss"):  # Keras 3: every optimizer
        return optimizer.scale_loss(loss)
    if hasattr(optimizer, "get_scaled_loss"):  # Keras 2: LossScaleOptimizer
        return optimizer.get_scaled_loss(loss)
    return loss


def unscale_gradients(optimizer, gradients):
    """Undoes `scale_loss`; Keras 3 does so inside `apply_gradients`."""
    if hasattr(optimizer, "get_unscaled_gradients"):
        return optimizer.get_unscaled_gradients(gradients)
    return gradients


class Model(keras.Model):
    """A built model whose `fit` runs `train_step` under every strategy.

    `train_step` returns what is the same on every replica.

    Keras 3's own `fit` draws a batch to build what is built already, which
    fails on the parts of a batch that several workers hold; it averages
    scalars of several workers along an axis that they do not have; and under
    XLA it compiles the exchange between replicas along with the step. Keras 2
    has none of this.
    """

    if KERAS_3:

        def _maybe_symbolic_build(self, *args, **kwargs):
            pass

        def make_train_function(self, force=False):
            if self.train_function is not None and not force:
                return
            strategy = self.distribute_strategy
            replica_step = self.train_step
            if self.jit_compile and not self.run_eagerly:
                replica_step = tf.function(
                    replica_step, jit_compile=True, autograph=False
                )

            # As Keras' own: conversion takes seconds, and nothing needs it.
            @tf.autograph.experimental.do_not_convert
            def one_step(batch):
                logs = strategy.run(replica_step, args=(batch,))
                return {
                    name: strategy.experimental_local_results(value)[0]
                    for name, value in logs.items()
                }

            # A function of its own: it is traced once, wherever it is called.
            if not self.run_eagerly:
                one_step = tf.function(one_step, reduce_retracing=True)

            def train_function(iterator):
                for _ in tf.range(self.steps_per_execution - 1):
                    one_step(next(iterator))
                return one_step(next(iterator))

            if not self.run_eagerly:
                train_function = tf.function(
                    train_function, reduce_retracing=True
                )
            self.train_function = train_function


def unwrapped(optimizer):
    """The optimiser itself, where float16's loss scaling wraps it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def build(optimizer, variables):
    """Makes an optimiser's variables before the first step.

    Slots that are made inside a replica's trace would belong to that replica
    alone.
    """
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
    elif optimizer is not None:
        # Addons' are of Keras' oldest kind, which makes its slots by itself.
        # Reading one of its settings makes the variables of all: made later,
        # from a checkpoint that waits for them, NovoGrad's bool is taken for
        # a float.
        unwrapped(optimizer).learning_rate  # noqa: B018


class Optimizer(keras.optimizers.Optimizer):
    """An optimiser of `update_step(gradient, variable, learning_rate)`.

    Subclasses define `slot_names` and `update(gradient, variable, slots,
    learning_rate, excluded)`, in plain TensorFlow; this class hides that the
    generations differ in the constructor, in how slots are looked up and in
    the arguments of `update_step`.

    `excluded` says whether weight decay, and a trust ratio, leave the variable
    out: those given to `exclude_from_weight_decay` are left out. Without that
    call an optimiser whose `exclude_bias_and_norm` is True takes the variables
    of rank 0 and 1 for biases and normalisation.
    """

    slot_names = ()
    exclude_bias_and_norm = False

    def __init__(self, learning_rate, name):
        if KERAS_3:
            super().__init__(learning_rate=learning_rate, name=name)
        else:
            super().__init__(name=name)
            self._learning_rate = self._build_learning_rate(learning_rate)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Keras' method of this name; to be called before `build`.

        Args:
            var_list: variables to leave out, instead of any other rule.
            var_names: must not be given.

        Raises:
            ValueError: for `var_names`, or if the optimiser is built.
        """
        if var_names:
            raise ValueError(
                "`var_names` must not be given: what a variable is called says "
                "little about what it is. Give the variables as `var_list`. "
                f"Received: var_names={var_names!r}"
            )
        super().exclude_from_weight_decay(var_list=var_list)
        # Not the variables: they would become part of every checkpoint.
        self._excluded_ids = frozenset(id(each) for each in var_list or ())

    def build(self, variables):
        if getattr(self, "_slots", None) is not None:
            return
        super().build(variables)
        self._slots = [
            [
                # Positional: the keywords have other names in Keras 2.
                self.add_variable_from_reference(variable, slot_name)
                for variable in variables
            ]
            for slot_name in self.slot_names
        ]
        # By index: under a strategy, `update_step` gets other objects.
        self._excluded = frozenset(
            index
            for index, variable in enumerate(variables)
            if self._is_excluded(variable)
        )
        self._built = True

    def _is_excluded(self, variable):
        excluded_ids = getattr(self, "_excluded_ids", None)
        if excluded_ids is not None:
            return id(variable) in excluded_ids
        return self.exclude_bias_and_norm and len(variable.shape) <= 1

    def update_step(self, gradient, variable, learning_rate=None):
        if KERAS_3:
            index = self._get_variable_index(variable)
        else:
            learning_rate = self.learning_rate
            index = self._index_dict[self._var_key(variable)]
        self.update(
            tf.convert_to_tensor(gradient),
            variable,
            [slots[index] for slots in self._slots],
            tf.cast(learning_rate, variable.dtype),
            index in self._excluded,
        )

    def get_config(self):
        # The base's own entries (clipping, decoupled decay, averaging) are
        # not arguments of these classes.
        if KERAS_3:
            base = super().get_config()
            return {key: base[key] for key in ("name", "learning_rate")}
        return {
            "name": self.name,
            "learning_rate": self._serialize_hyperparameter(
                self._learning_rate
            ),
        }
