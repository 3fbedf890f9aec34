"""The folder of a run: what lies where, written and read in one place.

config.json      the resolved recipe
environment.json machine and versions, of each start
metrics.jsonl    one object per logging step
checkpoints/     `tf.train.Checkpoint`s; the last ones are kept
tensorboard/     the same scalars as metrics.jsonl
export/NAME/1/   SavedModel
eval/            results of the evaluation tools, pictures
report.html      a page of all of this
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import tensorflow as tf

# What says how and where a run is computed, not what: a run that moves to
# another machine may change it.
MAY_CHANGE = ("data.data_dir", "train.jit_compile", "train.steps_per_execution")


def check(workdir, config):
    """Checks that `workdir` may be the folder of a run of `config`.

    Args:
        workdir: path; need not exist.
        config: the recipe as a nested dict.

    Returns:
        The recipe as it is stored: with JSON's types.

    Raises:
        ValueError: if the path is a URL or a file, or the folder belongs to a
            run of another recipe; names the settings that differ, other than
            `MAY_CHANGE`.
    """
    if "://" in str(workdir):
        raise ValueError(
            "`workdir` must be a folder of the file system: mount a bucket "
            f"(gcsfuse, s3fs). Received: workdir={str(workdir)!r}"
        )
    workdir = Path(workdir)
    config = json.loads(json.dumps(config))
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(
            "`workdir` must be a folder, or nothing yet. "
            f"Received: workdir={str(workdir)!r}, which is a file"
        )
    if (workdir / "config.json").exists():
        stored = read_config(workdir)
        differences = [
            difference
            for difference in _differences(stored, config)
            if difference[0] not in MAY_CHANGE
        ]
        if differences:
            raise ValueError(
                "`workdir` holds a run of another config; use another folder, "
                "or the same settings to continue it. "
                f"Received: workdir={str(workdir)!r}, where "
                + "; ".join(
                    f"{key} was {old!r} and now is {new!r}"
                    for key, old, new in differences
                )
            )
    return config


def folder_of_plan(folder, plan):
    """A folder for what is computed by a plan, and for nothing else.

    Args:
        folder: path of the folders of all plans.
        plan: what JSON can hold: all that the result depends on.

    Returns:
        The path of its folder, made if it is missing, with plan.json in it.
    """
    text = json.dumps(plan, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = Path(folder) / name
    write_json(path / "plan.json", plan)
    return path


def claim(workdir, config):
    """Makes `workdir`, made if it is missing, the folder of a run of `config`.

    To be called when everything else about the run is known to be right: a
    folder is claimed for one recipe.

    Returns, raises: as `check`.
    """
    config = check(workdir, config)
    path = Path(workdir) / "config.json"
    if not path.exists():
        write_json(path, config)
    return config


def read_config(workdir):
    """The recipe of the run in `workdir`.

    Raises:
        ValueError: if there is no run.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(
            "`workdir` must be the folder of a run, as `tools.pretrain` makes "
            f"it: it has no config.json. Received: workdir={str(workdir)!r}"
        )
    return json.loads(path.read_text())


def result_name(name, branch):
    """The name of a result's files: the teacher's go beside the student's."""
    return name if branch == "student" else f"{name}_{branch}"


@contextlib.contextmanager
def replaced(path):
    """The path of a file to write that then takes the place of `path`.

    So a reader never sees half of it; where writing fails, `path` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)  # mkstemp's file is for its owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path, value):
    """Writes JSON so that a reader never sees half of it."""
    text = json.dumps(value, indent=2)
    with replaced(path) as temporary:
        temporary.write_text(text + "\n")


def append_metrics(workdir, row):
    """Adds one row to metrics.jsonl."""
    with open(Path(workdir) / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(workdir):
    """The rows of metrics.jsonl; none if there is no such file."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            # A kill in mid-write leaves one broken line, at the end.
            break
    return rows


def truncate_metrics(workdir, step):
    """Drops the rows after `step`: a resumed run writes them again."""
    rows = [row for row in read_metrics(workdir) if row["step"] <= step]
    path = Path(workdir) / "metrics.jsonl"
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)


def latest_checkpoint(workdir):
    """The last checkpoint of the run in `workdir`.

    Returns:
        (path, number of steps done); (None, 0) if there is none.
    """
    path = tf.train.latest_checkpoint(str(Path(workdir) / "checkpoints"))
    return path, int(path.rpartition("-")[2]) if path else 0


def checkpoint_manager(workdir, model, keep=2, **others):
    """Saves and restores all that a run needs to go on.

    That is student, teacher and predictor with their batch statistics, the
    queue and its pointer, the step, and - if the model is compiled - the
    optimiser.

    Args:
        workdir: folder of the run.
        model: a `ReSSL`.
        keep: how many checkpoints to keep.
        **others: what else to save, by its name in the checkpoint.

    Returns:
        A `tf.train.CheckpointManager`.
    """
    parts = {
        "student": model.student,
        "teacher": model.teacher,
        "queue": model.queue,
        "step": model.step,
        **others,
    }
    if model.predictor is not None:
        parts["predictor"] = model.predictor
    if getattr(model, "optimizer", None) is not None:
        parts["optimizer"] = model.optimizer
    return tf.train.CheckpointManager(
        tf.train.Checkpoint(**parts),
        str(Path(workdir) / "checkpoints"),
        max_to_keep=keep,
        checkpoint_name="step",
    )


def restore(workdir, model):
    """Restores the last checkpoint into a model, to evaluate or export it.

    Raises:
        ValueError: if there is none.
    """
    manager = checkpoint_manager(workdir, model)
    if manager.latest_checkpoint is None:
        raise ValueError(
            "`workdir` has no checkpoint yet: run `tools.pretrain` first. "
            f"Received: workdir={str(workdir)!r}"
        )
    manager.checkpoint.restore(manager.latest_checkpoint).expect_partial()


def _differences(old, new, prefix=""):
    """[(dotted key, old value, new value)] of two nested dicts."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(prefix.rstrip("."), old, new)]
    return [
        difference
        for key in sorted({*old, *new})
        for difference in _differences(
            old.get(key), new.get(key), f"{prefix}{key}."
        )
    ]
