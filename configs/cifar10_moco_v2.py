"""MoCo v2 on CIFAR-10: the baseline that the paper compares ReSSL with.

    python -m tools.pretrain --config=configs/cifar10_moco_v2.py --workdir=DIR

InfoNCE alone, with a queue and a momentum encoder: the same model at alpha 0,
with the contrastive augmentation on both sides, shuffled batch normalisation
and no predictor; all else as in cifar10.py. MoCo v2:
https://arxiv.org/abs/2003.04297. Not measured by this project: on two CPU cores
it would take some days.
"""

from configs import cifar10
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to seconds."""
    config = cifar10.get_config()

    config.views.teacher.update(config.views.student.to_dict())
    config.projector.batch_norm = False
    config.predictor.enabled = False
    config.method.alpha = 0.0
    config.method.infonce_temperature = 0.2
    # Only for what is reported of the relations, of which none is learnt. The
    # same as InfoNCE's, so that one softmax serves both.
    config.method.student_temperature = 0.2
    config.method.bn_splits = 8

    return common.finish(config, arg)
