"""What an export costs in each runtime: its size, its error, its latency."""

import importlib.metadata
import importlib.util
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ressl_tf import export
from ressl_tf import interop
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing

BATCH_SIZES = (1, 32)
# Each is compared with this one, in which the export was made.
REFERENCE = "SavedModel in TensorFlow"


class NotMeasured(Exception):
    """Why a form is left out."""


class Form(NamedTuple):
    """An export in one of its forms, ready to run.

    Attributes:
        path: the file or folder.
        run: function from images, as the export takes them, to embeddings;
            both are arrays of NumPy.
    """

    path: Path
    run: object


def measure(
    path, rounds=10, *, batch_sizes=BATCH_SIZES, make_torch=None, seconds=0.2
):
    """Converts an export into every form, runs each, and times them by turns.

    A form whose package is not installed is left out. Each may use all cores
    that this process may: with `taskset -c 0`, one.

    Args:
        path: WORKDIR/export/NAME or one of its versions.
        rounds: how often everything is measured, by turns.
        batch_sizes: numbers of images in a call.
        make_torch: function from a backbone's name, width and stem to a
            `torch.nn.Module`, whose `features` takes normalised images
            (B, 3, H, W), or None where it has no such network. Defaults to
            None: PyTorch is left out.
        seconds: how long one measurement takes, about.

    Returns:
        The arguments; "shape" and "dtype" of an image, "backbone", "width",
        "threads", "embedding", the largest absolute one; and "forms": {name:
        {"bytes", "difference" (largest absolute one of an embedding to the
        reference's), "latency": {batch size: {"seconds", "ratio" (to the
        reference)}}}}, medians over the rounds of wall and of CPU time.
        "left_out": {name of a form: reason}. "versions": {package: version}.

    Raises:
        ValueError: if `rounds` is smaller than 1, or there is no export at
            `path`.
    """
    export.load_servable(path)  # or says what is wrong with it
    version = export.find_version(path)
    card = export.read_card(version)
    _, size, _, _ = card["input"]["shape"]
    dtype = card["input"]["dtype"]
    images = setup_lib.make_pictures(max(batch_sizes), size).astype(dtype)
    makers = {
        **_MAKERS,
        "PyTorch": partial(_make_torch, card=card, make=make_torch),
    }
    forms, left_out = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makers.items():
            try:
                forms[name] = make(version, Path(folder))
            except ImportError as error:
                left_out[name] = f"{error.name} is not installed"
            except NotMeasured as error:
                left_out[name] = str(error)
        expected = forms[REFERENCE].run(images)
        rows = {
            name: {
                "bytes": _bytes(form.path),
                "difference": float(np.abs(form.run(images) - expected).max()),
                "latency": {},
            }
            for name, form in forms.items()
        }
        for batch_size in batch_sizes:
            latency = _latency(forms, images[:batch_size], rounds, seconds)
            for name, row in rows.items():
                row["latency"][batch_size] = latency[name]
    backbone = card["config"]["backbone"]
    return {
        "path": str(path),
        "rounds": rounds,
        "batch_sizes": list(batch_sizes),
        "shape": list(images.shape[1:]),
        "dtype": dtype,
        "backbone": backbone["name"],
        "width": backbone["width"],
        "threads": _threads(),
        "embedding": float(np.abs(expected).max()),
        "forms": rows,
        "left_out": left_out,
        "versions": _versions(),
    }


