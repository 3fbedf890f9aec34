"""Encoders read back: to fine-tune, or to run as a server would."""

import json
import zipfile
from pathlib import Path

import tensorflow as tf
from tensorflow import keras

from ressl_tf import keras_compat
from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib
from ressl_tf.export import card as card_lib
from ressl_tf.export import layout
from ressl_tf.export import writing


def load_encoder(path, branch="student"):
    """A trainable encoder from a run, an export or a `.keras` file.

    Args:
        path: folder of a run, WORKDIR/export/NAME or one of its versions, or
            a `.keras` file.
        branch: "student" or "teacher", for the folder of a run.

    Returns:
        A `keras.Model` from float32 (B, H, W, 3) images in 0-255 to features
        (B, C): to put a head on and fine-tune.

    Raises:
        ValueError: if there is no encoder at `path`, or it was saved by a
            Keras of another generation.
    """
    path = Path(path)
    if path.suffix == ".keras" and path.is_file():
        return _load_keras(path)
    version = layout.find_version(path)
    if version is not None:
        card_lib.read_card(version)  # or says that the format is newer
        return _load_keras(version / layout.EXTRA / layout.KERAS_FILE)
    if not (path / "config.json").exists():
        raise ValueError(
            "`path` must be the folder of a run (config.json), an export "
            "(saved_model.pb, or the folder of its versions) or a .keras "
            f"file. Received: path={str(path)!r}"
        )
    config = workdir_lib.read_config(path)
    model = recipe.make_model(config)
    return writing.branch_encoder(config, path, model, branch)


def load_servable(path, signature="serving_default"):
    """The serving function of an export, as TF Serving would run it.

    Args:
        path: WORKDIR/export/NAME or one of its versions.
        signature: "serving_default", of images, or "serve_bytes", of image
            files.

    Returns:
        A function from (B, H, W, 3) images in 0-255, or from (B,) strings, to
        features (B, C), which needs neither Keras nor this package, and the
        images' height (None of image files).

    Raises:
        ValueError: if there is no SavedModel at `path`, or not that signature
            of it. The function: for images of another shape.
    """
    version = layout.find_version(path)
    if version is None:
        raise ValueError(
            "`path` must be an export: a folder with saved_model.pb, or with "
            f"numbered versions. Received: path={str(path)!r}"
        )
    loaded = tf.saved_model.load(str(version))
    if signature not in loaded.signatures:
        raise ValueError(
            f"`path` must be an export with the signature {signature!r}: "
            "export it again with `tools.export`. Received: "
            f"path={str(version)!r}, which has "
            f"{', '.join(loaded.signatures) or 'none'}"
        )
    serve = loaded.signatures[signature]
    ((name, spec),) = serve.structured_input_signature[1].items()

    def embed(images):
        images = tf.convert_to_tensor(images)
        if not spec.shape.is_compatible_with(images.shape):
            raise ValueError(
                f"`{name}` must be of shape {spec.shape}. Received: {name} of "
                f"shape {images.shape}"
            )
        if name == "images":
            images = tf.cast(images, spec.dtype)
        return serve(**{name: images})["embedding"]

    embed.loaded = loaded  # the signature alone would not keep it alive
    embed.variables = serve.variables
    return embed, spec.shape[1] if name == "images" else None


def _load_keras(path):
    """A `.keras` file, or what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as file:
            saved = json.loads(file.read("metadata.json"))["keras_version"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "`path` must be a .keras file, complete. "
            f"Received: path={str(path)!r} ({error})"
        ) from error
    here = keras_compat.version()
    if saved.partition(".")[0] != here.partition(".")[0]:
        raise ValueError(
            f"`path` was saved by Keras {saved}, which this Keras {here} "
            "cannot read: use the SavedModel's signatures, convert the "
            "weights with `tools.convert`, or export the run here. "
            f"Received: path={str(path)!r}"
        )
    return keras.models.load_model(path, compile=False)
