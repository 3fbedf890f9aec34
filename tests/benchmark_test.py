"""What is measured, on inputs whose result is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras
from tool_process import assert_mistake
from tool_process import call

from ressl_tf import augment
from ressl_tf import networks
from ressl_tf import scaling
from ressl_tf.benchmark import counts
from ressl_tf.benchmark import end_to_end
from ressl_tf.benchmark import evaluation
from ressl_tf.benchmark import host
from ressl_tf.benchmark import input as input_lib
from ressl_tf.benchmark import memory
from ressl_tf.benchmark import opponents
from ressl_tf.benchmark import precision
from ressl_tf.benchmark import queue
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import step
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


def test_a_variant_may_time_itself():
    own = timing.Seconds(wall=2.0, cpu=3.0)
    times = timing.interleave({"own": lambda: own}, rounds=2)
    np.testing.assert_array_equal(times["own"], [[2.0, 3.0]] * 2)


class RunsAhead:
    """One element a second; while nobody draws, a hundred become ready."""

    def __init__(self, clock):
        self.clock = clock
        self.drawn = 0

    def __iter__(self):
        last, ready = self.clock["now"], 0
        while True:
            if self.clock["now"] > last:  # others had their turn
                ready = 100
            if ready:
                ready -= 1
            else:
                self.clock["now"] += 1.0
            last = self.clock["now"]
            self.drawn += 1
            yield None


def test_streams_are_timed_without_what_lay_ready(monkeypatch):
    clock = {"now": 0.0}
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(timing.time, name, lambda: clock["now"])
    a, b = RunsAhead(clock), RunsAhead(clock)
    streams = {"a": (a, 1), "b": (b, 4)}
    times = timing.interleave_streams(streams, 2, seconds=48.0, at_least=8)
    np.testing.assert_array_equal(times["a"], np.ones((2, 2)))
    np.testing.assert_array_equal(times["b"], np.full((2, 2), 0.25))
    # 8 to settle each time, or a quarter of what is timed: 1, 8, twice 48.
    assert a.drawn == b.drawn == (8 + 1) + (8 + 8) + 2 * (12 + 48)


def test_rates_are_items_a_second():
    times = {"a": np.array([[0.5, 1.0], [0.25, 1.0], [0.1, 4.0]])}
    assert timing.rates(times) == {"a": {"wall": 4.0, "cpu": 1.0}}


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
    # 16 keys more: 3 x 16 x 4 of queue and 3 x 4 x 16 of similarities
    added = rows[1]["formula"] - rows[0]["formula"]
    assert added == 4 * (3 * 16 * 4 + 3 * 4 * 16)
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


def test_evaluation_measures_scores(monkeypatch):
    result = evaluation.measure(
        TINY,
        rounds=2,
        num_train=300,
        num_queries=20,
        num_images=12,
        epochs=4,
    )
    assert result["num_features"] == 512 * TINY.width // 64
    for name in ("product", "scikit-learn"):
        assert set(result["knn"][name]) == {"wall", "cpu"}
    for clock in ("wall", "cpu"):
        assert result["knn"]["seconds"][clock] > 0
        # Extracting once of four times cannot be less than a quarter.
        assert 0.25 < result["probe"]["ratio"][clock] < 1
    assert "k-NN, 20 against 300: " in evaluation.table(result)
    json.dumps(result)


def test_a_tenth_of_the_queries_counts_ten_times(monkeypatch):
    def interleave(variants, rounds, warmup):
        seconds = {"knn": 2.0, "product": 1.0, "extract": 5.0, "train": 10.0}
        if "scikit-learn" in variants:
            monkeypatch.setattr(
                timing.Clock, "read", lambda self: timing.Seconds(0.5, 0.25)
            )
            assert variants["scikit-learn"]() == (5.0, 2.5)
        return {
            name: np.full((rounds, 2), seconds.get(name, 8.0))
            for name in variants
        }

    monkeypatch.setattr(timing, "interleave", interleave)
    result = evaluation.measure(
        TINY, 2, num_train=300, num_queries=20, num_images=12, epochs=4
    )
    assert result["knn"]["seconds"] == {"wall": 2.0, "cpu": 2.0}
    assert result["knn"]["product"] == {"wall": 0.5, "cpu": 0.5}
    assert result["knn"]["scikit-learn"] == {"wall": 4.0, "cpu": 4.0}
    # (5 + 10) / (4 x 5 + 10)
    assert result["probe"]["ratio"] == {"wall": 0.5, "cpu": 0.5}


def test_host_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold JPEG files"):
        host.measure(tmp_path)


def test_input_compares_everyone_in_a_row():
    result = input_lib.measure((16,), rounds=2, seconds=0.01, batch_sizes=(2,))
    assert [row["view"] for row in result["views"]] == ["strong", "weak"]
    for row in result["views"]:
        names = {"ours", "keras_cv", "pil", "copy"}
        assert set(row["per_second"]) == names
        assert set(row["ratios"]) == names - {"ours"}
        assert row["chosen"] == {"ours": 2, "keras_cv": 2}
    assert result["files"] is None
    text = input_lib.table(result)
    assert "\nstrong      16" in text and "ours/PIL" in text
    json.dumps(result)


def test_the_fastest_is_chosen_by_item(monkeypatch):
    def interleave_streams(streams, rounds, seconds, at_least):
        assert streams == {1: "one", 16: "sixteen", 64: "many"}
        walls = {1: [3.0, 3.0], 16: [9.0, 1.0], 64: [2.0, 2.0]}
        return {k: np.stack([v, [0, 0]], axis=1) for k, v in walls.items()}

    monkeypatch.setattr(timing, "interleave_streams", interleave_streams)
    streams = {1: "one", 16: "sixteen", 64: "many"}
    # The other round of 16 was disturbed.
    assert input_lib._fastest(streams) == 16


def test_ratios_of_rates_say_how_much_faster_ours_is(monkeypatch):
    seconds = {"ours": 0.5, "keras_cv": 2.0, "pil": 8.0, "copy": 0.25}

    def interleave_streams(streams, rounds, seconds_each, at_least=8):
        assert list(streams) == list(seconds)
        return {k: np.full((rounds, 2), v) for k, v in seconds.items()}

    monkeypatch.setattr(input_lib, "_fastest", lambda streams: 2)
    monkeypatch.setattr(timing, "interleave_streams", interleave_streams)
    monkeypatch.setattr(input_lib, "_cores", lambda: 2)
    monkeypatch.setattr(opponents, "keras_cv_chain", lambda view: tf.identity)
    result = input_lib.measure((16,), rounds=3, batch_sizes=(2,))
    for row in result["views"]:
        per_second, ratios = row["per_second"], row["ratios"]
        assert per_second["ours"] == {"wall": 2.0, "cpu": 2.0}
        assert ratios["keras_cv"] == {"wall": 4.0, "cpu": 4.0}
        # One process on each of two cores.
        assert per_second["pil"] == {"wall": 0.25, "cpu": 0.125}
        assert ratios["pil"] == {"wall": 8.0, "cpu": 16.0}
    line = input_lib.table(result).splitlines()[1]
    assert line.split() == (
        "strong 16 2 0 0 4 4.00 ( 4.00) 8.00 (16.00)".split()
    )


def write_jpeg_files(folder, number, height, width):
    generator = np.random.default_rng(0)
    for index in range(number):
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        file = tf.io.encode_jpeg(pixels).numpy()
        (folder / f"{index}.jpeg").write_bytes(file)


def test_input_from_files(tmp_path, monkeypatch):
    write_jpeg_files(tmp_path, 3, 60, 80)
    monkeypatch.setattr(input_lib, "FILE_VIEW_SIZE", 16)
    result = input_lib.measure((), tmp_path, rounds=1, seconds=0.01)
    row = result["files"]
    assert row["images"] == 3
    names = {"ours", "whole", "keras_cv", "decode", "copy"}
    assert set(row["per_second"]) == names
    for name in ("whole", "keras_cv"):  # one round: its ratio is the rates'
        for kind in ("wall", "cpu"):
            assert row["ratios"][name][kind] == pytest.approx(
                row["per_second"]["ours"][kind] / row["per_second"][name][kind]
            )
    assert "pair of     16" in input_lib.table(result)


@pytest.mark.parametrize("make", ["pil", "keras_cv"])
def test_opponents_make_our_views(make):
    """A crop alone, of a plain image: what comes out is known."""
    view = augment.make_view(8, min_area=0.5, mean=(0.1, 0.2, 0.3))
    images = np.full((2, 12, 12, 3), 51, np.uint8)
    expected = (0.2 - np.array([0.1, 0.2, 0.3])) / np.array(view.std)
    if make == "pil":
        generator = np.random.default_rng(0)
        results = opponents.pil_chain(view)(images[0], generator)
        assert results.dtype == np.float32
    else:
        results = opponents.keras_cv_chain(view)(tf.constant(images))
        assert results.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(
        results, np.broadcast_to(expected, results.shape), atol=1e-6
    )


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"solarize": 1.0}, (55, 200, 100)),
        ({"flip": 1.0}, (200, 55, 100)),
        # round(0.299 x 200 + 0.587 x 55 + 0.114 x 100)
        ({"grayscale": 1.0}, (103, 103, 103)),
        ({"jitter": 1.0, "hue": 0.0, "brightness": 0.0}, (200, 55, 100)),
    ],
)
def test_pil_operations_by_hand(options, expected):
    view = augment.make_view(
        4,
        min_area=1.0,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        **{"flip": 0.0, **options},
    )
    image = np.full((4, 4, 3), (200, 55, 100), np.uint8)
    if "flip" in options:
        image[:, :2] = (55, 200, 100)
    pixels = opponents.pil_chain(view)(image, np.random.default_rng(0))
    if "flip" in options:
        np.testing.assert_allclose(pixels[:, 2:] * 255, image[:, :2], atol=1e-4)
        np.testing.assert_allclose(pixels[:, :2] * 255, image[:, 2:], atol=1e-4)
        return
    if "solarize" in options:  # values from 128 on are inverted
        expected = (55, 55, 100)
    np.testing.assert_allclose(
        pixels * 255, np.broadcast_to(expected, (4, 4, 3)), atol=1e-4
    )


def test_step_adds_up():
    result = step.measure(TINY, (16, 32), rounds=1, matrix_size=32)
    parts = result["parts"]
    names = {"floor", "networks", "plain", "step K=16", "step K=32", "matmul"}
    assert set(parts) == names
    for name, part in parts.items():
        rate = part["flops_per_second"]
        assert rate == pytest.approx(part["flops"] / part["seconds"])
        if name != "matmul":
            images = part["images_per_second"]
            assert images == pytest.approx(4 / part["seconds"])
    assert parts["matmul"]["flops"] == 2 * 32**3
    whole, plain = (parts[name]["seconds"] for name in ("step K=32", "plain"))
    overhead = result["overhead"][32]["wall"]
    assert overhead == pytest.approx(whole / plain - 1)
    assert result["of_limit"] == pytest.approx(
        parts["plain"]["flops_per_second"] / parts["matmul"]["flops_per_second"]
    )
    expected = f"step / plain - 1, K = 32: {100 * overhead:.1f} % ("
    assert expected in step.table(result)
    json.dumps(result)


def test_step_counts_two_forward_passes_for_a_backward_pass():
    setup = TINY._replace(crops=2)
    backbone, *heads = setup_lib.make_networks(setup)
    forward = counts.count(backbone).forward_flops
    projector, predictor = (counts.count(head).forward_flops for head in heads)
    operations = step._operations(setup_lib.make_model(setup), setup)
    teacher = 4 * (forward + projector)
    student = 2 * 3 * 4 * (forward + projector + predictor)
    assert operations["floor"] == student
    assert operations["networks"] == student + teacher


def test_the_networks_alone_compute_what_the_step_does():
    model, batch = setup_lib.make_model(TINY), setup_lib.make_batch(TINY)
    targets, gradients = step._networks(model, batch)
    assert [tuple(target.shape) for target in targets] == [(4, 4)]
    for gradient, variable in zip(
        gradients, model.trainable_variables, strict=True
    ):
        assert gradient.shape == variable.shape
        assert np.isfinite(gradient).all()
    assert max(np.abs(gradient).max() for gradient in gradients) > 0


def test_the_plain_step_trains_but_hardly_moves():
    model, batch = setup_lib.make_model(TINY), setup_lib.make_batch(TINY)
    before = [np.array(v) for v in model.trainable_variables]
    keys = np.array(model.queue.keys)
    step._plain_step(model, batch)
    assert int(tf.convert_to_tensor(model.optimizer.iterations)) == 1
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert np.abs(np.array(variable) - old).max() < 1e-3
    assert any(
        (np.array(variable) != old).any()
        for old, variable in zip(before, model.trainable_variables, strict=True)
    )
    np.testing.assert_array_equal(model.queue.keys, keys)  # no ReSSL


def test_precisions_are_those_of_the_models(monkeypatch):
    seen = []
    make_model = setup_lib.make_model

    def spy(setup):
        model = make_model(setup)
        seen.append(model.student.backbone.get_layer("stem_conv").compute_dtype)
        return model

    monkeypatch.setattr(setup_lib, "make_model", spy)
    result = precision.measure(TINY, ["mixed_bfloat16", "float32, XLA"], 1)
    assert seen == ["float32", "bfloat16", "float32"]
    assert keras.mixed_precision.global_policy().name == "float32"
    speed, rates = result["speed"], result["images_per_second"]
    assert speed["float32"] == {"wall": 1.0, "cpu": 1.0}
    assert speed["mixed_bfloat16"]["wall"] == pytest.approx(
        rates["mixed_bfloat16"] / rates["float32"]
    )
    assert "float32, XLA " in precision.table(result)
    with pytest.raises(ValueError, match="some of float32; .*'float64'"):
        precision.measure(TINY, ["float64"])


@pytest.mark.parametrize("shared_cores", [True, False])
def test_end_to_end_ratios(shared_cores):
    times = {
        "step": np.array([[4.0, 0], [6.0, 0], [1.0, 0]]),
        "input": np.array([[1.0, 0], [2.0, 0], [3.0, 0]]),
        "both": np.array([[5.0, 0], [16.0, 0], [4.0, 0]]),
    }
    result = end_to_end._compare(times, 12, shared_cores)
    per_second, ratios = result["images_per_second"], result["ratios"]
    assert per_second["step"] == 3.0
    assert per_second["input"] == 6.0
    assert per_second["both"] == 2.4
    assert ratios["to_slower"] == 0.75  # 4 / 5, 6 / 16, 3 / 4
    if shared_cores:
        assert per_second["limit"] == 2.4  # 12 / 5, 12 / 8, 12 / 4
        assert ratios["to_limit"] == 1.0  # 5 / 5, 8 / 16, 4 / 4
    else:
        assert per_second["limit"] == 3.0
        assert ratios["to_limit"] == 0.75


def test_end_to_end_trains_on_real_views():
    result = end_to_end.measure(TINY._replace(image_size=16), rounds=1, steps=2)
    assert set(result["images_per_second"]) == {
        "step",
        "input",
        "both",
        "limit",
    }
    assert min(result["images_per_second"].values()) > 0
    text = end_to_end.table(result)
    assert "1 / (1/input + 1/step)" in text
    json.dumps(result)


def test_pictures_are_photographs_and_always_the_same():
    pictures = setup_lib.make_pictures(4, 32)
    assert pictures.shape == (4, 32, 32, 3) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, setup_lib.make_pictures(4, 32))
    assert (pictures[0] != pictures[2]).any()  # two crops of one photograph
    # Neighbours are alike, which those of noise are not.
    step_size = np.abs(np.diff(pictures.astype(float), axis=1)).mean()
    assert 0 < step_size < pictures.std() / 2


# --- commands ---------------------------------------------------------------


def test_benchmark_command(tmp_path):
    path = tmp_path / "queue.json"
    code, stdout, lines = call(
        "benchmark",
        "queue",
        "--width=2",
        "--image_size=8",
        "--batch_size=4",
        "--queue_sizes=16,32",
        "--rounds=1",
        f"--json={path}",
    )
    assert (code, lines) == (0, [])
    sizes = [row["queue_size"] for row in json.loads(path.read_text())["rows"]]
    assert sizes == [16, 32]
    assert "no write" in stdout


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            [],
            "input, step, precision, end_to_end, queue, memory, host, "
            "evaluation, consumers. Received: none",
        ),
        (["queues"], "Received: queues"),
        (["--rounds=2", "queue", "stray"], "Received: queue stray"),
        (["host"], "`--images` must name a folder of JPEG files"),
        (["input", "--sizes=32,large"], "`--sizes` must be whole numbers"),
    ],
)
def test_benchmark_says_what_it_needs(arguments, expected):
    assert_mistake(call("benchmark", *arguments), expected)


def test_scaling_command(tmp_path):
    parameters = tmp_path / "parameters.json"
    parameters.write_text('{"device": {"per_host": 4}, "rows": []}')
    path = tmp_path / "plan.json"
    code, stdout, lines = call(
        "scaling",
        "--devices=8",
        "--batch_sizes=1024",
        f"--parameters={parameters}",
        f"--json={path}",
    )
    assert (code, lines) == (0, [])
    (row,) = json.loads(path.read_text())
    assert row["hosts"] == 2
    assert "bottleneck" in stdout
