"""What is evaluated, on what, and where the result goes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import NamedTuple

from ressl_tf import data
from ressl_tf import export
from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import features


class Subject(NamedTuple):
    """An encoder with the sets that it is evaluated on.

    Attributes:
        path: what the user named.
        branch: "student" or "teacher".
        encoder: callable from float32 (B, H, W, 3) images in 0-255 to
            features (B, C).
        train_set: labelled `ImageSet`.
        test_set: labelled `ImageSet`.
        source: where the images come from.
        folder: where results are written.
    """

    path: str
    branch: str
    encoder: Callable
    train_set: Any
    test_set: Any
    source: str
    folder: Path

    @property
    def num_classes(self):
        return len(self.train_set.class_names)

    def extract(self, progress=False):
        """Features and labels: train, train labels, test, test labels."""
        extractor = features.FeatureExtractor(self.encoder)
        return (
            extractor(self.train_set.images, progress=progress),
            self.train_set.labels,
            extractor(self.test_set.images, progress=progress),
            self.test_set.labels,
        )

    def write(self, tool, result):
        """Writes a tool's numbers to FOLDER/eval/TOOL.json; returns them.

        The teacher's numbers go beside the student's, not over them.
        """
        suffix = "" if self.branch == "student" else f"_{self.branch}"
        result = {
            "path": str(self.path),
            "branch": self.branch,
            "source": self.source,
            "train_images": len(self.train_set.images),
            "test_images": len(self.test_set.images),
            **result,
        }
        workdir_lib.write_json(self.folder / f"{tool}{suffix}.json", result)
        return result


def open_subject(path, branch=None, source=None, data_dir=None):
    """Opens a run, an export or a `.keras` file for evaluation.

    Args:
        path: folder of a run; WORKDIR/export/NAME or one of its versions; or
            a `.keras` file.
        branch: "student" or "teacher". Defaults to the student of a run, and
            to the one branch that an export has.
        source: labelled images, as in `data.load`. Defaults to those of the
            pre-training; a `.keras` file does not know them.
        data_dir: for tensorflow-datasets. Defaults to the pre-training's.

    Returns:
        A `Subject`.

    Raises:
        ValueError: if there is no encoder at `path`, it does not fit the
            images, or the images have no labels.
    """
    path = Path(path)
    version = export.find_version(path)
    config = None
    if version is not None:
        card = export.read_card(version)
        config = card["config"]
        if branch not in (None, card["branch"]):
            raise ValueError(
                f"`branch` must be what was exported, {card['branch']!r}: "
                f"export the other one first. Received: branch={branch!r}"
            )
        branch = card["branch"]
        encoder, size = export.load_servable(version)
    else:
        branch = branch or "student"
        model = export.load_encoder(path, branch)
        encoder, size = model, model.input_shape[1]
        if path.is_dir():
            config = workdir_lib.read_config(path)
    if config:
        source = source or config["data"]["source"]
        data_dir = data_dir or config["data"]["data_dir"]
    if not source:
        raise ValueError(
            "`source` must be given: a .keras file does not say on which "
            f"images it was trained. Received: source={source!r}"
        )
    sets = [
        data.load(source, split=split, image_size=size, data_dir=data_dir)
        for split in ("train", "test")
    ]
    for image_set in sets:
        data.require_labels(image_set, source)
    return Subject(path, branch, encoder, *sets, source, result_folder(path))


def result_folder(path):
    """Where results go: `eval/` in a run's or an export's folder.

    A version's results go beside the version: TF Serving owns what is inside.
    """
    path = Path(path)
    if path.is_file() or (path / "saved_model.pb").is_file():
        path = path.parent
    return path / "eval"
