"""ReSSL: relational self-supervised pre-training for TensorFlow and Keras.

The method is `ressl_tf.ReSSL`, a `keras.Model`; its parts are one module
each: `losses`, `schedules`, `key_queue`, `networks`, `optimizers`, `augment`
(views, as keras-cv layers), `data`, `train`, `export` and `evaluation`.
"""

from ressl_tf import losses
from ressl_tf import schedules
from ressl_tf.batch_norm import convert_batch_norm
from ressl_tf.export import load_encoder
from ressl_tf.key_queue import KeyQueue
from ressl_tf.model import ReSSL
from ressl_tf.networks import make_backbone
from ressl_tf.networks import make_predictor
from ressl_tf.networks import make_projector
from ressl_tf.optimizers import make_optimizer
from ressl_tf.version import __version__

__all__ = [
    "KeyQueue",
    "ReSSL",
    "__version__",
    "convert_batch_norm",
    "load_encoder",
    "losses",
    "make_backbone",
    "make_optimizer",
    "make_predictor",
    "make_projector",
    "schedules",
]
