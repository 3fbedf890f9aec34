"""The paper's numbers, and which of them a run compares with.

Accuracies in %, after 200 epochs of pre-training; None is one that we do not
know.
"""

from typing import NamedTuple

# Small sets, ResNet-18, linear: with predictor; with predictor and InfoNCE
# warm-up; without predictor, at the best teacher temperature.
SMALL_SETS = {
    "cifar10": (90.76, 89.98, 90.20),
    "cifar100": (65.03, 65.33, 63.79),
    "stl10": (88.89, 90.00, 88.25),
    "tiny_imagenet": (46.64, 48.22, 46.60),
}
# ImageNet, linear, with predictor and warm-up, by the number of the student's
# views: 1 crop, 2 crops, multi-crop.
IMAGENET = {
    "resnet50": (72.0, 73.2, 76.0),
    "resnet18": (62.4, 63.8, 66.5),
    "resnet34": (66.3, 68.4, 71.0),
    "efficientnet_b0": (69.7, 70.9, 72.2),
    "efficientnet_b1": (71.1, 73.1, None),
    "mobilenetv3_large": (64.7, 66.6, 68.2),
}
IMAGENET_EARLIER = 69.9  # ResNet-50 without predictor and warm-up
IMAGENET_STRONGER = 76.3  # ResNet-50, multi-crop with RandAugment
# The teacher's temperature and the queue size of these runs; the student's
# temperature is 0.1, and the teacher's view the weak one.
SETTINGS = {
    "cifar10": (0.04, 4096),
    "cifar100": (0.03, 4096),
    "stl10": (0.03, 16384),
    "tiny_imagenet": (0.03, 16384),
    "imagenet2012": (0.03, 65536),
}
# ResNet-50, fine-tuned on that many % of ImageNet's labels: top-1.
SEMI_SUPERVISED = {1: 57.8, 10: 71.2}


class Reference(NamedTuple):
    """A number of the paper.

    Attributes:
        accuracy: in %, or None where we do not know it.
        what: the row that it stands in; "" for a run that has none.
    """

    accuracy: float | None
    what: str


_NONE = Reference(None, "")


def linear_reference(config):
    """The paper's linear accuracy for a recipe.

    Args:
        config: the recipe, a nested dict, or None. Its length is not looked
            at: the paper's is 200 epochs. A recipe with another temperature,
            queue or teacher's view is an ablation and has no number here.

    Returns:
        A `Reference`.
    """
    if config is None or config["backbone"]["width"] != 64:
        return _NONE
    data_set = _data_set(config)
    name = config["backbone"]["name"]
    method = config["method"]
    views = [_num_views(config, role) for role in ("student", "teacher")]
    has_predictor = config["predictor"]["enabled"]
    warm_up = bool(
        method["infonce_warmup_epochs"] or method["infonce_warmup_steps"]
    )
    if method["alpha"] != 1:  # another method
        return _NONE
    temperature, queue_size = SETTINGS.get(data_set, (None, None))
    if (
        method["queue_size"] != queue_size
        or method["student_temperature"] != 0.1
        # Without predictor the paper's is the best of several.
        or (has_predictor and method["teacher_temperature"] != temperature)
        or config["views"]["teacher"]["jitter"]
    ):
        return _NONE
    if data_set in SMALL_SETS and name == "resnet18" and views == [1, 1]:
        plain, warmed, without = SMALL_SETS[data_set]
        if not has_predictor:
            return Reference(without, "without predictor, best temperature")
        if warm_up:
            return Reference(warmed, "with predictor and InfoNCE warm-up")
        return Reference(plain, "with predictor")
    if data_set != "imagenet2012" or name not in IMAGENET:
        return _NONE
    if not has_predictor:
        if name == "resnet50" and views == [1, 1]:
            return Reference(IMAGENET_EARLIER, "no predictor, no warm-up")
        return _NONE
    if config["views"]["student"]["randaugment"]:
        if name == "resnet50" and views == [5, 1]:
            return Reference(IMAGENET_STRONGER, "stronger augmentation")
        return _NONE
    layouts = {(1, 1): "1 crop", (2, 2): "2 crops", (5, 1): "multi-crop"}
    layout = layouts.get(tuple(views))
    if layout is None:
        return _NONE
    return Reference(
        IMAGENET[name][list(layouts.values()).index(layout)], layout
    )


def semi_supervised_reference(config, percent):
    """The paper's accuracy with that many % of ImageNet's labels, or None."""
    if (
        config is None
        or config["backbone"]["name"] != "resnet50"
        or config["backbone"]["width"] != 64
        or _data_set(config) != "imagenet2012"
    ):
        return None
    return SEMI_SUPERVISED.get(percent)


def _num_views(config, role):
    settings = config["views"][role]
    sizes = settings["size"]  # one for each view, or one for all
    is_one = sizes is None or isinstance(sizes, int)
    return settings["crops"] * (1 if is_one else len(sizes))


def _data_set(config):
    """Name of the set: that of TensorFlow Datasets, without its version."""
    kind, _, name = config["data"]["source"].partition(":")
    if kind == "folder" and "tiny-imagenet" in name:
        return "tiny_imagenet"
    return name.partition(":")[0].partition("/")[0] if kind == "tfds" else ""
