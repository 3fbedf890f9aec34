"""A strategy by name; workers that do not come, or are lost, are named."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tensorflow as tf
from processes import free_ports
from processes import tf_config

from ressl_tf import cluster
from ressl_tf.cluster import rendezvous
from ressl_tf.cluster import strategies

ROOT = Path(__file__).resolve().parent.parent
TWO = {"worker": ["host0:2222", "host1:2222"]}

# A worker: makes the strategy and, as argv[1] says, sums once over all
# workers, sums until it is lost or ended, or dies before TensorFlow connects.
PROGRAM = """
import os, socket, sys, time
import tensorflow as tf
from ressl_tf import cluster
from ressl_tf.cluster import rendezvous

what = sys.argv[1]
rendezvous.WARNING_INTERVAL = 2.0
if what == "die":
    meet = rendezvous.meet
    def meet_and_die(port, *args):
        meet(port, *args)
        with socket.create_server(("", port)):
            time.sleep(4)  # the other one meets this one, too
        os._exit(3)
    rendezvous.meet = meet_and_die
if what == "sum briefly":  # gives TensorFlow less time than the meeting
    watched = rendezvous.watched
    rendezvous.watched = lambda peers, timeout: watched(peers, 10.0)
try:
    with cluster.watch():
        strategy = cluster.make_strategy("multi_worker", cluster_timeout=90)
        print(cluster.worker_name(strategy), cluster.is_chief(strategy),
              cluster.num_workers(strategy), flush=True)

        def one():
            context = tf.distribute.get_replica_context()
            return context.all_reduce("SUM", tf.constant(1.5))

        step = tf.function(lambda: strategy.run(one))
        print(float(step()), flush=True)
        while what == "run":
            step()
