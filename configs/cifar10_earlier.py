"""CIFAR-10 by the paper's earlier version: no predictor, no warm-up.

    python -m tools.pretrain --config=configs/cifar10_earlier.py --workdir=DIR

ReSSL of 2021 (https://arxiv.org/abs/2107.09282): student and teacher have the
same networks, with shuffled batch normalisation. The paper's linear accuracy
after 200 epochs: 90.20 %; on CIFAR-100 63.79 %, STL-10 88.25 %, Tiny ImageNet
46.60 %, each with its best teacher temperature. Not measured by this project:
on two CPU cores it would take some days.
"""

from configs import cifar10
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to seconds."""
    config = cifar10.get_config()

    config.projector.batch_norm = False  # as in the authors' code
    config.predictor.enabled = False
    config.method.infonce_warmup_epochs = 0.0
    config.method.bn_splits = 8

    return common.finish(config, arg)
