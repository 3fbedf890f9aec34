"""Tiny ImageNet with ResNet-18: the paper's small-set recipe at 64 pixels.

    python -m tools.pretrain --config=configs/tiny_imagenet.py --workdir=DIR \
        --config.data.source=folder:PATH

PATH is the folder tiny-imagenet-200 as its archive unpacks, with train/ and
val/; its 100,000 training images are read into memory (1.2 GB). The paper's
linear accuracy after 200 epochs: 48.22 % with the InfoNCE warm-up, as here;
46.64 % without it (--config.method.infonce_warmup_epochs=0). Not measured by
this project: on two CPU cores it would take weeks.
"""

from configs import cifar10
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = cifar10.get_config()

    config.data.source = "folder:tiny-imagenet-200"
    config.data.image_size = 64
    config.data.mean = (0.4802, 0.4481, 0.3975)
    config.data.std = (0.2770, 0.2691, 0.2821)
    config.backbone.stem = "small"  # 3x3 at stride 1, max-pool kept
    config.method.queue_size = 16384
    config.method.teacher_temperature = 0.03
    # It helps here. The paper gives no length: the learning rate's warm-up.
    config.method.infonce_warmup_epochs = 10.0

    return common.finish(config, arg)
