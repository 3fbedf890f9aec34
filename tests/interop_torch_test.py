"""The same features in plain torch, and files that torch reads and writes."""

from pathlib import Path

import numpy as np
import pytest

import ressl_tf
from ressl_tf import interop

torch = pytest.importorskip("torch")
torch_networks = pytest.importorskip("torch_networks")

# Ours -> its library's, and the size of the images.
NETWORKS = {
    "resnet18": ("resnet18", 64),
    "resnet34": ("resnet34", 33),
    "resnet50": ("resnet50", 64),
    "wide_resnet50_2": ("wide_resnet50_2", 32),
    "efficientnet_b0": ("tf_efficientnet_b0", 64),
    "efficientnet_b1": ("tf_efficientnet_b1", 75),
    "mobilenetv3_large": ("tf_mobilenetv3_large_100", 97),
}
CLASSIFIER = ("fc.", "classifier.", "conv_head.bias", "conv_head.weight")


def make(name, size=64, stem="imagenet", **options):
    return ressl_tf.make_backbone(name, (size, size, 3), stem, **options)


def arrays(network):
    return {name: value.numpy() for name, value in network.state_dict().items()}


def to_torch(state_dict):
    return {k: torch.from_numpy(v.copy()) for k, v in state_dict.items()}


def torch_features(network, images):
    with torch.no_grad():
        images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return network.eval().features(images).numpy()


def random_images(size, count=2):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, size, size, 3)).astype(np.float32)


def assert_same_features(backbone, network, size):
    images = random_images(size)
    expected = torch_features(network, images)
    assert (np.abs(expected) > 1e-3).mean() > 0.5  # there is something to see
    np.testing.assert_allclose(
        backbone(images, training=False),
        expected,
        atol=1e-4 * np.abs(expected).max(),
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_features_equal_torchs_both_ways(name):
    library, size = NETWORKS[name]
    network = torch_networks.randomise(torch_networks.make(library), size=size)
    backbone = make(name, size)
    interop.load_state_dict(backbone, arrays(network))
    assert_same_features(backbone, network, size)

    other = torch_networks.randomise(
        torch_networks.make(library), seed=1, size=size
    )
    before = torch_features(network, random_images(size))
    interop.load_state_dict(backbone, arrays(other))
    state_dict = to_torch(interop.to_state_dict(backbone))
    # strict: nothing is missing but the classifier, nothing is too much.
    missing, unexpected = network.load_state_dict(state_dict, strict=False)
    assert not unexpected
    assert all(key.startswith(CLASSIFIER) for key in missing)
    assert_same_features(backbone, network, size)
    after = torch_features(network, random_images(size))
    assert np.abs(after - before).max() > 0.1 * np.abs(before).max()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["small", "cifar"])
def test_small_stems_and_other_widths(name, stem):
    network = torch_networks.ResNet(name, None, width=16, stem=stem)
    torch_networks.randomise(network, size=32)
    backbone = make(name, 33, stem, width=16)
    interop.load_state_dict(backbone, arrays(network))
    assert_same_features(backbone, network, 33)
    network.load_state_dict(to_torch(interop.to_state_dict(backbone)))


def test_detectron2_names():
    network = torch_networks.ResNet("resnet50", None, layout="detectron2")
    torch_networks.randomise(network)
    backbone = make("resnet50")
    interop.load_state_dict(backbone, arrays(network), "detectron2")
    assert_same_features(backbone, network, 64)
    state_dict = interop.to_state_dict(backbone, "detectron2")
    network.load_state_dict(to_torch(state_dict))
    assert len(state_dict) == 265
    assert state_dict["stem.conv1.norm.running_var"].shape == (64,)
    assert state_dict["res2.0.shortcut.weight"].shape == (256, 64, 1, 1)
    assert state_dict["res5.2.conv3.norm.bias"].shape == (2048,)


def test_torch_reads_what_is_written(tmp_path):
    state_dict = interop.to_state_dict(make("resnet18", 8, "cifar", width=4))
    interop.write_state_dict(tmp_path / "weights.pth", state_dict)
    network = torch_networks.ResNet("resnet18", None, width=4, stem="cifar")
    network.load_state_dict(  # strict
        torch.load(tmp_path / "weights.pth", weights_only=True)
    )
    loaded = arrays(network)
    for name, value in state_dict.items():
        np.testing.assert_array_equal(loaded[name], value)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_training_scripts_checkpoint(wrapper, tmp_path):
    backbone = make("resnet18", 8, "cifar", width=4)
    state_dict = interop.to_state_dict(backbone)
    content = {
        wrapper: {
            **{f"module.q.{k}": v for k, v in to_torch(state_dict).items()},
            # Half precision, a classifier, BN's counter, another branch.
            "module.q.fc.weight": torch.zeros(10, 32, dtype=torch.bfloat16),
            "module.q.bn1.num_batches_tracked": torch.tensor(3),
            "module.k.conv1.weight": torch.zeros(1),
        },
        "epoch": 3,
    }
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    loaded = interop.read_state_dict(tmp_path / "checkpoint.pth.tar")
    assert len(loaded) == len(state_dict) + 3
    other = make("resnet18", 8, "cifar", width=4)
    interop.load_state_dict(other, loaded, prefix="module.q.")
    for value, expected in zip(
        other.get_weights(), backbone.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, expected)


def test_half_precision_becomes_float32(tmp_path):
    backbone = make("resnet18", 8, "cifar", width=4)
    state_dict = interop.to_state_dict(backbone)
    half = {k: v.to(torch.bfloat16) for k, v in to_torch(state_dict).items()}
    torch.save(half, tmp_path / "half.pth")
    loaded = interop.read_state_dict(tmp_path / "half.pth")
    interop.load_state_dict(backbone, loaded)
    for name, value in interop.to_state_dict(backbone).items():
        np.testing.assert_array_equal(value, half[name].float().numpy())


class Code:
    """What a malicious pickle does: runs a function when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_reading_runs_no_code(tmp_path):
    torch.save({"conv1.weight": Code(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="could not be read as a .pth"):
        interop.read_state_dict(tmp_path / "bad.pth")
    np.savez(tmp_path / "bad.npz", x=np.array([Code(tmp_path / "ran")]))
    with pytest.raises(ValueError, match="could not be read as a .npz"):
        interop.read_state_dict(tmp_path / "bad.npz")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="could not be read.*list.pth"):
        interop.read_state_dict(tmp_path / "list.pth")
