"""Optimisers by name: the paper's SGD and LARS, LAMB, Keras' and Addons'."""

from ressl_tf.optimizers.by_name import OPTIMIZERS
from ressl_tf.optimizers.by_name import make_optimizer
from ressl_tf.optimizers.layerwise import LAMB
from ressl_tf.optimizers.layerwise import LARS
from ressl_tf.optimizers.roles import bias_and_norm_variables
from ressl_tf.optimizers.roles import exclude_by_role
from ressl_tf.optimizers.sgd import MomentumSGD

__all__ = [
    "LAMB",
    "LARS",
    "OPTIMIZERS",
    "MomentumSGD",
    "bias_and_norm_variables",
    "exclude_by_role",
    "make_optimizer",
]
