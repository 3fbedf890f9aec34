"""Looks for a TPU before TensorFlow does, which may hang or say nothing."""

import contextlib
import glob
import os
import threading
import urllib.request

import tensorflow as tf

from ressl_tf.cluster import rendezvous
from ressl_tf.keras_compat import KERAS_3

_VARIABLES = ("KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS", "TPU_NAME")
_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
_METADATA_SERVER = "metadata.google.internal"
_METADATA_TIMEOUT = 5.0  # seconds


def connect(tpu=None):
    """The strategy of a Cloud TPU.

    Args:
        tpu: its name, "grpc://host:port", or "local" for a TPU VM's own.
            Defaults to what the environment or the machine tells.

    Returns:
        `tf.distribute.TPUStrategy`.

    Raises:
        ValueError: no TPU; says what was looked for. Or this is Keras 3.
    """
    name = _find(tpu)
    if KERAS_3:
        raise ValueError(
            "Keras 3's `fit` is reported to fail on TPU VMs "
            "(https://github.com/keras-team/keras/issues/19448). Use Keras 2: "
            'pip install "ressl-tf[keras2]", and set TF_USE_LEGACY_KERAS=1. '
            f"Received: strategy=tpu, with the TPU {name}"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        addresses = resolver.cluster_spec().as_dict().get("worker", ())
        missing = rendezvous.unreachable(
            {f"TPU worker {i}": a for i, a in enumerate(addresses)}
        )
        if missing:
            raise ConnectionError(
                f"{rendezvous.describe(missing)} does not answer"
            )
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    # Whatever of Google's client or TensorFlow says that there is none.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise _missing(f"{name}: {reason}") from error
    return tf.distribute.TPUStrategy(resolver)


def _find(tpu):
    """Name of the TPU to connect to; looks before TensorFlow can hang."""
    variables = [os.environ[v] for v in _VARIABLES if os.environ.get(v)]
    name = tpu or next(iter(variables), None)
    if name is None or name == "local":
        if any(glob.glob(pattern) for pattern in _DEVICES):
            return "local"
        looked = f"{' and '.join(_DEVICES)} of a TPU VM"
        if name is None:
            looked = (
                f"`tpu`, the environment variables "
                f"{' and '.join(_VARIABLES)}, and {looked}"
            )
        raise _missing(f"nothing in {looked}")
    if not name.startswith("grpc://") and not _metadata_server_answers():
        raise _missing(
            f"the name {name} is looked up with Google Cloud's metadata "
            f"server, and {_METADATA_SERVER} does not answer: this is no "
            "machine of Google Cloud"
        )
    return name


def _metadata_server_answers():
    """Asks in a thread: looking up the host's name knows no timeout."""
    answers = []

    def ask():
        with contextlib.suppress(OSError):
            url = f"http://{_METADATA_SERVER}"
            with urllib.request.urlopen(url, timeout=_METADATA_TIMEOUT):
                answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_METADATA_TIMEOUT)
    return bool(answers)


def _missing(looked):
    keras = (
        " A TPU needs Keras 2, and this is Keras 3: "
        'pip install "ressl-tf[keras2]", and set TF_USE_LEGACY_KERAS=1.'
        if KERAS_3
        else ""
    )
    return ValueError(
        f"No TPU found: {looked}. Run on a TPU VM, or give its name or "
        f"grpc://host:port as `tpu`.{keras} Received: strategy=tpu"
    )
