"""Tests of the folder of a run."""

import json
import stat

import numpy as np
import pytest
import tiny

from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib

CONFIG = {
    "seed": 0,
    "data": {"source": "photos", "mean": (0.1, 0.2)},
    "train": {"epochs": 3.0},
}


def changed(**values):
    config = json.loads(json.dumps(CONFIG))
    for key, value in values.items():
        folder, name = key.split("__")
        config[folder][name] = value
    return config


@pytest.mark.core
def test_claim_writes_the_config_once(tmp_path):
    workdir = tmp_path / "runs" / "a"
    stored = workdir_lib.claim(workdir, CONFIG)
    assert stored["data"]["mean"] == [0.1, 0.2]
    assert workdir_lib.read_config(workdir) == stored
    written = (workdir / "config.json").stat().st_mtime_ns
    # Lists and tuples, whole floats and integers are the same setting.
    again = changed(data__mean=[0.1, 0.2], train__epochs=3)
    assert workdir_lib.claim(workdir, again) == stored
    assert (workdir / "config.json").stat().st_mtime_ns == written


def test_check_writes_nothing(tmp_path):
    workdir_lib.check(tmp_path / "a", CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.core
@pytest.mark.parametrize("function", [workdir_lib.check, workdir_lib.claim])
def test_another_config_is_refused_by_name_and_values(tmp_path, function):
    workdir_lib.claim(tmp_path, CONFIG)
    other = changed(data__source="tfds:cifar10", train__epochs=4.0)
    with pytest.raises(ValueError) as error:
        function(tmp_path, other)
    message = str(error.value)
    assert "`workdir` holds a run of another config" in message
    assert f"workdir='{tmp_path}'" in message
    assert "data.source was 'photos' and now is 'tfds:cifar10'" in message
    assert "train.epochs was 3.0 and now is 4.0" in message
    assert "seed" not in message and "mean" not in message
    assert workdir_lib.read_config(tmp_path)["data"]["source"] == "photos"


def test_added_and_removed_settings_are_differences(tmp_path):
    workdir_lib.claim(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="train.new was None and now is 5"):
        workdir_lib.check(tmp_path, changed(train__new=5))
    other = changed()
    del other["train"]
    expected = r"train was \{'epochs': 3.0\} and now is None"
    with pytest.raises(ValueError, match=expected):
        workdir_lib.check(tmp_path, other)


def test_what_another_machine_needs_may_change(tmp_path):
    stored = workdir_lib.claim(tmp_path, changed(data__data_dir="/here"))
    moved = changed(data__data_dir="/there", train__steps_per_execution=8)
    assert workdir_lib.check(tmp_path, moved) == json.loads(json.dumps(moved))
    assert workdir_lib.claim(tmp_path, moved)["data"]["data_dir"] == "/there"
    assert workdir_lib.read_config(tmp_path) == stored
    moved["train"]["epochs"] = 5
    with pytest.raises(ValueError, match="train.epochs was 3.0") as error:
        workdir_lib.check(tmp_path, moved)
    assert "/there" not in str(error.value)


def test_a_url_is_no_workdir():
    with pytest.raises(ValueError, match="mount a bucket.*'gs://a/b'"):
        workdir_lib.check("gs://a/b", CONFIG)


def test_a_file_is_no_workdir(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match=r"must be a folder.*/file', which is"):
        workdir_lib.claim(path, CONFIG)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="has no config.json.*nowhere'"):
        workdir_lib.read_config(tmp_path / "nowhere")


def test_write_json_replaces_as_a_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    workdir_lib.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        workdir_lib.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        workdir_lib.write_json(tmp_path / "file.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_appended_read_and_truncated(tmp_path):
    assert workdir_lib.read_metrics(tmp_path) == []
    rows = [{"step": step, "loss": step / 7} for step in (2, 4, 4, 6)]
    for row in rows:
        workdir_lib.append_metrics(tmp_path, row)
    assert workdir_lib.read_metrics(tmp_path) == rows
    workdir_lib.truncate_metrics(tmp_path, 4)
    assert workdir_lib.read_metrics(tmp_path) == rows[:3]
    workdir_lib.append_metrics(tmp_path, rows[3])
    assert workdir_lib.read_metrics(tmp_path) == rows


@pytest.mark.parametrize("end", ['{"step": 6, "lo', "{", '{"step": 6}x', "\n"])
def test_a_broken_last_line_is_survived(tmp_path, end):
    row = {"step": 4, "loss": 0.5}
    workdir_lib.append_metrics(tmp_path, row)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + end)
    assert workdir_lib.read_metrics(tmp_path) == [row]
    workdir_lib.truncate_metrics(tmp_path, 10)
    workdir_lib.append_metrics(tmp_path, {"step": 6})
    assert workdir_lib.read_metrics(tmp_path) == [row, {"step": 6}]


def test_restore_needs_a_checkpoint_and_brings_it_back(tmp_path, monkeypatch):
    tiny.lighten(monkeypatch)
    config = tiny.make_config("photos")
    model = recipe.make_model(config)
    with pytest.raises(ValueError, match="no checkpoint yet.*tools.pretrain"):
        workdir_lib.restore(tmp_path, model)
    for number, variable in enumerate(model.variables):
        variable.assign(np.full(variable.shape, number + 1))
    manager = workdir_lib.checkpoint_manager(tmp_path, model, keep=2)
    assert workdir_lib.latest_checkpoint(tmp_path) == (None, 0)
    for step in (3, 5, 8):
        path = manager.save(checkpoint_number=step)
        assert workdir_lib.latest_checkpoint(tmp_path) == (path, step)
    names = {path.name for path in (tmp_path / "checkpoints").glob("*.index")}
    assert names == {"step-5.index", "step-8.index"}

    other = recipe.make_model({**config, "seed": 1})
    workdir_lib.restore(tmp_path, other)
    assert len(other.variables) == len(model.variables) > 50
    for number, variable in enumerate(other.variables):
        np.testing.assert_array_equal(variable, number + 1)
