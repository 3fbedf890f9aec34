"""Tiny ImageNet on two CPU cores: a quarter of the width, 5 epochs.

    python -m tools.pretrain --config=configs/tiny_imagenet_cpu.py \
        --workdir=DIR --config.data.source=folder:PATH
    python -m tools.linear_probe --workdir=DIR

Not in the paper; the choices are those that `cifar10_cpu.py` measured. About an
hour. Not measured by this project on the whole set, of which it had no copy.

A part of the set in the same layout will do for a first try; its queue must be
smaller. On 3,000 images of 10 classes k-NN accuracy was 25 % after 10 epochs of
30, where that run was stopped (chance is 10 %), with

    --config.method.queue_size=1024 --config.train.epochs=30 \
        --config.method.infonce_warmup_epochs=10
"""

from configs import cifar10_cpu
from configs import common
from configs import tiny_imagenet


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = tiny_imagenet.get_config()
    cifar10_cpu.shrink(config, epochs=5.0)
    return common.finish(config, arg)
