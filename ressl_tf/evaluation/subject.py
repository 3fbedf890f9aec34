"""What is evaluated, on what, and where the result goes."""

import json
from pathlib import Path
from typing import Any
from typing import NamedTuple

from ressl_tf import data
from ressl_tf import export
from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import feature_cache
from ressl_tf.evaluation import results


class Encoder:
    """A frozen encoder, opened for evaluation.

    Called with float32 (B, H, W, 3) images in 0-255 it returns features
    (B, C), in inference mode.

    Attributes:
        path: `Path` that the user named.
        branch: "student" or "teacher".
        image_size: H and W that it takes.
        config: the recipe of its pre-training, a nested dict; None if the
            file does not say (a `.keras` file).
        folder: `Path` where results are written.
    """

    def __init__(self, path, branch, function, variables, image_size, config):
        self.path = Path(path)
        self.branch = branch
        self.image_size = image_size
        self.config = config
        self.folder = result_folder(path)
        self._function = function
        self._variables = variables

    def __call__(self, images):
        return self._function(images)

    @property
    def source(self):
        """The images of its pre-training; None if the file does not say."""
        return self.config and self.config["data"]["source"]

    @property
    def data_dir(self):
        """Where TensorFlow Datasets kept them; None if not said."""
        return self.config and self.config["data"]["data_dir"]

    def load_model(self):
        """The encoder as a trainable `keras.Model`, as `load_encoder`."""
        return export.load_encoder(self.path, self.branch)

    def fingerprint(self):
        """Hexadecimal digest of its weights."""
        return export.fingerprint(self._variables)

    def file_name(self, name):
        """`name`, marked with the branch if that is not the student.

        The teacher's numbers go beside the student's, not over them.
        """
        return workdir_lib.result_name(name, self.branch)

    def read(self, tool, plan):
        """What `write` wrote of this encoder by the same plan, or None.

        Args:
            tool: name of the files.
            plan: dict of all settings, and the encoder's fingerprint; parts
                of what was written.
        """
        path = self.folder / f"{self.file_name(tool)}.json"
        if not path.is_file():
            return None
        earlier = json.loads(path.read_text())
        is_same = all(earlier.get(key) == x for key, x in plan.items())
        return earlier if is_same else None

    def write(self, tool, result, rows=(), title=None):
        """Writes FOLDER/TOOL.json, and with `rows` TOOL.md; see `results`.

        Args:
            tool: name of the files.
            result: dict of numbers.
            rows: of the table, as `results.to_markdown` takes them.
            title: of the table.

        Returns:
            `result`, and what was evaluated.
        """
        result = {
            "path": str(self.path),
            "branch": self.branch,
            "encoder": self.fingerprint(),
            **result,
        }
        results.write(
            self.folder, self.file_name(tool), result, rows, title or tool
        )
        return result


class Subject(NamedTuple):
    """An encoder with the labelled images that it is evaluated on.

    Attributes:
        encoder: `Encoder`.
        train_set: labelled `ImageSet`; or a labelled reader, where images are
            streamed.
        test_set: the same.
        source: where the images come from.
        shorter_side: of streamed images, before their centre is cut out.
    """

    encoder: Encoder
    train_set: Any
    test_set: Any
    source: str
    shorter_side: int | None = None

    @property
    def num_classes(self):
        return len(self.train_set.class_names)

    def extract(self, progress=False, cache=False):
        """Features and labels: train, train labels, test, test labels.

        Args:
            progress: whether to print a progress bar.
            cache: whether to keep the features in FOLDER/features, and to
                take them from there if encoder and images are the same.
        """
        arguments = {"progress": progress, "cache": cache}
        return (
            *self.extract_split("train", **arguments),
            *self.extract_split("test", **arguments),
        )

    def extract_split(self, split, progress=False, cache=False):
        """Features and labels of "train" or "test"; see `extract`."""
        image_set = {"train": self.train_set, "test": self.test_set}[split]
        path = None
        if cache:
            name = self.encoder.file_name(split)
            path = self.encoder.folder / "features" / f"{name}.npz"
        if isinstance(image_set, data.ImageSet):
            extracted = feature_cache.cached_features(
                self.encoder, image_set.images, path, progress=progress
            )
            return extracted, image_set.labels
        return feature_cache.cached_streamed_features(
            self.encoder,
            image_set,
            path,
            shorter_side=self.shorter_side,
            progress=progress,
        )

    def reader(self, split):
        """A labelled reader of the images of "train" or "test"."""
        image_set = {"train": self.train_set, "test": self.test_set}[split]
        if isinstance(image_set, data.ImageSet):
            return data.MemoryReader(*image_set)
        return image_set

    def write(self, tool, result, rows=(), title=None):
        """As `Encoder.write`, with what the images were."""
        return self.encoder.write(
            tool,
            {
                "source": self.source,
                "train_images": _num_images(self.train_set),
                "test_images": _num_images(self.test_set),
                **result,
            },
            rows,
            title,
        )


