"""Arrays in a file of NumPy's: "npz:PATH"."""

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ressl_tf.data.image_files import resize_all
from ressl_tf.data.sources.image_set import integer_labels
from ressl_tf.data.sources.image_set import make_image_set


def read(path, split, image_size, *_):
    """Reads a split, as `sources.load`."""
    source = f"npz:{path}"
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(
            f"`source` must name an existing file. Received: source={source!r}"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            "`source` must be an .npz archive of plain arrays, as np.savez "
            f"writes it. Received: source={source!r} ({error})"
        ) from error
    found = {name: f"{a.dtype} {a.shape}" for name, a in arrays.items()}
    keys = (f"x_{split}", f"y_{split}")
    if keys[0] not in arrays and split == "train":
        keys = ("images", "labels")
    if keys[0] not in arrays:
        raise ValueError(
            "`source` must hold x_train (and y_train, x_test, y_test) or, for "
            "split='train' alone, images (and labels). "
            f"Received: source={source!r}, split={split!r}, found {found}"
        )
    images, labels = arrays[keys[0]], arrays.get(keys[1])
    if images.ndim == 3:
        images = images[..., None]
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[-1] not in (1, 3)
    ):
        raise ValueError(
            f"`source` must hold {keys[0]} as uint8 [N, H, W, 3], or "
            f"[N, H, W] for gray. Received: source={source!r}, found {found}"
        )
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    if image_size and images.shape[1:3] != (image_size,) * 2:
        with ThreadPoolExecutor() as pool:
            images = resize_all(images, (image_size,) * 2, pool)
    if labels is None:
        return make_image_set(images, None, (), source)
    labels = integer_labels(labels, source)
    # Both splits, so that a class absent from one keeps its name.
    highest = max(
        int(arrays[key].max())
        for key in ("y_train", "y_test", "labels")
        if key in arrays and arrays[key].size
    )
    names = map(str, range(highest + 1))
    return make_image_set(images, labels, names, source)
