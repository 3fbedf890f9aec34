"""Several processes on this machine: ports and the cluster they are in."""

import json
import socket


def free_ports(number):
    """Ports of 127.0.0.1 that nobody has, for now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def tf_config(jobs, task="worker", index=0):
    """TF_CONFIG of one process; `jobs` is {"worker": [address, ...]}."""
    return json.dumps({"cluster": jobs, "task": {"type": task, "index": index}})


def two_workers():
    """TF_CONFIG of worker 0 and of worker 1."""
    jobs = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    return [tf_config(jobs, index=index) for index in range(2)]
