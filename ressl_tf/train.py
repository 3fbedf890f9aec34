"""Pre-training of a recipe in a folder: `train(config, workdir)`."""

import contextlib
import itertools
import json
import logging
import signal
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
from tensorflow import keras

from ressl_tf import cluster
from ressl_tf import data
from ressl_tf import distribute
from ressl_tf import environment
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


def train(
    config, workdir, stop_at_step=None, *, strategy=None, data_service=None
):
    """Trains a recipe, or continues where its folder stopped.

    The same call again resumes from the last checkpoint, under whatever
    strategy. On one CPU n steps, a stop and m steps give bit for bit what
    n + m steps give. A SIGTERM or SIGINT (Ctrl-C) ends the run after the
    current step, saved; in a cluster, where the workers have to agree on it,
    within `monitor.log_every_steps` executions.

    Args:
        config: the recipe, a nested dict; see `recipe`.
        workdir: folder of the run; see `workdir` for what is written. All
            workers of a cluster see the same one; only the chief's files are
            kept.
        stop_at_step: end, saved, after this many steps of the whole run.
            Defaults to None: to the end of the recipe.
        strategy: a `tf.distribute.Strategy`, as `cluster.make_strategy`
            returns it. `train.batch_size` is the batch of all its replicas
            together. Defaults to None: one device.
        data_service: address of a tf.data service that makes the batches.
            Defaults to None: they are made here.

    Returns:
        A `Run`; it is not `finished` if it was ended early.

    Raises:
        ValueError: for a setting that is out of its range, or a folder that
            holds a run of another recipe.
        monitor.NotFiniteError: when a loss or a weight is not finite.
        cluster.ClusterError: when a worker is lost.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with cluster.watch(), _own_folder(strategy, workdir) as own:
        return _train(
            config, workdir, own, stop_at_step, strategy, data_service
        )


def _train(config, workdir, own, stop_at_step, strategy, data_service):
    """`train`, where `own` is the folder that this worker writes into."""
    _check(config, strategy)
    _check_compilable(config, strategy)
    config = workdir_lib.check(workdir, config)
    settings = config["train"]
    keras.utils.set_random_seed(config["seed"])
    keras.mixed_precision.set_global_policy(settings["precision"])

    train_set, reader = _open_data(config, data_service)
    bad_images = data.BadImages(_max_bad(config, reader))
    _check_sizes(config, reader.num_images)
    durations = recipe.make_durations(
        config, reader.steps_per_epoch(settings["batch_size"])
    )
    views = recipe.make_views(config)
    with strategy.scope():
        model = recipe.make_model(config, durations, views)
    labelled = _labelled_sets(config, train_set)
    probe_readers = _probe_readers(config, train_set, labelled)

    def make_dataset(start_step):
        return data.distribute_train_dataset(
            strategy,
            reader,
            batch_size=settings["batch_size"],
            student_views=views["student"],
            teacher_views=views["teacher"],
            seed=config["seed"],
            start_step=start_step,
            augment_on=config["data"]["augment_on"],
            bad_images=bad_images,
            service=data_service,
        )

    checkpoint, done = workdir_lib.latest_checkpoint(workdir)
    dataset = make_dataset(done)

    workdir_lib.claim(own, config)
    metrics_logger = monitor.MetricsLogger(
        own,
        log_every=config["monitor"]["log_every_steps"],
        steps_per_epoch=durations.epoch,
        batch_size=settings["batch_size"],
        first_step=done,
    )
    encoder = recipe.make_encoder(config, model.student.backbone)
    knn_monitor = _make_knn_monitor(
        config, encoder, labelled, metrics_logger, durations
    )
    probe = _make_probe(
        config, encoder, probe_readers, metrics_logger, durations
    )
    manager = workdir_lib.checkpoint_manager(
        own,
        model,
        keep=config["monitor"]["keep_checkpoints"],
        **({"online_probe": probe.state} if probe else {}),
    )
    if checkpoint:
        manager.checkpoint.restore(checkpoint).assert_existing_objects_matched()
        logger.info("resuming from step %d", done)
    _check_workers_agree(strategy, config, done)
    workdir_lib.truncate_metrics(own, done)
    if done < durations.total:
        environment.record(own, done, replicas=strategy.num_replicas_in_sync)

    with _stop_signals() as stop_requested:
        stop_agreed = _agree(
            strategy, stop_requested, every=config["monitor"]["log_every_steps"]
        )

        def should_stop(step):
            # Both: every worker has to ask as often as the others.
            agreed = stop_agreed()
            return agreed or (stop_at_step is not None and step >= stop_at_step)

        saver = monitor.Saver(
            manager,
            metrics_logger,
            every_epochs=config["monitor"]["checkpoint_every_epochs"],
            total_steps=durations.total,
            should_stop=should_stop,
            saved_step=done or None,
        )
        # In this order: rows first, and nothing changes after it is saved.
        callbacks = [
            callback
            for callback in (metrics_logger, knn_monitor, probe, saver)
            if callback is not None
        ]
        stopped = stop_at_step is not None and done >= stop_at_step
        while done < durations.total and not stopped:
            # `fit` knows whole epochs only, so what a stop left of one, and
            # the last one if it is not whole, are runs of their own.
            epoch, position = divmod(done, durations.epoch)
            full_epochs = (durations.total - done) // durations.epoch
            if position or not full_epochs:
                steps = min(durations.epoch - position, durations.total - done)
                epochs = 1
            else:
                steps, epochs = durations.epoch, full_epochs
            recipe.compile_model(
                model,
                config,
                model.optimizer,
                steps_per_execution=_steps_per_execution(config, steps),
            )
            with _explain(bad_images):
                model.fit(
                    dataset,
                    initial_epoch=epoch,
                    epochs=epoch + epochs,
                    steps_per_epoch=steps,
                    shuffle=False,  # the data set has its own order
                    verbose=_verbosity(strategy),
                    callbacks=callbacks,
                )
            done = int(tf.convert_to_tensor(model.step))
            stopped = model.stop_training
            if done < durations.total and not stopped:
                dataset = make_dataset(done)
    if done < durations.total:
        logger.warning(
            "stopped at step %d of %d; the same command continues",
            done,
            durations.total,
        )
    return Run(model, done, durations.total)


@contextlib.contextmanager
def _own_folder(strategy, workdir):
    """The folder that this worker writes into: the chief's is `workdir`.

    The others must save, too, because reading a variable that lives on all
    of them needs all of them; what they write is thrown away.
    """
    if cluster.is_chief(strategy):
        yield Path(workdir)
        return
    with tempfile.TemporaryDirectory(prefix="ressl_tf-worker-") as folder:
        yield Path(folder)


def _check_workers_agree(strategy, config, done):
    """Raises where a worker has another recipe or sees another folder."""
    if cluster.num_workers(strategy) == 1:
        return
    text = json.dumps(config, sort_keys=True)
    checksums = distribute.gather_number(strategy, zlib.crc32(text.encode()))
    if len(set(checksums)) > 1:
        raise ValueError(
            "`config` must be the same on all workers: start them with the "
            f"same flags. Received: checksums by replica: {checksums}"
        )
    steps = distribute.gather_number(strategy, done)
    if len(set(steps)) > 1:
        raise ValueError(
            "`workdir` must be one folder that all workers see (NFS), "
            "or they continue from different checkpoints. "
            f"Received: steps done by replica: {steps}"
        )


def _agree(strategy, requested, every):
    """A function that says whether any worker has been asked to stop.

    Agreeing is an exchange between the workers, so they do it at every
    `every`-th call alone.
    """
    calls = itertools.count(1)

    def agreed():
        if cluster.num_workers(strategy) == 1:
            return requested()
        if next(calls) % every:
            return False
        return any(distribute.gather_number(strategy, requested()))

    return agreed


def _steps_per_execution(config, steps):
    """The largest number up to the recipe's that divides `steps`."""
    wanted = config["train"]["steps_per_execution"]
    divisor = max(
        number for number in range(1, wanted + 1) if steps % number == 0
    )
    if divisor < wanted:
        logger.warning(
            "%d steps at a time instead of `train.steps_per_execution` = %d, "
            "which does not divide the %d steps of an epoch",
            divisor,
            wanted,
            steps,
        )
    return divisor


