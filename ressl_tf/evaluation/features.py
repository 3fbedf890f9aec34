"""From images to features: the frozen encoder and two trivial baselines.

Shapes use N for images, H and W for their size and C for features.
"""

import numpy as np
import tensorflow as tf
import tqdm
from tensorflow import keras


class FeatureExtractor:
    """Runs a frozen encoder over images; made once, called many times.

    The encoder is traced once per image size, whatever the number of images,
    and its variables are read at each call: a monitor keeps one extractor for
    the whole training and always sees the current weights. Variables made
    under a distribution strategy work too, called outside of `strategy.run`;
    their first replica is the one that is read.

    Args:
        encoder: Callable from float32 images (B, H, W, 3), range 0 to 255, to
            features (B, C). It contains its own normalisation of the images.
            Keras models and layers are called with `training=False`.
        batch_size: Images per call of the encoder. Defaults to `256`.

    Raises:
        ValueError: If `encoder` is not callable or `batch_size` is not a
            positive integer.

    Example:

    >>> extractor = FeatureExtractor(lambda images: images[:, 0, 0, :])
    >>> extractor(np.full((5, 8, 8, 3), 7, np.uint8)).shape
    (5, 3)
    """

    def __init__(self, encoder, *, batch_size=256):
        if not callable(encoder):
            raise ValueError(
                "`encoder` should be a callable from images to features, such "
                "as a keras.Model; wrap the signature of a SavedModel in a "
                f"function. Received: encoder={encoder!r}"
            )
        check_positive_integer("batch_size", batch_size)
        self.encoder = encoder
        self.batch_size = int(batch_size)
        self._functions = {}

    def __call__(self, images, *, progress=False):
        """Extracts the features of all images, in their order.

        Args:
            images: uint8 array (N, H, W, 3).
            progress: Whether to print a progress bar. Defaults to `False`.

        Returns:
            float32 array (N, C).

        Raises:
            ValueError: If `images` is not a uint8 array (N, H, W, 3) with at
                least one image, or the encoder does not return one tensor of
                shape (B, C).
        """
        images = check_images("images", images)
        batches = (
            images[start : start + self.batch_size]
            for start in range(0, len(images), self.batch_size)
        )
        return self.extract(batches, len(images), progress=progress)

    def extract(self, batches, num_images, *, progress=False):
        """Extracts the features of images that come in batches.

        Args:
            batches: iterable of uint8 (b, H, W, 3).
            num_images: how many there are together, at most.
            progress: Whether to print a progress bar. Defaults to `False`.

        Returns:
            float32 array (N, C), one row for each image that came.
        """
        features, stop = None, 0
        with tqdm.tqdm(
            desc="features",
            total=num_images,
            unit="image",
            disable=None if progress else True,
            leave=False,
        ) as bar:
            for images in batches:
                encode = self._function(tuple(images.shape[1:]))
                batch = encode(tf.convert_to_tensor(images)).numpy()
                if features is None:
                    shape = (num_images, batch.shape[1])
                    features = np.empty(shape, np.float32)
                start, stop = stop, stop + len(batch)
                features[start:stop] = batch
                bar.update(len(batch))
        return features[:stop]

    def _function(self, image_shape):
        if image_shape not in self._functions:
            self._functions[image_shape] = _make_function(
                self.encoder, image_shape
            )
        return self._functions[image_shape]


def extract_features(encoder, images, *, batch_size=256, progress=False):
    """Extracts features once. See `FeatureExtractor`.

    Each call traces the encoder anew: where the same encoder is called again
    and again, keep a `FeatureExtractor` instead.

    Args:
        encoder: Callable from float32 images (B, H, W, 3), range 0 to 255, to
            features (B, C), with its own normalisation inside.
        images: uint8 array (N, H, W, 3).
        batch_size: Images per call of the encoder. Defaults to `256`.
        progress: Whether to print a progress bar. Defaults to `False`.

    Returns:
        float32 array (N, C).

    Raises:
        ValueError: As `FeatureExtractor` and its call do.
    """
    return FeatureExtractor(encoder, batch_size=batch_size)(
        images, progress=progress
    )


