"""What lies where in the folder of an export."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

# TensorFlow Serving leaves this folder of a SavedModel alone, but for the
# warm-up requests in it.
EXTRA = "assets.extra"
CARD = "model_card.json"
CARD_TEXT = "model_card.md"
KERAS_FILE = "encoder.keras"
WARM_UP = "tf_serving_warmup_requests"


def find_version(path):
    """The SavedModel that `path` means, or None.

    Args:
        path: a version's folder, or the folder of versions: then the newest.

    Returns:
        A path that contains saved_model.pb, or None.
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return path
    newest = max(_versions(path), default=None)
    return None if newest is None else path / str(newest)


@contextlib.contextmanager
def new_version(folder):
    """An empty folder that becomes the next version when it is complete.

    TensorFlow Serving loads a version as soon as it sees its folder, so it
    gets its number last. Where writing fails nothing is left.

    Args:
        folder: path, made if it is missing; its subfolders are versions 1, 2,
            ...

    Yields:
        (path of the folder to write into, the path that it will have).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished-"))
    try:
        path = folder / str(max(_versions(folder), default=0) + 1)
        yield temporary, path
        os.chmod(temporary, 0o755)  # mkdtemp's folder is for its owner alone
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _versions(folder):
    if not folder.is_dir():
        return []
    return [
        int(child.name)
        for child in folder.iterdir()
        if child.name.isdigit() and (child / "saved_model.pb").is_file()
    ]
