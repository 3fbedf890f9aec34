"""Backbones, projector and predictor.

ResNets are torchvision's, layer for layer: the stride sits in the 3x3
convolution, padding is explicit and symmetric, batch normalisation has
epsilon 1e-5 and momentum 0.9 (0.1 in torch terms), convolutions start from
He's normal over the fan-out. What `make_backbone` returns maps normalised
images to average-pooled features.
"""

from tensorflow import keras

from ressl_tf.batch_norm import BatchNormalization

# name -> (kind of block, blocks per stage)
RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
STEMS = ("imagenet", "small", "cifar")
BOTTLENECK_EXPANSION = 4


def make_backbone(
    name,
    input_shape=(32, 32, 3),
    stem="cifar",
    width=64,
    zero_init_last_gamma=False,
    bn_splits=None,
):
    """A ResNet without its classifier.

    Args:
        name: one of "resnet18", "resnet34", "resnet50".
        input_shape: (H, W, 3) of the images; H and W may be None.
        stem: "imagenet" (7x7 convolution of stride 2, max-pool), "small"
            (3x3 of stride 1, max-pool: the paper's STL-10 and Tiny ImageNet)
            or "cifar" (3x3 of stride 1, no max-pool).
        width: channels of the first stage, at least 1; the paper's networks
            have 64. All other widths follow by doubling. Below 16, training
            at 64 pixels and more ends TensorFlow 2.21 on a CPU: its oneDNN
            convolutions overrun their memory (TF_ENABLE_ONEDNN_OPTS=0 avoids
            it).
        zero_init_last_gamma: whether each block starts as the identity.
        bn_splits: S, at least 1: batch normalisation by S groups of the
            global batch (`batch_norm.BatchNormalization`), or None for
            statistics of the whole global batch.

    Returns:
        A functional `keras.Model` from (B, H, W, 3) to (B, C) features, C = 8
        width for "resnet18" and "resnet34", 32 width for "resnet50".

    Raises:
        ValueError: for an unknown name or stem, or a width or `bn_splits` below
            1.
    """
    if name not in RESNETS:
        raise ValueError(
            f"`name` must be one of {', '.join(RESNETS)}; any other network "
            "can be passed to `ReSSL` as a keras.Model. "
            f"Received: name={name!r}"
        )
    if stem not in STEMS:
        raise ValueError(
            f"`stem` must be one of {', '.join(STEMS)}. Received: stem={stem!r}"
        )
    if width < 1:
        raise ValueError(
            "`width` must be at least 1 (the paper's networks: 64). "
            f"Received: width={width}"
        )
    _check_bn_splits(bn_splits)
    kind, blocks_per_stage = RESNETS[name]
    block = {"basic": _basic_block, "bottleneck": _bottleneck_block}[kind]

    images = keras.Input(input_shape, name="images")
    x = _stem(images, stem, width, bn_splits)
    for stage, num_blocks in enumerate(blocks_per_stage):
        for index in range(num_blocks):
            x = block(
                x,
                filters=width * 2**stage,
                strides=2 if stage > 0 and index == 0 else 1,
                zero_init_last_gamma=zero_init_last_gamma,
                bn_splits=bn_splits,
                name=f"layer{stage + 1}_{index}",
            )
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(images, features, name=name)


def make_projector(
    input_dim,
    hidden_dim=2048,
    output_dim=128,
    batch_norm=True,
    name="projector",
    bn_splits=None,
):
    """A perceptron with one hidden layer: the paper's g.

    Args:
        input_dim: number of features of the backbone.
        hidden_dim: width of the hidden layer.
        output_dim: D, embedding size.
        batch_norm: whether the hidden layer is batch-normalised.
        name: name of the model.
        bn_splits: as in `make_backbone`.

    Returns:
        A `keras.Model` from (B, input_dim) to (B, D). Its output is float32
        under every precision policy.

    Raises:
        ValueError: if a dimension or `bn_splits` is smaller than 1.
    """
    for argument, value in (
        ("input_dim", input_dim),
        ("hidden_dim", hidden_dim),
        ("output_dim", output_dim),
    ):
        if value < 1:
            raise ValueError(
                f"`{argument}` must be at least 1. Received: {argument}={value}"
            )
    _check_bn_splits(bn_splits)
    inputs = keras.Input((input_dim,), name="inputs")
    x = _dense(hidden_dim, use_bias=not batch_norm, name="hidden")(inputs)
    if batch_norm:
        x = _batch_norm("hidden_bn", bn_splits)(x)
    x = keras.layers.ReLU(name="hidden_relu")(x)
    x = _dense(output_dim, dtype="float32", name="output")(x)
    return keras.Model(inputs, x, name=name)


