"""ResNets, torchvision's layer for layer.

The stride sits in the 3x3 convolution, padding is explicit and symmetric,
batch normalisation has epsilon 1e-5 and momentum 0.9 (0.1 in torch terms),
convolutions start from He's normal over the fan-out.
"""

from typing import NamedTuple

from tensorflow import keras

from ressl_tf.networks import layers

BOTTLENECK_EXPANSION = 4


class Architecture(NamedTuple):
    """What tells one ResNet from another."""

    block: str  # "basic" or "bottleneck"
    depths: tuple  # blocks of each stage
    inner: int = 1  # factor of a bottleneck's inner width


RESNETS = {
    "resnet18": Architecture("basic", (2, 2, 2, 2)),
    "resnet34": Architecture("basic", (3, 4, 6, 3)),
    "resnet50": Architecture("bottleneck", (3, 4, 6, 3)),
    "resnet101": Architecture("bottleneck", (3, 4, 23, 3)),
    "resnet152": Architecture("bottleneck", (3, 8, 36, 3)),
    "wide_resnet50_2": Architecture("bottleneck", (3, 4, 6, 3), inner=2),
    "wide_resnet101_2": Architecture("bottleneck", (3, 4, 23, 3), inner=2),
}


def features(
    name, images, *, stem, width, bn_splits=None, zero_init_last_gamma=False
):
    """The tensor before the average pooling; arguments: `make_backbone`."""
    block, depths, inner = RESNETS[name]
    x = _stem(images, stem, width, bn_splits)
    for stage, num_blocks in enumerate(depths):
        filters = width * 2**stage
        if block == "basic":
            convolutions = ((3, filters), (3, filters))
        else:
            convolutions = (
                (1, filters * inner),
                (3, filters * inner),
                (1, filters * BOTTLENECK_EXPANSION),
            )
        for index in range(num_blocks):
            x = _block(
                x,
                convolutions,
                strides=2 if stage > 0 and index == 0 else 1,
                zero_init_last_gamma=zero_init_last_gamma,
                bn_splits=bn_splits,
                name=f"layer{stage + 1}_{index}",
            )
    return x


def _stem(x, stem, width, bn_splits):
    if stem == "imagenet":
        x = layers.conv(x, width, 7, 2, name="stem_conv")
    else:
        x = layers.conv(x, width, 3, 1, name="stem_conv")
    x = layers.batch_norm("stem_bn", bn_splits)(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    if stem != "cifar":
        # Zeros are as good as torch's minus infinity: after ReLU nothing is
        # smaller.
        x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    return x


def _block(x, convolutions, strides, zero_init_last_gamma, bn_splits, name):
    """(kernel size, filters) in a row, batch-normalised, and a shortcut."""
    last = len(convolutions)
    shortcut = _shortcut(x, convolutions[-1][1], strides, bn_splits, name)
    for number, (kernel_size, filters) in enumerate(convolutions, start=1):
        if kernel_size == 3:  # the first of them takes all of the stride
            own_strides, strides = strides, 1
        else:
            own_strides = 1
        x = layers.conv(
            x, filters, kernel_size, own_strides, name=f"{name}_conv{number}"
        )
        x = layers.batch_norm(
            f"{name}_bn{number}",
            bn_splits,
            zero_gamma=zero_init_last_gamma and number == last,
        )(x)
        if number < last:
            x = keras.layers.ReLU(name=f"{name}_relu{number}")(x)
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu{last}")(x)


def _shortcut(x, filters, strides, bn_splits, name):
    if strides == 1 and x.shape[-1] == filters:
        return x
    x = layers.conv(x, filters, 1, strides, name=f"{name}_shortcut_conv")
    return layers.batch_norm(f"{name}_shortcut_bn", bn_splits)(x)
