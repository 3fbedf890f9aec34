"""The same run on 1, 2 and 4 replicas and on 2 workers: the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from processes import two_workers

from ressl_tf import workdir as workdir_lib

PROGRAM = Path(__file__).parent / "cluster_run.py"
SETTINGS = ("monitor.log_every_steps=1", "train.epochs=5.0")  # 20 steps
MEASURED = (
    "loss",
    "relation",
    "info_nce",
    "target_entropy",
    "student_entropy",
    "agreement",
    "embedding_std",
)
SECONDS = 300


def start(folder, name, *flags, settings=SETTINGS, tf_config=None):
    """Starts a run; with `tf_config`, as a worker of a cluster."""
    environment = dict(os.environ, PYTHONPATH=str(PROGRAM.parent.parent))
    if tf_config is not None:
        environment["TF_CONFIG"] = tf_config
    return subprocess.Popen(
        [
            sys.executable,
            str(PROGRAM),
            f"--source=npz:{folder / 'images.npz'}",
            f"--workdir={folder / name}",
            f"--out={folder / name}",
            *(f"--set={setting}" for setting in settings),
            *flags,
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_cluster(folder, name):
    """Starts two workers on this machine."""
    return [
        start(folder, name, "--strategy=multi_worker", tf_config=tf_config)
        for tf_config in two_workers()
    ]


def finish(*processes):
    """Waits for the end; all must have succeeded."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()  # TensorFlow may take no notice of a SIGTERM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    tiny.write_images(folder)
    return folder


@pytest.fixture(scope="module")
def single(folder):
    finish(start(folder, "single"))
    return folder / "single"


def assert_same(run, other):
    """Compares the losses of every step and all weights at the end."""
    rows, other_rows = map(workdir_lib.read_metrics, (run, other))
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert len(other_rows) == len(rows)
    for row, other_row in zip(rows, other_rows, strict=True):
        for name in MEASURED:
            np.testing.assert_allclose(
                other_row[name], row[name], atol=1e-5, err_msg=f"{name} {row}"
            )
    expected, found = (np.load(f"{each}.npz") for each in (run, other))
    assert int(found["step"]) == 20
    assert len([name for name in expected if name.startswith("teacher")]) > 20
    for name in found:
        # Each replica's copy of the queue is the single run's queue.
        key = "queue/0" if name.startswith("queue/") else name
        np.testing.assert_allclose(
            found[name], expected[key], atol=1e-5, err_msg=name
        )
    return found


@pytest.mark.parametrize(
    "replicas", [pytest.param(2, marks=pytest.mark.core), 4]
)
def test_replicas_equal_one_device(folder, single, replicas):
    name = f"mirrored{replicas}"
    finish(start(folder, name, "--strategy=mirrored", f"--replicas={replicas}"))
    found = assert_same(single, folder / name)
    for replica in range(1, replicas):
        # Not close: the same. The queue is written by each for itself.
        np.testing.assert_array_equal(
            found[f"queue/{replica}"], found["queue/0"]
        )


@pytest.mark.core
def test_workers_equal_one_device(folder, single):
    finish(*start_cluster(folder, "workers"))
    chief = assert_same(single, folder / "workers")
    other = np.load(f"{folder / 'workers'}-other.npz")
    # The other worker's copies of everything are the chief's, to the last bit.
    assert len(other) == len(chief)
    for name in chief:
        np.testing.assert_array_equal(other[name], chief[name], err_msg=name)


@pytest.mark.slow
def test_a_run_moves_from_one_device_to_two(folder, single):
    finish(start(folder, "moved", "--steps=10"))
    assert len(workdir_lib.read_metrics(folder / "moved")) == 10
    finish(start(folder, "moved", "--strategy=mirrored", "--replicas=2"))
    assert_same(single, folder / "moved")


def test_split_batch_norm_on_two_replicas_equals_one_device(folder):
    settings = (*SETTINGS, "method.bn_splits=4", "predictor.enabled=false")
    finish(start(folder, "split", settings=settings))
    finish(
        start(
            folder,
            "split2",
            "--strategy=mirrored",
            "--replicas=2",
            settings=settings,
        )
    )
    assert_same(folder / "split", folder / "split2")
