"""Tests of tools.visualize, tools.report and what they show side by side."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from tool_process import assert_mistake
from tool_process import call

from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation.visualize import gallery as gallery_lib


class FakeEncoder:
    """Its features are the mean colour of each image, and where it was."""

    def __init__(self, folder, image_size=tiny.IMAGE_SIZE, source=None):
        self.folder = folder / "eval"
        self.image_size = image_size
        self.config = source and {"data": {"source": source, "data_dir": ""}}
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        return images[:, 0, 0, :]

    def fingerprint(self):
        return "weights"

    def file_name(self, name):
        return f"{name}_teacher"


def test_gallery_of_labelled_images(tmp_path):
    source = tiny.write_images(tmp_path)
    encoders = {
        "fine": FakeEncoder(tmp_path / "a", source=source),
        "coarse": FakeEncoder(tmp_path / "b", image_size=8),
    }
    gallery = gallery_lib.open_gallery(encoders, cache=True)
    assert gallery.source == source
    assert gallery.query_images.shape == (24, 16, 16, 3)  # the finest
    assert gallery.bank_images.shape == (64, 16, 16, 3)
    np.testing.assert_array_equal(gallery.query_labels, np.arange(24) % 4)
    np.testing.assert_array_equal(gallery.bank_labels, np.arange(64) % 4)
    assert gallery.class_names == ("0", "1", "2", "3")
    queries, bank = gallery.features["fine"]
    np.testing.assert_array_equal(queries, gallery.query_images[:, 0, 0])
    np.testing.assert_array_equal(bank, gallery.bank_images[:, 0, 0])
    assert (gallery.features["coarse"][1] != bank).any()
    assert gallery.accuracies.keys() == encoders.keys()
    assert all(0 <= x <= 1 for x in gallery.accuracies.values())
    # Kept where the other tools keep them, and taken from there.
    files = sorted(path.name for path in (tmp_path / "a/eval").rglob("*.npz"))
    assert files == ["test_teacher.npz", "train_teacher.npz"]
    again = FakeEncoder(tmp_path / "a", source=source)
    kept = gallery_lib.open_gallery({"fine": again}, cache=True).features
    np.testing.assert_array_equal(kept["fine"][0], queries)
    assert again.calls == 0


def test_gallery_without_a_test_set_holds_some_images_out(tmp_path):
    images = np.random.default_rng(0).integers(
        0, 256, (40, 16, 16, 3), dtype=np.uint8
    )
    np.savez(tmp_path / "flat.npz", images=images)
    source = f"npz:{tmp_path}/flat.npz"
    encoder = FakeEncoder(tmp_path)
    gallery = gallery_lib.open_gallery({"a": encoder}, source)
    assert len(gallery.query_images) == 8 and len(gallery.bank_images) == 32
    assert gallery.query_labels is None and gallery.bank_labels is None
    assert gallery.class_names == () and gallery.accuracies == {}
    queries, bank = gallery.features["a"]
    np.testing.assert_array_equal(queries, gallery.query_images[:, 0, 0])
    np.testing.assert_array_equal(bank, gallery.bank_images[:, 0, 0])
    both = np.concatenate([gallery.query_images, gallery.bank_images])
    assert len(np.unique(both.reshape(40, -1), axis=0)) == 40
    other = gallery_lib.open_gallery({"a": encoder}, source, seed=1)
    assert (other.query_images != gallery.query_images).any()
    assert not (tmp_path / "eval").exists()


def test_a_partly_labelled_source_counts_as_unlabelled(tmp_path):
    path = tmp_path / "images.npz"
    tiny.write_images(tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["y_test"] = np.where(np.arange(24) < 20, arrays["y_test"], -1)
    np.savez(path, **arrays)
    gallery = gallery_lib.open_gallery(
        {"a": FakeEncoder(tmp_path)}, f"npz:{path}"
    )
    assert gallery.query_labels is None and gallery.class_names == ()
    assert len(gallery.query_images) == 24


@pytest.mark.parametrize(
    "sources, message",
    [
        ([None], r"`source` must be given.*on nothing known"),
        (["photos", "npz:x"], r"same for all.*\['npz:x', 'photos'\]"),
    ],
)
def test_images_that_are_not_known(tmp_path, sources, message):
    encoders = {
        str(number): FakeEncoder(tmp_path, source=source)
        for number, source in enumerate(sources)
    }
    with pytest.raises(ValueError, match=message):
        gallery_lib.open_gallery(encoders)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders "a" and "b/b" of runs of 4 steps, as if they were trained."""
    folder = tmp_path_factory.mktemp("visualize")
    source = tiny.write_images(folder)
    changes = {"train.epochs": 1.0}
    config = tiny.make_config(source, changes, backbone="resnet18")
    for name in ("a", "b/b"):
        workdir_lib.write_json(folder / name / "config.json", config)
        for step in (2, 4):
            row = {
                "step": step,
                "epoch": step / tiny.STEPS_PER_EPOCH,
                "loss": 4.0 / step,
                "embedding_std": 0.9,
                "target_entropy": 2.0,
            }
            workdir_lib.append_metrics(folder / name, row)
        model = recipe.make_model(config)  # of other weights each time
        manager = workdir_lib.checkpoint_manager(folder / name, model)
        manager.save(checkpoint_number=4)
    return folder


