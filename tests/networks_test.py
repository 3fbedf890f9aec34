import functools

import numpy as np
import pytest
from tensorflow import keras

import ressl_tf
from ressl_tf.batch_norm import BatchNormalization

# torchvision's counts with the classifier of 1000 classes, and our features.
PUBLISHED = {
    "resnet18": (11_689_512, 512),
    "resnet34": (21_797_672, 512),
    "resnet50": (25_557_032, 2048),
    "resnet101": (44_549_160, 2048),
    "resnet152": (60_192_808, 2048),
    "wide_resnet50_2": (68_883_240, 2048),
    "wide_resnet101_2": (126_886_696, 2048),
    "efficientnet_b0": (5_288_548, 1280),
    "efficientnet_b1": (7_794_184, 1280),
    "mobilenetv3_large": (5_483_032, 960),
}
LIGHT = [name for name in PUBLISHED if "resnet" not in name]
# Large ones take seconds to build: the other stacks build one of each family.
ONE_OF_EACH = ("resnet18", "efficientnet_b0", "mobilenetv3_large")


@functools.cache
def published(name):
    return ressl_tf.make_backbone(name, (64, 64, 3), "imagenet")


def core(names):
    return [
        pytest.param(name, marks=pytest.mark.core)
        if name in ONE_OF_EACH
        else name
        for name in names
    ]


