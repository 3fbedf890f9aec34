"""The embedded photographs: ReSSL at work within minutes, on any machine.

    python -m tools.pretrain --config=configs/photos.py --workdir=DIR

Not in the paper. 32x32 crops of the pictures that ship with scikit-image and
scikit-learn; the small-set recipe with a quarter of its width.
"""

from configs import cifar10
from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to seconds."""
    config = cifar10.get_config()

    config.data.source = "photos"
    config.backbone.width = 16  # the paper's ResNet-18 has 64
    config.method.queue_size = 2048
    config.train.batch_size = 128
    config.train.epochs = 12.0
    config.train.warmup_epochs = 1.0
    config.monitor.eval_every_epochs = 4
    config.monitor.log_every_steps = 20

    return common.finish(config, arg)
