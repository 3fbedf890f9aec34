"""Tests of the recipes: the same settings in each, and the paper's values."""

import ast
import importlib
from pathlib import Path

import pytest
import tensorflow as tf
import tiny

from configs import cifar10
from ressl_tf import recipe
from ressl_tf import train
from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import paper

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)

# What student and teacher have alike unless a table says otherwise: a crop, a
# flip, and nothing else.
WEAK = {
    "crops": 1,
    "size": None,
    "min_area": 0.2,
    "max_area": 1.0,
    "flip": 0.5,
    "jitter": 0.0,
    "grayscale": 0.0,
    "blur": 0.0,
    "solarize": 0.0,
    "randaugment": 0,
}
STRONG = {
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur": 0.5,
    "blur_sigma": (0.1, 2.0),
}


def of_role(role, settings):
    return {f"views.{role}.{key}": value for key, value in settings.items()}


# The small-set column of the paper's settings, for CIFAR-10.
PAPER_CIFAR10 = {
    "data.source": "tfds:cifar10",
    "data.split": "train",
    "data.image_size": 32,
    **of_role("student", {**WEAK, **STRONG}),
    **of_role("teacher", WEAK),
    "backbone.name": "resnet18",
    "backbone.stem": "cifar",
    "backbone.width": 64,
    "projector.hidden_dim": 2048,
    "projector.output_dim": 128,
    "projector.batch_norm": True,
    "predictor.enabled": True,
    "predictor.hidden_dim": 2048,
    "predictor.batch_norm": True,
    "method.alpha": 1.0,
    "method.queue_size": 4096,
    "method.teacher_momentum": 0.99,
    "method.teacher_momentum_cosine": False,
    "method.student_temperature": 0.1,
    "method.teacher_temperature": 0.04,
    "method.infonce_temperature": 0.1,
    "method.infonce_warmup_epochs": 0.0,
    "method.infonce_warmup_steps": 0,
    "method.allow_flat_target": False,
    "method.bn_splits": None,
    "optimizer.name": "sgd",
    "optimizer.base_learning_rate": 0.06,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 5e-4,
    "optimizer.exclude_bias_and_norm": None,  # sgd's custom: of all
    "train.batch_size": 256,
    "train.epochs": 200.0,
    "train.steps": 0,
    "train.warmup_epochs": 10.0,
    "train.warmup_steps": 0,
    "monitor.knn_neighbours": 200,
    "monitor.knn_temperature": 0.1,
}
# The ImageNet column, for one crop.
PAPER_IMAGENET = {
    **PAPER_CIFAR10,
    "data.source": "tfds:imagenet2012",
    "data.stream": True,
    "data.image_size": 224,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "views.student.min_area": 0.14,
    "views.student.saturation": 0.2,
    "views.student.blur_kernel": 23,
    "views.student.solarize": 0.1,
    "backbone.name": "resnet50",
    "backbone.stem": "imagenet",
    "projector.hidden_dim": 4096,
    "projector.output_dim": 256,
    "predictor.hidden_dim": 4096,
    "method.queue_size": 65536,
    "method.teacher_momentum": 0.996,
    "method.teacher_momentum_cosine": True,
    "method.teacher_temperature": 0.03,
    "method.infonce_warmup_epochs": 10.0,
    "optimizer.name": "lars",
    "optimizer.base_learning_rate": 0.6,
    "optimizer.weight_decay": 1e-6,
    "optimizer.exclude_bias_and_norm": None,  # lars' custom: left out
    "train.batch_size": 1024,
}

