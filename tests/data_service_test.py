"""Tests of batches that a tf.data service makes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny
from numbered import assert_same
from numbered import numbered_images
from numbered import numbered_shard
from processes import free_ports

from ressl_tf import augment
from ressl_tf import data
from ressl_tf import train
from ressl_tf.data import readers
from ressl_tf.data import service as service_lib

ROOT = Path(__file__).resolve().parents[1]
NUM_STEPS = 8  # An epoch has 5 of them.


class DrawView:
    """The first number of each image, and one drawn for it."""

    def apply(self, images, seed, rows=None):
        first, batch_size = rows or (0, images.shape[0])
        draws = tf.random.stateless_uniform(
            [batch_size, 1, 1, 3], seed, minval=0, maxval=2**20, dtype=tf.int32
        )
        draws = draws[first : first + images.shape[0]]
        return tf.cast(tf.cast(images, tf.int32) * 2**16 + draws, tf.float32)


def batches(num_steps=NUM_STEPS, images=None, **options):
    dataset = data.make_train_dataset(
        numbered_images(23) if images is None else images,
        **{
            "batch_size": 4,
            "student_views": (DrawView(), DrawView()),
            "teacher_views": (DrawView(),),
            "seed": 0,
            **options,
        },
    )
    return [
        tf.nest.flatten(batch)
        for batch in dataset.take(num_steps).as_numpy_iterator()
    ]


SERVERS = """
import sys
from ressl_tf.data import service as service_lib
ports = iter(sys.argv[1:])
kept = []
for number in (1, 2, 3):
    workers = [f"localhost:{next(ports)}" for _ in range(number)]
    dispatcher = service_lib.start_dispatcher(0, workers)
    address = dispatcher.target.removeprefix("grpc://")
    kept += [service_lib.start_worker(worker, address) for worker in workers]
    kept.append(dispatcher)
    print(dispatcher.target, flush=True)
dispatcher.join()
"""


@pytest.fixture(scope="module")
def services():
    """{number of workers: address}.

    In a process that can be killed: a worker takes seconds to stop.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", SERVERS, *map(str, free_ports(6))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield {n: process.stdout.readline().strip() for n in (1, 2, 3)}
    process.kill()
    process.communicate()


@pytest.fixture(params=[1, 2, 3])
def service(request, services):
    return services[request.param]


@pytest.fixture
def two_workers(services):
    return services[2]


@pytest.mark.core
def test_batches_are_the_direct_ones_in_order(service):
    assert_same(batches(service=service), batches())


@pytest.mark.core
def test_a_restarted_trainer_begins_where_it_says(service):
    whole = batches()
    assert_same(batches(2, service=service), whole[:2])
    for start_step in (3, 6):
        found = batches(2, service=service, start_step=start_step)
        assert_same(found, whole[start_step:][:2])


def test_an_iterator_begins_anew(two_workers):
    dataset = data.make_train_dataset(
        numbered_images(23),
        batch_size=4,
        student_views=(DrawView(),),
        teacher_views=(DrawView(),),
        seed=0,
        service=two_workers,
    )
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert dataset.element_spec["student"][0].shape.as_list() == [4, 1, 1, 3]
    first, second = iter(dataset), iter(dataset)
    for _ in range(3):
        one, other = (tf.nest.flatten(next(i)) for i in (first, second))
        assert_same([one], [other])


@pytest.mark.core
def test_workers_and_replicas_that_train_get_their_parts(two_workers):
    whole = batches()
    parts = [
        batches(2 * NUM_STEPS, service=two_workers, **options)
        for options in (
            {"worker": 0, "num_workers": 2, "replicas_per_worker": 2},
            {"worker": 1, "num_workers": 2, "replicas_per_worker": 2},
        )
    ]
    for step, expected in enumerate(whole):
        rows = [part[2 * step + n] for part in parts for n in (0, 1)]
        found = [np.concatenate(view) for view in zip(*rows, strict=True)]
        assert_same([found], [expected])


def test_nothing_is_made_twice(two_workers, tmp_path):
    path = tmp_path / "made"

    class SpyReader(readers.MemoryReader):
        def load(self, rows):
            # A line for each batch, from whichever process makes it.
            where = f"file://{path}"
            note = tf.print(rows, output_stream=where, summarize=-1)
            with tf.control_dependencies([note]):
                return super().load(rows)

    # The workers work ahead, but not as far as the next epoch.
    reader = SpyReader(np.zeros((4000, 1, 1, 3), np.uint8))
    batches(10, images=reader, service=two_workers, num_parallel_calls=1)
    made = re.findall(r"\d+", path.read_text())
    assert len(made) >= 40
    assert len(set(made)) == len(made)


def test_streamed_images(two_workers, tmp_path):
    reader = numbered_shard(tmp_path, 23, lanes=2, window=3)
    found = batches(images=reader, service=two_workers, start_step=1)
    assert_same(found, batches(images=reader, start_step=1))


