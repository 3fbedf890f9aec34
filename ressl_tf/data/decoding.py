"""Encoded images in the graph: their pixels, and what to do without them.

Streamed images are decoded inside `tf.data`, where nothing can catch an
exception: `decode` says whether an image could be read, and `BadImages` names
those that could not and ends the run when they are too many.
"""

import logging
import threading

import tensorflow as tf

from ressl_tf.data.image_files import too_many_bad

__all__ = ["BadImages", "centre_square", "decode", "decode_squares"]

logger = logging.getLogger("ressl_tf")


def decode(encoded):
    """Decodes an image file; what cannot be read is no error.

    JPEG (gray, RGB and the colours of print), PNG (gray, palette, RGB; 8 and
    16 bits), GIF, WebP, and BMP of 24 or 32 bits, as `image_files.to_rgb` has
    them: gray is replicated, alpha is dropped, of 16 bits the high byte is
    kept, of an animated GIF the first frame. The values are PIL's, up to the
    last bit of the JPEG decoder; transparent pixels of a GIF are black here.

    Not readable is what is cut short or damaged so that its decoder notices,
    a truncated JPEG too (as for PIL), and what TensorFlow does not decode:
    animated WebP, BMP with a palette, any other format; and any WebP where
    TensorFlow is too old for it. `python -m tools.make_shards` writes what PIL
    reads in a form that is readable everywhere.

    Args:
        encoded: scalar string, the bytes of the file.

    Returns:
        (uint8 [H, W, 3], True), or (uint8 [1, 1, 3] zeros, False).
    """
    others = (
        lambda: _decode_other(encoded, 3),
        lambda: _decode_other(encoded, 4),
        # Not a constant, whose static shape would be every image's.
        lambda: tf.zeros(tf.stack([1, 1, 3]), tf.uint8),
    )

    def decode_other(number):
        image = tf.switch_case(tf.cast(number, tf.int32), others)
        return image, number < len(others) - 1

    # The first of these that is no error: only data sets can ignore errors.
    # It costs 0.06 ms an image. `reduce` would need no last resort, but has
    # its data set optimised for every image, which takes 10 ms.
    images = tf.data.Dataset.from_tensors(encoded).map(
        lambda encoded: (_decode_usual(encoded), True)
    )
    # Apart from the usual one, or that would pay for what they look at.
    images = images.ignore_errors().concatenate(
        tf.data.Dataset.range(len(others)).map(decode_other).ignore_errors()
    )
    return images.take(1).get_single_element()


def _decode_usual(encoded):
    """JPEG, PNG and GIF of one frame."""
    # INTEGER_ACCURATE with fancy upscaling is what PIL decodes, to the bit.
    # The default INTEGER_FAST takes 5 % less time and is off by 1.2 levels
    # in the mean, 21 at most; without fancy upscaling nothing is gained.
    image = tf.io.decode_jpeg(
        encoded, channels=3, dct_method="INTEGER_ACCURATE"
    )
    # An error where there is one dimension more, as of a WebP.
    return tf.ensure_shape(image, [None, None, 3])


def _decode_other(encoded, channels):
    """BMP, WebP and animated GIF; WebP insists on the channels that it has."""
    header = tf.io.decode_raw(tf.strings.substr(encoded, 0, 29), tf.uint8)
    kind = tf.strings.substr(encoded, 0, 4)
    # TensorFlow shows a BMP of 8 bits without its palette.
    bmp = tf.strings.substr(kind, 0, 2) == "BM"
    bmp &= header[28] >= 24
    # Its decoder writes past the end of an animated WebP's memory.
    animated = tf.strings.substr(encoded, 12, 4) == "VP8X"
    animated &= tf.bitwise.bitwise_and(header[20], 2) > 0
    webp = (kind == "RIFF") & ~animated
    # Nothing else, or a broken JPEG is tried, and reported, three times.
    image = tf.io.decode_image(
        tf.where((kind == "GIF8") | bmp | webp, encoded, b""),
        channels=channels,
        expand_animations=False,
    )
    return tf.ensure_shape(image, [None, None, channels])[..., :3]


def centre_square(image, size, shorter_side):
    """The centre of a resized image, as evaluation takes it.

    Args:
        image: uint8 [H, W, 3].
        size: S.
        shorter_side: in pixels, at least S: the image is resized to it,
            antialiased, before its centre is cut out.

    Returns:
        uint8 [S, S, 3].
    """
    height_and_width = tf.shape(image)[:2]
    scale = shorter_side / tf.reduce_min(height_and_width)
    target = tf.cast(
        tf.round(scale * tf.cast(height_and_width, scale.dtype)), tf.int32
    )
    image = tf.image.resize(image, target, antialias=True)
    corner = (target - size) // 2
    image = tf.image.crop_to_bounding_box(
        image, corner[0], corner[1], size, size
    )
    return tf.saturate_cast(tf.round(image), tf.uint8)


def decode_squares(encoded, size, shorter_side):
    """The centres of image files of any size.

    Args:
        encoded: string [B], the bytes of files as `decode` takes them.
        size: S.
        shorter_side: as in `centre_square`.

    Returns:
        (uint8 [B, S, S, 3], bool [B]): what is not readable is black.
    """

    def decode_square(one):
        image, readable = decode(one)
        square = tf.cond(
            readable,
            lambda: centre_square(image, size, shorter_side),
            lambda: tf.zeros([size, size, 3], tf.uint8),
        )
        return square, readable

    return tf.map_fn(
        decode_square,
        encoded,
        fn_output_signature=(
            tf.TensorSpec([size, size, 3], tf.uint8),
            tf.TensorSpec([], tf.bool),
        ),
    )


class BadImages:
    """Counts the distinct images that cannot be read, and names them.

    Args:
        max_bad: the number of them that may be skipped.
        argument: what the user calls `max_bad`.

    Attributes:
        names: of those found so far, in the order they were found.
        error: the ValueError that ended the run, or None. `tf.data` raises an
            error of its own instead.

    Raises:
        ValueError: `max_bad` is negative.
    """

    def __init__(self, max_bad, argument="data.max_bad"):
        if (
            isinstance(max_bad, bool)
            or not isinstance(max_bad, int)
            or max_bad < 0
        ):
            raise ValueError(
                f"`{argument}` must be the number of images that may be bad, "
                f"0 or more. Received: {argument}={max_bad!r}"
            )
        self.names = []
        self.error = None
        self._max_bad = max_bad
        self._argument = argument
        self._lock = threading.Lock()

    def add(self, name):
        """Logs that `name` cannot be read, once.

        Raises:
            ValueError: more than `max_bad` cannot.
        """
        with self._lock:
            if self.error is None and name not in self.names:
                self.names.append(name)
                logger.warning(
                    "Skipped: %s cannot be read (%d so far)",
                    name,
                    len(self.names),
                )
                if len(self.names) > self._max_bad:
                    self.error = too_many_bad(
                        self.names, self._max_bad, self._argument
                    )
        if self.error is not None:
            raise self.error

    def check(self, names, readable):
        """Adds the images of a batch that are not readable.

        To be called in the function of a `Dataset.map` in this process.

        Args:
            names: string [b].
            readable: bool [b].
        """

        def add(names):
            for name in names:
                self.add(name.decode(errors="replace"))

        def report():
            bad = tf.boolean_mask(names, tf.logical_not(readable))
            tf.numpy_function(add, [bad], [])
            return True

        tf.cond(tf.reduce_all(readable), lambda: True, report)
