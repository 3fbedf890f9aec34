"""What the queue costs in a step."""

import tensorflow as tf

from ressl_tf import losses
from ressl_tf import scaling
from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing

QUEUE_SIZES = (4096, 16384, 65536, 131072)


def measure(setup, queue_sizes=QUEUE_SIZES, rounds=10):
    """Times the whole step and its parts at several queue sizes.

    The parts, each alone: "no write", the whole step with a model whose queue
    does nothing on `enqueue`; "write", the enqueueing; "loss", both
    similarities, the objective and its gradient for the student; "teacher",
    the moving average.

    Args:
        setup: `Setup`; its `queue_size` is not used.
        queue_sizes: values of K, the first is what the rest is relative to.
        rounds: how often everything is measured, by turns.

    Returns:
        {"setup": ..., "rows": one for each K}. Each row has for each part
        {"wall": ratio, "cpu": ratio}: the median over rounds of its time over
        that of the whole step at the first K; and "flops", the part's share
        of a ResNet-50 step at 224 pixels by operations.
    """
    batch = setup_lib.make_batch(setup)
    variants, models = {}, []
    for queue_size in queue_sizes:
        sizes = setup._replace(queue_size=queue_size)
        model, mute = setup_lib.make_model(sizes), setup_lib.make_model(sizes)
        mute.queue.enqueue = lambda keys: None
        models += [model, mute]
        parts = {
            "step": tf.function(model.train_step),
            "no write": tf.function(mute.train_step),
            **_parts(mute, sizes),
        }
        for name, part in parts.items():
            # Traced here: called one after the other, they would look to
            # TensorFlow like one function that is traced again and again.
            traced = part.get_concrete_function(batch)
            variants[queue_size, name] = timing.waiting(traced, batch)
    # The moving average does not depend on K.
    for queue_size in queue_sizes[1:]:
        del variants[queue_size, "teacher"]
    reference = (queue_sizes[0], "step")
    ratios = timing.median_ratios(
        timing.interleave(variants, rounds), reference
    )
    rows = []
    for queue_size in queue_sizes:
        row = {"queue_size": queue_size}
        for (size, name), ratio in ratios.items():
            if size == queue_size:
                row[name] = ratio
        row["flops"] = scaling.queue_flops_share(queue_size, setup.dim)
        rows.append(row)
    return {"setup": setup._asdict(), "rounds": rounds, "rows": rows}


def table(result):
    """`measure`'s result as text: wall time, and CPU time in brackets."""
    names = ("step", "no write", "write", "loss", "teacher")
    lines = ["       K" + "".join(f"{name:>15}" for name in names)]
    lines[0] += "  of ResNet-50's FLOPs"
    for row in result["rows"]:
        line = f"{row['queue_size']:8d}"
        for name in names:
            cell = "-"
            if name in row:
                cell = f"{row[name]['wall']:.3f} ({row[name]['cpu']:.3f})"
            line += f"{cell:>15}"
        lines.append(line + f"{100 * row['flops']:20.2f} %")
    sizes = result["setup"]
    lines.append(
        "Time relative to the whole step at the first K, wall (CPU); "
        f"{sizes['backbone']}, width {sizes['width']}, "
        f"{sizes['image_size']} px, B = {sizes['batch_size']}, "
        f"D = {sizes['dim']}; median of {result['rounds']} rounds."
    )
    return "\n".join(lines)


def _parts(model, setup):
    """The step's parts, as functions of a batch that is not looked at."""
    generator = tf.random.Generator.from_seed(0)
    shape = (setup.batch_size, setup.dim)
    student, teacher = generator.normal(shape), generator.normal(shape)
    # The class's own: the model's is switched off.
    enqueue = type(model.queue).enqueue

    def write(batch):
        enqueue(model.queue, teacher)
        return model.queue.pointer + 0

    def loss(batch):
        with tf.GradientTape() as tape:
            tape.watch(student)
            objective = losses.blended_objective(
                student,
                teacher,
                tf.convert_to_tensor(model.queue.keys),
                student_temperature=model.student_temperature,
                teacher_temperature=model.teacher_temperature,
                infonce_temperature=model.infonce_temperature,
                alpha=1.0,
            )
        return objective, tape.gradient(objective.loss, student)

    def move_teacher(batch):
        model._update_teacher(0.99)

    return {
        "write": tf.function(write),
        "loss": tf.function(loss),
        "teacher": tf.function(move_teacher),
    }
