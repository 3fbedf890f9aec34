"""The relational and the contrastive loss: pure functions of tensors.

Letters in shapes: B batch, D embedding size, K queue size. All embeddings may
come as the network gives them: they are L2-normalised here. Whatever the
compute dtype, the arithmetic is float32 (float64 if the inputs are).
"""

from typing import NamedTuple

import tensorflow as tf


class Objective(NamedTuple):
    """What `blended_objective` returns, each of shape (B,)."""

    loss: tf.Tensor  # alpha relation + (1 - alpha) info_nce
    relation: tf.Tensor  # cross-entropy of the two relations
    info_nce: tf.Tensor
    target_entropy: tf.Tensor  # of the teacher's relation, in nats
    student_entropy: tf.Tensor  # of the student's relation, in nats
    agreement: tf.Tensor  # 1 where both name the same nearest key, else 0


def normalize(embedding):
    """L2-normalises the last axis in float32 (float64 stays float64)."""
    if embedding.dtype != tf.float64:
        embedding = tf.cast(embedding, tf.float32)
    return tf.math.l2_normalize(embedding, axis=-1)


def relation_loss(
    student, teacher, queue, student_temperature, teacher_temperature
):
    """Cross-entropy between the teacher's and the student's relations.

    Equations 3 to 5 of the paper: with p1 = softmax(z1 Qᵀ / τ_s) and
    p2 = softmax(z2 Qᵀ / τ_t), the loss is -Σ_k p2 log p1. The positive pair
    is not a column, there is no factor T², and no gradient flows into the
    teacher or the queue. The loss starts near log K; the divergence
    KL(p2, p1) is this minus the entropy of p2.

    Args:
        student: (B, D) embeddings of the strong views.
        teacher: (B, D) embeddings of the weak views.
        queue: (K, D) past embeddings of the teacher.
        student_temperature: τ_s, above 0.
        teacher_temperature: τ_t, above 0; smaller than τ_s to be useful.

    Returns:
        (B,) losses.
    """
    queue = tf.stop_gradient(normalize(queue))
    logits = _similarities(normalize(student) / student_temperature, queue)
    target_logits = tf.stop_gradient(
        _similarities(normalize(teacher) / teacher_temperature, queue)
    )
    target = tf.nn.softmax(target_logits)
    return -tf.reduce_sum(target * tf.nn.log_softmax(logits), axis=1)


def info_nce_loss(student, teacher, queue, temperature):
    """Contrastive loss with the teacher's embedding as the positive.

    Equation 1 of the paper: -log of the softmax, over the positive pair and
    the K keys of the queue, at the positive pair.

    Args:
        student: (B, D) embeddings of the strong views.
        teacher: (B, D) embeddings of the weak views.
        queue: (K, D) past embeddings of the teacher: the negatives.
        temperature: above 0.

    Returns:
        (B,) losses.
    """
    student, teacher = normalize(student), tf.stop_gradient(normalize(teacher))
    queue = tf.stop_gradient(normalize(queue))
    positive = _rowwise_dot(student, teacher)[:, tf.newaxis]  # (B, 1)
    negatives = _similarities(student, queue)  # (B, K)
    logits = tf.concat([positive, negatives], axis=1) / temperature
    return -tf.nn.log_softmax(logits)[:, 0]


