"""RandAugment: for each image, a few of 14 operations in a row.

Cubuk et al. 2020, arXiv 1909.13719; operations, strengths and rounding are
those of torchvision's `RandAugment(num_operations, magnitude,
num_magnitude_bins=31, interpolation=NEAREST, fill=0)` on uint8 tensors.
`sample` draws, `apply` carries out. The other functions are what operations
are made of; they take the levels of one image, (H, W, 3) uint8 with static H
and W.

Levels make rounding matter: a sum that is a whole number in theory is
truncated to the one below it if its last bit says so. So whole numbers are
computed as such, and float steps are kept from what a compiler may reorder or
fuse: results do not depend on XLA.
"""

import math
import numbers

import numpy as np
import tensorflow as tf

from ressl_tf.augment.draws import uniform

# In torchvision's order. `sample` draws positions in this list.
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
MAX_MAGNITUDE = 30
_WARPS = OPERATIONS[1:6]
# Positions in an image are whole multiples of 2**-16 pixels.
_FRACTION_BITS = 16
_NUM_LEVELS = 256


def sample(seed, batch_size, num_operations):
    """Draws the operations of each image.

    Args:
        seed: (2,) int32 or int64.
        batch_size: B, int or scalar tensor.
        num_operations: N, int or scalar tensor: how many an image gets. Each
            is drawn on its own, so that one may come twice.

    Returns:
        A dict: `randaugment_operation` (B, N) int32, positions in OPERATIONS,
        and `randaugment_sign` (B, N) float32, 1 or -1.
    """
    shape = [batch_size, num_operations]
    position = uniform(seed, "randaugment_operation", shape) * len(OPERATIONS)
    positive = uniform(seed, "randaugment_sign", shape) < 0.5
    return {
        "randaugment_operation": tf.cast(position, tf.int32),
        "randaugment_sign": tf.where(positive, 1.0, -1.0),
    }


def apply(images, operations, signs, magnitude):
    """Applies to each image its operations, one after the other.

    The operations are defined on 8 bits: images are first rounded to the 256
    levels, and every operation ends on them, by torchvision's truncation or
    rounding.

    Args:
        images: (B, H, W, 3) float32 in [0, 1]; H and W static.
        operations: (B, N) int32, positions in OPERATIONS.
        signs: (B, N) float32, 1 or -1: which way to shear, move or turn, and
            whether to raise or lower brightness, colour, contrast or
            sharpness. The other operations ignore it.
        magnitude: int from 0 to 30, the strength of all operations. At 30,
            shears are by 0.3 of a pixel a pixel, translations by 150/331 of
            the size, rotations by 30 degrees; factors are 1.9 or 0.1; 4 bits
            are left and everything is solarized.

    Returns:
        (B, H, W, 3) float32 in [0, 1], multiples of 1/255. A row depends on
        the same row of the arguments only.

    Raises:
        ValueError: if `magnitude` is not a whole number from 0 to 30.
    """
    is_whole = isinstance(magnitude, numbers.Integral)
    if not is_whole or not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(
            f"`magnitude` must be a whole number from 0 to {MAX_MAGNITUDE}. "
            f"Received: magnitude={magnitude!r}"
        )
    levels = tf.cast(tf.round(images * 255.0), tf.uint8)
    rows = (
        levels,
        tf.convert_to_tensor(operations),
        tf.convert_to_tensor(signs),
    )
    # Loops over images and operations: XLA runs a loop's body and the branch
    # it takes there and nothing else, where operations on the whole batch
    # would all have to run for all images.
    levels = tf.map_fn(
        lambda row: _apply_in_turn(*row, magnitude),
        rows,
        fn_output_signature=tf.uint8,
    )
    # Graphs multiply by 1 / 255 instead: in float32, half of the levels would
    # come out one bit higher or lower.
    return tf.cast(tf.cast(levels, tf.float64) / 255.0, tf.float32)


