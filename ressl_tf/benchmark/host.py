"""What an image costs the host: its bytes, decoding it, making its views."""

import numpy as np
import tensorflow as tf

from ressl_tf import augment
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing

STORED_SIZE = 256  # of the squares that views are cut from


def measure(folder, sizes=(224, 96), rounds=10):
    """Times decoding and views in CPU time of one core.

    Args:
        folder: JPEG files, in it or in folders below it.
        sizes: of the strong views; the weak one has the first.
        rounds: how often everything is measured, by turns.

    Returns:
        {"images": number, "rows": one for each operation: "name",
        "core_seconds" per image (median over the rounds), "ratio" to decoding
        a file; and the fields of `scaling.Input` that this measures: "input"}.

    Raises:
        ValueError: if there is no JPEG file.
    """
    files = [path.read_bytes() for path in setup_lib.jpeg_files(folder)]
    images = tf.stack([_square(_decode(file)) for file in files])
    images = tf.cast(tf.round(images), tf.uint8)
    stored = [tf.io.encode_png(image).numpy() for image in images]
    seed = tf.constant([0, 0], tf.int64)

    def decode_files():
        for file in files:
            _decode(file)

    def fit_files():
        for file in files:
            _square(_decode(file))

    def decode_stored():
        for file in stored:
            tf.io.decode_png(file, channels=3)

    def view(make, size, **options):
        layer = make(size, **options)
        return lambda: layer.apply(images, seed).numpy()

    variants = {
        "decode a file": decode_files,
        f"decode a file, resize to {STORED_SIZE}": fit_files,
        f"decode a PNG of {STORED_SIZE}": decode_stored,
        f"weak view of {sizes[0]}": view(augment.weak_view, sizes[0]),
    }
    for size in sizes:
        variants[f"strong view of {size}"] = view(
            augment.strong_view, size, **setup_lib.IMAGENET_STRONG
        )
    times = timing.interleave(variants, rounds)
    costs = {
        name: float(np.median(values[:, 1])) / len(files)
        for name, values in times.items()
    }
    whole = costs["decode a file"]
    return {
        "images": len(files),
        "rows": [
            {"name": name, "core_seconds": cost, "ratio": cost / whole}
            for name, cost in costs.items()
        ],
        "input": {
            "image_bytes": float(np.mean([len(file) for file in files])),
            "decode": costs["decode a file"],
            "strong_view": costs[f"strong view of {sizes[0]}"],
            "weak_view": costs[f"weak view of {sizes[0]}"],
        },
        "stored_bytes": float(np.mean([len(file) for file in stored])),
    }


def table(result):
    """`measure`'s result as text."""
    lines = [f"{'':32}core-ms an image  ratio"]
    for row in result["rows"]:
        lines.append(
            f"{row['name']:32}{1e3 * row['core_seconds']:16.2f}"
            f"{row['ratio']:7.2f}"
        )
    lines.append(
        f"{result['images']} images, {result['input']['image_bytes'] / 1e3:.0f}"
        f" kB each; {result['stored_bytes'] / 1e3:.0f} kB as a PNG of "
        f"{STORED_SIZE} x {STORED_SIZE}."
    )
    return "\n".join(lines)


def _decode(file):
    return tf.io.decode_jpeg(file, channels=3)


def _square(image):
    return tf.image.resize(image, (STORED_SIZE, STORED_SIZE), antialias=True)