def trainable_parameters(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def batch_norms(model):
    return [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


@pytest.mark.parametrize("name", core(PUBLISHED))
def test_has_the_published_parameters(name):
    total, features = PUBLISHED[name]
    backbone = published(name)
    assert backbone.name == name
    assert backbone.output_shape == (None, features)
    if name == "mobilenetv3_large":  # its classifier has a hidden layer
        classifier = (features + 1) * 1280 + (1280 + 1) * 1000
    else:
        classifier = (features + 1) * 1000
    assert trainable_parameters(backbone) + classifier == total


def pad(x, amount):
    return np.pad(x, ((amount, amount), (amount, amount), (0, 0)))


def slow_conv(x, kernel, stride):
    """(H, W, C) image, torch's symmetric padding, loops over the output."""
    size = kernel.shape[0]
    x = pad(x, size // 2)
    rows = range(0, x.shape[0] - size + 1, stride)
    columns = range(0, x.shape[1] - size + 1, stride)
    return np.array(
        [
            [
                np.tensordot(x[r : r + size, c : c + size], kernel, 3)
                for c in columns
            ]
            for r in rows
        ]
    )


def slow_pool(x):
    x = pad(x, 1)
    return np.array(
        [
            [
                x[r : r + 3, c : c + 3].max(axis=(0, 1))
                for c in range(0, x.shape[1] - 2, 2)
            ]
            for r in range(0, x.shape[0] - 2, 2)
        ]
    )


class SlowResNet:
    """Inference, from the layers' weights by name."""

    def __init__(self, model, stem, blocks, convolutions):
        self.model = model
        self.stem = stem
        self.blocks = blocks
        self.convolutions = convolutions

    def conv_bn(self, x, conv, bn, stride):
        (kernel,) = self.model.get_layer(conv).get_weights()
        gamma, beta, mean, var = self.model.get_layer(bn).get_weights()
        x = slow_conv(x, kernel, stride)
        return (x - mean) / np.sqrt(var + 1e-5) * gamma + beta

    def __call__(self, x):
        stride = 2 if self.stem == "imagenet" else 1
        x = np.maximum(self.conv_bn(x, "stem_conv", "stem_bn", stride), 0)
        if self.stem != "cifar":
            x = slow_pool(x)
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage and not index else 1
                x = self.block(x, f"layer{stage + 1}_{index}", stride)
        return x.mean(axis=(0, 1))

    def block(self, x, name, stride):
        # The stride sits in the 3x3: the first of two, or the second of three.
        strided = 1 if self.convolutions == 2 else 2
        y = x
        for number in range(1, self.convolutions + 1):
            y = self.conv_bn(
                y,
                f"{name}_conv{number}",
                f"{name}_bn{number}",
                stride if number == strided else 1,
            )
            if number < self.convolutions:
                y = np.maximum(y, 0)
        names = {layer.name for layer in self.model.layers}
        if f"{name}_shortcut_conv" in names:
            x = self.conv_bn(
                x, f"{name}_shortcut_conv", f"{name}_shortcut_bn", stride
            )
        return np.maximum(x + y, 0)


@pytest.mark.parametrize(
    "name, stem, size, blocks, convolutions",
    [
        ("resnet18", "cifar", 9, (2, 2, 2, 2), 2),
        ("resnet18", "small", 16, (2, 2, 2, 2), 2),
        ("resnet18", "imagenet", 33, (2, 2, 2, 2), 2),
        ("resnet34", "cifar", 8, (3, 4, 6, 3), 2),
        ("resnet50", "imagenet", 32, (3, 4, 6, 3), 3),
        ("wide_resnet50_2", "cifar", 8, (3, 4, 6, 3), 3),
    ],
)
def test_equals_slow_resnet(name, stem, size, blocks, convolutions):
    model = ressl_tf.make_backbone(name, (size, size, 3), stem, width=2)
    random = np.random.default_rng(0)
    model.set_weights(
        [
            # Variances positive; the rest around what training leaves.
            w + 0.2 * np.abs(random.normal(size=w.shape)).astype(np.float32)
            if w.ndim == 1
            else w
            for w in model.get_weights()
        ]
    )
    images = random.normal(size=(2, size, size, 3)).astype(np.float32)
    slow = SlowResNet(model, stem, blocks, convolutions)
    expected = np.stack([slow(image) for image in images])
    assert np.abs(expected).mean() > 1e-2
    np.testing.assert_allclose(
        model(images, training=False), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.core
@pytest.mark.parametrize(
    "name, count, epsilon",
    [
        ("resnet18", 20, 1e-5),
        # TensorFlow's, which its published weights are trained with.
        ("efficientnet_b0", 49, 1e-3),
        ("mobilenetv3_large", 46, 1e-3),
    ],
)
def test_batch_norm_is_ours(name, count, epsilon):
    for splits in (None, 4):
        model = ressl_tf.make_backbone(name, width=2, bn_splits=splits)
        layers = batch_norms(model)
        assert len(layers) == count
        for layer in layers:
            assert isinstance(layer, BatchNormalization)
            assert (layer.momentum, layer.epsilon) == (0.9, epsilon)
            assert layer.splits == splits


@pytest.mark.parametrize("name", core(LIGHT))
def test_light_networks_are_bare(name):
    """No rescaling, no dropout, no classifier."""
    model = published(name)
    gone = (
        keras.layers.Rescaling,
        keras.layers.Normalization,
        keras.layers.Dropout,
        keras.layers.Dense,
    )
    assert not [x for x in model.layers if isinstance(x, gone)]
    # Drop-connect would tell two passes in training mode apart.
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 3))
    passes = [model(images.astype(np.float32), training=True) for _ in "ab"]
    np.testing.assert_array_equal(*passes)
    assert np.abs(passes[0]).mean() > 1e-2
    # The stem sees the images as they are: no 1/255, no mean.
    stem = "conv" if name == "mobilenetv3_large" else "stem_conv"
    layer = model.get_layer(stem)
    seen = keras.Model(model.input, layer.output)
    np.testing.assert_allclose(
        seen(np.ones((1, 64, 64, 3), np.float32))[0, 3, 3],
        layer.get_weights()[0].sum(axis=(0, 1, 2)),
        atol=1e-4,
    )


@pytest.mark.parametrize("name", core(LIGHT))
def test_light_networks_start_like_resnets(name):
    model = published(name)
    names = [layer.name for layer in model.layers if layer.weights]
    last = "conv_1" if name == "mobilenetv3_large" else "top_conv"
    (kernel,) = model.get_layer(last).get_weights()
    assert kernel.std() == pytest.approx(
        np.sqrt(2 / kernel.shape[-1]), rel=0.02
    )
    depthwise = [n for n in names if n.endswith(("dwconv", "depthwise"))][-1]
    (kernel,) = model.get_layer(depthwise).get_weights()
    assert kernel.std() == pytest.approx(
        np.sqrt(2 / np.prod(kernel.shape[:2])), rel=0.05
    )


@pytest.mark.core
def test_names_of_layers_are_the_same_in_all_generations():
    model = published("mobilenetv3_large")
    names = [layer.name for layer in model.layers if layer.weights]
    assert names[:3] == ["conv", "conv_bn", "expanded_conv_depthwise"]
    assert "expanded_conv_3_squeeze_excite_conv_1" in names
    assert names[-2:] == ["conv_1", "conv_1_bn"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize(
    "stem, size, reduced",
    [
        ("imagenet", 64, 2),
        ("small", 64, 4),
        ("cifar", 64, 8),
        ("cifar", 33, 5),  # odd at every stage: rounded up, as torch does
        ("imagenet", 8, 1),
    ],
)
def test_stems_reduce_by_32_16_and_8(name, stem, size, reduced):
    model = ressl_tf.make_backbone(name, (size, size, 3), stem, width=8)
    before_pooling = model.get_layer("features").input
    assert tuple(before_pooling.shape)[1:3] == (reduced, reduced)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_any_size_gives_what_a_fixed_size_gives(name):
    any_size = ressl_tf.make_backbone(name, (None, None, 3), width=8)
    for height, width in ((32, 32), (33, 21)):
        fixed = ressl_tf.make_backbone(name, (height, width, 3), width=8)
        fixed.set_weights(any_size.get_weights())
        images = np.random.default_rng(0).normal(size=(2, height, width, 3))
        images = images.astype(np.float32)
        # In training mode: an untrained EfficientNet's features are nearly 0
        # otherwise.
        expected = fixed(images, training=True)
        assert np.abs(expected).mean() > 1e-2
        np.testing.assert_allclose(
            any_size(images, training=True), expected, atol=1e-4
        )


def test_width_scales_light_networks_in_eighths():
    def filters(width):
        model = ressl_tf.make_backbone("efficientnet_b0", width=width)
        return [
            model.get_layer(name).filters
            for name in ("stem_conv", "block6a_expand_conv", "top_conv")
        ]

    assert filters(64) == [32, 672, 1280]
    assert filters(32) == [16, 336, 640]
    assert filters(128) == [64, 1344, 2560]
    assert filters(1) == [8, 8, 24]  # 10.5 and 20 in eighths, at least one


@pytest.mark.core
@pytest.mark.parametrize("zero_init", [False, True])
def test_batch_norm_may_be_split(zero_init):
    networks = [
        ressl_tf.make_backbone(
            name,
            (8, 8, 3),
            width=1,
            zero_init_last_gamma=zero_init,
            bn_splits=4,
        )
        for name in ("resnet18", "resnet50")
    ]
    networks += [
        ressl_tf.make_projector(4, 8, 4, bn_splits=4),
        ressl_tf.make_predictor(4, 8, bn_splits=4),
        ressl_tf.make_projector(4, 8, 4, batch_norm=False, bn_splits=4),
    ]
    for network, count in zip(networks, (20, 53, 1, 1, 0), strict=True):
        layers = batch_norms(network)
        assert len(layers) == count
        for layer in layers:
            assert isinstance(layer, BatchNormalization)
            assert (layer.splits, layer.momentum, layer.epsilon) == (
                4,
                0.9,
                1e-5,
            )
    gamma = networks[0].get_layer("layer2_1_bn2").get_weights()[0]
    np.testing.assert_array_equal(gamma, 0.0 if zero_init else 1.0)


def test_kernels_start_from_hes_normal_over_fan_out():
    model = ressl_tf.make_backbone("resnet18", width=64)
    (kernel,) = model.get_layer("layer4_1_conv2").get_weights()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    # An untruncated normal: some values lie beyond three deviations.
    outside = (np.abs(kernel) > 3 * kernel.std()).mean()
    assert outside == pytest.approx(0.0027, rel=0.2)


@pytest.mark.parametrize("zero_init", [False, True])
def test_zero_init_last_gamma(zero_init):
    for name, last in (("resnet18", "bn2"), ("resnet50", "bn3")):
        model = ressl_tf.make_backbone(
            name, width=2, zero_init_last_gamma=zero_init
        )
        gamma = model.get_layer(f"layer2_1_{last}").get_weights()[0]
        np.testing.assert_array_equal(gamma, 0.0 if zero_init else 1.0)
        gamma = model.get_layer("layer2_1_bn1").get_weights()[0]
        np.testing.assert_array_equal(gamma, 1.0)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_projector_by_hand(batch_norm):
    projector = ressl_tf.make_projector(3, 4, 2, batch_norm)
    inputs = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]], np.float32)
    hidden = projector.get_layer("hidden").get_weights()
    x = inputs @ hidden[0]
    if batch_norm:
        assert len(hidden) == 1  # beta takes the place of a bias
        gamma, beta, mean, variance = projector.get_layer(
            "hidden_bn"
        ).get_weights()
        x = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    else:
        x = x + hidden[1]
    output, bias = projector.get_layer("output").get_weights()
    expected = np.maximum(x, 0) @ output + bias
    np.testing.assert_allclose(
        projector(inputs, training=False), expected, rtol=1e-5, atol=1e-6
    )


