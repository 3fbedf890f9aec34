"""CIFAR-10 with two crops: each strong view learns from the other's weak one.

    python -m tools.pretrain --config=configs/cifar10_two_crops.py --workdir=DIR

The symmetric loss, which the paper has for ImageNet alone; a step costs twice
that of cifar10.py. Not measured by this project: on two CPU cores it would take
some days.
"""

from configs import cifar10
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to seconds."""
    config = cifar10.get_config()
    config.views.student.crops = 2
    config.views.teacher.crops = 2
    return common.finish(config, arg)
