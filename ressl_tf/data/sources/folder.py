"""Image files in folders: "folder:PATH"."""

from pathlib import Path

import numpy as np

from ressl_tf.data.image_files import IMAGE_SUFFIXES
from ressl_tf.data.image_files import decode_files
from ressl_tf.data.image_files import list_folder
from ressl_tf.data.sources.image_set import make_image_set


def folder_files(path, split):
    """The image files of one split of "folder:PATH".

    Returns:
        (paths, labels or None, class names), as `image_files.list_folder`.

    Raises:
        ValueError: no such folder or split, or no image in it.
    """
    source = f"folder:{path}"
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            "`source` must name an existing folder. "
            f"Received: source={source!r}"
        )
    files, labels, names = list_folder(root, split, source)
    if not files:
        raise ValueError(
            "`source` must hold image files "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}). Received: "
            f"source={source!r}, split={split!r}, which holds none"
        )
    return files, labels, names


def read(path, split, image_size, _, max_bad):
    """Reads a split, as `sources.load`."""
    source = f"folder:{path}"
    files, labels, names = folder_files(path, split)
    images, kept = decode_files(files, image_size, source, max_bad)
    if labels is not None:
        labels = np.asarray(labels, np.int64)[kept]
    return make_image_set(images, labels, names, source)