def _apply_in_turn(levels, operations, signs, magnitude):
    """Applies (N,) operations with (N,) signs to the levels of one image."""
    height, width, _ = levels.shape
    positions = _warp_positions(height, width, magnitude)
    change = _enhancement(magnitude)
    bits = 8 - round(magnitude / 7.5)
    threshold = 255.0 - 8.5 * magnitude

    def apply_one(levels, drawn):
        operation, sign = drawn

        def warped():
            # As `_warp_positions` counts: two signs an operation.
            number = 2 * (operation - OPERATIONS.index(_WARPS[0]))
            number += tf.cast(sign < 0, tf.int32)
            return warp(
                levels, *(tf.gather(part, number) for part in positions)
            )

        def enhanced(background):
            factor = 1.0 + change * tf.cast(sign, tf.float64)
            return blend(levels, background, factor)

        branches = {
            "identity": lambda: levels,
            **dict.fromkeys(_WARPS, warped),
            "brightness": lambda: enhanced(0.0),
            "color": lambda: enhanced(gray(levels)),
            "contrast": lambda: enhanced(mean_gray(levels)),
            "sharpness": lambda: enhanced(smooth(levels)),
            "posterize": lambda: posterize(levels, bits),
            "solarize": lambda: solarize(levels, threshold),
            "autocontrast": lambda: autocontrast(levels),
            "equalize": lambda: equalize(levels),
        }
        return tf.switch_case(operation, [branches[x] for x in OPERATIONS])

    return tf.foldl(apply_one, (operations, signs), initializer=levels)


def _enhancement(magnitude):
    """Returns by how much the factor of a blend differs from 1.

    That is 0.03 x magnitude, with the float32 rounding that torch's `linspace`
    gives it: the bit decides where factor x level is a whole number.
    """
    end = np.float32(0.9)
    step = np.float64(end / np.float32(MAX_MAGNITUDE))
    if magnitude <= MAX_MAGNITUDE // 2:
        return float(np.float32(step * magnitude))
    return float(np.float32(end - step * (MAX_MAGNITUDE - magnitude)))