def blended_objective(
    student,
    teacher,
    queue,
    *,
    student_temperature,
    teacher_temperature,
    infonce_temperature,
    alpha,
):
    """Both losses and their blend from one pair of similarity matrices.

    Equation 7 of the paper: α relation + (1 - α) InfoNCE, with what shows
    whether training is healthy. `relation_loss` and `info_nce_loss` give the
    same numbers one by one.

    Args:
        student: (B, D) embeddings of the strong views.
        teacher: (B, D) embeddings of the weak views.
        queue: (K, D) past embeddings of the teacher.
        student_temperature: τ_s, above 0.
        teacher_temperature: τ_t, above 0.
        infonce_temperature: above 0.
        alpha: weight of the relational loss, in [0, 1]; a number or a scalar
            tensor.

    Returns:
        An `Objective`. Its `loss` alone carries a gradient, into `student`.
    """
    student, teacher = normalize(student), normalize(teacher)
    # One softmax serves both losses where their temperature is the same.
    shared = infonce_temperature == student_temperature
    numbers = [
        _scalar(number, student.dtype)
        for number in (
            student_temperature,
            teacher_temperature,
            infonce_temperature,
            alpha,
        )
    ]

    @tf.custom_gradient
    def compare(student):
        objective, gradient = _compare(
            student, teacher, queue, *numbers, shared
        )

        def backward(loss, *others):
            del others  # the loss alone is differentiated
            return loss[:, tf.newaxis] * gradient

        return tuple(objective), backward

    return Objective(*compare(student))


@tf.function(jit_compile=True)
def _compare(
    student,
    teacher,
    queue,
    student_temperature,
    teacher_temperature,
    infonce_temperature,
    alpha,
    shared,
):
    """An `Objective`, and its loss' (B, D) gradient for the student.

    With a large queue, what is as large as the (B, K) similarities is what
    the method costs. All that is asked of them follows from two things that
    are not: with z the embedding and p = softmax(z Qᵀ / τ), the log of p's
    denominator and the key that p expects, p Q.

        -Σ_k p2 log p1 = log Z1 - z1 (p2 Q) / τ_s     relation; an entropy too
        its gradient   = (p1 Q - p2 Q) / τ_s
    """
    queue = normalize(queue)
    logits = _similarities(student / student_temperature, queue)
    target_logits = _similarities(teacher / teacher_temperature, queue)
    key, log_partition = _expect(logits, queue)
    target_key, target_log_partition = _expect(target_logits, queue)
    if shared:
        negative, negatives = key, log_partition
    else:
        negative, negatives = _expect(
            logits * (student_temperature / infonce_temperature), queue
        )
    margin = negatives - _rowwise_dot(student, teacher) / infonce_temperature

    relation = log_partition - (
        _rowwise_dot(student, target_key) / student_temperature
    )
    info_nce = tf.math.softplus(margin)
    agreement = tf.argmax(logits, axis=1) == tf.argmax(target_logits, axis=1)
    objective = Objective(
        loss=alpha * relation + (1.0 - alpha) * info_nce,
        relation=relation,
        info_nce=info_nce,
        target_entropy=target_log_partition
        - _rowwise_dot(teacher, target_key) / teacher_temperature,
        student_entropy=log_partition
        - _rowwise_dot(student, key) / student_temperature,
        agreement=tf.cast(agreement, logits.dtype),
    )
    relation_gradient = (key - target_key) / student_temperature
    info_nce_gradient = (
        tf.sigmoid(margin)[:, tf.newaxis]
        * (negative - teacher)
        / infonce_temperature
    )
    gradient = alpha * relation_gradient + (1.0 - alpha) * info_nce_gradient
    return objective, gradient


def _scalar(number, dtype):
    # By way of float32, a Python number would be rounded in float64.
    if tf.is_tensor(number):
        return tf.cast(number, dtype)
    return tf.constant(number, dtype)


def _similarities(embedding, queue):
    """(B, D), (K, D) -> (B, K)."""
    return tf.matmul(embedding, queue, transpose_b=True)


def _expect(logits, queue):
    """(B, K), (K, D) -> (B, D) mean key under the softmax, (B,) log-sum-exp."""
    peak = tf.reduce_max(logits, axis=1, keepdims=True)
    weights = tf.exp(logits - peak)
    total = tf.reduce_sum(weights, axis=1, keepdims=True)
    # Divided after the product, which is smaller.
    return tf.matmul(weights, queue) / total, (peak + tf.math.log(total))[:, 0]


def _rowwise_dot(student, teacher):
    """(B, D), (B, D) -> (B,)."""
    return tf.reduce_sum(student * teacher, axis=1)
