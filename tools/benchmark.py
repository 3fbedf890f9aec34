"""What the method costs, measured on this machine.

python -m tools.benchmark queue
python -m tools.benchmark memory
python -m tools.benchmark host --images=FOLDER

Prints a table; --json=FILE writes the numbers, too. Ratios are taken within
one run: on a machine that others use, absolute times say little.
"""

import json
import sys
from pathlib import Path

from absl import flags

from tools import command

JSON = flags.DEFINE_string("json", None, "File for the numbers.")
ROUNDS = flags.DEFINE_integer(
    "rounds",
    10,
    "For queue and host: how often everything is measured.",
    lower_bound=1,
)
IMAGES = flags.DEFINE_string("images", None, "For host: folder of JPEG files.")
BACKBONE = flags.DEFINE_string("backbone", "resnet18", "Of the small model.")
WIDTH = flags.DEFINE_integer("width", 16, "Of the backbone.", lower_bound=1)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 32, "Height and width of the views.", lower_bound=8
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "B.", lower_bound=2)
DIM = flags.DEFINE_integer("dim", 128, "Embedding size D.", lower_bound=1)
QUEUE_SIZES = flags.DEFINE_list(
    "queue_sizes", "4096,16384,65536,131072", "For queue: values of K."
)


def measure_queue():
    from ressl_tf.benchmark import queue

    sizes = [_positive(size) for size in QUEUE_SIZES.value]
    return queue, queue.measure(_setup(batch_size=256), sizes, ROUNDS.value)


def measure_memory():
    from ressl_tf.benchmark import memory

    return memory, memory.measure(_setup(batch_size=128, queue_size=32768))


def measure_host():
    from ressl_tf.benchmark import host

    if IMAGES.value is None:
        raise ValueError(
            "`--images` must name a folder of JPEG files. Received: none"
        )
    return host, host.measure(IMAGES.value, rounds=ROUNDS.value)


SUBJECTS = {
    "queue": measure_queue,
    "memory": measure_memory,
    "host": measure_host,
}


def main():
    if SUBJECT not in SUBJECTS:
        raise ValueError(
            "The first argument must be a subject: "
            f"{', '.join(SUBJECTS)}. Received: {SUBJECT!r}"
        )
    module, result = SUBJECTS[SUBJECT]()
    print(module.table(result))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(result, indent=1) + "\n")


def _setup(batch_size, **fields):
    from ressl_tf.benchmark import setup

    return setup.Setup(
        backbone=BACKBONE.value,
        width=WIDTH.value,
        image_size=IMAGE_SIZE.value,
        batch_size=BATCH_SIZE.value or batch_size,
        dim=DIM.value,
        **fields,
    )


def _positive(text):
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(
            "`--queue_sizes` must be whole numbers from 1, with commas. "
            f"Received: {text!r}"
        )
    return int(text)


if __name__ == "__main__":
    # The other tools take flags alone; here a word says what is measured.
    SUBJECT = None
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        SUBJECT = sys.argv.pop(1)
    command.run(main)
