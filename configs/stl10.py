"""STL-10 with ResNet-18: the paper's small-set recipe at 64 pixels.

    python -m tools.pretrain --config=configs/stl10.py --workdir=DIR

Pre-trains on the 105,000 images of train + unlabelled, resized from 96 pixels
to 64. The paper's linear accuracy after 200 epochs: 90.00 % with the InfoNCE
warm-up, as here; 88.89 % without it (--config.method.infonce_warmup_epochs=0).
Not measured by this project: on two CPU cores it would take weeks.
"""

from configs import cifar10
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = cifar10.get_config()

    config.data.source = "tfds:stl10"
    config.data.split = "train+unlabelled"
    config.data.image_size = 64
    config.data.mean = (0.4467, 0.4398, 0.4066)
    config.data.std = (0.2603, 0.2566, 0.2713)
    config.backbone.stem = "small"  # 3x3 at stride 1, max-pool kept
    config.method.queue_size = 16384
    config.method.teacher_temperature = 0.03
    # It helps here. The paper gives no length: the learning rate's warm-up.
    config.method.infonce_warmup_epochs = 10.0

    return common.finish(config, arg)
