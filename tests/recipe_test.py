"""Tests of what becomes of a recipe."""

import json

import numpy as np
import pytest
import tiny
from tensorflow import keras

from configs import photos
from ressl_tf import optimizers
from ressl_tf import recipe
from ressl_tf import schedules
from ressl_tf import train
from ressl_tf import workdir


@pytest.fixture
def light(monkeypatch):
    tiny.lighten(monkeypatch)


def quick_config():
    return photos.get_config("quick").to_dict()


@pytest.mark.core
def test_durations_are_steps():
    config = quick_config()
    config["train"].update(epochs=2.5, warmup_epochs=0.5)
    config["method"]["infonce_warmup_epochs"] = 1.25
    durations = recipe.make_durations(config, 40)
    assert durations == recipe.Durations(40, 100, 20, 50)
    assert (durations.epoch, durations.total) == (40, 100)
    assert (durations.warmup, durations.infonce_warmup) == (20, 50)


@pytest.mark.core
def test_durations_in_steps():
    config = quick_config()
    config["train"].update(epochs=0.0, steps=70, warmup_steps=7)
    config["method"]["infonce_warmup_steps"] = 33
    durations = recipe.make_durations(config, 40)
    assert durations == recipe.Durations(40, 70, 7, 33)
    # Each for itself.
    config["train"].update(warmup_epochs=0.5, warmup_steps=0)
    durations = recipe.make_durations(config, 40)
    assert durations == recipe.Durations(40, 70, 20, 33)


@pytest.mark.parametrize(
    "part, changes, message",
    [
        (
            "train",
            {"epochs": 0.0},
            "`train.epochs` must be above 0, or `train.steps`. Received: "
            "train.epochs=0.0, train.steps=0",
        ),
        # Rounds to no step.
        ("train", {"epochs": 0.01}, "must be above 0.*train.epochs=0.01"),
        ("train", {"epochs": -1.0}, "`train.epochs` .*train.epochs=-1.0"),
        (
            "train",
            {"epochs": 0.0, "steps": -3},
            "`train.steps` .*train.steps=-3",
        ),
        (
            "train",
            {"steps": 7},
            "`train.epochs` and `train.steps`.*"
            "Received: train.epochs=1.0, train.steps=7",
        ),
        (
            "train",
            {"warmup_epochs": -1.0},
            "Received: train.warmup_epochs=-1.0",
        ),
        (
            "train",
            {"warmup_epochs": 0.5, "warmup_steps": 2},
            "Received: train.warmup_epochs=0.5, train.warmup_steps=2",
        ),
        (
            "method",
            {"infonce_warmup_epochs": -2.0},
            "Received: method.infonce_warmup_epochs=-2.0",
        ),
        (
            "method",
            {"infonce_warmup_epochs": 1.0, "infonce_warmup_steps": 2},
            "`method.infonce_warmup_epochs` and `method.infonce_warmup_steps`"
            ".*epochs=1.0, .*steps=2",
        ),
    ],
)
def test_wrong_durations(part, changes, message):
    config = quick_config()
    config[part].update(changes)
    with pytest.raises(ValueError, match=message):
        recipe.make_durations(config, 40)


@pytest.mark.parametrize(
    "warmup, warned",
    [
        ({"warmup_epochs": 1.9}, False),
        ({"warmup_epochs": 2.0}, True),
        ({"warmup_steps": 19}, False),
        ({"warmup_steps": 20}, True),
    ],
)
def test_a_warmup_as_long_as_the_run_is_warned_of(caplog, warmup, warned):
    config = quick_config()
    config["train"].update(epochs=2.0, **warmup)
    assert recipe.make_durations(config, 10).warmup in (19, 20)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warned
    if warned:
        assert "(20 steps) is not shorter than the run (20 ste" in messages[0]


