"""ImageNet with EfficientNet-B1, multi-crop: from the paper's light networks.

    python -m tools.pretrain --workdir=DIR --strategy=mirrored \
        --config=configs/imagenet_efficientnet_b1_multi_crop.py \
        --config.data.data_dir=DATA_DIR

A row of the paper whose number this project does not know. Not measured here
either, for want of ImageNet and the GPUs. imagenet.py says more.
"""

from configs import common
from configs import imagenet_multi_crop


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = imagenet_multi_crop.get_config()
    config.backbone.name = "efficientnet_b1"
    return common.finish(config, arg)
