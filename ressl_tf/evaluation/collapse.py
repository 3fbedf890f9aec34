"""When embeddings count as collapsed: for who watches and who reports."""

import math

# `embedding_std` is about 1 for embeddings spread over the sphere and 0 when
# all are alike; a target whose entropy is that of a uniform one, log K, teaches
# nothing.
COLLAPSED_STD = 0.1
UNIFORM_TARGET = 0.99
# Rows of metrics in a row before it is said: fresh networks may start so.
PATIENCE = 3


def uniformity(target_entropy, queue_size):
    """Entropy of the teacher's relation as a part of a uniform one's, log K."""
    return target_entropy / math.log(max(queue_size, 2))


def is_collapsed(embedding_std, target_entropy, queue_size):
    """Whether the embeddings are alike or the target is uniform."""
    is_healthy = (
        embedding_std >= COLLAPSED_STD
        and uniformity(target_entropy, queue_size) <= UNIFORM_TARGET
    )
    return not is_healthy  # also where a number is NaN
