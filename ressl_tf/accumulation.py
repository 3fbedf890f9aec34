"""Gradients of a batch that does not fit at once, part after part."""

from typing import NamedTuple

import tensorflow as tf

from ressl_tf import losses


class Learnt(NamedTuple):
    """What a batch, or a part of it, gives a step. B: its rows.

    Attributes:
        gradients: list of tensors, or None where a variable has no part in
            the loss.
        objective: scalars, means over the rows.
        embedding: (B, D) of the first student view.
        keys: (B, D) of the first teacher view.
    """

    gradients: list
    objective: losses.Objective
    embedding: tf.Tensor
    keys: tf.Tensor


def accumulate(learn, batch, steps):
    """Learns from equal parts of a batch as if from all of it at once.

    One part's activations are freed before the next ones are computed (under
    XLA, its scheduler decides). Where each row's loss depends on that row
    alone - without batch normalisation - the result is that of one part.

    Args:
        learn: function from a batch to what it gives, a `Learnt`; the
            gradients of all parts are summed, so they have to be those of
            1 / `steps` of the loss.
        batch: nested structure of (B, ...) tensors, B a multiple of `steps`.
        steps: number of parts, at least 1; consecutive rows each.

    Returns:
        A `Learnt` of the whole batch.

    Raises:
        ValueError: if the batch cannot be cut into equal parts.
    """
    if steps == 1:
        return learn(batch)
    results, gradients = [], None
    for part in _split(batch, steps):
        if gradients is None:
            results.append(learn(part))
            gradients = results[0].gradients
        else:
            results.append(learn(_after(gradients, part)))
            gradients = _sum(gradients, results[-1].gradients)
    return Learnt(
        gradients=gradients,
        objective=losses.Objective(
            *(
                tf.add_n(values) / steps
                for values in zip(*(r.objective for r in results), strict=True)
            )
        ),
        embedding=tf.concat([r.embedding for r in results], axis=0),
        keys=tf.concat([r.keys for r in results], axis=0),
    )


def _split(batch, steps):
    for tensor in tf.nest.flatten(batch):
        if tensor.shape[0] is not None and tensor.shape[0] % steps:
            raise ValueError(
                "`gradient_accumulation_steps` must divide the batch on a "
                f"replica, {tensor.shape[0]} rows. "
                f"Received: gradient_accumulation_steps={steps}"
            )
    columns = [tf.split(tensor, steps) for tensor in tf.nest.flatten(batch)]
    return [
        tf.nest.pack_sequence_as(batch, part)
        for part in zip(*columns, strict=True)
    ]


def _after(gradients, part):
    """The same part of the batch, but not before the gradients are there.

    TensorFlow would otherwise run the parts beside each other, and hold the
    activations of all.
    """
    with tf.control_dependencies([g for g in gradients if g is not None]):
        return tf.nest.map_structure(tf.identity, part)


def _sum(gradients, others):
    return [
        None if gradient is None else gradient + other
        for gradient, other in zip(gradients, others, strict=True)
    ]