def test_dense_layers_start_like_torchs():
    projector = ressl_tf.make_projector(400, 300, 2)
    kernel = projector.get_layer("hidden").get_weights()[0]
    assert np.abs(kernel).max() == pytest.approx(1 / 20, rel=0.01)
    assert kernel.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)


def test_output_is_float32_under_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    predictor = ressl_tf.make_predictor(4, 8)
    assert predictor(np.ones((2, 4), np.float32)).dtype == "float32"


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: ressl_tf.make_backbone("resnet19"),
            "`name` must be one of resnet18, .*mobilenetv3_large;.*'resnet19'",
        ),
        (
            lambda: ressl_tf.make_backbone(
                "efficientnet_b0", zero_init_last_gamma=True
            ),
            "must be False for 'efficientnet_b0'.*Received: .*=True",
        ),
        (
            lambda: ressl_tf.make_backbone("resnet18", stem="mnist"),
            "`stem` must be one of imagenet, small, cifar.*'mnist'",
        ),
        (lambda: ressl_tf.make_backbone("resnet18", width=0), "width=0"),
        (
            lambda: ressl_tf.make_backbone("resnet18", bn_splits=0),
            "`bn_splits` must be at least 1.*bn_splits=0",
        ),
        (lambda: ressl_tf.make_projector(4, bn_splits=0), "bn_splits=0"),
        (lambda: ressl_tf.make_predictor(4, bn_splits=-1), "bn_splits=-1"),
        (lambda: ressl_tf.make_projector(0), "input_dim=0"),
        (lambda: ressl_tf.make_projector(4, hidden_dim=0), "hidden_dim=0"),
        (lambda: ressl_tf.make_predictor(0), "input_dim=0"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