def test_two_runs_side_by_side(runs, tmp_path):
    output = tmp_path / "pictures"
    code, stdout, lines = call(
        "visualize",
        f"--workdir={runs}/a,{runs}/b/b",
        f"--output={output}",
        "--num_images=20",
        "--num_queries=3",
        "--num_neighbours=4",
    )
    assert (code, lines) == (0, [])
    for name in ("a", "b"):
        assert f"\n{name}: k-NN accuracy " in f"\n{stdout}"
    pictures = [output / f"{x}.png" for x in ("tsne", "neighbours", "curves")]
    assert stdout.splitlines()[-3:] == [str(path) for path in pictures]
    assert {path.name for path in output.iterdir()} == {
        "tsne.png",
        "neighbours.png",
        "curves.png",
    }
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 300
    # The accuracy is that of tools.knn.
    assert (runs / "a" / "eval" / "features" / "test.npz").is_file()


def test_the_teacher_on_unlabelled_images_and_a_report(runs, tmp_path):
    source = tiny.write_images(tmp_path, labelled=False)
    code, stdout, lines = call(
        "visualize",
        f"--workdir={runs}/a",
        f"--source={source}",
        "--branch=teacher",
        "--pictures=neighbours,tsne",
        "--labels=Any name",
        "--nocache_features",
    )
    assert code == 0
    assert lines == [
        "INFO: not all images have a label: pictures without classes"
    ]
    folder = runs / "a" / "eval"
    assert stdout.splitlines()[-2:] == [
        f"{folder}/tsne_teacher.png",
        f"{folder}/neighbours_teacher.png",
    ]
    assert "k-NN" not in stdout
    assert not (folder / "curves.png").exists()

    code, stdout, lines = call("report", f"--workdir={runs}/a")
    assert (code, stdout, lines) == (0, f"{runs}/a/report.html\n", [])
    text = (runs / "a" / "report.html").read_text()
    assert "finished: 4 of 4 steps" in text
    assert text.count("data:image/png;base64,") == 2


def test_a_run_without_a_checkpoint_has_curves(runs, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_text((runs / "a" / name).read_text())
    code, stdout, lines = call("visualize", f"--workdir={tmp_path}")
    assert (code, stdout) == (0, f"{tmp_path}/eval/curves.png\n")
    assert lines == [f"INFO: curves alone: {tmp_path} has no checkpoint yet"]


@pytest.mark.parametrize(
    "tool, flags, parts",
    [
        (
            "visualize",
            ["--workdir=x,y"],
            ["`--output` must be the folder", "Received: --output=None"],
        ),
        (
            "visualize",
            ["--workdir=x", "--pictures=tsne,umap"],
            ["must be of tsne, neighbours, curves", "--pictures=tsne,umap"],
        ),
        (
            "visualize",
            ["--workdir=x,y", "--output=z", "--labels=one"],
            ["`--labels` must be as many", "=x,y, with the labels one"],
        ),
        (
            "visualize",
            ["--workdir=x,x", "--output=z", "--labels=one,two"],
            ["`--workdir` must be different", "Received: --workdir=x,x"],
        ),
        ("report", ["--workdir=no"], ["`workdir` must be", "workdir='no'"]),
    ],
)
def test_mistakes_are_one_line(tool, flags, parts):
    assert_mistake(call(tool, *flags), *parts)


@pytest.mark.parametrize(
    "paths, names",
    [
        (["/x/a"], ["a"]),
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/a/e", "/y/b/e"], ["a/e", "b/e"]),
        (["/x/a", "/x/a"], ["//x/a", "//x/a"]),
    ],
)
def test_names_are_the_least_that_tells_paths_apart(paths, names):
    assert gallery_lib.short_names(map(Path, paths)) == names
