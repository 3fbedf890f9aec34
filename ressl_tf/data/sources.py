"""Image sets: where the pixels come from, read whole into memory.

`load("photos")` needs nothing but the installed packages; `tfds:NAME`,
`folder:PATH` and `npz:PATH` read what the user has.
"""

import itertools
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ressl_tf.data.image_files import IMAGE_SUFFIXES
from ressl_tf.data.image_files import decode_files
from ressl_tf.data.image_files import fit_square
from ressl_tf.data.image_files import list_folder
from ressl_tf.data.image_files import resize_all
from ressl_tf.data.image_files import to_rgb

PHOTO_NAMES = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "ihc",
    "retina",
    "rocket",
    "motorcycle_left",
    "brick",
    "grass",
    "gravel",
    "camera",
    "coins",
    "page",
    "china",
    "flower",
)
PHOTO_CROPS_PER_CLASS = {"train": 500, "test": 100}
PHOTO_CROP_SIZE = 48
PHOTO_IMAGE_SIZE = 32

_CHUNK = 1000


class ImageSet(NamedTuple):
    """One split of a data set, in memory.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: int64 [N], -1 where an image of a partly labelled set has no
            label; None where no image has one.
        class_names: the name of each label; () where `labels` is None.
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]


def load(
    source, split="train", *, image_size=None, data_dir=None, max_bad=None
):
    """Reads one split of a data set into memory.

    Args:
        source: "photos", "tfds:NAME" (NAME as TensorFlow Datasets spells it,
            configuration and version included), "folder:PATH" or "npz:PATH".
        split: "train" or "test". For "tfds:" any other string goes to
            TensorFlow Datasets as it is ("train+unlabelled"), and "test"
            means "validation" where there is no "test".
        image_size: side in pixels to which every image is brought: the shorter
            side is resized (antialiased) and the centre square kept. None
            keeps the stored size.
        data_dir: where TensorFlow Datasets keeps its files; "tfds:" only.
        max_bad: how many image files may be skipped because they cannot be
            read, None for any number; "folder:" only.

    Returns:
        An `ImageSet`. The same arguments give the same images in the same
        order.

    Raises:
        ValueError: unknown source, missing or empty path, a split or a format
            that is not there, images of several sizes without `image_size`,
            more than `max_bad` files that cannot be read.
    """
    kind, argument = parse_source(source, split, image_size)
    return SOURCES[kind](argument, split, image_size, data_dir, max_bad)


def parse_source(source, split="train", image_size=None):
    """Checks the arguments of `load`.

    Returns:
        (kind of the source, what follows its colon).

    Raises:
        ValueError: one of them is malformed.
    """
    kind, _, argument = str(source).partition(":")
    if kind not in SOURCES or (kind == "photos") != (source == "photos"):
        raise ValueError(
            "`source` must be 'photos', 'tfds:NAME', 'folder:PATH' or "
            f"'npz:PATH'. Received: source={source!r}"
        )
    if kind != "photos" and not argument:
        raise ValueError(
            f"`source` must name what to read after '{kind}:', for instance "
            f"'tfds:cifar10' or 'folder:images'. Received: source={source!r}"
        )
    if kind != "tfds" and split not in ("train", "test"):
        raise ValueError(
            "`split` must be 'train' or 'test' (only 'tfds:' sources know "
            f"others). Received: split={split!r}, source={source!r}"
        )
    if image_size is not None and (
        isinstance(image_size, bool)
        or not isinstance(image_size, int | np.integer)
        or image_size < 1
    ):
        raise ValueError(
            "`image_size` must be a positive number of pixels, or None for "
            f"the stored size. Received: image_size={image_size!r}"
        )
    return kind, argument


def require_labels(image_set, source):
    """Refuses a set that a probe cannot use.

    Args:
        image_set: an `ImageSet`.
        source: what it was loaded from, for the message.

    Raises:
        ValueError: some image has no label.
    """
    if image_set.labels is None:
        missing = len(image_set.images)
    else:
        missing = int(np.sum(image_set.labels < 0))
    if missing:
        raise ValueError(
            "`source` must be labelled to be probed, but "
            f"{missing} of its {len(image_set.images)} images have no label. "
            "Give a labelled set or split (one folder per class, an .npz "
            f"with labels). Received: source={source!r}"
        )


def photo_corners(width, height, class_index, split, count):
    """Top left corners of the crops of one picture of `photos`.

    Train crops lie within the left 70 % of the columns, test crops within the
    rest: the splits share no pixel. Corners are uniform, drawn by
    `np.random.default_rng((class_index, 0 if split == "train" else 1))`,
    columns first.

    Returns:
        (lefts, tops), each int64 [count].
    """
    boundary = width * 7 // 10
    first, end = (0, boundary) if split == "train" else (boundary, width)
    generator = np.random.default_rng((class_index, int(split != "train")))
    lefts = generator.integers(first, end - PHOTO_CROP_SIZE + 1, count)
    tops = generator.integers(0, height - PHOTO_CROP_SIZE + 1, count)
    return lefts, tops


def _read_photos(_, split, image_size, *__):
    from PIL import Image

    size = image_size or PHOTO_IMAGE_SIZE
    count = PHOTO_CROPS_PER_CLASS[split]
    images = np.empty((len(PHOTO_NAMES) * count, size, size, 3), np.uint8)
    position = 0
    for class_index, path in enumerate(_photo_paths()):
        with Image.open(path) as file:
            picture = to_rgb(file)
        corners = photo_corners(*picture.size, class_index, split, count)
        for left, top in zip(*(c.tolist() for c in corners), strict=True):
            # Cut first: a resize of a box also looks at pixels around it,
            # which may belong to the other split.
            crop = picture.crop(
                (left, top, left + PHOTO_CROP_SIZE, top + PHOTO_CROP_SIZE)
            )
            images[position] = fit_square(crop, size)
            position += 1
    labels = np.repeat(np.arange(len(PHOTO_NAMES)), count)
    return _image_set(images, labels, PHOTO_NAMES, "photos")


def _photo_paths():
    import skimage
    import sklearn.datasets

    # The files themselves: some of scikit-image's loaders ask for the
    # downloader pooch although the picture is in the wheel.
    folders = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.datasets.__file__).parent / "images",
    )
    for name in PHOTO_NAMES:
        candidates = [
            folder / (name + suffix)
            for folder, suffix in itertools.product(folders, (".png", ".jpg"))
        ]
        found = [path for path in candidates if path.is_file()]
        if not found:
            raise ValueError(
                f"The picture {name!r} of source='photos' is missing from the "
                "installed scikit-image and scikit-learn. Install their "
                "ordinary wheels, or use another `source`."
            )
        yield found[0]


def _read_tfds(name, split, image_size, data_dir, _):
    import tensorflow_datasets as tfds

    source = f"tfds:{name}"
    builder = tfds_builder(name, data_dir)
    image = _tfds_image(builder, source)
    if image_size is None and None in image.shape[:2]:
        raise ValueError(
            "`image_size` must be given where images differ in size. "
            f"Received: image_size=None, source={source!r}"
        )
    features = builder.info.features
    split, num_images, _ = _tfds_split(builder, split, source)
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
                labels[part] = _integer_labels(chunk["label"], source)
            position = part.stop
    names = None
    if "label" in features:
        names = getattr(features["label"], "names", None)
    return _image_set(images, labels, names, source)


class TfdsShards(NamedTuple):
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


def tfds_shards(source, split="train", data_dir=None):
    """Finds the `TfdsShards` of a "tfds:" source.

    Args:
        source: as in `load`.
        split: as in `load`.
        data_dir: as in `load`.

    Raises:
        ValueError: as `load`; files of another format than TFRecord.
    """
    import tensorflow_datasets as tfds

    _, argument = parse_source(source, split)
    builder = tfds_builder(argument, data_dir)
    image = _tfds_image(builder, source)
    _, _, files = _tfds_split(builder, split, source)
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
    return TfdsShards(
        [(file.filename, file.skip, file.take) for file in files],
        None if None in size else (*size, 3),
        named[0] if named else None,
        tuple(getattr(features.get("label"), "names", None) or ()),
    )


def _tfds_image(builder, source):
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


def _tfds_split(builder, split, source):
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


def tfds_builder(name, data_dir):
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


def folder_files(path, split):
    """The image files of one split of "folder:PATH".

    Returns:
        (paths, labels or None, class names), as `image_files.list_folder`.

    Raises:
        ValueError: no such folder or split, or no image in it.
    """
    source = f"folder:{path}"
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            "`source` must name an existing folder. "
            f"Received: source={source!r}"
        )
    files, labels, names = list_folder(root, split, source)
    if not files:
        raise ValueError(
            "`source` must hold image files "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}). Received: "
            f"source={source!r}, split={split!r}, which holds none"
        )
    return files, labels, names


def _read_folder(path, split, image_size, _, max_bad):
    source = f"folder:{path}"
    files, labels, names = folder_files(path, split)
    images, kept = decode_files(files, image_size, source, max_bad)
    if labels is not None:
        labels = np.asarray(labels, np.int64)[kept]
    return _image_set(images, labels, names, source)


def _read_npz(path, split, image_size, *_):
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
        return _image_set(images, None, (), source)
    labels = _integer_labels(labels, source)
    # Both splits, so that a class absent from one keeps its name.
    highest = max(
        int(arrays[key].max())
        for key in ("y_train", "y_test", "labels")
        if key in arrays and arrays[key].size
    )
    names = map(str, range(highest + 1))
    return _image_set(images, labels, names, source)


def _integer_labels(labels, source):
    """Labels as int64 [N]; Keras writes them as [N, 1]."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "`source` must hold one integer label per image. Received: "
            f"source={source!r} with labels {labels.dtype} {labels.shape}"
        )
    return labels.astype(np.int64)