except cluster.ClusterError as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(1)
"""


@pytest.fixture
def start(tmp_path):
    """Starts PROGRAM as a worker; whatever happens, it is gone afterwards."""
    processes = []

    def start(ports, index, what, **environment):
        jobs = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, what],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TF_CONFIG": tf_config(jobs, index=index),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def quick_warnings(monkeypatch):
    monkeypatch.setattr(rendezvous, "WARNING_INTERVAL", 0.4)
    monkeypatch.setattr(rendezvous, "_ROUND", 0.05)


# Arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "horovod"}, "default, mirrored, multi_worker, tpu.*horovod"),
        ({"replicas": 2}, "`replicas` is for.*replicas=2, strategy=default"),
        ({"name": "mirrored", "replicas": 0}, "at least 1.*replicas=0"),
        ({"tpu": "local"}, "`tpu` is for.*tpu=local, strategy=default"),
        ({"cluster_timeout": 0}, "positive.*cluster_timeout=0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        cluster.make_strategy(**arguments)


def test_default_is_the_strategy_in_scope():
    strategy = cluster.make_strategy()
    assert strategy is tf.distribute.get_strategy()
    assert cluster.is_chief(strategy)
    assert cluster.num_workers(strategy) == 1
    assert cluster.worker_name(strategy) == ""


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="for CPUs"
)
def test_mirrored_uses_the_first_replicas():
    # tests/conftest.py made two logical devices.
    strategy = cluster.make_strategy("mirrored", replicas=2)
    assert strategy.num_replicas_in_sync == 2
    assert cluster.is_chief(strategy)
    assert cluster.num_workers(strategy) == 1
    assert cluster.make_strategy("mirrored").num_replicas_in_sync == 1
    with pytest.raises(ValueError, match="has, with 2.*replicas=3"):
        cluster.make_strategy("mirrored", replicas=3)


@pytest.mark.core
@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="for CPUs"
)
def test_mirrored_makes_logical_devices():
    code = (
        "from ressl_tf import cluster;"
        "strategy = cluster.make_strategy('mirrored', replicas=3);"
        "print(strategy.num_replicas_in_sync)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.strip() == "3"


# TF_CONFIG


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "must be set"),
        ("{'cluster'", "be JSON"),
        ("[1]", "have a `cluster`"),
        ('{"task": {"type": "worker", "index": 0}}', "have a `cluster`"),
        (json.dumps({"cluster": TWO}), "have a `task`"),
        (json.dumps({"cluster": TWO, "task": 1}), "object as `task`"),
        (tf_config(TWO, task="chief"), "`type` of `task` that is in"),
        (tf_config(TWO, index=2), "`index` of `task` from 0 to 1"),
        (tf_config(TWO, index=-1), "`index` of `task` from 0 to 1"),
        (tf_config(TWO, index=None), "`index` of `task` from 0 to 1"),
        (tf_config({"worker": ["a:1", "a:1"]}), "an address of its own"),
        (tf_config({"worker": ["a:1"], "chief": ["a:1"]}), "of its own"),
        (tf_config({"worker": ["a", "b:1"]}), "host:port, not 'a'"),
        (tf_config({"worker": ["a:0", "b:1"]}), "host:port, not 'a:0'"),
        (tf_config({"worker": ["a:65536", "b:1"]}), "not 'a:65536'"),
        (tf_config({"worker": "a:1"}), "list the addresses of its `worker`"),
        (tf_config({"worker": []}), "list the addresses of its `worker`"),
        (tf_config({**TWO, "chief": ["c:1", "d:1"]}), "one `chief`"),
        (tf_config({**TWO, "ps": ["c:1"]}), "no `ps` job: every worker"),
        (tf_config({**TWO, "evaluator": ["c:1"]}), "no `evaluator` job"),
        (tf_config({**TWO, "master": ["c:1"]}), "not `master`"),
    ],
)
def test_tf_config_is_checked(monkeypatch, text, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=message) as caught:
        cluster.make_strategy("multi_worker")
    assert f"Received: TF_CONFIG={text or ''}" in str(caught.value)


def test_a_cluster_comes_before_anything_of_tensorflow(monkeypatch):
    tf.constant(0)
    monkeypatch.setenv("TF_CONFIG", tf_config(TWO))
    with pytest.raises(ValueError, match="`make_strategy` before anything"):
        cluster.make_strategy("multi_worker")


def test_a_taken_port_is_told(monkeypatch):
    monkeypatch.setattr(strategies, "_check_not_started", lambda: None)
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        jobs = {"worker": [f"127.0.0.1:{port}", "host1:2222"]}
        monkeypatch.setenv("TF_CONFIG", tf_config(jobs))
        with pytest.raises(ValueError, match=f"worker 0 at 127.0.0.1:{port}"):
            cluster.make_strategy("multi_worker")


@pytest.mark.parametrize(
    "before, after",
    [
        ({}, "host0,host1"),
        ({"no_proxy": "a,host1"}, "a,host1,host0"),
        ({"no_proxy": "a", "no_grpc_proxy": "b"}, "b,host0,host1"),
    ],
)
def test_proxies_are_bypassed_for_workers_alone(monkeypatch, before, after):
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    strategies._bypass_proxies(strategies._tasks(TWO))
    assert os.environ["no_grpc_proxy"] == after


# Meeting


def test_workers_meet_also_a_late_one(quick_warnings, caplog):
    ports = free_ports(3)
    names = [f"worker {index}" for index in range(3)]
    # The last one comes when the others have been waiting for a while.
    delays = [0.0, 0.0, 1.0]

    def worker(index):
        time.sleep(delays[index])
        peers = {
            name: f"127.0.0.1:{port}"
            for name, port in zip(names, ports, strict=True)
            if name != names[index]
        }
        missing = rendezvous.meet(ports[index], peers, 30)
        # Stands for TensorFlow's server, which takes the port over.
        listeners.append(socket.create_server(("", ports[index])))
        return missing

    listeners = []
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(worker, range(3))) == [{}, {}, {}]
    for listener in listeners:
        listener.close()
    assert len(listeners) == 3
    warnings = [record.getMessage() for record in caplog.records]
    last = f"waiting for worker 2 (127.0.0.1:{ports[2]}); "
    assert any(text.startswith(last) for text in warnings)


def test_missing_workers_are_named_at_each_interval(quick_warnings, caplog):
    own, there, gone, away = free_ports(4)
    peers = {
        "worker 1": f"127.0.0.1:{there}",
        "worker 2": f"127.0.0.1:{gone}",
        "worker 3": f"127.0.0.1:{away}",
    }
    with socket.create_server(("", there)):
        missing = rendezvous.meet(own, peers, 1.0)
    assert missing == {name: peers[name] for name in ("worker 2", "worker 3")}
    named = (
        f"waiting for worker 2 (127.0.0.1:{gone}), "
        f"worker 3 (127.0.0.1:{away}); "
    )
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [f"{named}0 s of 1 s", f"{named}1 s of 1 s"]
    assert caplog.records[0].levelname == "WARNING"
    assert caplog.records[0].name == "ressl_tf"
    # The port is free again.
    socket.create_server(("", own)).close()


def test_many_looks_do_not_fill_the_queue(monkeypatch):
    monkeypatch.setattr(rendezvous, "_ROUND", 0.01)
    port, missing = free_ports(2)
    peers = {"worker 1": f"127.0.0.1:{missing}"}
    thread = threading.Thread(target=rendezvous.meet, args=(port, peers, 60))
    thread.start()
    own = {"worker 0": f"127.0.0.1:{port}"}
    while rendezvous.unreachable(own):
        time.sleep(0.01)
    for _ in range(300):  # more than its backlog
        assert not rendezvous.unreachable(own)
    with socket.create_server(("", missing)):
        thread.join()


def test_an_unknown_host_is_missing():
    peers = {"worker 1": "no-such-host.invalid:2222"}
    assert rendezvous.unreachable(peers) == peers


def test_timeout_names_the_missing_alone(monkeypatch, quick_warnings):
    own, there, gone = free_ports(3)
    addresses = [f"127.0.0.1:{port}" for port in (there, gone)]
    jobs = {"chief": [f"127.0.0.1:{own}"], "worker": addresses}
    monkeypatch.setenv("TF_CONFIG", tf_config(jobs, task="chief"))
    monkeypatch.setattr(strategies, "_check_not_started", lambda: None)
    with socket.create_server(("", there)):
        with pytest.raises(cluster.ClusterError) as caught:
            cluster.make_strategy("multi_worker", cluster_timeout=0.6)
    message = str(caught.value)
    assert f"in vain for worker 1 (127.0.0.1:{gone}): start it" in message
    assert "worker 0" not in message
    assert "\n" not in message


# Several processes


@pytest.mark.core
def test_two_workers_sum(start):
    ports = free_ports(2)
    # A proxy that is none: TensorFlow would wait for it for ever.
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_grpc_proxy": ""}
    workers = [start(ports, i, "sum", **proxy) for i in range(2)]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert outputs[0][0].split("\n")[:2] == ["worker 0 True 2", "3.0"]
    assert outputs[1][0].split("\n")[:2] == ["worker 1 False 2", "3.0"]


@pytest.mark.core
def test_a_worker_that_dies_while_tensorflow_connects_is_named(start):
    ports = free_ports(2)
    waits = start(ports, 0, "sum briefly")
    dies = start(ports, 1, "die")
    _, stderr = waits.communicate(timeout=150)
    dies.communicate(timeout=60)
    assert dies.returncode == 3
    assert waits.returncode == 1, stderr
    name = f"worker 1 (127.0.0.1:{ports[1]})"
    assert f"WARNING: waiting for {name}; " in stderr
    assert stderr.splitlines()[-1].startswith(
        "error: TensorFlow did not connect the workers within 10 s: "
        f"{name} no longer answers"
    )


@pytest.mark.core
@pytest.mark.parametrize(
    "how, victim", [("SIGKILL", 0), ("SIGKILL", 1), ("SIGSTOP", 1)]
)
def test_a_lost_worker_ends_the_others(start, how, victim):
    ports = free_ports(2)
    workers = [start(ports, index, "run") for index in range(2)]
    for worker in workers:
        worker.stdout.readline()  # its name
        assert worker.stdout.readline() == "3.0\n"
    workers[victim].send_signal(getattr(signal, how))
    _, stderr = workers[1 - victim].communicate(timeout=60)
    assert workers[1 - victim].returncode == 1, stderr
    assert stderr.splitlines()[-1].startswith(
        f"error: Lost worker {victim} (127.0.0.1:{ports[victim]}): "
    )
    assert "continue from the last checkpoint" in stderr.splitlines()[-1]


# Explaining

LOST = (
    "Graph execution error:\n\nCollective ops is aborted by: Socket closed\n"
    "Additional GRPC error information from remote target "
    "/job:worker/replica:0/task:1 while calling "
    "/tensorflow.WorkerService/RecvBuf:\n"
)


@pytest.fixture
def in_cluster(monkeypatch):
    """This process is worker 0 of three at whose ports nobody listens."""
    ports = free_ports(3)
    jobs = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    monkeypatch.setenv("TF_CONFIG", tf_config(jobs))
    return jobs["worker"]


def test_the_message_names_the_lost_worker(in_cluster):
    error = tf.errors.UnavailableError(None, None, LOST)
    line = cluster.explain(error)
    assert line.startswith(f"Lost worker 1 ({in_cluster[1]}): ")
    with pytest.raises(cluster.ClusterError, match="Lost worker 1 ") as caught:
        with cluster.watch():
            raise error
    assert caught.value.__cause__ is error


def test_a_silent_message_is_completed_by_looking(in_cluster):
    error = tf.errors.DeadlineExceededError(
        None, None, "Collective ops is aborted by: Deadline Exceeded"
    )
    port = int(in_cluster[1].rpartition(":")[2])
    with socket.create_server(("", port)):
        line = cluster.explain(error)
    assert line.startswith(f"Lost worker 2 ({in_cluster[2]}): ")


def test_the_leader_is_lost_where_its_service_is(monkeypatch):
    leader, own = free_ports(2)
    jobs = {"chief": [f"127.0.0.1:{leader}"], "worker": [f"127.0.0.1:{own}"]}
    monkeypatch.setenv("TF_CONFIG", tf_config(jobs))
    error = tf.errors.DeadlineExceededError(
        None, None, "RPC: /tensorflow.CoordinationService/Heartbeat"
    )
    with socket.create_server(("", leader)):  # stopped, yet accepting
        line = cluster.explain(error)
    assert line.startswith(f"Lost chief 0 (127.0.0.1:{leader}): ")


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.InvalidArgumentError(
            None, None, "Collective ops is aborted by: Shape mismatch"
        ),
        tf.errors.UnavailableError(None, None, "gs://bucket: try again"),
        ValueError("Collective ops is aborted"),
    ],
)
def test_other_errors_pass(in_cluster, error):
    assert cluster.explain(error) is None
    with pytest.raises(type(error)) as caught:
        with cluster.watch():
            raise error
    assert caught.value is error
