"""What is searched: the images of a source, and the encoder of an export."""

import json
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ressl_tf import data
from ressl_tf import export
from ressl_tf.data import image_files
from ressl_tf.data import sources
from ressl_tf.data.sources.folder import folder_files
from ressl_tf.evaluation import visualize

# What files that are not whole, or not what they were, end in.
_DAMAGES = (
    OSError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    tf.errors.OpError,
)


class Exported(NamedTuple):
    """The encoder of an export.

    Attributes:
        encode: function from (B, S, S, 3) images in 0-255 to features (B, C).
        image_size: S.
        card: its model card.
    """

    encode: Any
    image_size: int
    card: dict


def open_export(model):
    """Opens an export as a server would run it.

    Args:
        model: path of the export, DIR/export/NAME, or of one of its versions.

    Returns:
        An `Exported`.

    Raises:
        ValueError: if there is no export at `model`, or a damaged one.
    """
    version = export.find_version(model)
    if version is None:
        raise ValueError(
            "`model` must be an export, as `tools.export` writes it: a folder "
            "with saved_model.pb, or with numbered versions. "
            f"Received: model={str(model)!r}"
        )
    try:
        card = export.read_card(version)
        encode, image_size = export.load_servable(version)
    except _DAMAGES as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            "`model` must be an export, complete. "
            f"Received: model={str(model)!r} ({reason})"
        ) from error
    return Exported(encode, image_size, card)


def load_gallery(
    card,
    source=None,
    split=None,
    data_dir=None,
    *,
    image_size,
    num_images,
    seed=0,
):
    """Reads some images of a source, as many of each class as can be.

    Of a folder only these are read; any other source has to fit in memory.

    Args:
        card: of the encoder; says what it was pre-trained on.
        source: as in `data.load`. Defaults to the pre-training's.
        split: as in `data.load`. Defaults to the pre-training's split of its
            own source, and to "train" of another.
        data_dir: as in `data.load`. Defaults to the pre-training's.
        image_size: as in `data.load`.
        num_images: how many, at most.
        seed: integer of at least 0; chooses the images.

    Returns:
        (`ImageSet` in random order, source, split).

    Raises:
        ValueError: as `data.load`; or if the pre-training's images were
            streamed because memory does not hold them.
    """
    settings = card["config"]["data"]
    is_own = source in (None, settings["source"])
    source = source or settings["source"]
    if split is None and is_own:
        split = settings["split"]
        if settings.get("stream") and not source.startswith("folder:"):
            raise ValueError(
                "`split` must be given where the pre-training streamed its "
                "images: a part of them that memory holds, such as "
                f"'{split}[:{num_images}]'. "
                f"Received: split=None, source={source!r}"
            )
    split = split or "train"
    data_dir = data_dir or settings["data_dir"] or None
    kind, argument = sources.parse_source(source, split, image_size)
    generator = np.random.default_rng(seed)

    def choose(labels, count):
        rows = visualize.choose_queries(
            labels, count, min(num_images, count), seed
        )
        return generator.permutation(rows)

    if kind != "folder":
        found = data.load(
            source, split, image_size=image_size, data_dir=data_dir
        )
        rows = choose(found.labels, len(found.images))
        labels = None if found.labels is None else found.labels[rows]
        chosen = found._replace(images=found.images[rows], labels=labels)
        return chosen, source, split
    files, labels, names = folder_files(argument, split)
    labels = None if labels is None else np.asarray(labels, np.int64)
    rows = choose(labels, len(files))
    images, kept = image_files.decode_files(
        [files[row] for row in rows], image_size, source
    )
    labels = None if labels is None else labels[rows[kept]]
    return data.ImageSet(images, labels, tuple(names)), source, split
