"""Tests of exports: written, read back here and in a process of its own."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorflow import keras

from ressl_tf import export
from ressl_tf import recipe
from ressl_tf.version import __version__

# What a server knows: TensorFlow, the folder, and nothing of ours.
CONSUMER = """
import sys
for name in ("ressl_tf", "keras", "tf_keras", "keras_cv", "ml_collections"):
    sys.modules[name] = None
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
images = np.load(sys.argv[2]).astype(np.float32)
parts = [serve(images=images[a:b])["embedding"] for a, b in ((0, 1), (1, 6))]
np.save(sys.argv[3], np.concatenate(parts))
"""


@pytest.fixture(autouse=True)
def light(monkeypatch):
    tiny.lighten(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and what its two encoders say of six images."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        # The branches drift apart at once.
        changes = {"method.teacher_momentum": 0.5, "train.epochs": 2.0}
        workdir, run = tiny.make_run(tmp_path_factory.mktemp("run"), changes)
        config = tiny.make_config("unused", changes)
        images = tiny.random_images(6)
        expected = {
            branch: recipe.make_encoder(
                config, getattr(run.model, branch).backbone
            )(images.astype(np.float32), training=False).numpy()
            for branch in export.BRANCHES
        }
    for features in expected.values():
        assert features.shape == (6, 8) and np.abs(features).mean() > 0.1
    return workdir, images, expected


@pytest.fixture
def workdir(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A run with the student as version 1 and the teacher as version 2."""
    workdir = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(finished[0], workdir)
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        first = export.export(workdir)
        before = {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}
        second = export.export(workdir, branch="teacher")
    assert first == workdir / "export" / "encoder" / "1"
    assert second == workdir / "export" / "encoder" / "2"
    assert {p: p.read_bytes() for p in before} == before
    return workdir


@pytest.mark.core
def test_a_process_without_our_code_gets_the_same_features(
    finished, exported, tmp_path
):
    _, images, expected = finished
    paths = [tmp_path / name for name in ("images.npy", "features.npy")]
    np.save(paths[0], images)
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER, exported / "export/encoder/1", *paths],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    features = np.load(paths[1])
    np.testing.assert_allclose(features, expected["student"], atol=1e-5)


@pytest.mark.core
def test_layout_and_signature(exported):
    folder = exported / "export" / "encoder"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["1", "2", "model_card.json"]
    for version in ("1", "2"):
        assert (folder / version).stat().st_mode & 0o777 == 0o755
        names = {path.name for path in (folder / version).iterdir()}
        assert {"saved_model.pb", "variables", "assets.extra"} <= names
    loaded = tf.saved_model.load(str(folder / "1"))
    assert list(loaded.signatures) == ["serving_default"]
    serve = loaded.signatures["serving_default"]
    (images,) = serve.structured_input_signature[1].values()
    assert (images.name, images.dtype) == ("images", tf.float32)
    assert images.shape.as_list() == [None, 16, 16, 3]
    (embedding,) = serve.structured_outputs.values()
    assert list(serve.structured_outputs) == ["embedding"]
    assert embedding.shape.as_list() == [None, 8]


def test_model_cards_belong_to_their_versions(exported):
    folder = exported / "export" / "encoder"
    cards = [export.read_card(folder / version) for version in ("1", "2")]
    assert [card["branch"] for card in cards] == ["student", "teacher"]
    assert json.loads((folder / "model_card.json").read_text()) == cards[1]
    config = json.loads((exported / "config.json").read_text())
    assert cards[0] == {
        "name": "encoder",
        "branch": "student",
        "steps": 8,
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": [None, 16, 16, 3],
            "range": [0, 255],
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.247, 0.2435, 0.2616],
        },
        "output": {"name": "embedding", "dtype": "float32", "shape": [None, 8]},
        "versions": {"ressl_tf": __version__, "tensorflow": tf.__version__},
        "config": config,
    }


def test_branches_differ(finished):
    expected = finished[2]
    difference = np.abs(expected["student"] - expected["teacher"]).mean()
    assert difference > 1e-3