def make_predictor(
    dim=128,
    hidden_dim=2048,
    batch_norm=True,
    name="predictor",
    bn_splits=None,
):
    """A perceptron from embedding to embedding: the paper's q.

    Args:
        dim: D, embedding size.
        hidden_dim: width of the hidden layer.
        batch_norm: whether the hidden layer is batch-normalised.
        name: name of the model.
        bn_splits: as in `make_backbone`.

    Returns:
        A `keras.Model` from (B, D) to (B, D), float32.

    Raises:
        ValueError: if a dimension or `bn_splits` is smaller than 1.
    """
    return make_projector(dim, hidden_dim, dim, batch_norm, name, bn_splits)


def _stem(x, stem, width, bn_splits):
    if stem == "imagenet":
        x = _conv(x, width, 7, 2, name="stem_conv")
    else:
        x = _conv(x, width, 3, 1, name="stem_conv")
    x = _batch_norm("stem_bn", bn_splits)(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    if stem != "cifar":
        # Zeros are as good as torch's minus infinity: after ReLU nothing is
        # smaller.
        x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    return x


def _basic_block(x, filters, strides, zero_init_last_gamma, bn_splits, name):
    shortcut = _shortcut(x, filters, strides, bn_splits, name)
    x = _conv(x, filters, 3, strides, name=f"{name}_conv1")
    x = _batch_norm(f"{name}_bn1", bn_splits)(x)
    x = keras.layers.ReLU(name=f"{name}_relu1")(x)
    x = _conv(x, filters, 3, 1, name=f"{name}_conv2")
    x = _batch_norm(f"{name}_bn2", bn_splits, zero_init_last_gamma)(x)
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu2")(x)


def _bottleneck_block(
    x, filters, strides, zero_init_last_gamma, bn_splits, name
):
    shortcut = _shortcut(
        x, filters * BOTTLENECK_EXPANSION, strides, bn_splits, name
    )
    x = _conv(x, filters, 1, 1, name=f"{name}_conv1")
    x = _batch_norm(f"{name}_bn1", bn_splits)(x)
    x = keras.layers.ReLU(name=f"{name}_relu1")(x)
    x = _conv(x, filters, 3, strides, name=f"{name}_conv2")
    x = _batch_norm(f"{name}_bn2", bn_splits)(x)
    x = keras.layers.ReLU(name=f"{name}_relu2")(x)
    x = _conv(x, filters * BOTTLENECK_EXPANSION, 1, 1, name=f"{name}_conv3")
    x = _batch_norm(f"{name}_bn3", bn_splits, zero_init_last_gamma)(x)
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu3")(x)


def _shortcut(x, filters, strides, bn_splits, name):
    if strides == 1 and x.shape[-1] == filters:
        return x
    x = _conv(x, filters, 1, strides, name=f"{name}_shortcut_conv")
    return _batch_norm(f"{name}_shortcut_bn", bn_splits)(x)


def _conv(x, filters, kernel_size, strides, name):
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
        kernel_initializer=_he_normal_fan_out(),
        name=name,
    )(x)


def _dense(units, name, **kwargs):
    # torch's default for linear layers: uniform within 1 / sqrt(fan-in).
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.VarianceScaling(
            1 / 3, mode="fan_in", distribution="uniform"
        ),
        name=name,
        **kwargs,
    )


def _batch_norm(name, bn_splits, zero_gamma=False):
    return BatchNormalization(
        splits=bn_splits,
        momentum=0.9,
        epsilon=1e-5,
        gamma_initializer="zeros" if zero_gamma else "ones",
        name=name,
    )


def _check_bn_splits(bn_splits):
    if bn_splits is not None and bn_splits < 1:
        raise ValueError(
            "`bn_splits` must be at least 1, or None for statistics of the "
            f"whole batch. Received: bn_splits={bn_splits}"
        )


def _he_normal_fan_out():
    return keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )
