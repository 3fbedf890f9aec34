"""Tests of exports: written, read back here and in a process of its own."""

import io
import json
import platform
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image
from tensorflow import keras

from ressl_tf import data
from ressl_tf import export
from ressl_tf import keras_compat
from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib
from ressl_tf.version import __version__

# What a server knows: TensorFlow, the folder, and nothing of ours.
CONSUMER = """
import sys
import zipfile
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
    assert names == ["1", "2", "model_card.json", "model_card.md"]
    for version in ("1", "2"):
        assert (folder / version).stat().st_mode & 0o777 == 0o755
        names = {path.name for path in (folder / version).iterdir()}
        assert {"saved_model.pb", "variables", "assets.extra"} <= names
    loaded = tf.saved_model.load(str(folder / "1"))
    assert set(loaded.signatures) == {"serving_default", "serve_bytes"}
    (files,) = (
        loaded.signatures["serve_bytes"].structured_input_signature[1].values()
    )
    assert (files.name, files.dtype) == ("image_bytes", tf.string)
    assert files.shape.as_list() == [None]
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
    assert len(cards[0].pop("weights")) == 64
    assert cards[0] == {
        "format": 2,
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
            "shorter_side": 16,
        },
        "output": {"embedding": {"dtype": "float32", "shape": [None, 8]}},
        "data": {"source": config["data"]["source"], "split": "train"},
        "evaluation": [],
        "licence": cards[0]["licence"],
        "versions": {
            "ressl_tf": __version__,
            "tensorflow": tf.__version__,
            "keras": keras_compat.version(),
            "python": platform.python_version(),
        },
        "config": config,
    }
    assert cards[0]["licence"].startswith("No licence is stated")


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


@pytest.mark.parametrize(
    "function", ["saved_model.save", "Model.save", "warm_up"]
)
def test_a_failed_export_leaves_nothing_behind(workdir, monkeypatch, function):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    if function == "Model.save":
        monkeypatch.setattr(keras.Model, "save", fail)
    elif function == "warm_up":
        monkeypatch.setattr(export.writing.serving, "write_warm_up", fail)
    else:
        monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export.export(workdir)
    assert list((workdir / "export" / "encoder").iterdir()) == []
    assert not (workdir / "export" / "models.config").exists()
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


def encoded(image, kind):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


@pytest.mark.core
@pytest.mark.parametrize("shorter_side", [None, 19])
def test_image_files_are_cut_as_in_evaluation(workdir, tmp_path, shorter_side):
    version = export.export(workdir, shorter_side=shorter_side)
    generator = np.random.default_rng(0)
    files = []
    for number, (kind, shape) in enumerate(
        [("png", (40, 23, 3)), ("jpeg", (17, 50, 3)), ("png", (16, 16, 3))]
    ):
        image = generator.integers(0, 256, shape, np.uint8)
        files.append(encoded(image, kind))
        path = tmp_path / "images" / "train" / "a" / f"{number}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[-1])
    reader = data.open_reader(f"folder:{tmp_path / 'images'}", stream=True)
    images, _ = next(
        iter(
            data.make_ordered_dataset(
                reader, image_size=16, shorter_side=shorter_side
            )
        )
    )
    expected = export.load_encoder(version)(tf.cast(images, tf.float32))
    embed_bytes, _ = export.load_servable(version, "serve_bytes")
    for part in (slice(0, 3), slice(1, 2)):
        np.testing.assert_allclose(
            embed_bytes(tf.constant(files[part])), expected[part], atol=1e-5
        )
    assert export.read_card(version)["input"]["shorter_side"] == (
        shorter_side or 16
    )


def test_a_bad_image_is_named_and_the_next_request_served(exported):
    embed_bytes, _ = export.load_servable(
        exported / "export" / "encoder", "serve_bytes"
    )
    good = encoded(tiny.random_images(1)[0], "png")
    files = [good, b"no image", good, good[:-30], b""]
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"`image_bytes` must be image files.*by index:\] \[1 3 4\]",
    ):
        embed_bytes(tf.constant(files))
    features = embed_bytes(tf.constant([good, good]))
    np.testing.assert_allclose(features[0], features[1], rtol=1e-5)
    assert np.abs(features).mean() > 0.1


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_the_projection_has_length_one(finished, workdir, branch):
    _, images, expected = finished
    version = export.export(workdir, branch=branch, projection=True)
    serve = tf.saved_model.load(str(version)).signatures["serving_default"]
    outputs = serve(images=tf.constant(images, tf.float32))
    assert set(outputs) == {"embedding", "projection"}
    np.testing.assert_allclose(
        outputs["embedding"], expected[branch], atol=1e-5
    )
    config = workdir_lib.read_config(workdir)
    model = recipe.make_model(config)
    workdir_lib.restore(workdir, model)
    projector = getattr(model, branch).projector
    projection = projector(expected[branch], training=False).numpy()
    projection /= np.linalg.norm(projection, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["projection"], projection, atol=1e-5)
    card = export.read_card(version)
    assert card["output"]["projection"]["shape"] == [None, 16]


def test_images_as_bytes(finished, workdir):
    _, images, expected = finished
    version = export.export(workdir, input_dtype="uint8")
    serve = tf.saved_model.load(str(version)).signatures["serving_default"]
    features = serve(images=tf.constant(images))["embedding"]
    np.testing.assert_allclose(features, expected["student"], atol=1e-5)
    embed, size = export.load_servable(version)
    assert size == 16 and export.read_card(version)["input"]["dtype"] == "uint8"
    np.testing.assert_allclose(
        embed(images.astype(np.float32)), expected["student"], atol=1e-5
    )


@pytest.mark.core
@pytest.mark.parametrize("input_dtype", export.INPUT_DTYPES)
def test_warm_up_requests_run(workdir, input_dtype):
    from tensorflow_serving.apis import prediction_log_pb2

    version = export.export(workdir, "net", input_dtype=input_dtype)
    loaded = tf.saved_model.load(str(version))
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    names = []
    for record in tf.data.TFRecordDataset(str(path)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "net"
        names.append(request.model_spec.signature_name)
        inputs = {
            name: tf.constant(tf.make_ndarray(value))
            for name, value in request.inputs.items()
        }
        outputs = loaded.signatures[names[-1]](**inputs)
        assert outputs["embedding"].shape == (1, 8)
    assert names == ["serving_default", "serve_bytes"]


def test_configs_of_all_exports(workdir):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    export.export(workdir, "b")
    batching = workdir / "export" / "batching.config"
    assert "max_batch_size { value: 64 }" in batching.read_text()
    batching.write_text("# tuned by hand\n")
    export.export(workdir, "a", "teacher")
    (workdir / "export" / "c").mkdir()  # no export
    config = text_format.Parse(
        (workdir / "export" / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    )
    assert [
        (model.name, model.base_path, model.model_platform)
        for model in config.model_config_list.config
    ] == [("a", "/models/a", "tensorflow"), ("b", "/models/b", "tensorflow")]
    assert batching.read_text() == "# tuned by hand\n"


def test_the_card_has_what_was_measured_of_these_weights(workdir):
    weights = export.fingerprint(export.load_encoder(workdir).weights)
    result = {"encoder": weights, "source": "npz:x", "train_images": 64}
    write = workdir_lib.write_json
    write(workdir / "eval" / "knn.json", {**result, "accuracy": 0.25})
    solvers = {"sgd": {"accuracy": 0.5}, "lbfgs": {"accuracy": 0.75}}
    write(workdir / "eval" / "linear_probe.json", {**result, **solvers})
    version = export.export(workdir, licence="CC BY 4.0")
    card = export.read_card(version)
    assert card["weights"] == weights
    assert card["evaluation"] == [
        {"protocol": name, "source": "npz:x", "accuracy": accuracy}
        for name, accuracy in (
            ("k-NN", 0.25),
            ("linear probe, sgd", 0.5),
            ("linear probe, lbfgs", 0.75),
        )
    ]
    text = (workdir / "export" / "encoder" / "model_card.md").read_text()
    for part in (
        "# encoder\n",
        "| k-NN | npz:x | 25.00 |",
        "| linear probe, lbfgs | npz:x | 75.00 |",
        "\n## Licence\n\nCC BY 4.0\n",
        "`images`, float32 (N, 16, 16, 3), 0 to 255",
        "by mean 0.4914, 0.4822, 0.4465 and",
        "`embedding`, float32 (N, 8)",
        '"queue_size": 40',
    ):
        assert part in text
    # Of an earlier checkpoint, or of the other branch.
    result["encoder"] = "0" * 64
    write(workdir / "eval" / "knn.json", {**result, "accuracy": 0.25})
    (workdir / "eval" / "linear_probe.json").write_text("{")
    assert export.read_card(export.export(workdir))["evaluation"] == []
    text = (workdir / "export" / "encoder" / "model_card.md").read_text()
    assert "Not evaluated." in text


def test_what_cannot_be_loaded_says_why(exported, tmp_path):
    embed, _ = export.load_servable(exported / "export" / "encoder" / "1")
    with pytest.raises(
        ValueError, match=r"`images` must be of.*\(2, 9, 9, 3\)"
    ):
        embed(np.zeros((2, 9, 9, 3), np.float32))
    with pytest.raises(ValueError, match=r"`images` must be of.*\(16, 16, 3\)"):
        embed(np.zeros((16, 16, 3), np.float32))

    version = tmp_path / "1"
    shutil.copytree(exported / "export" / "encoder" / "1", version)
    with pytest.raises(
        ValueError, match="signature 'classify'.*has serv.*, serv"
    ):
        export.load_servable(version, "classify")

    card = version / "assets.extra" / "model_card.json"
    values = json.loads(card.read_text())
    card.write_text(json.dumps({**values, "format": 3}))
    for load in (export.load_encoder, export.read_card):
        with pytest.raises(
            ValueError, match="newer format.*update ressl_tf.*of format 3"
        ):
            load(version)
    # Those of the first format have no such field.
    card.write_text(json.dumps({k: values[k] for k in values if k != "format"}))
    assert export.load_encoder(version).output_shape == (None, 8)


def test_keras_files_of_another_generation_and_broken_ones(exported, tmp_path):
    path = tmp_path / "encoder.keras"
    source = exported / "export/encoder/1/assets.extra/encoder.keras"
    other = "2.15.0" if keras_compat.KERAS_3 else "3.9.0"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "metadata.json":
                content = json.dumps({"keras_version": other})
            new.writestr(name, content)
    with pytest.raises(ValueError, match=f"saved by Keras {other}, which this"):
        export.load_encoder(path)
    path.write_bytes(source.read_bytes()[:1000])
    with pytest.raises(ValueError, match="must be a .keras file, complete"):
        export.load_encoder(path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "a/b"}, "`name` must be of letters.*'a/b'"),
        ({"name": ""}, "`name` must be of letters.*''"),
        ({"name": ".."}, "`name` must not start with a dot"),
        ({"input_dtype": "int8"}, "`input_dtype` must be one of.*'int8'"),
        ({"shorter_side": 15}, "`shorter_side` must be at least.*16.*=15"),
    ],
)
def test_wrong_options(workdir, options, message):
    with pytest.raises(ValueError, match=message):
        export.export(workdir, **options)
    assert not (workdir / "export").exists()
