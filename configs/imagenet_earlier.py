"""ImageNet by the paper's earlier version: no predictor, no InfoNCE warm-up.

    python -m tools.pretrain --config=configs/imagenet_earlier.py \
        --workdir=DIR --strategy=mirrored --config.data.data_dir=DATA_DIR

Student and teacher have the same networks, with shuffled batch normalisation;
one crop. The paper's linear accuracy after 200 epochs of ResNet-50: 69.9 %. Not
measured by this project, which has neither ImageNet nor the GPUs. imagenet.py
says more.
"""

from configs import common
from configs import imagenet


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = imagenet.get_config()

    config.predictor.enabled = False
    config.method.infonce_warmup_epochs = 0.0
    config.method.bn_splits = 8

    return common.finish(config, arg)
