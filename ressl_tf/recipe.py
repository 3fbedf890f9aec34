"""From a recipe (a nested dict, as in configs/) to the objects it names.

Each sub-dict holds the keyword arguments of one function, so that a setting
is looked up where that function documents it and a typo fails by its name:

    data       `data.open_reader`, where views are finished (`augment_on`), and
               the pixel statistics `mean` and `std`
    views      `augment.make_views`, for "student" and one for "teacher"
    backbone   `make_backbone`
    projector  `make_projector`
    predictor  `make_predictor`, and `enabled`
    method     `ReSSL`, with the InfoNCE warm-up's duration, after which
               `alpha` has its value, and `bn_splits` for the networks
    optimizer  `make_optimizer`, and `base_learning_rate` for a batch of 256
    train      batch size, durations, precision
    monitor    how often to log, to save and to score

A duration is given in epochs or in steps, as `train.epochs` or `train.steps`;
0 stands for "not given".
"""

import logging
from typing import NamedTuple

from tensorflow import keras

from ressl_tf import data
from ressl_tf import networks
from ressl_tf import optimizers
from ressl_tf import schedules
from ressl_tf.model import ReSSL

logger = logging.getLogger("ressl_tf")


class Durations(NamedTuple):
    """The lengths of a run, in steps."""

    epoch: int
    total: int
    warmup: int  # of the learning rate
    infonce_warmup: int  # of alpha


def open_reader(config, cache_bytes=None):
    """The reader of a recipe's images.

    Args:
        config: the recipe.
        cache_bytes: as in `data.open_reader`.
    """
    keys = ("source", "split", "image_size", "data_dir", "max_bad")
    settings = {key: config["data"][key] for key in (*keys, "stream", "lanes")}
    return data.open_reader(**settings, cache_bytes=cache_bytes)


def make_views(config):
    """The views of a recipe: {"student": layers, "teacher": layers}, tuples.

    A view's `size` is `data.image_size` unless its own is given: one number,
    or one a view (multi-crop).
    """
    # keras-cv is 500 modules: only who trains waits for it.
    from ressl_tf import augment

    settings = config["data"]
    return {
        role: augment.make_views(
            **{
                "mean": settings["mean"],
                "std": settings["std"],
                **config["views"][role],
                "size": _view_size(config, role),
            }
        )
        for role in ("student", "teacher")
    }


def make_durations(config, steps_per_epoch):
    """The recipe's durations, each in epochs or in steps, as steps.

    Raises:
        ValueError: for a negative duration, one that is given twice, or a run
            of no step.
    """

    def steps(part, prefix):
        return schedules.duration_in_steps(
            f"{part}.{prefix}",
            epochs=config[part][f"{prefix}epochs"],
            steps=config[part][f"{prefix}steps"],
            steps_per_epoch=steps_per_epoch,
        )

    durations = Durations(
        epoch=steps_per_epoch,
        total=steps("train", ""),
        warmup=steps("train", "warmup_"),
        infonce_warmup=steps("method", "infonce_warmup_"),
    )
    if durations.total == 0:
        train = config["train"]
        raise ValueError(
            "`train.epochs` must be above 0, or `train.steps`. "
            f"Received: train.epochs={train['epochs']}, "
            f"train.steps={train['steps']}"
        )
    if durations.warmup >= durations.total:
        logger.warning(
            "The learning rate rises to the run's very end: its warm-up (%d "
            "steps) is not shorter than the run (%d steps). Lower "
            "`train.warmup_epochs` or `train.warmup_steps` for a short run "
            "that is to learn something.",
            durations.warmup,
            durations.total,
        )
    return durations


def make_model(config, durations=None, views=None):
    """The untrained `ReSSL` of a recipe.

    Args:
        config: the recipe.
        views: as `make_views` returns them, for `data.augment_on` "device".
        durations: `Durations`; None where the model is not going to be
            trained, only loaded.

    Returns:
        A `ReSSL`; with `durations`, compiled.
    """
    size = _input_size(config)
    method = dict(config["method"])
    bn_splits = method.pop("bn_splits", None)
    backbone = networks.make_backbone(
        input_shape=(size, size, 3), bn_splits=bn_splits, **config["backbone"]
    )
    projector = networks.make_projector(
        backbone.output_shape[-1], bn_splits=bn_splits, **config["projector"]
    )
    predictor_settings = dict(config["predictor"])
    predictor = None
    if predictor_settings.pop("enabled"):
        predictor = networks.make_predictor(
            projector.output_shape[-1],
            bn_splits=bn_splits,
            **predictor_settings,
        )
    for unit in ("epochs", "steps"):
        method.pop(f"infonce_warmup_{unit}", None)
    if method.pop("teacher_momentum_cosine") and durations:
        method["teacher_momentum"] = schedules.cosine_momentum(
            method["teacher_momentum"], durations.total
        )
    if durations:
        method["alpha"] = schedules.linear_alpha(
            durations.infonce_warmup, method["alpha"]
        )
    if config["data"]["augment_on"] != "device":
        views = None
    model = ReSSL(
        backbone,
        projector,
        predictor,
        views=views,
        seed=config["seed"],
        **method,
    )
    if durations:
        compile_model(model, config, make_optimizer(config, durations))
    return model


def _input_size(config):
    """The views' one size; None where they have several."""
    size = config["data"]["image_size"]
    same = all(_view_size(config, role) == size for role in config["views"])
    return size if same else None


def _view_size(config, role):
    """The size of a role's views, or their sizes."""
    size = config["views"][role].get("size")
    return config["data"]["image_size"] if size is None else size


def compile_model(model, config, optimizer, steps_per_execution=1):
    """Keras' `compile` with the recipe's settings.

    Again with `model.optimizer` it changes `steps_per_execution` and leaves
    the optimiser as it is.
    """
    settings = config["train"]
    model.compile(
        optimizer,
        jit_compile=settings["jit_compile"],
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
        steps_per_execution=steps_per_execution,
    )


def make_optimizer(config, durations):
    """The recipe's optimiser with its learning-rate schedule."""
    settings = dict(config["optimizer"])
    peak = schedules.scaled_learning_rate(
        settings.pop("base_learning_rate"), config["train"]["batch_size"]
    )
    return optimizers.make_optimizer(
        learning_rate=schedules.WarmupCosine(
            peak, durations.total, durations.warmup
        ),
        **settings,
    )


def make_encoder(config, backbone):
    """What is evaluated and exported: 0-255 images in, features out.

    Args:
        config: the recipe, for the image size and the pixel statistics.
        backbone: `keras.Model` from normalised images to features.

    Returns:
        A `keras.Model` from float32 (B, H, W, 3) in 0-255 to float32 (B, C).
    """
    settings = config["data"]
    size = settings["image_size"]
    images = keras.Input((size, size, 3), name="images")
    normalised = keras.layers.Normalization(
        mean=[255.0 * value for value in settings["mean"]],
        variance=[(255.0 * value) ** 2 for value in settings["std"]],
        dtype="float32",  # 0-255 has too many digits for half precision
        name="normalize",
    )(images)
    features = keras.layers.Activation(
        "linear", dtype="float32", name="embedding"
    )(backbone(normalised))
    return keras.Model(images, features, name="encoder")
