"""A strategy by name, and clusters that do not fail in silence.

The engine is `tf.distribute`. What stands here are the checks before it, and
messages for what it does without one: TensorFlow waits for missing workers
for ever (`rendezvous.py`), and reports a lost one as the failure of whatever
operation ran.
"""

import contextlib
import json
import os
import re

import tensorflow as tf

from ressl_tf.cluster import rendezvous
from ressl_tf.cluster import tpu as tpu_lib

STRATEGIES = ("default", "mirrored", "multi_worker", "tpu")


class ClusterError(RuntimeError):
    """A worker did not come, or was lost."""


def make_strategy(
    name="default", *, replicas=None, tpu=None, cluster_timeout=600
):
    """The `tf.distribute` strategy to train under.

    To be called before anything else of TensorFlow runs: "multi_worker", and
    "mirrored" on CPUs, set up devices that cannot be changed later.

    Args:
        name: "default": one device. "mirrored": all GPUs of this machine; on
            a machine without, `replicas` logical CPU devices. "multi_worker":
            several machines, each with all its GPUs, as the environment
            variable TF_CONFIG says
            (https://www.tensorflow.org/guide/distributed_training#TF_CONFIG).
            "tpu": a Cloud TPU.
        replicas: number of devices for "mirrored": the first so many GPUs.
            Defaults to all GPUs; without a GPU to 1.
        tpu: for "tpu": name, "grpc://host:port", or "local" for a TPU VM's
            own. Defaults to what the environment or the machine tells.
        cluster_timeout: seconds that "multi_worker" waits for the other
            workers.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        ValueError: an unknown name, an argument that is not the strategy's,
            a wrong TF_CONFIG, too few devices, no TPU, or TensorFlow has
            already started.
        ClusterError: another worker did not come within `cluster_timeout`.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}. "
            f"Received: strategy={name}"
        )
    if replicas is not None and name != "mirrored":
        raise ValueError(
            '`replicas` is for the strategy "mirrored"; the others take all '
            f"devices. Received: replicas={replicas}, strategy={name}"
        )
    if replicas is not None and replicas < 1:
        raise ValueError(
            f"`replicas` must be at least 1. Received: replicas={replicas}"
        )
    if tpu is not None and name != "tpu":
        raise ValueError(
            '`tpu` is for the strategy "tpu". '
            f"Received: tpu={tpu}, strategy={name}"
        )
    if cluster_timeout <= 0:
        raise ValueError(
            "`cluster_timeout` must be a positive number of seconds. "
            f"Received: cluster_timeout={cluster_timeout}"
        )
    if name == "mirrored":
        return _mirrored(replicas)
    if name == "multi_worker":
        return _multi_worker(cluster_timeout)
    if name == "tpu":
        return tpu_lib.connect(tpu)
    return tf.distribute.get_strategy()


def num_workers(strategy):
    """Number of processes that train together; 1 without a cluster."""
    return max(1, len(_tasks(_cluster_spec(strategy))))


def worker_name(strategy):
    """ "worker 1", "chief 0": this process in its cluster; "" without one."""
    if not _cluster_spec(strategy):
        return ""
    resolver = strategy.cluster_resolver
    return f"{resolver.task_type} {resolver.task_id}"


def is_chief(strategy):
    """Whether this process is the one that speaks and writes for all.

    The chief of a cluster, or worker 0 of one without; every process that is
    not in a cluster.
    """
    tasks = _tasks(_cluster_spec(strategy))
    return not tasks or worker_name(strategy) == next(iter(tasks))


def explain(error):
    """One line about a lost worker, or None if that is not the error's cause.

    Args:
        error: exception out of training.

    Returns:
        str that names the lost workers as far as they can be told; or None.
    """
    # What TensorFlow raises after kill -9, SIGSTOP or a restart of another
    # worker. A collective operation that failed by itself, say for unequal
    # shapes, raises others.
    kinds = (
        tf.errors.AbortedError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
        tf.errors.UnavailableError,
    )
    signs = (
        r"Collective ops is aborted|CoordinationService|coordination service"
    )
    if not isinstance(error, kinds) or not re.search(signs, str(error)):
        return None
    lost = rendezvous.describe(_lost_workers(str(error)))
    return (
        f"Lost {lost or 'another worker'}: see its own output for the reason. "
        "The same commands again, on all workers, continue from the last "
        "checkpoint."
    )


@contextlib.contextmanager
def watch():
    """Turns what TensorFlow raises for a lost worker into a `ClusterError`."""
    try:
        yield
    except tf.errors.OpError as error:
        message = explain(error)
        if message is None:
            raise
        raise ClusterError(message) from error


def _mirrored(replicas):
    if tf.config.get_visible_devices("GPU"):
        gpus = tf.config.list_logical_devices("GPU")
        if replicas is not None and replicas > len(gpus):
            raise ValueError(
                f"`replicas` must be at most {len(gpus)}, the number of GPUs. "
                f"Received: replicas={replicas}"
            )
        return tf.distribute.MirroredStrategy(
            [gpu.name for gpu in gpus[:replicas]]
        )
    replicas = replicas or 1
    cpu = tf.config.get_visible_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu)
    if replicas > len(configured or [None]):
        one = tf.config.LogicalDeviceConfiguration()
        # Refused if TensorFlow has started: then there is what there is.
        with contextlib.suppress(RuntimeError):
            tf.config.set_logical_device_configuration(cpu, [one] * replicas)
    cpus = tf.config.list_logical_devices("CPU")
    if replicas > len(cpus):
        raise ValueError(
            "`replicas` on CPUs must be asked for before TensorFlow has "
            f"started; it has, with {len(cpus)}: call `make_strategy` first. "
            f"Received: replicas={replicas}"
        )
    return tf.distribute.MirroredStrategy([cpu.name for cpu in cpus[:replicas]])


def _multi_worker(timeout):
    own, tasks = _read_tf_config()
    peers = {name: tasks[name] for name in tasks if name != own}
    _check_not_started()
    try:
        missing = rendezvous.meet(_port(tasks[own]), peers, timeout)
    except OSError as error:
        raise ValueError(
            f"This is {own}, but its port cannot be opened "
            f"({error.strerror}): is another worker, or one of an earlier "
            "start, running here with the same address? "
            f"Received: TF_CONFIG with {own} at {tasks[own]}"
        ) from error
    if missing:
        raise ClusterError(
            f"{own} waited {timeout:.0f} s in vain for "
            f"{rendezvous.describe(missing)}: start it with the same `cluster` "
            "in TF_CONFIG and its own `task`, and see that the address is "
            "right and that no firewall closes the port. If it takes longer "
            "to start, raise `cluster_timeout`."
        )
    _bypass_proxies(tasks)
    try:
        with rendezvous.watched(peers, timeout):
            return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise ClusterError(
            f"TensorFlow could not connect {own} to the other workers: "
            f"{error.message.splitlines()[0]}. End all workers and start them "
            "again with the same commands."
        ) from error


def _read_tf_config():
    """This process' name and {name: address} of all, from TF_CONFIG."""
    text = os.environ.get("TF_CONFIG", "")
    example = (
        '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )

    def fail(expected):
        raise ValueError(
            f"The environment variable TF_CONFIG must {expected}. "
            f"Example: {example}. Received: TF_CONFIG={text}"
        )

    if not text:
        fail('be set for the strategy "multi_worker"')
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        fail(f"be JSON ({error})")
    for key in ("cluster", "task"):
        if not isinstance(config, dict) or not config.get(key):
            fail(f"have a `{key}`")
        if not isinstance(config[key], dict):
            fail(f"have an object as `{key}`")
    for job, addresses in config["cluster"].items():
        _check_job(job, addresses, fail)
    # TensorFlow's order: the chief, where there is one, leads.
    tasks = _tasks(config["cluster"])
    if len(set(tasks.values())) < len(tasks):
        fail("give each task an address of its own")
    job, index = config["task"].get("type"), config["task"].get("index")
    if job not in config["cluster"]:
        fail("have a `type` of `task` that is in its `cluster`")
    if f"{job} {index}" not in tasks:
        last = len(config["cluster"][job]) - 1
        fail(f"have an `index` of `task` from 0 to {last}")
    return f"{job} {index}", tasks


def _check_job(job, addresses, fail):
    if job == "ps":
        fail(
            "have no `ps` job: every worker holds all weights, there are no "
            "parameter servers"
        )
    if job == "evaluator":
        fail(
            "have no `evaluator` job: evaluation is a command of its own, "
            "outside the cluster"
        )
    if job not in ("chief", "worker"):
        fail(f"have no jobs but `chief` and `worker`, not `{job}`")
    if not isinstance(addresses, list) or not addresses:
        fail(f"list the addresses of its `{job}` tasks")
    if job == "chief" and len(addresses) > 1:
        fail("have one `chief` only")
    for address in addresses:
        if not isinstance(address, str) or not _port(address):
            fail(f"give addresses as host:port, not {address!r}")


def _port(address):
    """2222 of "host:2222"; 0 if it has none."""
    match = re.fullmatch(r".+:(\d{1,5})", address)
    port = int(match[1]) if match else 0
    return port if port < 2**16 else 0


def _tasks(cluster):
    """{"worker 1": address}; first the one that leads."""
    return {
        f"{job} {index}": address
        for job in ("chief", "worker")
        for index, address in enumerate(cluster.get(job, ()))
    }


def _cluster_spec(strategy):
    """{"worker": [address, ...]} of a multi-worker strategy, else {}."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return {}
    return strategy.cluster_resolver.cluster_spec().as_dict()


def _check_not_started():
    """ValueError if TensorFlow's devices can no longer be set up.

    Before the others are waited for: TensorFlow itself says so only after.
    """
    cpu = tf.config.get_visible_devices("CPU")[0]
    one = tf.config.LogicalDeviceConfiguration()
    try:
        tf.config.set_logical_device_configuration(cpu, [one])
    except RuntimeError as error:
        raise ValueError(
            "TensorFlow has already started, and can no longer become part of "
            "a cluster: call `make_strategy` before anything else of "
            "TensorFlow. Received: strategy=multi_worker"
        ) from error


def _bypass_proxies(tasks):
    """gRPC talks to the workers directly, as the rendezvous just did.

    It would otherwise send even this through the proxy that `http_proxy`
    names, and wait without end.
    """
    if "no_grpc_proxy" in os.environ:
        known = os.environ["no_grpc_proxy"]
    else:
        known = os.environ.get("no_proxy", "")
    hosts = [address.rpartition(":")[0] for address in tasks.values()]
    os.environ["no_grpc_proxy"] = ",".join(
        dict.fromkeys([*filter(None, known.split(",")), *hosts])
    )


def _lost_workers(message):
    """{name: address} of the lost workers, as far as they can be told."""
    try:
        own, tasks = _read_tf_config()
    except ValueError:  # not started with TF_CONFIG
        own, tasks = None, {}
    peers = {name: tasks[name] for name in tasks if name != own}
    found = re.findall(r"job:(\w+)/(?:replica:\d+/)?task:(\d+)", message)
    named = {f"{job} {index}" for job, index in found} - {own}
    if named:
        return {name: tasks.get(name, "?") for name in sorted(named)}
    lost = rendezvous.unreachable(peers)
    leader = next(iter(tasks), None)
    if not lost and leader in peers and "CoordinationService" in message:
        return {leader: tasks[leader]}
    return lost
