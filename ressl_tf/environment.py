"""Where a run is computed: the machine and the versions, kept with the run.

DIR/environment.json is a list with one entry for each start of the run: a run
that was stopped may go on elsewhere, with other versions.
"""

import datetime
import json
import os
import platform
from pathlib import Path

import numpy as np
import tensorflow as tf

from ressl_tf import keras_compat
from ressl_tf import workdir as workdir_lib
from ressl_tf.version import __version__

FILE = "environment.json"


def describe():
    """The machine and the versions, here and now.

    Returns:
        {"machine": {"cpu": model; "cores": that this process may use;
        "memory_gib": of the machine; "accelerators": list of names; "system"},
        "versions": {"python", "tensorflow", "keras", "ressl_tf", "numpy"}},
        strings and numbers; None where the system does not say.
    """
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": _num_cores(),
            "memory_gib": _memory_gib(),
            "accelerators": _accelerators(),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras_compat.version(),
            "ressl_tf": __version__,
            "numpy": np.__version__,
        },
    }


def record(workdir, step, *, replicas=1):
    """Adds an entry for a run that starts now, or goes on.

    Args:
        workdir: folder of the run.
        step: steps done before.
        replicas: number of devices that train together.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    entry = {
        "started": now.isoformat(timespec="seconds"),
        "step": step,
        "replicas": replicas,
        **describe(),
    }
    workdir_lib.write_json(Path(workdir) / FILE, [*read(workdir), entry])


def read(workdir):
    """The entries of a run, the first one first; none if there is no file."""
    path = Path(workdir) / FILE
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return []  # from before there was such a file, or no longer JSON
    return entries if isinstance(entries, list) else []


def _cpu_model():
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or None


def _num_cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gib():
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return round(size / 2**30, 1)


def _accelerators():
    names = []
    for device in tf.config.list_physical_devices():
        if device.device_type == "CPU":
            continue
        details = tf.config.experimental.get_device_details(device)
        names.append(details.get("device_name") or device.device_type)
    return names
