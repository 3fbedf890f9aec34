"""Tests of what is kept about machine and versions."""

import datetime
import json
import platform

import numpy as np
import pytest
import tensorflow as tf

import ressl_tf
from ressl_tf import environment


@pytest.mark.core
def test_describe():
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found
    keras = found["versions"].pop("keras")
    assert keras[0] == ("3" if hasattr(tf.keras, "ops") else "2")
    assert found["versions"] == {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "ressl_tf": ressl_tf.__version__,
        "numpy": np.__version__,
    }
    machine = found["machine"]
    assert list(machine) == [
        "cpu",
        "cores",
        "memory_gib",
        "accelerators",
        "system",
    ]
    assert machine["cpu"] and machine["system"]
    assert machine["cores"] >= 1 and machine["memory_gib"] > 0.1
    gpus = tf.config.list_physical_devices("GPU")
    assert len(machine["accelerators"]) == len(gpus)


def test_accelerators_are_named(monkeypatch):
    devices = [
        tf.config.PhysicalDevice("/physical_device:CPU:0", "CPU"),
        tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU"),
        tf.config.PhysicalDevice("/physical_device:TPU:0", "TPU"),
    ]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda: devices)
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda device: {"GPU": {"device_name": "A card"}}.get(
            device.device_type, {}
        ),
    )
    machine = environment.describe()["machine"]
    assert machine["accelerators"] == ["A card", "TPU"]


@pytest.mark.core
def test_one_entry_for_each_start(tmp_path):
    assert environment.read(tmp_path) == []
    environment.record(tmp_path, 0)
    environment.record(tmp_path, 40, replicas=2)
    first, second = environment.read(tmp_path)
    assert (first["step"], first["replicas"]) == (0, 1)
    assert (second["step"], second["replicas"]) == (40, 2)
    assert first["machine"] == environment.describe()["machine"]
    assert first["versions"]["ressl_tf"] == ressl_tf.__version__
    started = datetime.datetime.fromisoformat(second["started"])
    now = datetime.datetime.now(datetime.timezone.utc)
    assert abs(now - started) < datetime.timedelta(minutes=5)
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


@pytest.mark.parametrize("text", ["", "[1,", '{"a": 1}'])
def test_a_broken_file_is_replaced(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    assert environment.read(tmp_path) == []
    environment.record(tmp_path, 3)
    assert [entry["step"] for entry in environment.read(tmp_path)] == [3]
