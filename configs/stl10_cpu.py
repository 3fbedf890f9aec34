"""STL-10 on two CPU cores: a quarter of the width, 5 epochs.

    python -m tools.pretrain --config=configs/stl10_cpu.py --workdir=DIR
    python -m tools.linear_probe --workdir=DIR

Not in the paper; the choices are those that `cifar10_cpu.py` measured. About an
hour. Not measured by this project, which had no copy of STL-10.
"""

from configs import cifar10_cpu
from configs import common
from configs import stl10


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = stl10.get_config()
    cifar10_cpu.shrink(config, epochs=5.0)
    return common.finish(config, arg)
