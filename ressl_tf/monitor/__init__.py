"""What watches a run: Keras callbacks that log, warn, score and save."""

from ressl_tf.monitor.knn_monitor import KNNMonitor
from ressl_tf.monitor.metrics_logger import MetricsLogger
from ressl_tf.monitor.metrics_logger import NotFiniteError
from ressl_tf.monitor.metrics_logger import peak_memory_bytes
from ressl_tf.monitor.online_probe import OnlineProbe
from ressl_tf.monitor.saver import Saver

__all__ = [
    "KNNMonitor",
    "MetricsLogger",
    "NotFiniteError",
    "OnlineProbe",
    "Saver",
    "peak_memory_bytes",
]
