"""Time ratios that survive a busy machine."""

import math
import time
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Seconds(NamedTuple):
    """Of wall time, and of CPU time of all threads of this process."""

    wall: float
    cpu: float


class Clock:
    """Runs from when it is made."""

    def __init__(self):
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self):
        """`Seconds` since then."""
        return Seconds(
            time.perf_counter() - self._wall, time.process_time() - self._cpu
        )


def interleave(variants, rounds, warmup=3):
    """Runs all variants by turns: A B C, B C A, C A B, ...

    What else the machine does then falls on all of them alike, and a ratio
    taken within a round says more than either time.

    Args:
        variants: {name: function without arguments}; each is to return only
            when its work is done. One that returns `Seconds` has timed itself,
            and left out what does not belong to its work.
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
            clock = Clock()
            result = variants[name]()
            own = isinstance(result, Seconds)
            times[name][number] = result if own else clock.read()
    return times


class Stream:
    """An iterable without end, and how long its elements take to make.

    While nobody draws, tf.data goes on in the background, and fills buffers
    of which it chooses the size. So every measurement starts an iterator of
    its own, and draws without a pause: nothing can lie ready. The start, and
    what tf.data learns in it, is not timed. (To draw a kept iterator until an
    element has to be waited for does not do: on a busy machine one that lies
    ready takes as long.)

    Args:
        elements: the iterable.
        at_least: elements to learn its speed from. Some come in bursts, as
            many as there are cores.

    Attributes:
        seconds: wall time an element takes, about.
    """

    def __init__(self, elements, at_least=8):
        self._elements = elements
        self._settle = at_least
        self.draw(1)  # traces, compiles
        self.seconds = self.draw(at_least).wall / at_least

    def draw(self, number):
        """`Seconds` that `number` elements take to be made and drawn."""
        iterator = iter(self._elements)
        for _ in range(max(self._settle, number // 4)):
            next(iterator)
        clock = Clock()
        for _ in range(number):
            next(iterator)
        return clock.read()


def interleave_streams(streams, rounds, seconds=1.0, at_least=8):
    """Draws from several streams by turns: what does one item of each take?

    Args:
        streams: {name: (iterable without end, items an element counts for)}.
        rounds: how often each is measured, at least 1.
        seconds: how long one measurement takes, about.
        at_least: elements that one measurement draws, however long it takes.

    Returns:
        {name: (rounds, 2) float64 array}: seconds of wall time and of CPU
        time for one item.

    Raises:
        ValueError: if `rounds` is smaller than 1.
    """
    drawn, variants = {}, {}
    for name, (elements, _) in streams.items():
        stream = Stream(elements, at_least)
        drawn[name] = max(at_least, math.ceil(seconds / stream.seconds))
        variants[name] = partial(stream.draw, drawn[name])
    times = interleave(variants, rounds, warmup=0)
    return {
        name: times[name] / (drawn[name] * items)
        for name, (_, items) in streams.items()
    }


def waiting(function, *arguments):
    """A variant that calls it and waits: a GPU runs ahead of Python."""

    def call():
        function(*arguments)
        tf.test.experimental.sync_devices()

    return call


def rates(times):
    """Items a second of what took `times`, medians over the rounds.

    Args:
        times: {name: (rounds, 2) array} of seconds for one item.

    Returns:
        {name: {"wall": items a second, "cpu": items a second of one core}}.
    """
    return {name: medians(1.0 / values) for name, values in times.items()}


def median_ratios(times, reference):
    """Median over the rounds of each variant's time over the reference's.

    Args:
        times: what `interleave` returns.
        reference: name of one of its variants.

    Returns:
        {name: {"wall": ratio, "cpu": ratio}}; 1.0 for the reference.
    """
    return {
        name: medians(values / times[reference])
        for name, values in times.items()
    }


def medians(values):
    """Medians over the rounds of a (rounds, 2) array, {"wall", "cpu"}."""
    return _wall_and_cpu(np.median(values, axis=0))


def _wall_and_cpu(pair):
    return dict(zip(("wall", "cpu"), map(float, pair), strict=True))
