"""ImageNet with stronger augmentation: RandAugment on the multi-crop layout.

    python -m tools.pretrain --config=configs/imagenet_stronger.py \
        --workdir=DIR --strategy=mirrored --config.data.data_dir=DATA_DIR

The paper's linear accuracy after 200 epochs of ResNet-50: 76.3 %. Not measured
by this project, which has neither ImageNet nor the GPUs. imagenet.py says more.
"""

from configs import common
from configs import imagenet_multi_crop


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = imagenet_multi_crop.get_config()

    student = config.views.student
    student.min_area = (0.08,) * 5
    student.brightness = 0.8
    student.contrast = 0.8
    student.saturation = 0.8
    student.hue = 0.2
    student.randaugment = 5
    student.randaugment_magnitude = 10

    return common.finish(config, arg)
