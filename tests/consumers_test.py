"""What others make of an export: servers and runtimes, each in its process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image
from tool_process import assert_mistake
from tool_process import call

from ressl_tf import export
from ressl_tf import interop
from ressl_tf.benchmark import consumers

TESTS = Path(__file__).resolve().parent
NEEDS = "needs the extra `consumers`"

# Each consumer: argv is the model, the images and where the outputs go. What
# it must not import, it cannot.
_BEGIN = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import numpy as np
model, images, output = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
batches = [images[:1], images[1:]]
"""
_END = """
np.savez(output, **{
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
})
"""
_OURS = ["ressl_tf", "keras_cv", "ml_collections"]
_KERAS = [*_OURS, "keras", "tf_keras"]
_ALL = [*_KERAS, "tensorflow"]

OPENVINO = """
import openvino
options = {"INFERENCE_PRECISION_HINT": "f32"}
compiled = openvino.Core().compile_model(model, "CPU", options)
names = [port.any_name for port in compiled.outputs]
parts = []
for batch in batches:
    found = compiled({"images": batch})
    parts.append({name: found[name].copy() for name in names})
"""
ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession(model)
names = [value.name for value in session.get_outputs()]
parts = [
    dict(zip(names, session.run(names, {"images": batch})))
    for batch in batches
]
"""
LITERT = """
from ai_edge_litert.interpreter import Interpreter
serve = Interpreter(model).get_signature_runner("serving_default")
parts = [serve(images=batch) for batch in batches]
"""
KERAS = """
import keras
encoder = keras.models.load_model(model)
parts = [
    {"embedding": keras.ops.convert_to_numpy(encoder(batch, training=False))}
    for batch in batches
]
"""
TORCH = """
import torch
sys.path.insert(0, sys.argv[4])
import torch_networks
torch_networks.RESNETS["tiny"] = ((1, 1), torch_networks.BASIC)
network = torch_networks.ResNet("tiny", None, width=4, stem="small")
network.load_state_dict(torch.load(model, weights_only=True))
mean, std = (
    torch.tensor([float(x) for x in text.split(",")])[:, None, None]
    for text in sys.argv[5:]
)
parts = []
for batch in batches:
    batch = torch.from_numpy(batch).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        features = network.eval().features((batch - mean) / std)
    parts.append({"embedding": features.numpy()})
"""
# TensorFlow Serving loads by a session, too. After the images, image files.
SESSION = """
import json
import tensorflow as tf
files = [open(path, "rb").read() for path in sys.argv[4:]]
v1 = tf.compat.v1
with v1.Session(graph=tf.Graph()) as session:
    signatures = v1.saved_model.loader.load(
        session, ["serve"], model
    ).signature_def

    def serve(signature, name, values):
        signature = signatures[signature]
        outputs = {k: v.name for k, v in signature.outputs.items()}
        return session.run(outputs, {signature.inputs[name].name: values})

    parts = [serve("serving_default", "images", batch) for batch in batches]
    try:
        serve("serve_bytes", "image_bytes", [files[0], b"none", files[1]])
    except tf.errors.InvalidArgumentError as error:
        print(json.dumps(error.message))
    for part, some in zip(parts, (files[:1], files[1:])):
        served = serve("serve_bytes", "image_bytes", some)
        part["of_bytes"] = served["embedding"]
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two exports of one run: one of float32, one of uint8 that projects."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        workdir, _ = tiny.make_run(tmp_path_factory.mktemp("run"))
        return {
            "float32": export.export(workdir),
            "uint8": export.export(
                workdir, "bytes", input_dtype="uint8", projection=True
            ),
        }


@pytest.fixture(scope="module")
def expected(exports):
    """{type of the images: outputs of the SavedModel in TensorFlow}."""
    results = {}
    for dtype, path in exports.items():
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]
        images = tf.constant(tiny.random_images(6).astype(dtype))
        outputs = serve(images=images).items()
        results[dtype] = {name: value.numpy() for name, value in outputs}
    assert set(results["float32"]) == {"embedding"}
    assert set(results["uint8"]) == {"embedding", "projection"}
    for outputs in results.values():
        for value in outputs.values():
            assert value.shape[0] == 6 and np.abs(value).mean() > 0.1
            assert np.abs(value[0] - value[1]).max() > 1e-2
    return results


def run(folder, code, blocked, model, dtype, *arguments, **environment):
    """What a consumer prints, and what it makes of six images."""
    np.save(folder / "images.npy", tiny.random_images(6).astype(dtype))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _BEGIN.format(blocked=blocked) + code + _END,
            *map(str, (model, folder / "images.npy", folder / "found.npz")),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return done.stdout, dict(found)


def assert_same(found, expected, atol=1e-4):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=atol, err_msg=name
        )


