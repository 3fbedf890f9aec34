"""Before TensorFlow starts: two logical CPU devices, fewer messages."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
import tensorflow as tf
from tensorflow import keras

from ressl_tf import keras_compat

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


@pytest.fixture(autouse=True)
def fresh_state():
    """Each test starts from the same seed and in float32."""
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy("float32")
    yield
    # Without the collection of garbage that Keras 3 adds: of TensorFlow's
    # million objects it takes a second, for each of two thousand tests.
    keras.backend.clear_session(
        **({"free_memory": False} if keras_compat.KERAS_3 else {})
    )


@pytest.fixture(autouse=True, scope="module")
def collected_garbage():
    """What a module leaves behind is not the next one's."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def two_replicas():
    """A MirroredStrategy over two logical CPU devices.

    One for all tests: a second one in the same process counts its collective
    operations from the start again, and TensorFlow takes them for the first's.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
