"""Tests of the image sets: photos, TensorFlow Datasets and npz."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ressl_tf.data import sources

ROOT = Path(__file__).resolve().parents[1]


def real_data(name):
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("RESSL_TF_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there; RESSL_TF_DATA names its folder")
    return folder


@pytest.fixture(scope="module")
def photos():
    return {split: sources.load("photos", split) for split in ("train", "test")}


@pytest.mark.core
@pytest.mark.parametrize("split, count", [("train", 500), ("test", 100)])
def test_photos_shapes_and_labels(photos, split, count):
    images, labels, names = photos[split]
    assert images.shape == (16 * count, 32, 32, 3)
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(labels), [count] * 16)
    assert len(set(names)) == 16
    assert names[0] == "astronaut" and names[15] == "flower"


@pytest.mark.core
def test_photos_are_the_same_everywhere(photos):
    # Means: the last bit of a decoder or a resize may differ by version.
    means = photos["train"].images.reshape(16, -1).mean(axis=1)
    expected = [119.6, 109.6, 95.4, 19.5, 150.0, 103.4, 77.5, 109.2]
    expected += [110.9, 117.1, 127.8, 106.6, 100.3, 152.7, 136.7, 79.1]
    np.testing.assert_allclose(means, expected, atol=0.5)
    means = photos["test"].images.reshape(16, -1).mean(axis=1)
    expected = [91.8, 126.5, 103.1, 19.2, 186.0, 68.2, 46.8, 99.2]
    expected += [112.4, 119.4, 127.4, 171.5, 93.6, 218.5, 162.7, 40.1]
    np.testing.assert_allclose(means, expected, atol=0.5)


def test_photos_twice_are_equal(photos):
    again = sources.load("photos", "test")
    np.testing.assert_array_equal(again.images, photos["test"].images)


def test_gray_photos_have_equal_channels(photos):
    images, labels, names = photos["test"]
    for name in ("brick", "grass", "gravel", "camera", "coins", "page"):
        gray = images[labels == names.index(name)]
        assert np.ptp(gray.astype(int), axis=-1).max() == 0
    assert np.ptp(images[labels == 0].astype(int), axis=-1).max() > 100


def test_photos_of_another_size(photos):
    large = sources.load("photos", "test", image_size=48).images
    assert large.shape == (1600, 48, 48, 3)
    # 48 is the crop itself: the 32 pixel images are the same crops, smaller.
    means = [x.mean(axis=(1, 2)) for x in (large, photos["test"].images)]
    assert np.abs(means[0] - means[1]).mean() < 1


@pytest.mark.parametrize("width", [384, 1411])
def test_photo_corners_split_the_columns(width):
    edge = width * 7 // 10
    for class_index in range(16):
        train = sources.photos.corners_of(width, 300, class_index, "train", 500)
        test = sources.photos.corners_of(width, 300, class_index, "test", 100)
        assert train[0].min() >= 0 and train[0].max() + 48 <= edge
        assert test[0].min() >= edge and test[0].max() + 48 <= width
        for _, tops in (train, test):
            assert tops.min() >= 0 and tops.max() + 48 <= 300
        assert len(set(zip(*train, strict=True))) > 450


def test_photos_share_no_pixel_between_splits(monkeypatch, tmp_path):
    # Black where train may look and white where test may: any pixel from the
    # wrong side, even through the resize, would show.
    picture = np.zeros((60, 200, 3), np.uint8)
    picture[:, 140:] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    paths = [tmp_path / "picture.png"] * 16
    monkeypatch.setattr(sources.photos, "_paths", lambda: paths)
    assert np.all(sources.load("photos", "train").images == 0)
    assert np.all(sources.load("photos", "test").images == 255)


def test_a_missing_photo_is_named(monkeypatch):
    monkeypatch.setattr(sources.photos, "NAMES", ("astronaut", "nobody"))
    with pytest.raises(ValueError, match="'nobody'.*missing"):
        sources.load("photos")


class RessltfFixed(tfds.core.GeneratorBasedBuilder):
    """4x6 images: red is the number, green the label."""

    VERSION = tfds.core.Version("1.0.0")
    fail = False

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 6, 3)),
            "mask": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=["cat", "ant", "bee"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        if self.fail:
            raise OSError("no network here\nand more")
        return {
            "train": self._examples(range(7), lambda n: n % 3),
            "validation": self._examples(range(7, 11), lambda n: n % 2),
            "unlabelled": self._examples(range(11, 16), lambda n: -1),
        }

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, numbers, label_of):
        for number in numbers:
            image = np.zeros((4, 6, 3), np.uint8)
            image[..., 0] = number
            image[..., 1] = label_of(number) % 256
            mask = np.zeros((number + 1, 2, 1), np.uint8)
            example = {"image": image, "mask": mask}
            yield str(number), {**example, "label": label_of(number)}


class RessltfVarying(RessltfFixed):
    """Gray images of any size; plain integers as labels."""

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _examples(self, numbers, label_of):
        for number in numbers:
            image = np.full((5 + number, 9, 1), 10 * number, np.uint8)
            yield str(number), {"image": image, "label": label_of(number)}


class RessltfText(RessltfFixed):
    """No images."""

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        )

    def _examples(self, numbers, label_of):
        for number in numbers:
            yield str(number), {"text": "a"}


class RessltfAbsent(RessltfFixed):
    """Cannot be had."""

    fail = True


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    for name in ("ressltf_fixed", "ressltf_varying", "ressltf_text"):
        tfds.builder(name, data_dir=folder).download_and_prepare()
    return folder


def test_tfds_pixels_labels_and_names(tfds_dir):
    images, labels, names = sources.load(
        "tfds:ressltf_fixed", data_dir=tfds_dir
    )
    assert images.shape == (7, 4, 6, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and names == ("cat", "ant", "bee")
    assert sorted(images[:, 0, 0, 0]) == list(range(7))
    np.testing.assert_array_equal(images[:, 3, 5, 1], labels)
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 3, labels)


def test_tfds_test_is_validation_where_there_is_no_test(tfds_dir):
    image_set = sources.load("tfds:ressltf_fixed", "test", data_dir=tfds_dir)
    assert sorted(image_set.images[:, 0, 0, 0]) == [7, 8, 9, 10]


def test_tfds_splits_pass_through(tfds_dir):
    def read(split):
        return sources.load("tfds:ressltf_fixed", split, data_dir=tfds_dir)

    unlabelled = read("unlabelled")
    assert unlabelled.labels is None and unlabelled.class_names == ()
    assert sorted(unlabelled.images[:, 0, 0, 0]) == list(range(11, 16))
    both = read("train+unlabelled")
    assert len(both.images) == 12 and np.sum(both.labels == -1) == 5
    assert both.class_names == ("cat", "ant", "bee")
    with pytest.raises(ValueError, match="5 of its 12 images.*ressltf"):
        sources.require_labels(both, "tfds:ressltf_fixed")
    assert len(read("train[:2]").images) == 2


def test_tfds_resizes_on_request(tfds_dir):
    image_set = sources.load(
        "tfds:ressltf_fixed", data_dir=tfds_dir, image_size=2
    )
    assert image_set.images.shape == (7, 2, 2, 3)
    np.testing.assert_array_equal(
        image_set.images[:, 0, 0, 0] % 3, image_set.labels
    )


def test_tfds_gray_images_of_any_size(tfds_dir):
    images, labels, names = sources.load(
        "tfds:ressltf_varying/version=1.0.0", data_dir=tfds_dir, image_size=3
    )
    assert images.shape == (7, 3, 3, 3) and names == ("0", "1", "2")
    numbers = images[:, 0, 0, 0] // 10
    assert sorted(numbers) == list(range(7))
    np.testing.assert_array_equal(numbers % 3, labels)
    assert np.all(images == images[:, :1, :1, :1])
    with pytest.raises(ValueError, match="image_size=None.*ressltf_varying"):
        sources.load("tfds:ressltf_varying", data_dir=tfds_dir)


def test_tfds_reads_an_older_version_rather_than_download(
    tfds_dir, monkeypatch
):
    monkeypatch.setattr(RessltfFixed, "VERSION", tfds.core.Version("2.0.0"))
    monkeypatch.setattr(RessltfFixed, "fail", True)
    image_set = sources.load("tfds:ressltf_fixed", data_dir=tfds_dir)
    assert len(image_set.images) == 7


def test_tfds_prepares_what_is_not_there(tmp_path):
    image_set = sources.load("tfds:ressltf_fixed", data_dir=str(tmp_path))
    assert len(image_set.images) == 7


@pytest.mark.parametrize(
    "source, split, match",
    [
        ("tfds:ressltf_nothing", "train", "'tfds:ressltf_nothing'.*not found"),
        ("tfds:ressltf_fixed:9.0.0", "train", "ressltf_fixed:9.0.0"),
        ("tfds:ressltf_fixed/x", "train", "'tfds:ressltf_fixed/x'"),
        ("tfds:ressltf_fixed", "dev", "'train', .*split='dev'"),
        ("tfds:ressltf_text", "train", r"'image'.*ressltf_text.*\['text'\]"),
        ("tfds:ressltf_absent", "train", "OSError: no network here\\)"),
    ],
)
def test_tfds_errors(tfds_dir, source, split, match):
    with pytest.raises(ValueError, match=match):
        sources.load(source, split, data_dir=tfds_dir)


def test_tfds_shards(tfds_dir):
    def shapes(name):
        found = sources.tfds.find_shards(name, "train", tfds_dir)
        assert sum(take for _, _, take in found.files) == 7
        assert found.name_key is None
        return found.image_shape

    assert shapes("ressltf_fixed") == (4, 6, 3)
    assert shapes("ressltf_varying") is None
    with pytest.raises(ValueError, match="feature 'image' of.*ressltf_text"):
        sources.tfds.find_shards("ressltf_text", "train", tfds_dir)


def test_cifar10():
    folder = str(real_data("tfds"))
    images, labels, names = sources.load(
        "tfds:cifar10", "test", data_dir=folder
    )
    assert images.shape == (10000, 32, 32, 3) and len(names) == 10
    np.testing.assert_array_equal(np.bincount(labels), [1000] * 10)
    # The test split's published channel means.
    means = images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4942, 0.4851, 0.4504], atol=1e-4)


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz_as_keras_writes_it(tmp_path):
    x = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    source = save_npz(
        tmp_path / "a.npz",
        x_train=x,
        y_train=np.array([[2], [0], [4]], np.uint8),
        x_test=x[:1],
        y_test=np.array([[1]], np.uint8),
    )
    train, test = (sources.load(source, split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, x)
    np.testing.assert_array_equal(train.labels, [2, 0, 4])
    np.testing.assert_array_equal(test.images, x[:1])
    np.testing.assert_array_equal(test.labels, [1])
    assert train.labels.dtype == np.int64
    assert train.class_names == test.class_names == ("0", "1", "2", "3", "4")


def test_npz_of_images_alone(tmp_path):
    gray = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    source = save_npz(tmp_path / "a.npz", images=gray)
    images, labels, names = sources.load(source)
    assert labels is None and names == ()
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], gray)
    with pytest.raises(ValueError, match="x_train.*split='test'.*images"):
        sources.load(source, "test")


def test_npz_resizes_on_request(tmp_path):
    # Bars one pixel wide: an antialiased resize mixes them to gray.
    bars = np.zeros((1, 16, 16, 3), np.uint8)
    bars[:, :, ::2] = 255
    source = save_npz(tmp_path / "a.npz", images=bars)
    small = sources.load(source, image_size=4).images
    assert small.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(small[:, :, 1:3], 127.5, atol=8)


X = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "arrays, match",
    [
        ({"x_train": X / 255}, r"uint8.*float64 \(2, 4, 4, 3\)"),
        ({"x_train": X[..., :2]}, r"uint8 \(2, 4, 4, 2\)"),
        ({"x_train": X[:0]}, "holds none"),
        ({"pixels": X}, r"x_train.*'pixels': 'uint8 \(2, 4, 4, 3\)'"),
        ({"images": X, "labels": np.eye(2, dtype=int)}, r"int64 \(2, 2\)"),
        ({"images": X, "labels": np.zeros(2)}, r"labels float64 \(2,\)"),
        ({"images": X, "labels": np.zeros(3, int)}, "2 images and 3 labels"),
        ({"images": X, "labels": np.array([0, -2])}, "from -2 to 0"),
        ({"images": np.array([None, 1])}, "plain arrays"),
    ],
)
def test_npz_errors(tmp_path, arrays, match):
    source = save_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=match) as error:
        sources.load(source)
    assert source in str(error.value)


def test_a_file_that_is_no_archive(tmp_path):
    for name, content in (("a.npz", b"nothing"), ("b.npz", b"PK\3\4broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"archive.*{name}"):
            sources.load(f"npz:{tmp_path / name}")
    np.save(tmp_path / "c.npy", X)
    with pytest.raises(ValueError, match="archive.*c.npy"):
        sources.load(f"npz:{tmp_path / 'c.npy'}")


@pytest.mark.core
@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"source": "cifar10"}, "'tfds:NAME'.*source='cifar10'"),
        ({"source": "photos:a"}, "source='photos:a'"),
        ({"source": None}, "source=None"),
        ({"source": "folder:"}, "after 'folder:'.*source='folder:'"),
        ({"source": "folder:/no/where"}, "existing folder.*/no/where"),
        ({"source": "npz:/no/where.npz"}, "existing file.*/no/where.npz"),
        ({"source": "photos", "split": "val"}, "split='val'"),
        ({"source": "photos", "image_size": 0}, "image_size=0"),
        ({"source": "photos", "image_size": (3, 3)}, r"image_size=\(3, 3\)"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        sources.load(**arguments)


def test_require_labels(photos):
    sources.require_labels(photos["test"], "photos")
    unlabelled = sources.ImageSet(X, None, ())
    with pytest.raises(ValueError, match="2 of its 2 .*source='npz:a.npz'"):
        sources.require_labels(unlabelled, "npz:a.npz")