def open_encoder(path, branch=None):
    """Opens a run, an export or a `.keras` file for evaluation.

    Args:
        path: folder of a run; WORKDIR/export/NAME or one of its versions; or
            a `.keras` file.
        branch: "student" or "teacher". Defaults to the student of a run, and
            to the one branch that an export has.

    Returns:
        An `Encoder`.

    Raises:
        ValueError: if there is no encoder at `path`, or not that branch of it.
    """
    path = Path(path)
    version = export.find_version(path)
    if version is None:
        branch = branch or "student"
        model = export.load_encoder(path, branch)
        config = workdir_lib.read_config(path) if path.is_dir() else None

        def encode(images):
            return model(images, training=False)

        return Encoder(
            path, branch, encode, model.weights, model.input_shape[1], config
        )
    card = export.read_card(version, branch)
    encode, size = export.load_servable(version)
    return Encoder(
        path, card["branch"], encode, encode.variables, size, card["config"]
    )


def open_subject(
    path,
    branch=None,
    source=None,
    data_dir=None,
    *,
    stream=False,
    shorter_side=None,
):
    """Opens an encoder, and the labelled images to evaluate it on.

    Args:
        path: as in `open_encoder`.
        branch: as in `open_encoder`.
        source: labelled images, as in `data.load`. Defaults to those of the
            pre-training; a `.keras` file does not know them.
        data_dir: for tensorflow-datasets. Defaults to the pre-training's.
        stream: read images while they are needed, for sets that memory does
            not hold.
        shorter_side: of streamed images; as in `data.make_ordered_dataset`.

    Returns:
        A `Subject`.

    Raises:
        ValueError: as `open_encoder`, or if the images have no labels.
    """
    encoder = open_encoder(path, branch)
    source = source or encoder.source
    data_dir = data_dir or encoder.data_dir
    if not source:
        raise ValueError(
            "`source` must be given: a .keras file does not say on which "
            f"images it was trained. Received: source={source!r}"
        )
    if shorter_side is not None and not stream:
        raise ValueError(
            "`shorter_side` must go with `stream`: images in memory have the "
            f"encoder's size. Received: shorter_side={shorter_side}"
        )
    sets = []
    for split in ("train", "test"):
        arguments = {"image_size": encoder.image_size, "data_dir": data_dir}
        if stream:
            sets.append(
                data.open_reader(source, split, stream=True, **arguments)
            )
            data.check_labelled(sets[-1])
        else:
            sets.append(data.load(source, split, **arguments))
            data.require_labels(sets[-1], source)
    return Subject(encoder, *sets, source, shorter_side)


def _num_images(image_set):
    if isinstance(image_set, data.ImageSet):
        return len(image_set.images)
    return image_set.num_images


def result_folder(path):
    """Where results go: `eval/` in a run's or an export's folder.

    A version's results go beside the version: TF Serving owns what is inside.
    """
    path = Path(path)
    if path.is_file() or (path / "saved_model.pb").is_file():
        path = path.parent
    return path / "eval"
