"""Tests of the tables of the paper: their runs, the tool, what it writes."""

import csv
import importlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny
import tool_process
import tools_test

from configs import cifar10
from configs import cifar10_earlier
from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import collapse
from ressl_tf.evaluation import sweep
from tools import sweep_runs
from tools import sweep_tables

# The paper's numbers by table and run; all others are unknown.
PAPER = {
    "1": {
        "cifar10_t0.04": 90.76,
        "cifar100_t0.03": 65.03,
        "stl10_t0.03": 88.89,
        "tiny_imagenet_t0.03": 46.64,
    },
    "2": {
        f"{dataset}_t{temperature}": "chance"
        for dataset in sweep_tables.DATASETS
        for temperature in ("0.08", "0.1")
    },
    "3": {
        "cifar10_off": 90.76,
        "cifar100_off": 65.03,
        "stl10_off": 88.89,
        "tiny_imagenet_off": 46.64,
        "cifar10_on": 89.98,
        "cifar100_on": 65.33,
        "stl10_on": 90.00,
        "tiny_imagenet_on": 48.22,
    },
    "5": {
        "none": 79.33,
        "crop": 90.62,
        "crop_flip": 90.76,
        "contrastive": 86.88,
    },
    "6": {"k256": 89.52, "k4096": 90.76, "k16384": 90.82, "k32768": 90.27},
    "pairs": {
        "base": 90.76,
        "contrastive": 86.88,
        "flat_earlier": "chance",
        "k256": 89.52,
    },
}
FLAT = {"method.teacher_temperature", "method.allow_flat_target"}


def runs_of(key):
    return {run.name: run for run in sweep_tables.get(key).runs}


def changed_config(run, **settings):
    """The recipe of a run with its settings, each of which has to be one."""
    module = importlib.import_module(f"configs.{run.dataset}")
    config = module.get_config()
    for key, value in sweep_tables.settings(run, **settings).items():
        *folders, name = key.split(".")
        part = config
        for folder in folders:
            part = part[folder]
        assert name in part, key
        part[name] = value  # refuses another type
    return config.to_dict()


@pytest.mark.parametrize("key", sweep_tables.TABLES)
def test_names_and_the_papers_numbers(key):
    table = sweep_tables.get(key)
    runs = runs_of(key)
    assert len(runs) == len(table.runs)
    known = {name: x.paper for name, x in runs.items() if x.paper is not None}
    assert known == PAPER[key]
    for title, *names in table.pairs:
        assert title and set(names) <= set(runs)


def test_tables():
    assert sweep_tables.get("4") is sweep_tables.get("5")
    assert sweep_tables.get("2").best == {
        "cifar10": 90.20,
        "cifar100": 63.79,
        "stl10": 88.25,
        "tiny_imagenet": 46.60,
    }
    # Without predictor they start from the recipe of the earlier version.
    earlier = cifar10_earlier.get_config().to_dict()
    assert changed_config(runs_of("2")["cifar10_t0.04"]) == earlier
    with pytest.raises(ValueError, match="1, 2, 3, 4, 5, 6, pairs. .*table=7"):
        sweep_tables.get("7")


@pytest.mark.parametrize("key", sweep_tables.TABLES)
@pytest.mark.parametrize("dataset", sweep_tables.DATASETS)
def test_overrides_are_settings_of_the_recipe(key, dataset):
    if importlib.util.find_spec(f"configs.{dataset}") is None:
        pytest.skip("no such recipe yet")
    for run in runs_of(key).values():
        if run.dataset != dataset:
            continue
        for budget in ({}, {"budget": "cpu", "epochs": 4.0}):
            config = changed_config(run, **budget)
            method = config["method"]
            assert method["allow_flat_target"] == (
                method["teacher_temperature"] >= method["student_temperature"]
            )
            plain = key == "2" or run.name in (
                "flat_no_predictor",
                "flat_earlier",
            )
            assert config["predictor"]["enabled"] == (not plain)
            recipe.make_views(config)


