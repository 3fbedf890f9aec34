"""Batch normalisation when one batch is spread over several replicas.

Either all of the global batch shares one mean and variance, or it is split
into groups with statistics of their own. Split groups leak: images that share
statistics can be told apart from others, and if student and teacher group a
batch alike, the task can be solved by that. So the teacher's batch is permuted
across groups (`shuffle`): MoCo's shuffling BN, https://arxiv.org/abs/1911.05722,
section 3.3.
"""

import tensorflow as tf
from tensorflow import keras

from ressl_tf import distribute


@keras.utils.register_keras_serializable(package="ressl_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation of the global batch, however many replicas.

    In training, mean and (biased) variance are those of all B rows over all
    replicas: one exchange of 2 C numbers. (Keras' own synchronised layer makes
    three, forgets in Keras 2 to be synchronised when it is cloned, and rounds
    the statistics to half precision under a mixed policy in Keras 3.) With
    `splits`, the batch is cut into S consecutive groups of B / S rows with
    statistics of their own; R replicas hold S / R groups each. Either way the
    result does not depend on R.

    The moving statistics move once a step, by those of the batch, or by the
    mean over its groups. At inference the layer is Keras' own, and the weights
    are the same in the same order, so they can be handed from one to the other.
    Statistics are float32 whatever the compute dtype.

    Args:
        splits: None, or S, groups of the global batch: at least 1, a multiple
            of the number of replicas; it must divide the size of the batch.
            MoCo's is 8.
        axis: -1, the last: no other is supported.
        **kwargs: `momentum`, `epsilon`, `gamma_initializer` and so on of
            `keras.layers.BatchNormalization`.

    Raises:
        ValueError: if `splits` is smaller than 1, if an argument is given that
            this layer does not have; when called, if `splits` does not fit
            the replicas or the batch, or with a mask.
    """

    def __init__(self, splits=None, axis=-1, **kwargs):
        if splits is not None and splits < 1:
            raise ValueError(
                "`splits` must be at least 1: the groups of the global batch. "
                f"Received: splits={splits}"
            )
        if axis != -1:
            raise ValueError(
                "`axis` must be -1: all but the last axis are averaged over. "
                f"Received: axis={axis}"
            )
        for argument in ("synchronized", "renorm"):
            if kwargs.get(argument):
                raise ValueError(
                    f"`{argument}` must be False: that is Keras' own, and "
                    "statistics are those of the global batch anyway. "
                    f"Received: {argument}={kwargs[argument]}"
                )
        super().__init__(axis=axis, **kwargs)
        self.splits = splits

    def call(self, inputs, training=None, mask=None):
        """(b, ..., C) -> the same shape; b is the batch on this replica."""
        if not training or not self.trainable:
            return super().call(inputs, training=False)
        if mask is not None:
            raise ValueError(
                "`mask` must be None in training: padding would count as part "
                f"of the batch. Received: mask={mask}"
            )
        inputs = tf.cast(inputs, self.compute_dtype)
        if self.splits is None:
            return self._normalize_batch(inputs)
        return self._normalize_groups(inputs)

    def _normalize_batch(self, inputs):
        axes = list(range(len(inputs.shape) - 1))
        mean, variance = tf.nn.moments(tf.cast(inputs, tf.float32), axes)
        if distribute.num_replicas() > 1:
            # Those of the whole from those of equal parts. Relative to what
            # the mean was, or small variances were lost beside large means.
            origin = tf.convert_to_tensor(self.moving_mean)
            mean, mean_square = distribute.mean(
                [mean - origin, variance + tf.square(mean - origin)]
            )
            variance = tf.maximum(mean_square - tf.square(mean), 0.0)
            mean += origin
        self._move_statistics(mean, variance)
        return self._scale(inputs, mean, variance)

    def _normalize_groups(self, inputs):
        groups = _groups_per_replica(self.splits)
        _check_batch(inputs.shape[0], groups, self.splits)
        shape = tf.shape(inputs)
        # (b, ..., C) -> (groups, b / groups, ..., C)
        x = tf.reshape(inputs, tf.concat([[groups, -1], shape[1:]], axis=0))
        within = list(range(1, len(x.shape) - 1))
        means, variances = tf.nn.moments(
            tf.cast(x, tf.float32), within, keepdims=True
        )
        self._move_statistics(
            *distribute.mean(
                [
                    tf.reshape(tf.reduce_mean(moments, axis=0), [-1])
                    for moments in (means, variances)
                ]
            )
        )
        outputs = tf.reshape(self._scale(x, means, variances), shape)
        return tf.ensure_shape(outputs, inputs.shape)

    def _scale(self, x, mean, variance):
        return tf.nn.batch_normalization(
            x,
            mean,
            variance,
            tf.cast(self.beta, tf.float32) if self.center else None,
            tf.cast(self.gamma, tf.float32) if self.scale else None,
            self.epsilon,
        )

    def _move_statistics(self, mean, variance):
        """Updates the moving statistics by (C,) moments, alike on replicas."""
        for variable, new in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            old = tf.convert_to_tensor(variable)
            variable.assign(
                self.momentum * old
                + (1.0 - self.momentum) * tf.cast(new, old.dtype)
            )

    def get_config(self):
        config = super().get_config()
        # Keras 2 turns -1 into a list when it builds.
        config.update(axis=-1, splits=self.splits)
        return config


def convert_batch_norm(network, *, splits=None, momentum=0.9, epsilon=1e-5):
    """A copy of a network whose batch normalisation suits several replicas.

    For networks from elsewhere; `make_backbone` builds them so. To be called
    under the strategy's scope, so that the copy has its variables there:

        with strategy.scope():
            backbone = keras.applications.EfficientNetB0(
                include_top=False, pooling="avg", weights=None
            )
            backbone = ressl_tf.convert_batch_norm(backbone)

    Args:
        network: functional or built sequential `keras.Model`; models inside
            are converted, too.
        splits: as in `BatchNormalization`.
        momentum: weight of the old moving statistics, in [0, 1), or None to
            keep that of each layer (keras.applications: 0.99 or 0.999, for
            long training with large batches).
        epsilon: what is added to the variance, above 0, or None to keep that
            of each layer.

    Returns:
        A `keras.Model` of the same layers, names and weights, in the same
        order, which shares none of them with `network`.

    Raises:
        ValueError: if `network`, or a part of it that has batch
            normalisation, is not of the functional kind, or if an argument is
            out of its range.
    """
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(
            "`momentum` must be in [0, 1), or None to keep that of each "
            f"layer. Received: momentum={momentum}"
        )
    if epsilon is not None and not epsilon > 0:
        raise ValueError(
            "`epsilon` must be above 0, or None to keep that of each layer. "
            f"Received: epsilon={epsilon}"
        )

    def convert(config):
        if momentum is not None:
            config["momentum"] = momentum
        if epsilon is not None:
            config["epsilon"] = epsilon
        config.update(splits=splits, synchronized=False)
        return BatchNormalization(**config)

    return _replace_batch_norm(network, convert)


def plain_batch_norm(network):
    """A copy of a network whose batch normalisation is Keras' own again.

    For one device, and to be saved and loaded without ressl_tf. Arguments,
    results and errors are those of `convert_batch_norm`.
    """

    def convert(config):
        config.pop("splits", None)
        return keras.layers.BatchNormalization(**config)

    return _replace_batch_norm(network, convert)


def copy(network):
    """The same network with the same weights, sharing neither.

    What `keras.models.clone_model` and `set_weights` give, but that in Keras
    2 the configuration of a layer forgets that it is synchronised.

    Args:
        network: functional or built sequential `keras.Model`.

    Returns:
        A `keras.Model`.
    """
    return _rebuild(network, _same)


def check(networks):
    """Raises unless batch normalisation means the same in all networks.

    Frozen layers are passed over: they ignore the batch.

    Args:
        networks: list of `keras.Model`.

    Returns:
        S, the number of groups that the global batch is split into, or None
        if it is not.

    Raises:
        ValueError: if split and other layers are mixed, if the numbers of
            groups differ or are no multiple of the number of replicas, or if
            there are several replicas and a layer would silently have
            other statistics on each.
    """
    layers = [layer for layer in _batch_norms(networks) if layer.trainable]
    split = [layer for layer in layers if _splits(layer) is not None]
    if not split:
        _check_synchronized(layers)
        return None
    for layer in layers:
        if _splits(layer) != split[0].splits:
            raise ValueError(
                "All batch normalisation must split the batch alike: pass the "
                "same `bn_splits` to make_backbone, make_projector and "
                "make_predictor, or ressl_tf.convert_batch_norm(network, "
                "splits=...). "
                f"Received: splits={split[0].splits} of {split[0].name!r}, "
                f"splits={_splits(layer)} of {layer.name!r}"
            )
    _groups_per_replica(split[0].splits)
    return split[0].splits


def shuffle(images, seed):
    """Permutes the global batch, and gives the way back.

    The teacher's groups of images that share statistics then differ from the
    student's:

        shuffled, restore = batch_norm.shuffle(images, seed)
        embeddings = restore(teacher(shuffled, training=True))

    The permutation depends on `seed` and B alone, not on the number of
    replicas, and is the same inside and outside XLA.

    Args:
        images: (b, ...) rows, b on this replica, B over all: as many on each.
        seed: (2,) int32 or int64 tensor, the same on every replica: another
            one for each step.

    Returns:
        (shuffled, restore): this replica's part of the permuted global batch,
        (b, ...), and a function from (b, ...) rows that belong to `shuffled`
        to the (b, ...) that belong to `images`.
    """
    order = _permutation(
        tf.shape(images)[0] * distribute.num_replicas(), seed
    )  # (B,)

    def restore(rows):
        return _reorder(rows, tf.argsort(order))

    return _reorder(images, order), restore


def _reorder(rows, order):
    """This replica's rows of the global batch in another order."""
    taken = tf.gather(distribute.gather(rows), _own_part(order))
    # Gathering over replicas leaves not even the number of channels known.
    return tf.ensure_shape(taken, rows.shape)


def _permutation(size, seed):
    # Integers, and a named algorithm: other draws differ under XLA. So would
    # the order of equal draws, were the sort not stable.
    draws = tf.random.stateless_uniform(
        [size], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    return tf.argsort(draws, stable=True)


def _own_part(rows):
    """(B, ...), the same on every replica -> this replica's (b, ...)."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return rows
    parts = tf.reshape(rows, [context.num_replicas_in_sync, -1])
    return parts[context.replica_id_in_sync_group]


def _groups_per_replica(splits):
    replicas = distribute.num_replicas()
    if splits % replicas:
        multiple = splits + -splits % replicas
        raise ValueError(
            f"`splits` must be a multiple of the {replicas} replicas, such as "
            f"{multiple}: each normalises whole groups. "
            f"Received: splits={splits}"
        )
    return splits // replicas


def _check_batch(size, groups, splits):
    if size is not None and size % groups:
        raise ValueError(
            f"`splits` must divide the batch: the {size} rows of a replica "
            f"do not make {groups} equal groups. Change the batch size or "
            f"`splits`. Received: splits={splits}"
        )


def _check_synchronized(layers):
    if distribute.num_replicas() == 1:
        return
    for layer in layers:
        if not (isinstance(layer, BatchNormalization) or layer.synchronized):
            raise ValueError(
                f"Batch normalisation {layer.name!r} is not synchronised: its "
                "statistics would differ between the "
                f"{distribute.num_replicas()} replicas. Build the networks "
                "under the strategy's scope with make_backbone, or convert "
                "them there: ressl_tf.convert_batch_norm(network). "
                "Received: synchronized=False"
            )


def _splits(layer):
    return getattr(layer, "splits", None)  # Keras' own layer has none


def _check_holds_none(layer):
    # In Keras 3 a part of a network may be an operation, which holds nothing.
    inside = isinstance(layer, keras.layers.Layer) and _batch_norms([layer])
    if inside:
        raise ValueError(
            f"Batch normalisation {inside[0].name!r} cannot be converted: it "
            f"is part of the {type(layer).__name__} {layer.name!r}, and only "
            "functional and sequential models can be taken apart. Set "
            "synchronized=True where the layer is made. "
            f"Received: network with {layer.name!r}"
        )


def _batch_norms(networks):
    """All `BatchNormalization` layers, also those inside other layers."""
    return [
        layer
        for network in networks
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def _replace_batch_norm(network, convert):
    """A copy; `convert` makes a layer of the old one's configuration."""

    def replace(layer):
        if isinstance(layer, keras.layers.BatchNormalization):
            return convert(_config(layer))
        _check_holds_none(layer)
        return _same(layer)

    return _rebuild(network, replace)


def _rebuild(network, replace):
    """A copy of a functional network with the same weights.

    Args:
        network: functional or sequential `keras.Model`.
        replace: function from a layer that is no such model to its copy.

    Returns:
        A `keras.Model`.
    """
    if not _is_functional(network):
        raise ValueError(
            "`network` must be a functional or sequential keras.Model: the "
            "parts of another kind are not known. "
            f"Received: network={network!r}"
        )
    copies = {}  # a layer that is called twice stays one layer

    def rebuild(layer):
        if id(layer) not in copies:
            copies[id(layer)] = (
                keras.models.clone_model(layer, clone_function=rebuild)
                if _is_functional(layer)
                else replace(layer)
            )
        return copies[id(layer)]

    result = rebuild(network)
    result.set_weights(network.get_weights())
    return result


def _is_functional(layer):
    # The class is not public in Keras 3, and has no common base in Keras 2.
    names = [base.__name__ for base in type(layer).__mro__]
    return "Functional" in names or "Sequential" in names


def _same(layer):
    return type(layer).from_config(_config(layer))


def _config(layer):
    """Constructor arguments of a built layer."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        config["synchronized"] = layer.synchronized  # Keras 2 forgets it
        rank = layer.input_spec.ndim
        # 3 of (B, H, W, C), or [3] in Keras 2, is the last axis, too.
        if [axis % rank for axis in tf.nest.flatten(layer.axis)] == [rank - 1]:
            config["axis"] = -1
    return config
