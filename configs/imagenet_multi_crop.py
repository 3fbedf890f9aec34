"""ImageNet with multi-crop: five strong views, from 224 to 96 pixels.

    python -m tools.pretrain --config=configs/imagenet_multi_crop.py \
        --workdir=DIR --strategy=mirrored --config.data.data_dir=DATA_DIR

One weak view of 224 for the teacher; each size is a student's forward pass with
batch statistics of its own. The paper's linear accuracy after 200 epochs of
ResNet-50: 76.0 %. Not measured by this project, which has neither ImageNet nor
the GPUs. imagenet.py says more.
"""

from configs import common
from configs import imagenet


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = imagenet.get_config()

    student = config.views.student
    student.size = (224, 192, 160, 128, 96)
    with student.ignore_type():  # one area a size, where others have one
        student.min_area = (0.14, 0.117, 0.095, 0.073, 0.05)
        student.max_area = (1.0, 0.86, 0.715, 0.571, 0.429)

    return common.finish(config, arg)
