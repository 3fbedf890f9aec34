"""Time ratios that survive a busy machine."""

import time

import numpy as np


def interleave(variants, rounds, warmup=3):
    """Runs all variants by turns: A B C, B C A, C A B, ...

    What else the machine does then falls on all of them alike, and a ratio
    taken within a round says more than either time.

    Args:
        variants: {name: function without arguments}; each is to return only
            when its work is done.
        rounds: how often each is measured, at least 1.
        warmup: how often in a row each is run before that: traces, caches.

    Returns:
        {name: (rounds, 2) float64 array}: seconds of wall time, seconds of
        CPU time of all threads of this process.

    Raises:
        ValueError: if `rounds` is smaller than 1.
    """
    if rounds < 1:
        raise ValueError(
            "`rounds` must be at least 1: how often each variant is measured. "
            f"Received: rounds={rounds}"
        )
    names = list(variants)
    for name in names:
        for _ in range(warmup):
            variants[name]()
    times = {name: np.zeros((rounds, 2)) for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name]()
            times[name][number] = (
                time.perf_counter() - wall,
                time.process_time() - cpu,
            )
    return times


def median_ratios(times, reference):
    """Median over the rounds of each variant's time over the reference's.

    Args:
        times: what `interleave` returns.
        reference: name of one of its variants.

    Returns:
        {name: {"wall": ratio, "cpu": ratio}}; 1.0 for the reference.
    """
    return {
        name: dict(
            zip(
                ("wall", "cpu"),
                np.median(values / times[reference], axis=0).tolist(),
                strict=True,
            )
        )
        for name, values in times.items()
    }
