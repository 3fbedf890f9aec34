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
    return context.all_gather(tensor, axis=0)


def num_replicas():
    """Number of replicas of the strategy in scope; 1 without one."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def update_variables(update, targets, sources):
    """Calls `update(target, source)` for each pair, on each replica's copy.

    For variables that are not aggregated because every replica computes the
    same new value (the teacher's). In replica context a mirrored variable
    refuses `assign`, so the update goes through the strategy. To be called
    in replica context, as from a train step.

    Args:
        update: function of (target, source) that assigns to the target.
        targets: list of `tf.Variable`.
        sources: list of `tf.Variable`, as long.
    """

    def update_all(strategy):
        for target, source in zip(targets, sources, strict=True):
            strategy.extended.update(
                target, update, args=(source,), group=False
            )

    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        for target, source in zip(targets, sources, strict=True):
            update(target, source)
    else:
        context.merge_call(update_all)
