"""What TensorFlow Datasets has prepared, or downloads: "tfds:NAME"."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ressl_tf.data.image_files import resize_all
from ressl_tf.data.sources.image_set import integer_labels
from ressl_tf.data.sources.image_set import make_image_set

_CHUNK = 1000


def read(name, split, image_size, data_dir, _):
    """Reads a split, as `sources.load`."""
    import tensorflow_datasets as tfds

    source = f"tfds:{name}"
    builder = open_builder(name, data_dir)
    image = _image_feature(builder, source)
    if image_size is None and None in image.shape[:2]:
        raise ValueError(
            "`image_size` must be given where images differ in size. "
            f"Received: image_size=None, source={source!r}"
        )
    features = builder.info.features
    split, num_images, _ = _find_split(builder, split, source)
    wanted = {key for key in ("image", "label") if key in features}
    unused = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if key not in wanted and isinstance(feature, tfds.features.Image)
    }
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=unused,
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    dataset = dataset.map(lambda element: {k: element[k] for k in wanted})
    if None in image.shape[:2]:
        elements = dataset.as_numpy_iterator()
        chunks = iter(lambda: list(itertools.islice(elements, 256)), [])
        chunks = (
            {key: [element[key] for element in chunk] for key in wanted}
            for chunk in chunks
        )
    else:
        chunks = dataset.batch(_CHUNK).as_numpy_iterator()
    shape = (image_size,) * 2 if image_size else tuple(image.shape[:2])
    images = np.empty((num_images, *shape, 3), np.uint8)
    labels = np.full(num_images, -1, np.int64)
    position = 0
    with ThreadPoolExecutor() as pool:
        for chunk in chunks:
            pixels = chunk["image"]
            if image_size:
                rows = map(_three_channels, pixels)
                pixels = resize_all(rows, shape, pool)
            part = slice(position, position + len(pixels))
            images[part] = pixels[..., :3]  # Broadcasts a gray channel.
            if "label" in chunk:
                labels[part] = integer_labels(chunk["label"], source)
            position = part.stop
    names = None
    if "label" in features:
        names = getattr(features["label"], "names", None)
    return make_image_set(images, labels, names, source)


def _three_channels(image):
    """uint8 [H, W, 1, 3 or 4] -> uint8 [H, W, 3]."""
    if image.shape[-1] == 1:
        return np.repeat(image, 3, axis=-1)
    return image[..., :3]


class Shards(NamedTuple):
    """Where the records of one split of a "tfds:" source are.

    Attributes:
        files: (path, records to skip, records to take) of every file.
        image_shape: (H, W, 3) if all images have it, else None.
        name_key: the feature that names an image's file, or None.
        class_names: the name of each label; () without a feature "label".
    """

    files: list
    image_shape: tuple | None
    name_key: str | None
    class_names: tuple


def find_shards(name, split="train", data_dir=None):
    """Finds the `Shards` of a split.

    Args:
        name: as TensorFlow Datasets spells it.
        split: as in `load`.
        data_dir: as in `load`.

    Raises:
        ValueError: as `load`; files of another format than TFRecord.
    """
    import tensorflow_datasets as tfds

    source = f"tfds:{name}"
    builder = open_builder(name, data_dir)
    image = _image_feature(builder, source)
    _, _, files = _find_split(builder, split, source)
    file_format = builder.info.file_format.value
    if file_format != "tfrecord":
        raise ValueError(
            "`source` must be prepared as TFRecord files to be streamed. "
            f"Received: source={source!r}, prepared as {file_format}"
        )
    size = tuple(image.shape[:2])
    features = dict(builder.info.features.items())
    named = [
        key
        for key in ("file_name", "image/filename")
        if isinstance(features.get(key), tfds.features.Text)
    ]
    return Shards(
        [(file.filename, file.skip, file.take) for file in files],
        None if None in size else (*size, 3),
        named[0] if named else None,
        tuple(getattr(features.get("label"), "names", None) or ()),
    )


def _image_feature(builder, source):
    """The feature "image" of a data set, which is one of 8-bit pixels."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    image = features["image"] if "image" in features else None
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(
            "`source` must have a feature 'image' of 8-bit pixels. Received: "
            f"source={source!r}, whose features are {sorted(features)}"
        )
    return image


def _find_split(builder, split, source):
    """(name of the split here, number of images, instructions per file)."""
    splits = builder.info.splits
    if split == "test" and "test" not in splits and "validation" in splits:
        split = "validation"
    try:
        found = splits[split]
        return split, found.num_examples, found.file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"`split` must be one of {sorted(splits)} or an expression of "
            f"them. Received: split={split!r}, source={source!r} ({error})"
        ) from error


def open_builder(name, data_dir):
    """The builder of a set that is prepared, or is now.

    Raises:
        ValueError: TensorFlow Datasets does not know the set, or cannot
            prepare it.
    """
    import tensorflow_datasets as tfds

    if name.partition(":")[0].partition("/")[0] == "fgvc_aircraft":
        _register_aircraft()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError, TypeError) as error:
        raise ValueError(
            "`source` must name a data set, configuration and version that "
            "the installed TensorFlow Datasets knows or that is prepared in "
            f"`data_dir`. Received: source='tfds:{name}', "
            f"data_dir={data_dir!r} ({_first_line(error)})"
        ) from error
    if builder.is_prepared():
        return builder
    try:
        # Files of an older version than the code's are as good as its own.
        return tfds.core.read_only_builder.builder_from_files(
            name, **({"data_dir": data_dir} if data_dir else {})
        )
    except (ValueError, AssertionError, TypeError):
        pass
    try:
        builder.download_and_prepare()
    except Exception as error:  # Network, disk, archive, manual step: any.
        reason = _first_line(error)
        raise ValueError(
            "`source` must be prepared in `data_dir` or be downloadable. "
            f"Received: source='tfds:{name}', data_dir={data_dir!r}, where "
            f"{builder.data_path} holds no prepared files and the download "
            f"failed ({type(error).__name__}: {reason}). Point `data_dir` at "
            "the folder in which TensorFlow Datasets prepared the set, or use "
            "'folder:' or 'npz:'."
        ) from error
    return builder


def _register_aircraft():
    """Adds our builder, unless TensorFlow Datasets has one of its own."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if "fgvc_aircraft" not in known:
        from ressl_tf.data import aircraft  # noqa: F401 registers itself


def _first_line(error):
    return (str(error).splitlines() or [""])[0]
