"""Tests of `train`: resuming, refusing, stopping, and what is written."""

import json
import logging
import signal
import threading

import numpy as np
import pytest
import tensorflow as tf
import tiny

from ressl_tf import data
from ressl_tf import model as model_lib
from ressl_tf import monitor
from ressl_tf import recipe
from ressl_tf import train
from ressl_tf import workdir as workdir_lib
from ressl_tf.data import shards
from ressl_tf.evaluation import features
from ressl_tf.evaluation import knn

# Everything that a resumed run could get wrong.
SCHEDULED = {
    "method.infonce_warmup_epochs": 2.0,
    "method.teacher_momentum": 0.9,
    "method.teacher_momentum_cosine": True,
    "train.warmup_epochs": 1.0,
}
TOTAL = 3 * tiny.STEPS_PER_EPOCH


@pytest.fixture(autouse=True)
def light(monkeypatch):
    tiny.lighten(monkeypatch)


@pytest.fixture
def source(tmp_path):
    return tiny.write_images(tmp_path)


def all_values(model):
    """Every variable of a run, by a name that says what it is."""
    parts = {
        "student": model.student.variables,
        "teacher": model.teacher.variables,
        "predictor": model.predictor.variables,
        "queue": model.queue.variables,
        "step": [model.step],
        "optimizer": model.optimizer.variables,
    }
    return {
        f"{part}_{number}": np.array(variable)
        for part, variables in parts.items()
        for number, variable in enumerate(variables)
    }


def assert_same(values, expected):
    assert set(values) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)