def _verbosity(strategy):
    """Keras' `verbose`: a bar on a terminal, lines elsewhere, one worker's."""
    if not cluster.is_chief(strategy):
        return 0
    return 1 if sys.stdout.isatty() else 2


def _make_knn_monitor(config, encoder, labelled, metrics_logger, durations):
    if labelled is None:
        return None
    settings = config["monitor"]
    return monitor.KNNMonitor(
        encoder,
        *labelled,
        metrics_logger,
        every_epochs=settings["eval_every_epochs"],
        total_steps=durations.total,
        k=settings["knn_neighbours"],
        temperature=settings["knn_temperature"],
    )


def _make_probe(config, encoder, readers, metrics_logger, durations):
    if readers is None:
        return None
    settings = config["monitor"]
    return monitor.OnlineProbe(
        encoder,
        *readers,
        metrics_logger,
        every_steps=settings["online_probe_every_steps"],
        every_epochs=settings["eval_every_epochs"] or 1,
        total_steps=durations.total,
        batch_size=config["train"]["batch_size"],
        learning_rate=settings["online_probe_learning_rate"],
        seed=config["seed"],
    )


@contextlib.contextmanager
def _explain(bad_images):
    """Raises what ended the data set instead of TensorFlow's error."""
    try:
        yield
    except tf.errors.OpError:
        if bad_images.error is None:
            raise
        raise bad_images.error from None


