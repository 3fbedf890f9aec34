"""Tests of labelled batches: to train a probe on, and to evaluate on."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ressl_tf import augment
from ressl_tf import data
from ressl_tf.data import readers

NUM_IMAGES = 22
SIZE = 6
BATCH = 4
CLASSES = ("red", "green", "blue")


class Marked:
    """A view that leaves images alone: float32 and of a static shape."""

    size = SIZE

    def apply(self, images, seed, rows=None):
        return tf.cast(images, tf.float32)


def image(number):
    """Its red channel is its number."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 0] = number
    return pixels


def label(number):
    return number * number % 3


def write_shard(folder, bad=()):
    path = str(folder / "0.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(NUM_IMAGES):
            png = tf.io.encode_png(image(number)).numpy()
            png = png[:20] if number in bad else png
            features = {
                "image": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[png])
                ),
                "label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[label(number)])
                ),
            }
            example = tf.train.Example(
                features=tf.train.Features(feature=features)
            )
            writer.write(example.SerializeToString())
    return path


def make_reader(kind, folder, bad=(), shape=(SIZE, SIZE, 3)):
    numbers = range(NUM_IMAGES)
    if kind == "memory":
        return data.MemoryReader(
            np.stack([image(number) for number in numbers]),
            np.array([label(number) for number in numbers]),
            CLASSES,
        )
    if kind == "files":
        paths = [folder / f"{number}.png" for number in numbers]
        for number, path in enumerate(paths):
            Image.fromarray(image(number)).save(path)
            if number in bad:
                path.write_bytes(path.read_bytes()[:20])
        return data.FileReader(paths, [label(n) for n in numbers], CLASSES)
    path = write_shard(folder, bad)
    return data.ShardReader(
        [readers.Shard(path, 0, NUM_IMAGES)],
        set_name="set",
        class_names=CLASSES,
        image_shape=shape,
        lanes=2,
    )


@pytest.fixture(params=["memory", "files", "shards"])
def reader(request, tmp_path):
    # Views of files are cut one by one: their images may differ in size.
    if request.param == "files":
        found = make_reader("files", tmp_path)
        found.image_shape = (SIZE, SIZE, 3)
        return found
    return make_reader(request.param, tmp_path)


def numbers_of(dataset):
    """[(numbers of a batch's images, its labels), ...]."""
    return [
        (images.numpy()[:, 0, 0, 0].astype(int).tolist(), labels.tolist())
        for images, labels in ((i, label.numpy()) for i, label in dataset)
    ]


def train_batches(reader, count, **options):
    dataset = data.make_labelled_dataset(
        reader, Marked(), batch_size=BATCH, **{"seed": 0, **options}
    )
    return numbers_of(dataset.take(count))


