"""Image files: which ones are a split, and how one becomes pixels."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
    + (".tif", ".tiff", ".ppm", ".pgm")
)
_TEST_FOLDERS = ("test", "val", "validation")
_CHUNK = 1000


def list_folder(root, split, source):
    """Finds the image files of one split.

    Three layouts: a folder per class below train/ and test/, val/ or
    validation/, or directly below `root` (train only); loose images
    (unlabelled); Tiny ImageNet's own, whose val/ is its test split.

    Returns:
        (paths, labels or None, class names), sorted by class and then path.

    Raises:
        ValueError: the split is not there or its layout is ambiguous.
    """
    parts = [n for n in ("train", *_TEST_FOLDERS) if (root / n).is_dir()]
    candidates = ("train",) if split == "train" else _TEST_FOLDERS
    if split == "test" and (root / "val" / "val_annotations.txt").is_file():
        return _list_tiny_imagenet_val(root, source)
    if parts:
        base = next((root / n for n in candidates if n in parts), None)
    else:
        base = root if split == "train" else None
    if base is None:
        raise ValueError(
            f"`split` is not there: {source!r} has no folder "
            f"{' or '.join(f'{name}/' for name in candidates)}. Make train/ "
            f"and val/ folders in it. Received: split={split!r}"
        )
    folders = _class_folders(base)
    loose = sorted(file for file in base.iterdir() if _is_image(file))
    if not folders:
        return loose, None, ()
    if loose:
        raise ValueError(
            "`source` must hold either class folders or loose images, not "
            f"both. Received: source={source!r}, where {base.name}/ holds "
            f"{len(folders)} folders of images and {len(loose)} images "
            f"({loose[0].name}, ...)"
        )
    # The labels of every split are positions in the training split's list.
    train = folders if split == "train" else _class_folders(root / "train")
    names = sorted(train or folders)
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise ValueError(
            f"`source` must have the class folders of {base.name}/ in train/ "
            f"too. Received: source={source!r}, where only {base.name}/ has "
            f"{unknown}"
        )
    pairs = [
        (file, label)
        for label, name in enumerate(names)
        for file in folders.get(name, ())
    ]
    files, labels = zip(*pairs, strict=True)
    return files, labels, names


def _list_tiny_imagenet_val(root, source):
    names = sorted(_class_folders(root / "train"))
    if (root / "wnids.txt").is_file():
        names = sorted((root / "wnids.txt").read_text().split())
    label_of = {name: label for label, name in enumerate(names)}
    files, labels = [], []
    annotations = root / "val" / "val_annotations.txt"
    for line in sorted(annotations.read_text().splitlines()):
        name, class_name = [*line.split("\t"), "", ""][:2]
        if class_name not in label_of:
            raise ValueError(
                "`source` must have in val/val_annotations.txt a file name "
                "and one of its classes per line, separated by a tab. "
                f"Received: source={source!r} with the line {line!r}"
            )
        files.append(root / "val" / "images" / name)
        labels.append(label_of[class_name])
    return files, labels, names


def _class_folders(base):
    """Sub-folders of `base` with images anywhere below: {name: files}."""
    if not base.is_dir():
        return {}
    found = {
        entry.name: images_below(entry)
        for entry in base.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }
    return {name: files for name, files in found.items() if files}


def images_below(folder):
    """The image files in a folder and in folders below it, sorted."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, n) for n in files if _is_image(Path(n))]
    return sorted(found)


def _is_image(path):
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def decode_files(files, image_size, source, max_bad=None):
    """Decodes image files; those that cannot be read are skipped.

    Args:
        files: paths.
        image_size: side of the squares to make of them, or None where they
            are squares of one size already.
        source: what they belong to, for the messages.
        max_bad: how many may be skipped; None for `default_max_bad`.

    Returns:
        (uint8 [M, H, W, 3], the M positions in `files`).

    Raises:
        ValueError: no readable file, more than `max_bad` that are not, or
            several sizes without `image_size`.
    """
    images, kept, failures = None, [], []
    decode = partial(_decode_file, image_size=image_size)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _CHUNK):
            results = pool.map(decode, files[start : start + _CHUNK])
            for index, result in enumerate(results, start):
                if isinstance(result, Exception):
                    failures.append(f"{files[index]} ({result})")
                    continue
                if images is None:
                    images = np.empty((len(files), *result.shape), np.uint8)
                height, width, _ = result.shape
                if height != width or result.shape != images.shape[1:]:
                    raise ValueError(
                        "`image_size` must be given where images differ in "
                        "size or are not square. Received: image_size=None, "
                        f"source={source!r}, where {files[index]} is "
                        f"{width}x{height}"
                    )
                images[len(kept)] = result
                kept.append(index)
    if failures:
        message = (
            f"{len(failures)} of the {len(files)} image files of {source!r} "
            f"cannot be read: {_first_of(failures)}"
        )
        if not kept:
            raise ValueError(f"`source` must hold readable images. {message}")
        if max_bad is None:
            max_bad = default_max_bad(len(files))
        if len(failures) > max_bad:
            raise too_many_bad(failures, max_bad)
        warnings.warn(f"Skipped: {message}", stacklevel=4)
    return images[: len(kept)], kept


def default_max_bad(num_images):
    """How many bad images end a run unless told: 1 %, but at least 10."""
    return max(10, num_images // 100)


def too_many_bad(bad, max_bad, argument="max_bad"):
    """The error of more bad images than may be.

    Args:
        bad: list of their names, with or without what is wrong.
        max_bad: how many may be bad.
        argument: what the user calls `max_bad`.

    Returns:
        A ValueError.
    """
    return ValueError(
        f"`{argument}` is the number of images that may be skipped because "
        "they cannot be read. Repair or remove them, or allow more. Received: "
        f"{argument}={max_bad} and {len(bad)} such images: {_first_of(bad)}"
    )


def _first_of(names):
    return "; ".join(names[:10]) + ("; ..." if names[10:] else "")


def _decode_file(path, image_size):
    """Returns uint8 [H, W, 3], or the exception: a bad file ends no run."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = to_rgb(file)
        return np.asarray(fit_square(image, image_size))
    except Exception as error:  # Decoders raise anything on a damaged file.
        return error


def to_rgb(image):
    """A PIL image as 8-bit RGB; gray is replicated and alpha dropped."""
    from PIL import Image

    if image.mode.startswith("I"):
        # 16-bit gray: PIL would clip it at 255 where it keeps the high byte
        # of 16-bit colour.
        high_byte = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
        image = Image.fromarray(high_byte)
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    elif image.mode == "P":
        # Straight to RGB, PIL warns about palettes with transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")


def fit_square(image, size):
    """Brings the shorter side to `size` and keeps the centre square."""
    from PIL import Image

    width, height = image.size
    if size is None or (width, height) == (size, size):
        return image
    shorter = min(width, height)
    left, top = (width - shorter) / 2, (height - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    # PIL's bilinear filter widens with the scale: it is antialiased.
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def resize_all(images, shape, pool):
    """uint8 [H, W, 3] images -> uint8 [N, *shape, 3], shape square if new."""
    from PIL import Image

    def fit(image):
        if image.shape[:2] == shape:
            return image
        return np.asarray(fit_square(Image.fromarray(image), shape[0]))

    return np.stack(list(pool.map(fit, images)))
