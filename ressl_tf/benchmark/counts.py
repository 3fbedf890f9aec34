"""What a network costs, counted from its layers."""

import math

from tensorflow import keras

from ressl_tf.scaling import Network

# What a layer keeps for its gradient: its input, its output, or both.
_KEEPS_INPUT = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
    keras.layers.BatchNormalization,
    keras.layers.MaxPooling2D,
)
_KEEPS_OUTPUT = (keras.layers.ReLU, keras.layers.MaxPooling2D)


def count(network):
    """Parameters, operations and activations of a network.

    A multiplication and the addition that follows are two operations.
    Convolutions and dense layers are counted, the rest (below 1 % of a
    ResNet) is not. Activations are the values per image that
    backpropagation needs again: what enters a convolution, a dense layer, a
    batch normalisation or a max-pool, and what leaves a ReLU or a max-pool,
    each tensor once.

    Args:
        network: functional `keras.Model` with a fixed input size.

    Returns:
        A `scaling.Network`.

    Raises:
        ValueError: for an input size of None, or a layer with a kernel that
            is not a (depthwise) convolution or a dense layer.
    """
    if None in tuple(network.input_shape)[1:]:
        raise ValueError(
            "`network` must have a fixed input size to be counted: build it "
            "with (H, W, 3). "
            f"Received: input shape {network.input_shape}"
        )
    forward_flops = 0
    kept = {}
    bn_layers = bn_channels = 0
    for layer in _leaves(network):
        forward_flops += _flops(layer)
        if isinstance(layer, _KEEPS_INPUT):
            kept[id(layer.input)] = layer.input
        if isinstance(layer, _KEEPS_OUTPUT):
            kept[id(layer.output)] = layer.output
        if isinstance(layer, keras.layers.BatchNormalization):
            bn_layers += 1
            bn_channels += layer.output.shape[-1]
    trainable = sum(_size(v) for v in network.trainable_variables)
    return Network(
        parameters=trainable,
        forward_flops=float(forward_flops),
        activations=sum(_size(tensor) for tensor in kept.values()),
        bn_layers=bn_layers,
        bn_channels=bn_channels,
    )


def _leaves(network):
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _flops(layer):
    """Operations of one forward pass of one image."""
    kernels = [v for v in layer.trainable_variables if len(v.shape) > 1]
    if not kernels:
        return 0
    positions = _size(layer.output)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        height, width = layer.kernel_size
        return 2 * height * width * positions
    if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
        # (..., input channels, output channels)
        return 2 * math.prod(kernels[0].shape[:-1]) * positions
    raise ValueError(
        "Only convolutions and dense layers are counted. "
        f"Received: layer {layer.name!r} of type {type(layer).__name__}"
    )


def _size(tensor):
    """Number of values, of a batch of one."""
    return math.prod(size for size in tuple(tensor.shape) if size is not None)
