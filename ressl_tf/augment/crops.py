"""Random resized crops: where to cut, and cutting.

B is the batch size.
"""

import math

import tensorflow as tf

from ressl_tf.augment.draws import uniform

_CROP_TRIES = 10
_CROP_ASPECTS = (3 / 4, 4 / 3)


def sample_crop_boxes(seed, batch_size, height, width, min_area, max_area):
    """Draws the boxes of a random resized crop.

    Each try draws an area, uniform between the two fractions of the image, and
    a log-uniform aspect (width / height) in [3/4, 4/3]. The first of 10 tries
    that fits is placed uniformly; if none does, the box is the largest centred
    one with an aspect in that range.

    Args:
        seed: (2,) int32 or int64.
        batch_size: B, int or scalar tensor.
        height: of the images, int or scalar tensor.
        width: of the images, int or scalar tensor.
        min_area: smallest fraction of the image's area, in (0, 1].
        max_area: largest fraction of the image's area, in (0, 1].

    Returns:
        (B, 4) int32: top, left, height, width in pixels.
    """
    tries = [batch_size, _CROP_TRIES]
    image_height = tf.cast(height, tf.float64)
    image_width = tf.cast(width, tf.float64)
    fraction = uniform(seed, "crop_area", tries) * (max_area - min_area)
    area = (fraction + min_area) * image_height * image_width
    low, high = (math.log(aspect) for aspect in _CROP_ASPECTS)
    aspect = tf.exp(uniform(seed, "crop_aspect", tries) * (high - low) + low)

    heights = tf.round(tf.sqrt(area / aspect))
    widths = tf.round(tf.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= image_height)
    fits &= (widths > 0) & (widths <= image_width)
    number = tf.where(fits, tf.range(_CROP_TRIES), _CROP_TRIES)
    chosen = tf.reduce_min(number, axis=1)
    found = chosen < _CROP_TRIES
    chosen = tf.minimum(chosen, _CROP_TRIES - 1)

    def place(extents, whole, fallback, stream):
        extent = tf.gather(extents, chosen, batch_dims=1)
        extent = tf.where(found, extent, tf.minimum(whole, tf.round(fallback)))
        room = whole - extent
        offset = uniform(seed, stream, [batch_size]) * (room + 1)
        return tf.floor(tf.where(found, offset, room / 2)), extent

    narrowest, widest = _CROP_ASPECTS
    top, crop_height = place(
        heights, image_height, image_width / narrowest, "crop_top"
    )
    left, crop_width = place(
        widths, image_width, image_height * widest, "crop_left"
    )
    boxes = tf.stack([top, left, crop_height, crop_width], axis=1)
    return tf.cast(boxes, tf.int32)


def _bilinear_taps(start, length, size):
    """Returns the two source positions, (B, size), and the second's weight.

    In whole numbers, so that the positions are exact: pixel i of the result
    looks at ((2 i + 1) length - size) / (2 size), kept within the crop.
    """
    start, length = start[:, None], length[:, None]
    position = (2 * tf.range(size) + 1) * length - size
    position = tf.clip_by_value(position, 0, 2 * size * (length - 1))
    first = position // (2 * size)
    second = tf.minimum(first + 1, length - 1)
    rest = tf.cast(position - 2 * size * first, tf.float32)
    return start + first, start + second, rest / (2 * size)


def resized_crop(images, boxes, size, flip=None):
    """Cuts a box out of each image and resizes it, bilinear, no antialiasing.

    What lies outside the box does not enter the result.

    Args:
        images: (B, H, W, C) float32.
        boxes: (B, 4) int32: top, left, height, width, within the image.
        size: height and width of the result, int.
        flip: (B,) bool, the crops to mirror left to right; None for none.

    Returns:
        (B, size, size, C) float32.
    """
    # Two gathers of neighbours are faster than two products with a matrix of
    # weights, compiled or not, at 32 pixels and more so at 224.
    top, left, height, width = tf.unstack(boxes, axis=1)
    first, second, weight = _bilinear_taps(top, height, size)
    above = tf.gather(images, first, axis=1, batch_dims=1)
    below = tf.gather(images, second, axis=1, batch_dims=1)
    images = above + (below - above) * weight[:, :, None, None]

    columns = _bilinear_taps(left, width, size)
    if flip is not None:
        columns = [tf.where(flip[:, None], c[:, ::-1], c) for c in columns]
    first, second, weight = columns
    before = tf.gather(images, first, axis=2, batch_dims=1)
    after = tf.gather(images, second, axis=2, batch_dims=1)
    return before + (after - before) * weight[:, None, :, None]
