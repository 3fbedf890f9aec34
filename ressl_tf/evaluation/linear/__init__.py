"""Linear probes of a frozen encoder.

`cached` is the paper's protocol of the small sets, on features that were
extracted once, and `augmented` that of ImageNet, on features of new crops in
every epoch; both train the `heads`. `logistic` is logistic regression by
L-BFGS.
"""

from ressl_tf.evaluation.linear.augmented import augmented_linear_probe
from ressl_tf.evaluation.linear.cached import choose_learning_rate
from ressl_tf.evaluation.linear.cached import epoch_order
from ressl_tf.evaluation.linear.cached import linear_probe
from ressl_tf.evaluation.linear.cached import linear_probes
from ressl_tf.evaluation.linear.heads import SoftmaxHeads
from ressl_tf.evaluation.linear.heads import initial_weights
from ressl_tf.evaluation.linear.logistic import logistic_regression

__all__ = [
    "SoftmaxHeads",
    "augmented_linear_probe",
    "choose_learning_rate",
    "epoch_order",
    "initial_weights",
    "linear_probe",
    "linear_probes",
    "logistic_regression",
]
