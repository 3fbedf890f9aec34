"""Features on disk, by a digest of the encoder and of the images."""

import hashlib
import zipfile

import numpy as np

from ressl_tf import data
from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import features


def cached_features(encoder, images, path=None, *, progress=False):
    """Extracts features, or reads them from where they were kept.

    Args:
        encoder: `subject.Encoder`.
        images: uint8 array (N, H, W, 3).
        path: of an .npz file. It is read if it holds the features of this
            encoder for these images, and written anew if not. Defaults to
            `None`, for neither.
        progress: Whether to print a progress bar. Defaults to `False`.

    Returns:
        float32 array (N, C).

    Raises:
        ValueError: As `FeatureExtractor` and its call do.
    """
    if path is None:
        return features.extract_features(encoder, images, progress=progress)
    images = features.check_images("images", images)

    def extract():
        extracted = features.extract_features(
            encoder, images, progress=progress
        )
        return {"features": extracted}

    key = f"{encoder.fingerprint()} {_fingerprint(images)}"
    return cached_arrays(path, key, extract)["features"]


def cached_streamed_features(
    encoder, reader, path=None, *, shorter_side=None, progress=False
):
    """As `cached_features`, of images that memory does not hold.

    Args:
        encoder: `subject.Encoder`.
        reader: Labelled reader, as `data.open_reader` returns it.
        path: as in `cached_features`.
        shorter_side: as in `data.make_ordered_dataset`.
        progress: Whether to print a progress bar. Defaults to `False`.

    Returns:
        float32 array (N, C), and their labels, int64 (N,); without the images
        that could not be read.
    """

    def extract():
        labels = []

        def batches():
            for images, own in data.make_ordered_dataset(
                reader,
                image_size=encoder.image_size,
                shorter_side=shorter_side,
            ):
                labels.append(own.numpy())
                yield images

        extracted = features.FeatureExtractor(encoder).extract(
            batches(), reader.num_images, progress=progress
        )
        return {"features": extracted, "labels": np.concatenate(labels)}

    if path is None:
        arrays = extract()
    else:
        key = f"{encoder.fingerprint()} {reader.fingerprint()} {shorter_side}"
        arrays = cached_arrays(path, key, extract)
    return arrays["features"], arrays["labels"]


def cached_arrays(path, key, compute):
    """The arrays of an .npz file, computed if it has no others of that key.

    Args:
        path: of the file.
        key: String that says what they are.
        compute: Function that returns a dictionary of arrays.

    Returns:
        A dictionary of arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) == key:
                return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none yet, or not ours
    arrays = compute()
    with workdir_lib.replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=key, **arrays)
    return arrays


def _fingerprint(images):
    digest = hashlib.sha256(f"{images.dtype}{images.shape}".encode())
    digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()
