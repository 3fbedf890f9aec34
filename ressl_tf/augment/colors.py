"""Colour distortions of batches, with torchvision's semantics.

Every operation is a function of float planes (B, 3, H, W) in [0, 1] and one
parameter per image. Planes, because neighbours in memory are then neighbours
in the image: blurring, half of a strong view's time otherwise, takes a third.
"""

import itertools

import tensorflow as tf

from ressl_tf.augment.choices import per_image

# torchvision's weights: they sum to 0.9999, so white turns to 0.9999.
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)

# What `order` of `color_jitter` counts.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(itertools.permutations(range(4)))


def to_planes(images):
    """(B, H, W, 3) -> (B, 3, H, W)."""
    return tf.transpose(images, [0, 3, 1, 2])


def from_planes(planes):
    """(B, 3, H, W) -> (B, H, W, 3)."""
    return tf.transpose(planes, [0, 2, 3, 1])


def _gray(planes):
    """Returns the gray value of each pixel, (B, 1, H, W)."""
    weights = tf.reshape(_GRAY_WEIGHTS, [1, 3, 1, 1])
    return tf.reduce_sum(planes * weights, axis=1, keepdims=True)


def _blend(planes, background, factor):
    factor = per_image(factor)
    mixed = factor * planes + (1 - factor) * background
    return tf.clip_by_value(mixed, 0.0, 1.0)


def adjust_brightness(planes, factor):
    """Blends (B, 3, H, W) planes with black, by a (B,) factor.

    Like the two blends below: factor x image + (1 - factor) x background,
    clipped to [0, 1].
    """
    return _blend(planes, 0.0, factor)


def adjust_contrast(planes, factor):
    """Blends (B, 3, H, W) planes with their mean gray, by a (B,) factor."""
    mean = tf.reduce_mean(_gray(planes), axis=[2, 3], keepdims=True)
    return _blend(planes, mean, factor)


def adjust_saturation(planes, factor):
    """Blends (B, 3, H, W) planes with their gray images, by a (B,) factor."""
    return _blend(planes, _gray(planes), factor)


def adjust_hue(planes, shift):
    """Turns the hue of (B, 3, H, W) planes by a (B,) fraction of a turn."""
    red, green, blue = tf.unstack(planes, axis=1)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    divisor = tf.where(chroma > 0, chroma, 1.0)
    # In sixths of a turn: 0 is red, 2 green, 4 blue.
    hue = tf.where(
        value == red,
        (green - blue) / divisor,
        tf.where(
            value == green,
            (blue - red) / divisor + 2.0,
            (red - green) / divisor + 4.0,
        ),
    )
    hue += 6.0 * shift[:, None, None]
    channels = []
    for offset in (5.0, 3.0, 1.0):
        # Not floormod: XLA's is seven times slower.
        turn = hue + offset
        turn -= 6.0 * tf.floor(turn / 6.0)
        weight = tf.clip_by_value(tf.minimum(turn, 4.0 - turn), 0.0, 1.0)
        channels.append(value - chroma * weight)
    return tf.stack(channels, axis=1)


def color_jitter(planes, order, brightness, contrast, saturation, hue, choices):
    """Applies the four adjustments to each image in its own order.

    Args:
        planes: (B, 3, H, W) float32 in [0, 1].
        order: (B, 4) int32, each row a permutation of BRIGHTNESS, CONTRAST,
            SATURATION and HUE: which comes first, second, third, fourth.
        brightness: (B,) float32 factor.
        contrast: (B,) float32 factor.
        saturation: (B,) float32 factor.
        hue: (B,) float32 fraction of a turn.
        choices: `choices.OneByOne` or `choices.AllAtOnce`.

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    adjustments = (
        lambda planes: adjust_brightness(planes, brightness),
        lambda planes: adjust_contrast(planes, contrast),
        lambda planes: adjust_saturation(planes, saturation),
        lambda planes: adjust_hue(planes, hue),
    )

    def adjust(turn, planes):
        return turn + 1, choices.switch(order[:, turn], adjustments, planes)

    # A loop of the graph: written out, it takes ten times as long to compile.
    return tf.while_loop(lambda turn, _: turn < 4, adjust, (0, planes))[1]


def to_grayscale(planes):
    """Returns (B, 3, H, W) planes with their gray value in all of them."""
    return tf.repeat(_gray(planes), 3, axis=1)


def gaussian_blur(planes, sigma, kernel_size):
    """Blurs each image with its own Gaussian; edges are reflected.

    Args:
        planes: (B, C, H, W) float32; H and W static, over kernel_size / 2.
        sigma: (B,) float32, standard deviation in pixels, positive.
        kernel_size: odd int, the taps of the kernel.

    Returns:
        (B, C, H, W) float32.
    """
    radius = kernel_size // 2
    distance = tf.range(-radius, radius + 1, dtype=tf.float32)
    kernel = tf.exp(-0.5 * tf.square(distance / sigma[:, None]))
    kernel /= tf.reduce_sum(kernel, axis=1, keepdims=True)
    for axis in (2, 3):
        paddings, begin, extent = [[0, 0]] * 4, [0] * 4, [-1] * 4
        paddings[axis] = [radius, radius]
        extent[axis] = planes.shape[axis]
        padded = tf.pad(planes, paddings, "REFLECT")
        planes = 0.0
        for tap in range(kernel_size):
            begin[axis] = tap
            shifted = tf.slice(padded, begin, extent)
            planes += shifted * per_image(kernel[:, tap])
    return planes


def solarize(planes, threshold):
    """Inverts the values that reach the threshold."""
    return tf.where(planes >= threshold, 1.0 - planes, planes)
