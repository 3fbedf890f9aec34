"""How every tool starts and ends: quiet logs, one-line errors, exit codes.

0 done, 2 the user's mistake (one line), 1 anything else.
"""

import logging
import os
import sys
import traceback
from pathlib import Path

from absl import app
from absl import flags

# Before TensorFlow loads: its own start-up messages say nothing to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def run(main):
    """Runs `main(argv)` under absl; a ValueError is the user's mistake."""
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr
    )

    def wrapped(argv):
        try:
            main(argv)
        except ValueError as error:
            if not _is_ours(error):
                raise
            fail(error)

    app.run(wrapped, flags_parser=_parse)


def fail(message):
    """Prints the mistake in one line and exits 2."""
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def refuse_positional(argv):
    """A flag without its dashes is a mistake, not something to ignore."""
    if len(argv) > 1:
        raise ValueError(
            "Only flags are taken, as --name=value. "
            f"Received: {' '.join(argv[1:])}"
        )


def _is_ours(error):
    """Whether this project raised it: one of a library's is a bug."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    root = Path(__file__).resolve().parent.parent
    return raised_in.resolve().parent in (
        root / "tools",
        root / "configs",
        *(path.parent for path in (root / "ressl_tf").rglob("*.py")),
    )


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        fail(error)
