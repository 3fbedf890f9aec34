"""CIFAR-100 on two CPU cores: a quarter of the width, 15 epochs.

    python -m tools.pretrain --config=configs/cifar100_cpu.py --workdir=DIR
    python -m tools.linear_probe --workdir=DIR

Not in the paper; the choices are those that `cifar10_cpu.py` measured, on
images of the same size and number: half an hour. Not measured by this project,
which had no copy of CIFAR-100.
"""

from configs import cifar10_cpu
from configs import cifar100
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to seconds."""
    config = cifar100.get_config()
    cifar10_cpu.shrink(config, epochs=15.0)
    return common.finish(config, arg)
