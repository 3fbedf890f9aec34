"""The train step asks nothing of a TPU that it cannot do; no TPU is needed.

A TPU runs what XLA can compile: operations it has kernels for, on types it
has, of shapes known beforehand. So the step is traced as training traces it,
every node of its graph and of the functions it calls is held against the
published list, and XLA, which takes the same graph on a CPU, must compute
what TensorFlow does without it.
"""

import collections
import pathlib
import re

import graphs
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorflow import keras
from tensorflow.python.framework import kernels

import ressl_tf
from ressl_tf import augment
from ressl_tf import data
from ressl_tf import networks
from ressl_tf.model import METRICS

SIZE = 8  # images of 8x8x3
BATCH = 8
QUEUE_SIZE = 20  # no multiple of the batch

PUBLISHED = frozenset(
    line
    for line in (pathlib.Path(__file__).parent / "data" / "tpu_ops.txt")
    .read_text()
    .splitlines()
    if not line.startswith("#")
)

# Younger than the published list. tf2xla has a kernel for each and names no
# device for it, hence for TPUs as well; see the test of them below.
LATER = {
    "AddV2": "Add without strings, which the list has",
    "SelectV2": "Select, which the list has, with broadcasting",
    "FusedBatchNormV3": "V2, which the list has, with scratch space for GPUs; "
    "Keras 2 alone: Keras 3 normalises by simpler operations",
    "FusedBatchNormGradV3": "as FusedBatchNormV3",
    "TensorScatterUpdate": "ResourceScatterNdUpdate of a value; its shapes "
    "are those of its arguments",
}

# Never reaches the TPU's compiler.
RESOLVED = {
    "Placeholder": "an argument of the traced function: _Arg when compiled",
    "PartitionedCall": "inlined; what it calls is walked, too",
    "StatefulPartitionedCall": "inlined; what it calls is walked, too",
}

# All types in the published list's constraints, without `string`: neither
# float64 nor float16.
TYPES = frozenset(
    (
        tf.bfloat16,
        tf.bool,
        tf.complex64,
        tf.float32,
        tf.int32,
        tf.int64,
        tf.resource,
        tf.uint32,
        tf.uint64,
    )
)


def refusals(function):
    """What a TPU would refuse, each with operation, node and reason."""
    found = []
    for node in graphs.walk(function):
        place = f"{node.operation} ({node.name})"
        if node.operation not in PUBLISHED | LATER.keys() | RESOLVED.keys():
            found.append(f"{place}: not available")
        for dtype in node.types - TYPES:
            found.append(f"{place}: type {dtype.name}")
        for number, shape in enumerate(node.shapes):
            if not shape.is_fully_defined() and not is_scratch(node, number):
                found.append(f"{place}: shape {shape}")
    return found


def is_scratch(node, number):
    """Whether result `number` is the scratch space of FusedBatchNormV3.

    TensorFlow gives it no shape, as only cuDNN knows it; XLA's kernel makes
    it an empty constant. Autodiff adds its zeros, which nothing reads.
    """
    if node.operation == "FusedBatchNormV3":
        return number == 5
    return node.operation == "ZerosLike" and bool(
        re.search(r"FusedBatchNormV3(_\d+)?:5$", node.inputs[0])
    )


def count_branch(x):
    return tf.shape(tf.where(x > 0))[0]


def count_python(x):
    count = tf.py_function(lambda v: np.int32(v.shape[0]), [x], tf.int32)
    return tf.ensure_shape(count, ())


def count_unique(x):
    return tf.shape(tf.unique(x)[0])[0]


def count_letters(x):
    return tf.strings.length(tf.strings.as_string(x))[0]


def count_doubles(x):
    return tf.cast(tf.reduce_sum(tf.cast(x, tf.float64)), tf.int32)


def plainly(count, x):
    return count(x)


def in_a_function(count, x):
    return tf.function(tf.function(count))(x)


def in_a_branch(count, x):
    return tf.cond(x[0] > 0, lambda: 0, lambda: count(x))


def in_a_loop(count, x):
    return tf.while_loop(
        lambda total: total < 9, lambda total: (total + count(x),), [0]
    )[0]


def in_a_branch_of_a_loop(count, x):
    def body(total):
        return (tf.cond(total > 3, lambda: total + count(x), lambda: 9),)

    return tf.while_loop(lambda total: total < 9, body, [0])[0]


