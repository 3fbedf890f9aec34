"""Images that hold their number as pixels, in memory and in shards."""

import numpy as np
import tensorflow as tf

from ressl_tf import data
from ressl_tf.data import readers


def numbered_images(num_images):
    """uint8 [N, 1, 1, 3]: the number is the red channel."""
    images = np.zeros((num_images, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    return images


def numbered_shard(folder, num_images, **options):
    """A `ShardReader` of one file with the same images."""
    path = str(folder / "0.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for image in numbered_images(num_images):
            encoded = tf.io.encode_png(image).numpy()
            value = tf.train.BytesList(value=[encoded])
            features = {"image": tf.train.Feature(bytes_list=value)}
            example = tf.train.Example(
                features=tf.train.Features(feature=features)
            )
            writer.write(example.SerializeToString())
    return data.ShardReader(
        [readers.Shard(path, 0, num_images)],
        set_name="numbers",
        image_shape=(1, 1, 3),
        **options,
    )


def assert_same(left, right):
    """Asserts that batches, lists of arrays, are equal to the bit."""
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
