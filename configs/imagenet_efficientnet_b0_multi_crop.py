"""ImageNet with EfficientNet-B0, multi-crop: from the paper's light networks.

    python -m tools.pretrain --workdir=DIR --strategy=mirrored \
        --config=configs/imagenet_efficientnet_b0_multi_crop.py \
        --config.data.data_dir=DATA_DIR

The paper's linear accuracy after 200 epochs: 72.2 %. Not measured by this
project, which has neither ImageNet nor the GPUs. imagenet.py says more.
"""

from configs import common
from configs import imagenet_multi_crop


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = imagenet_multi_crop.get_config()
    config.backbone.name = "efficientnet_b0"
    return common.finish(config, arg)