def _open_data(config, data_service):
    """(ImageSet, its reader); None and a reader if images are streamed."""
    settings = config["data"]
    if settings["stream"]:
        # The workers of a service read for themselves.
        cache_bytes = 0 if data_service else None
        return None, recipe.open_reader(config, cache_bytes)
    train_set = data.load(split=settings["split"], **_source(config))
    return train_set, data.MemoryReader(train_set.images)


def _labelled_sets(config, train_set):
    """(train, test) for the k-NN score, or None if there is to be none."""
    if not config["monitor"]["eval_every_epochs"]:
        return None
    if train_set is None:
        logger.warning(
            "no k-NN score while training: it needs the images in memory, and "
            "they are streamed (`data.stream`)"
        )
        return None
    try:
        return _load_labelled(config, train_set)
    except ValueError as error:
        logger.warning("no k-NN score while training: %s", error)
        return None


def _probe_readers(config, train_set, labelled):
    """(train, test) readers for the online probe, or None if there is none.

    Raises:
        ValueError: if there is to be one and images have no labels.
    """
    if not config["monitor"]["online_probe_every_steps"]:
        return None
    if train_set is not None:
        labelled = labelled or _load_labelled(config, train_set)
        return [data.MemoryReader(*image_set) for image_set in labelled]
    settings = config["data"]
    readers = [
        data.open_reader(
            settings["source"],
            split,
            data_dir=settings["data_dir"],
            stream=True,
        )
        for split in ("train", "test")
    ]
    for reader in readers:
        data.check_labelled(reader)
    return readers


def _load_labelled(config, train_set):
    """(train, test) as `ImageSet`s with labels.

    Raises:
        ValueError: if they have none.
    """
    if config["data"]["split"] != "train":
        train_set = data.load(split="train", **_source(config))
    sets = (train_set, data.load(split="test", **_source(config)))
    for image_set in sets:
        data.require_labels(image_set, config["data"]["source"])
    return sets


def _source(config):
    keys = ("source", "image_size", "data_dir", "max_bad")
    return {key: config["data"][key] for key in keys}


def _max_bad(config, reader):
    max_bad = config["data"]["max_bad"]
    if max_bad is None:
        return data.default_max_bad(reader.num_images)
    return max_bad


def _check(config, strategy):
    precision = config["train"]["precision"]
    if precision not in PRECISIONS:
        raise ValueError(
            f"`train.precision` must be one of {', '.join(PRECISIONS)}. "
            f"Received: train.precision={precision!r}"
        )
    for part, key, lowest in (
        ("train", "steps_per_execution", 1),
        ("train", "gradient_accumulation_steps", 1),
        ("monitor", "log_every_steps", 1),
        ("monitor", "eval_every_epochs", 0),
        ("monitor", "knn_neighbours", 1),
        ("monitor", "online_probe_every_steps", 0),
        ("monitor", "checkpoint_every_epochs", 1),
        ("monitor", "keep_checkpoints", 1),
    ):
        if config[part][key] < lowest:
            raise ValueError(
                f"`{part}.{key}` must be at least {lowest}. "
                f"Received: {part}.{key}={config[part][key]}"
            )
    for key in ("knn_temperature", "online_probe_learning_rate"):
        value = config["monitor"][key]
        if not value > 0:
            raise ValueError(
                f"`monitor.{key}` must be above 0. "
                f"Received: monitor.{key}={value}"
            )
    parts = config["train"]["gradient_accumulation_steps"]
    batch_size = config["train"]["batch_size"]
    replicas = strategy.num_replicas_in_sync
    # Without parts, who makes the batches says so.
    if parts > 1 and batch_size % (parts * replicas):
        raise ValueError(
            "`train.gradient_accumulation_steps` times the number of replicas "
            f"({replicas}) must divide `train.batch_size` ({batch_size}). "
            f"Received: train.gradient_accumulation_steps={parts}"
        )
    bn_splits = config["method"]["bn_splits"]
    if bn_splits and batch_size // parts % bn_splits:
        raise ValueError(
            "`method.bn_splits` must divide `train.batch_size` / "
            f"`train.gradient_accumulation_steps` ({batch_size // parts}). "
            f"Received: method.bn_splits={bn_splits}"
        )


def _check_compilable(config, strategy):
    replicas = strategy.num_replicas_in_sync
    if not config["train"]["jit_compile"] or replicas == 1:
        return
    if not isinstance(strategy, tf.distribute.TPUStrategy):
        raise ValueError(
            "`train.jit_compile` must be False with several replicas: "
            "TensorFlow cannot compile their exchange. "
            f"Received: train.jit_compile=True, {replicas} replicas"
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
