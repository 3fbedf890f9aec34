"""Memory of a step, and how far the formula in `scaling` is from it."""

import argparse
import json
import os
import subprocess
import sys

import tensorflow as tf

from ressl_tf import scaling
from ressl_tf.benchmark import counts
from ressl_tf.benchmark import setup as setup_lib

# What is varied, one at a time, starting from the `Setup` that is given.
SWEEPS = {
    "queue_size": (32768, 131072),
    "batch_size": (128, 512),
    "dim": (128, 512),
    "crops": (1, 2, 5),
    "gradient_accumulation_steps": (1, 2, 8),
}


def measure(setup, sweeps=None, repeats=2):
    """Peak memory at several sizes, each in processes of its own.

    The order of what does not depend on each other is TensorFlow's to choose,
    and not the same in every process (the second view before or after the
    first one's gradients): the largest of several peaks counts.

    Args:
        setup: `Setup` that all points share but for what is varied.
        sweeps: {field of `Setup`: values}. Defaults to `SWEEPS`.
        repeats: number of processes for each point.

    Returns:
        {"points": {field: rows}}, a row for each value, with bytes of
        "formula", "tensors" (the allocator's peak, None where TensorFlow does
        not keep it) and "resident" (the process), and "ratio", formula over
        measured: over tensors, or without them over what resident has grown
        from the row before (None for the first).
    """
    sweeps = SWEEPS if sweeps is None else sweeps
    measured, points = {}, {}
    for field, values in sweeps.items():
        points[field] = rows = []
        for value in values:
            point = setup._replace(**{field: value})
            if point not in measured:
                peaks = [_measure_apart(point) for _ in range(repeats)]
                measured[point] = {
                    kind: max((p[kind] for p in peaks if p[kind]), default=None)
                    for kind in ("tensors", "resident")
                }
            row = {field: value, "formula": formula(point), **measured[point]}
            row["ratio"] = _ratio(row, rows[-1] if rows else None)
            rows.append(row)
    return {"setup": setup._asdict(), "repeats": repeats, "points": points}


def table(result):
    """`measure`'s result as text."""
    lines = [f"{'varied':36}formula   tensors  ratio  resident"]
    for field, rows in result["points"].items():
        for row in rows:
            cells = [f"{field:<28}{row[field]:7d}"]
            for kind in ("formula", "tensors"):
                value = row[kind]
                cells.append(f"{'-' if value is None else _mb(value):>10}")
            ratio = row["ratio"]
            cells.append(f"{'-' if ratio is None else f'{ratio:.2f}':>7}")
            cells.append(f"{_mb(row['resident']):>10}")
            lines.append("".join(cells))
    lines.append(
        "MB: by the formula; the allocator's peak; formula / measured; the "
        f"process's peak; the largest of {result['repeats']} processes."
    )
    return "\n".join(lines)


def _ratio(row, before):
    if row["tensors"] is not None:
        return row["formula"] / row["tensors"]
    if before is None or row["resident"] <= before["resident"]:
        return None
    grown = row["resident"] - before["resident"]
    return (row["formula"] - before["formula"]) / grown


def _mb(size):
    return f"{size / 1e6:.1f}"


def formula(setup):
    """Bytes that `scaling.memory_per_device` gives for a `Setup`."""
    model = setup_lib.make_networks(setup)
    backbone, *heads = (counts.count(network) for network in model)
    total = scaling.memory_per_device(
        backbone,
        heads,
        batch_size=setup.batch_size,
        queue_size=setup.queue_size,
        dim=setup.dim,
        views=scaling.Views((1.0,) * setup.crops, 1),
        image_values=3 * setup.image_size**2,
        gradient_accumulation_steps=setup.gradient_accumulation_steps,
    )
    return total["total"]


def peak_bytes(setup):
    """Peak of one training step in this process, which is left the worse.

    Args:
        setup: `Setup`.

    Returns:
        {"tensors": bytes or None, "resident": bytes}.
    """
    model = setup_lib.make_model(setup)
    batch = setup_lib.make_batch(setup)
    step = tf.function(model.train_step)
    for _ in range(2):  # the first one traces and makes plans
        step(batch)
    device = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
    try:
        tf.config.experimental.reset_memory_stats(device)
    except ValueError:  # the plain allocator keeps no statistics
        device = None
    _reset_resident_peak()
    for _ in range(3):
        step(batch)
    tensors = None
    if device is not None:
        tensors = tf.config.experimental.get_memory_info(device)["peak"]
    return {"tensors": tensors, "resident": _resident_peak()}


def _measure_apart(setup):
    """`peak_bytes` in a fresh process: what is freed is not given back."""
    finished = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(setup._asdict())],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            # The default one of some CPUs keeps no statistics.
            "TF_CPU_ALLOCATOR_USE_BFC": "1",
        },
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise RuntimeError(
            f"The process that measured {setup} ended with "
            f"{finished.returncode}: {finished.stderr[-2000:]}"
        )
    return json.loads(finished.stdout.splitlines()[-1])


def _reset_resident_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _resident_peak():
    # Not getrusage: its peak includes that of the parent before exec.
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM: not Linux?")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("setup")
    # One operation at a time, as on a GPU: else the peak is a matter of luck.
    tf.config.threading.set_inter_op_parallelism_threads(1)
    fields = json.loads(parser.parse_args().setup)
    print(json.dumps(peak_bytes(setup_lib.Setup(**fields))))
