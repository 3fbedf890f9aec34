"""The processes of a sweep: a job's tools one after the other, noted on disk.

Each job is independent: one that fails is noted and the others go on; what is
done is not done again.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from ressl_tf import workdir as workdir_lib
from tools import command

LAUNCH = (sys.executable, "-m")
LOG = "log.txt"
_NOTES = "sweep.json"
_POLL_SECONDS = 1.0


class Step(NamedTuple):
    """One process.

    Attributes:
        tool: module of tools/.
        arguments: tuple of its flags.
        output: file or folder, within the job's folder, that it leaves.
    """

    tool: str
    arguments: tuple
    output: str

    def command(self, launch=LAUNCH):
        return [*launch, f"tools.{self.tool}", *self.arguments]


class Job(NamedTuple):
    """Processes that follow each other, each needing the one before.

    Attributes:
        name: for messages.
        folder: `Path` that they write into; log.txt has all they print.
        steps: tuple of `Step`.
    """

    name: str
    folder: Path
    steps: tuple

    def to_do(self):
        """The steps that are left."""
        done = _read_notes(self.folder)["done"]
        for number, step in enumerate(self.steps):
            is_there = (self.folder / step.output).exists()
            if step.tool not in done or not is_there:
                return self.steps[number:]
        return ()

    def state(self):
        """("done", "failed", "unfinished" or "waiting"; its error or "")."""
        if not self.to_do():
            return "done", ""
        error = _read_notes(self.folder)["error"]
        if error:
            return "failed", error
        started = (self.folder / _NOTES).exists()
        return "unfinished" if started else "waiting", ""

    def minutes(self):
        """How long its processes took so far."""
        return sum(_read_notes(self.folder)["seconds"].values()) / 60


class Runner:
    """Runs jobs; a SIGTERM, SIGINT (Ctrl-C) or SIGHUP ends them.

    The signal is passed on to the process that runs, which saves; a second one
    ends it at once.

    Args:
        launch: what starts a tool's module. Defaults to this Python.
        watch: called every second with a job, a step and its process.

    Attributes:
        stopped: whether a signal has arrived.
    """

    def __init__(self, launch=LAUNCH, watch=lambda job, step: None):
        self.launch = launch
        self.watch = watch
        self.stopped = False
        self._process = None

    def run(self, jobs):
        """Yields each job when it has ended, done or not.

        After a signal no other is started.
        """
        with self._signals():
            for job in jobs:
                if self.stopped:
                    return
                self._run(job)
                yield job

    def _run(self, job):
        steps = job.to_do()
        if not steps:
            return
        notes = _read_notes(job.folder)
        notes["error"] = ""
        for step in steps:
            if step.tool in notes["done"]:
                notes["done"].remove(step.tool)
        workdir_lib.write_json(job.folder / _NOTES, notes)
        for step in steps:
            start = time.monotonic()
            code, last_line = self._call(job, step)
            seconds = notes["seconds"].get(step.tool, 0.0)
            seconds += time.monotonic() - start
            notes["seconds"][step.tool] = round(seconds, 3)
            if code == 0:
                notes["done"].append(step.tool)
            elif not self.stopped:
                notes["error"] = (
                    f"tools.{step.tool} ended with code {code}: "
                    f"{last_line or 'it said nothing'}"
                )
            workdir_lib.write_json(job.folder / _NOTES, notes)
            if code or self.stopped:
                return

    def _call(self, job, step):
        """Exit code and the last line of the error output."""
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        paths = [str(command.ROOT), environment.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        lines = [""]
        with open(job.folder / LOG, "a", errors="replace") as log:
            log.write(f"$ {shlex.join(step.command(self.launch))}\n")
            log.flush()
            process = subprocess.Popen(
                step.command(self.launch),
                env=environment,
                stdout=log,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # Or a Ctrl-C would reach it twice, and end it unsaved.
                start_new_session=True,
            )
            self._process = process
            if self.stopped:
                process.terminate()
            reader = threading.Thread(
                target=_copy, args=(process.stderr, log, lines)
            )
            reader.start()
            while True:
                try:
                    code = process.wait(timeout=_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    self.watch(job, step)
            reader.join()
        self._process = None
        return code, lines[-1]

    @contextlib.contextmanager
    def _signals(self):
        def stop(number, frame):
            self.stopped = True
            if self._process is not None:
                self._process.terminate()

        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            # As nohup leaves SIGHUP.
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        previous = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _copy(stream, log, lines):
    """Copies lines into the log; keeps the last that says something."""
    with stream:
        for line in stream:
            log.write(line)
            log.flush()
            if line.strip():
                lines[-1] = line.strip()


def _read_notes(folder):
    path = folder / _NOTES
    if not path.exists():
        return {"done": [], "seconds": {}, "error": ""}
    return json.loads(path.read_text())