def _image_set(images, labels, class_names, source):
    if not len(images):
        raise ValueError(
            f"`source` must hold images. Received: source={source!r}, "
            "which holds none"
        )
    if labels is None or np.all(labels == -1):
        return ImageSet(images, None, ())
    if class_names is None:
        class_names = map(str, range(int(labels.max()) + 1))
    class_names = tuple(class_names)
    if len(labels) != len(images):
        raise ValueError(
            "`source` must hold one label per image. Received: "
            f"source={source!r} with {len(images)} images and {len(labels)} "
            "labels"
        )
    if labels.min() < -1 or labels.max() >= len(class_names):
        raise ValueError(
            f"`source` must hold labels from 0 to {len(class_names) - 1}, or "
            f"-1 where unlabelled. Received: source={source!r} with labels "
            f"from {labels.min()} to {labels.max()}"
        )
    return ImageSet(images, labels.astype(np.int64), class_names)


def _three_channels(image):
    """uint8 [H, W, 1, 3 or 4] -> uint8 [H, W, 3]."""
    if image.shape[-1] == 1:
        return np.repeat(image, 3, axis=-1)
    return image[..., :3]


SOURCES = {
    "photos": _read_photos,
    "tfds": _read_tfds,
    "folder": _read_folder,
    "npz": _read_npz,
}
