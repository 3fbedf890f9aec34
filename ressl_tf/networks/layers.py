"""Layers as torch has them, and what the networks check alike."""

from tensorflow import keras

from ressl_tf.batch_norm import BatchNormalization


def conv(x, filters, kernel_size, strides, name):
    """A convolution without bias, padded symmetrically as torch's."""
    padding = kernel_size // 2
    if padding and strides > 1:
        # "same" would pad the far side alone at stride 2; torch pads both.
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}_pad")(x)
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        use_bias=False,
        kernel_initializer=he_normal_fan_out(),
        name=name,
    )(x)


def dense(units, name, **kwargs):
    """A linear layer that starts as torch's: uniform in 1 / sqrt(fan-in)."""
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.VarianceScaling(
            1 / 3, mode="fan_in", distribution="uniform"
        ),
        name=name,
        **kwargs,
    )


def batch_norm(name, splits, zero_gamma=False, epsilon=1e-5):
    """Batch normalisation of torch's momentum: 0.1 there is 0.9 here."""
    return BatchNormalization(
        splits=splits,
        momentum=0.9,
        epsilon=epsilon,
        gamma_initializer="zeros" if zero_gamma else "ones",
        name=name,
    )


def he_normal_fan_out():
    """The start of the convolutions of all backbones."""
    return keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )


def check_bn_splits(bn_splits):
    """Raises a ValueError unless it is None or at least 1."""
    if bn_splits is not None and bn_splits < 1:
        raise ValueError(
            "`bn_splits` must be at least 1, or None for statistics of the "
            f"whole batch. Received: bn_splits={bn_splits}"
        )