def in_a_gradient(count, x):
    @tf.custom_gradient
    def identity(x):
        return x, lambda upstream: upstream * tf.cast(count(x), tf.float32)

    with tf.GradientTape() as tape:
        tape.watch(x)
        # What autodiff makes for a branch is a function of its own.
        y = tf.cond(x[0] > 0, lambda: identity(x), lambda: x)
    return tape.gradient(y, x)


@pytest.mark.parametrize(
    "nested",
    [
        plainly,
        in_a_function,
        in_a_branch,
        in_a_loop,
        in_a_branch_of_a_loop,
        in_a_gradient,
    ],
)
@pytest.mark.parametrize(
    "count, refused",
    [
        (count_branch, "Where ("),
        (count_branch, "shape (None, 1)"),
        (count_unique, "Unique ("),
        (count_python, "EagerPyFunc ("),
        (count_letters, "AsString ("),
        (count_doubles, "type float64"),
    ],
)
def test_what_a_tpu_lacks_is_found(nested, count, refused):
    function = tf.function(lambda x: nested(count, x))
    found = refusals(function.get_concrete_function(tf.TensorSpec((3,))))
    assert any(refused in line for line in found), found


def test_unknown_batch_size_is_found():
    function = tf.function(lambda x: tf.nn.relu(x) * 2.0)
    assert not refusals(function.get_concrete_function(tf.TensorSpec((4, 3))))
    found = refusals(function.get_concrete_function(tf.TensorSpec((None, 3))))
    assert any(line.startswith("Relu (") for line in found)
    assert any("shape (None, 3)" in line for line in found)


def test_lists_do_not_overlap():
    # 363 names on the page: nothing was dropped and nothing slipped in.
    assert len(PUBLISHED) == 363
    assert not PUBLISHED & (LATER.keys() | RESOLVED.keys())


def test_later_operations_have_xla_kernels():
    """Registered for every XLA device that this TensorFlow has."""
    tf.function(lambda x: x + 1, jit_compile=True)(1)  # registers them
    for operation in LATER:
        devices = {
            kernel.device_type
            for kernel in kernels.get_registered_kernels_for_op(
                operation
            ).kernel
        }
        assert {"XLA_CPU_JIT", "XLA_GPU_JIT"} <= devices, operation


def make_model(
    monkeypatch,
    *,
    policy="float32",
    block="basic",
    stem="small",
    optimizer="sgd",
    predictor=True,
    **optimizer_settings,
):
    """A two-block ReSSL with every schedule that a recipe may set."""
    keras.mixed_precision.set_global_policy(policy)
    monkeypatch.setitem(
        networks.RESNETS, "tiny", networks.Architecture(block, (1, 1))
    )
    backbone = ressl_tf.make_backbone(
        "tiny", (SIZE, SIZE, 3), stem=stem, width=4
    )
    model = ressl_tf.ReSSL(
        backbone,
        ressl_tf.make_projector(backbone.output_shape[-1], 8, 6),
        ressl_tf.make_predictor(6, 8) if predictor else None,
        queue_size=QUEUE_SIZE,
        infonce_temperature=0.2,
        teacher_momentum=ressl_tf.schedules.cosine_momentum(0.9, 20),
        alpha=ressl_tf.schedules.linear_alpha(6),
    )
    model.compile(
        ressl_tf.make_optimizer(
            optimizer,
            ressl_tf.schedules.WarmupCosine(0.01, 20, 2),
            weight_decay=1e-3,
            **optimizer_settings,
        )
    )
    return model


def view_specs(count):
    return (tf.TensorSpec((BATCH, SIZE, SIZE, 3)),) * count


