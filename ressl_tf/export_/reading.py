"""Encoders on disk: written for TensorFlow Serving, read back from anywhere.

NAME/1/                         SavedModel, version 1
NAME/1/assets.extra/encoder.keras    the same network, trainable
NAME/1/assets.extra/model_card.json  what it is and where it comes from
NAME/model_card.json            the newest version's
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import tensorflow as tf
from tensorflow import keras

from ressl_tf import batch_norm
from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib
from ressl_tf.version import __version__

BRANCHES = ("student", "teacher")
CARD = "model_card.json"
# TensorFlow Serving leaves this folder of a SavedModel alone.
EXTRA = "assets.extra"
KERAS_FILE = "encoder.keras"


def export(workdir, name="encoder", branch="student"):
    """Exports a run's backbone as a SavedModel in TF Serving's layout.

    The signature `serving_default` takes `images`, float32 (N, H, W, 3) in
    0-255 and of the recipe's size, normalises them in the graph, and returns
    `embedding`, float32 (N, C). Loading it needs TensorFlow alone. The
    version's folder appears only when it is complete.

    Args:
        workdir: folder of the run.
        name: name of the export; another export of that name is not replaced
            but gets the next version number.
        branch: "student", which is what the paper evaluates, or "teacher".

    Returns:
        The path of the new version, WORKDIR/export/NAME/VERSION.

    Raises:
        ValueError: for an unknown branch, or a folder without a checkpoint.
    """
    config = workdir_lib.read_config(workdir)
    model = recipe.make_model(config)
    encoder = _branch_encoder(config, workdir, model, branch)
    folder = Path(workdir) / "export" / name
    card = {
        "name": name,
        "branch": branch,
        "steps": int(model.step.numpy()),
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": list(encoder.input_shape),
            "range": [0, 255],
            "mean": config["data"]["mean"],
            "std": config["data"]["std"],
        },
        "output": {
            "name": "embedding",
            "dtype": "float32",
            "shape": list(encoder.output_shape),
        },
        "versions": {
            "ressl_tf": __version__,
            "tensorflow": tf.__version__,
        },
        "config": config,
    }
    path = save(encoder, folder, card)
    workdir_lib.write_json(folder / CARD, card)
    return path


def save(encoder, folder, card):
    """Writes an encoder as the next version in `folder`.

    Args:
        encoder: `keras.Model` from 0-255 images to features.
        folder: path; its subfolders are versions 1, 2, ...
        card: what to say about this version, a dict.

    Returns:
        The path of the new version.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished-"))
    try:
        module = _Servable(encoder)
        tf.saved_model.save(
            module, str(temporary), signatures={"serving_default": module.embed}
        )
        extra = temporary / EXTRA
        extra.mkdir()
        encoder.save(extra / KERAS_FILE)
        workdir_lib.write_json(extra / CARD, card)
        os.chmod(temporary, 0o755)  # mkdtemp's folder is for its owner alone
        path = folder / str(max(_versions(folder), default=0) + 1)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


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
        ValueError: if there is no encoder at `path`.
    """
    path = Path(path)
    if path.suffix == ".keras" and path.is_file():
        return keras.models.load_model(path, compile=False)
    version = find_version(path)
    if version is not None:
        return keras.models.load_model(
            version / EXTRA / KERAS_FILE, compile=False
        )
    if not (path / "config.json").exists():
        raise ValueError(
            "`path` must be the folder of a run (config.json), an export "
            "(saved_model.pb, or the folder of its versions) or a .keras "
            f"file. Received: path={str(path)!r}"
        )
    config = workdir_lib.read_config(path)
    return _branch_encoder(config, path, recipe.make_model(config), branch)


def load_servable(path):
    """The serving function of an export, as TF Serving would run it.

    Args:
        path: WORKDIR/export/NAME or one of its versions.

    Returns:
        A function from float32 (B, H, W, 3) images in 0-255 to features
        (B, C), which needs neither Keras nor this package, and the images'
        height.

    Raises:
        ValueError: if there is no SavedModel at `path`.
    """
    version = find_version(path)
    if version is None:
        raise ValueError(
            "`path` must be an export: a folder with saved_model.pb, or with "
            f"numbered versions. Received: path={str(path)!r}"
        )
    loaded = tf.saved_model.load(str(version))
    serve = loaded.signatures["serving_default"]

    def embed(images):
        return serve(images=images)["embedding"]

    embed.loaded = loaded  # the signature alone would not keep it alive
    embed.variables = serve.variables
    size = serve.structured_input_signature[1]["images"].shape[1]
    return embed, size


def read_card(version):
    """The model card of an export's version.

    Raises:
        ValueError: if there is none.
    """
    path = Path(version) / EXTRA / CARD
    if not path.is_file():
        raise ValueError(
            f"The export has no {EXTRA}/{CARD}: it was not written by "
            "`tools.export`, or not copied as a whole. "
            f"Received: path={str(version)!r}"
        )
    return json.loads(path.read_text())


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


def _versions(folder):
    if not folder.is_dir():
        return []
    return [
        int(child.name)
        for child in folder.iterdir()
        if child.name.isdigit() and (child / "saved_model.pb").is_file()
    ]


def _branch_encoder(config, workdir, model, branch):
    if branch not in BRANCHES:
        raise ValueError(
            f"`branch` must be one of {', '.join(BRANCHES)}. "
            f"Received: branch={branch!r}"
        )
    workdir_lib.restore(workdir, model)
    # Fine-tuning and serving need no class of ours.
    backbone = batch_norm.plain_batch_norm(getattr(model, branch).backbone)
    return recipe.make_encoder(config, backbone)


class _Servable(tf.Module):
    """A network and its signature: what a SavedModel holds."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.embed = tf.function(
            self._embed,
            input_signature=[
                tf.TensorSpec(encoder.input_shape, tf.float32, name="images")
            ],
        )

    def _embed(self, images):
        return {"embedding": self.encoder(images, training=False)}
