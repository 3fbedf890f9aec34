import numpy as np
import pytest
from tensorflow import keras

import ressl_tf
from ressl_tf.batch_norm import BatchNormalization

# torchvision's counts with the classifier of 1000 classes.
TORCHVISION = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
}


def trainable_parameters(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.core
@pytest.mark.parametrize("name", TORCHVISION)
def test_has_torchvisions_parameters(name):
    backbone = ressl_tf.make_backbone(name, (224, 224, 3), "imagenet")
    features = backbone.output_shape[-1]
    assert features == (2048 if name == "resnet50" else 512)
    classifier = (features + 1) * 1000
    assert trainable_parameters(backbone) + classifier == TORCHVISION[name]


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
def test_batch_norm_is_torchs():
    model = ressl_tf.make_backbone("resnet18", width=2)
    layers = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(layers) == 20
    for layer in layers:
        assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        assert isinstance(layer, BatchNormalization)
        assert layer.splits is None


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
        layers = [
            layer
            for layer in network.layers
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
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
            "`name` must be one of resnet18, resnet34, resnet50.*'resnet19'",
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
