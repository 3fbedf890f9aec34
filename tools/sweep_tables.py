"""The runs of the paper's ablation tables, with the numbers known of them.

The paper's numbers are linear accuracies in %, ResNet-18, 200 epochs; None is
one that we do not know, "chance" is a collapse. A run is its data set's recipe,
`configs/DATASET.py`, with what is overridden: everything that a table keeps
fixed and a recipe might set otherwise is named, too.
"""

from typing import NamedTuple

from ressl_tf.evaluation import paper

DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "tiny_imagenet": "Tiny ImageNet",
}
CPU_EPOCHS = 4.0
CPU_WIDTH = 16

TEMPERATURES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1)
STUDENT_TEMPERATURE = 0.1
QUEUE_SIZES = (256, 1024, 4096, 16384, 32768)
INFONCE_WARMUP = "method.infonce_warmup_epochs"
WARMUP_EPOCHS = 10.0  # as long as the learning rate's; the paper does not say

# What the student sees.
CONTRASTIVE_VIEW = {
    "min_area": 0.2,
    "max_area": 1.0,
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur": 0.5,
    "blur_sigma": (0.1, 2.0),
}

# The temperature of a set's recipe, where the paper's number is known.
KNOWN_AT = {
    "cifar10": 0.04,
    "cifar100": 0.03,
    "stl10": 0.03,
    "tiny_imagenet": 0.03,
}


class Run(NamedTuple):
    """One row of a table.

    Attributes:
        name: of its folder, and for `--only`.
        dataset: key of `DATASETS`; `configs/DATASET.py` is its recipe.
        value: what the table varies: a number, or a few words.
        overrides: {setting of the recipe: value}.
        paper: the paper's accuracy in %, "chance", or None.
    """

    name: str
    dataset: str
    value: float | str
    overrides: dict
    paper: float | str | None = None

    @property
    def recipe(self):
        return f"configs/{self.dataset}.py"


class Table(NamedTuple):
    """One table of the paper.

    Attributes:
        key: for `--table` and its folder.
        title: one line.
        varies: what `Run.value` is.
        runs: tuple of `Run`.
        pairs: tuple of (title, name of a run, name of another).
        best: {dataset: the paper's best over the runs}.
    """

    key: str
    title: str
    varies: str
    runs: tuple
    pairs: tuple = ()
    best: dict | None = None

    @property
    def folder(self):
        return f"table{self.key}" if self.key.isdigit() else self.key


def get(key):
    """The `Table` of a key; "4" and "5" are one.

    Raises:
        ValueError: for an unknown key.
    """
    key = {"4": "5"}.get(key, key)
    if key not in TABLES:
        raise ValueError(
            f"`--table` must be one of {', '.join(sorted([*TABLES, '4']))}. "
            f"Received: --table={key}"
        )
    return TABLES[key]


def settings(run, budget="full", epochs=None, overrides=()):
    """Everything that a run changes about its recipe.

    Args:
        run: a `Run`.
        budget: "full" changes nothing; "cpu" is a quarter of the width and a
            few epochs, and no scores while training. Its warm-ups, of the
            learning rate and, where the run has one, of InfoNCE, are an
            eighth of the run.
        epochs: of "cpu".
        overrides: {setting: value} of all runs, on top of the budget.

    Returns:
        {setting: value}.

    Raises:
        ValueError: if `overrides` has what the run itself sets.
    """
    overrides = dict(overrides)
    taken = sorted({*run.overrides, "seed"} & set(overrides))
    if taken:
        raise ValueError(
            "`--override` must leave alone what the table sets and the seed "
            f"(--seeds). Received: {', '.join(taken)}, which {run.name} sets"
        )
    values = {**overrides, **run.overrides}
    if budget == "full":
        return values
    if values[INFONCE_WARMUP]:
        values[INFONCE_WARMUP] = epochs / 8
    return {
        "backbone.width": CPU_WIDTH,
        "train.epochs": epochs,
        "train.warmup_epochs": epochs / 8,
        "monitor.eval_every_epochs": 0,
        **values,
    }


def _temperature(temperature):
    overrides = {
        INFONCE_WARMUP: 0.0,
        "predictor.enabled": True,
        "method.student_temperature": STUDENT_TEMPERATURE,
        "method.teacher_temperature": temperature,
    }
    if temperature >= STUDENT_TEMPERATURE:
        overrides["method.allow_flat_target"] = True
    return overrides


def _temperature_without_predictor(temperature):
    return {
        **_temperature(temperature),
        "predictor.enabled": False,
        # What stands in for the predictor's global statistics: shuffled batch
        # normalisation, and as in the authors' code none in the projector.
        "method.bn_splits": 8,
        "projector.batch_norm": False,
    }