def test_each_image_has_its_label(reader):
    batches = train_batches(reader, 15)  # three epochs of 5
    for numbers, labels in batches:
        assert labels == [label(number) for number in numbers]
    epochs = [
        sum((numbers for numbers, _ in batches[first : first + 5]), [])
        for first in (0, 5, 10)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 20
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_are_functions_of_seed_and_step(reader):
    whole = train_batches(reader, 8)
    assert train_batches(reader, 8) == whole
    assert train_batches(reader, 5, start_step=3) == whole[3:]
    assert train_batches(reader, 8, seed=1) != whole


def test_the_same_crop_for_the_same_step(tmp_path):
    reader = make_reader("memory", tmp_path)
    view = augment.make_view(
        4, min_area=0.08, mean=(0,) * 3, std=(1 / 255,) * 3
    )

    def batch(step):
        dataset = data.make_labelled_dataset(
            reader, view, batch_size=BATCH, seed=0, start_step=step
        )
        return next(iter(dataset))

    images, labels = batch(7)
    again, _ = batch(7)
    np.testing.assert_array_equal(images, again)
    assert images.shape == (BATCH, 4, 4, 3)
    numbers = np.round(images.numpy()[:, 0, 0, 0]).astype(int)
    assert [label(number) for number in numbers] == labels.numpy().tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_every_image_once_in_order(reader, batch_size):
    batches = numbers_of(
        data.make_ordered_dataset(
            reader, image_size=SIZE, batch_size=batch_size
        )
    )
    assert len(batches) == -(-NUM_IMAGES // batch_size)
    numbers = sum((numbers for numbers, _ in batches), [])
    assert numbers == list(range(NUM_IMAGES))
    labels = sum((labels for _, labels in batches), [])
    assert labels == [label(number) for number in numbers]


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_images_that_cannot_be_read_are_left_out(kind, tmp_path, caplog):
    reader = make_reader(kind, tmp_path, bad=(3, 8))
    batches = numbers_of(
        data.make_ordered_dataset(reader, image_size=SIZE, batch_size=5)
    )
    numbers = sum((numbers for numbers, _ in batches), [])
    assert numbers == [n for n in range(NUM_IMAGES) if n not in (3, 8)]
    labels = sum((labels for _, labels in batches), [])
    assert labels == [label(number) for number in numbers]
    reader.image_shape = (SIZE, SIZE, 3)
    for numbers, labels in train_batches(reader, 10):
        # Another image takes the place, and brings its label.
        assert not {3, 8} & set(numbers)
        assert labels == [label(number) for number in numbers]


def test_the_centre_of_the_resized_image(tmp_path):
    """256 to 224 in small: a picture of 16 x 24 to 8 high, 4 x 4 of it."""
    ramp = np.repeat(np.arange(24, dtype=np.uint8)[None] * 10, 16, axis=0)
    path = tmp_path / "ramp.png"
    Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(path)
    reader = data.FileReader([path], [0], CLASSES)

    def fitted(shorter_side):
        dataset = data.make_ordered_dataset(
            reader, image_size=4, shorter_side=shorter_side
        )
        (images, _), *_ = dataset
        return images.numpy()[0, :, :, 0].astype(float)

    # Pixel x of the resized row covers 2x and 2x + 1: a centre of 20 x + 5.
    expected = 20.0 * np.arange(12) + 5
    np.testing.assert_allclose(
        fitted(8), np.tile(expected[4:8], (4, 1)), atol=1
    )
    # Without it the whole height: 4 pixels a pixel, 40 x + 15.
    expected = 40.0 * np.arange(6) + 15
    np.testing.assert_allclose(
        fitted(None), np.tile(expected[1:5], (4, 1)), atol=1
    )
    with pytest.raises(ValueError, match="`shorter_side`.*Received: .*=3"):
        fitted(3)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_subsets(kind, tmp_path):
    reader = make_reader(kind, tmp_path)
    reader.image_shape = (SIZE, SIZE, 3)
    rows = [20, 3, 4, 9, 11, 2, 17, 6]
    part = reader.subset(rows)
    ordered = data.make_ordered_dataset(part, image_size=SIZE)
    assert numbers_of(ordered)[0] == (rows, [label(row) for row in rows])
    assert part.labels.tolist() == [label(row) for row in rows]
    for first in (0, 2):
        seen = train_batches(part, 2, start_step=first)
        assert sorted(sum((n for n, _ in seen), [])) == sorted(rows)
    assert part.subset([1, 0]).labels.tolist() == [label(3), label(20)]
    assert reader.num_images == NUM_IMAGES  # which stays as it was
    with pytest.raises(ValueError, match="`rows` must hold at least one"):
        reader.subset([])


def test_balanced_rows():
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    rows = data.balanced_rows(labels, 0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [10, 4, 1]
    assert len(set(rows)) == 15 and list(rows) == sorted(rows)
    np.testing.assert_array_equal(rows, data.balanced_rows(labels, 0.1, 0))
    assert list(rows) != list(data.balanced_rows(labels, 0.1, seed=1))
    assert len(data.balanced_rows(labels, 1.0)) == 143
    for fraction in (0.0, 1.1, -1):
        with pytest.raises(ValueError, match="`fraction`.*Received: fraction="):
            data.balanced_rows(labels, fraction)


def test_listed_rows(tmp_path):
    paths = [
        tmp_path / folder / f"{name}.png"
        for folder, name in itertools.product("ab", (1, 2))
    ]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    paths.append(tmp_path / "a" / "3.png")
    reader = data.FileReader(paths, [0, 0, 1, 1, 0], CLASSES, cache_bytes=0)
    names = tmp_path / "list.txt"
    names.write_text("b/2.png\n3.png\n\na/1.png\n")
    assert data.listed_rows(reader, names).tolist() == [3, 4, 0]
    for text, number in (("1.png", 2), ("9.png", 0)):
        names.write_text(f"{text}\n")
        with pytest.raises(ValueError, match=f"'{text}', which {number} files"):
            data.listed_rows(reader, names)
    with pytest.raises(ValueError, match="`file_list` must be a text file"):
        data.listed_rows(reader, tmp_path / "none.txt")


def test_readers_without_labels_are_refused(tmp_path):
    reader = data.MemoryReader(np.zeros((4, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="labelled.*whose 4 images have none"):
        data.make_ordered_dataset(reader, image_size=2)
    with pytest.raises(ValueError, match="labelled.*whose 4 images have none"):
        data.make_labelled_dataset(reader, Marked(), batch_size=2, seed=0)


def test_fingerprints_tell_files_apart(tmp_path):
    reader = make_reader("files", tmp_path)
    first = reader.fingerprint()
    assert (
        make_reader("files", tmp_path).subset(range(9)).fingerprint() != first
    )
    (tmp_path / "5.png").write_bytes(b"changed")
    assert reader.fingerprint() != first
    shards = make_reader("shards", tmp_path).fingerprint()
    write_shard(tmp_path, bad=(1,))
    assert make_reader("shards", tmp_path).fingerprint() != shards
