"""Tools as users call them, each in a process of its own.

TensorFlow takes six seconds to load, and most tools less to do what a test asks
for. So `call` forks a process that has loaded it and done nothing else; what a
tool prints and how it ends is the same. `start` is a command from scratch.
"""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_SERVER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from tools import command
command._import_tensorflow()
import ressl_tf
import runpy, traceback
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    code = 1
    try:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            path = os.devnull if name == "stdin" else request[name]
            flags = os.O_RDONLY if name == "stdin" else os.O_WRONLY
            os.dup2(os.open(path, flags), number)
        sys.argv = ["", *request["flags"]]
        sys.modules.pop("tools.command")  # its flags and handlers are a run's
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
"""


def start(tool, *flags):
    """A command as a user starts it, a `subprocess.Popen`."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tools.{tool}", *map(str, flags)],
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs do not hear Ctrl-C, nor do their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process):
    """Exit code, stdout and the lines of stderr, which are all ours."""
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, _lines(stderr)


def call(tool, *flags):
    """Exit code, stdout and the lines of stderr, which are all ours."""
    server = _server()
    paths = {name: os.memfd_create(name) for name in ("stdout", "stderr")}
    request = {
        "module": f"tools.{tool}",
        "flags": list(map(str, flags)),
        **{k: f"/proc/{os.getpid()}/fd/{fd}" for k, fd in paths.items()},
    }
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    texts = {}
    for name, descriptor in paths.items():
        with open(descriptor) as file:
            file.seek(0)
            texts[name] = file.read()
    return code, texts["stdout"], _lines(texts["stderr"])


@functools.cache
def _server():
    """The process that is forked; it ends with this one, at its stdin's end."""
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(ROOT)],
        cwd=ROOT,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _environment():
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # as a user has it
    return environment


def _lines(stderr):
    lines = stderr.splitlines()
    for line in lines:
        assert line.startswith(("INFO: ", "WARNING: ", "error: ")), stderr
    return lines


def assert_mistake(result, *parts):
    """A user's mistake: exit code 2, one line, with these parts in it."""
    code, stdout, lines = result
    assert (code, len(lines), stdout) == (2, 1, ""), lines
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