@pytest.mark.core
def test_compiled_views_in_processes_of_their_own():
    # As users start them, on three ports of this machine.
    port, *worker_ports = free_ports(3)
    workers = [f"localhost:{one}" for one in worker_ports]
    processes = [
        start_tool(
            "--dispatcher", f"--port={port}", f"--workers={','.join(workers)}"
        )
    ]
    try:
        line = processes[0].stdout.readline()
        assert line == f"dispatcher: grpc://localhost:{port}\n"
        for worker in workers:
            flags = (f"--worker={worker}",)
            flags += (f"--dispatcher_address=localhost:{port}",)
            processes.append(start_tool(*flags))
        for process, worker in zip(processes[1:], workers, strict=True):
            assert process.stdout.readline() == f"worker: {worker}\n"
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
        options = {
            "images": images,
            "student_views": (augment.strong_view(8, blur_kernel=3),),
            "teacher_views": (augment.weak_view(8),),
            "start_step": 2,
        }
        found = batches(6, **options, service=f"grpc://localhost:{port}")
        assert_same(found, batches(6, **options))
        processes[0].send_signal(signal.SIGINT)  # Ctrl-C
        assert processes[0].wait(timeout=30) == -signal.SIGINT
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_run_through_a_service_is_the_run(two_workers, tmp_path, monkeypatch):
    tiny.lighten(monkeypatch)
    config = tiny.make_config(
        tiny.write_images(tmp_path), {"train.epochs": 2.0}
    )
    direct = train.train(config, tmp_path / "direct")
    train.train(
        config, tmp_path / "run", stop_at_step=5, data_service=two_workers
    )
    through = train.train(config, tmp_path / "run", data_service=two_workers)
    assert through.step == direct.step == 8
    for a, b in zip(
        through.model.variables, direct.model.variables, strict=True
    ):
        np.testing.assert_array_equal(a, b)


def start_tool(*flags):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        [sys.executable, "-m", "tools.data_service", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "Give either --dispatcher or --worker"),
        (["--dispatcher"], "`workers` must list the HOST:PORT"),
        (["--dispatcher", "--workers=here"], "`workers` must be HOST:PORT"),
    ],
)
def test_mistakes_in_starting_a_service(flags, message):
    process = start_tool(*flags)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert stderr.startswith(f"error: {message}") and stderr.count("\n") == 1


@pytest.mark.parametrize("address", ["localhost:5050", "grpc://localhost", ""])
def test_malformed_addresses(address):
    with pytest.raises(ValueError, match="`service` must be.*HOST:PORT"):
        batches(service=address)


def test_an_address_where_nobody_answers():
    address = f"grpc://localhost:{free_ports(1)[0]}"
    match = rf"`service`.*{address.removeprefix('grpc://')}, where nobody"
    with pytest.raises(ValueError, match=match):
        batches(service=address)
    with pytest.raises(ValueError, match="`dispatcher_address`.*nobody"):
        service_lib.start_worker("localhost:1", address.split("//")[1])


def test_a_service_without_its_workers(monkeypatch):
    monkeypatch.setattr(service_lib, "_WORKERS_SECONDS", 2)
    names = [f"localhost:{port}" for port in free_ports(2)]
    dispatcher = service_lib.start_dispatcher(0, names)
    match = rf"service='{dispatcher.target}', whose workers did not all.* 2 "
    with pytest.raises(ValueError, match=match):
        batches(service=dispatcher.target)
    address = dispatcher.target.removeprefix("grpc://")
    first = service_lib.start_worker(names[0], address)
    with pytest.raises(ValueError, match="`service`.*(1 of whose 2|not all)"):
        batches(service=dispatcher.target)
    second = service_lib.start_worker(names[1], address)
    monkeypatch.setattr(service_lib, "_WORKERS_SECONDS", 30)
    assert_same(batches(3, service=dispatcher.target), batches(3))
    del first, second


def test_a_dispatcher_that_has_no_list():
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.removeprefix("grpc://")
    worker = service.WorkerServer(service.WorkerConfig(address))
    with pytest.raises(ValueError, match="workers are not in its list"):
        batches(service=dispatcher.target)
    del worker


def test_a_step_that_is_not_the_next_ends_the_run(two_workers):
    connected = service_lib.connect(two_workers)
    assert connected == (two_workers, 2)
    steps = tf.data.Dataset.range(10, 10**6).map(lambda step: (step, step))

    def fetch(make):
        batches = service_lib.fetch(steps, make, connected, 10)
        return list(batches.take(6).as_numpy_iterator())

    assert fetch(lambda steps: steps) == list(range(10, 16))
    with pytest.raises(tf.errors.InvalidArgumentError, match="another step"):
        fetch(lambda steps: steps.skip(1))


def test_a_slow_worker_changes_no_order(two_workers):
    # Every second batch, all of one worker, takes a while.
    def make(steps):
        def delay(step, what):
            size = tf.where(step % 2 == 0, 1100, 1)
            noise = tf.random.stateless_uniform([size, size], [0, 1])
            for _ in range(3):
                noise = tf.matmul(noise, noise)
                noise /= tf.reduce_max(noise)
            return step, step + 0 * tf.cast(noise[0, 0], tf.int64)

        return steps.map(delay)

    connected = service_lib.connect(two_workers)
    steps = tf.data.Dataset.range(10**6).map(lambda step: (step, step))
    found = service_lib.fetch(steps, make, connected, 0).take(20)
    assert list(found.as_numpy_iterator()) == list(range(20))


def test_images_too_big_to_send(two_workers, monkeypatch):
    monkeypatch.setattr(service_lib, "MAX_GRAPH_BYTES", 2**20)
    images = np.zeros((2**8, 2**5, 2**5, 3), np.uint8)  # 3/4 MiB
    match = "`service` must not be sent more than 1 MiB.*3 MiB.*data.stream"
    with pytest.raises(ValueError, match=match):
        batches(1, images=images, service=two_workers, num_workers=2)
    assert len(batches(1, images=images[:100], service=two_workers)) == 1
