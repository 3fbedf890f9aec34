"""Tests of `folder:` sources: layouts, formats, sizes."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ressl_tf.data import image_files
from ressl_tf.data import sources

ROOT = Path(__file__).resolve().parents[1]


def real_data(name):
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("RESSL_TF_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there; RESSL_TF_DATA names its folder")
    return folder


def write(path, value, size=(4, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def load(path, split="train", **options):
    return sources.load(f"folder:{path}", split, **options)


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_train_and_test_folders(tmp_path, test_name):
    write(tmp_path / "train/b/1.png", (20, 1, 2))
    write(tmp_path / "train/a/2.PNG", (11, 1, 2))
    write(tmp_path / "train/a/10.png", (10, 1, 2))
    write(tmp_path / "train/c/deep/er/x.png", (30, 1, 2))
    write(tmp_path / "train/.hidden/x.png", (99, 1, 2))
    write(tmp_path / "train/a/._x.png", (99, 1, 2))
    (tmp_path / "train/a/notes.txt").write_text("not an image")
    write(tmp_path / test_name / "c/x.png", (31, 1, 2))
    images, labels, names = load(tmp_path)
    assert names == ("a", "b", "c")
    np.testing.assert_array_equal(images[:, 0, 0, 0], [10, 11, 20, 30])
    np.testing.assert_array_equal(images[0], np.full((4, 4, 3), (10, 1, 2)))
    np.testing.assert_array_equal(labels, [0, 0, 1, 2])
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    # Class c stays number 2 although the split has no other class.
    images, labels, names = load(tmp_path, "test")
    np.testing.assert_array_equal(images[:, 0, 0, 0], [31])
    np.testing.assert_array_equal(labels, [2])
    assert names == ("a", "b", "c")


def test_class_folders_alone_have_no_test_split(tmp_path):
    write(tmp_path / "dog/1.png", (2, 0, 0))
    write(tmp_path / "cat/1.png", (1, 0, 0))
    images, labels, names = load(tmp_path)
    np.testing.assert_array_equal(images[:, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(labels, [0, 1])
    assert names == ("cat", "dog")
    with pytest.raises(ValueError, match="train/ and val/.*split='test'"):
        load(tmp_path, "test")


def test_loose_images_are_unlabelled(tmp_path):
    for number in (3, 1, 2):
        write(tmp_path / f"{number}.png", (number, 0, 0))
    image_set = load(tmp_path)
    np.testing.assert_array_equal(image_set.images[:, 0, 0, 0], [1, 2, 3])
    assert image_set.labels is None and image_set.class_names == ()
    with pytest.raises(ValueError, match="no label.*folder:mine"):
        sources.require_labels(image_set, "folder:mine")


def tiny_imagenet(root):
    for label, name in enumerate(("n02", "n01")):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text("0\t0")
        for number in range(2):
            file = root / "train" / name / "images" / f"{name}_{number}.JPEG"
            write(file, (100 * label + 10 * number,) * 3)
    for number in range(3):
        write(root / "val/images" / f"val_{number}.JPEG", (50 * number,) * 3)
    write(root / "test/images/test_0.JPEG", (1, 1, 1))
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "val/val_annotations.txt").write_text(
        "val_2.JPEG\tn02\t0\t0\t3\t3\n"
        "val_0.JPEG\tn01\t0\t0\t3\t3\n"
        "val_1.JPEG\tn02\t0\t0\t3\t3\n"
    )


def test_tiny_imagenet_layout(tmp_path):
    tiny_imagenet(tmp_path)
    images, labels, names = load(tmp_path)
    assert names == ("n01", "n02")
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])
    gray = images[:, 0, 0, 0]
    np.testing.assert_allclose(gray, [100, 110, 0, 10], atol=1)
    images, labels, names = load(tmp_path, "test")
    assert names == ("n01", "n02")
    np.testing.assert_allclose(images[:, 0, 0, 0], [0, 50, 100], atol=1)
    np.testing.assert_array_equal(labels, [0, 1, 1])


def test_tiny_imagenet_with_a_bad_annotation(tmp_path):
    tiny_imagenet(tmp_path)
    (tmp_path / "val/val_annotations.txt").write_text("val_0.JPEG\tn99\t0")
    with pytest.raises(ValueError, match="val_annotations.*n99"):
        load(tmp_path, "test")


def test_modes_become_rgb(tmp_path):
    write(tmp_path / "a_gray.png", 7, mode="L")
    write(tmp_path / "b_alpha.png", (1, 2, 3, 0), mode="RGBA")
    write(tmp_path / "c_gray_alpha.png", (9, 128), mode="LA")
    write(tmp_path / "d_16bit.png", 200 * 256 + 5, mode="I;16")
    write(tmp_path / "e_cmyk.jpg", (0, 255, 255, 0), mode="CMYK")
    write(tmp_path / "f_bits.png", 1, mode="1")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 40, 50, 60])
    palette.save(tmp_path / "g_palette.png", transparency=b"\0\1")
    palette.save(tmp_path / "h_palette.gif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = load(tmp_path).images
    expected = [(7, 7, 7), (1, 2, 3), (9, 9, 9), (200, 200, 200)]
    expected += [(255, 0, 0), (255,) * 3, (40, 50, 60), (40, 50, 60)]
    np.testing.assert_allclose(images[:, 2, 2], expected, atol=2)


def test_the_centre_square_is_kept(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10, 0] = wide[:, 10:20, 1] = wide[:, 20:, 2] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide.swapaxes(0, 1).copy()).save(tmp_path / "b.png")
    images = load(tmp_path, image_size=10).images
    assert images.shape == (2, 10, 10, 3)
    np.testing.assert_array_equal(images, np.full_like(images, (0, 200, 0)))
    images = load(tmp_path, image_size=5).images
    np.testing.assert_allclose(images[:, 1:-1, 1:-1, 1], 200, atol=1)
    assert load(tmp_path, image_size=40).images.shape == (2, 40, 40, 3)


def test_resizing_is_antialiased(tmp_path):
    bars = np.zeros((32, 32, 3), np.uint8)
    bars[:, ::2] = 255
    Image.fromarray(bars).save(tmp_path / "a.png")
    small = load(tmp_path, image_size=8).images
    np.testing.assert_allclose(small[:, :, 1:-1], 127.5, atol=8)


@pytest.mark.parametrize("size, shown", [((6, 6), "6x6"), ((4, 5), "4x5")])
def test_several_sizes_need_image_size(tmp_path, size, shown):
    write(tmp_path / "a.png", (1, 1, 1))
    write(tmp_path / "b.png", (1, 1, 1), size=size)
    with pytest.raises(ValueError, match=f"`image_size`.*b.png is {shown}"):
        load(tmp_path)
    assert load(tmp_path, image_size=4).images.shape == (2, 4, 4, 3)


def test_one_size_that_is_not_square_needs_image_size(tmp_path):
    write(tmp_path / "a.png", (1, 1, 1), size=(4, 6))
    with pytest.raises(ValueError, match="`image_size`.*a.png is 4x6"):
        load(tmp_path)


def test_unreadable_files_are_skipped_with_a_warning(tmp_path):
    write(tmp_path / "a/1.png", (1, 0, 0))
    write(tmp_path / "b/2.png", (2, 0, 0))
    (tmp_path / "a/0.png").write_bytes(b"no picture")
    whole = (tmp_path / "b/2.png").read_bytes()
    (tmp_path / "b/3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="2 of the 4.*0.png.*3.png") as caught:
        images, labels, _ = load(tmp_path)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(images[:, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(labels, [0, 1])


@pytest.mark.parametrize("max_bad", [0, 2, 3, None])
def test_too_many_unreadable_files_are_an_error(tmp_path, max_bad):
    write(tmp_path / "whole.png", (1, 0, 0))
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    if max_bad in (3, None):
        with pytest.warns(UserWarning, match="3 of the 4"):
            assert len(load(tmp_path, max_bad=max_bad).images) == 1
        return
    match = rf"^`max_bad`.*max_bad={max_bad} and 3 such images: .*0.png \("
    with pytest.raises(ValueError, match=match):
        load(tmp_path, max_bad=max_bad)


def test_no_readable_file_is_an_error(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"no picture")
    match = r"12 of the 12.*00.jpg.*09.jpg.*; \.\.\."
    with pytest.raises(ValueError, match=match):
        load(tmp_path)


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("train/notes.txt",)])
def test_an_empty_folder(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("nothing")
    with pytest.raises(ValueError, match=f"holds none|{tmp_path}"):
        load(tmp_path)


@pytest.mark.parametrize(
    "only, split, missing",
    [("train", "test", "test/ or val/"), ("val", "train", "folder train/")],
)
def test_a_missing_split(tmp_path, only, split, missing):
    write(tmp_path / only / "a/1.png", (1, 0, 0))
    with pytest.raises(ValueError, match=f"{missing}.*split='{split}'"):
        load(tmp_path, split)


def test_an_unknown_class_in_the_test_split(tmp_path):
    write(tmp_path / "train/a/1.png", (1, 0, 0))
    write(tmp_path / "val/b/1.png", (1, 0, 0))
    with pytest.raises(ValueError, match=r"only val/ has \['b'\]"):
        load(tmp_path, "test")


def test_loose_images_beside_class_folders(tmp_path):
    write(tmp_path / "a/1.png", (1, 0, 0))
    write(tmp_path / "loose.png", (1, 0, 0))
    with pytest.raises(ValueError, match="not both.*loose.png"):
        load(tmp_path)


def test_linked_folders_are_followed(tmp_path):
    write(tmp_path / "elsewhere/1.png", (1, 0, 0))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path / "set").class_names == ("a",)


def test_real_tiny_imagenet():
    folder = real_data("tiny-imagenet-10")
    train, test = load(folder), load(folder, "test")
    assert train.images.shape == (3000, 64, 64, 3)
    assert test.images.shape == (500, 64, 64, 3)
    np.testing.assert_array_equal(np.bincount(train.labels), [300] * 10)
    np.testing.assert_array_equal(np.bincount(test.labels), [50] * 10)
    assert train.class_names == test.class_names


def test_real_photographs_of_many_sizes():
    folder = real_data("imagenet-samples")
    images, labels, _ = load(folder, image_size=96)
    assert images.shape[1:] == (96, 96, 3) and len(images) >= 60
    assert labels is None and images.std() > 40
    with pytest.raises(ValueError, match="image_size=None"):
        load(folder)


@pytest.mark.parametrize(
    "num_images, expected",
    [(1, 10), (1000, 10), (1099, 10), (1100, 11), (1281167, 12811)],
)
def test_default_max_bad(num_images, expected):
    assert image_files.default_max_bad(num_images) == expected