def test_the_contrastive_teacher_sees_what_the_student_sees():
    views = changed_config(runs_of("5")["contrastive"])["views"]
    assert views["teacher"] == views["student"]
    assert changed_config(runs_of("5")["crop_flip"]) == changed_config(
        runs_of("pairs")["base"]
    )
    whole = changed_config(runs_of("5")["none"])
    whole["data"].update(mean=(0.0,) * 3, std=(1.0,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    (view,) = recipe.make_views(whole)["teacher"]
    np.testing.assert_allclose(
        view.apply(images, (1, 2)), images / 255.0, atol=1e-5
    )


def test_budgets():
    paper = cifar10.get_config().to_dict()
    assert changed_config(runs_of("5")["crop_flip"]) == paper
    off, on = (
        sweep_tables.settings(runs_of("3")[name], "cpu", 2.0)
        for name in ("cifar10_off", "cifar10_on")
    )
    assert off["train.warmup_epochs"] == on[sweep_tables.INFONCE_WARMUP] == 0.25
    assert off["train.epochs"] == 2.0 and off["backbone.width"] == 16
    assert {key for key in on if on[key] != off[key]} == {
        sweep_tables.INFONCE_WARMUP
    }
    run = runs_of("6")["k256"]
    settings = sweep_tables.settings(run, "cpu", 1.0, {"backbone.width": "4"})
    assert settings["backbone.width"] == "4"
    with pytest.raises(ValueError, match="Received: method.queue_size, .*k256"):
        sweep_tables.settings(run, overrides={"method.queue_size": "9"})


@pytest.mark.parametrize(
    "pair, differences",
    [
        ("base contrastive", {f"views.teacher.{key}" for key in (
            "jitter", "brightness", "contrast", "saturation", "hue",
            "grayscale", "blur",
        )}),
        ("base flat", FLAT),
        ("flat flat_no_predictor", {"predictor.enabled"}),
        (
            "flat flat_earlier",
            {"predictor.enabled", "projector.batch_norm", "method.bn_splits"},
        ),
        ("base k256", {"method.queue_size"}),
    ],
)  # fmt: skip
def test_a_pair_differs_in_what_it_compares(pair, differences):
    runs = runs_of("pairs")
    assert pair.split() in [
        list(names) for _, *names in sweep_tables.get("pairs").pairs
    ]
    first, second = (
        changed_config(runs[name], budget="cpu", epochs=4.0)
        for name in pair.split()
    )
    found = {key for key, _, _ in workdir_lib._differences(first, second)}
    assert found == differences


# A stand-in for the tools: says what it was called with, leaves what it should;
# "bad" fails in its second tool, "long" waits for its end the first time.
STUB = """
import pathlib, signal, sys, time
tool, flag = sys.argv[1:3]
folder = pathlib.Path(flag.partition("=")[2])
with open(folder.parent / "calls.txt", "a") as file:
    file.write(f"{folder.name} {tool}\\n")
print("hello from", tool)
if folder.name == "bad" and tool == "tools.knn":
    print("WARNING: something\\nerror: no images\\n", file=sys.stderr)
    sys.exit(3)
if folder.name == "long" and not (folder / "saved").exists():
    def stop(*_):
        (folder / "saved").touch()
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    (folder / "started").touch()
    time.sleep(60)
(folder / tool).touch()
"""
TOOLS = ("pretrain", "knn", "linear_probe")


def make_jobs(folder, *names):
    return [
        sweep_runs.Job(
            name,
            folder / name,
            tuple(
                sweep_runs.Step(
                    tool, (f"--workdir={folder / name}",), f"tools.{tool}"
                )
                for tool in TOOLS
            ),
        )
        for name in names
    ]


def test_finished_failing_and_stopped_jobs(tmp_path):
    (tmp_path / "stub.py").write_text(STUB)
    launch = (sys.executable, str(tmp_path / "stub.py"))
    jobs = make_jobs(tmp_path, "good", "bad", "long", "last")
    watched = []

    def stop_when_started():
        while not (
            (tmp_path / "long" / "started").exists() and jobs[2] in watched
        ):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_started)
    thread.start()
    runner = sweep_runs.Runner(launch, lambda job, step: watched.append(job))
    before = signal.getsignal(signal.SIGTERM)
    ended = [job.name for job in runner.run(jobs)]
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert runner.stopped and ended == ["good", "bad", "long"]
    assert (tmp_path / "long" / "saved").exists()
    error = "tools.knn ended with code 3: error: no images"
    assert [job.state() for job in jobs] == [
        ("done", ""),
        ("failed", error),
        ("unfinished", ""),
        ("waiting", ""),
    ]
    assert jobs[0].minutes() > 0 and jobs[3].minutes() == 0
    log = (tmp_path / "bad" / "log.txt").read_text()
    assert log.startswith(f"$ {launch[0]} {launch[1]} tools.pretrain --workd")
    assert "hello from tools.knn\n" in log and "error: no images\n" in log

    # Again: what is done is left, the others go on where they were.
    calls = tmp_path / "calls.txt"
    calls.unlink()
    runner = sweep_runs.Runner(launch, lambda job, step: watched.append(job))
    assert [job.name for job in runner.run(jobs)] == [j.name for j in jobs]
    assert not runner.stopped
    states = [job.state()[0] for job in jobs]
    assert states == ["done", "failed", "done", "done"]
    assert calls.read_text().split("\n") == [
        "bad tools.knn",
        *(f"{name} tools.{t}" for name in ("long", "last") for t in TOOLS),
        "",
    ]

    # What a step left is gone: it and those after it are run again.
    (tmp_path / "good" / "tools.knn").unlink()
    calls.unlink()
    list(runner.run(jobs[:1]))
    assert calls.read_text() == "good tools.knn\ngood tools.linear_probe\n"
    assert jobs[0].state()[0] == "done"


def write_run(folder, knn=None, entropy=3.0, std=0.8):
    """What the tools leave of a run."""
    workdir_lib.write_json(
        folder / "config.json", {"method": {"queue_size": 256}}
    )
    for step, loss in ((1, 6.0), (2, 5.25)):
        row = {"step": step, "epoch": step / 2, "loss": loss}
        row.update(target_entropy=entropy, embedding_std=std)
        workdir_lib.append_metrics(folder, row)
    # As the k-NN monitor of a run writes it.
    workdir_lib.append_metrics(folder, {"step": 2, "knn_accuracy": 0.1})
    if knn is not None:
        workdir_lib.write_json(folder / "eval" / "knn.json", {"accuracy": knn})
        workdir_lib.write_json(
            folder / "eval" / "linear_probe.json",
            {
                s: {"accuracy": knn + x}
                for s, x in (("sgd", 0.1), ("lbfgs", 0.2))
            },
        )


@pytest.mark.parametrize(
    "std, entropy, expected",
    [
        (0.1, 0.99 * np.log(256), False),
        (0.0999, 1.0, True),
        (0.8, 0.9901 * np.log(256), True),
        (float("nan"), 1.0, True),
    ],
)
def test_collapse(std, entropy, expected):
    assert collapse.is_collapsed(std, entropy, 256) == expected


def test_read_run(tmp_path):
    assert set(sweep.read_run(tmp_path / "none").values()) == {None}
    write_run(tmp_path, 0.5)
    assert sweep.read_run(tmp_path) == {
        "knn": 50.0,
        "lbfgs": pytest.approx(70.0),
        "sgd": pytest.approx(60.0),
        "loss": 5.25,
        "target_entropy": 3.0,
        "log_queue_size": pytest.approx(np.log(256)),
        "embedding_std": 0.8,
        "epochs": 1.0,
        "collapsed": False,
    }
    write_run(tmp_path / "collapsed", entropy=5.54)
    assert sweep.read_run(tmp_path / "collapsed")["collapsed"]


def make_sweep(folder, values=("weak", "strong", "none"), **fields):
    write_run(folder / "a", 0.5)
    write_run(folder / "a1", 0.4)
    write_run(folder / "b", 0.25, entropy=5.54)
    rows = []
    for number, (name, seed, of, paper) in enumerate(
        [("a", 0, "a", 90.76), ("a", 1, "a1", 90.76), ("b", 0, "b", 86.88)]
        + [("c", 0, "nothing", "chance")]
    ):
        rows.append(
            {
                "name": name,
                "dataset": "CIFAR-10",
                "value": values[max(number - 1, 0)],
                "paper": paper,
                "seed": seed,
                "state": "failed" if name == "c" else "done",
                "error": "tools.pretrain ended with code 2: error: no images"
                if name == "c"
                else "",
                "minutes": 1.5,
                **sweep.read_run(folder / of),
            }
        )
    return sweep.Sweep(
        "A table",
        "teacher view",
        "cpu budget (width 16, 4 epochs)",
        rows,
        pairs=(("weak or strong", "a", "b"), ("no such", "a", "d")),
        is_comparable=False,
        changes="train.batch_size=64",
        **fields,
    )


def test_what_is_written(tmp_path):
    result = make_sweep(tmp_path, best={"CIFAR-10": 90.2})
    sweep.write(tmp_path / "out", result)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"results.{x}" for x in ("csv", "json", "md", "png")}
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    budget = "cpu budget (width 16, 4 epochs)"
    assert lines[0] == f"# A table - {budget}"
    assert f"All runs: {budget}." in lines[2]
    assert "All runs with train.batch_size=64." in lines[2]
    assert "only their order compares" in lines[2]
    assert lines[4] == (
        "| run | data set | teacher view | k-NN | linear (lbfgs) | "
        "linear (sgd) | paper, linear | loss | target entropy | collapsed | "
        "state |"
    )
    assert lines[6:9] == [
        "| a | CIFAR-10 | weak | 45.00 (40.00-50.00) | 65.00 (60.00-70.00) | "
        "55.00 (50.00-60.00) | 90.76 | 5.25 | 3.00 of 5.55 | 0 of 2 | done |",
        "| b | CIFAR-10 | strong | 25.00 | 45.00 | 35.00 | 86.88 | 5.25 | "
        "5.54 of 5.55 | yes | done |",
        "| c | CIFAR-10 | none | - | - | - | chance | - | - | - | failed |",
    ]
    assert "| CIFAR-10 | 65.00 (60.00-70.00) | weak | 90.20 |" in lines
    assert (
        "| weak or strong | a - b | 45.00 - 25.00 = **+20.00** | "
        "65.00 - 45.00 = **+20.00** | 55.00 - 35.00 = **+20.00** | "
        "90.76 - 86.88 = **+3.88** | 0 of 2 / yes |"
    ) in lines
    assert not any("no such" in line for line in lines)
    error = "tools.pretrain ended with code 2: error: no images"
    assert lines[-1] == f"- c, seed 0: {error}"

    text = (tmp_path / "out" / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == ["a", "a", "b", "c"]
    assert {row["budget"] for row in rows} == {budget}
    assert [row["knn"] for row in rows] == ["50.0", "40.0", "25.0", ""]
    assert [row["paper"] for row in rows] == ["90.76"] * 2 + ["86.88", "chance"]
    assert [row["collapsed"] for row in rows] == ["False"] * 2 + ["True", ""]
    assert rows[3]["error"] == error

    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["budget"] == budget
    assert stored["summary"][0]["knn"] == [45.0, 40.0, 50.0]
    assert stored["runs"] == result.runs
    png = (tmp_path / "out" / "results.png").read_bytes()
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize("values", [(0.01, 0.04, 0.1), (256, 4096, 32768)])
def test_curves_are_drawn_too(tmp_path, values):
    paths = []
    for best in ({"CIFAR-10": 90.2}, None):
        paths.append(tmp_path / f"{best is None}")
        sweep.write(paths[-1], make_sweep(tmp_path, values, best=best))
    pictures = [(path / "results.png").read_bytes() for path in paths]
    assert pictures[0] != pictures[1]  # the paper's best is a line


CALLS = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from tools import sweep
messages = []
for arguments in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        flags.FLAGS(["sweep", *arguments])
        try:
            sweep.main()
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
print(json.dumps(messages))
"""


def test_mistakes_in_flags(tmp_path):
    """In one process, as each would wait for TensorFlow."""
    pairs = ["--table=pairs", f"--workdir={tmp_path}", "--dry_run"]
    cases = {
        "one of 1, 2, 3, 4, 5, 6, pairs. Received: --table=9": ["--table=9"],
        "`--only` must be of base, contra": ["--only=base,weak"],
        "--only=weak": ["--only=base,weak"],
        "`--datasets` must be of cifar10, ": ["--datasets=cifar"],
        "leave a run of table pairs": ["--datasets=stl10"],
        "must go with --budget=cpu": ["--epochs=3"],
        "must be above 0. Received: --epochs=0": ["--budget=cpu", "--epochs=0"],
        "numbers from 0, with commas. Received: --seeds=0,x": ["--seeds=0,x"],
        "must be KEY=VALUE": ["--override=seed"],
        "Received: seed, which base sets": ["--override=seed=3"],
        "method.queue_size, which k256": ["--override=method.queue_size=3"],
        "epochs was 4.0 and now is 8.0": ["--budget=cpu", "--epochs=8"],
        "budget was 'cpu' and now is 'full'": [],
        "": ["--budget=cpu"],
    }
    workdir_lib.claim(
        tmp_path / "pairs",
        {"table": "pairs", "budget": "cpu", "epochs": 4.0, "override": {}},
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            CALLS,
            json.dumps([[*pairs, *flags] for flags in cases.values()]),
        ],
        cwd=tool_process.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *shown, messages = result.stdout.splitlines()
    for message, part in zip(json.loads(messages), cases, strict=True):
        assert part in message and bool(part) == bool(message)
        assert not message or "Received: " in message
    # The last is right: it shows the commands, and nothing is written.
    assert [line for line in shown if not line.startswith(" ")] == [
        f"{name}: waiting" for name in runs_of("pairs")
    ]
    command = next(line for line in shown if "pairs/k256 " in line)
    assert command.startswith(
        "    python -m tools.pretrain --config=configs/ci"
    )
    assert " --config.method.queue_size=256 --config.seed=0" in command
    assert [path.name for path in tmp_path.rglob("*")] == [
        "pairs",
        "config.json",
    ]


TINY = {
    **tiny.SETTINGS,
    "projector.hidden_dim": 32,
    "projector.output_dim": 16,
    "predictor.hidden_dim": 32,
}
del TINY["train.epochs"]


def flags_of(workdir, source, only):
    settings = {**TINY, "data.source": source}
    return [
        "--table=pairs",
        "--budget=cpu",
        f"--workdir={workdir}",
        f"--only={only}",
        *(f"--override={key}={value}" for key, value in settings.items()),
    ]


def test_a_failed_run_is_one_line(tmp_path):
    flags = flags_of(tmp_path, f"npz:{tmp_path}/no.npz", "base")
    code, stdout, lines = tool_process.call("sweep", *flags)
    assert (code, lines) == (1, [])
    first, second = stdout.splitlines()
    error = "tools.pretrain ended with code 2: error: "
    assert first.startswith(f"failed     base: {error}")
    assert f"{tmp_path}/no.npz" in first
    folder = tmp_path / "pairs"
    assert second == f"results: {folder}/results.md, .csv, .json, .png"
    assert "| - | - | failed |" in (folder / "results.md").read_text()


@pytest.mark.slow
def test_a_sweep_stopped_and_continued(tmp_path):
    source = tiny.write_images(tmp_path)
    epochs = "--epochs=40"
    flags = [*flags_of(tmp_path, source, "base,contrastive"), epochs]
    folder = tmp_path / "pairs"
    process = tool_process.start("sweep", *flags)
    tools_test.wait_for_step(process, folder / "base", 10)
    process.send_signal(signal.SIGTERM)
    code, stdout, lines = tool_process.finish(process)
    assert code == 1
    assert stdout.splitlines()[0] == "unfinished base"
    assert lines == ["WARNING: stopped; the same command continues"]
    (stopped,) = {
        row["step"] for row in workdir_lib.read_metrics(folder / "base")[-1:]
    }
    assert 10 <= stopped < 40 * tiny.STEPS_PER_EPOCH
    assert not (folder / "contrastive").exists()

    code, stdout, lines = tool_process.call("sweep", *flags)
    assert (code, lines) == (0, [])
    assert [line[:16] for line in stdout.splitlines()] == [
        "done       base:",
        "done       contr",
        "results: " + str(folder)[:7],
    ]
    assert f"resuming from step {stopped}\n" in (
        (folder / "base" / "log.txt").read_text()
    )
    result = json.loads((folder / "results.json").read_text())
    assert [run["state"] for run in result["runs"]] == ["done", "done"]
    for run in result["runs"]:
        assert run["epochs"] == 40 and run["collapsed"] is not None
        assert all(0 < run[key] <= 100 for key in sweep.ACCURACIES)
    config = workdir_lib.read_config(folder / "contrastive")
    assert config["views"]["teacher"]["jitter"] == 0.8

    # A third time there is nothing left to do.
    logs = [path.read_text() for path in sorted(folder.glob("*/log.txt"))]
    code, _, _ = tool_process.call("sweep", *flags)
    assert code == 0
    assert logs == [p.read_text() for p in sorted(folder.glob("*/log.txt"))]
    code, stdout, lines = tool_process.call("sweep", *flags, "--epochs=41")
    assert (code, stdout, len(lines)) == (2, "", 1)
    assert "epochs was 40.0 and now is 41.0" in lines[0]