@pytest.mark.core
def test_settings_reach_the_model(light):
    config = tiny.make_config(
        "photos",
        {
            "projector.hidden_dim": 24,
            "projector.output_dim": 12,
            "predictor.hidden_dim": 20,
            "method.queue_size": 33,
            "method.student_temperature": 0.2,
            "method.teacher_temperature": 0.05,
            "method.infonce_temperature": 0.3,
            "method.teacher_momentum": 0.9,
            "method.infonce_warmup_epochs": 2.0,
            "method.alpha": 0.6,
            "train.jit_compile": False,
        },
    )
    durations = recipe.make_durations(config, 10)
    model = recipe.make_model(config, durations)
    assert model.student.backbone.input_shape == (None, 16, 16, 3)
    assert model.student.backbone.output_shape == (None, 8)  # width 4, 2 stages
    assert model.student.projector.output_shape == (None, 12)
    widths = [
        network.get_layer("hidden").units
        for network in (model.student.projector, model.predictor)
    ]
    assert widths == [24, 20]
    assert tuple(model.queue.keys.shape) == (33, 12)
    assert model.student_temperature == 0.2
    assert model.teacher_temperature == 0.05
    assert model.infonce_temperature == 0.3
    np.testing.assert_allclose(model.teacher_momentum(7), 0.9)
    np.testing.assert_allclose(
        [model.alpha(t) for t in (0, 5, 20, 99)], [0, 0.15, 0.6, 0.6]
    )
    assert isinstance(model.optimizer, optimizers.MomentumSGD)


def test_without_predictor_and_with_cosine_momentum(light):
    config = tiny.make_config(
        "photos",
        {
            "predictor.enabled": False,
            "method.teacher_momentum": 0.9,
            "method.teacher_momentum_cosine": True,
        },
    )
    model = recipe.make_model(config, recipe.make_durations(config, 10))
    assert model.predictor is None
    np.testing.assert_allclose(
        [model.teacher_momentum(t) for t in (0, 15, 30, 31)],
        [0.9, 0.95, 1.0, 1.0],
    )


def test_a_model_that_is_only_loaded_has_no_optimizer(light):
    config = tiny.make_config("photos", {"method.infonce_warmup_epochs": 2.0})
    before = json.dumps(config)
    model = recipe.make_model(config)
    assert getattr(model, "optimizer", None) is None
    assert json.dumps(config) == before  # popping is done on copies


def test_the_seed_decides_the_weights(light):
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        models.append(recipe.make_model({**tiny.make_config("x"), "seed": 3}))
    for a, b in zip(models[0].variables, models[1].variables, strict=True):
        np.testing.assert_array_equal(a, b)
    other = recipe.make_model({**tiny.make_config("x"), "seed": 4})
    assert np.any(other.queue.keys != models[0].queue.keys)


@pytest.mark.core
def test_optimizer():
    config = quick_config()
    config["train"]["batch_size"] = 64
    config["optimizer"].update(
        base_learning_rate=0.4,
        momentum=0.8,
        weight_decay=0.01,
        exclude_bias_and_norm=True,
    )
    durations = recipe.Durations(10, 100, 20, 0)
    optimizer = recipe.make_optimizer(config, durations)
    assert (optimizer.momentum, optimizer.l2) == (0.8, 0.01)
    assert optimizer.exclude_bias_and_norm
    schedule = getattr(optimizer, "_learning_rate", None)
    assert isinstance(schedule, schedules.WarmupCosine)
    # 0.4 for 256 images is 0.1 for 64.
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 10, 20, 60, 100, 101)],
        [0.0, 0.05, 0.1, 0.05, 0.0, 0.0],
        atol=1e-8,
    )


@pytest.mark.parametrize(
    "part, name",
    [
        ("backbone", "widht"),
        ("projector", "dim"),
        ("predictor", "dims"),
        ("method", "queue_sise"),
        ("optimizer", "decay"),
    ],
)
def test_a_typo_fails_by_its_name(light, part, name):
    config = tiny.make_config("photos")
    config[part][name] = 1
    with pytest.raises((TypeError, ValueError), match=name):
        recipe.make_model(config, recipe.make_durations(config, 10))


