"""What no recipe of the paper varies, and the quick form of any recipe."""

from ml_collections import ConfigDict
from ml_collections import config_dict


def get_config():
    """Defaults for everything that the paper's tables do not list."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.source = "photos"
    config.data.data_dir = ""  # where tensorflow-datasets keeps its files
    config.data.split = "train"
    # True reads images while training, for what memory cannot hold: files of
    # a folder or shards; views are then cut from them in full size.
    config.data.stream = False
    config.data.lanes = 8  # of shards: parts of a batch that read their own
    # Images that cannot be read and may be skipped: None for 1 %, at least 10.
    config.data.max_bad = config_dict.placeholder(int)
    # "device" leaves the views' colours to it: the host decodes and crops.
    config.data.augment_on = "host"
    config.data.image_size = 32

    config.views = ConfigDict()
    config.views.student = ConfigDict()
    config.views.teacher = ConfigDict()

    config.train = ConfigDict()
    # In place of epochs and warmup_epochs, which are then 0.
    config.train.steps = 0
    config.train.warmup_steps = 0
    config.train.precision = "float32"  # or mixed_bfloat16, mixed_float16
    config.train.jit_compile = False
    # Parts of a batch that are learnt from one after the other: for batches
    # that do not fit. Each has batch statistics of its own.
    config.train.gradient_accumulation_steps = 1
    # Steps between two visits of the host: for TPU, where each costs time.
    config.train.steps_per_execution = 1

    config.monitor = ConfigDict()
    config.monitor.log_every_steps = 50
    config.monitor.eval_every_epochs = 5  # 0: no k-NN score
    config.monitor.knn_neighbours = 200
    config.monitor.knn_temperature = 0.1
    config.monitor.checkpoint_every_epochs = 1
    config.monitor.keep_checkpoints = 2
    return config


def finish(config, arg):
    """The recipe as `--config=FILE:ARG` asks for it.

    Args:
        config: the recipe.
        arg: None for the recipe itself, or "quick" to shrink it to seconds:
            to see that it runs, not what it learns.

    Raises:
        ValueError: for anything else.
    """
    if arg is None:
        return config
    if arg != "quick":
        raise ValueError(
            "A recipe has one other form, 'quick', as in "
            f"configs/photos.py:quick. Received: {arg!r}"
        )
    # Not less: see `make_backbone`.
    config.backbone.width = 16
    config.projector.hidden_dim = 32
    config.projector.output_dim = 16
    config.predictor.hidden_dim = 32
    config.method.queue_size = 256
    config.train.batch_size = 32
    config.train.epochs = 1
    config.train.steps = 0
    config.train.warmup_epochs = 0
    config.train.warmup_steps = 0
    config.monitor.log_every_steps = 10
    return config
