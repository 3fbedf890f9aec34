"""The workers of a cluster meet before TensorFlow connects them.

TensorFlow waits for a worker that does not come without a word and without an
end, in native code: no other Python thread runs meanwhile, and SIGTERM is
caught. So the workers first look for each other here, where waiting can be
told and ended; and a process of its own watches the moment in which
TensorFlow connects them. That process runs this file as a program, which is
why the file needs the standard library alone.
"""

import concurrent.futures
import contextlib
import faulthandler
import json
import logging
import os
import select
import socket
import subprocess
import sys
import time

logger = logging.getLogger("ressl_tf")

WARNING_INTERVAL = 30.0  # seconds between two messages about who is missing
_ROUND = 1.0  # seconds between two looks
_CONNECT_TIMEOUT = 2.0  # seconds; a firewall that drops packets never answers


def describe(peers):
    """`{"worker 1": "10.0.0.2:2222"}` -> "worker 1 (10.0.0.2:2222)"."""
    return ", ".join(f"{name} ({address})" for name, address in peers.items())


def unreachable(peers):
    """Those of `peers` at whose address nothing accepts a connection now.

    Args:
        peers: dict of name -> "host:port".

    Returns:
        dict, a part of `peers` in the same order.
    """
    if not peers:
        return {}
    with concurrent.futures.ThreadPoolExecutor(len(peers)) as pool:
        answers = list(pool.map(_accepts, peers.values()))
    return {
        name: address
        for (name, address), answer in zip(peers.items(), answers, strict=True)
        if not answer
    }


def meet(port, peers, timeout):
    """Listens on the own port until each peer can be reached, or `timeout`.

    A peer whose TensorFlow server runs already has met the others before: it
    accepts connections too, and so counts. A warning names the missing ones
    every `WARNING_INTERVAL`. On return the port is free for TensorFlow.

    Args:
        port: int, the own port.
        peers: dict of name -> "host:port", the other workers.
        timeout: seconds.

    Returns:
        dict of the peers that are missing at the end; empty: all have met.

    Raises:
        OSError: the own port cannot be listened on.
    """
    with socket.create_server(("", port), backlog=128) as listener:
        listener.setblocking(False)
        started = time.monotonic()
        next_warning = WARNING_INTERVAL
        while True:
            _accept_all(listener)
            missing = unreachable(peers)
            waited = time.monotonic() - started
            if not missing or waited >= timeout:
                return missing
            if waited >= next_warning:
                logger.warning(_waiting_for(missing, waited, timeout))
                next_warning += WARNING_INTERVAL
            time.sleep(max(0.0, min(_ROUND, timeout - waited)))


@contextlib.contextmanager
def watched(peers, timeout):
    """While the body runs: messages as above, and an end at `timeout`.

    For a body that may hang in native code. At the timeout the process ends
    with exit code 1, after a line on stderr that says why.

    Args:
        peers: dict of name -> "host:port", the other workers.
        timeout: seconds.
    """
    deadline = time.time() + timeout
    program = [sys.executable, "-I", os.path.abspath(__file__)]
    arguments = json.dumps([peers, timeout, WARNING_INTERVAL, deadline])
    with (
        open(os.devnull, "w") as nowhere,
        # Leaving the `with` closes its input, at which it ends.
        subprocess.Popen([*program, arguments], stdin=subprocess.PIPE),
    ):
        # The only timer of the standard library that ends a process whose
        # interpreter is blocked. Later than the watcher's last words.
        faulthandler.dump_traceback_later(timeout + 2, True, nowhere, True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _watch(peers, timeout, interval, deadline):
    """The watcher's program: speaks until its input is closed."""
    started = deadline - timeout
    next_warning = started + interval
    while True:
        pause = max(0.0, min(next_warning, deadline) - time.time())
        if select.select([sys.stdin], [], [], pause)[0]:
            return
        missing = unreachable(peers)
        waited = time.time() - started
        if time.time() >= deadline:
            cause = (
                f"{describe(missing)} no longer answers: see its own output"
                if missing
                else "all of them can be reached, but may differ in TF_CONFIG "
                "or in TensorFlow's version"
            )
            line = (
                "error: TensorFlow did not connect the workers within "
                f"{timeout:.0f} s: {cause}. End all workers and start them "
                "again with the same commands."
            )
        elif missing:
            line = f"WARNING: {_waiting_for(missing, waited, timeout)}"
        else:
            line = (
                "WARNING: TensorFlow is still connecting the workers; "
                f"{waited:.0f} s of {timeout:.0f} s"
            )
        print(line, file=sys.stderr, flush=True)
        if time.time() >= deadline:
            return
        next_warning += interval


def _waiting_for(missing, waited, timeout):
    return f"waiting for {describe(missing)}; {waited:.0f} s of {timeout:.0f} s"


def _accepts(address):
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_TIMEOUT) as s:
            # On one machine a socket can, by chance, connect to itself.
            return s.getsockname() != s.getpeername()
    except OSError:
        return False


def _accept_all(listener):
    """Empties the queue of those who looked for us, so that it never fills."""
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


if __name__ == "__main__":
    _watch(*json.loads(sys.argv[1]))
