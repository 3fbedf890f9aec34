"""Backbones by name."""

from tensorflow import keras

from ressl_tf.networks import layers
from ressl_tf.networks import light
from ressl_tf.networks import resnet

STEMS = ("imagenet", "small", "cifar")


def make_backbone(
    name,
    input_shape=(32, 32, 3),
    stem="cifar",
    width=64,
    zero_init_last_gamma=False,
    bn_splits=None,
):
    """A network without its classifier, by name.

    ResNets are torchvision's, the others those of keras.applications without
    rescaling and dropout (`networks.resnet` and `networks.light` say how they
    are built); all have the published number of parameters.

    Args:
        name: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
            "wide_resnet50_2" or "wide_resnet101_2" (the 3x3 convolutions of
            double width), "efficientnet_b0", "efficientnet_b1" or
            "mobilenetv3_large".
        input_shape: (H, W, 3) of the images; H and W may be None.
        stem: "imagenet" for the published network; "small" has its first
            convolution at stride 1, a ResNet's with a 3x3 kernel (the paper's
            STL-10 and Tiny ImageNet); "cifar" also leaves out the second
            reduction, a ResNet's max-pool. Features are then 1/32, 1/16 and
            1/8 of the image's height and width before they are averaged.
        width: channels of a ResNet's first stage; all others follow by
            doubling. 64 is the published network (128 is known as ResNet-50
            x2); the light networks' widths, multiples of 8, are scaled by
            width / 64. Below 16, training at 64 pixels and more ends
            TensorFlow 2.21 on a CPU: its oneDNN convolutions overrun their
            memory (TF_ENABLE_ONEDNN_OPTS=0 avoids it).
        zero_init_last_gamma: whether each block of a ResNet starts as the
            identity.
        bn_splits: S, at least 1: batch normalisation by S groups of the
            global batch (`batch_norm.BatchNormalization`), or None for
            statistics of the whole global batch.

    Returns:
        A functional `keras.Model` from normalised (B, H, W, 3) images to
        average-pooled (B, C) features. At width 64, C is 512 for "resnet18"
        and "resnet34", 2048 for the other ResNets, 1280 for EfficientNets,
        and 960 for MobileNetV3.

    Raises:
        ValueError: for an unknown name or stem, a width or `bn_splits` below
            1, or `zero_init_last_gamma` for a network that is no ResNet.
    """
    if stem not in STEMS:
        raise ValueError(
            f"`stem` must be one of {', '.join(STEMS)}. Received: stem={stem!r}"
        )
    if width < 1:
        raise ValueError(
            "`width` must be at least 1 (the paper's networks: 64). "
            f"Received: width={width}"
        )
    layers.check_bn_splits(bn_splits)
    images = keras.Input(input_shape, name="images")
    settings = {"stem": stem, "width": width, "bn_splits": bn_splits}
    if name in resnet.RESNETS:
        x = resnet.features(
            name, images, zero_init_last_gamma=zero_init_last_gamma, **settings
        )
    elif name not in light.LIGHT:
        raise ValueError(
            "`name` must be one of "
            f"{', '.join([*resnet.RESNETS, *light.LIGHT])}; any other network "
            "can be passed to `ReSSL` as a keras.Model. "
            f"Received: name={name!r}"
        )
    elif zero_init_last_gamma:
        raise ValueError(
            f"`zero_init_last_gamma` must be False for {name!r}: it is an "
            "option of the ResNets. Received: zero_init_last_gamma=True"
        )
    else:
        x = light.features(name, images, **settings)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(images, x, name=name)
