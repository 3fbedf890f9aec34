from pathlib import Path

import numpy as np
import pytest
import reference
import tensorflow as tf

from ressl_tf import losses

# Computed by torch in float64; see the file's `params`: student temperature,
# teacher temperature, InfoNCE temperature, alpha.
TORCH = np.load(Path(__file__).parent / "data" / "losses.npz")


def objective(student, case):
    temperatures = TORCH[f"case{case}/params"]
    return losses.blended_objective(
        student,
        tf.constant(TORCH["teacher"]),
        tf.constant(TORCH["queue"]),
        student_temperature=temperatures[0],
        teacher_temperature=temperatures[1],
        infonce_temperature=temperatures[2],
        alpha=temperatures[3],
    )


@pytest.mark.core
@pytest.mark.parametrize("case", range(4))
def test_objective_equals_torch(case):
    student = tf.constant(TORCH["student"])
    with tf.GradientTape() as tape:
        tape.watch(student)
        result = objective(student, case)
        total = tf.reduce_mean(result.loss)
    gradient = tape.gradient(total, student)

    np.testing.assert_allclose(
        result.relation, TORCH[f"case{case}/relation"], rtol=1e-9
    )
    np.testing.assert_allclose(
        result.relation - result.target_entropy,
        TORCH[f"case{case}/kl"],
        rtol=1e-8,
    )
    np.testing.assert_allclose(
        result.info_nce, TORCH[f"case{case}/infonce"], rtol=1e-9
    )
    np.testing.assert_allclose(total, TORCH[f"case{case}/total"], rtol=1e-9)
    np.testing.assert_allclose(
        gradient, TORCH[f"case{case}/grad"], rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("case", range(4))
def test_single_losses_equal_torch(case):
    student_t, teacher_t, infonce_t, _ = TORCH[f"case{case}/params"]
    tensors = [
        tf.constant(TORCH[name]) for name in ("student", "teacher", "queue")
    ]
    np.testing.assert_allclose(
        losses.relation_loss(*tensors, student_t, teacher_t),
        TORCH[f"case{case}/relation"],
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        losses.info_nce_loss(*tensors, infonce_t),
        TORCH[f"case{case}/infonce"],
        rtol=1e-9,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("infonce_temperature", [0.1, 0.25])
def test_written_out_gradient_is_that_of_the_single_losses(
    alpha, infonce_temperature
):
    student, teacher, queue = (
        tf.constant(TORCH[name]) for name in ("student", "teacher", "queue")
    )
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student)
        objective = losses.blended_objective(
            student,
            teacher,
            queue,
            student_temperature=0.1,
            teacher_temperature=0.04,
            infonce_temperature=infonce_temperature,
            alpha=alpha,
        )
        relation = losses.relation_loss(student, teacher, queue, 0.1, 0.04)
        info_nce = losses.info_nce_loss(
            student, teacher, queue, infonce_temperature
        )
        # Rows weighted unequally: each has a gradient of its own.
        weights = tf.range(1.0, 13.0, dtype=tf.float64)
        loss = tf.reduce_sum(weights * objective.loss)
        blend = alpha * relation + (1 - alpha) * info_nce
        expected = tf.reduce_sum(weights * blend)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(
        tape.gradient(loss, student),
        tape.gradient(expected, student),
        rtol=1e-9,
        atol=1e-12,
    )


def test_objective_equals_slow_reference():
    student, teacher, queue = (
        TORCH[name] for name in ("student", "teacher", "queue")
    )
    result = losses.blended_objective(
        tf.constant(student),
        tf.constant(teacher),
        tf.constant(queue),
        student_temperature=0.15,
        teacher_temperature=0.05,
        infonce_temperature=0.3,
        alpha=0.75,
    )
    for row in range(len(student)):
        relation = reference.relation(
            student[row], teacher[row], queue, 0.15, 0.05
        )
        info_nce = reference.info_nce(student[row], teacher[row], queue, 0.3)
        np.testing.assert_allclose(result.relation[row], relation, rtol=1e-9)
        np.testing.assert_allclose(result.info_nce[row], info_nce, rtol=1e-9)
        np.testing.assert_allclose(
            result.loss[row], 0.75 * relation + 0.25 * info_nce, rtol=1e-9
        )
        np.testing.assert_allclose(
            result.target_entropy[row],
            reference.entropy(teacher[row], queue, 0.05),
            rtol=1e-9,
        )
        np.testing.assert_allclose(
            result.student_entropy[row],
            reference.entropy(student[row], queue, 0.15),
            rtol=1e-9,
        )
        agrees = np.argmax(queue @ student[row]) == np.argmax(
            queue @ teacher[row]
        )
        assert result.agreement[row] == float(agrees)


def test_agreement_takes_both_values():
    keys = tf.eye(4)
    result = losses.blended_objective(
        tf.stack([keys[0], keys[1]]),
        tf.stack([keys[0], keys[2]]),
        keys,
        student_temperature=0.1,
        teacher_temperature=0.04,
        infonce_temperature=0.1,
        alpha=1.0,
    )
    np.testing.assert_array_equal(result.agreement, [1.0, 0.0])


def test_no_gradient_into_teacher_and_queue():
    student, teacher, queue = (
        tf.constant(TORCH[name]) for name in ("student", "teacher", "queue")
    )
    with tf.GradientTape() as tape:
        tape.watch([student, teacher, queue])
        result = losses.blended_objective(
            student,
            teacher,
            queue,
            student_temperature=0.1,
            teacher_temperature=0.04,
            infonce_temperature=0.2,
            alpha=0.5,
        )
        total = tf.add_n([tf.reduce_sum(value) for value in result])
    gradients = tape.gradient(total, [student, teacher, queue])
    assert np.abs(gradients[0]).max() > 1e-3
    assert gradients[1] is None and gradients[2] is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_input_is_computed_in_float32(dtype):
    half = [
        tf.cast(TORCH[name], dtype) for name in ("student", "teacher", "queue")
    ]
    exact = [tf.cast(tensor, tf.float64) for tensor in half]
    result = losses.relation_loss(*half, 0.1, 0.04)
    assert result.dtype == tf.float32
    # What is left is the rounding of the input, which both have.
    np.testing.assert_allclose(
        result, losses.relation_loss(*exact, 0.1, 0.04), rtol=2e-5
    )


def test_extreme_temperatures_stay_finite():
    tensors = [
        tf.cast(TORCH[name], tf.float32)
        for name in ("student", "teacher", "queue")
    ]
    result = losses.blended_objective(
        *tensors,
        student_temperature=1e-3,
        teacher_temperature=1e-4,
        infonce_temperature=1e-3,
        alpha=0.5,
    )
    for values in result:
        assert np.all(np.isfinite(values))


def test_loss_starts_near_log_queue_size():
    queue = losses.normalize(tf.random.stateless_normal((4096, 128), (1, 2)))
    student, teacher = (
        tf.random.stateless_normal((32, 128), (3, number)) for number in (1, 2)
    )
    loss = losses.relation_loss(student, teacher, queue, 0.1, 0.04)
    assert abs(float(tf.reduce_mean(loss)) - np.log(4096)) < 0.5
