"""Weights to and from torch: names, files, and what is refused."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorflow import keras

import ressl_tf
from ressl_tf import batch_norm
from ressl_tf import interop

# State-dict name -> shape as torchvision and timm have them.
NAMES = json.loads(
    (Path(__file__).parent / "data" / "torch_names.json").read_text()
)
# Ours -> its library's.
TORCH_NAME = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "wide_resnet50_2": "wide_resnet50_2",
    "wide_resnet101_2": "wide_resnet101_2",
    "efficientnet_b0": "tf_efficientnet_b0",
    "efficientnet_b1": "tf_efficientnet_b1",
    "mobilenetv3_large": "tf_mobilenetv3_large_100",
}
# Suffix of a file -> what it takes to write and read it.
PACKAGES = {"npz": "numpy", "safetensors": "safetensors", "pth": "torch"}
CLASSIFIER = ("fc.", "classifier.", "conv_head.")


def make(name, size=64, stem="imagenet", **options):
    return ressl_tf.make_backbone(name, (size, size, 3), stem, **options)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.core)
        if name in ("resnet18", "efficientnet_b0", "mobilenetv3_large")
        else name
        for name in TORCH_NAME
    ],
)
def test_names_and_shapes_are_the_librarys(name):
    state_dict = interop.to_state_dict(make(name))
    library = NAMES[TORCH_NAME[name]]
    found = {key: list(value.shape) for key, value in state_dict.items()}
    head = set(library) - set(found)
    assert found == {k: v for k, v in library.items() if k not in head}
    if name == "mobilenetv3_large":
        assert len(head) == 4  # two layers
    else:
        assert len(head) == 2
    assert all(key.startswith(CLASSIFIER) for key in head)


def test_same_weights_in_torchvisions_and_detectron2s_names():
    backbone = make("resnet18", width=16)
    ours, theirs = (
        interop.to_state_dict(backbone, layout)
        for layout in ("torchvision", "detectron2")
    )
    for value, other in zip(ours.values(), theirs.values(), strict=True):
        np.testing.assert_array_equal(value, other)


def test_batch_statistics_of_training_are_carried_over():
    """Our layer, split or not, and Keras' own have the same entries."""
    backbone = make("resnet18", 8, "cifar", width=4, bn_splits=2)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    backbone(images.astype(np.float32), training=True)
    expected = interop.to_state_dict(backbone)
    assert (expected["bn1.running_var"] != 1).all()
    assert np.abs(expected["bn1.running_mean"]).max() > 0
    plain = interop.to_state_dict(batch_norm.plain_batch_norm(backbone))
    assert list(plain) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(plain[name], value)


def test_an_encoder_is_its_backbones():
    backbone = make("resnet18", 8, "cifar", width=4)
    images = keras.Input((8, 8, 3))
    encoder = keras.Model(images, backbone(images / 255.0))
    assert interop.find_backbone(encoder) is backbone
    state_dict = interop.to_state_dict(encoder)
    assert state_dict.keys() == interop.to_state_dict(backbone).keys()


def write_and_read(path, **options):
    backbone = make("resnet18", 8, "cifar", width=4)
    state_dict = interop.to_state_dict(backbone)
    interop.write_state_dict(path, state_dict)
    return state_dict, interop.read_state_dict(path)


@pytest.mark.parametrize("suffix", PACKAGES)
def test_files_give_back_what_was_written(suffix, tmp_path):
    pytest.importorskip(PACKAGES[suffix])
    path = tmp_path / "new" / f"weights.{suffix}"
    written, read = write_and_read(path)
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    assert read.keys() == written.keys()
    for name, value in written.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], value)


def test_detectron2s_file(tmp_path):
    path = tmp_path / "weights.pkl"
    state_dict = interop.to_state_dict(make("resnet50", width=4), "detectron2")
    interop.write_state_dict(path, state_dict)
    content = path.read_bytes()
    assert b"numpy._core" not in content  # NumPy 1 does not have it
    loaded = pickle.loads(content)
    assert set(loaded) == {"model", "__author__", "matching_heuristics"}
    assert loaded["matching_heuristics"] is True
    assert loaded["model"].keys() == state_dict.keys()
    for name, value in state_dict.items():
        assert loaded["model"][name].flags.writeable
        assert loaded["model"][name].dtype == np.float32
        np.testing.assert_array_equal(loaded["model"][name], value)
    with pytest.raises(ValueError, match=r"must end in .safetensors.*pkl"):
        interop.read_state_dict(path)


@pytest.mark.parametrize("suffix", PACKAGES)
def test_damaged_files_are_named(suffix, tmp_path):
    pytest.importorskip(PACKAGES[suffix])
    path = tmp_path / f"weights.{suffix}"
    write_and_read(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"could not be read.*{path.name}"):
        interop.read_state_dict(path)


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(ValueError, match="missing.npz.*which is none"):
        interop.read_state_dict(tmp_path / "missing.npz")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ValueError, match="must end in.*weights.h5"):
        interop.read_state_dict(tmp_path / "weights.h5")
    with pytest.raises(ValueError, match="must end in.*weights.h5"):
        interop.write_state_dict(tmp_path / "weights.h5", {})


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="needs the package 'torch'"):
        interop.write_state_dict(tmp_path / "weights.pth", {})
    assert not list(tmp_path.iterdir())


def without(state_dict, name):
    return {key: value for key, value in state_dict.items() if key != name}


def test_what_does_not_fit_changes_nothing():
    backbone = make("resnet18", 8, "cifar", width=4)
    before = backbone.get_weights()
    state_dict = {
        name: value + 1
        for name, value in interop.to_state_dict(backbone).items()
    }
    deeper = interop.to_state_dict(make("resnet34", 8, "cifar", width=4))
    wider = interop.to_state_dict(make("resnet18", 8, "cifar", width=8))
    for wrong, message in (
        (without(state_dict, "bn1.bias"), r"it lacks bn1.bias\. .*99 names"),
        ({}, "it lacks conv1.weight and 99 more.*0 names"),
        (deeper, "has no layer1.2.bn1.bias and .* more: .* deeper"),
        ({**state_dict, "rotation": 1}, r"has no rotation: "),
        (
            {f"module.{k}": v for k, v in state_dict.items()},
            "a prefix.*100 names: module.conv1.weight",
        ),
        (
            wider,
            r"conv1.weight must be of shape \(4, 3, 3, 3\).*\(8, 3, 3, 3\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            interop.load_state_dict(backbone, wrong)
    for value, expected in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    interop.load_state_dict(backbone, state_dict)  # the right one does


def test_layouts_and_networks_that_are_not_known():
    with pytest.raises(
        ValueError, match="torchvision, detectron2 for 'resnet18'.*'timm'"
    ):
        interop.to_state_dict(make("resnet18", 8, "cifar", width=4), "timm")
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(inputs)
    with pytest.raises(ValueError, match="of ressl_tf.make_backbone.*'mine'"):
        interop.to_state_dict(keras.Model(inputs, outputs, name="mine"))
