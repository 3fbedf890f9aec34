"""The image files that a user names."""

import hashlib
import json
import os
from typing import NamedTuple

from ressl_tf.data import image_files


class ImageFile(NamedTuple):
    """An image file as it was when it was listed.

    Attributes:
        path: text, as the user named it or its folder.
        size: in bytes.
        modified: nanoseconds.
    """

    path: str
    size: int
    modified: int


def list_files(names):
    """The images that the user names.

    Args:
        names: of folders, searched with all that is in them, sorted; and of
            files.

    Returns:
        A list of `ImageFile`s, each path once.

    Raises:
        ValueError: if one is not there, or there is no image.
    """
    paths = []
    for name in names:
        if not os.path.exists(name):
            raise ValueError(
                "`--images` must be folders and files, with commas. "
                f"Received: {name!r}, which is not there"
            )
        if not os.path.isdir(name):
            paths.append(name)
            continue
        paths += map(str, image_files.images_below(name))
    if not paths:
        raise ValueError(
            "`--images` must hold images "
            f"({' '.join(sorted(image_files.IMAGE_SUFFIXES))}). "
            f"Received: --images={','.join(names)}"
        )
    files = []
    for path in dict.fromkeys(paths):
        try:
            status = os.stat(path)
            about = status.st_size, status.st_mtime_ns
        except OSError:  # a link to nowhere: named where it is to be read
            about = -1, 0
        files.append(ImageFile(path, *about))
    return files


def digest_of(files):
    """Hexadecimal digest of a list of `ImageFile`s."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(json.dumps(file).encode() + b"\n")
    return digest.hexdigest()


def shown(path):
    """A path as text, whatever bytes it has."""
    return os.fsencode(path).decode(errors="replace")
