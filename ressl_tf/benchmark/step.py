"""How far a training step is from what its networks cost alone."""

import numpy as np
import tensorflow as tf

from ressl_tf.benchmark import counts
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing

QUEUE_SIZES = (4096, 65536)
_MATRIX_SIZE = 2048
# The plain step's loss: gradients of its size leave the weights as they are.
_UPSTREAM = 1e-6


def measure(
    setup, queue_sizes=QUEUE_SIZES, rounds=10, matrix_size=_MATRIX_SIZE
):
    """Times the whole step, the same networks without ReSSL, and a product.

    "step K=...": the whole step, with a queue of that size. "plain": a
    training step of the same networks without ReSSL, that is the student's
    forward and backward pass, the teacher's forward pass and the optimiser.
    "networks": without the optimiser. "floor": the student's passes alone.
    "matmul": a product of two large float32 matrices, the best this device
    does.

    Args:
        setup: `Setup`; its `queue_size` is not used.
        queue_sizes: values of K.
        rounds: how often everything is measured, by turns.
        matrix_size: height and width of the matrices.

    Returns:
        {"setup", "rounds", "parts": {name: {"seconds", "flops" (operations,
        counted from the layers), "images_per_second" (None for "matmul"),
        "flops_per_second"}}, "overhead": {K: {"wall", "cpu"}}, "of_limit"}.
        Seconds are medians over the rounds; so is the overhead, of what the
        step takes beyond the plain one, in parts of that, within a round.
        "of_limit": operations a second of the plain step over those of the
        fastest product.

    Raises:
        ValueError: if `rounds` is smaller than 1.
    """
    batch = setup_lib.make_batch(setup)
    plain = setup_lib.make_model(setup)
    functions = {
        "floor": lambda batch: _student(plain, batch),
        "networks": lambda batch: _networks(plain, batch),
        "plain": lambda batch: _plain_step(plain, batch),
    }
    models = {
        queue_size: setup_lib.make_model(setup._replace(queue_size=queue_size))
        for queue_size in queue_sizes
    }
    for queue_size, model in models.items():
        functions[_step_name(queue_size)] = model.train_step
    variants = {
        # Traced here: called one after the other, they would look to
        # TensorFlow like one function that is traced again and again.
        name: timing.waiting(
            tf.function(function).get_concrete_function(batch), batch
        )
        for name, function in functions.items()
    }
    matrix = tf.random.Generator.from_seed(0).normal([matrix_size] * 2)
    variants["matmul"] = timing.waiting(tf.linalg.matmul, matrix, matrix)
    times = timing.interleave(variants, rounds)
    operations = _operations(plain, setup)
    parts = {}
    for name, values in times.items():
        seconds = float(np.median(values[:, 0]))
        images = None if name == "matmul" else setup.batch_size / seconds
        flops = operations.get(name, operations["networks"])
        if name == "matmul":
            flops = 2.0 * matrix_size**3
        parts[name] = {
            "seconds": seconds,
            "flops": flops,
            "images_per_second": images,
            "flops_per_second": flops / seconds,
        }
    ratios = timing.median_ratios(times, "plain")
    fastest = parts["matmul"]["flops"] / float(times["matmul"][:, 0].min())
    return {
        "setup": setup._asdict(),
        "rounds": rounds,
        "parts": parts,
        "overhead": {
            queue_size: {
                clock: ratio - 1.0
                for clock, ratio in ratios[_step_name(queue_size)].items()
            }
            for queue_size in queue_sizes
        },
        "of_limit": parts["plain"]["flops_per_second"] / fastest,
    }


def table(result):
    """`measure`'s result as text."""
    lines = [f"{'':14}{'ms':>9}{'images/s':>10}{'GFLOPs':>9}{'GFLOPs/s':>10}"]
    for name, part in result["parts"].items():
        images = part["images_per_second"]
        lines.append(
            f"{name:14}{1e3 * part['seconds']:9.1f}"
            f"{'-' if images is None else f'{images:.0f}':>10}"
            f"{part['flops'] / 1e9:9.1f}{part['flops_per_second'] / 1e9:10.1f}"
        )
    sizes = result["setup"]
    lines += [
        f"step / plain - 1, K = {queue_size}: {100 * overhead['wall']:.1f} % "
        f"({100 * overhead['cpu']:.1f} %)"
        for queue_size, overhead in result["overhead"].items()
    ]
    lines += [
        "plain, of the fastest matrix product: "
        f"{100 * result['of_limit']:.0f} %",
        "floor: student forward and backward; networks: and teacher forward; "
        "plain: and optimiser.",
        f"Wall time (CPU time); {sizes['backbone']}, width {sizes['width']}, "
        f"{sizes['image_size']} px, B = {sizes['batch_size']}, "
        f"D = {sizes['dim']}; median of {result['rounds']} rounds.",
    ]
    return "\n".join(lines)


def _step_name(queue_size):
    return f"step K={queue_size}"


def _student(model, batch):
    """The student's embeddings and all gradients, of any loss at all."""
    with tf.GradientTape() as tape:
        embeddings = [
            model.predictor(model.student(view, training=True), training=True)
            for view in batch["student"]
        ]
    upstream = [_UPSTREAM * tf.ones_like(embedding) for embedding in embeddings]
    return tape.gradient(embeddings, model.trainable_variables, upstream)


def _networks(model, batch):
    targets = [model.teacher(view, training=True) for view in batch["teacher"]]
    return targets, _student(model, batch)


def _plain_step(model, batch):
    targets, gradients = _networks(model, batch)
    model.optimizer.apply_gradients(
        zip(gradients, model.trainable_variables, strict=True)
    )
    return targets


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
    return {"networks": student + teacher, "floor": student}