def test_saved_model_cli(exports, expected, tmp_path):
    np.savez(
        tmp_path / "images.npz", some=tiny.random_images(6).astype(np.float32)
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tensorflow.python.tools.saved_model_cli",
            "run",
            f"--dir={exports['float32']}",
            "--tag_set=serve",
            "--signature_def=serving_default",
            f"--inputs=images={tmp_path / 'images.npz'}[some]",
            f"--outdir={tmp_path}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "embedding.npy")
    assert_same({"embedding": found}, expected["float32"])


def test_a_session_without_keras(exports, expected, tmp_path):
    files = []
    for number, image in enumerate(tiny.random_images(6)):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    stdout, found = run(
        tmp_path, SESSION, _KERAS, exports["float32"], "float32", *files
    )
    message = json.loads(stdout)
    assert "`image_bytes` must be image files" in message
    assert "by index:] [1]" in message
    # And the next request was served.
    embedding = expected["float32"]["embedding"]
    assert_same(found, {"embedding": embedding, "of_bytes": embedding})


@pytest.mark.parametrize("dtype", export.INPUT_DTYPES)
def test_openvino_reads_the_saved_model(exports, expected, tmp_path, dtype):
    pytest.importorskip("openvino", reason=NEEDS)
    _, found = run(tmp_path, OPENVINO, _ALL, exports[dtype], dtype)
    assert_same(found, expected[dtype])


def test_onnx_runtime(exports, expected, tmp_path):
    pytest.importorskip("tf2onnx", reason=NEEDS)
    pytest.importorskip("onnxruntime", reason=NEEDS)
    model = tmp_path / "encoder.onnx"
    code, stdout, lines = call(
        "convert", f"--workdir={exports['float32']}", f"--output={model}"
    )
    assert (code, lines) == (0, [])
    assert stdout == f"{model}: {model.stat().st_size:,} bytes\n"
    _, found = run(tmp_path, ONNX, _ALL, model, "float32")
    assert_same(found, expected["float32"])


def test_onnx_runtime_with_bytes(exports, expected, tmp_path):
    pytest.importorskip("tf2onnx", reason=NEEDS)
    onnx = pytest.importorskip("onnx", reason=NEEDS)
    pytest.importorskip("onnxruntime", reason=NEEDS)
    model = tmp_path / "encoder.onnx"
    interop.to_onnx(exports["uint8"].parent, model)
    _, found = run(tmp_path, ONNX, _ALL, model, "uint8")
    assert_same(found, expected["uint8"])
    (images,) = onnx.load(model).graph.input
    shape = images.type.tensor_type.shape.dim
    assert images.name == "images" and shape[0].dim_param == "N"
    assert [size.dim_value for size in shape[1:]] == [16, 16, 3]


@pytest.mark.parametrize("dtype", export.INPUT_DTYPES)
def test_litert(exports, expected, tmp_path, dtype):
    pytest.importorskip("ai_edge_litert", reason=NEEDS)
    model = tmp_path / "encoder.tflite"
    interop.to_litert(exports[dtype], model)
    _, found = run(tmp_path, LITERT, _ALL, model, dtype)
    assert_same(found, expected[dtype])


def test_litert_in_half_precision(exports, expected, tmp_path):
    pytest.importorskip("ai_edge_litert", reason=NEEDS)
    model = tmp_path / "encoder.tflite"
    code, stdout, lines = call(
        "convert",
        f"--workdir={exports['float32']}",
        f"--output={model}",
        "--float16",
    )
    assert (code, lines) == (0, [])
    assert stdout == f"{model}: {model.stat().st_size:,} bytes\n"
    _, found = run(tmp_path, LITERT, _ALL, model, "float32")
    assert_same(found, expected["float32"], atol=1e-2)
    embedding = expected["float32"]["embedding"]
    assert np.abs(found["embedding"] - embedding).max() > 1e-5


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_the_keras_file_without_our_code(exports, expected, tmp_path, backend):
    if backend == "torch":
        pytest.importorskip("torch")
    # TensorFlow is needed with torch, too: by Keras' Normalization.
    model = exports["float32"] / "assets.extra" / "encoder.keras"
    _, found = run(
        tmp_path, KERAS, _OURS, model, "float32", KERAS_BACKEND=backend
    )
    assert_same(found, expected["float32"])


def test_a_state_dict_in_torch(exports, expected, tmp_path):
    pytest.importorskip("torch")
    encoder = export.load_encoder(exports["float32"])
    model = tmp_path / "encoder.pth"
    interop.write_state_dict(model, interop.to_state_dict(encoder))
    pixels = export.read_card(exports["float32"])["input"]
    statistics = [",".join(map(str, pixels[name])) for name in ("mean", "std")]
    _, found = run(tmp_path, TORCH, _ALL, model, "float32", TESTS, *statistics)
    assert_same(found, expected["float32"])


@pytest.mark.parametrize("function", ["to_onnx", "to_litert"])
def test_what_cannot_be_converted(tmp_path, function):
    convert = getattr(interop, function)
    suffix = {"to_onnx": ".onnx", "to_litert": ".tflite"}[function]
    with pytest.raises(ValueError, match=f"end in {suffix}. Received.*'x.pb'"):
        convert(tmp_path, "x.pb")
    output = tmp_path / f"encoder{suffix}"
    with pytest.raises(ValueError, match="`path` must be an export.*nowhere'"):
        convert(tmp_path / "nowhere", output)
    assert not output.exists()


def test_tf2onnx_is_not_installed(exports, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    expected = r"'tf2onnx': install ressl-tf\[consumers\]. Received: .*x.onnx'"
    with pytest.raises(ValueError, match=expected):
        interop.to_onnx(exports["float32"], tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    "flags, part",
    [
        (["--output=x.tflite"], "`path` must be an export"),
        (["--output=x.pth", "--float16"], "in .tflite alone. Received: --out"),
        (["--output=x.tflite", "--layout=timm"], "--layout=timm, --output=x.t"),
    ],
)
def test_mistakes_in_converting_are_one_line(flags, part):
    assert_mistake(call("convert", "--workdir=nowhere", *flags), part)


# --- their sizes and latencies -----------------------------------------------


def make_torch(name, width, stem):
    torch_networks = pytest.importorskip("torch_networks")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny_one = ((1, 1), torch_networks.BASIC)
        monkeypatch.setitem(torch_networks.RESNETS, "tiny", tiny_one)
        return torch_networks.ResNet(name, None, width, stem)


def test_consumers_are_measured(exports):
    for name in ("openvino", "tf2onnx", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(name, reason=NEEDS)
    pytest.importorskip("torch")
    result = consumers.measure(
        exports["uint8"],
        rounds=1,
        batch_sizes=(1, 3),
        make_torch=make_torch,
        seconds=1e-3,
    )
    assert json.loads(json.dumps(result))["left_out"] == {}
    assert (result["shape"], result["dtype"]) == ([16, 16, 3], "uint8")
    forms = result["forms"]
    assert list(forms) == [
        "SavedModel in TensorFlow",
        "Keras, .keras",
        "OpenVINO, SavedModel",
        "ONNX Runtime",
        "LiteRT, float32",
        "LiteRT, float16",
        "PyTorch",
    ]
    for name, row in forms.items():
        limit = 1e-2 if name == "LiteRT, float16" else 1e-4
        assert 0 <= row["difference"] < limit * max(1, result["embedding"])
        assert row["bytes"] > 4 * 1000
        for latency in row["latency"].values():
            assert latency["seconds"]["wall"] > 0
    reference = forms[consumers.REFERENCE]
    assert reference["difference"] == 0.0
    assert reference["latency"][3]["ratio"] == {"wall": 1.0, "cpu": 1.0}
    table = consumers.table(result)
    assert "ms, B = 3" in table and "tiny, width 4, 16 x 16 px" in table
    # assets.extra is not what a server loads.
    path = exports["uint8"]
    files = [path / "saved_model.pb", path / "fingerprint.pb"]
    files += (path / "variables").iterdir()
    assert reference["bytes"] == sum(file.stat().st_size for file in files)


def test_what_is_not_installed_is_left_out(exports, monkeypatch):
    for name in ("openvino", "onnxruntime", "ai_edge_litert", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    result = consumers.measure(
        exports["float32"], rounds=1, batch_sizes=(2,), seconds=1e-3
    )
    assert list(result["forms"]) == [
        "SavedModel in TensorFlow",
        "Keras, .keras",
    ]
    assert set(result["left_out"].values()) == {
        "openvino is not installed",
        "onnxruntime is not installed",
        "ai_edge_litert is not installed",
        "torch is not installed",
    }
    lines = consumers.table(result).splitlines()
    assert "OpenVINO, SavedModel      openvino is not installed" in lines


def test_a_network_that_torch_does_not_have(exports):
    pytest.importorskip("torch")
    with pytest.raises(consumers.NotMeasured, match="no tiny in torch here"):
        consumers._make_torch(
            exports["float32"],
            None,
            export.read_card(exports["float32"]),
            lambda *arguments: None,
        )


@pytest.mark.parametrize(
    "flags, part",
    [
        ([], "`--workdir` must be an export (DIR/export/NAME)"),
        (["--workdir=nowhere"], "`path` must be an export"),
    ],
)
def test_mistakes_in_measuring_are_one_line(flags, part):
    assert_mistake(call("benchmark", "consumers", *flags), part)
