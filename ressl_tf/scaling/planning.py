"""What a run needs on many devices, and what that depends on."""

import math

import numpy as np

from ressl_tf.scaling.costs import BACKBONES
from ressl_tf.scaling.costs import BFLOAT16
from ressl_tf.scaling.costs import DEVICES
from ressl_tf.scaling.costs import FLOAT32
from ressl_tf.scaling.costs import HOUR
from ressl_tf.scaling.costs import VIEWS
from ressl_tf.scaling.costs import Input
from ressl_tf.scaling.costs import Reliability
from ressl_tf.scaling.costs import Run
from ressl_tf.scaling.costs import checkpoint_bytes
from ressl_tf.scaling.costs import exchange_seconds
from ressl_tf.scaling.costs import exchanges
from ressl_tf.scaling.costs import forward_passes
from ressl_tf.scaling.costs import heads
from ressl_tf.scaling.costs import input_core_seconds
from ressl_tf.scaling.costs import memory_per_device
from ressl_tf.scaling.simulation import expected_seconds
from ressl_tf.scaling.simulation import normal_jitter
from ressl_tf.scaling.simulation import simulate_failures
from ressl_tf.scaling.simulation import simulate_steps
from ressl_tf.scaling.simulation import young_interval


def plan(run, device, input_cost, reliability, devices, steps=400, seed=0):
    """What a run needs on a number of devices.

    Args:
        run: `Run`.
        device: `Device`.
        input_cost: `Input`.
        reliability: `Reliability`.
        devices: n, which must divide the batch.
        steps: number of simulated steps.
        seed: int, of the simulation.

    Returns:
        A dict: "devices", "batch_size", "hosts"; seconds of a step for each
        part alone ("compute", "overhead", "exchange", "cores", "storage"), the
        "bottleneck" among them and the simulated "step"; rates, memory and
        hours.

    Raises:
        ValueError: if `devices` does not divide the batch, or the run is
            shorter than a step.
    """
    if devices < 1 or run.batch_size % devices:
        raise ValueError(
            "`devices` must be at least 1 and divide the batch. "
            f"Received: devices={devices}, batch_size={run.batch_size}"
        )
    total_steps = run.epochs * (run.images // run.batch_size)
    if total_steps < 1:
        raise ValueError(
            "`images` times `epochs` must be at least one batch. "
            f"Received: images={run.images:g}, epochs={run.epochs:g}, "
            f"batch_size={run.batch_size}"
        )
    local = run.batch_size // devices
    hosts = math.ceil(devices / device.per_host)
    per_host = run.batch_size / hosts
    core_seconds = input_core_seconds(run.views, input_cost)

    resnet50 = BACKBONES["resnet50"].forward_flops
    forwards = forward_passes(run.views) * run.backbone.forward_flops
    forwards += 8 * run.queue_size * run.dim * len(run.views.student)
    parts = {
        "compute": local * forwards / (3 * resnet50 * device.images_per_second),
        "overhead": device.step_overhead,
        "exchange": exchange_seconds(run, device, devices),
        "cores": per_host
        * core_seconds
        / (device.host_cores * input_cost.usable_cores),
        "storage": max(
            per_host * input_cost.image_bytes / input_cost.storage_per_host,
            run.batch_size * input_cost.image_bytes / input_cost.storage_total,
        ),
    }
    on_device = parts["compute"] + parts["overhead"] + parts["exchange"]
    making = max(parts["cores"], parts["storage"])
    if making > on_device:
        names = ("cores", "storage")
    else:
        names = ("compute", "overhead", "exchange")
    ends = simulate_steps(
        np.random.default_rng(seed),
        steps=steps,
        devices=devices,
        hosts=hosts,
        device_seconds=parts["compute"] + parts["overhead"],
        shared_seconds=parts["exchange"],
        input_seconds=making,
        prefetch=input_cost.prefetch,
        device_jitter=normal_jitter(device.jitter),
        input_jitter=normal_jitter(input_cost.jitter),
        stall_probability=input_cost.stall_probability,
        stall_seconds=input_cost.stall,
    )
    # The first steps find full buffers, or none.
    skipped = steps // 4
    step = (ends[-1] - ends[skipped]) / (steps - 1 - skipped)

    work = total_steps * step
    mtbf = reliability.device_mtbf / devices
    save = reliability.save_overhead + (
        checkpoint_bytes(run) / input_cost.storage_per_host
    )
    interval = young_interval(save, mtbf)
    whole = expected_seconds(work, interval, save, reliability.restart, mtbf)
    rate = run.batch_size / step
    memory = memory_per_device(
        run.backbone,
        heads(run),
        batch_size=local,
        queue_size=run.queue_size,
        dim=run.dim,
        views=run.views,
        activation_bytes=run.activation_bytes,
    )
    return {
        "devices": devices,
        "batch_size": run.batch_size,
        "hosts": hosts,
        **parts,
        "bottleneck": max(names, key=parts.get),
        "step": step,
        "busy": parts["compute"] / step,
        "images_per_second": rate,
        "cores_needed": run.batch_size / on_device * core_seconds,
        "read_per_second": rate * input_cost.image_bytes,
        "read_total": total_steps * run.batch_size * input_cost.image_bytes,
        "exchanged": sum(size for _, size in exchanges(run).values()),
        "memory": memory["total"],
        "fits": memory["total"] <= device.memory,
        "checkpoint_interval": interval,
        "lost": 1 - work / whole,
        "hours": whole / HOUR,
        "device_hours": devices * whole / HOUR,
    }


def plans(
    *,
    devices,
    batch_sizes,
    device="a100",
    backbone="resnet50",
    views="one",
    float32=False,
    parameters=None,
    **run,
):
    """`plan` for every number of devices and batch that go together.

    Args:
        devices: list of numbers of devices.
        batch_sizes: list of B; pairs of less than an image each are left out.
        device: name in `DEVICES`.
        backbone: name in `BACKBONES`.
        views: name in `VIEWS`.
        float32: whether activations are float32, not bfloat16.
        parameters: {"device": {field: number}, "input": ...,
            "reliability": ...} to replace; other keys are left alone.
        **run: `images`, `epochs`, `queue_size` of `Run`.

    Returns:
        A list of what `plan` returns.

    Raises:
        ValueError: for an unknown name or field, or if nothing goes together.
    """
    parameters = parameters or {}
    run = Run(
        backbone=_named("backbone", BACKBONES, backbone),
        feature_dim=2048 if backbone == "resnet50" else 512,
        views=_named("views", VIEWS, views),
        activation_bytes=FLOAT32 if float32 else BFLOAT16,
        **run,
    )
    device = _replace(
        _named("device", DEVICES, device), parameters.get("device"), "device"
    )
    input_cost = _replace(Input(), parameters.get("input"), "input")
    reliability = _replace(
        Reliability(), parameters.get("reliability"), "reliability"
    )
    rows = [
        plan(
            run._replace(batch_size=batch_size),
            device,
            input_cost,
            reliability,
            number,
        )
        for number in devices
        for batch_size in batch_sizes
        if batch_size % number == 0
    ]
    if not rows:
        raise ValueError(
            "`batch_sizes` must hold a multiple of one of `devices`. "
            f"Received: batch_sizes={batch_sizes}, devices={devices}"
        )
    return rows


# Which assumption the simulated step depends on.
VARIATIONS = {
    "as assumed": {},
    "no jitter, no stalls": {
        "device": {"jitter": 0.0},
        "input": {"jitter": 0.0, "stall_probability": 0.0},
    },
    "jitter of devices 0.1": {"device": {"jitter": 0.1}},
    "ten times the stalls": {"input": {"stall_probability": 1e-3}},
    "... and prefetch 1": {"input": {"stall_probability": 1e-3, "prefetch": 1}},
    "... and prefetch 32": {
        "input": {"stall_probability": 1e-3, "prefetch": 32}
    },
    "overhead 5 ms": {"device": {"step_overhead": 0.005}},
    "latencies 1, 2.5 us": {
        "device": {"link_latency": 1e-6, "network_latency": 2.5e-6}
    },
    "256 cores a host": {"device": {"host_cores": 256}},
}


def variations(parameters=None, **kwargs):
    """`plans` under other assumptions.

    Args:
        parameters: as in `plans`; a variation comes on top.
        **kwargs: as in `plans`.

    Returns:
        {name of `VARIATIONS`: rows}.
    """
    result = {}
    for name, changes in VARIATIONS.items():
        merged = dict(parameters or {})
        for key, fields in changes.items():
            merged[key] = {**merged.get(key, {}), **fields}
        result[name] = plans(parameters=merged, **kwargs)
    return result


def failures(devices, reliability, save_seconds=6.0, seed=0):
    """Share of the time that failures and checkpoints cost, simulated.

    Args:
        devices: list of numbers of devices.
        reliability: `Reliability`.
        save_seconds: time of a checkpoint.
        seed: int.

    Returns:
        A list of dicts, for each number and for a quarter, one and four of
        Young's intervals: "devices", "mtbf", "interval", "simulated" and
        "expected" share (`expected_seconds`).
    """
    rows = []
    for number in devices:
        mtbf = reliability.device_mtbf / number
        for factor in (0.25, 1.0, 4.0):
            interval = factor * young_interval(save_seconds, mtbf)
            times = {
                "work": 1000 * interval,
                "interval": interval,
                "save_seconds": save_seconds,
                "restart_seconds": reliability.restart,
                "mtbf": mtbf,
            }
            simulated = simulate_failures(
                np.random.default_rng(seed), runs=500, **times
            )
            rows.append(
                {
                    "devices": number,
                    "mtbf": mtbf,
                    "interval": interval,
                    "simulated": 1 - times["work"] / simulated.mean(),
                    "expected": 1 - times["work"] / expected_seconds(**times),
                }
            )
    return rows


def _named(argument, choices, name):
    if name not in choices:
        raise ValueError(
            f"`{argument}` must be one of {', '.join(choices)}. "
            f"Received: {argument}={name!r}"
        )
    return choices[name]


def _replace(record, changes, key):
    for name, value in (changes or {}).items():
        if name not in record._fields:
            raise ValueError(
                f"`parameters` has an unknown field in {key!r}: it has "
                f"{', '.join(record._fields)}. Received: {name!r}"
            )
        if name != "source" and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise ValueError(
                f"`parameters` must hold numbers in {key!r}. "
                f"Received: {name}={value!r}"
            )
    return record._replace(**(changes or {}))


def table(rows):
    """Rows of `plan` as text."""
    lines = [
        "devices  batch  hosts   step/ms: compute  overhead  exchange  cores  "
        "storage  simulated  bottleneck"
    ]
    for row in rows:
        lines.append(
            f"{row['devices']:7d}{row['batch_size']:7d}{row['hosts']:7d}"
            + " " * 9
            + "".join(
                f"{1e3 * row[name]:{width}.1f}"
                for name, width in (
                    ("compute", 9),
                    ("overhead", 10),
                    ("exchange", 10),
                    ("cores", 7),
                    ("storage", 9),
                    ("step", 11),
                )
            )
            + f"  {row['bottleneck']}"
        )
    lines.append("")
    lines.append(
        "devices  batch    images/s  busy  cores needed  read GB/s  read TB  "
        "exchanged MB  memory GB   hours  device-hours  save every/min  lost"
    )
    for row in rows:
        lines.append(
            f"{row['devices']:7d}{row['batch_size']:7d}"
            f"{row['images_per_second']:12.0f}"
            f"{100 * row['busy']:5.0f}%"
            f"{row['cores_needed']:14.0f}"
            f"{row['read_per_second'] / 1e9:11.2f}"
            f"{row['read_total'] / 1e12:9.1f}"
            f"{row['exchanged'] / 1e6:14.1f}"
            f"{row['memory'] / 1e9:10.1f}{' ' if row['fits'] else '!'}"
            f"{row['hours']:8.1f}"
            f"{row['device_hours']:14.0f}"
            f"{row['checkpoint_interval'] / 60:16.0f}"
            f"{100 * row['lost']:5.1f}%"
        )
    return "\n".join(lines)


def variations_table(varied):
    """What `variations` returns as text: the simulated steps in ms."""
    rows = varied["as assumed"]
    lines = ["simulated step in ms, of devices/batch:"]
    lines.append(
        " " * 24
        + "".join(
            f"{row['devices']:7d}/{row['batch_size']:<6d}" for row in rows
        )
    )
    for name, rows in varied.items():
        cells = "".join(f"{1e3 * row['step']:12.1f}  " for row in rows)
        lines.append(f"{name:24}{cells}".rstrip())
    return "\n".join(lines)


def failures_table(rows):
    """What `failures` returns as text."""
    lines = ["devices  hours to a failure  save every/min  lost  (formula)"]
    for row in rows:
        lines.append(
            f"{row['devices']:7d}{row['mtbf'] / HOUR:20.0f}"
            f"{row['interval'] / 60:16.1f}{100 * row['simulated']:5.2f}%"
            f"{100 * row['expected']:9.2f}%"
        )
    return "\n".join(lines)
