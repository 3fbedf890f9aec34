"""Tests of the commands, each in a process of its own as users run them."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import small_sets
import tensorflow as tf
import tiny
from PIL import Image
from tool_process import assert_mistake
from tool_process import call
from tool_process import finish
from tool_process import start

import ressl_tf
from ressl_tf import workdir as workdir_lib

PHOTOS = "--config=configs/photos.py:quick"
EPOCHS = 30
VOC_OTHERS = (
    "aeroplane bicycle bird boat bottle bus car chair cow diningtable horse "
    "motorbike pottedplant sheep sofa train tvmonitor"
).split()
TOTAL = EPOCHS * tiny.STEPS_PER_EPOCH


def settings(source):
    """The flags of a run of 120 steps."""
    changes = {
        **tiny.SETTINGS,
        "data.source": source,
        "train.epochs": float(EPOCHS),
        "train.warmup_epochs": 2.0,
        "method.infonce_warmup_epochs": 20.0,
        "method.teacher_momentum_cosine": True,
        "monitor.eval_every_epochs": 20,
    }
    return [PHOTOS, *(f"--config.{k}={v}" for k, v in changes.items())]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The folder of a run that nobody interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    # A command from scratch: not a word of what TensorFlow says at first.
    code, stdout, lines = finish(
        start("pretrain", *settings(source), f"--workdir={workdir}")
    )
    assert code == 0, lines
    # One line an epoch, then two of result; nothing else, and no warning.
    assert stdout.count("Epoch ") == EPOCHS
    assert f"\ndone: {workdir}\nstep {TOTAL}, epoch {EPOCHS}, loss " in stdout
    assert len(lines) == 2
    assert lines[0].startswith("INFO: epoch 20: k-NN accuracy ")
    assert lines[1].startswith("INFO: epoch 30: k-NN accuracy ")
    return workdir


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        rows = workdir_lib.read_metrics(workdir)
        if rows and rows[-1]["step"] >= step:
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no step {step}: {process.communicate()}")


def checkpoint_values(workdir):
    latest = tf.train.latest_checkpoint(workdir / "checkpoints")
    reader = tf.train.load_checkpoint(latest)
    return {
        name: np.asarray(reader.get_tensor(name))
        for name in reader.get_variable_to_shape_map()
        # How often was saved, and the file's own table of contents.
        if not name.startswith(("save_counter", "_CHECKPOINTABLE"))
    }


@pytest.mark.slow
def test_ended_and_killed_and_continued_is_as_never_interrupted(
    source, whole, tmp_path
):
    workdir = tmp_path / "run"
    command = ("pretrain", *settings(source), f"--workdir={workdir}")
    process = start(*command)
    wait_for_step(process, workdir, 10)
    process.send_signal(signal.SIGTERM)
    code, stdout, lines = finish(process)
    assert code == 1
    assert lines[0] == "WARNING: stopping after this step (signal 15)"
    step = workdir_lib.read_metrics(workdir)[-1]["step"]
    assert 10 <= step < TOTAL
    expected = f"stopped at step {step} of {TOTAL}; the same command continues"
    assert lines[1:] == [f"WARNING: {expected}"]

    process = start(*command)
    wait_for_step(process, workdir, step + 20)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = tf.train.latest_checkpoint(workdir / "checkpoints")
    saved = int(saved.rpartition("-")[2])
    assert step < saved < TOTAL and saved % tiny.STEPS_PER_EPOCH == 0

    code, stdout, lines = call(*command)
    assert code == 0
    assert lines[0] == f"INFO: resuming from step {saved}"
    assert f"Epoch {saved // tiny.STEPS_PER_EPOCH + 1}/{EPOCHS}" in stdout
    values, expected = checkpoint_values(workdir), checkpoint_values(whole)
    assert set(values) == set(expected) and len(values) > 200
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)

    rows = [r for r in workdir_lib.read_metrics(workdir) if "loss" in r]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(range(2, TOTAL + 1, 2)) | {step})
    losses = {row["step"]: row["loss"] for row in rows}
    for row in workdir_lib.read_metrics(whole):
        if "loss" in row and row["step"] not in (step, step + step % 2):
            assert losses[row["step"]] == row["loss"]


def test_evaluation_and_export(whole, tmp_path):
    code, stdout, lines = call("knn", f"--workdir={whole}")
    assert (code, lines) == (0, [])
    result = json.loads((whole / "eval" / "knn.json").read_text())
    assert result["k"] == tiny.NUM_IMAGES and result["temperature"] == 0.1
    assert (result["branch"], result["test_images"]) == ("student", 24)
    percent = 100 * result["accuracy"]
    assert f"k-NN accuracy: {percent:.2f} % (k = 64)\n" in stdout

    code, stdout, lines = call(
        "linear_probe",
        f"--workdir={whole}",
        "--branch=teacher",
        "--solvers=sgd,lbfgs,augmented",
        "--epochs=3",
        "--batch_size=16",
        "--learning_rate=0.1,0.01",
    )
    assert code == 0, lines
    result = json.loads(
        (whole / "eval" / "linear_probe_teacher.json").read_text()
    )
    assert result["branch"] == "teacher"
    for solver in ("sgd", "lbfgs"):
        numbers = result[solver]
        assert {"accuracy", "train_accuracy", "train_loss"} <= set(numbers)
        expected = f"({solver}): {100 * numbers['accuracy']:.2f} % (train "
        assert expected in stdout
    for rate in (0.1, 0.01):
        numbers = result[f"augmented, {rate:g}"]
        assert set(numbers) == {"learning_rate", "accuracy", "train_loss"}
    table = (whole / "eval" / "linear_probe_teacher.md").read_text()
    assert (
        f"| linear, lbfgs | {100 * result['lbfgs']['accuracy']:.2f} | - |"
        in (table)
    )

    # Those of another call are kept, of the same weights.
    code, stdout, lines = call(
        "linear_probe",
        f"--workdir={whole}",
        "--branch=teacher",
        "--solvers=lbfgs",
    )
    assert code == 0 and "(lbfgs)" in stdout and "(sgd)" not in stdout
    again = json.loads(
        (whole / "eval" / "linear_probe_teacher.json").read_text()
    )
    assert again == result

    code, stdout, lines = call(
        "finetune",
        f"--workdir={whole}",
        "--fraction=0.5",
        "--epochs=2",
        "--backbone_learning_rate=0.01",
    )
    assert code == 0, lines
    result = json.loads((whole / "eval" / "finetune_10pct.json").read_text())
    assert result["labelled_images"] == result["batch_size"] == 32
    assert (result["epochs"], result["head_learning_rate"]) == (2, 0.2)
    assert result["backbone_learning_rate"] == 0.01
    percent = 100 * result["accuracy"]
    what = "fine-tuned on 32 images, 10pct"
    assert f"accuracy, {what}: {percent:.2f} %" in stdout
    table = (whole / "eval" / "finetune_10pct.md").read_text()
    assert f"| {what} | {percent:.2f} | - |" in table

    code, stdout, lines = call("export", f"--workdir={whole}", "--name=net")
    path = whole / "export" / "net" / "1"
    assert (code, stdout, lines) == (0, f"{path}\n", [])
    assert (path / "saved_model.pb").is_file()
    code, _, lines = call("knn", f"--workdir={path.parent}", "--k=7")
    assert (code, lines) == (0, [])
    result = json.loads((path.parent / "eval" / "knn.json").read_text())
    assert result["k"] == 7 and result["path"] == str(path.parent)


def test_streamed_images_give_the_same_score(source, whole, tmp_path):
    with np.load(source.removeprefix("npz:")) as arrays:
        for split in ("train", "test"):
            images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
            for number, (image, label) in enumerate(
                zip(images, labels, strict=True)
            ):
                path = tmp_path / split / str(label) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    scores = []
    for flags in ([], [f"--source=folder:{tmp_path}", "--stream"]):
        code, stdout, lines = call("knn", f"--workdir={whole}", *flags)
        assert (code, lines) == (0, [])
        scores.append(stdout.splitlines()[-1])
    assert scores[0] == scores[1]


def test_convert_there_and_back(whole, tmp_path):
    weights, encoder = tmp_path / "weights.npz", tmp_path / "encoder.keras"
    code, stdout, lines = call(
        "convert", f"--workdir={whole}", f"--output={weights}"
    )
    assert (code, lines) == (0, [])
    assert stdout.startswith(f"{weights}: 100 arrays, ")
    stored = workdir_lib.read_config(whole)["data"]
    network = [
        "--backbone=resnet18",
        "--stem=small",
        "--width=4",
        f"--image_size={tiny.IMAGE_SIZE}",
        *(f"--{k}={','.join(map(str, stored[k]))}" for k in ("mean", "std")),
    ]
    read = ["convert", f"--input={weights}", f"--output={encoder}"]
    code, stdout, lines = call(*read, *network)
    assert (code, lines) == (0, [])
    assert stdout.startswith(f"{encoder}: ")
    images = tiny.random_images(4).astype(np.float32)
    np.testing.assert_allclose(
        ressl_tf.load_encoder(encoder)(images),
        ressl_tf.load_encoder(whole)(images),
        rtol=1e-5,
        atol=1e-6,
    )
    assert_mistake(
        call(*read, *network, "--width=8"),
        "conv1.weight must be of shape (8, 3, 3, 3)",
        "Received: shape (4, 3, 3, 3)",
    )


@pytest.mark.parametrize(
    "flags, parts",
    [
        ([], ["either `--workdir`", "--workdir=None, --input=None"]),
        (["--workdir=x", "--input=y"], ["either `--workdir`", "--input=y"]),
        (
            ["--workdir=x", "--output=y.pkl"],
            ["--layout=detectron2 alone", "--output=y.pkl"],
        ),
        (["--input=x.npz", "--output=y.npz"], ["must end in .keras", "y.npz"]),
        (["--input=x.npz"], ["`--backbone` must name the network"]),
        (
            ["--input=x.npz", "--backbone=resnet18", "--mean=1,2"],
            ["`--mean` must be 3 numbers", "Received: '1,2'"],
        ),
        (
            ["--input=no.npz", "--backbone=resnet18"],
            ["must be a file of weights", "no.npz"],
        ),
    ],
)
def test_mistakes_in_convert_are_one_line(flags, parts):
    output = [] if any("--output" in f for f in flags) else ["--output=y.keras"]
    assert_mistake(call("convert", *flags, *output), *parts)


def test_transfer(whole, tmp_path):
    def image(split, number):
        noise = np.random.default_rng(number).integers(0, 90, (20, 18, 3))
        noise[..., number % 3] += 150
        return noise.astype(np.uint8)

    for name, counts in (
        ("dtd", {"train": 30, "validation": 15, "test": 21}),
        ("caltech101", {"train": 30, "test": 21}),
    ):
        small_sets.write(
            name, tmp_path, counts, image, lambda split, number: number % 3
        )
    for path in tmp_path.glob("caltech101/*/*-test.*"):
        path.write_bytes(path.read_bytes()[:-1])
    flags = (f"--workdir={whole}", f"--data_dir={tmp_path}", "--grid=3")
    for _ in range(2):
        code, stdout, lines = call(
            "transfer", *flags, "--datasets=caltech101,dtd"
        )
        assert code == 1 and lines[0].startswith("WARNING: caltech101: ")
        assert lines[1:] == ["error: Not measured: caltech101"]
        result = json.loads((whole / "eval" / "transfer.json").read_text())
        (name, found), *others = result["data_sets"].items()
        assert (name, others) == ("dtd", [])
        counts = [found[f"{key}_images"] for key in ("train", "validation")]
        assert (*counts, found["test_images"]) == (30, 15, 21)
        assert f"dtd: {100 * found['accuracy']:.2f} % (top1)" in stdout
        assert found["accuracy"] > 1 / 3
        # The second call has nothing left to read.
        shutil.rmtree(tmp_path / "dtd", ignore_errors=True)
    table = (whole / "eval" / "transfer.md").read_text()
    assert f"| dtd, top1 | {100 * found['accuracy']:.2f} | - |" in table
    # Of one's own images, each metric is measured.
    for metric in ("top1", "mean_per_class"):
        own = f"--source={workdir_lib.read_config(whole)['data']['source']}"
        code, stdout, lines = call(
            "transfer", *flags, own, f"--metric={metric}"
        )
        assert (code, lines) == (0, []) and f"({metric})" in stdout
    result = json.loads((whole / "eval" / "transfer.json").read_text())
    assert len(result["data_sets"]) == 2


def test_low_shot(whole, tmp_path):
    names = ("cat", "dog", "person")

    def image(split, number):
        noise = np.random.default_rng(number).integers(0, 90, (20, 24, 3))
        noise[..., number % 3] += 150
        return noise.astype(np.uint8)

    small_sets.write_voc2007(
        tmp_path,
        {"train": 60, "validation": 20, "test": 60},
        image,
        # Every class is there; those that nothing shows at random.
        lambda split, number: [
            (names[number % 3], False),
            (VOC_OTHERS[number // 3 % 17], False),
        ],
    )
    flags = (f"--workdir={whole}", f"--data_dir={tmp_path}", "--draws=2")
    printed = []
    for _ in range(2):
        code, stdout, lines = call("low_shot", *flags, "--shots=2,all")
        assert (code, lines) == (0, []), lines
        printed.append([x for x in stdout.splitlines() if "mAP" in x])
        # The second call has nothing left to read.
        shutil.rmtree(tmp_path / "voc", ignore_errors=True)
    assert printed[0] == printed[1] and len(printed[0]) == 2
    result = json.loads((whole / "eval" / "low_shot.json").read_text())
    assert result["shorter_side"] == 18  # 16 * 256 / 224
    two, everything = result["shots"]["2"], result["shots"]["all"]
    assert len(two["draws"]) == 2 and len(everything["draws"]) == 1
    mean = sum(two["draws"]) / 2
    assert two["mean_average_precision"] == pytest.approx(mean)
    half = abs(two["draws"][0] - two["draws"][1]) / 2
    assert two["deviation"] == pytest.approx(half)
    line = f"{100 * mean:.2f} ± {100 * half:.2f}"
    assert printed[0][0] == f"mAP, k = 2: {line} %"
    table = (whole / "eval" / "low_shot.md").read_text()
    assert f"| VOC2007 mAP, k = 2 | {line} | - |" in table


def test_mistakes_are_one_line(source, whole, tmp_path):
    nowhere = f"--workdir={tmp_path}/nowhere"
    assert_mistake(call("knn", nowhere), "`path` must be", f"{tmp_path}/nowh")
    assert_mistake(call("export", nowhere), "`workdir` must be the folder")
    assert_mistake(
        call("finetune", nowhere, "--file_list=names.txt", "--fraction=0.1"),
        "`--fraction` must not be given with --file_list",
        "Received: --fraction=0.1",
    )
    assert_mistake(
        call("finetune", f"--workdir={whole}", "--fraction=1.5"),
        "`fraction` must be above 0 and at most 1",
    )
    assert_mistake(
        call("finetune", f"--workdir={whole}", "--file_list=names.txt"),
        "`source` must be 'folder:PATH'",
    )
    assert_mistake(
        call("low_shot", nowhere, "--shots=4,few"),
        "`--shots` must be whole numbers from 1",
        "Received: 'few'",
    )
    assert_mistake(
        call("transfer", nowhere, "--datasets=cifar10,cifar11"),
        "`--datasets` must be of cifar10, cifar100",
        "Received: --datasets=cifar11",
    )
    assert_mistake(
        call("linear_probe", nowhere, "--solvers=sgd,svm"),
        "`--solvers` must be of sgd, lbfgs, augmented",
        "Received: --solvers=sgd,svm",
    )
    assert_mistake(
        call(
            "pretrain",
            *settings(source),
            f"--workdir={whole}",
            "--config.method.queue_size=41",
        ),
        "holds a run of another config",
        "method.queue_size was 40 and now is 41",
    )


@pytest.mark.parametrize(
    "flags, parts",
    [
        ([], ["--config must have a value", "--workdir must have a value"]),
        (["--workdir=x"], ["--config must have a value"]),
        ([PHOTOS], ["--workdir must have a value"]),
        (
            ["--config=configs/no.py", "--workdir=x"],
            ["recipe", "configs/no.py"],
        ),
        (["--config=configs", "--workdir=x"], ["recipe's file", "'configs'"]),
        (
            ["--config=configs/photos.py:quik", "--workdir=x"],
            ["'quick', as in configs/photos.py:quick", "Received: 'quik'"],
        ),
        (
            [PHOTOS, "--workdir=x", "--config.method.queue_sise=1"],
            ["No such setting in the recipe: 'queue_sise'", '"queue_size"'],
        ),
        (
            [PHOTOS, "--workdir=x", "--config.no.a=1"],
            ["No such setting", "'no'"],
        ),
        (
            [PHOTOS, "--workdir=x", "--config.method.queue_size=1.5"],
            ["--config.method.queue_size=1.5"],
        ),
        (
            [PHOTOS, "--workdir=x", "--config.train.epochs=many"],
            ["--config.train.epochs=many"],
        ),
        ([PHOTOS, "--workdir=x", "--nope=1"], ["Unknown command line flag 'n"]),
        ([PHOTOS, "--workdir=x", "stray"], ["Only flags", "Received: stray"]),
    ],
)
def test_mistakes_in_flags_are_one_line(flags, parts):
    assert_mistake(call("pretrain", *flags), *parts)


@pytest.mark.parametrize(
    "tool, flags",
    [
        ("pretrain", ["config", "workdir"]),
        ("demo", ["config", "workdir"]),
        ("export", ["workdir", "name", "branch"]),
        ("convert", ["workdir", "input", "output", "layout", "backbone"]),
        (
            "knn",
            ["workdir", "branch", "source", "data_dir", "k", "temperature"],
        ),
        ("linear_probe", ["workdir", "branch", "source", "solvers", "epochs"]),
        ("transfer", ["workdir", "datasets", "source", "metric", "grid"]),
        ("low_shot", ["workdir", "shots", "draws", "cost", "interpolation"]),
        ("finetune", ["workdir", "fraction", "file_list", "protocol"]),
    ],
)
def test_help(tool, flags):
    code, stdout, lines = call(tool, "--help")
    assert (code, lines) == (0, [])
    assert f"python -m tools.{tool}" in stdout
    for flag in flags:
        assert f"--{flag}:" in stdout or f"--[no]{flag}:" in stdout


def test_durations_in_steps_and_another_optimizer(source, tmp_path):
    workdir = tmp_path / "run"
    code, stdout, lines = call(
        "pretrain",
        *settings(source),
        f"--workdir={workdir}",
        "--config.train.epochs=0",
        "--config.train.steps=6",  # an epoch has 4
        "--config.train.warmup_epochs=0",
        "--config.train.warmup_steps=2",
        "--config.method.infonce_warmup_epochs=0",
        "--config.method.infonce_warmup_steps=3",
        "--config.monitor.log_every_steps=1",
        "--config.optimizer.name=lamb",
        "--config.optimizer.exclude_bias_and_norm=False",
    )
    assert code == 0, lines
    assert "\nstep 6, epoch 1.5, loss " in stdout
    rows = [row for row in workdir_lib.read_metrics(workdir) if "alpha" in row]
    assert [row["step"] for row in rows] == list(range(1, 7))
    alphas = [0, 1 / 3, 2 / 3, 1, 1, 1]
    np.testing.assert_allclose([row["alpha"] for row in rows], alphas)
    peak = 0.06 * tiny.BATCH_SIZE / 256
    rates = [0, 0.5, 1, *(0.5 + 0.5 * np.cos(np.pi * np.arange(1, 4) / 4))]
    np.testing.assert_allclose(
        [row["learning_rate"] for row in rows],
        peak * np.array(rates),
        rtol=1e-5,
    )


def test_a_diverged_run_is_one_line(source, tmp_path):
    code, _, lines = call(
        "pretrain",
        *settings(source),
        f"--workdir={tmp_path}/run",
        "--config.optimizer.base_learning_rate=1e30",
        "--config.train.warmup_epochs=0.0",
    )
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("error: The loss is nan at step 2. Lower `opti")


@pytest.mark.slow
def test_demo(source, tmp_path):
    workdir = tmp_path / "demo"
    flags = [
        *settings(source),
        "--config.train.epochs=2",
        "--config.train.warmup_epochs=0",
    ]
    code, stdout, lines = call("demo", *flags, f"--workdir={workdir}")
    assert code == 0, lines
    names = {path.name for path in (workdir / "eval").iterdir()}
    assert names == {"curves.png", "demo.json", "neighbours.png"}
    scores = json.loads((workdir / "eval" / "demo.json").read_text())
    assert list(scores) == ["raw pixels", "untrained network", "ReSSL, trained"]
    for name, score in scores.items():
        row = (
            f"{name:<20}{100 * score['knn']:>8.1f}{100 * score['linear']:>8.1f}"
        )
        assert row in stdout
    assert (workdir / "export" / "encoder" / "1" / "saved_model.pb").is_file()
    # Again: nothing to train, another export.
    code, stdout, lines = call("demo", *flags, f"--workdir={workdir}")
    assert code == 0 and "Epoch" not in stdout
    assert "encoder/2" in stdout