def _with_predictor():
    for dataset, known_at in KNOWN_AT.items():
        number, _, _ = paper.SMALL_SETS[dataset]
        for temperature in TEMPERATURES:
            yield Run(
                f"{dataset}_t{temperature:g}",
                dataset,
                temperature,
                _temperature(temperature),
                number if temperature == known_at else None,
            )


def _without_predictor():
    for dataset in DATASETS:
        for temperature in TEMPERATURES:
            yield Run(
                f"{dataset}_t{temperature:g}",
                dataset,
                temperature,
                _temperature_without_predictor(temperature),
                "chance" if temperature >= 0.08 else None,
            )


def _warmups():
    for dataset, temperature in KNOWN_AT.items():
        off, on, _ = paper.SMALL_SETS[dataset]
        fixed = _temperature(temperature)
        yield Run(f"{dataset}_off", dataset, "off", fixed, off)
        yield Run(
            f"{dataset}_on",
            dataset,
            "on",
            {**fixed, INFONCE_WARMUP: WARMUP_EPOCHS},
            on,
        )


def _teacher_views():
    fixed = _temperature(0.04)
    whole = {
        **fixed,
        "views.teacher.min_area": 1.0,
        "views.teacher.max_area": 1.0,
        "views.teacher.flip": 0.0,
    }
    crop = {
        **fixed,
        "views.teacher.min_area": 0.2,
        "views.teacher.max_area": 1.0,
        "views.teacher.flip": 0.0,
    }
    crop_flip = {**crop, "views.teacher.flip": 0.5}
    contrastive = {
        **fixed,
        **{f"views.teacher.{key}": x for key, x in CONTRASTIVE_VIEW.items()},
    }
    return (
        Run("none", "cifar10", "none", whole, 79.33),
        Run("crop", "cifar10", "crop", crop, 90.62),
        Run("crop_flip", "cifar10", "crop + flip", crop_flip, 90.76),
        Run("contrastive", "cifar10", "contrastive", contrastive, 86.88),
    )


def _queue_sizes():
    known = {256: 89.52, 4096: 90.76, 16384: 90.82, 32768: 90.27}
    for size in QUEUE_SIZES:
        yield Run(
            f"k{size}",
            "cifar10",
            size,
            {**_temperature(0.04), "method.queue_size": size},
            known.get(size),
        )


def _pairs():
    flat = _temperature(0.1)
    earlier = _temperature_without_predictor(0.1)
    (contrastive,) = (r for r in _teacher_views() if r.name == "contrastive")
    (short_queue,) = (r for r in _queue_sizes() if r.name == "k256")

    def run(name, value, overrides, paper=None):
        return Run(name, "cifar10", value, overrides, paper)

    return (
        run("base", "the recipe", _temperature(0.04), 90.76),
        contrastive._replace(value="contrastive teacher view"),
        run("flat", "flat target", flat),
        run(
            "flat_no_predictor",
            "flat target, no predictor",
            {**flat, "predictor.enabled": False},
        ),
        run(
            "flat_earlier",
            "flat target, no predictor, batch norm as in table 2",
            earlier,
            "chance",
        ),
        short_queue._replace(value="queue of 256"),
    )


TABLES = {
    table.key: table
    for table in (
        Table(
            "1",
            "Table 1: teacher temperature, with predictor",
            "teacher temperature",
            tuple(_with_predictor()),
        ),
        Table(
            "2",
            "Table 2: teacher temperature, without predictor",
            "teacher temperature",
            tuple(_without_predictor()),
            # At which of the temperatures we do not know.
            best={name: best for name, (*_, best) in paper.SMALL_SETS.items()},
        ),
        Table(
            "3",
            "Table 3: InfoNCE warm-up",
            "InfoNCE warm-up",
            tuple(_warmups()),
        ),
        Table(
            "5",
            "Tables 4 and 5: the teacher's augmentation",
            "teacher's augmentation",
            _teacher_views(),
        ),
        Table(
            "6",
            "Table 6: queue size",
            "queue size",
            tuple(_queue_sizes()),
        ),
        Table(
            "pairs",
            "Pairs out of tables 1, 2, 5 and 6",
            "run",
            _pairs(),
            pairs=(
                ("teacher view: weak or contrastive", "base", "contrastive"),
                ("teacher temperature: 0.04 or 0.1", "base", "flat"),
                (
                    "at 0.1: with or without predictor",
                    "flat",
                    "flat_no_predictor",
                ),
                (
                    "at 0.1: with predictor or as in table 2",
                    "flat",
                    "flat_earlier",
                ),
                ("queue: 4096 or 256", "base", "k256"),
            ),
        ),
    )
}
