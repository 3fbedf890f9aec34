"""Batches made on other machines, by a tf.data service, in their order.

A service is a dispatcher and one or more workers (`tools.data_service` starts
them). Its workers are dealt the steps in turn, so nothing is made twice, and
the trainer asks them in turn, so the order is that of the steps. Whatever a
trainer asks for is made for it alone, from the step on that it names: a
restarted one does not go on where its forerunner stopped.

Images in memory travel to the workers inside the graph. Files are read by the
workers, at the paths that the trainer knows.
"""

import re
import socket
import threading
import time
from typing import NamedTuple

import tensorflow as tf

__all__ = [
    "MAX_GRAPH_BYTES",
    "Service",
    "connect",
    "fetch",
    "start_dispatcher",
    "start_worker",
]

# What one worker gets. A trainer, dispatcher and worker in one process took
# 1.3 GB and 5 seconds for 150 MB of images, 5 GB and 20 seconds for 600 MB.
MAX_GRAPH_BYTES = 512 * 2**20

_CONNECT_SECONDS = 10
_WORKERS_SECONDS = 30
_START = (
    "Start one with `python -m tools.data_service`, its workers before the "
    "training"
)


def start_dispatcher(port, workers):
    """Starts the dispatcher of a service in this process.

    Args:
        port: where trainers and workers reach it; 0 takes a free one.
        workers: the "HOST:PORT" of every worker that there will be.

    Returns:
        A `tf.data.experimental.service.DispatchServer`: `target` is its
        address, `join()` waits for its end.

    Raises:
        ValueError: no worker, or one without a port.
    """
    if not workers:
        raise ValueError(
            "`workers` must list the HOST:PORT of each worker of the service. "
            f"Received: workers={workers}"
        )
    for worker in workers:
        _host_and_port("workers", worker)
    service = tf.data.experimental.service
    return service.DispatchServer(
        service.DispatcherConfig(port=port, worker_addresses=list(workers))
    )


def start_worker(address, dispatcher_address):
    """Starts a worker of a service in this process.

    Args:
        address: its own "HOST:PORT", as in the dispatcher's list.
        dispatcher_address: "HOST:PORT" of the dispatcher, which must be
            running.

    Returns:
        A `tf.data.experimental.service.WorkerServer`.

    Raises:
        ValueError: an address is malformed, or there is no dispatcher.
    """
    _, port = _host_and_port("address", address)
    _check_answers(
        "dispatcher_address",
        *_host_and_port("dispatcher_address", dispatcher_address),
    )
    service = tf.data.experimental.service
    return service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=dispatcher_address,
            worker_address=address,
            port=port,
        )
    )


class Service(NamedTuple):
    """A tf.data service that answers.

    Attributes:
        address: of its dispatcher, "grpc://HOST:PORT".
        num_workers: how many workers it has.
    """

    address: str
    num_workers: int


def connect(address):
    """Finds the service at an address and counts its workers.

    TensorFlow itself would try for ever.

    Args:
        address: "grpc://HOST:PORT" of the dispatcher.

    Returns:
        A `Service`.

    Raises:
        ValueError: the address is malformed; nothing answers there within 10
            seconds; not all workers answer within 30; or the dispatcher has
            no list of them (`start_dispatcher`).
    """
    protocol, _, rest = str(address).partition("://")
    if protocol != "grpc":
        raise ValueError(
            "`service` must be the address of a tf.data service's dispatcher, "
            f"'grpc://HOST:PORT'. Received: service={address!r}"
        )
    _check_answers("service", *_host_and_port("service", rest))

    # In a thread, since a call to a service without workers never returns.
    results = []

    def probe():
        try:
            results.append(_probe(address))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_WORKERS_SECONDS)
    result = results[0] if results else None
    if isinstance(result, Service):
        return result
    reason = f"whose workers did not all answer in {_WORKERS_SECONDS} seconds"
    if result is not None:
        reason = str(result).partition("\n")[0]
    raise ValueError(
        "`service` must have all its workers running, and a dispatcher that "
        f"was given their list. Received: service={address!r}, {reason}. "
        f"{_START}"
    ) from result


def fetch(steps, make, service, start_step):
    """Has the service make the batches, and hands them out in order.

    Args:
        steps: a `tf.data.Dataset` of (step, what it reads), without end.
        make: maps a data set of some of these steps to one of (step, batch).
        service: a `Service`.
        start_step: the first step.

    Returns:
        A `tf.data.Dataset` of the batches. It fails at a batch that is not
        the next one, as where a worker was restarted.
    """
    number = service.num_workers

    def part_of(turn):
        # Each worker leaves out what its number in the list does not give it,
        # and of these parts only one is wanted here: the job is that worker's
        # alone. With one job for all, nothing fixes the order in which their
        # batches arrive: even a coordinated read skips a worker that is late.
        part = _sharded(steps).take_while(
            lambda step, what: (step - start_step) % number == turn
        )
        return _distribute(make(part), service.address)

    parts = [part_of(turn) for turn in range(number)]
    turns = tf.data.Dataset.range(number).repeat()
    batches = tf.data.Dataset.choose_from_datasets(parts, turns)

    def checked(expected, element):
        step, batch = element
        check = tf.debugging.assert_equal(
            step,
            expected,
            "The tf.data service sent another step than the next: one of its "
            "workers was restarted. Start the training again; it resumes",
        )
        with tf.control_dependencies([check]):
            return tf.nest.map_structure(tf.identity, batch)

    return batches.enumerate(start_step).map(checked)


def _host_and_port(name, address):
    match = re.fullmatch(r"([^/]+):(\d{1,5})", str(address))
    if not match or int(match[2]) >= 2**16:
        raise ValueError(
            f"`{name}` must be HOST:PORT. Received: {name}={address!r}"
        )
    return match[1], int(match[2])


def _check_answers(name, host, port):
    try:
        address = (host.strip("[]"), port)
        socket.create_connection(address, _CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"`{name}` must be the address of a running tf.data service. "
            f"Received: {host}:{port}, where nobody answers ({error}). "
            f"{_START}"
        ) from error


def _sharded(dataset):
    """Every worker's own n-th part, in a data set that a service makes."""
    hint = tf.data.experimental.SHARD_HINT  # Each puts its number here.
    return dataset.shard(hint, hint)


def _distribute(dataset, address):
    service = tf.data.experimental.service
    # Augmented images are noise to a compressor, and it is slow.
    return dataset.apply(
        service.distribute(
            service.ShardingPolicy.HINT, address, compression=None
        )
    )


def _probe(address):
    """Returns the `Service` once all its workers have answered."""
    end = time.monotonic() + _WORKERS_SECONDS
    # Worker i of n makes [i, i + n] first, then [i + 2n, i + 3n].
    pairs = _sharded(tf.data.Dataset.range(2**62)).batch(2)
    found = set()
    try:
        for pair in _distribute(pairs, address):
            first, second = pair.numpy().tolist()
            number = second - first
            found.add(first % number)
            if len(found) == number:
                return Service(address, number)
            if time.monotonic() > end:
                raise ValueError(f"{len(found)} of whose {number} workers run")
            time.sleep(0.01)
    except tf.errors.NotFoundError as error:
        raise ValueError("some of whose workers are not in its list") from error