@pytest.mark.core
@pytest.mark.parametrize(
    "path, branch, of",
    [
        ("", "student", "student"),
        ("", "teacher", "teacher"),
        ("export/encoder", "student", "teacher"),  # the newest version
        ("export/encoder/1", "student", "student"),
        ("export/encoder/1/assets.extra/encoder.keras", "student", "student"),
    ],
)
def test_load_encoder(finished, exported, path, branch, of):
    _, images, expected = finished
    encoder = export.load_encoder(exported / path, branch)
    images = images.astype(np.float32)
    for part in (slice(0, 1), slice(1, 6)):
        np.testing.assert_allclose(
            encoder(images[part], training=False), expected[of][part], atol=1e-5
        )


@pytest.mark.parametrize(
    "path, of", [("export/encoder", "teacher"), ("export/encoder/1", "student")]
)
def test_load_servable(finished, exported, path, of):
    _, images, expected = finished
    embed, size = export.load_servable(str(exported / path))
    assert size == 16
    features = embed(tf.constant(images, tf.float32))
    np.testing.assert_allclose(features, expected[of], atol=1e-5)


def test_a_loaded_encoder_can_be_trained(exported):
    encoder = export.load_encoder(exported / "export" / "encoder")
    head = keras.layers.Dense(2, name="head")(encoder.output)
    model = keras.Model(encoder.input, head)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = [np.array(v) for v in encoder.trainable_variables]
    images = tiny.random_images(8).astype(np.float32)
    model.fit(images, np.arange(8) % 2, verbose=0)
    after = [np.array(v) for v in encoder.trainable_variables]
    kernels = [index for index, value in enumerate(before) if value.ndim == 4]
    assert len(before) > 10 and kernels
    for index in kernels:
        assert np.any(before[index] != after[index])


def test_a_name_has_versions_of_its_own(workdir):
    path = export.export(workdir, name="teacher", branch="teacher")
    assert path == workdir / "export" / "teacher" / "1"
    # Versions are counted from the highest, and only real ones.
    path.rename(path.with_name("7"))
    (workdir / "export" / "teacher" / "12").mkdir()
    assert export.export(workdir, name="teacher").name == "8"


@pytest.mark.parametrize("function", ["saved_model.save", "Model.save"])
def test_a_failed_export_leaves_nothing_behind(workdir, monkeypatch, function):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    if function == "Model.save":
        monkeypatch.setattr(keras.Model, "save", fail)
    else:
        monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export.export(workdir)
    assert list((workdir / "export" / "encoder").iterdir()) == []
    assert export.find_version(workdir / "export" / "encoder") is None


def test_find_version(tmp_path):
    assert export.find_version(tmp_path / "nowhere") is None
    for name in ("2", "10", "x", "11"):
        (tmp_path / name).mkdir()
        if name != "11":
            (tmp_path / name / "saved_model.pb").write_text("")
    assert export.find_version(tmp_path) == tmp_path / "10"
    assert export.find_version(tmp_path / "2") == tmp_path / "2"


def test_nothing_there(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / "nowhere.keras"):
        expected = (
            f"`path` must be the folder of a run.*Received: path='{path}'"
        )
        with pytest.raises(ValueError, match=expected):
            export.load_encoder(path)
    with pytest.raises(ValueError, match="`path` must be an export.*nowhere'"):
        export.load_servable(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no config.json.*nowhere'"):
        export.export(tmp_path / "nowhere")


def test_no_checkpoint(workdir):
    shutil.rmtree(workdir / "checkpoints")
    for function in (export.export, export.load_encoder):
        with pytest.raises(ValueError, match=f"no checkpoint.*{workdir}'"):
            function(workdir)


def test_unknown_branch(workdir):
    for function in (export.export, export.load_encoder):
        with pytest.raises(
            ValueError, match="one of student, teacher. Received: branch='ema'"
        ):
            function(workdir, branch="ema")


def test_no_card(tmp_path):
    with pytest.raises(ValueError, match=f"model_card.json.*'{tmp_path}'"):
        export.read_card(tmp_path)
