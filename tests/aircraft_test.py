"""Tests of FGVC-Aircraft, read from an archive in the official layout."""

import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ressl_tf.data import sources

VARIANTS = ("707-320", "A340 and more", "F/A-18")
PARTS = {"train": 6, "val": 3, "test": 5}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepared from a small archive, in place of the real one."""
    folder = tmp_path_factory.mktemp("aircraft")
    data = folder / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("".join(f"{v}\n" for v in VARIANTS))
    number = 0
    for part, count in PARTS.items():
        lines = []
        for _ in range(count):
            # 40 rows of one gray, then the banner, white.
            pixels = np.full((60, 50, 3), 10 * number, np.uint8)
            pixels[40:] = 255
            image = Image.fromarray(pixels)
            image.save(data / "images" / f"{number:07}.jpg", quality=95)
            lines.append(f"{number:07} {VARIANTS[number % 3]}\n")
            number += 1
        (data / f"images_variant_{part}.txt").write_text("".join(lines))
    with tarfile.open(folder / "archive.tar.gz", "w:gz") as archive:
        archive.add(data.parent, data.parent.name)

    def download(self, url):
        assert url.endswith("/fgvc-aircraft-2013b.tar.gz")
        return self.extract(folder / "archive.tar.gz")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            tfds.download.DownloadManager, "download_and_extract", download
        )
        sources.load(
            "tfds:fgvc_aircraft", data_dir=str(folder / "tfds"), image_size=8
        )
    return str(folder / "tfds")


@pytest.mark.parametrize(
    "split, first, count",
    [
        ("train", 0, 6),
        ("validation", 6, 3),
        ("test", 9, 5),
        ("train+validation", 0, 9),
    ],
)
def test_splits_labels_and_no_banner(data_dir, split, first, count):
    images, labels, names = sources.load(
        "tfds:fgvc_aircraft", split, data_dir=data_dir, image_size=8
    )
    assert names == VARIANTS
    numbers = np.round(images.mean(axis=(1, 2, 3)) / 10).astype(int)
    assert sorted(numbers) == list(range(first, first + count))
    np.testing.assert_array_equal(labels, numbers % 3)
    assert images.max() < 10 * (first + count)  # nothing of the banner


def test_images_are_stored_without_the_banner(data_dir):
    builder = tfds.builder("fgvc_aircraft", data_dir=data_dir)
    for example in builder.as_dataset(split="test").as_numpy_iterator():
        assert example["image"].shape == (40, 50, 3)
        assert example["file_name"].endswith(b".jpg")
