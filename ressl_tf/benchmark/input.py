"""How fast views are made, beside what a user would make them with instead.

Nothing here is compared across runs: what is put in one row took turns.
"""

import itertools
import os
from functools import partial

import numpy as np
import tensorflow as tf

from ressl_tf import data
from ressl_tf.benchmark import opponents
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing
from ressl_tf.data import readers

SIZES = (32, 224)
# Of the calls in `Dataset.map`: everyone gets the one that suits it best.
BATCH_SIZES = (1, 16, 64, 256)
_MAX_PIXELS = 2**22  # of a call: 64 images of 256 x 256
# Of the pair of views that is made from files, and of its batches.
FILE_VIEW_SIZE = 224
FILE_BATCH_SIZE = 32
_COPIED_BYTES = 2**26  # beyond the caches
_CHOOSING = {"rounds": 2, "seconds": 0.3, "at_least": 4}


def measure(
    sizes=SIZES,
    folder=None,
    rounds=10,
    seconds=1.0,
    batch_sizes=BATCH_SIZES,
):
    """Views a second from memory, images a second from files.

    From memory: strong and weak views of every size, by `View.apply`, by
    stock keras-cv layers (both in `Dataset.map`, at whichever of
    `batch_sizes` is fastest for it) and by PIL. PIL is timed in one process,
    in wall time as if one on each core were as fast: that flatters it.

    From files, batches of one strong and one weak view of an image: by
    `data.make_train_dataset` on a reader of the files ("ours"); by the same
    views, of images that are decoded whole and resized ("whole"); and by
    decoding whole and stock keras-cv layers ("keras_cv"), which either cut
    from the whole image or from a resized one, whichever is faster.

    Two limits go with them: decoding alone ("decode") and writing the views'
    bytes alone ("copy": by one thread, in memory beyond the caches).

    Args:
        sizes: of the views.
        folder: JPEG files, in it or in folders below it; None for no files.
        rounds: how often everything in a row is measured, by turns.
        seconds: how long one measurement takes, about.
        batch_sizes: to choose from.

    Returns:
        {"rounds", "cores", "views": rows, "files": row or None}. A row has
        "per_second", {name: {"wall", "cpu"}}, items a second and items a
        second of one core; "ratios", {name: {"wall", "cpu"}}, how many times
        faster ours is, median over rounds; and "chosen", {name: batch size or
        way}. Rows of "views" have "view" and "size", too, that of "files" has
        "images", how many.

    Raises:
        ValueError: if `folder` holds no JPEG file, and as `timing.interleave`
            and `augment.View`.
    """
    paths = None if folder is None else setup_lib.jpeg_files(folder)
    row = {"rounds": rounds, "seconds": seconds}
    views = [
        {
            "view": name,
            "size": size,
            **_measure_views(view, batch_sizes, **row),
        }
        for size in sizes
        for name, view in setup_lib.make_views(size).items()
    ]
    files = None
    if folder is not None:
        files = {"images": len(paths), **_measure_files(paths, **row)}
    return {"rounds": rounds, "cores": _cores(), "views": views, "files": files}


def table(result):
    """`measure`'s result as text."""
    names = {"ours": "ours", "keras_cv": "keras-cv", "pil": "PIL"}
    lines = ["views a second" + _header([*names.values(), "copy"], names)]
    for row in result["views"]:
        lines.append(f"{row['view']:<7}{row['size']:7d}" + _cells(row, names))
    names.pop("pil")
    if result["files"]:
        names = {"ours": "ours", "whole": "whole", "keras_cv": "keras-cv"}
        columns = [*names.values(), "decode", "copy"]
        lines += ["", "images a second" + _header(columns, names)[1:]]
        row = result["files"]
        lines.append(f"pair of{FILE_VIEW_SIZE:7d}" + _cells(row, names))
    for row in [*result["views"], result["files"]]:
        if row:
            chosen = ", ".join(f"{k}: {v}" for k, v in row["chosen"].items())
            what = f"{row['view']} {row['size']}" if "view" in row else "files"
            lines.append(f"chosen for {what}: {chosen}")
    lines.append(
        f"{result['cores']} cores; PIL: one process, times the cores; copy: "
        "writing the bytes of a view (of the pair), by one thread. Ours over "
        "others: wall time (CPU time); medians of "
        f"{result['rounds']} rounds."
    )
    return "\n".join(lines)


def _header(columns, names):
    ratios = [f"ours/{name}" for name in list(names.values())[1:]]
    cells = [f"{column:>10}" for column in columns]
    return "".join(cells + [f"{ratio:>17}" for ratio in ratios])


def _cells(row, names):
    cells = []
    limits = [name for name in row["per_second"] if name not in names]
    for name in [*names, *limits]:
        cells.append(f"{row['per_second'][name]['wall']:10.0f}")
    for name in list(names)[1:]:
        ratio = row["ratios"][name]
        cells.append(f"{ratio['wall']:9.2f} ({ratio['cpu']:5.2f})")
    return "".join(cells)