def raw_pixels(images):
    """The pixels themselves, the baseline that needs no training.

    Args:
        images: uint8 array (N, H, W, 3).

    Returns:
        float32 array (N, H * W * 3), range 0 to 1.

    Raises:
        ValueError: If `images` is not such an array.
    """
    images = check_images("images", images)
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def channel_statistics(images):
    """Mean and standard deviation of each channel, a baseline of colour only.

    Args:
        images: uint8 array (N, H, W, 3).

    Returns:
        float32 array (N, 6), range 0 to 1: the means of red, green and blue,
        then their deviations (population, not sample).

    Raises:
        ValueError: If `images` is not such an array.
    """
    images = check_images("images", images)
    statistics = np.empty((len(images), 6), np.float32)
    # One image at a time: a float copy of a whole data set would not fit.
    for row, image in zip(statistics, images, strict=True):
        row[:3] = image.mean(axis=(0, 1), dtype=np.float64) / 255.0
        row[3:] = image.std(axis=(0, 1), dtype=np.float64) / 255.0
    return statistics


def check_images(name, images):
    """Returns `images` as an array, or says what is wrong with it.

    Args:
        name: The argument's name, for the message.
        images: What should be a uint8 array (N, H, W, 3), N at least 1.

    Returns:
        The uint8 array.

    Raises:
        ValueError: If it is anything else.
    """
    images = np.asarray(images)
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[-1] != 3
        or not images.size
    ):
        raise ValueError(
            f"`{name}` should be a uint8 array of shape (N, H, W, 3) with "
            "values from 0 to 255 and at least one image. Images in 0 to 1 "
            "have to be multiplied by 255, gray ones repeated over three "
            f"channels. Received: {name} of shape {images.shape} and dtype "
            f"{images.dtype}"
        )
    return images


def check_features(name, features):
    """Returns `features` as a float32 array, or says what is wrong with it.

    Args:
        name: The argument's name, for the message.
        features: What should be finite numbers of shape (N, C), both at least
            1.

    Returns:
        float32 array (N, C).

    Raises:
        ValueError: If the shape is another one, or a value is not finite.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or not features.size:
        raise ValueError(
            f"`{name}` should have the shape (N, C), one row of features per "
            "image and at least one row; flatten or pool feature maps first. "
            f"Received: {name} of shape {features.shape}"
        )
    # A float64 sum of float32 values cannot overflow and needs no copy.
    if not np.isfinite(np.sum(features, dtype=np.float64)):
        bad_rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(
            f"`{name}` should be finite. The encoder's weights have probably "
            f"diverged: take an earlier checkpoint. Received: {name} with NaN "
            f"or infinity in {len(bad_rows)} of {len(features)} rows, the "
            f"first at row {bad_rows[0]}"
        )
    return features


def check_labels(name, labels, num_examples, num_classes):
    """Returns `labels` as an int64 array, or says what is wrong with it.

    Args:
        name: The argument's name, for the message.
        labels: What should be `num_examples` integers in
            `[0, num_classes)`.
        num_examples: Integer.
        num_classes: Integer.

    Returns:
        int64 array (num_examples,).

    Raises:
        ValueError: If the shape, the type or a value is another one.
    """
    labels = np.asarray(labels)
    if labels.shape != (num_examples,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` should hold one integer per row of features, shape "
            f"({num_examples},); turn one-hot labels into integers with "
            f"`argmax`. Received: {name} of shape {labels.shape} and dtype "
            f"{labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`{name}` should lie in [0, num_classes); drop unlabelled images "
            "or raise `num_classes`. Received: num_classes="
            f"{num_classes} and {name} from {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)


def check_positive_integer(name, value):
    """Raises ValueError unless `value` is an integer of at least 1.

    Args:
        name: The argument's name, for the message.
        value: What should be an integer.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < 1
    ):
        raise ValueError(
            f"`{name}` should be an integer of at least 1. "
            f"Received: {name}={value!r}"
        )


def _make_function(encoder, image_shape):
    # Only the batch is left open: the last, smaller batch must not trace
    # again, while encoders may need the static height and width.
    signature = [tf.TensorSpec((None, *image_shape), tf.uint8, name="images")]
    is_keras = isinstance(encoder, keras.layers.Layer)

    @tf.function(input_signature=signature)
    def encode(images):
        images = tf.cast(images, tf.float32)
        if is_keras:
            features = encoder(images, training=False)
        else:
            features = encoder(images)
        if not tf.is_tensor(features) or features.shape.rank != 2:
            raise ValueError(
                "`encoder` should return one tensor of shape (B, C): pool "
                "feature maps, and pick the entry of a dictionary in a "
                f"function around it. Received: {features!r}"
            )
        return tf.cast(features, tf.float32)

    return encode
