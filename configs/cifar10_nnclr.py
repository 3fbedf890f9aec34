"""Relation to the nearest key alone, as in NNCLR, on CIFAR-10.

    python -m tools.pretrain --config=configs/cifar10_nnclr.py --workdir=DIR

The end of the paper's ablation of the teacher's temperature: as it goes to 0
the target becomes one-hot, and the student is trained to name the key that is
nearest to the teacher's embedding. NNCLR (https://arxiv.org/abs/2104.14548)
takes that key for its positive, too, but contrasts it with the batch instead of
the queue's other keys. Not measured by this project: on two CPU cores it would
take some days.
"""

from configs import cifar10
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to seconds."""
    config = cifar10.get_config()
    # A key that is nearer by 0.01 has 22,000 times the weight.
    config.method.teacher_temperature = 0.001
    return common.finish(config, arg)