def _measure_views(view, batch_sizes, rounds, seconds):
    """One row: a view of images in memory."""
    stored = setup_lib.stored_size(view.size)
    most = max(min(batch_sizes), _MAX_PIXELS // stored**2)
    batch_sizes = [number for number in batch_sizes if number <= most]
    pictures = setup_lib.make_pictures(max(batch_sizes), stored)
    stock = opponents.keras_cv_chain(view)
    chains = {
        "ours": lambda images, step: view.apply(images, tf.stack([0, step])),
        "keras_cv": lambda images, step: stock(images),
    }
    streams, chosen = {}, {}
    for name, chain in chains.items():
        candidates = {
            batch_size: (_map(chain, pictures[:batch_size]), batch_size)
            for batch_size in batch_sizes
        }
        chosen[name] = _fastest(candidates)
        streams[name] = candidates[chosen[name]]
    chain, generator = opponents.pil_chain(view), np.random.default_rng(0)
    streams["pil"] = (
        (chain(picture, generator) for picture in itertools.cycle(pictures)),
        1,
    )
    streams["copy"] = _copies(view.size**2 * 3 * 4)
    times = timing.interleave_streams(streams, rounds, seconds)
    times["pil"][:, 0] /= _cores()
    return _row(times, chosen)


def _measure_files(paths, rounds, seconds):
    """The row of views of images in files."""
    views = setup_lib.make_views(FILE_VIEW_SIZE)
    stored = setup_lib.stored_size(FILE_VIEW_SIZE)
    batch_size = min(FILE_BATCH_SIZE, len(paths))
    stock = {k: opponents.keras_cv_chain(view) for k, view in views.items()}

    def ours(images, step):
        seed = tf.stack([0, step])
        return tuple(view.apply(images, seed) for view in views.values())

    def by_stock(images):
        return tuple(chain(images) for chain in stock.values())

    def whole_image(image):
        return tuple(views[0] for views in by_stock(image[None]))

    def resize(image):
        image = tf.image.resize(image, (stored, stored))
        return tf.cast(tf.round(image), tf.uint8)

    decoded = _parallel(
        # In memory, as the reader keeps them, too.
        tf.data.Dataset.from_tensor_slices(
            [path.read_bytes() for path in paths]
        ).repeat(),
        partial(tf.io.decode_jpeg, channels=3),
    )
    resized = _parallel(decoded, resize).batch(batch_size, drop_remainder=True)
    ways = {
        "cut from the whole image": _parallel(decoded, whole_image).batch(
            batch_size, drop_remainder=True
        ),
        f"resized to {stored} x {stored}": _parallel(resized, by_stock),
    }
    ways = {way: (_prefetch(it), batch_size) for way, it in ways.items()}
    way = _fastest(ways)
    streams = {
        "ours": (
            data.make_train_dataset(
                readers.FileReader(paths),
                batch_size=batch_size,
                student_views=(views["strong"],),
                teacher_views=(views["weak"],),
                seed=0,
            ),
            batch_size,
        ),
        "whole": (
            _prefetch(_parallel(_numbered(resized), ours)),
            batch_size,
        ),
        "keras_cv": ways[way],
        # One pixel is drawn: the image itself is not the consumer's.
        "decode": (
            _prefetch(
                _parallel(decoded, lambda image: image[0, 0, 0]).batch(
                    batch_size
                )
            ),
            batch_size,
        ),
        "copy": _copies(2 * FILE_VIEW_SIZE**2 * 3 * 4),
    }
    times = timing.interleave_streams(streams, rounds, seconds)
    return _row(times, {"keras_cv": way})


def _row(times, chosen):
    ratios = timing.median_ratios(times, "ours")
    del ratios["ours"]
    return {
        "per_second": timing.rates(times),
        "ratios": ratios,
        "chosen": chosen,
    }


def _map(chain, pictures):
    """Calls of `chain(images, step)` without end."""
    images = tf.constant(pictures)
    steps = tf.data.Dataset.range(2**62)
    return _prefetch(_parallel(steps, lambda step: chain(images, step)))


def _parallel(dataset, function):
    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE)


def _prefetch(dataset):
    return dataset.prefetch(tf.data.AUTOTUNE)


def _numbered(dataset):
    numbers = tf.data.Dataset.range(2**62)
    return tf.data.Dataset.zip((dataset, numbers))


def _fastest(streams):
    times = timing.interleave_streams(streams, **_CHOOSING)
    return min(times, key=lambda name: times[name][:, 0].min())


def _copies(size):
    """A stream of writing `size` bytes of memory."""
    source = np.ones(_COPIED_BYTES, np.uint8)
    target = np.zeros_like(source)
    copies = (np.copyto(target, source) for _ in itertools.count())
    return copies, _COPIED_BYTES / size


def _cores():
    return len(os.sched_getaffinity(0))
