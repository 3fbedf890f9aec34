import gc
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from ressl_tf.evaluation.features import FeatureExtractor
from ressl_tf.evaluation.features import channel_statistics
from ressl_tf.evaluation.features import extract_features
from ressl_tf.evaluation.features import raw_pixels


def make_images(num_images=11, size=8, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(
        0, 256, size=(num_images, size, size, 3), dtype=np.uint8
    )


def make_encoder(size=8):
    """A model with batch norm whose moving statistics are not trivial."""
    inputs = keras.Input((size, size, 3))
    outputs = keras.layers.Rescaling(1.0 / 255.0)(inputs)
    outputs = keras.layers.Conv2D(6, 3)(outputs)
    outputs = keras.layers.BatchNormalization()(outputs)
    outputs = keras.layers.ReLU()(outputs)
    outputs = keras.layers.GlobalAveragePooling2D()(outputs)
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(1)
    model.set_weights(
        [generator.uniform(0.2, 1.0, w.shape) for w in model.get_weights()]
    )
    return model


@pytest.mark.core
def test_features_equal_the_models_in_order_with_a_partial_last_batch():
    encoder = make_encoder()
    images = make_images(11)
    features = extract_features(encoder, images, batch_size=4)
    expected = encoder(tf.cast(images, tf.float32), training=False)
    assert features.shape == (11, 6)
    assert features.dtype == np.float32
    assert np.ptp(features, axis=0).min() > 1e-3
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 11, 100])
def test_batch_size_does_not_change_the_features(batch_size):
    encoder = make_encoder()
    images = make_images(11)
    np.testing.assert_allclose(
        extract_features(encoder, images, batch_size=batch_size),
        extract_features(encoder, images, batch_size=4),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.core
def test_batch_norm_runs_in_inference_mode():
    encoder = make_encoder()
    images = make_images(8)
    before = [w.copy() for w in encoder.get_weights()]
    together = extract_features(encoder, images)
    # Constant companions would change every feature under batch statistics.
    mixed = images.copy()
    mixed[1:] = 255
    alone = extract_features(encoder, mixed)
    for old, new in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5)
    in_training = encoder(tf.cast(images, tf.float32), training=True)
    assert np.abs(in_training - together).max() > 0.1


def test_encoder_is_traced_once_per_image_size():
    traced_shapes = []

    def encoder(images):
        traced_shapes.append(images.shape.as_list())
        return tf.reduce_mean(images, axis=(1, 2))

    extractor = FeatureExtractor(encoder, batch_size=4)
    for num_images in (10, 8, 3, 1):
        images = make_images(num_images)
        np.testing.assert_allclose(
            extractor(images), images.mean(axis=(1, 2)), rtol=1e-5
        )
    assert traced_shapes == [[None, 8, 8, 3]]
    extractor(make_images(3, size=6))
    assert traced_shapes == [[None, 8, 8, 3], [None, 6, 6, 3]]


def test_plain_function_gets_float32_pixels_from_0_to_255():
    seen = []

    def encoder(images):
        seen.append(images.dtype)
        return images[:, 0, 0, :]

    images = make_images(5)
    images[0, 0, 0] = (0, 128, 255)
    features = extract_features(encoder, images, batch_size=2)
    assert seen == [tf.float32]
    np.testing.assert_array_equal(features, images[:, 0, 0, :])


def test_extractor_sees_the_weights_of_the_moment():
    encoder = make_encoder()
    extractor = FeatureExtractor(encoder)
    images = make_images(3)
    before = extractor(images)
    encoder.set_weights([0.5 * w for w in encoder.get_weights()])
    after = extractor(images)
    expected = encoder(tf.cast(images, tf.float32), training=False)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(after - before).max() > 1e-3


def test_extractor_is_freed_with_its_encoder():
    class Encoder:
        def __call__(self, images):
            return tf.reduce_mean(images, axis=(1, 2))

    encoder = Encoder()
    reference = weakref.ref(encoder)
    extract_features(encoder, make_images(2))
    del encoder
    gc.collect()
    assert reference() is None


@pytest.mark.core
def test_mirrored_variables_outside_of_run():
    devices = [d.name for d in tf.config.list_logical_devices("CPU")]
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        encoder = make_encoder()
    images = make_images(7)
    expected = encoder(tf.cast(images, tf.float32), training=False)
    extractor = FeatureExtractor(encoder, batch_size=4)
    np.testing.assert_allclose(
        extractor(images), expected, rtol=1e-5, atol=1e-6
    )
    with strategy.scope():
        inside = extractor(images)
    np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_features_become_float32():
    def encoder(images):
        return tf.cast(images[:, 0, 0, :], tf.float16)

    assert extract_features(encoder, make_images(2)).dtype == np.float32


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_prints_and_changes_nothing(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    encoder = make_encoder()
    images = make_images(5)
    features = extract_features(encoder, images, batch_size=2, progress=True)
    printed = capsys.readouterr()
    # Drawn at most ten times a second: the first is sure to be seen.
    assert ("0/5" in printed.err) == terminal and not printed.out
    np.testing.assert_array_equal(
        features, extract_features(encoder, images, batch_size=2)
    )


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 8, 8, 3), np.float32), "dtype float32"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"shape \(2, 8, 8, 1\)"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \(0, 8, 8, 3\)"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [raw_pixels, channel_statistics, FeatureExtractor(lambda images: images)],
)
def test_wrong_images_are_refused(function, images, message):
    with pytest.raises(ValueError, match=f"`images` should be .*{message}"):
        function(images)


def test_wrong_encoders_are_refused():
    images = make_images(2)
    with pytest.raises(ValueError, match="`encoder` should be .*encoder=3"):
        extract_features(3, images)
    with pytest.raises(ValueError, match="`batch_size` .*batch_size=0"):
        extract_features(make_encoder(), images, batch_size=0)
    with pytest.raises(ValueError, match="pool feature maps"):
        extract_features(lambda x: x, images)
    with pytest.raises(ValueError, match="entry of a dictionary"):
        extract_features(lambda x: {"embedding": x[:, 0, 0]}, images)


def test_raw_pixels_by_hand():
    images = np.zeros((2, 1, 2, 3), np.uint8)
    images[1] = [[[255, 0, 51], [102, 153, 204]]]
    pixels = raw_pixels(images)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(
        pixels, [[0] * 6, [1.0, 0.0, 0.2, 0.4, 0.6, 0.8]], rtol=1e-6
    )


def test_channel_statistics_by_hand():
    images = np.zeros((2, 1, 2, 3), np.uint8)
    images[1] = [[[255, 0, 51], [255, 255, 153]]]
    statistics = channel_statistics(images)
    assert statistics.dtype == np.float32
    np.testing.assert_allclose(
        statistics, [[0] * 6, [1.0, 0.5, 0.4, 0.0, 0.5, 0.2]], rtol=1e-6
    )
