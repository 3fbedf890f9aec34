"""What the method costs, measured on this machine.

python -m tools.benchmark input [--images=FOLDER]
python -m tools.benchmark step
python -m tools.benchmark precision
python -m tools.benchmark end_to_end
python -m tools.benchmark queue
python -m tools.benchmark memory
python -m tools.benchmark host --images=FOLDER
python -m tools.benchmark evaluation
python -m tools.benchmark consumers --workdir=DIR/export/NAME

Prints a table; --json=FILE writes the numbers, too. Ratios are taken within
one run: on a machine that others use, absolute times say little.
"""

import json
from pathlib import Path

from absl import flags

from tools import command

JSON = flags.DEFINE_string("json", None, "File for the numbers.")
ROUNDS = flags.DEFINE_integer(
    "rounds",
    10,
    "How often everything is measured; not for memory.",
    lower_bound=1,
)
IMAGES = flags.DEFINE_string(
    "images", None, "For host and input: folder of JPEG files."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "For consumers: an export (DIR/export/NAME)."
)
SIZES = flags.DEFINE_list("sizes", "32,224", "For input: sizes of the views.")
STEPS = flags.DEFINE_integer(
    "steps", 10, "For end_to_end: batches of a measurement.", lower_bound=1
)
BACKBONE = flags.DEFINE_string("backbone", "resnet18", "Of the small model.")
WIDTH = flags.DEFINE_integer("width", 16, "Of the backbone.", lower_bound=1)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 32, "Height and width of the views.", lower_bound=8
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "B.", lower_bound=2)
DIM = flags.DEFINE_integer("dim", 128, "Embedding size D.", lower_bound=1)
STEM = flags.DEFINE_enum(
    "stem", "cifar", ["imagenet", "small", "cifar"], "Of the backbone."
)
QUEUE_SIZES = flags.DEFINE_list(
    "queue_sizes",
    None,
    "For queue and step: values of K; default: 4096,16384,65536,131072 and "
    "4096,65536.",
)


def measure_input():
    from ressl_tf.benchmark import input as views

    sizes = command.positive_numbers("sizes", SIZES.value)
    return views, views.measure(sizes, IMAGES.value, ROUNDS.value)


def measure_step():
    from ressl_tf.benchmark import step

    sizes = _queue_sizes(step.QUEUE_SIZES)
    return step, step.measure(_setup(batch_size=256), sizes, ROUNDS.value)


def measure_precision():
    from ressl_tf.benchmark import precision

    setup = _setup(batch_size=256)
    return precision, precision.measure(setup, rounds=ROUNDS.value)


def measure_end_to_end():
    from ressl_tf.benchmark import end_to_end

    setup = _setup(batch_size=256)
    return end_to_end, end_to_end.measure(setup, ROUNDS.value, STEPS.value)


def measure_queue():
    from ressl_tf.benchmark import queue

    sizes = _queue_sizes(queue.QUEUE_SIZES)
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


def measure_evaluation():
    from ressl_tf.benchmark import evaluation

    return evaluation, evaluation.measure(_setup(batch_size=256), ROUNDS.value)


def measure_consumers():
    from ressl_tf.benchmark import consumers

    if WORKDIR.value is None:
        raise ValueError(
            "`--workdir` must be an export (DIR/export/NAME). Received: none"
        )
    return consumers, consumers.measure(
        WORKDIR.value, ROUNDS.value, make_torch=_make_torch
    )


SUBJECTS = {
    "input": measure_input,
    "step": measure_step,
    "precision": measure_precision,
    "end_to_end": measure_end_to_end,
    "queue": measure_queue,
    "memory": measure_memory,
    "host": measure_host,
    "evaluation": measure_evaluation,
    "consumers": measure_consumers,
}


def main(subject):
    module, result = SUBJECTS[subject]()
    print(module.table(result))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(result, indent=1) + "\n")


def _make_torch(name, width, stem):
    """A ResNet in torch, of the tests, which have every width and stem."""
    try:
        from tests import torch_networks
    except ImportError:  # installed without them
        return None
    if name not in torch_networks.RESNETS:
        return None
    return torch_networks.ResNet(name, None, width, stem)


def _queue_sizes(default):
    if QUEUE_SIZES.value is None:
        return default
    return command.positive_numbers("queue_sizes", QUEUE_SIZES.value)


def _setup(batch_size, **fields):
    from ressl_tf.benchmark import setup

    return setup.Setup(
        backbone=BACKBONE.value,
        width=WIDTH.value,
        stem=STEM.value,
        image_size=IMAGE_SIZE.value,
        batch_size=BATCH_SIZE.value or batch_size,
        dim=DIM.value,
        **fields,
    )


if __name__ == "__main__":
    command.run(main, words=SUBJECTS)
