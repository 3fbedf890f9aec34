"""Tests of what is evaluated, on what, and where the result goes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from ressl_tf import export
from ressl_tf.evaluation import features
from ressl_tf.evaluation import subject as subject_lib

KERAS_FILE = "export/encoder/1/assets.extra/encoder.keras"


@pytest.fixture(autouse=True)
def light(monkeypatch):
    tiny.lighten(monkeypatch)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run with the student exported as "encoder", the teacher as "slow"."""
    folder = tmp_path_factory.mktemp("subject")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        workdir, _ = tiny.make_run(folder, {"method.teacher_momentum": 0.5})
        export.export(workdir)
        export.export(workdir, name="slow", branch="teacher")
    return workdir


@pytest.fixture(scope="module")
def source(exported):
    return json.loads((exported / "config.json").read_text())["data"]["source"]


@pytest.mark.core
def test_run_export_and_keras_file_give_the_same_features(exported, source):
    results = []
    for path in ("", "export/encoder", "export/encoder/1", KERAS_FILE):
        given = source if path == KERAS_FILE else None
        subject = subject_lib.open_subject(exported / path, source=given)
        assert subject.encoder.branch == "student"
        assert subject.source == source
        assert subject.num_classes == tiny.NUM_CLASSES
        assert len(subject.train_set.images) == tiny.NUM_IMAGES
        assert len(subject.test_set.images) == tiny.NUM_TEST_IMAGES
        results.append(subject.extract())
    train, train_labels, test, test_labels = results[0]
    assert train.shape == (64, 8) and test.shape == (24, 8)
    assert np.abs(train).mean() > 0.1
    np.testing.assert_array_equal(train_labels, np.arange(64) % 4)
    np.testing.assert_array_equal(test_labels, np.arange(24) % 4)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.core
def test_branches(exported):
    def features(path, branch):
        subject = subject_lib.open_subject(exported / path, branch)
        return subject.encoder.branch, subject.extract()[2]

    student = features("", None)
    teacher = features("", "teacher")
    assert (student[0], teacher[0]) == ("student", "teacher")
    assert np.abs(student[1] - teacher[1]).mean() > 1e-3
    for branch in (None, "teacher"):
        found = features("export/slow", branch)
        assert found[0] == "teacher"
        np.testing.assert_allclose(found[1], teacher[1], atol=1e-5)
    for path, branch, has in (
        ("export/slow", "student", "teacher"),
        ("export/encoder/1", "teacher", "student"),
    ):
        with pytest.raises(
            ValueError,
            match=f"what was exported, '{has}'.*Received: branch='{branch}'",
        ):
            subject_lib.open_subject(exported / path, branch)


@pytest.mark.parametrize(
    "path, folder",
    [
        ("", "eval"),
        ("export/encoder", "export/encoder/eval"),
        ("export/encoder/1", "export/encoder/eval"),
        (KERAS_FILE, "export/encoder/1/assets.extra/eval"),
    ],
)
def test_where_results_go(exported, path, folder):
    assert subject_lib.result_folder(exported / path) == exported / folder


def test_results_stand_beside_each_other(exported, source, tmp_path):
    shutil.copytree(exported, tmp_path / "run")
    path = tmp_path / "run"
    for branch, accuracy in ((None, 0.5), ("teacher", 0.25)):
        subject = subject_lib.open_subject(path, branch)
        subject.write("knn", {"accuracy": accuracy})
    names = sorted(p.name for p in (path / "eval").iterdir())
    assert names == ["knn.json", "knn_teacher.json"]
    common = {
        "path": str(path),
        "source": source,
        "train_images": 64,
        "test_images": 24,
    }
    student, teacher = (
        json.loads((path / "eval" / name).read_text()) for name in names
    )
    # Each says which weights it is of.
    weights = [result.pop("encoder") for result in (student, teacher)]
    assert weights[0] != weights[1]
    assert weights[1] == subject.encoder.fingerprint()
    assert student == {**common, "branch": "student", "accuracy": 0.5}
    assert teacher == {**common, "branch": "teacher", "accuracy": 0.25}


