"""Pre-training of a recipe in a folder: `train(config, workdir)`."""

import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from tensorflow import keras

from ressl_tf import data
from ressl_tf import monitor
from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib
from ressl_tf.model import ReSSL

logger = logging.getLogger("ressl_tf")

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


class Run(NamedTuple):
    """What `train` returns."""

    model: ReSSL
    step: int  # steps done
    total_steps: int  # of the recipe

    @property
    def finished(self):
        return self.step >= self.total_steps


def train(config, workdir, stop_at_step=None):
    """Trains a recipe, or continues where its folder stopped.

    The same call again resumes from the last checkpoint. On CPU n steps, a
    stop and m steps give bit for bit what n + m steps give. A SIGTERM or
    SIGINT (Ctrl-C) ends the run after the current step, saved.

    Args:
        config: the recipe, a nested dict; see `recipe`.
        workdir: folder of the run; see `workdir` for what is written.
        stop_at_step: end, saved, after this many steps of the whole run.
            Defaults to None: to the end of the recipe.

    Returns:
        A `Run`; it is not `finished` if it was ended early.

    Raises:
        ValueError: for a setting that is out of its range, or a folder that
            holds a run of another recipe.
        monitor.NotFiniteError: when a loss or a weight is not finite.
    """
    _check(config)
    workdir = Path(workdir)
    config = workdir_lib.check(workdir, config)
    settings = config["train"]
    keras.utils.set_random_seed(config["seed"])
    keras.mixed_precision.set_global_policy(settings["precision"])

    train_set = data.load(split=config["data"]["split"], **_source(config))
    _check_sizes(config, len(train_set.images))
    durations = recipe.make_durations(
        config,
        data.steps_per_epoch(len(train_set.images), settings["batch_size"]),
    )
    views = recipe.make_views(config)
    model = recipe.make_model(config, durations)
    labelled = _labelled_sets(config, train_set)

    workdir_lib.claim(workdir, config)
    manager = workdir_lib.checkpoint_manager(
        workdir, model, keep=config["monitor"]["keep_checkpoints"]
    )
    done = 0
    if manager.latest_checkpoint:
        manager.checkpoint.restore(
            manager.latest_checkpoint
        ).assert_existing_objects_matched()
        done = int(model.step.numpy())
        logger.info("resuming from step %d", done)
    workdir_lib.truncate_metrics(workdir, done)

    with _stop_signals() as stop_requested:

        def should_stop(step):
            return stop_requested() or step == stop_at_step

        callbacks = _make_callbacks(
            config,
            workdir,
            model,
            manager,
            labelled,
            durations,
            done,
            should_stop,
        )
        while done < durations.total and not (
            stop_requested() or (stop_at_step and done >= stop_at_step)
        ):
            # `fit` knows whole epochs only, so what a stop left of one, and
            # the last one if it is not whole, are runs of their own.
            epoch, position = divmod(done, durations.epoch)
            full_epochs = (durations.total - done) // durations.epoch
            if position or not full_epochs:
                steps = min(durations.epoch - position, durations.total - done)
                epochs = 1
            else:
                steps, epochs = durations.epoch, full_epochs
            model.fit(
                data.make_train_dataset(
                    train_set.images,
                    batch_size=settings["batch_size"],
                    student_views=(views["student"],),
                    teacher_views=(views["teacher"],),
                    seed=config["seed"],
                    start_step=done,
                ),
                initial_epoch=epoch,
                epochs=epoch + epochs,
                steps_per_epoch=steps,
                shuffle=False,  # the data set has its own order
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=callbacks,
            )
            done = int(model.step.numpy())
    if done < durations.total:
        logger.warning(
            "stopped at step %d of %d; the same command continues",
            done,
            durations.total,
        )
    return Run(model, done, durations.total)


def _make_callbacks(
    config, workdir, model, manager, labelled, durations, done, should_stop
):
    settings = config["monitor"]
    metrics_logger = monitor.MetricsLogger(
        workdir,
        log_every=settings["log_every_steps"],
        steps_per_epoch=durations.epoch,
        batch_size=config["train"]["batch_size"],
        first_step=done,
    )
    callbacks = [metrics_logger]
    if labelled:
        callbacks.append(
            monitor.KNNMonitor(
                recipe.make_encoder(config, model.student.backbone),
                *labelled,
                metrics_logger,
                every_epochs=settings["eval_every_epochs"],
                total_steps=durations.total,
                k=settings["knn_neighbours"],
                temperature=settings["knn_temperature"],
            )
        )
    callbacks.append(
        monitor.Saver(
            manager,
            metrics_logger,
            every_epochs=settings["checkpoint_every_epochs"],
            total_steps=durations.total,
            should_stop=should_stop,
        )
    )
    return callbacks


def _labelled_sets(config, train_set):
    """(train, test) for the k-NN score, or None if there is to be none."""
    if not config["monitor"]["eval_every_epochs"]:
        return None
    try:
        if config["data"]["split"] != "train":
            train_set = data.load(split="train", **_source(config))
        sets = (train_set, data.load(split="test", **_source(config)))
        for image_set in sets:
            data.require_labels(image_set, config["data"]["source"])
    except ValueError as error:
        logger.warning("no k-NN score while training: %s", error)
        return None
    return sets


def _source(config):
    return {
        key: config["data"][key] for key in ("source", "image_size", "data_dir")
    }


def _check(config):
    precision = config["train"]["precision"]
    if precision not in PRECISIONS:
        raise ValueError(
            f"`train.precision` must be one of {', '.join(PRECISIONS)}. "
            f"Received: train.precision={precision!r}"
        )
    monitor_settings = config["monitor"]
    for key, lowest in (
        ("log_every_steps", 1),
        ("eval_every_epochs", 0),
        ("knn_neighbours", 1),
        ("checkpoint_every_epochs", 1),
        ("keep_checkpoints", 1),
    ):
        if monitor_settings[key] < lowest:
            raise ValueError(
                f"`monitor.{key}` must be at least {lowest}. "
                f"Received: monitor.{key}={monitor_settings[key]}"
            )
    if not monitor_settings["knn_temperature"] > 0:
        raise ValueError(
            "`monitor.knn_temperature` must be above 0. Received: "
            f"monitor.knn_temperature={monitor_settings['knn_temperature']}"
        )


def _check_sizes(config, num_images):
    queue_size = config["method"]["queue_size"]
    if queue_size >= num_images:
        logger.warning(
            "The queue (method.queue_size=%d) is not smaller than the data "
            "set (%d images): images meet their own past keys. Lower "
            "`method.queue_size`.",
            queue_size,
            num_images,
        )


@contextlib.contextmanager
def _stop_signals():
    """Turns SIGTERM and SIGINT into a request; a second one is not caught."""
    requests = []
    signals = (signal.SIGTERM, signal.SIGINT)

    def request(number, frame):
        requests.append(number)
        logger.warning("stopping after this step (signal %d)", number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        previous = {each: signal.signal(each, request) for each in signals}
    except ValueError:  # not the main thread: signals are somebody else's
        yield lambda: False
        return
    try:
        yield lambda: bool(requests)
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
