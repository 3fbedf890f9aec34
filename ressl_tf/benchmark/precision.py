"""What half precision and XLA do to a step's speed."""

import numpy as np
import tensorflow as tf
from tensorflow import keras

from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing

# name -> (precision policy, XLA)
VARIANTS = {
    "float32": ("float32", False),
    "float32, XLA": ("float32", True),
    "mixed_bfloat16": ("mixed_bfloat16", False),
    "mixed_bfloat16, XLA": ("mixed_bfloat16", True),
    "mixed_float16": ("mixed_float16", False),
    "mixed_float16, XLA": ("mixed_float16", True),
}
REFERENCE = "float32"


def measure(setup, names=tuple(VARIANTS), rounds=5):
    """Times the whole step under several precisions, with and without XLA.

    Args:
        setup: `Setup`.
        names: which of `VARIANTS`; "float32" is measured in any case.
        rounds: how often each is measured, by turns.

    Returns:
        {"setup", "rounds", "speed": {name: {"wall", "cpu"}}}: how many times
        as fast as "float32", medians over the rounds; and
        "images_per_second", {name: ...}.

    Raises:
        ValueError: for an unknown name.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(
            f"`names` must be some of {'; '.join(VARIANTS)}. "
            f"Received: {unknown[0]!r}"
        )
    batch = setup_lib.make_batch(setup)
    variants, kept = {}, []
    policy = keras.mixed_precision.global_policy()
    try:
        for name in dict.fromkeys([REFERENCE, *names]):
            precision, jit_compile = VARIANTS[name]
            keras.mixed_precision.set_global_policy(precision)
            model = setup_lib.make_model(setup)
            kept.append(model)
            step = tf.function(model.train_step, jit_compile=jit_compile)
            variants[name] = timing.waiting(
                step.get_concrete_function(batch), batch
            )
    finally:
        keras.mixed_precision.set_global_policy(policy)
    times = timing.interleave(variants, rounds)
    ratios = timing.median_ratios(times, REFERENCE)
    return {
        "setup": setup._asdict(),
        "rounds": rounds,
        "speed": {
            name: {clock: 1.0 / ratio for clock, ratio in clocks.items()}
            for name, clocks in ratios.items()
        },
        "images_per_second": {
            name: setup.batch_size / float(np.median(values[:, 0]))
            for name, values in times.items()
        },
    }


def table(result):
    """`measure`'s result as text."""
    lines = [f"{'':22}{'images/s':>10}{'times as fast':>15}"]
    for name, speed in result["speed"].items():
        lines.append(
            f"{name:22}{result['images_per_second'][name]:10.0f}"
            f"{speed['wall']:9.2f} ({speed['cpu']:.2f})"
        )
    sizes = result["setup"]
    lines.append(
        f"As float32 without XLA, wall (CPU) time; {sizes['backbone']}, width "
        f"{sizes['width']}, {sizes['image_size']} px, B = "
        f"{sizes['batch_size']}, K = {sizes['queue_size']}; median of "
        f"{result['rounds']} rounds."
    )
    return "\n".join(lines)
