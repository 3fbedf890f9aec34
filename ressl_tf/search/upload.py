"""Image files from outside: what they are, and what the encoder sees of them.

Nothing about them is believed but their first bytes, and the size in their
header, which is read before a pixel is decoded.
"""

import io

import numpy as np

from ressl_tf.data import image_files

# PIL's name of each format that is taken.
KINDS = ("JPEG", "PNG", "GIF", "BMP", "WebP")

_ORIENTATION = 0x0112  # EXIF's tag: how a camera was held


class Refused(Exception):
    """A request that is not answered as its sender wished.

    Args:
        status: of HTTP, 400 to 599.
        message: one sentence for the sender.
    """

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def find_kind(file):
    """One of `KINDS` by the first bytes of a file, or None."""
    if file.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if file.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if file.startswith(b"BM"):
        return "BMP"
    if file.startswith(b"RIFF") and file[8:12] == b"WEBP":
        return "WebP"
    return None


def read_square(file, size, max_pixels):
    """What an encoder sees of an image file: its centre, upright.

    As the images of a "folder:" source, of which it may be one; but turned as
    its EXIF says, which is how its sender knows it.

    Args:
        file: bytes.
        size: S.
        max_pixels: that the image may have.

    Returns:
        uint8 [S, S, 3].

    Raises:
        Refused: it is of another kind, too large, or cannot be read.
    """
    from PIL import Image

    kind = find_kind(file)
    if kind is None:
        raise Refused(
            415,
            f"Only {', '.join(KINDS[:-1])} and {KINDS[-1]} images are read.",
        )
    too_large = Refused(
        413,
        f"The image has too many pixels: at most {max_pixels:,} are read.",
    )
    try:
        with Image.open(io.BytesIO(file), formats=[kind]) as image:
            if image.width * image.height > max_pixels:
                raise too_large
            square = image_files.fit_square(image_files.to_rgb(image), size)
            # A square turned is the turned image's square, and small.
            return np.asarray(_turn(square, _orientation(image)))
    except Image.DecompressionBombError as error:
        raise too_large from error
    except Refused:
        raise
    except Exception as error:  # Decoders raise anything on a damaged file.
        raise Refused(
            422, f"The {kind} image is damaged: it cannot be read."
        ) from error


def _orientation(image):
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Damaged notes, not a damaged image.
        return 1


def _turn(image, orientation):
    from PIL import Image

    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)
