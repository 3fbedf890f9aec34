"""EfficientNet and MobileNetV3: those of keras.applications, adapted.

What changes: batch normalisation is ours, with momentum 0.9; the networks'
own rescaling, their classifier and all dropout go; convolutions start from
He's normal over the fan-out, as those of the ResNets; "same" padding takes
the place of the explicit one, which keras.applications works out for one
image size. Epsilon stays 1e-3, which TensorFlow's weights are trained with.
"""

from tensorflow import keras

from ressl_tf.networks import layers

# Not `include_top`: MobileNetV3's hidden layer of 1280 is part of that, and
# torchvision counts it as the classifier's, too.
_COMMON = {
    "include_top": False,
    "weights": None,
    "input_shape": (None, None, 3),
}
LIGHT = {
    "efficientnet_b0": lambda: keras.applications.EfficientNetB0(**_COMMON),
    "efficientnet_b1": lambda: keras.applications.EfficientNetB1(**_COMMON),
    "mobilenetv3_large": lambda: keras.applications.MobileNetV3Large(
        include_preprocessing=False, **_COMMON
    ),
}
PUBLISHED_WIDTH = 64  # that of the ResNets: `width` of the published networks
_STRIDES_TAKEN = {"imagenet": 0, "small": 1, "cifar": 2}
_LEFT_OUT = (
    keras.layers.Rescaling,
    keras.layers.Normalization,
    keras.layers.Dropout,
    keras.layers.ZeroPadding2D,
)


def features(name, images, *, stem, width, bn_splits=None):
    """The tensor before the average pooling; arguments: `make_backbone`."""
    published = LIGHT[name]()
    strided = [layer.name for layer in published.layers if _is_strided(layer)]
    unstrided = strided[: _STRIDES_TAKEN[stem]]

    def scaled(channels):
        # Multiples of 8, as the networks' authors have it.
        eighths = int(channels * width / PUBLISHED_WIDTH / 8 + 0.5)
        return channels if width == PUBLISHED_WIDTH else 8 * max(eighths, 1)

    def adapt(layer):
        config = layer.get_config()
        if isinstance(layer, _LEFT_OUT):
            return keras.layers.Identity(name=layer.name)
        if isinstance(layer, keras.layers.BatchNormalization):
            return layers.batch_norm(
                _plain(layer.name), bn_splits, epsilon=layer.epsilon
            )
        if _is_convolution(layer):
            config.update(name=_plain(layer.name), padding="same")
            if layer.name in unstrided:
                config["strides"] = (1, 1)
            for key in ("kernel_initializer", "depthwise_initializer"):
                if config.get(key):
                    config[key] = layers.he_normal_fan_out()
            if config.get("filters"):
                config["filters"] = scaled(config["filters"])
        if isinstance(layer, keras.layers.Reshape):
            *ones, channels = config["target_shape"]
            config["target_shape"] = (*ones, scaled(channels))
        return type(layer).from_config(config)

    return keras.models.clone_model(
        published, input_tensors=images, clone_function=adapt
    ).output


def _is_convolution(layer):
    return isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)


def _is_strided(layer):
    return _is_convolution(layer) and layer.strides[0] > 1


def _plain(name):
    """One name in all generations: Keras 2's is "Conv/BatchNorm", say."""
    return name.lower().replace("/", "_").replace("batchnorm", "bn")
