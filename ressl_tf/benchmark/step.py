"""How far a training step is from what its networks cost alone."""

import numpy as np
import tensorflow as tf

from ressl_tf.benchmark import counts
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing

_MATRIX_SIZE = 2048


def measure(setup, rounds=10, matrix_size=_MATRIX_SIZE):
    """Times the whole step, its networks alone, and a matrix product.

    "step" is the whole step. "networks": what no implementation can leave
    out, the student's forward and backward pass and the teacher's forward
    pass. "floor": the student's passes alone. "matmul": a product of two
    large float32 matrices, the best this device does.

    Args:
        setup: `Setup`.
        rounds: how often everything is measured, by turns.
        matrix_size: height and width of the matrices.

    Returns:
        {"setup", "rounds", "parts": {name: {"seconds", "flops" (operations,
        counted from the layers), "images_per_second" (None for "matmul"),
        "flops_per_second"}}, "ratios": {"step_to_floor": {"wall", "cpu"},
        "outside_networks": {"wall", "cpu"}}, "of_limit"}. Seconds are medians
        over the rounds; the ratios too, of ratios within a round, where
        "outside_networks" is the share of the step that its networks do not
        take. "of_limit": operations a second of the step over those of the
        fastest product.

    Raises:
        ValueError: if `rounds` is smaller than 1.
    """
    model = setup_lib.make_model(setup)
    batch = setup_lib.make_batch(setup)
    functions = {
        "step": tf.function(model.train_step),
        "networks": tf.function(lambda batch: _networks(model, batch)),
        "floor": tf.function(lambda batch: _student(model, batch)),
    }
    variants = {
        # Traced here: called one after the other, they would look to
        # TensorFlow like one function that is traced again and again.
        name: timing.waiting(function.get_concrete_function(batch), batch)
        for name, function in functions.items()
    }
    matrix = tf.random.Generator.from_seed(0).normal([matrix_size] * 2)
    variants["matmul"] = timing.waiting(tf.linalg.matmul, matrix, matrix)
    times = timing.interleave(variants, rounds)
    operations = {**_operations(model, setup), "matmul": 2.0 * matrix_size**3}
    parts = {}
    for name, values in times.items():
        seconds = float(np.median(values[:, 0]))
        images = None if name == "matmul" else setup.batch_size / seconds
        parts[name] = {
            "seconds": seconds,
            "flops": operations[name],
            "images_per_second": images,
            "flops_per_second": operations[name] / seconds,
        }
    shares = timing.median_ratios(times, "step")["networks"]
    fastest = operations["matmul"] / float(times["matmul"][:, 0].min())
    return {
        "setup": setup._asdict(),
        "rounds": rounds,
        "parts": parts,
        "ratios": {
            "step_to_floor": timing.median_ratios(times, "floor")["step"],
            "outside_networks": {k: 1.0 - v for k, v in shares.items()},
        },
        "of_limit": parts["step"]["flops_per_second"] / fastest,
    }


def table(result):
    """`measure`'s result as text."""
    lines = [f"{'':10}{'ms':>9}{'images/s':>10}{'GFLOPs':>9}{'GFLOPs/s':>10}"]
    for name, part in result["parts"].items():
        images = part["images_per_second"]
        lines.append(
            f"{name:10}{1e3 * part['seconds']:9.1f}"
            f"{'-' if images is None else f'{images:.0f}':>10}"
            f"{part['flops'] / 1e9:9.1f}{part['flops_per_second'] / 1e9:10.1f}"
        )
    ratios = result["ratios"]
    floor, outside = ratios["step_to_floor"], ratios["outside_networks"]
    sizes = result["setup"]
    lines += [
        f"step / floor: {floor['wall']:.2f} ({floor['cpu']:.2f})",
        "outside the networks: "
        f"{100 * outside['wall']:.1f} % ({100 * outside['cpu']:.1f} %) of the "
        "step",
        f"of the fastest matrix product: {100 * result['of_limit']:.0f} %",
        "networks: student forward and backward, teacher forward; floor: the "
        "student's alone.",
        f"Wall time (CPU time); {sizes['backbone']}, width {sizes['width']}, "
        f"{sizes['image_size']} px, B = {sizes['batch_size']}, "
        f"K = {sizes['queue_size']}, D = {sizes['dim']}; median of "
        f"{result['rounds']} rounds.",
    ]
    return "\n".join(lines)


def _student(model, batch):
    """The student's embeddings and all gradients, of any loss at all."""
    with tf.GradientTape() as tape:
        embeddings = [
            model.predictor(model.student(view, training=True), training=True)
            for view in batch["student"]
        ]
    upstream = [tf.ones_like(embedding) for embedding in embeddings]
    return tape.gradient(embeddings, model.trainable_variables, upstream)


def _networks(model, batch):
    targets = [model.teacher(view, training=True) for view in batch["teacher"]]
    return targets, _student(model, batch)


def _operations(model, setup):
    """Operations of a batch; a backward pass is two forward passes."""
    backbone, projector, predictor = (
        counts.count(network).forward_flops
        for network in (
            model.student.backbone,
            model.student.projector,
            model.predictor,
        )
    )
    teacher = setup.batch_size * (backbone + projector)
    student = 3 * setup.crops * (teacher + setup.batch_size * predictor)
    return {
        "step": student + teacher,
        "networks": student + teacher,
        "floor": student,
    }
