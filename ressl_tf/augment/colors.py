"""Colour distortions of batches, with torchvision's semantics.

Every operation is a function of float images in [0, 1] and one parameter per
image. B is the batch size.
"""

import itertools

import tensorflow as tf

# torchvision's weights: they sum to 0.9999, so white turns to 0.9999.
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)

# What `order` of `color_jitter` counts.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(itertools.permutations(range(4)))


def _per_image(values):
    """Reshapes (B,) to (B, 1, 1, 1)."""
    return tf.reshape(values, [-1, 1, 1, 1])


def where(mask, changed, images):
    """Returns `changed` where the (B,) `mask` is set, else `images`."""
    return tf.where(_per_image(mask), changed, images)


def _gray(images):
    """Returns the gray value of each pixel, (B, H, W, 1)."""
    return tf.reduce_sum(images * _GRAY_WEIGHTS, axis=-1, keepdims=True)


def _mean(gray):
    """Returns the mean of each (H, W, 1) image, (B, 1, 1, 1)."""
    return tf.reduce_mean(gray, axis=[1, 2], keepdims=True)


def _blend(images, background, factor):
    factor = _per_image(factor)
    mixed = factor * images + (1 - factor) * background
    return tf.clip_by_value(mixed, 0.0, 1.0)


def adjust_brightness(images, factor):
    """Blends (B, H, W, 3) images with black, by a (B,) factor.

    Like the two blends below: factor x image + (1 - factor) x background,
    clipped to [0, 1].
    """
    return _blend(images, 0.0, factor)


def adjust_contrast(images, factor):
    """Blends (B, H, W, 3) images with their mean gray, by a (B,) factor."""
    return _blend(images, _mean(_gray(images)), factor)


def adjust_saturation(images, factor):
    """Blends (B, H, W, 3) images with their gray images, by a (B,) factor."""
    return _blend(images, _gray(images), factor)


def adjust_hue(images, shift):
    """Turns the hue of (B, H, W, 3) images by a (B,) fraction of a turn."""
    red, green, blue = tf.unstack(images, axis=-1)
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
    return tf.stack(channels, axis=-1)


def color_jitter(images, order, brightness, contrast, saturation, hue, mask):
    """Applies the four adjustments to each image in its own order.

    Args:
        images: (B, H, W, 3) float32 in [0, 1].
        order: (B, 4) int32, each row a permutation of BRIGHTNESS, CONTRAST,
            SATURATION and HUE: which comes first, second, third, fourth.
        brightness: (B,) float32 factor.
        contrast: (B,) float32 factor.
        saturation: (B,) float32 factor.
        hue: (B,) float32 fraction of a turn.
        mask: (B,) bool, the images to change.

    Returns:
        (B, H, W, 3) float32 in [0, 1].
    """
    factors = tf.stack([brightness, contrast, saturation, hue], axis=1)
    hue_turn = tf.reduce_sum(tf.where(order == HUE, tf.range(4), 0), axis=1)

    def blend(images, turn, active):
        kind = order[:, turn]
        gray = _gray(images)
        background = where(kind == SATURATION, gray, tf.zeros_like(gray))
        background = where(kind == CONTRAST, _mean(gray), background)
        factor = tf.gather(factors, kind, batch_dims=1)
        return where(active, _blend(images, background, factor), images)

    # The three blends are one formula with three backgrounds, so a turn can be
    # any of them at the price of one. Hue is the dear one: it runs once, the
    # blends that come before it ahead of it and the others behind it.
    for turn in (0, 1, 2):
        images = blend(images, turn, mask & (turn < hue_turn))
    images = where(mask & (hue != 0), adjust_hue(images, hue), images)
    for turn in (1, 2, 3):
        images = blend(images, turn, mask & (turn > hue_turn))
    return images


def to_grayscale(images):
    """Returns (B, H, W, 3) images with their gray value in all channels."""
    return tf.repeat(_gray(images), 3, axis=-1)


def gaussian_blur(images, sigma, kernel_size):
    """Blurs each image with its own Gaussian; edges are reflected.

    Args:
        images: (B, H, W, C) float32; H and W static, over kernel_size / 2.
        sigma: (B,) float32, standard deviation in pixels, positive.
        kernel_size: odd int, the taps of the kernel.

    Returns:
        (B, H, W, C) float32.
    """
    radius = kernel_size // 2
    distance = tf.range(-radius, radius + 1, dtype=tf.float32)
    kernel = tf.exp(-0.5 * tf.square(distance / sigma[:, None]))
    kernel /= tf.reduce_sum(kernel, axis=1, keepdims=True)
    for axis in (1, 2):
        paddings, begin, extent = [[0, 0]] * 4, [0] * 4, [-1] * 4
        paddings[axis] = [radius, radius]
        extent[axis] = images.shape[axis]
        padded = tf.pad(images, paddings, "REFLECT")
        images = 0.0
        for tap in range(kernel_size):
            begin[axis] = tap
            shifted = tf.slice(padded, begin, extent)
            images += shifted * _per_image(kernel[:, tap])
    return images


def solarize(images, threshold):
    """Inverts the values of (B, H, W, 3) images that reach the threshold."""
    return tf.where(images >= threshold, 1.0 - images, images)
