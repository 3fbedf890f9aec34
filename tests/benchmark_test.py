"""What is measured, on inputs whose result is known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from ressl_tf import networks
from ressl_tf import scaling
from ressl_tf.benchmark import counts
from ressl_tf.benchmark import host
from ressl_tf.benchmark import memory
from ressl_tf.benchmark import queue
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing

ROOT = Path(__file__).resolve().parents[1]
TINY = setup_lib.Setup(
    width=2, image_size=8, hidden_dim=8, batch_size=4, queue_size=16, dim=4
)


# --- timing -----------------------------------------------------------------


def test_variants_take_turns_and_each_is_first_in_its_turn():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = timing.interleave(variants, rounds=4, warmup=2)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert {name: t.shape for name, t in times.items()} == {
        name: (4, 2) for name in "abc"
    }
    assert all((t[:, 0] > 0).all() for t in times.values())


def test_ratios_are_taken_within_a_round():
    # The machine was ten times slower in the second round, for both.
    times = {
        "a": np.array([[1.0, 2.0], [10.0, 20.0], [1.0, 2.0]]),
        "b": np.array([[3.0, 2.0], [30.0, 20.0], [5.0, 8.0]]),
    }
    assert timing.median_ratios(times, "a") == {
        "a": {"wall": 1.0, "cpu": 1.0},
        "b": {"wall": 3.0, "cpu": 1.0},
    }


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds=0"):
        timing.interleave({}, 0)


# --- counts -----------------------------------------------------------------


@pytest.mark.core
def test_counts_by_hand():
    images = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.DepthwiseConv2D(3)(x)  # 4 x 4 x 4, with biases
    x = keras.layers.MaxPooling2D()(x)  # 2 x 2 x 4
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(5)(x)
    assert counts.count(keras.Model(images, outputs)) == scaling.Network(
        parameters=108 + 8 + (36 + 4) + (16 * 5 + 5),
        forward_flops=2.0 * (27 * 144 + 9 * 64 + 16 * 5),
        # images, into and out of batch norm and ReLU, into and out of the
        # pool, and its flattened copy
        activations=108 + 144 + 144 + 64 + 16 + 16,
        bn_layers=1,
        bn_channels=4,
    )


@pytest.mark.core
def test_models_within_models_are_counted():
    inner = networks.make_projector(3, 4, 2)
    inputs = keras.Input((3,))
    outer = keras.Model(inputs, inner(inputs))
    assert counts.count(outer) == counts.count(inner)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="None"):
        counts.count(networks.make_backbone("resnet18", (None, None, 3)))
    inputs = keras.Input((8, 2))
    network = keras.Model(inputs, keras.layers.Conv1D(2, 3)(inputs))
    with pytest.raises(ValueError, match="of type Conv1D"):
        counts.count(network)


# --- subjects ---------------------------------------------------------------


def test_queue_measures_every_part_at_every_size():
    result = queue.measure(TINY, (16, 32), rounds=2)
    first, second = result["rows"]
    assert first["step"] == {"wall": 1.0, "cpu": 1.0}
    parts = {"step", "no write", "write", "loss"}
    assert parts | {"teacher"} == set(first) - {"queue_size", "flops"}
    assert parts == set(second) - {"queue_size", "flops"}
    assert second["flops"] == scaling.queue_flops_share(32, 4)
    assert min(ratio["wall"] for ratio in map(second.get, parts)) > 0
    assert "      32" in queue.table(result)
    json.dumps(result)


def test_the_parts_do_what_the_step_does():
    model = setup_lib.make_model(TINY)
    model.queue.enqueue = lambda keys: None
    before = model.queue.keys.numpy()
    tf.function(model.train_step)(setup_lib.make_batch(TINY))
    np.testing.assert_array_equal(model.queue.keys.numpy(), before)

    parts = queue._parts(model, TINY)
    parts["write"](None)
    changed = (model.queue.keys.numpy() != before).any(axis=1)
    assert changed.tolist() == [True] * 4 + [False] * 12
    objective, gradient = parts["loss"](None)
    assert objective.loss.shape == (4,)
    assert np.abs(gradient.numpy()).max() > 0


def test_memory_of_a_process_is_measured():
    # The largest tensors are told from the rest of a process by size alone:
    # 3 x 65536 x 64 x 4 bytes of queue against a tiny network.
    large = TINY._replace(queue_size=65536, dim=64)
    measured = memory._measure_apart(large)
    one_copy = 65536 * 64 * 4
    assert measured["resident"] > 3 * one_copy
    if measured["tensors"] is not None:
        assert 2 * one_copy < measured["tensors"] < 5 * one_copy


@pytest.mark.parametrize("allocator", [True, False])
def test_memory_compares_with_the_largest_peak(monkeypatch, allocator):
    factors = iter([1, 2] * 4)

    def measure_apart(point):
        size = next(factors) * memory.formula(point)
        return {
            "tensors": size if allocator else None,
            "resident": 2 * size + 1000,
        }

    monkeypatch.setattr(memory, "_measure_apart", measure_apart)
    sweeps = {"queue_size": (16, 32, 64), "crops": (1, 2)}
    result = memory.measure(TINY, sweeps, repeats=2)
    assert next(factors, None) is None  # (16, one crop) is in both sweeps
    rows = result["points"]["queue_size"]
    # 16 keys more: 3 x 16 x 4 of queue and 6 x 4 x 16 of similarities
    added = rows[1]["formula"] - rows[0]["formula"]
    assert added == 4 * (3 * 16 * 4 + 6 * 4 * 16)
    assert rows[1]["resident"] - rows[0]["resident"] == 4 * added
    if allocator:
        assert [row["ratio"] for row in rows] == [0.5] * 3
    else:
        assert [row["ratio"] for row in rows] == [None, 0.25, 0.25]
    assert "crops" in memory.table(result)


def test_host_measures_what_it_reads(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    (tmp_path / "folder").mkdir()
    sizes = []
    for number in range(3):
        file = tf.io.encode_jpeg(pixels + np.uint8(number)).numpy()
        (tmp_path / "folder" / f"{number}.JPEG").write_bytes(file)
        sizes.append(len(file))
    result = host.measure(tmp_path, sizes=(24,), rounds=1)
    assert result["images"] == 3
    assert result["input"]["image_bytes"] == np.mean(sizes)
    assert set(result["input"]) <= set(scaling.Input._fields)
    assert all(row["core_seconds"] > 0 for row in result["rows"])
    assert "weak view of 24" in host.table(result)


def test_host_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold JPEG files"):
        host.measure(tmp_path)


# --- commands ---------------------------------------------------------------


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_benchmark_command(tmp_path):
    path = tmp_path / "queue.json"
    finished = call(
        "tools.benchmark",
        "queue",
        "--width=2",
        "--image_size=8",
        "--batch_size=4",
        "--queue_sizes=16,32",
        "--rounds=1",
        f"--json={path}",
    )
    assert finished.returncode == 0, finished.stderr
    sizes = [row["queue_size"] for row in json.loads(path.read_text())["rows"]]
    assert sizes == [16, 32]
    assert "no write" in finished.stdout


@pytest.mark.parametrize("arguments", [[], ["queues"], ["host"]])
def test_benchmark_says_what_it_needs(arguments):
    finished = call("tools.benchmark", *arguments)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1


def test_scaling_command(tmp_path):
    parameters = tmp_path / "parameters.json"
    parameters.write_text('{"device": {"per_host": 4}, "rows": []}')
    path = tmp_path / "plan.json"
    finished = call(
        "tools.scaling",
        "--devices=8",
        "--batch_sizes=1024",
        f"--parameters={parameters}",
        f"--json={path}",
    )
    assert finished.returncode == 0, finished.stderr
    (row,) = json.loads(path.read_text())
    assert row["hosts"] == 2
    assert "bottleneck" in finished.stdout
