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
    config.views.student = _crop_and_flip()
    config.views.teacher = _crop_and_flip()

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
    # Steps between two of a linear probe on labelled crops, which the student
    # does not learn from; scored as the k-NN is, or after each epoch. 0: none.
    config.monitor.online_probe_every_steps = 0
    config.monitor.online_probe_learning_rate = 0.1  # for a batch of 256
    config.monitor.checkpoint_every_epochs = 1
    config.monitor.keep_checkpoints = 2
    return config


def _crop_and_flip():
    """The settings of a role's views, with all but crop and flip off."""
    view = ConfigDict()
    view.crops = 1  # views of this kind
    # None for `data.image_size`. Several are one a view (multi-crop): then
    # each number below may be a tuple, too.
    view.size = config_dict.placeholder(tuple)
    view.min_area = 0.2
    view.max_area = 1.0
    view.flip = 0.5
    view.randaugment = 0  # operations
    view.randaugment_magnitude = 10
    view.jitter = 0.0  # the probability of the next four
    view.brightness = 0.0
    view.contrast = 0.0
    view.saturation = 0.0
    view.hue = 0.0
    view.grayscale = 0.0
    view.blur = 0.0
    view.blur_sigma = (0.1, 2.0)
    view.blur_kernel = 13
    view.solarize = 0.0
    return view


def finish(config, arg):
    """The recipe as `--config=FILE:ARG` asks for it.

    Args:
        config: the recipe.
        arg: None for the recipe itself, or "quick" to shrink it: to see that
            it runs, not what it learns. An epoch of a small network; 10 steps
            where images are streamed, of which there may be millions.

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
    config.train.epochs = 0 if config.data.stream else 1
    config.train.steps = 10 if config.data.stream else 0
    config.train.warmup_epochs = 0
    config.train.warmup_steps = 0
    config.monitor.log_every_steps = 10
    return config
