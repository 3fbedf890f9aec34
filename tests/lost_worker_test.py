"""A worker is killed in the middle of a run; the same commands go on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from processes import two_workers

from ressl_tf import workdir as workdir_lib

ROOT = Path(__file__).parent.parent
STEPS = 24  # 6 epochs
SECONDS = 400
RECIPE = """
from configs import photos
from ressl_tf import networks

networks.RESNETS["tiny"] = networks.Architecture("basic", (1, 1))

def get_config(arg=None):
    config = photos.get_config("quick")
    config.data.source = {source!r}
    config.data.image_size = 16
    config.backbone.name = "tiny"
    config.train.batch_size = 16
    config.train.epochs = 6.0
    config.method.queue_size = 40
    config.monitor.log_every_steps = 1
    config.monitor.eval_every_epochs = 2
    config.monitor.knn_neighbours = 5
    return config
"""


def start(folder, name, *flags, tf_config=None):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if tf_config is not None:
        environment["TF_CONFIG"] = tf_config
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tools.pretrain",
            f"--config={folder / 'recipe.py'}",
            f"--workdir={folder / name}",
            *flags,
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_cluster(folder, name):
    flags = "--strategy=multi_worker", "--cluster_timeout=120"
    return [
        start(folder, name, *flags, tf_config=tf_config)
        for tf_config in two_workers()
    ]


def wait_for(path, processes):
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.2)


@pytest.mark.slow
def test_killed_worker_ends_the_others_and_nothing_is_lost(tmp_path):
    source = tiny.write_images(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE.format(source=source))
    processes = [
        start(tmp_path, "unharmed", "--strategy=mirrored", "--replicas=2")
    ]
    try:
        _, errors = processes[0].communicate(timeout=SECONDS)
        assert processes[0].returncode == 0, errors

        processes = start_cluster(tmp_path, "cluster")
        checkpoints = tmp_path / "cluster" / "checkpoints"
        wait_for(checkpoints / "step-4.index", processes)
        processes[1].kill()
        killed = time.monotonic()
        _, errors = processes[0].communicate(timeout=SECONDS)
        assert time.monotonic() - killed < 60
        assert processes[0].returncode == 1
        last = errors.strip().splitlines()[-1]
        assert last.startswith("error: Lost worker 1 (127.0.0.1:"), errors
        assert "The same commands again" in last
        done = max(
            int(path.stem.removeprefix("step-"))
            for path in checkpoints.glob("*.index")
        )
        assert 4 <= done < STEPS  # or there was nothing to continue

        # One worker is asked to stop: both do, after the same step, saved.
        processes = start_cluster(tmp_path, "cluster")
        wait_for(checkpoints / f"step-{done + 4}.index", processes)
        processes[1].send_signal(signal.SIGTERM)
        for process in processes:
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 1, errors
            assert f"resuming from step {done}" in errors
            stopped = int(re.search(r"stopped at step (\d+) of", errors)[1])
            assert done + 4 < stopped < STEPS
            assert (checkpoints / f"step-{stopped}.index").exists()

        processes = start_cluster(tmp_path, "cluster")
        for process in processes:
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, errors
            assert f"resuming from step {stopped}" in errors
    finally:
        for process in processes:
            process.kill()

    rows, expected = (
        workdir_lib.read_metrics(tmp_path / name)
        for name in ("cluster", "unharmed")
    )
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in ("loss", "info_nce", "embedding_std", "knn_accuracy"):
            if name in other:
                np.testing.assert_allclose(row[name], other[name], rtol=1e-5)
    # The other worker's files are gone: there are the chief's alone.
    files = {path.name for path in (tmp_path / "cluster").iterdir()}
    assert files == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
    }
