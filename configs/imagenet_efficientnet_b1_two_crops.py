"""ImageNet with EfficientNet-B1, two crops: from the paper's light networks.

    python -m tools.pretrain --workdir=DIR --strategy=mirrored \
        --config=configs/imagenet_efficientnet_b1_two_crops.py \
        --config.data.data_dir=DATA_DIR

The paper's linear accuracy after 200 epochs: 73.1 %. Not measured by this
project, which has neither ImageNet nor the GPUs. imagenet.py says more.
"""

from configs import common
from configs import imagenet_two_crops


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = imagenet_two_crops.get_config()
    config.backbone.name = "efficientnet_b1"
    return common.finish(config, arg)
