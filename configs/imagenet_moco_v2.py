"""MoCo v2 on ImageNet: the baseline, by the recipe of its own paper.

    python -m tools.pretrain --config=configs/imagenet_moco_v2.py \
        --workdir=DIR --strategy=mirrored --config.data.data_dir=DATA_DIR

The same model at alpha 0: InfoNCE alone, with a queue and a momentum encoder,
the contrastive augmentation on both sides, shuffled batch normalisation. The
values are those of MoCo v2 (https://arxiv.org/abs/2003.04297), whose authors
report a linear accuracy of 67.5 % after 200 epochs of ResNet-50; their cosine
moves the learning rate by epochs, here it moves by steps. Not measured by this
project, which has neither ImageNet nor the GPUs. imagenet.py says more.

For InfoNCE in the setting of ReSSL, override imagenet_earlier.py:
--config.method.alpha=0 --config.method.infonce_temperature=0.2
"""

from configs import common
from configs import imagenet


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = imagenet.get_config()

    student = config.views.student
    student.min_area = 0.2
    student.saturation = 0.4
    student.solarize = 0.0
    config.views.teacher.update(student.to_dict())

    config.projector.hidden_dim = 2048
    config.projector.output_dim = 128
    config.projector.batch_norm = False
    config.predictor.enabled = False

    config.method.alpha = 0.0
    config.method.infonce_warmup_epochs = 0.0
    config.method.infonce_temperature = 0.2
    # Only for what is reported of the relations, of which none is learnt. The
    # same as InfoNCE's, so that one softmax serves both.
    config.method.student_temperature = 0.2
    config.method.teacher_momentum = 0.999
    config.method.teacher_momentum_cosine = False
    config.method.bn_splits = 8

    config.optimizer.name = "sgd"
    config.optimizer.base_learning_rate = 0.03
    config.optimizer.weight_decay = 1e-4
    config.train.batch_size = 256
    config.train.warmup_epochs = 0.0

    return common.finish(config, arg)
