"""How well making batches and training on them overlap."""

from functools import partial

import numpy as np
import tensorflow as tf
from tensorflow import keras

from ressl_tf import data
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing

_PICTURES = 2048


def measure(setup, rounds=10, steps=10):
    """Images a second of the step, of its input, and of both in `fit`.

    Where the same cores make the batches and train on them, as on a CPU, both
    together can at best take the sum of both times; with a GPU, the longer.

    Args:
        setup: `Setup`; all student views are strong ones.
        rounds: how often everything is measured, by turns.
        steps: batches that one measurement takes.

    Returns:
        {"setup", "rounds", "steps", "shared_cores": whether the CPU trains,
        "images_per_second": {"step", "input", "both", "limit"}, "ratios":
        {"to_slower", "to_limit"}}. "step" is `fit` on one batch that is always
        the same, "both" is `fit` on the pipeline, "limit" what both could
        reach: 1 / (1 / input + 1 / step) with shared cores, else the slower
        of the two. The ratios are those of "both" to the slower and to the
        limit. All are medians over the rounds of wall time.

    Raises:
        ValueError: if `rounds` is smaller than 1, and as `make_train_dataset`.
    """
    model = setup_lib.make_model(setup)
    views = setup_lib.make_views(setup.image_size)
    dataset = data.make_train_dataset(
        setup_lib.make_pictures(
            max(_PICTURES, setup.batch_size),
            setup_lib.stored_size(setup.image_size),
        ),
        batch_size=setup.batch_size,
        student_views=(views["strong"],) * setup.crops,
        teacher_views=(views["weak"],),
        seed=0,
    )
    batch = setup_lib.make_batch(setup)
    same = tf.data.Dataset.from_tensors(batch).repeat()
    stream = timing.Stream(dataset)

    # A pipeline that starts, and fills its buffers, is not timed.
    settle = max(2, steps // 4)

    def fit(dataset):
        clock = _StepClock(settle)
        model.fit(
            dataset,
            steps_per_epoch=settle + steps,
            callbacks=[clock],
            shuffle=False,
            verbose=0,
        )
        return clock.seconds

    variants = {
        "step": partial(fit, same),
        "input": partial(stream.draw, steps),
        "both": partial(fit, dataset),
    }
    times = timing.interleave(variants, rounds, warmup=1)
    shared = not tf.config.list_physical_devices("GPU")
    return {
        "setup": setup._asdict(),
        "rounds": rounds,
        "steps": steps,
        "shared_cores": shared,
        **_compare(times, setup.batch_size * steps, shared),
    }


def table(result):
    """`measure`'s result as text."""
    per_second, ratios = result["images_per_second"], result["ratios"]
    limit = "the slower"
    if result["shared_cores"]:
        limit = "1 / (1/input + 1/step): they share the cores"
    sizes = result["setup"]
    return "\n".join(
        [
            "images/s",
            f"step alone     {per_second['step']:10.0f}",
            f"input alone    {per_second['input']:10.0f}",
            f"both, in fit   {per_second['both']:10.0f}",
            f"limit          {per_second['limit']:10.0f}  {limit}",
            f"both / limit   {ratios['to_limit']:10.2f}",
            f"both / slower  {ratios['to_slower']:10.2f}",
            f"Wall time; {sizes['backbone']}, width {sizes['width']}, "
            f"{sizes['image_size']} px, B = {sizes['batch_size']}, "
            f"K = {sizes['queue_size']}, D = {sizes['dim']}; "
            f"{result['steps']} steps, median of {result['rounds']} rounds.",
        ]
    )


class _StepClock(keras.callbacks.Callback):
    """Times a `fit` from behind its first steps to its end."""

    def __init__(self, settle):
        super().__init__()
        self._settle = settle
        self.seconds = None

    def on_train_batch_end(self, batch, logs=None):
        if batch == self._settle - 1:
            tf.test.experimental.sync_devices()
            self._clock = timing.Clock()

    def on_train_end(self, logs=None):
        tf.test.experimental.sync_devices()
        self.seconds = self._clock.read()


def _compare(times, images, shared_cores):
    """Rates and ratios from what `timing.interleave` returned."""
    walls = {name: values[:, 0] for name, values in times.items()}
    slower = np.maximum(walls["step"], walls["input"])
    walls["limit"] = slower
    if shared_cores:
        walls["limit"] = walls["step"] + walls["input"]
    return {
        "images_per_second": {
            name: float(np.median(images / wall))
            for name, wall in walls.items()
        },
        "ratios": {
            "to_slower": float(np.median(slower / walls["both"])),
            "to_limit": float(np.median(walls["limit"] / walls["both"])),
        },
    }