def table(result):
    """`measure`'s result as text: wall time, and CPU time in brackets."""
    sizes = result["batch_sizes"]
    lines = [
        f"{'':26}{'MB':>7}{'difference':>12}"
        + "".join(f"{f'ms, B = {size}':>18}{'ratio':>14}" for size in sizes)
    ]
    for name, row in result["forms"].items():
        line = f"{name:26}{row['bytes'] / 1e6:7.2f}{row['difference']:12.1e}"
        for latency in row["latency"].values():
            milliseconds = {k: 1e3 * v for k, v in latency["seconds"].items()}
            line += f"{_pair(milliseconds):>18}{_pair(latency['ratio']):>14}"
        lines.append(line)
    lines += [f"{name:26}{why}" for name, why in result["left_out"].items()]
    height, width, _ = result["shape"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return "\n".join(
        [
            *lines,
            f"difference: the largest, of embeddings up to "
            f"{result['embedding']:.2g}; ratio: to {REFERENCE}.",
            f"{result['backbone']}, width {result['width']}, {height} x "
            f"{width} px; threads: {result['threads']}; wall (CPU) time, "
            f"median of {result['rounds']} rounds.",
            versions,
        ]
    )


def _make_saved_model(version, folder):
    loaded = tf.saved_model.load(str(version))
    serve = loaded.signatures["serving_default"]

    def run(images):
        return serve(images=tf.constant(images))["embedding"].numpy()

    run.loaded = loaded  # the signature alone would not keep it alive
    return Form(version, run)


def _make_keras(version, folder):
    encoder = export.load_encoder(version)
    path = folder / "encoder.keras"
    encoder.save(path)
    call = tf.function(
        partial(encoder, training=False),
        input_signature=[tf.TensorSpec(encoder.input_shape)],
    )
    return Form(path, lambda images: call(_floats(images)).numpy())


def _make_openvino(version, folder):
    import openvino

    options = {
        # By default bfloat16 where the CPU has it: an error of 1e-2.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": _threads(),
    }
    try:
        compiled = openvino.Core().compile_model(str(version), "CPU", options)
    except RuntimeError as error:  # as of exports of version 0.1 and Keras 3
        reason = str(error).strip().splitlines()[-1]
        raise NotMeasured(f"OpenVINO does not read it: {reason}") from error
    # The result lies in memory that the next call writes to.
    return Form(version, lambda images: compiled(images)["embedding"].copy())


def _make_onnx(version, folder):
    import onnxruntime

    _require("tf2onnx")
    path = folder / "encoder.onnx"
    interop.to_onnx(version, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    return Form(
        path, lambda images: session.run(["embedding"], {"images": images})[0]
    )


def _make_litert(version, folder, float16=False):
    from ai_edge_litert import interpreter as litert

    path = folder / f"float{16 if float16 else 32}.tflite"
    interop.to_litert(version, path, float16)
    interpreter = litert.Interpreter(str(path), num_threads=_threads())
    serve = interpreter.get_signature_runner("serving_default")
    return Form(path, lambda images: serve(images=images)["embedding"])


def _make_torch(version, folder, card, make):
    import torch

    settings = card["config"]["backbone"]
    network = make and make(
        settings["name"], settings["width"], settings["stem"]
    )
    if network is None:
        raise NotMeasured(f"there is no {settings['name']} in torch here")
    path = folder / "encoder.pth"
    interop.write_state_dict(
        path, interop.to_state_dict(export.load_encoder(version))
    )
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval()
    mean, std = (
        torch.tensor(card["input"][name])[:, None, None] * 255
        for name in ("mean", "std")
    )
    torch.set_num_threads(_threads())

    @torch.inference_mode()
    def run(images):
        images = torch.from_numpy(_floats(images)).permute(0, 3, 1, 2)
        return network.features((images - mean) / std).numpy()

    return Form(path, run)


_MAKERS = {
    REFERENCE: _make_saved_model,
    "Keras, .keras": _make_keras,
    "OpenVINO, SavedModel": _make_openvino,
    "ONNX Runtime": _make_onnx,
    "LiteRT, float32": _make_litert,
    "LiteRT, float16": partial(_make_litert, float16=True),
}
# Whose versions are told.
_PACKAGES = (
    "tensorflow",
    "keras",
    "openvino",
    "tf2onnx",
    "onnxruntime",
    "ai-edge-litert",
    "torch",
)


def _latency(forms, images, rounds, seconds):
    """{name of a form: {"seconds", "ratio"}} of a call with these images."""
    variants = {
        name: _timed(form.run, images, seconds) for name, form in forms.items()
    }
    times = timing.interleave(variants, rounds, warmup=1)
    ratios = timing.median_ratios(times, REFERENCE)
    return {
        name: {"seconds": timing.medians(values), "ratio": ratios[name]}
        for name, values in times.items()
    }


def _timed(run, images, seconds):
    """A variant that makes as many calls as take `seconds`, about."""
    for _ in range(2):  # traces, compiles
        run(images)
    clock = timing.Clock()
    run(images)
    calls = max(1, round(seconds / clock.read().wall))

    def call():
        # Threads of the one before may still spin, and caches are its own.
        run(images)
        clock = timing.Clock()
        for _ in range(calls):
            run(images)
        return timing.Seconds(*(value / calls for value in clock.read()))

    return call


def _require(name):
    if importlib.util.find_spec(name) is None:
        raise ImportError(name=name)


def _threads():
    return len(os.sched_getaffinity(0))


def _floats(images):
    return images.astype(np.float32, copy=False)


def _bytes(path):
    """Size of a file, or of a SavedModel without what is of us alone."""
    if path.is_file():
        return path.stat().st_size
    return sum(
        file.stat().st_size
        for file in path.rglob("*")
        if file.is_file() and "assets.extra" not in file.relative_to(path).parts
    )


def _versions():
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _pair(value):
    return f"{value['wall']:.2f} ({value['cpu']:.2f})"
