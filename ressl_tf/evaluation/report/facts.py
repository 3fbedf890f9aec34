"""What the files of a run say about it, finished or not."""

import datetime
import json
import statistics
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from ressl_tf import environment
from ressl_tf import schedules
from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import collapse


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        step: of the last row that was logged; 0 before the first.
        epoch: of that row.
        total: steps of the recipe; None as long as nothing was logged of a
            run whose length is given in epochs.
        saved: steps of the last checkpoint; 0 if there is none.
    """

    step: int
    epoch: float
    total: int | None
    saved: int

    @property
    def is_finished(self):
        return self.total is not None and self.step >= self.total


class Times(NamedTuple):
    """When a run was computed.

    Attributes:
        sessions: list of (start, end), `datetime`s: one for each start.
        origin: what they were read from.
    """

    sessions: list
    origin: str

    @property
    def hours(self):
        """The sessions together, without the pauses between them."""
        spans = [end - start for start, end in self.sessions]
        return sum(span.total_seconds() for span in spans) / 3600


class Facts(NamedTuple):
    """All about a run.

    Attributes:
        folder: `Path` of the run.
        config: its recipe, a nested dict.
        rows: of metrics.jsonl.
        progress: `Progress`.
        collapsed: whether the last rows look collapsed; None without rows.
        times: `Times`, or None if nothing was logged.
        environments: entries of environment.json.
        results: {name: value} of eval/*.json, and of export/NAME/eval/*.json
            as "export/NAME: ..."; an OSError or ValueError for a file that
            cannot be read.
        pictures: paths of eval/*.png.
    """

    folder: Path
    config: dict
    rows: list
    progress: Progress
    collapsed: bool | None
    times: Times | None
    environments: list
    results: dict
    pictures: list

    @property
    def training_rows(self):
        return [row for row in self.rows if "loss" in row]

    def numbers(self, key):
        """The values of a key in all rows that have it."""
        return [row[key] for row in self.rows if row.get(key) is not None]

    @property
    def images_per_second(self):
        """Median over the rows, or None."""
        values = self.numbers("images_per_second")
        return statistics.median(values) if values else None


def read_facts(workdir):
    """Reads a run.

    Args:
        workdir: folder of the run.

    Returns:
        `Facts`.

    Raises:
        ValueError: if there is no run.
    """
    folder = Path(workdir)
    config = workdir_lib.read_config(folder)
    rows = workdir_lib.read_metrics(folder)
    training = [row for row in rows if "loss" in row]
    return Facts(
        folder,
        config,
        rows,
        _progress(folder, config, training),
        _is_collapsed(training, config["method"]["queue_size"]),
        _times(folder),
        environment.read(folder),
        _results(folder),
        sorted((folder / "eval").glob("*.png")),
    )


def collapse_advice(config):
    """What to change about a recipe whose embeddings collapse: sentences."""
    method = config["method"]
    advice = [
        "Lower `method.teacher_temperature` (it is "
        f"{method['teacher_temperature']:g}, the student's "
        f"{method['student_temperature']:g})."
    ]
    if not config["predictor"]["enabled"]:
        advice.append("Use the predictor: `predictor.enabled=True`.")
    if not config["projector"]["batch_norm"]:
        advice.append(
            "Use batch normalisation in the heads: `projector.batch_norm=True`."
        )
    if not method["infonce_warmup_epochs"] and not method.get(
        "infonce_warmup_steps"
    ):
        advice.append("Start with InfoNCE: `method.infonce_warmup_epochs`.")
    advice.append("Use a weaker view for the teacher.")
    return advice


def _progress(folder, config, training):
    step, epoch, total = 0, 0.0, int(config["train"]["steps"]) or None
    if training:
        step, epoch = training[-1]["step"], training[-1]["epoch"]
        # `epoch` is rounded to 4 places: of the last row, that is exact from
        # its first epoch on.
        steps_per_epoch = max(1, round(step / epoch)) if epoch else step
        total = schedules.duration_in_steps(
            "train.",
            epochs=config["train"]["epochs"],
            steps=config["train"]["steps"],
            steps_per_epoch=steps_per_epoch,
        )
    _, saved = workdir_lib.latest_checkpoint(folder)
    return Progress(step, epoch, total, saved)


def _is_collapsed(training, queue_size):
    if not training:
        return None
    last = training[-collapse.PATIENCE :]
    return len(last) == collapse.PATIENCE and all(
        collapse.is_collapsed(
            row["embedding_std"], row["target_entropy"], queue_size
        )
        for row in last
    )


def _times(folder):
    """Sessions by the clock of TensorBoard's files, or by the files' own."""
    sessions = []
    for path in (folder / "tensorboard").glob("events.out.tfevents.*"):
        # A kill in mid-write leaves a broken record, at the end.
        records = tf.data.TFRecordDataset(str(path)).ignore_errors()
        ends = [
            *records.take(1).as_numpy_iterator(),
            records.reduce(b"", lambda _, record: record).numpy(),
        ]
        if len(ends) == 2:
            sessions.append(
                tuple(
                    _time(tf.compat.v1.Event.FromString(end).wall_time)
                    for end in ends
                )
            )
    if sessions:
        return Times(sorted(sessions), "TensorBoard's event files")
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        return None
    written = [
        path.stat().st_mtime for path in (folder / "config.json", metrics)
    ]
    return Times(
        [tuple(_time(seconds) for seconds in sorted(written))],
        "the times of its files",
    )


def _time(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def _results(folder):
    results = {}
    for path in sorted((folder / "eval").glob("*.json")):
        results[path.stem] = _read_json(path)
    for path in sorted((folder / "export").glob("*/eval/*.json")):
        name = path.parent.parent.name
        results[f"export/{name}: {path.stem}"] = _read_json(path)
    return results


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return error