TWO_CROPS = {"views.student.crops": 2, "views.teacher.crops": 2}
OTHER_SMALL_SETS = {
    "method.teacher_temperature": 0.03,
    "method.infonce_warmup_epochs": 10.0,  # as long as the learning rate's
}
AT_64_PIXELS = {
    **OTHER_SMALL_SETS,
    "data.image_size": 64,
    "backbone.stem": "small",
    "method.queue_size": 16384,
}
EARLIER = {"predictor.enabled": False, "method.bn_splits": 8}
MOCO = {
    **EARLIER,
    "projector.batch_norm": False,
    "method.alpha": 0.0,
    "method.infonce_temperature": 0.2,
    "method.student_temperature": 0.2,  # of metrics alone
}
ON_TWO_CORES = {
    "backbone.width": 16,
    "projector.batch_norm": False,
    "predictor.enabled": False,
    "train.warmup_epochs": 1.0,
}
LIGHT = (
    "resnet18",
    "resnet34",
    "efficientnet_b0",
    "efficientnet_b1",
    "mobilenetv3_large",
)
# Every other recipe: (which it changes, how). Pixel statistics are left out.
CHANGES = {
    "photos": (
        "cifar10",
        {
            "data.source": "photos",
            "backbone.width": 16,
            "method.queue_size": 2048,
            "train.batch_size": 128,
            "train.epochs": 12.0,
            "train.warmup_epochs": 1.0,
            "monitor.eval_every_epochs": 4,
            "monitor.log_every_steps": 20,
        },
    ),
    "cifar100": (
        "cifar10",
        {"data.source": "tfds:cifar100", **OTHER_SMALL_SETS},
    ),
    "stl10": (
        "cifar10",
        {
            "data.source": "tfds:stl10",
            "data.split": "train+unlabelled",
            **AT_64_PIXELS,
        },
    ),
    "tiny_imagenet": (
        "cifar10",
        {"data.source": "folder:tiny-imagenet-200", **AT_64_PIXELS},
    ),
    "cifar10_cpu": (
        "cifar10",
        {
            **ON_TWO_CORES,
            "method.infonce_warmup_epochs": 5.0,
            "train.epochs": 15.0,
        },
    ),
    "cifar100_cpu": (
        "cifar100",
        {
            **ON_TWO_CORES,
            "method.infonce_warmup_epochs": 5.0,
            "train.epochs": 15.0,
        },
    ),
    **{
        f"{name}_cpu": (
            name,
            {
                **ON_TWO_CORES,
                "method.infonce_warmup_epochs": 5 / 3,
                "train.epochs": 5.0,
            },
        )
        for name in ("stl10", "tiny_imagenet")
    },
    "cifar10_moco_v2": ("cifar10", {**MOCO, **of_role("teacher", STRONG)}),
    "cifar10_nnclr": ("cifar10", {"method.teacher_temperature": 0.001}),
    "cifar10_earlier": ("cifar10", {**EARLIER, "projector.batch_norm": False}),
    "cifar10_two_crops": ("cifar10", TWO_CROPS),
    "imagenet_two_crops": ("imagenet", TWO_CROPS),
    "imagenet_multi_crop": (
        "imagenet",
        of_role(
            "student",
            {
                "size": (224, 192, 160, 128, 96),
                "min_area": (0.14, 0.117, 0.095, 0.073, 0.05),
                "max_area": (1.0, 0.86, 0.715, 0.571, 0.429),
            },
        ),
    ),
    "imagenet_stronger": (
        "imagenet_multi_crop",
        of_role(
            "student",
            {
                "min_area": (0.08, 0.08, 0.08, 0.08, 0.08),
                "brightness": 0.8,
                "contrast": 0.8,
                "saturation": 0.8,
                "hue": 0.2,
                "randaugment": 5,
                "randaugment_magnitude": 10,
            },
        ),
    ),
    "imagenet_earlier": (
        "imagenet",
        {**EARLIER, "method.infonce_warmup_epochs": 0.0},
    ),
    # The values of MoCo v2's own paper.
    "imagenet_moco_v2": (
        "imagenet",
        {
            **MOCO,
            **{
                key: value
                for role in ("student", "teacher")
                for key, value in of_role(
                    role,
                    {
                        **STRONG,
                        "min_area": 0.2,
                        "blur_kernel": 23,
                        "solarize": 0.0,
                    },
                ).items()
            },
            "projector.hidden_dim": 2048,
            "projector.output_dim": 128,
            "method.teacher_momentum": 0.999,
            "method.teacher_momentum_cosine": False,
            "method.infonce_warmup_epochs": 0.0,
            "optimizer.name": "sgd",
            "optimizer.base_learning_rate": 0.03,
            "optimizer.weight_decay": 1e-4,
            "train.batch_size": 256,
            "train.warmup_epochs": 0.0,
        },
    ),
    **{
        f"imagenet_{network}{layout}": (
            f"imagenet{layout}",
            {"backbone.name": network},
        )
        for network in LIGHT
        for layout in ("", "_two_crops", "_multi_crop")
    },
}

# The paper's linear accuracies, and MoCo v2's of its own authors.
EXPECTED = {
    "cifar10": 90.76,
    "cifar100": 65.33,
    "stl10": 90.00,
    "tiny_imagenet": 48.22,
    "cifar10_earlier": 90.20,
    "imagenet": 72.0,
    "imagenet_two_crops": 73.2,
    "imagenet_multi_crop": 76.0,
    "imagenet_stronger": 76.3,
    "imagenet_earlier": 69.9,
    "imagenet_moco_v2": 67.5,
    "imagenet_resnet18": 62.4,
    "imagenet_resnet18_two_crops": 63.8,
    "imagenet_resnet18_multi_crop": 66.5,
    "imagenet_resnet34": 66.3,
    "imagenet_resnet34_two_crops": 68.4,
    "imagenet_resnet34_multi_crop": 71.0,
    "imagenet_efficientnet_b0": 69.7,
    "imagenet_efficientnet_b0_two_crops": 70.9,
    "imagenet_efficientnet_b0_multi_crop": 72.2,
    "imagenet_efficientnet_b1": 71.1,
    "imagenet_efficientnet_b1_two_crops": 73.1,
    "imagenet_mobilenetv3_large": 64.7,
    "imagenet_mobilenetv3_large_two_crops": 66.6,
    "imagenet_mobilenetv3_large_multi_crop": 68.2,
}
MEASURED = ("photos", "cifar10_cpu")


