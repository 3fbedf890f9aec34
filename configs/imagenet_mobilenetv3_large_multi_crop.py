"""ImageNet with MobileNetV3-Large, multi-crop: from the paper's light networks.

    python -m tools.pretrain --workdir=DIR --strategy=mirrored \
        --config=configs/imagenet_mobilenetv3_large_multi_crop.py \
        --config.data.data_dir=DATA_DIR

The paper's linear accuracy after 200 epochs: 68.2 %. Not measured by this
project, which has neither ImageNet nor the GPUs. imagenet.py says more.
"""

from configs import common
from configs import imagenet_multi_crop


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = imagenet_multi_crop.get_config()
    config.backbone.name = "mobilenetv3_large"
    return common.finish(config, arg)
