"""Tests of the recipes: the same settings in each, and the paper's values."""

import importlib
from pathlib import Path

import pytest
import tiny

from configs import cifar10
from ressl_tf import recipe
from ressl_tf import train
from ressl_tf import workdir as workdir_lib

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)

# The small-set row of the paper's tables; "train" is per CIFAR-10.
PAPER_CIFAR10 = {
    "data.source": "tfds:cifar10",
    "data.split": "train",
    "data.image_size": 32,
    "views.student.crops": 1,
    "views.student.min_area": 0.2,
    "views.student.max_area": 1.0,
    "views.student.flip": 0.5,
    "views.student.jitter": 0.8,
    "views.student.brightness": 0.4,
    "views.student.contrast": 0.4,
    "views.student.saturation": 0.4,
    "views.student.hue": 0.1,
    "views.student.grayscale": 0.2,
    "views.student.blur": 0.5,
    "views.student.blur_sigma": (0.1, 2.0),
    "views.student.solarize": 0.0,
    "views.student.randaugment": 0,
    "views.teacher.crops": 1,
    "views.teacher.min_area": 0.2,
    "views.teacher.max_area": 1.0,
    "views.teacher.flip": 0.5,
    "backbone.name": "resnet18",
    "backbone.stem": "cifar",
    "backbone.width": 64,
    "projector.hidden_dim": 2048,
    "projector.output_dim": 128,
    "projector.batch_norm": True,
    "predictor.enabled": True,
    "predictor.hidden_dim": 2048,
    "predictor.batch_norm": True,
    "method.queue_size": 4096,
    "method.teacher_momentum": 0.99,
    "method.teacher_momentum_cosine": False,
    "method.student_temperature": 0.1,
    "method.teacher_temperature": 0.04,
    "method.infonce_warmup_epochs": 0.0,
    "method.infonce_warmup_steps": 0,
    "method.allow_flat_target": False,
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


def test_there_are_recipes():
    assert {"cifar10", "cifar10_cpu", "photos"} <= set(RECIPES)


@pytest.mark.core
def test_cifar10_is_the_papers_recipe():
    values = flat(load("cifar10").to_dict())
    assert {key: values[key] for key in PAPER_CIFAR10} == PAPER_CIFAR10
    # The teacher's view is weak: nothing beyond crop and flip.
    teacher = {key for key in values if key.startswith("views.teacher.")}
    assert teacher <= set(PAPER_CIFAR10)


def test_the_cpu_recipe_differs_where_it_says_so():
    paper, cpu = (flat(load(n).to_dict()) for n in ("cifar10", "cifar10_cpu"))
    assert {key: cpu[key] for key in cpu if cpu[key] != paper[key]} == {
        "backbone.width": 16,
        "projector.batch_norm": False,
        "predictor.enabled": False,
        "method.infonce_warmup_epochs": 5.0,
        "train.epochs": 15.0,
        "train.warmup_epochs": 1.0,
    }


@pytest.mark.core
@pytest.mark.parametrize("arg", [None, "quick"])
@pytest.mark.parametrize("name", RECIPES)
def test_same_settings_in_every_recipe(name, arg):
    config = load(name, arg)
    reference = cifar10.get_config()
    assert set(flat(config.to_dict())) == set(flat(reference.to_dict()))
    types = {key: type(x) for key, x in flat(config.to_dict()).items()}
    assert types == {
        key: type(x) for key, x in flat(reference.to_dict()).items()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"python -m tools.pretrain --config=configs/{name}.py" in text
    with pytest.raises(ValueError, match="'quick', as in.*Received: 'quik'"):
        load(name, "quik")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds(name):
    config = load(name).to_dict()
    views = recipe.make_views(config)
    assert views["student"][0].size == config["data"]["image_size"]
    model = recipe.make_model(config, recipe.make_durations(config, 100))
    assert model.student.backbone.output_shape == (
        None,
        8 * config["backbone"]["width"],
    )
    assert model.student.projector.output_shape == (None, 128)
    assert model.queue.keys.shape == (config["method"]["queue_size"], 128)


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_the_quick_form(name, tmp_path, monkeypatch):
    views = (tiny.PlainView(0.5),), (tiny.PlainView(0.1),)
    monkeypatch.setattr(
        recipe,
        "make_views",
        lambda config: dict(zip(("student", "teacher"), views, strict=True)),
    )
    config = load(name, "quick").to_dict()
    config["data"]["source"] = tiny.write_images(tmp_path)
    config["data"]["image_size"] = tiny.IMAGE_SIZE
    config["monitor"]["eval_every_epochs"] = 0
    run = train.train(config, tmp_path / "run")
    assert run.finished and run.step == 2
    (row,) = workdir_lib.read_metrics(tmp_path / "run")
    assert 0 < row["loss"] < 20 and row["step"] == 2
