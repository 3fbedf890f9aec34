"""Random resized crops: where to cut, and cutting.

B is the batch size.
"""

import math

import tensorflow as tf

from ressl_tf.augment.draws import uniform

_CROP_TRIES = 10
_CROP_ASPECTS = (3 / 4, 4 / 3)


def draw_crops(seed, batch_size):
    """Draws what the boxes of random resized crops are made of.

    Args:
        seed: (2,) int32 or int64.
        batch_size: B, int or scalar tensor.

    Returns:
        (B, 22) float64 in [0, 1): of ten tries the areas, then their aspects;
        then the place from the top and from the left.
    """
    tries = [batch_size, _CROP_TRIES]
    return tf.concat(
        [
            uniform(seed, "crop_area", tries),
            uniform(seed, "crop_aspect", tries),
            uniform(seed, "crop_top", [batch_size])[:, None],
            uniform(seed, "crop_left", [batch_size])[:, None],
        ],
        axis=1,
    )


def place_crops(draws, height, width, min_area, max_area):
    """The boxes of random resized crops.

    Each try has an area, uniform between the two fractions of the image, and
    a log-uniform aspect (width / height) in [3/4, 4/3]. The first of 10 tries
    that fits is placed uniformly; if none does, the box is the largest centred
    one with an aspect in that range.

    Args:
        draws: (B, 22), as `draw_crops` returns them.
        height: of the images, int or scalar tensor.
        width: of the images, int or scalar tensor.
        min_area: smallest fraction of the image's area, in (0, 1].
        max_area: largest fraction of the image's area, in (0, 1].

    Returns:
        (B, 4) int32: top, left, height, width in pixels.
    """
    areas, aspects, from_top, from_left = tf.split(
        draws, [_CROP_TRIES, _CROP_TRIES, 1, 1], axis=1
    )
    image_height = tf.cast(height, tf.float64)
    image_width = tf.cast(width, tf.float64)
    fraction = areas * (max_area - min_area) + min_area
    area = fraction * image_height * image_width
    low, high = (math.log(aspect) for aspect in _CROP_ASPECTS)
    aspect = tf.exp(aspects * (high - low) + low)

    heights = tf.round(tf.sqrt(area / aspect))
    widths = tf.round(tf.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= image_height)
    fits &= (widths > 0) & (widths <= image_width)
    number = tf.where(fits, tf.range(_CROP_TRIES), _CROP_TRIES)
    chosen = tf.reduce_min(number, axis=1)
    found = chosen < _CROP_TRIES
    chosen = tf.minimum(chosen, _CROP_TRIES - 1)

    def place(extents, whole, fallback, draw):
        extent = tf.gather(extents, chosen, batch_dims=1)
        extent = tf.where(found, extent, tf.minimum(whole, tf.round(fallback)))
        room = whole - extent
        offset = draw[:, 0] * (room + 1)
        return tf.floor(tf.where(found, offset, room / 2)), extent

    narrowest, widest = _CROP_ASPECTS
    top, crop_height = place(
        heights, image_height, image_width / narrowest, from_top
    )
    left, crop_width = place(
        widths, image_width, image_height * widest, from_left
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
        images: (B, H, W, C), any integer or float type.
        boxes: (B, 4) int32: top, left, height, width, within the image.
        size: height and width of the result, int.
        flip: (B,) bool, the crops to mirror left to right; None for none.

    Returns:
        (B, size, size, C) float32.
    """
    return resize_columns(resize_rows(images, boxes, size), boxes, size, flip)


# Gathers of neighbours are faster than products with a matrix of weights, at
# 32 pixels and more so at 224. Who compiles them compiles the two halves
# apart: in one piece XLA computes the first anew for every place that the
# second reads, which doubles the time.


def resize_rows(images, boxes, size):
    """The first half of `resized_crop`: (B, H, W, C) -> (B, size, W, C)."""
    batch_size, _, width, channels = tf.unstack(tf.shape(images))
    top, _, height, _ = tf.unstack(boxes, axis=1)
    first, second, weight = _bilinear_taps(top, height, size)
    # Whole rows at a time: they are neighbours in memory.
    rows = tf.reshape(images, [batch_size, -1, width * channels])
    above = tf.gather(rows, first, axis=1, batch_dims=1)
    below = tf.gather(rows, second, axis=1, batch_dims=1)
    mixed = _mix(above, below, weight[:, :, None])
    return tf.reshape(mixed, [batch_size, size, width, channels])


def resize_columns(images, boxes, size, flip=None):
    """The second half: (B, size, W, C) -> (B, size, size, C)."""
    _, left, _, width = tf.unstack(boxes, axis=1)
    columns = _bilinear_taps(left, width, size)
    if flip is not None:
        columns = [tf.where(flip[:, None], c[:, ::-1], c) for c in columns]
    first, second, weight = columns
    before = tf.gather(images, first, axis=2, batch_dims=1)
    after = tf.gather(images, second, axis=2, batch_dims=1)
    return _mix(before, after, weight[:, None, :, None])


def _mix(first, second, weight):
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    return first + (second - first) * weight


def resized_crop_of_one(image, box, size, flip):
    """`resized_crop` of one image whose shape the graph does not know.

    By TensorFlow's own kernel, which needs no compilation for each new shape;
    its rounding differs in the last bits.

    Args:
        image: (H, W, C), any integer or float type.
        box: (4,) int32: top, left, height, width, within the image.
        size: height and width of the result, int.
        flip: () bool, whether to mirror left to right.

    Returns:
        (size, size, C) float32.
    """
    top, left, height, width = tf.unstack(box)
    crop = image[None, top : top + height, left : left + width]
    resized = tf.raw_ops.ResizeBilinear(
        images=crop, size=[size, size], half_pixel_centers=True
    )[0]
    # A slice with a step of -1 takes six times as long.
    return tf.cond(flip, lambda: tf.reverse(resized, [1]), lambda: resized)
