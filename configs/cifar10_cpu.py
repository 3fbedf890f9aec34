"""CIFAR-10 on two CPU cores: a quarter of the width, 15 epochs.

python -m tools.pretrain --config=configs/cifar10_cpu.py --workdir=DIR
"""

from configs import cifar10
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to seconds."""
    config = cifar10.get_config()

    config.backbone.width = 16  # the paper's ResNet-18 has 64
    config.train.epochs = 15.0  # the paper: 200
    config.train.warmup_epochs = 1.0
    config.monitor.eval_every_epochs = 5

    return common.finish(config, arg)