@pytest.mark.core
def test_encoder_normalises_and_shares_the_backbone():
    images = keras.Input((4, 4, 3))
    features = keras.layers.GlobalAveragePooling2D()(images)
    features = keras.layers.Dense(5, name="dense")(features)
    backbone = keras.Model(images, features)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    config = {"data": {"image_size": 4, "mean": mean, "std": std}}
    encoder = recipe.make_encoder(config, backbone)
    assert encoder.input_shape == (None, 4, 4, 3)
    assert encoder.output_shape == (None, 5)
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 4, 4, 3))
    pixels = pixels.astype(np.float32)
    for _ in range(2):
        kernel, bias = backbone.get_layer("dense").get_weights()
        pooled = ((pixels / 255 - mean) / std).mean(axis=(1, 2))
        np.testing.assert_allclose(
            encoder(pixels), pooled @ kernel + bias, rtol=1e-4, atol=1e-5
        )
        backbone.get_layer("dense").set_weights([kernel + 1, bias - 1])


def test_encoder_is_float32_under_mixed_precision(light):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    config = tiny.make_config("photos")
    model = recipe.make_model(config)
    encoder = recipe.make_encoder(config, model.student.backbone)
    images = tiny.random_images(4).astype(np.float32)
    assert model.student.backbone(images).dtype == "bfloat16"
    features = encoder(images)
    assert features.dtype == "float32"
    keras.mixed_precision.set_global_policy("float32")
    # The normalisation must not round 0-255 to 8 bits.
    normalised = encoder.get_layer("normalize")(images)
    mean, std = (
        np.array(config["data"]["mean"]),
        np.array(config["data"]["std"]),
    )
    expected = (images / 255 - mean) / std
    np.testing.assert_allclose(normalised, expected, atol=1e-5)


def test_views_get_their_own_settings():
    config = quick_config()
    config["data"]["image_size"] = 24
    config["views"]["student"]["min_area"] = 0.1
    config["views"]["teacher"]["min_area"] = 0.3
    views = recipe.make_views(config)
    assert set(views) == {"student", "teacher"}
    for role, area, jitter in (("student", 0.1, 0.8), ("teacher", 0.3, 0.0)):
        (view,) = views[role]
        assert config["views"][role]["size"] is None  # so it is the image's
        assert (view.size, view.min_area) == (24, area)
        assert view.jitter == jitter
        assert tuple(view.mean) == config["data"]["mean"]
        assert tuple(view.std) == config["data"]["std"]


STRONG = {
    "min_area": 0.14,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur": 0.5,
    "blur_kernel": 23,
    "solarize": 0.1,
}
MULTI_CROP = {
    **STRONG,
    "size": (224, 192, 160, 128, 96),
    "min_area": (0.14, 0.117, 0.095, 0.073, 0.05),
    "max_area": (1.0, 0.86, 0.715, 0.571, 0.429),
}
STRONGER = {
    **MULTI_CROP,
    "min_area": 0.08,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "randaugment": 5,
    "randaugment_magnitude": 10,
}


@pytest.mark.parametrize(
    "student, teacher, num_student, num_teacher",
    [
        (STRONG, {}, 1, 1),
        ({**STRONG, "crops": 2}, {"crops": 2}, 2, 2),
        (MULTI_CROP, {}, 5, 1),
        (STRONGER, {}, 5, 1),
    ],
)
def test_layouts_of_the_paper(student, teacher, num_student, num_teacher):
    config = quick_config()
    config["data"]["image_size"] = 224
    config["views"] = {"student": student, "teacher": teacher}
    views = recipe.make_views(config)
    assert len(views["student"]) == num_student
    assert len(views["teacher"]) == num_teacher
    assert views["teacher"][0].size == 224
    for number, view in enumerate(views["student"]):
        for name, value in student.items():
            if name != "crops":
                own = value[number] if isinstance(value, tuple) else value
                assert getattr(view, name) == own
    # Several sizes need a backbone of any size.
    size = None if "size" in student else 224
    backbone = recipe.make_model(config).student.backbone
    assert backbone.input_shape == (None, size, size, 3)


def test_a_multi_crop_run(tmp_path, monkeypatch):
    tiny.add_backbone(monkeypatch)
    config = tiny.make_config(
        tiny.write_images(tmp_path), {"train.epochs": 1.0}
    )
    config["views"]["student"] = {
        "size": (16, 12),
        "min_area": (0.2, 0.1),
        "max_area": (1.0, 0.5),
    }
    run = train.train(config, tmp_path / "run")
    assert run.finished
    rows = workdir.read_metrics(tmp_path / "run")
    assert np.isfinite([row["loss"] for row in rows]).all()
