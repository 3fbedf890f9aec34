"""Synchronous steps and failing runs, simulated; and their closed forms."""

import math

import numpy as np


def normal_jitter(deviation):
    """Factors around 1 with this standard deviation, none below 0."""

    def draw(generator, shape):
        return np.maximum(generator.normal(1.0, deviation, shape), 0.0)

    return draw


def simulate_steps(
    generator,
    *,
    steps,
    devices,
    hosts,
    device_seconds,
    shared_seconds=0.0,
    input_seconds=0.0,
    prefetch=1,
    device_jitter=None,
    input_jitter=None,
    stall_probability=0.0,
    stall_seconds=0.0,
):
    """Simulates synchronous steps fed by hosts with finite buffers.

    Each host makes its part of the batches one after the other and rests
    while it is `prefetch` ahead. A step begins when the last one is over and
    the slowest host has its part; it takes as long as the slowest device,
    and then the exchange.

    Args:
        generator: `numpy.random.Generator`.
        steps: number of steps.
        devices: number of devices.
        hosts: number of hosts.
        device_seconds: mean time of a step on a device.
        shared_seconds: time of the exchange.
        input_seconds: mean time in which a host makes its part of a batch.
        prefetch: number of batches that a host makes ahead, at least 1.
        device_jitter: function (generator, shape) -> factors of
            `device_seconds`. Defaults to None: always 1.
        input_jitter: the same, of `input_seconds`.
        stall_probability: probability, for each batch of each host, that its
            reading stalls.
        stall_seconds: mean length of a stall, exponential.

    Returns:
        (steps,) float64, the time at which each step ends.
    """
    device_times = np.full(steps, device_seconds)
    if device_jitter is not None:
        factors = device_jitter(generator, (steps, devices))
        device_times = device_seconds * factors.max(axis=1)
    input_times = np.full((steps, hosts), input_seconds)
    if input_jitter is not None:
        input_times *= input_jitter(generator, (steps, hosts))
    if stall_probability > 0:
        stalls = generator.random((steps, hosts)) < stall_probability
        input_times += stalls * generator.exponential(
            stall_seconds, (steps, hosts)
        )
    ends, starts = np.zeros(steps), np.zeros(steps)
    ready, end = np.zeros(hosts), 0.0
    for step in range(steps):
        # The place of the batch that began `prefetch` steps ago is free.
        free = starts[step - prefetch] if step >= prefetch else 0.0
        ready = np.maximum(ready, free) + input_times[step]
        starts[step] = max(end, ready.max())
        end = starts[step] + device_times[step] + shared_seconds
        ends[step] = end
    return ends


def young_interval(save_seconds, mtbf):
    """Interval between checkpoints that loses least, to first order.

    sqrt(2 save mtbf): J. W. Young, A first order approximation to the optimum
    checkpoint interval, Communications of the ACM, 1974.
    """
    return math.sqrt(2 * save_seconds * mtbf)


def expected_seconds(work, interval, save_seconds, restart_seconds, mtbf):
    """Mean time to finish under exponential failures.

    mtbf e^(restart / mtbf) (e^((interval + save) / mtbf) - 1) for each
    interval: J. T. Daly, A higher order estimate of the optimum checkpoint
    interval for restart dumps, Future Generation Computer Systems, 2006.
    """
    return (
        work
        / interval
        * mtbf
        * math.exp(restart_seconds / mtbf)
        * math.expm1((interval + save_seconds) / mtbf)
    )


def simulate_failures(
    generator,
    *,
    work,
    interval,
    save_seconds,
    restart_seconds,
    mtbf,
    runs=1000,
):
    """Simulates runs that fail and resume from their last checkpoint.

    Args:
        generator: `numpy.random.Generator`.
        work: seconds of computing.
        interval: seconds of computing between checkpoints; the nearest that
            divides `work` is taken.
        save_seconds: time of a checkpoint, during which nothing else is done.
        restart_seconds: time from a failure to computing; may fail itself.
        mtbf: mean time between failures of the whole job, exponential.
        runs: number of simulated runs.

    Returns:
        (runs,) float64, the time in which each run is finished.
    """
    segments = max(1, round(work / interval))
    length = work / segments + save_seconds
    remaining = np.full(runs, segments)
    elapsed = np.zeros(runs)
    lead = 0.0  # the first start is not counted
    while (remaining > 0).any():
        open_runs = remaining > 0
        up = generator.exponential(mtbf, runs)
        done = np.maximum(np.floor((up - lead) / length), 0)
        finished = done >= remaining
        time = np.where(finished, lead + remaining * length, up)
        elapsed += np.where(open_runs, time, 0.0)
        remaining = np.where(finished, 0, remaining - done)
        lead = restart_seconds
    return elapsed