def load(name, arg=None):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def flat(config, prefix=""):
    values = {}
    for key, value in config.items():
        if isinstance(value, dict):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values


def field_types(config, prefix=""):
    """{dotted key: type}; the type that is meant where the value is None."""
    types = {}
    for key in config:
        if isinstance(config[key], type(config)):
            types.update(field_types(config[key], f"{prefix}{key}."))
        else:
            types[prefix + key] = config.get_type(key)
    return types


def docstring(name):
    """As it stands in the file, continued lines and all."""
    text = (ROOT / "configs" / f"{name}.py").read_text()
    return ast.get_source_segment(text, ast.parse(text).body[0])


# The quick tests go through all recipes in one: a test each would take longer
# to tear down than to run.


@pytest.mark.core
def test_every_recipe_has_its_values_here():
    assert set(RECIPES) == {"cifar10", "imagenet", *CHANGES}


@pytest.mark.core
@pytest.mark.parametrize(
    "name, expected",
    [("cifar10", PAPER_CIFAR10), ("imagenet", PAPER_IMAGENET)],
)
def test_the_papers_values(name, expected):
    values = flat(load(name).to_dict())
    assert {key: values[key] for key in expected} == expected


@pytest.mark.core
def test_recipes_differ_where_they_say_so():
    for name, (base, changes) in CHANGES.items():
        values, of_base = (flat(load(each).to_dict()) for each in (name, base))
        expected = {
            key: changes.get(key, value)
            for key, value in of_base.items()
            if key not in ("data.mean", "data.std")
        }
        assert set(changes) <= set(of_base), name
        assert {key: values[key] for key in expected} == expected, name


@pytest.mark.core
@pytest.mark.parametrize("arg", [None, "quick"])
def test_same_settings_in_every_recipe(arg):
    expected = field_types(cifar10.get_config())
    # One number, or one a view.
    areas = {
        f"views.{role}.{key}_area"
        for role in ("student", "teacher")
        for key in ("min", "max")
    }
    for name in RECIPES:
        types = field_types(load(name, arg))
        assert {types[key] for key in areas} <= {float, tuple}, name
        types.update({key: float for key in areas})
        assert types == expected, name


@pytest.mark.core
def test_the_quick_form_is_short():
    for name in RECIPES:
        config = load(name, "quick")
        length = (config.train.epochs, config.train.steps)
        assert length == ((0.0, 10) if config.data.stream else (1.0, 0)), name
        assert config.train.warmup_epochs == config.train.warmup_steps == 0
        assert config.backbone.width == 16, name
        recipe.make_durations(config.to_dict(), 100)
        with pytest.raises(ValueError, match="'quick', as in.*'quik'"):
            load(name, "quik")


def number(name):
    """The paper's number as it prints it, or None."""
    decimals = 1 if name.startswith("imagenet") else 2
    return f"{EXPECTED[name]:.{decimals}f}" if name in EXPECTED else None


def test_a_recipe_says_what_it_is():
    for name in RECIPES:
        text = " ".join(docstring(name).split())
        assert "python -m tools.pretrain" in text, name
        assert f"--config=configs/{name}.py" in text, name
        assert f"{number(name) or ''} %" in text or name not in EXPECTED, name
        assert ("Not measured" in text) != (name in MEASURED), name


