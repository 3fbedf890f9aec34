"""What is said where there is no TPU; nothing here ran on one."""

import socket

import pytest

from ressl_tf import cluster
from ressl_tf.cluster import tpu
from ressl_tf.keras_compat import KERAS_3


@pytest.fixture
def no_tpu(monkeypatch):
    for name in tpu._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tpu, "_DEVICES", ("/dev/no-such-device*",))


@pytest.mark.core
def test_no_tpu_says_what_was_looked_for(no_tpu):
    with pytest.raises(ValueError, match="No TPU found") as caught:
        tpu.connect()
    message = str(caught.value)
    assert "TPU_NAME" in message and "/dev/no-such-device*" in message
    assert ("TF_USE_LEGACY_KERAS=1" in message) == KERAS_3


@pytest.mark.parametrize("argument", [True, False])
def test_no_local_tpu(no_tpu, monkeypatch, argument):
    if not argument:
        monkeypatch.setenv("TPU_NAME", "local")
    with pytest.raises(ValueError, match="nothing in /dev/no-such-device"):
        tpu.connect("local" if argument else None)


def test_a_name_needs_the_metadata_server(no_tpu, monkeypatch):
    monkeypatch.setattr(tpu, "_METADATA_SERVER", "no-such-host.invalid")
    with pytest.raises(ValueError, match="my-tpu.*no-such-host.invalid does"):
        tpu.connect("my-tpu")


def test_a_slow_metadata_server_is_not_waited_for(no_tpu, monkeypatch):
    monkeypatch.setattr(tpu, "_METADATA_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(tpu, "_METADATA_SERVER", host)
        with pytest.raises(ValueError, match="No TPU found: the name my-tpu"):
            tpu.connect("my-tpu")


@pytest.mark.core
def test_an_address_without_a_tpu(no_tpu):
    # Left to itself, TensorFlow waits for such an address for minutes.
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    message = "Keras 2: pip" if KERAS_3 else f"No TPU found.*{address}.*answer"
    with pytest.raises(ValueError, match=message):
        tpu.connect(f"grpc://{address}")


@pytest.mark.core
def test_a_device_that_is_no_tpu(no_tpu, monkeypatch):
    monkeypatch.setattr(tpu, "_DEVICES", ("/dev/null",))
    message = "Keras 2: pip" if KERAS_3 else "No TPU found: local: "
    with pytest.raises(ValueError, match=message):
        tpu.connect()


def test_the_strategy_by_name(no_tpu):
    with pytest.raises(ValueError, match="No TPU found: nothing in"):
        cluster.make_strategy("tpu", tpu="local")
