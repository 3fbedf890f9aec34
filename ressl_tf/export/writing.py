"""From a run to a served model."""

from pathlib import Path

import tensorflow as tf

from ressl_tf import batch_norm
from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib
from ressl_tf.export import card as card_lib
from ressl_tf.export import layout
from ressl_tf.export import serving
from ressl_tf.export.servable import INPUT_DTYPES
from ressl_tf.export.servable import Servable

BRANCHES = ("student", "teacher")


def export(
    workdir,
    name="encoder",
    branch="student",
    *,
    projection=False,
    input_dtype="float32",
    shorter_side=None,
    licence=None,
):
    """Exports a run's backbone as a SavedModel in TF Serving's layout.

    The signature `serving_default` takes `images`, (N, H, W, 3) in 0-255 and
    of the recipe's size, normalises them in the graph, and returns `embedding`,
    float32 (N, C). `serve_bytes` takes `image_bytes`, (N,) strings, which are
    image files of any size. Loading it needs TensorFlow alone. The version's
    folder appears only when it is complete.

    Args:
        workdir: folder of the run.
        name: name of the export; another export of that name is not replaced
            but gets the next version number.
        branch: "student", which is what the paper evaluates, or "teacher".
        projection: whether to return `projection`, too: float32 (N, D), the
            projector's output of length 1, in which the student learns its
            similarities.
        input_dtype: of `images`: "float32", or "uint8", a quarter of the
            bytes of a request.
        shorter_side: of image files, at least H, to which they are resized
            before their centre is cut out. Defaults to None, for H.
        licence: text of the model card. Defaults to None, for a note that
            none is stated.

    Returns:
        The path of the new version, WORKDIR/export/NAME/VERSION.

    Raises:
        ValueError: for an argument that is out of its range, or a folder
            without a checkpoint.
    """
    config = workdir_lib.read_config(workdir)
    _check(name, input_dtype, shorter_side, config["data"]["image_size"])
    model = recipe.make_model(config)
    encoder = branch_encoder(config, workdir, model, branch)
    projector = None
    if projection:
        projector = batch_norm.plain_batch_norm(
            getattr(model, branch).projector
        )
    servable = Servable(
        encoder, projector, input_dtype=input_dtype, shorter_side=shorter_side
    )
    results = card_lib.find_results(
        workdir, branch, card_lib.fingerprint(encoder.weights)
    )
    card = card_lib.make_card(
        name,
        branch,
        encoder,
        servable,
        steps=int(model.step.numpy()),
        config=config,
        results=results,
        licence=licence,
    )
    return save(servable, Path(workdir) / "export" / name, card)


def save(servable, folder, card):
    """Writes an encoder as the next version in `folder`.

    Args:
        servable: `Servable`.
        folder: path of the export; the folder above it is that of all
            exports.
        card: of the model, as `make_card` returns it.

    Returns:
        The path of the new version.
    """
    folder = Path(folder)
    text = card_lib.to_markdown(card)
    with layout.new_version(folder) as (temporary, path):
        tf.saved_model.save(
            servable, str(temporary), signatures=servable.signatures
        )
        extra = temporary / layout.EXTRA
        extra.mkdir()
        servable.encoder.save(extra / layout.KERAS_FILE)
        workdir_lib.write_json(extra / layout.CARD, card)
        serving.write_warm_up(temporary, card["name"], servable)
    workdir_lib.write_json(folder / layout.CARD, card)
    with workdir_lib.replaced(folder / layout.CARD_TEXT) as file:
        file.write_text(text)
    serving.write_configs(folder.parent)
    return path


def branch_encoder(config, workdir, model, branch):
    """A run's encoder, from its last checkpoint.

    Args:
        config: the recipe.
        workdir: folder of the run.
        model: `ReSSL` of the recipe; gets the checkpoint's values.
        branch: "student" or "teacher".

    Returns:
        A `keras.Model` from 0-255 images to features.

    Raises:
        ValueError: for an unknown branch, or if there is no checkpoint.
    """
    if branch not in BRANCHES:
        raise ValueError(
            f"`branch` must be one of {', '.join(BRANCHES)}. "
            f"Received: branch={branch!r}"
        )
    workdir_lib.restore(workdir, model)
    # Fine-tuning and serving need no class of ours.
    backbone = batch_norm.plain_batch_norm(getattr(model, branch).backbone)
    return recipe.make_encoder(config, backbone)


def _check(name, input_dtype, shorter_side, image_size):
    # A folder's name, a part of an URL, and a string of models.config.
    if not name or not all(x.isalnum() or x in "-_." for x in name):
        raise ValueError(
            "`name` must be of letters, digits, '-', '_' and '.'. "
            f"Received: name={name!r}"
        )
    if name.startswith("."):
        raise ValueError(
            f"`name` must not start with a dot. Received: name={name!r}"
        )
    if input_dtype not in INPUT_DTYPES:
        raise ValueError(
            f"`input_dtype` must be one of {', '.join(INPUT_DTYPES)}. "
            f"Received: input_dtype={input_dtype!r}"
        )
    if shorter_side is not None and shorter_side < image_size:
        raise ValueError(
            f"`shorter_side` must be at least the image size, {image_size}. "
            f"Received: shorter_side={shorter_side}"
        )