def test_the_table_of_recipes():
    text = (ROOT / "docs" / "recipes.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if "| `" in line[:3]]
    rows = {row[1].strip(" `"): [cell.strip() for cell in row] for row in rows}
    assert set(rows) == set(RECIPES)
    for name, row in rows.items():
        assert row[5].split()[0] == (number(name) or "-"), name
        assert row[6].startswith("yes" if name in MEASURED else "no"), name


def test_the_papers_number_for_a_run_of_a_recipe():
    for name in RECIPES:
        found = paper.linear_reference(load(name).to_dict()).accuracy
        # MoCo v2's is its authors', not the paper's.
        known = None if name == "imagenet_moco_v2" else EXPECTED.get(name)
        assert found == known, name
    warmed, plain, narrow = (load("stl10").to_dict() for _ in range(3))
    assert paper.linear_reference(warmed).what.endswith("warm-up")
    plain["method"]["infonce_warmup_epochs"] = 0
    assert paper.linear_reference(plain) == (88.89, "with predictor")
    narrow["backbone"]["width"] = 16
    assert paper.linear_reference(narrow) == (None, "")
    assert paper.linear_reference(None) == (None, "")


def test_the_papers_number_for_few_labels():
    config = load("imagenet_multi_crop").to_dict()
    assert paper.semi_supervised_reference(config, 1) == 57.8
    assert paper.semi_supervised_reference(config, 10) == 71.2
    assert paper.semi_supervised_reference(config, 5) is None
    assert paper.semi_supervised_reference(None, 1) is None
    other = load("imagenet_resnet18").to_dict()
    assert paper.semi_supervised_reference(other, 1) is None


def test_the_views_of_a_recipe():
    for name in RECIPES:
        config = load(name).to_dict()
        image_size = config["data"]["image_size"]
        views = recipe.make_views(config)
        assert views["teacher"][0].size == image_size
        for role in ("student", "teacher"):
            settings = config["views"][role]
            crops, sizes = settings.pop("crops"), settings.pop("size")
            sizes = sizes or (image_size,) * crops
            assert [view.size for view in views[role]] == list(sizes), name
            for position, view in enumerate(views[role]):
                for key, value in settings.items():
                    if isinstance(value, tuple) and key != "blur_sigma":
                        value = value[position]
                    assert getattr(view, key) == value, (name, key)
                assert view.mean == config["data"]["mean"], name
                assert view.std == config["data"]["std"], name


@pytest.mark.parametrize(
    "name, features, embedding_dim",
    [
        ("photos", 128, 128),
        ("cifar10", 512, 128),
        ("stl10_cpu", 128, 128),
        ("imagenet_multi_crop", 2048, 256),
        ("imagenet_moco_v2", 2048, 128),
    ],
)
def test_a_recipe_builds(name, features, embedding_dim):
    config = load(name).to_dict()
    model = recipe.make_model(config, recipe.make_durations(config, 100))
    size = config["data"]["image_size"]
    if name == "imagenet_multi_crop":
        size = None
    assert model.student.backbone.input_shape == (None, size, size, 3)
    assert model.student.backbone.output_shape == (None, features)
    assert model.student.projector.output_shape == (None, embedding_dim)
    assert model.queue.keys.shape == (
        config["method"]["queue_size"],
        embedding_dim,
    )
    assert (model.predictor is None) != config["predictor"]["enabled"]
    assert model.bn_splits == config["method"]["bn_splits"]
    assert model.alpha(10**6) == config["method"]["alpha"]


def quick_config(name, folder, image_size):
    """The quick form, on random images in place of the recipe's."""
    config = load(name, "quick").to_dict()
    config["data"].update(
        source=tiny.write_images(folder),
        split="train",
        stream=False,
        image_size=image_size,
    )
    config["train"].update(epochs=0.0, steps=2)
    config["monitor"]["eval_every_epochs"] = 0
    return config


def assert_trains(config, folder):
    run = train.train(config, folder)
    assert run.finished and run.step == 2
    (row,) = workdir_lib.read_metrics(folder)
    assert 0 < row["loss"] < 20 and row["step"] == 2
    return row


@pytest.fixture
def eagerly():
    """Without graphs, which take most of the time of two steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


NOT_OF_TF_DATA = "ignore:Even though.*run_functions_eagerly:UserWarning"
OF_LIGHT_NETWORKS = [
    name
    for name, (_, changes) in CHANGES.items()
    if list(changes) == ["backbone.name"]
]


# Those of light networks would be the same once more with this backbone.
@pytest.mark.filterwarnings(NOT_OF_TF_DATA)
@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(OF_LIGHT_NETWORKS)))
def test_two_steps_of_the_quick_form(name, tmp_path, monkeypatch, eagerly):
    tiny.lighten(monkeypatch)
    config = quick_config(name, tmp_path, tiny.IMAGE_SIZE)
    config["backbone"]["name"] = "tiny"
    student = config["views"]["student"]
    if student["size"]:
        student["size"] = (16, 13, 11, 9, 6)
    row = assert_trains(config, tmp_path / "run")
    if config["method"]["alpha"] == 0:
        assert row["alpha"] == 0 and row["loss"] == row["info_nce"]


@pytest.mark.filterwarnings(NOT_OF_TF_DATA)
@pytest.mark.parametrize("network", LIGHT)
def test_two_steps_of_a_light_network(network, tmp_path, monkeypatch, eagerly):
    monkeypatch.setattr(recipe, "make_views", tiny.plain_views)
    config = quick_config(f"imagenet_{network}", tmp_path, 32)
    assert config["backbone"]["name"] == network
    assert_trains(config, tmp_path / "run")


def test_two_steps_with_real_views_and_graphs(tmp_path):
    config = quick_config("cifar10", tmp_path, tiny.IMAGE_SIZE)
    assert_trains(config, tmp_path / "run")
