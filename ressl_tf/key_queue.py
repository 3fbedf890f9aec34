"""The memory queue: a ring buffer of the teacher's past embeddings."""

import tensorflow as tf
from tensorflow import keras

from ressl_tf import distribute
from ressl_tf import keras_compat
from ressl_tf import losses


@keras.utils.register_keras_serializable(package="ressl_tf")
class KeyQueue(keras.layers.Layer):
    """A first-in first-out ring buffer of unit vectors.

    A layer, so that keys and pointer are part of every checkpoint and weight
    file of the model that holds it. It starts with random unit vectors.

    Attributes:
        keys: (K, D) float32 variable; each row has length 1.
        pointer: () int64 variable: the row that is overwritten next.

    Args:
        size: K, number of keys, at least 1.
        dim: D, embedding size, at least 1.
        seed: int; the same seed gives the same initial keys.

    Raises:
        ValueError: if `size` or `dim` is smaller than 1.
    """

    def __init__(self, size, dim, *, seed=0, name="queue", **kwargs):
        super().__init__(name=name, **kwargs)
        for argument, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(
                    f"`{argument}` must be at least 1. "
                    f"Received: {argument}={value}"
                )
        self.size = int(size)
        self.dim = int(dim)
        self.seed = int(seed)
        self.keys = self.add_weight(
            name="keys",
            shape=(self.size, self.dim),
            dtype="float32",
            initializer=self._random_unit_vectors,
            trainable=False,
            **keras_compat.STATE_WEIGHT,
        )
        self.pointer = self.add_weight(
            name="pointer",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            **keras_compat.STATE_WEIGHT,
        )
        self.built = True

    def enqueue(self, keys):
        """Overwrites the oldest rows with new keys, in order.

        Under a strategy each replica passes its part of the batch; the parts
        are gathered in replica order, so that every replica's copy of the
        queue stays the same. Of a batch larger than the queue the last K keys
        remain, as if the keys had come one by one.

        Args:
            keys: (B, D) embeddings, normalised here; B on this replica.
        """
        keys = distribute.gather(losses.normalize(keys))
        batch = tf.shape(keys, out_type=tf.int64)[0]
        kept = keys[-self.size :]
        first = batch - tf.shape(kept, out_type=tf.int64)[0]
        pointer = tf.convert_to_tensor(self.pointer)
        rows = (pointer + tf.range(first, batch)) % self.size

        def write(variable, rows_and_keys):
            rows, keys = rows_and_keys
            variable.assign(
                tf.tensor_scatter_nd_update(
                    tf.convert_to_tensor(variable), rows[:, None], keys
                )
            )

        # Not a plain assign: that would send the first replica's whole queue
        # to all others.
        distribute.update_variables(
            write, [keras_compat.tf_variable(self.keys)], [(rows, kept)]
        )
        self.pointer.assign((pointer + batch) % self.size)

    def get_config(self):
        config = super().get_config()
        config.update(size=self.size, dim=self.dim, seed=self.seed)
        return config

    def _random_unit_vectors(self, shape, dtype=None):
        normal = tf.random.stateless_normal(shape, seed=(self.seed, 0))
        return losses.normalize(normal)
