"""Where a run is trained: strategies by name, clusters that say what is wrong.

`strategies` is the front door; `rendezvous` waits for the other workers, and
`tpu` looks for a TPU.
"""

from ressl_tf.cluster.strategies import STRATEGIES
from ressl_tf.cluster.strategies import ClusterError
from ressl_tf.cluster.strategies import explain
from ressl_tf.cluster.strategies import is_chief
from ressl_tf.cluster.strategies import make_strategy
from ressl_tf.cluster.strategies import num_workers
from ressl_tf.cluster.strategies import watch
from ressl_tf.cluster.strategies import worker_name

__all__ = [
    "STRATEGIES",
    "ClusterError",
    "explain",
    "is_chief",
    "make_strategy",
    "num_workers",
    "watch",
    "worker_name",
]