def learnt(rows):
    """The rows' numbers that do not depend on the machine, by step."""
    clock = ("images_per_second", "peak_memory_gib")
    return {
        (row["step"], "knn_accuracy" in row): {
            key: value for key, value in row.items() if key not in clock
        }
        for row in rows
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its config, values and rows."""
    folder = tmp_path_factory.mktemp("whole")
    changes = {**SCHEDULED, "monitor.eval_every_epochs": 2}
    config = tiny.make_config(tiny.write_images(folder), changes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        run = train.train(config, folder / "run")
        extract = features.FeatureExtractor(
            recipe.make_encoder(config, run.model.student.backbone)
        )
        sets = [
            data.load(config["data"]["source"], split=split)
            for split in ("train", "test")
        ]
        score = knn.knn_accuracy(
            *(x for s in sets for x in (extract(s.images), s.labels)),
            num_classes=tiny.NUM_CLASSES,
            k=5,
        )
    rows = workdir_lib.read_metrics(folder / "run")
    return config, folder / "run", run, all_values(run.model), rows, score


@pytest.mark.core
def test_a_whole_run(whole):
    config, workdir, run, values, rows, score = whole
    assert (run.step, run.total_steps, run.finished) == (TOTAL, TOTAL, True)
    assert int(values["step_0"]) == TOTAL
    assert int(values["queue_1"]) == TOTAL * tiny.BATCH_SIZE % 40
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == [2, 4, 6, 8, 10, 12]
    scores = [row for row in rows if "knn_accuracy" in row]
    assert [(row["step"], row["epoch"]) for row in scores] == [
        (8, 2.0),
        (12, 3.0),
    ]
    np.testing.assert_allclose(scores[-1]["knn_accuracy"], score)
    assert score > 1 / tiny.NUM_CLASSES
    assert list(rows[0])[2:9] == list(model_lib.METRICS)
    np.testing.assert_allclose(
        [row["alpha"] for row in rows if "loss" in row],
        [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1.0, 1.0],
    )
    assert rows[-2]["teacher_momentum"] > 0.99
    assert workdir_lib.read_config(workdir) == json.loads(json.dumps(config))
    assert sorted(path.name for path in workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
    ]


@pytest.mark.core
@pytest.mark.parametrize("stops", [(4,), (2, 7)])
def test_a_resumed_run_is_the_whole_run(whole, tmp_path, caplog, stops):
    config, _, _, expected, expected_rows, _ = whole
    caplog.set_level(logging.INFO, "ressl_tf")
    for stop in stops:
        run = train.train(config, tmp_path / "run", stop_at_step=stop)
        assert (run.step, run.finished) == (stop, False)
        message = f"stopped at step {stop} of 12; the same command continues"
        assert caplog.records[-1].getMessage() == message
    resumed = train.train(config, tmp_path / "run")
    assert resumed.finished
    assert f"resuming from step {stops[-1]}" in caplog.text
    values = all_values(resumed.model)
    assert any(np.any(values[f"optimizer_{n}"]) for n in range(2, 9))
    assert_same(values, expected)
    rows = workdir_lib.read_metrics(tmp_path / "run")
    found = learnt(rows)
    assert len(found) == len(rows), "a step is there twice"
    # A stop in the middle of a window makes two of it.
    cut = {stop + stop % 2 for stop in stops if stop % 2}
    for key, row in learnt(expected_rows).items():
        if key[0] in cut:
            assert found[key]["step"] == row["step"]
        else:
            assert found[key] == row


@pytest.mark.parametrize(
    "wanted, used",
    [(2, 2), pytest.param(3, 2, marks=pytest.mark.core), (4, 4)],
)
def test_several_steps_an_execution_change_nothing(
    whole, tmp_path, caplog, wanted, used
):
    config, _, _, expected, expected_rows, _ = whole
    config = {
        **config,
        "train": {**config["train"], "steps_per_execution": wanted},
    }
    # The stop comes in the middle of an epoch, at the end of an execution.
    stopped = train.train(config, tmp_path / "run", stop_at_step=5)
    assert stopped.step == 4 + used
    run = train.train(config, tmp_path / "run")
    values = all_values(run.model)
    for name, value in expected.items():
        tiny.assert_near(values[name], value, name)
    rows = {
        row["step"]: row
        for row in workdir_lib.read_metrics(tmp_path / "run")
        if "loss" in row
    }
    assert list(rows) == list(range(used, TOTAL + 1, used))
    if used == 2:  # the same windows
        for row in expected_rows:
            if "loss" in row:
                np.testing.assert_allclose(
                    rows[row["step"]]["loss"], row["loss"], rtol=1e-5
                )
    assert (f"{used} steps at a time" in caplog.text) == (wanted != used)


def test_rows_are_the_means_of_single_steps(whole, tmp_path):
    config, _, _, expected, expected_rows, _ = whole
    config = json.loads(json.dumps(config))
    config["monitor"].update(log_every_steps=1, eval_every_epochs=0)
    run = train.train(config, tmp_path / "run")
    # Logging is a window on the run, no part of it.
    assert_same(all_values(run.model), expected)
    singles = workdir_lib.read_metrics(tmp_path / "run")
    assert [row["step"] for row in singles] == list(range(1, TOTAL + 1))
    for row in expected_rows:
        if "loss" not in row:
            continue
        pair = singles[row["step"] - 2 : row["step"]]
        for name in model_lib.METRICS:
            np.testing.assert_allclose(
                row[name], np.mean([x[name] for x in pair]), rtol=1e-6
            )
        for name in ("alpha", "teacher_momentum", "learning_rate"):
            assert row[name] == pair[-1][name]


def test_a_finished_run_is_left_as_it_is(whole):
    config, workdir, _, expected, rows, _ = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    again = train.train(config, workdir)
    assert again.finished and again.step == TOTAL
    assert_same(all_values(again.model), expected)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_in_the_same_folder_is_refused(whole):
    config, workdir = whole[:2]
    other = json.loads(json.dumps(config))
    other["method"]["queue_size"] = 41
    with pytest.raises(
        ValueError, match="method.queue_size was 40 and now is 41"
    ):
        train.train(other, workdir)


@pytest.mark.core
def test_streamed_images(source, tmp_path, caplog):
    folder = tmp_path / "tfds"
    shards.write_shards(source, "tiny", folder, num_shards=3)
    config = tiny.make_config(
        "tfds:tiny",
        {
            "data.data_dir": str(folder),
            "data.stream": True,
            "data.lanes": 4,
            "monitor.eval_every_epochs": 1,
        },
    )
    whole = train.train(config, tmp_path / "whole")
    assert whole.step == TOTAL
    assert "no k-NN score" in caplog.text and "data.stream" in caplog.text
    train.train(config, tmp_path / "run", stop_at_step=5)
    resumed = train.train(config, tmp_path / "run")
    assert_same(all_values(resumed.model), all_values(whole.model))
    losses = [row["loss"] for row in workdir_lib.read_metrics(tmp_path / "run")]
    assert len(losses) == 7 and np.isfinite(losses).all()


@pytest.mark.parametrize("epochs, steps", [(1.5, 0), (0.0, 6)])
def test_a_last_epoch_that_is_not_whole(source, tmp_path, epochs, steps):
    changes = {"train.epochs": epochs, "train.steps": steps}
    changes["monitor.eval_every_epochs"] = 1
    changes["monitor.log_every_steps"] = 4
    config = tiny.make_config(source, changes)
    assert train.train(config, tmp_path / "run").finished
    rows = workdir_lib.read_metrics(tmp_path / "run")
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (4, 1.0),
        (4, 1.0),
        (6, 1.5),
        (6, 1.5),
    ]
    assert "knn_accuracy" in rows[1] and "knn_accuracy" in rows[3]
    latest = tf.train.latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert latest.endswith("step-6")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_saved(
    source, tmp_path, monkeypatch, caplog, number
):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    end_of_step = monitor.MetricsLogger.on_train_batch_end

    def interrupt(self, batch, logs=None):
        end_of_step(self, batch, logs)
        if self.step == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(monitor.MetricsLogger, "on_train_batch_end", interrupt)
    run = train.train(tiny.make_config(source), tmp_path / "run")
    assert (run.step, run.finished) == (3, False)
    assert f"stopping after this step (signal {number:d})" in caplog.text
    latest = tf.train.latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert latest.endswith("step-3")
    rows = workdir_lib.read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [2, 3]
    assert handlers == [
        signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)
    ]


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: test runners may have it ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_a_second_signal_is_not_caught(interruptible):
    with pytest.raises(KeyboardInterrupt), train._stop_signals() as requested:
        assert not requested()
        signal.raise_signal(signal.SIGINT)
        assert requested()
        signal.raise_signal(signal.SIGINT)


def test_signals_of_another_thread_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def use():
        with train._stop_signals() as requested:
            seen.append((requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


class Exploding(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is reasonable until a step."""

    def __init__(self, step, value):
        self.step = step
        self.value = value

    def __call__(self, step):
        step = tf.cast(step, tf.int64)
        return tf.where(step < self.step, 0.01, self.value)

    def get_config(self):
        return {"step": self.step, "value": self.value}


def explode(monkeypatch, step, value):
    monkeypatch.setattr(
        recipe,
        "make_optimizer",
        lambda config, durations: recipe.optimizers.make_optimizer(
            "sgd", Exploding(step, value)
        ),
    )


@pytest.mark.core
@pytest.mark.parametrize(
    "step, value, message, last_row",
    [
        # Weights of 1e28 make the next step's loss nan.
        (5, 1e30, "The loss is (nan|inf) at step 8. Lower `opt.*lengthen", 6),
        # Nothing sees the weights of the last step but the check.
        (7, np.inf, "The variable .* is not finite at step 8. Lower `opt", 8),
    ],
)
def test_not_finite(
    source, tmp_path, monkeypatch, step, value, message, last_row
):
    explode(monkeypatch, step, value)
    with pytest.raises(monitor.NotFiniteError, match=message):
        train.train(tiny.make_config(source), tmp_path / "run")
    latest = tf.train.latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert latest.endswith("step-4")
    reader = tf.train.load_checkpoint(latest)
    checked = 0
    for name in reader.get_variable_to_shape_map():
        tensor = np.asarray(reader.get_tensor(name))
        if tensor.dtype == np.float32:
            assert np.all(np.isfinite(tensor)), name
            checked += 1
    assert checked > 50
    rows = workdir_lib.read_metrics(tmp_path / "run")
    assert rows[-1]["step"] == last_row
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_without_labels_there_is_one_warning_and_no_score(tmp_path, caplog):
    source = tiny.write_images(tmp_path, labelled=False)
    changes = {"train.epochs": 1.0, "monitor.eval_every_epochs": 1}
    config = tiny.make_config(source, changes)
    caplog.set_level(logging.WARNING, "ressl_tf")
    assert train.train(config, tmp_path / "run").finished
    messages = [record.getMessage() for record in caplog.records]
    messages = [text for text in messages if "queue" not in text]
    assert len(messages) == 1
    assert messages[0].startswith("no k-NN score while training: `source`")
    assert "64 of its 64 images have no label" in messages[0]
    rows = workdir_lib.read_metrics(tmp_path / "run")
    assert not any("knn_accuracy" in row for row in rows)


@pytest.mark.parametrize("queue_size, warned", [(63, False), (64, True)])
def test_a_queue_as_large_as_the_data_set(
    source, tmp_path, caplog, queue_size, warned
):
    config = tiny.make_config(source, {"method.queue_size": queue_size})
    # Ends before the first step: only what comes before it is of interest.
    config["backbone"]["width"] = 0
    with pytest.raises(ValueError, match="`width` must be at least 1"):
        train.train(config, tmp_path / "run")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warned
    if warned:
        assert "method.queue_size=64) is not smaller than" in messages[0]
        assert "(64 images)" in messages[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train.precision": "half"}, "`train.precision` .*precision='half'"),
        ({"train.epochs": 0.0}, "`train.epochs` must be above 0.*=0.0"),
        ({"train.steps": 5}, "`train.epochs` and `train.steps`.*=3.0.*=5"),
        ({"train.batch_size": 65}, r"`batch_size` must be .*\(64\).*=65"),
        ({"monitor.log_every_steps": 0}, "`monitor.log_every_steps` .*=0"),
        ({"monitor.eval_every_epochs": -1}, "`monitor.eval_every_.*=-1"),
        ({"monitor.knn_neighbours": 0}, "`monitor.knn_neighbours` .*=0"),
        ({"monitor.knn_temperature": 0.0}, "`monitor.knn_temp.*above 0.*=0.0"),
        ({"monitor.checkpoint_every_epochs": 0}, "`monitor.checkpoint_.*=0"),
        ({"monitor.keep_checkpoints": 0}, "`monitor.keep_checkpoints` .*=0"),
        ({"method.teacher_temperature": 0.1}, "must be smaller than `stud"),
        ({"data.source": "npz:nowhere"}, "`source` .*npz:nowhere"),
        ({"data.stream": True}, "tools.make_shards"),
        ({"train.steps_per_execution": 0}, "`train.steps_per_.*=0"),
        ({"method.bn_splits": 3}, r"`method.bn_splits` .*\(16\).*=3"),
        (
            {"method.bn_splits": 8, "train.gradient_accumulation_steps": 4},
            r"`method.bn_splits` must divide .* \(4\).*=8",
        ),
        (
            {"train.gradient_accumulation_steps": 3},
            r"replicas \(1\) must divide `train.batch_size` \(16\).*=3",
        ),
        ({"train.gradient_accumulation_steps": 0}, "must be at least 1.*=0"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_folder_is_claimed(
    source, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        train.train(tiny.make_config(source, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_xla_on_several_replicas_is_refused(source, tmp_path, two_replicas):
    config = tiny.make_config(source, {"train.jit_compile": True})
    with pytest.raises(ValueError, match="`train.jit_compile` .*, 2 replicas"):
        train.train(config, tmp_path / "run", strategy=two_replicas)
    assert not (tmp_path / "run").exists()


def test_a_wrong_service_is_refused_before_the_folder_is_claimed(
    source, tmp_path
):
    with pytest.raises(ValueError, match="`service` must be.*'nonsense'"):
        train.train(
            tiny.make_config(source), tmp_path / "run", data_service="nonsense"
        )
    assert not (tmp_path / "run").exists()


def test_mixed_precision(source, tmp_path):
    changes = {"train.precision": "mixed_bfloat16", "train.epochs": 1.0}
    run = train.train(tiny.make_config(source, changes), tmp_path / "run")
    assert run.finished
    kernels = [v for v in run.model.variables if len(v.shape) == 4]
    assert kernels and all(v.dtype == "float32" for v in kernels)
    assert workdir_lib.read_metrics(tmp_path / "run")[-1]["loss"] > 0


@pytest.mark.slow
def test_a_flat_target_collapses_and_the_defaults_do_not(tmp_path, monkeypatch):
    """The paper's ablation of temperatures, seen on the embeddings.

    Not on the k-NN score: after so few steps that is still what the untrained
    backbone knows, and differs by more from one setting to the next.
    """
    monkeypatch.undo()  # the real views
    monkeypatch.setitem(
        recipe.networks.RESNETS,
        "tiny",
        recipe.networks.Architecture("basic", (1, 1)),
    )
    tenth = {}
    for split, step in (("train", 10), ("test", 8)):
        photos = data.load("photos", split=split, image_size=16)
        tenth[f"x_{split}"] = photos.images[::step]
        tenth[f"y_{split}"] = photos.labels[::step]
    np.savez(tmp_path / "photos.npz", **tenth)
    budget = {
        "backbone.width": 8,
        "projector.hidden_dim": 64,
        "projector.output_dim": 32,
        "predictor.hidden_dim": 64,
        "method.queue_size": 256,
        "method.teacher_momentum": 0.9,
        "optimizer.base_learning_rate": 4.0,
        "train.batch_size": 64,
        "train.epochs": 20.0,
        "monitor.log_every_steps": 100,
    }
    flat = {
        "predictor.enabled": False,
        "projector.batch_norm": False,
        "method.teacher_temperature": 0.1,
        "method.allow_flat_target": True,
    }
    last = {}
    for name, changes in (("default", {}), ("flat", flat)):
        config = tiny.make_config(
            f"npz:{tmp_path}/photos.npz", {**budget, **changes}
        )
        train.train(config, tmp_path / name)
        last[name] = workdir_lib.read_metrics(tmp_path / name)[-1]
    # log K is what a uniform target over the queue has.
    uniform = np.log(256)
    assert last["flat"]["embedding_std"] < 0.15
    assert last["flat"]["target_entropy"] > 0.99 * uniform
    assert last["flat"]["loss"] > 0.99 * uniform
    assert last["default"]["embedding_std"] > 0.35
    assert last["default"]["target_entropy"] < 0.85 * uniform
    assert last["default"]["loss"] < 0.92 * uniform
