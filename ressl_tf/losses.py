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
    student_logits = _similarities(student, queue) / student_temperature
    teacher_logits = tf.stop_gradient(
        _similarities(teacher, queue) / teacher_temperature
    )
    return _relation(
        student_logits,
        tf.reduce_logsumexp(student_logits, axis=1),
        tf.nn.softmax(teacher_logits),
    )


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
    logits = _similarities(student, queue) / temperature
    return _info_nce(
        _positive_similarity(student, teacher) / temperature,
        tf.reduce_logsumexp(logits, axis=1),
    )


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
        An `Objective`. Only its losses carry gradients.
    """
    student_similarities = _similarities(student, queue)
    teacher_similarities = tf.stop_gradient(_similarities(teacher, queue))

    logits = student_similarities / student_temperature
    log_partition = tf.reduce_logsumexp(logits, axis=1)
    target_logits = teacher_similarities / teacher_temperature
    relation = _relation(logits, log_partition, tf.nn.softmax(target_logits))

    if infonce_temperature == student_temperature:
        negatives = log_partition
    else:
        negatives = tf.reduce_logsumexp(
            student_similarities / infonce_temperature, axis=1
        )
    positives = _positive_similarity(student, teacher) / infonce_temperature
    info_nce = _info_nce(positives, negatives)

    alpha = tf.cast(alpha, relation.dtype)
    return Objective(
        loss=alpha * relation + (1.0 - alpha) * info_nce,
        relation=relation,
        info_nce=info_nce,
        target_entropy=_entropy(target_logits),
        student_entropy=_entropy(tf.stop_gradient(logits)),
        agreement=tf.cast(
            tf.argmax(student_similarities, axis=1)
            == tf.argmax(teacher_similarities, axis=1),
            relation.dtype,
        ),
    )


def _similarities(embedding, queue):
    """(B, D), (K, D) -> (B, K) cosine similarities; the queue is constant."""
    return tf.matmul(
        normalize(embedding),
        tf.stop_gradient(normalize(queue)),
        transpose_b=True,
    )


def _positive_similarity(student, teacher):
    """(B, D), (B, D) -> (B,); the teacher is constant."""
    return tf.reduce_sum(
        normalize(student) * tf.stop_gradient(normalize(teacher)), axis=1
    )


def _relation(logits, log_partition, target):
    """-Σ_k p2 log p1, without a third (B, K) matrix for log p1."""
    return log_partition - tf.reduce_sum(target * logits, axis=1)


def _info_nce(positive, negatives):
    """-log softmax at the positive; `negatives` is their log-sum-exp."""
    return tf.math.softplus(negatives - positive)


def _entropy(logits):
    """Entropy of softmax(logits) over the last axis, in nats."""
    probability = tf.nn.softmax(logits)
    log_partition = tf.reduce_logsumexp(logits, axis=1)
    return log_partition - tf.reduce_sum(probability * logits, axis=1)