def _warp_positions(height, width, magnitude):
    """Returns where the pixels of shears, translations and rotations are from.

    The column that the pixel at (row, column) shows is x_of_column[column] +
    x_of_row[row], rounded down, and its row is y_of_column[column] +
    y_of_row[row]. Shears leave the upper left corner in its place, rotations
    the centre.

    Returns:
        x_of_column, x_of_row, y_of_column, y_of_row: (10, W), (10, H), (10, W)
        and (10, H) int32 in units of 2**-_FRACTION_BITS pixels; one row for
        either sign of each of _WARPS, the positive one first.
    """
    # Pixels lie at their centres.
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    no_x, no_y = np.zeros(width), np.zeros(height)
    rows = []
    for sign in (1, -1):
        shear = sign * 0.01 * magnitude
        # torchvision truncates to whole pixels.
        right = sign * (150 * width * magnitude // (331 * MAX_MAGNITUDE))
        down = sign * (150 * height * magnitude // (331 * MAX_MAGNITUDE))
        angle = math.radians(sign * magnitude)
        cosine, sine = math.cos(angle), math.sin(angle)
        from_x, from_y = x - width / 2, y - height / 2
        rows.append(
            {
                "shear_x": (x, shear * y, no_x, y),
                "shear_y": (x, no_y, shear * x, y),
                "translate_x": (x - right, no_y, no_x, y),
                "translate_y": (x, no_y, no_x, y - down),
                "rotate": (
                    cosine * from_x + width / 2,
                    -sine * from_y,
                    sine * from_x,
                    cosine * from_y + height / 2,
                ),
            }
        )
    parts = zip(*(row[name] for name in _WARPS for row in rows), strict=True)
    return [
        np.round(np.stack(part) * 2**_FRACTION_BITS).astype(np.int32)
        for part in parts
    ]


def warp(levels, x_of_column, x_of_row, y_of_column, y_of_row):
    """Moves pixels, without interpolation; what comes from outside is black.

    Args:
        levels: (H, W, 3) uint8.
        x_of_column: (W,) int32: this and the next three are one row of what
            `_warp_positions` returns.
        x_of_row: (H,) int32.
        y_of_column: (W,) int32.
        y_of_row: (H,) int32.

    Returns:
        (H, W, 3) uint8.
    """
    height, width, _ = levels.shape
    x = tf.bitwise.right_shift(x_of_column + x_of_row[:, None], _FRACTION_BITS)
    y = tf.bitwise.right_shift(y_of_column + y_of_row[:, None], _FRACTION_BITS)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixel = tf.where(inside, y * width + x, 0)
    moved = tf.gather(tf.reshape(levels, [-1, 3]), pixel)
    return tf.where(inside[:, :, None], moved, tf.zeros_like(moved))


def blend(levels, background, factor):
    """Returns factor x levels + (1 - factor) x background, truncated.

    Args:
        levels: (H, W, 3) uint8.
        background: in 0 to 255, any number type that broadcasts to levels.
        factor: scalar float64, at least 0.

    Returns:
        (H, W, 3) uint8.
    """

    def times(values, weight):
        product = tf.cast(values, tf.float32) * tf.cast(weight, tf.float32)
        # Changes nothing, but keeps XLA from fusing product and sum into one
        # instruction, which would not round the product.
        return tf.minimum(product, 1e9)

    mixed = times(levels, factor) + times(background, 1.0 - factor)
    return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.uint8)


def gray(levels):
    """Returns the gray level of each pixel, truncated: (H, W, 1) int32."""
    weights = (2989, 5870, 1140)
    values = tf.cast(levels, tf.int32) * weights
    return tf.reduce_sum(values, axis=-1, keepdims=True) // 10000


def mean_gray(levels):
    """Returns the mean of the gray levels, a scalar float32."""
    height, width, _ = levels.shape
    total = tf.cast(tf.reduce_sum(gray(levels)), tf.float64)
    return tf.cast(total / (height * width), tf.float32)


def smooth(levels):
    """Averages each pixel, weight 5, with its 8 neighbours, weight 1.

    Rounded; pixels at the border stay as they are.

    Args:
        levels: (H, W, 3) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    height, width, _ = levels.shape
    if height < 3 or width < 3:
        return levels
    # As rows of 3 x W numbers, and with the border joined on: half the time
    # of pixels of 3 numbers under a mask.
    rows = tf.reshape(levels, [height, width * 3])
    values = tf.cast(rows, tf.int32)
    sums = values[:-2] + values[1:-1] + values[2:]
    sums = sums[:, :-6] + sums[:, 3:-3] + sums[:, 6:]
    inner = tf.cast((sums + 4 * values[1:-1, 3:-3] + 6) // 13, tf.uint8)
    inner = tf.concat([rows[1:-1, :3], inner, rows[1:-1, -3:]], axis=1)
    smoothed = tf.concat([rows[:1], inner, rows[-1:]], axis=0)
    return tf.reshape(smoothed, [height, width, 3])


def posterize(levels, bits):
    """Keeps the upper bits, 0 to 8, of (H, W, 3) uint8 levels."""
    mask = _NUM_LEVELS - 2 ** (8 - bits)
    return tf.bitwise.bitwise_and(levels, tf.constant(mask, tf.uint8))


def solarize(levels, threshold):
    """Inverts the (H, W, 3) uint8 levels that reach the float threshold."""
    bright = tf.cast(levels, tf.float32) >= threshold
    return tf.where(bright, 255 - levels, levels)


def autocontrast(levels):
    """Stretches each channel of (H, W, 3) uint8 levels to 0 to 255.

    Truncated. Channels of one level stay as they are.
    """
    # Twice as fast as reducing height and width in place.
    channels = tf.transpose(tf.reshape(levels, [-1, 3]))
    low = tf.cast(tf.reduce_min(channels, axis=1), tf.float32)
    high = tf.cast(tf.reduce_max(channels, axis=1), tf.float32)
    is_flat = high == low
    # In this order: 255 / x often rounds to another number.
    scale = 255.0 * (1.0 / tf.where(is_flat, 1.0, high - low))
    stretched = (tf.cast(levels, tf.float32) - low) * scale
    stretched = tf.clip_by_value(stretched, 0.0, 255.0)
    return tf.where(is_flat, levels, tf.cast(stretched, tf.uint8))


def equalize(levels):
    """Spreads the levels of each channel so that all are about as frequent.

    Channels of one level, and others that give no step, stay as they are.

    Args:
        levels: (H, W, 3) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    # Each channel has its own 256 bins.
    bins = tf.cast(levels, tf.int32) + _NUM_LEVELS * tf.range(3)
    counts = tf.math.unsorted_segment_sum(
        tf.ones_like(bins), bins, 3 * _NUM_LEVELS
    )
    counts = tf.reshape(counts, [3, _NUM_LEVELS])
    below = tf.cumsum(counts, axis=1, exclusive=True)
    # Pixels below the brightest level of the channel, in 255 equal shares.
    step = tf.reduce_max(tf.where(counts > 0, below, 0), axis=1) // 255
    step = step[:, None]
    table = (below + step // 2) // tf.maximum(step, 1)
    table = tf.where(step == 0, tf.range(_NUM_LEVELS), table)
    table = tf.cast(tf.minimum(table, 255), tf.uint8)
    return tf.gather(tf.reshape(table, [-1]), bins)
