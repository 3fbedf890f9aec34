"""Several replicas: one strategy, one global batch, one queue."""

import tensorflow as tf


def gather(tensor):
    """Concatenates a tensor over all replicas, in replica order.

    Args:
        tensor: (B / replicas, ...) in replica context, or (B, ...) on a
            single device.

    Returns:
        (B, ...), the same on every replica.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensor
    batch = context.all_gather(tensor, axis=0)
    if tensor.shape[0] is not None:
        # MirroredStrategy forgets it, and a TPU needs it.
        size = tensor.shape[0] * context.num_replicas_in_sync
        batch = tf.ensure_shape(batch, [size, *tensor.shape[1:]])
    return batch


def mean(tensors):
    """Averages tensors over all replicas, all in one exchange.

    Args:
        tensors: list of float32 tensors of static shapes: each replica's
            means over its part of the batch.

    Returns:
        A list of tensors of the same shapes, the same on every replica.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return list(tensors)
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    flat = context.all_reduce(tf.distribute.ReduceOp.MEAN, flat)
    sizes = [tensor.shape.num_elements() for tensor in tensors]
    return [
        tf.reshape(part, tensor.shape)
        for part, tensor in zip(tf.split(flat, sizes), tensors, strict=True)
    ]


def num_replicas():
    """Number of replicas of the strategy in scope; 1 without one."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def update_variables(update, targets, sources):
    """Calls `update(target, source)` for each pair, on each replica's copy.

    For what every replica computes alike (the teacher, the queue): each
    writes its own copy and nothing is sent. In replica context a mirrored
    variable refuses `assign`, or sends the first replica's value to all, so
    the update goes through the strategy. To be called in replica context, as
    from a train step.

    Args:
        update: function of (target, source) that assigns to the target.
        targets: list of `tf.Variable`.
        sources: list of `tf.Variable` or of tensors, as long.
    """

    def update_all(strategy, sources):
        for target, source in zip(targets, sources, strict=True):
            strategy.extended.update(
                target, update, args=(source,), group=False
            )

    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        for target, source in zip(targets, sources, strict=True):
            update(target, source)
    else:
        context.merge_call(update_all, args=(list(sources),))


def gather_number(strategy, number):
    """One number of each worker, on all of them.

    To be called outside of `strategy.run`, by all workers alike.

    Args:
        strategy: a `tf.distribute.Strategy` of several replicas.
        number: int of this process.

    Returns:
        A list of ints, one for each replica, in replica order.
    """
    number = tf.constant(int(number), tf.int64)
    return _gather_number(strategy, number).numpy().tolist()


@tf.function
def _gather_number(strategy, number):
    numbers = strategy.run(lambda: number[tf.newaxis])
    return strategy.gather(numbers, axis=0)
