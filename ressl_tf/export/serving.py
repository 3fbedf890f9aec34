"""What TensorFlow Serving reads beside the SavedModel."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from ressl_tf import workdir as workdir_lib
from ressl_tf.export import layout

# Where docs/serving.md mounts the folder of all exports.
MOUNT = "/models"

_BATCHING = """\
# For --enable_batching --batching_parameters_file=batching.config: requests
# that come within 5 ms are run as one.
max_batch_size { value: 64 }
batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
allowed_batch_sizes: [1, 2, 4, 8, 16, 32, 64]
"""


def write_warm_up(folder, name, servable):
    """Writes one request for each signature, which a server runs at first.

    TensorFlow prepares a graph when it is first run; with these, no user
    waits for it.

    Args:
        folder: of the SavedModel.
        name: of the model.
        servable: its `Servable`.
    """
    # Loads gRPC, which nobody else needs.
    from tensorflow_serving.apis import prediction_log_pb2

    size = servable.size
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3))
    picture = picture.astype(np.uint8)
    dtype = servable.embed.input_signature[0].dtype.as_numpy_dtype
    inputs = {
        "serving_default": {"images": picture[None].astype(dtype)},
        "serve_bytes": {
            "image_bytes": [tf.io.encode_jpeg(picture).numpy()],
        },
    }
    path = Path(folder) / layout.EXTRA / layout.WARM_UP
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, values in inputs.items():
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            for key, value in values.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())


def write_configs(folder):
    """Writes models.config, of all exports, and batching.config.

    batching.config is left alone where there is one: it is tuned by hand.

    Args:
        folder: of the exports, each in a folder of its name.
    """
    folder = Path(folder)
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and layout.find_version(path)
    )
    entries = "".join(
        "  config {\n"
        f'    name: "{name}"\n'
        f'    base_path: "{MOUNT}/{name}"\n'
        '    model_platform: "tensorflow"\n'
        "  }\n"
        for name in names
    )
    with workdir_lib.replaced(folder / "models.config") as temporary:
        temporary.write_text(f"model_config_list {{\n{entries}}}\n")
    if not (folder / "batching.config").exists():
        with workdir_lib.replaced(folder / "batching.config") as temporary:
            temporary.write_text(_BATCHING)