def trace(model, num_student, num_teacher):
    return tf.function(model.train_step).get_concrete_function(
        {
            "student": view_specs(num_student),
            "teacher": view_specs(num_teacher),
        }
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "settings, num_student, num_teacher",
    [
        pytest.param({}, 1, 1, marks=pytest.mark.core),
        ({"stem": "imagenet", "predictor": False}, 1, 1),
        ({"optimizer": "lars", "stem": "cifar"}, 2, 2),
        ({"optimizer": "lamb"}, 1, 1),
        (
            {"optimizer": "lars", "block": "bottleneck", "predictor": False},
            3,
            1,
        ),
    ],
)
def test_train_step_asks_nothing_that_a_tpu_lacks(
    monkeypatch, policy, settings, num_student, num_teacher
):
    model = make_model(monkeypatch, policy=policy, **settings)
    step = trace(model, num_student, num_teacher)
    assert refusals(step) == []
    # The whole step was seen: both networks, both updates, the queue.
    operations = collections.Counter(
        node.operation for node in graphs.walk(step)
    )
    assert operations["Conv2DBackpropFilter"] > 0
    assert operations["TensorScatterUpdate"] == 1
    assert operations["AssignVariableOp"] > len(
        model.student.trainable_variables + model.teacher.trainable_variables
    )


@pytest.mark.parametrize("batch", [BATCH, QUEUE_SIZE, 3 * QUEUE_SIZE + 1])
def test_enqueue_asks_nothing_that_a_tpu_lacks(batch):
    queue = ressl_tf.KeyQueue(QUEUE_SIZE, 6)
    function = tf.function(queue.enqueue)
    spec = tf.TensorSpec((batch, 6))
    assert refusals(function.get_concrete_function(spec)) == []


def test_images_come_in_batches_of_known_size():
    dataset = data.make_train_dataset(
        np.zeros((10, SIZE, SIZE, 3), np.uint8),
        batch_size=BATCH,
        student_views=[augment.strong_view(SIZE)],
        teacher_views=[augment.weak_view(SIZE)],
        seed=0,
    )
    (spec,) = {tuple(s.shape) for s in tf.nest.flatten(dataset.element_spec)}
    assert spec == (BATCH, SIZE, SIZE, 3)


def random_views(seed, count):
    generator = np.random.default_rng(seed)
    shape = (BATCH, SIZE, SIZE, 3)
    return tuple(
        tf.constant(generator.normal(size=shape), tf.float32)
        for _ in range(count)
    )


def run_steps(model, num_student, num_teacher, jit_compile, num_steps):
    """What each step measures, (num_steps,) by name."""
    step = tf.function(model.train_step, jit_compile=jit_compile)
    measured = collections.defaultdict(list)
    for number in range(num_steps):
        model.reset_metrics()  # or each would average over all before it
        result = step(
            {
                "student": random_views(2 * number, num_student),
                "teacher": random_views(2 * number + 1, num_teacher),
            }
        )
        for name, value in result.items():
            measured[name].append(float(value))
    return measured


def get_state(model):
    """Everything that a step changes in the networks and the queue."""
    parts = {"student": model.student, "teacher": model.teacher}
    if model.predictor is not None:
        parts["predictor"] = model.predictor
    state = {
        f"{name}, weight {number}": weight
        for name, network in parts.items()
        for number, weight in enumerate(network.get_weights())
    }
    state["keys"] = np.array(model.queue.keys)
    state["pointer"] = int(tf.convert_to_tensor(model.queue.pointer))
    return state


@pytest.mark.parametrize(
    "settings, num_student, num_teacher",
    [
        ({}, 1, 1),
        ({"optimizer": "lars", "trust": 0.02, "predictor": False}, 3, 1),
    ],
)
def test_xla_computes_the_same_steps(
    monkeypatch, settings, num_student, num_teacher
):
    num_steps = 12  # 96 keys go round a queue of 20 almost five times
    runs = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = make_model(monkeypatch, **settings)
        measured = run_steps(
            model, num_student, num_teacher, jit_compile, num_steps
        )
        runs.append((measured, get_state(model)))
    (plain, plain_state), (xla, xla_state) = runs
    assert set(plain) == set(xla) == set(METRICS)
    # XLA adds in another order. That is 1e-7 a step; batch normalisation and
    # the temperatures, which multiply the similarities by up to 25, make at
    # most 5e-5 of it in 12 steps (1.2e-4 for a weight in TensorFlow 2.15).
    # Every weight moves by at least 30e-4 of its scale.
    for name in plain:
        np.testing.assert_allclose(
            xla[name], plain[name], rtol=1e-4, err_msg=name
        )
    for name, weight in plain_state.items():
        tiny.assert_near(xla_state[name], weight, name)
    assert plain_state["pointer"] == num_steps * BATCH % QUEUE_SIZE
