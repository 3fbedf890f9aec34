"""Exports for other runtimes: ONNX, and LiteRT (TensorFlow Lite).

    interop.to_onnx("runs/cifar10/export/encoder", "encoder.onnx")
    interop.to_litert("runs/cifar10/export/encoder", "encoder.tflite")

What is converted is the signature `serving_default`, with the normalisation in
it: `images`, (N, H, W, 3) in 0-255 and of the export's type, to `embedding`
and, where the export has it, `projection`. N stays open. Image files are for
TensorFlow alone: neither format has what decodes them.
"""

import contextlib
import logging
from pathlib import Path

import tensorflow as tf

from ressl_tf import export
from ressl_tf import workdir

# What ONNX Runtime reads since 1.12, of 2022.
OPSET = 17


def to_onnx(path, output):
    """Writes an export as ONNX, for ONNX Runtime and others.

    Needs the package tf2onnx. The file appears only when it is complete.

    Args:
        path: WORKDIR/export/NAME or one of its versions.
        output: the .onnx file.

    Raises:
        ValueError: if there is no export at `path`, `output` has another
            suffix, or tf2onnx is not installed.
    """
    _check_suffix(output, ".onnx")
    try:
        import tf2onnx
    except ImportError as error:
        raise ValueError(
            "`output` is an .onnx file, which needs the package "
            f"{error.name!r}: install ressl-tf[consumers]. "
            f"Received: output={str(output)!r}"
        ) from None
    from tensorflow.python.framework import convert_to_constants

    loaded, serve = _load(path)
    # With tf2onnx's from_function, constants of the signature become inputs.
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        serve, lower_control_flow=False, aggressive_inlining=True
    )
    inputs = [tensor.name for tensor in frozen.inputs]
    outputs = [tensor.name for tensor in frozen.outputs]
    names = [*serve.structured_input_signature[1]]
    names += sorted(serve.structured_outputs)  # the order of a nest
    with _silent("tensorflow", "tf2onnx"):
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(),
            name="ressl_tf",
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=dict(zip(inputs + outputs, names, strict=True)),
            opset=OPSET,
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    with workdir.replaced(output) as temporary:
        temporary.write_bytes(model.SerializeToString())


def to_litert(path, output, float16=False):
    """Writes an export for LiteRT, once TensorFlow Lite.

    The file appears only when it is complete.

    Args:
        path: WORKDIR/export/NAME or one of its versions.
        output: the .tflite file.
        float16: whether weights are stored in half precision, in half of the
            space; inputs and outputs keep their types.

    Raises:
        ValueError: if there is no export at `path`, or `output` has another
            suffix.
    """
    _check_suffix(output, ".tflite")
    loaded, serve = _load(path)
    # from_saved_model restores variables as a session does, which exports of
    # version 0.1 and Keras 3 do not survive: the embeddings would be NaN.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve], loaded)
    if float16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    with _silent("absl", "tensorflow"):
        content = converter.convert()
    with workdir.replaced(output) as temporary:
        temporary.write_bytes(content)


def _load(path):
    """The SavedModel, which has to be kept alive, and its signature."""
    embed, _ = export.load_servable(path)
    return embed.loaded, embed.loaded.signatures["serving_default"]


def _check_suffix(output, suffix):
    if Path(output).suffix != suffix:
        raise ValueError(
            f"`output` must end in {suffix}. Received: output={str(output)!r}"
        )


@contextlib.contextmanager
def _silent(*names):
    """Leaves out warnings of converters, which are of their own code."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
