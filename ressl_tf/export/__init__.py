"""Encoders on disk: written for TensorFlow Serving, read back from anywhere.

models.config                        of all exports, for TensorFlow Serving
batching.config                      its batching parameters
NAME/1/                              SavedModel, version 1
NAME/1/assets.extra/encoder.keras    the same network, trainable
NAME/1/assets.extra/model_card.json  what it is and where it comes from
NAME/1/assets.extra/tf_serving_warmup_requests
NAME/model_card.json, model_card.md  the newest version's

`servable` has the signatures, `layout` says what lies where, `card` is the
model card, `serving` what else TensorFlow Serving reads; `writing` and
`reading` put them together.
"""

from ressl_tf.export.card import fingerprint
from ressl_tf.export.card import read_card
from ressl_tf.export.layout import find_version
from ressl_tf.export.reading import load_encoder
from ressl_tf.export.reading import load_servable
from ressl_tf.export.servable import INPUT_DTYPES
from ressl_tf.export.writing import BRANCHES
from ressl_tf.export.writing import export
from ressl_tf.export.writing import save

__all__ = [
    "BRANCHES",
    "INPUT_DTYPES",
    "export",
    "find_version",
    "fingerprint",
    "load_encoder",
    "load_servable",
    "read_card",
    "save",
]
