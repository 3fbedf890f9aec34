"""Backbones, projector and predictor.

A backbone maps normalised images to average-pooled features, one vector an
image. `make_backbone` knows the paper's by name; any other `keras.Model` of
that kind can be passed to `ReSSL` instead.
"""

from ressl_tf.networks.backbones import make_backbone
from ressl_tf.networks.heads import make_predictor
from ressl_tf.networks.heads import make_projector
from ressl_tf.networks.resnet import RESNETS
from ressl_tf.networks.resnet import Architecture

__all__ = [
    "RESNETS",
    "Architecture",
    "make_backbone",
    "make_predictor",
    "make_projector",
]