def test_another_source(exported, tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.integers(0, 256, (9, 20, 20, 3), dtype=np.uint8),
        "y_train": np.arange(9) % 3,
        "x_test": generator.integers(0, 256, (6, 20, 20, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    np.savez(tmp_path / "other.npz", **arrays)
    source = f"npz:{tmp_path}/other.npz"
    for path in (exported, exported / "export" / "encoder"):
        subject = subject_lib.open_subject(path, source=source)
        assert subject.source == source and subject.num_classes == 3
        # Brought to the size that the encoder takes.
        assert subject.train_set.images.shape == (9, 16, 16, 3)


@pytest.mark.core
def test_features_are_kept_until_something_changes(
    exported, source, tmp_path, monkeypatch
):
    shutil.copytree(exported, tmp_path / "run")
    calls = []
    extract = features.FeatureExtractor.extract

    def counted(self, *arguments, **options):
        calls.append(arguments)
        return extract(self, *arguments, **options)

    monkeypatch.setattr(features.FeatureExtractor, "extract", counted)

    def extracted(branch=None, source=None, cache=True):
        subject = subject_lib.open_subject(tmp_path / "run", branch, source)
        before = len(calls)
        return subject.extract(cache=cache), len(calls) - before

    student, count = extracted()
    assert count == 2
    for cache, expected in ((True, 0), (False, 2)):
        again, count = extracted(cache=cache)
        assert count == expected
        for a, b in zip(student, again, strict=True):
            np.testing.assert_array_equal(a, b)
    # The teacher's are others, and lie beside the student's.
    teacher, count = extracted("teacher")
    assert count == 2 and np.abs(teacher[0] - student[0]).max() > 1e-3
    assert extracted()[1] == 0
    names = sorted(p.name for p in (tmp_path / "run/eval/features").iterdir())
    assert names == [
        "test.npz",
        "test_teacher.npz",
        "train.npz",
        "train_teacher.npz",
    ]
    # Other images, as many of the same size.
    with np.load(source.removeprefix("npz:")) as file:
        arrays = dict(file)
    arrays["x_test"] = 255 - arrays["x_test"]
    np.savez(tmp_path / "other.npz", **arrays)
    other, count = extracted(source=f"npz:{tmp_path}/other.npz")
    assert count == 1
    np.testing.assert_array_equal(other[0], student[0])
    assert np.abs(other[2] - student[2]).max() > 1e-3
    # A broken file is written anew.
    (tmp_path / "run/eval/features/train.npz").write_bytes(b"PK")
    again, count = extracted()
    assert count == 2
    np.testing.assert_array_equal(again[0], student[0])


def test_streamed_images_give_the_same_features(exported, source, tmp_path):
    with np.load(source.removeprefix("npz:")) as file:
        arrays = dict(file)
    for split in ("train", "test"):
        for number, (image, label) in enumerate(
            zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)
        ):
            path = tmp_path / split / str(label) / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    folder = f"folder:{tmp_path}"
    held = subject_lib.open_subject(exported, source=folder)
    streamed = subject_lib.open_subject(exported, source=folder, stream=True)
    expected = held.extract()
    for _ in range(2):
        for a, b in zip(expected, streamed.extract(cache=True), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert streamed.num_classes == held.num_classes == tiny.NUM_CLASSES
    reader, held_reader = streamed.reader("train"), held.reader("train")
    assert reader.num_images == held_reader.num_images == tiny.NUM_IMAGES
    np.testing.assert_array_equal(reader.labels, held_reader.labels)
    with pytest.raises(ValueError, match="`shorter_side` must go with"):
        subject_lib.open_subject(exported, source=folder, shorter_side=20)
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.fromarray(arrays["x_train"][0]).save(flat / "0.png")
    with pytest.raises(ValueError, match="must be labelled"):
        subject_lib.open_subject(exported, source=f"folder:{flat}", stream=True)


def test_errors(exported, tmp_path):
    with pytest.raises(ValueError, match="`source` must be given: a .keras"):
        subject_lib.open_subject(exported / KERAS_FILE)
    with pytest.raises(ValueError, match="`path` must be the folder of a run"):
        subject_lib.open_subject(tmp_path)
    with pytest.raises(ValueError, match="`branch` must be one of.*'ema'"):
        subject_lib.open_subject(exported, "ema")
    with pytest.raises(ValueError, match="`source` must be 'photos'.*'no'"):
        subject_lib.open_subject(exported, source="no")
    unlabelled = tiny.write_images(tmp_path, labelled=False)
    with pytest.raises(ValueError, match="labelled to be probed, but 64 of"):
        subject_lib.open_subject(exported, source=unlabelled)
    shutil.copytree(exported / "export" / "encoder", tmp_path / "bare")
    Path(tmp_path / "bare/1/assets.extra/model_card.json").unlink()
    with pytest.raises(ValueError, match="has no assets.extra/model_card.json"):
        subject_lib.open_subject(tmp_path / "bare")
