"""Tests of the readers and of the shards that one of them streams."""

import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ressl_tf.data import image_files
from ressl_tf.data import readers
from ressl_tf.data import shards
from ressl_tf.data import sources

ROOT = Path(__file__).resolve().parents[1]
TFDS = ROOT.parent / "shared" / "data" / "tfds"
LENGTHS = (5, 9, 7, 1, 8)  # 30 records
BATCH = 8
LANES = 4
STEPS = 3  # 30 // 8


def write_records(folder, lengths=LENGTHS):
    """Files of records "0", "1", ...; returns the shards."""
    numbers = itertools.count()
    found = []
    for index, length in enumerate(lengths):
        path = str(folder / f"{index}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(length):
                writer.write(str(next(numbers)).encode())
        found.append(readers.Shard(path, 0, length))
    return found


def load_number(record):
    """A record's number as the pixel of its image."""
    value = tf.cast(tf.strings.to_number(record, tf.int32), tf.uint8)
    return tf.fill([1, 1, 3], value)


@pytest.fixture(scope="module")
def shard_list(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("shards"))


def make_reader(shard_list, lanes=LANES, window=4):
    return readers.ShardReader(
        shard_list, load_number, (1, 1, 3), lanes=lanes, window=window
    )


def rows_of(reader, num_steps, batch_size=BATCH, **options):
    """[(step, the numbers of the images of its rows), ...]."""
    steps = reader.steps(batch_size, **{"seed": 0, **options})
    return [
        (int(step), reader.load(what).numpy()[:, 0, 0, 0].tolist())
        for step, what in steps.take(num_steps)
    ]


def memory_reader(num_images=30):
    images = np.zeros((num_images, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    return readers.MemoryReader(images)


@pytest.fixture(params=["memory", "shards"])
def reader(request, shard_list):
    if request.param == "memory":
        return memory_reader()
    return make_reader(shard_list)


@pytest.mark.core
def test_an_epoch_visits_each_image_at_most_once(reader):
    assert reader.num_images == 30
    assert reader.steps_per_epoch(BATCH) == STEPS
    found = rows_of(reader, 10 * STEPS)
    assert [step for step, _ in found] == list(range(10 * STEPS))
    epochs = [
        sum((rows for _, rows in found[i : i + STEPS]), [])
        for i in range(0, len(found), STEPS)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == STEPS * BATCH
        assert set(epoch) <= set(range(30))
    assert len({tuple(epoch) for epoch in epochs}) == 10
    # What one epoch leaves out is in others.
    assert set(sum(epochs, [])) == set(range(30))
    assert len({frozenset(epoch) for epoch in epochs}) > 5


@pytest.mark.core
@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_have_the_rows_of_one_batch(reader, num_workers):
    whole = rows_of(reader, 2 * STEPS + 1)
    parts = [
        rows_of(reader, 2 * STEPS + 1, worker=worker, num_workers=num_workers)
        for worker in range(num_workers)
    ]
    for expected, *found in zip(whole, *parts, strict=True):
        assert {step for step, _ in found} == {expected[0]}
        assert sum((rows for _, rows in found), []) == expected[1]


@pytest.mark.core
def test_resuming_continues_anywhere(reader):
    # 6 records a lane and epoch, in windows of 4: steps begin in the middle
    # of windows, at their ends and at those of epochs.
    whole = rows_of(reader, 4 * STEPS)
    for start in (1, 2, 3, 5):
        found = rows_of(reader, STEPS + 1, start_step=start)
        assert found == whole[start:][: STEPS + 1]
    assert rows_of(reader, 1, start_step=2**40)[0][0] == 2**40


def test_seeds_give_other_orders(reader):
    orders = [rows_of(reader, STEPS, seed=seed) for seed in (0, 1, -1)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_steps_read_no_pixel(reader):
    spec = reader.steps(BATCH, seed=0, num_workers=2).element_spec
    assert spec[0] == tf.TensorSpec([], tf.int64)
    assert spec[1].shape[1:] == [] and spec[1].dtype in (tf.int32, tf.string)


def test_images_in_memory_are_captured_and_not_written_into_the_graph():
    images = np.zeros((200, 1, 1, 3), np.uint8)
    reader = readers.MemoryReader(images)
    load = tf.function(reader.load).get_concrete_function(
        tf.TensorSpec([4], tf.int32)
    )
    # Enough images: TensorFlow does write tiny tensors into graphs.
    captured = [tensor.shape for tensor in load.captured_inputs]
    assert images.shape in captured


def test_lanes_are_runs_of_the_shuffled_shards(shard_list):
    # Without windows to shuffle them, the records of a lane are consecutive
    # in their shards: the whole epoch is the ring, cut at a random place.
    reader = make_reader(shard_list, lanes=2, window=1)
    begins = np.cumsum((0,) + LENGTHS)
    shard_of = np.repeat(np.arange(5), LENGTHS)
    first_shards = set()
    found = [rows for _, rows in rows_of(reader, 8 * 3, 10)]
    for epoch in range(8):
        lanes = [
            sum((rows[5 * lane :][:5] for rows in found[3 * epoch :][:3]), [])
            for lane in range(2)
        ]
        epoch_order = lanes[0] + lanes[1]
        assert sorted(epoch_order) == list(range(30))
        first_shards.add(shard_of[epoch_order[0]])
        for one, other in itertools.pairwise(epoch_order):
            if other != one + 1:  # Another shard, from end to beginning.
                assert one + 1 in begins and other in begins
    assert len(first_shards) > 2


@pytest.mark.core
def test_windows_are_shuffled_as_a_whole(tmp_path):
    # One shard and lane: the window is the ring's next 6 records, all of
    # them before any other, in orders that look uniform.
    reader = make_reader(write_records(tmp_path, (12,)), lanes=1, window=6)
    orders = []
    found = [rows for _, rows in rows_of(reader, 200, 6)]
    for one, other in zip(found[::2], found[1::2], strict=True):
        begin = min(
            n for n in range(12) if set(one) == {(n + i) % 12 for i in range(6)}
        )
        assert set(other) == {(begin + 6 + i) % 12 for i in range(6)}
        orders += [[(n - begin) % 12 for n in one]]
    counts = [
        np.bincount(column, minlength=6) for column in np.transpose(orders)
    ]
    # 16.7 expected, standard deviation 3.7.
    assert np.min(counts) >= 4 and np.max(counts) <= 32


def test_a_worker_reads_only_its_lanes(shard_list):
    reader = make_reader(shard_list)
    key = readers.fold_in(readers.stream_key(0, 0), 0)
    whole = []
    for lane in range(LANES):
        paths, skips, takes = reader._pieces(key, lane, 0, 6)
        assert takes.numpy().sum() == 6
        for path, skip, take in zip(paths, skips, takes, strict=True):
            whole += [(path.numpy(), int(skip) + n) for n in range(take)]
    assert len(set(whole)) == 4 * 6
    # Records from the fifth on, as a resumed run asks for them.
    paths, skips, takes = reader._pieces(key, 0, 4, 2)
    assert [
        (path.numpy(), int(skip) + n)
        for path, skip, take in zip(paths, skips, takes, strict=True)
        for n in range(take)
    ] == whole[4:6]


def test_parts_of_files_are_read(tmp_path):
    path = write_records(tmp_path, (10,))[0].path
    parts = [readers.Shard(path, 2, 3), readers.Shard(path, 7, 1)]
    found = rows_of(make_reader(parts, lanes=1), 5, 4)
    for _, rows in found:
        assert sorted(rows) == [2, 3, 4, 7]


def test_a_file_shorter_than_its_index_ends_the_run(tmp_path):
    path = write_records(tmp_path, (10,))[0].path
    reader = make_reader([readers.Shard(path, 0, 12)], lanes=1)
    with pytest.raises(tf.errors.FailedPreconditionError, match="contain"):
        rows_of(reader, 3, 4)


def test_missing_files(shard_list):
    parts = [*shard_list, readers.Shard("nowhere/0.tfrecord", 0, 3)]
    match = r"`shards` must be.*6 shards, of which 1 do not \(nowhere/0"
    with pytest.raises(ValueError, match=match):
        make_reader(parts)


@pytest.mark.parametrize(
    "lanes, num_workers, fitting",
    [(3, 1, "1, 2, 4, 8"), (16, 1, "1, 2, 4, 8"), (2, 4, "4, 8")],
)
def test_lanes_that_do_not_fit(shard_list, lanes, num_workers, fitting):
    match = rf"`lanes` must divide.*8 images.*{fitting}\). .*lanes={lanes}"
    with pytest.raises(ValueError, match=match):
        make_reader(shard_list, lanes).steps(8, seed=0, num_workers=num_workers)


def test_bad_numbers(shard_list):
    with pytest.raises(ValueError, match="`lanes`.*lanes=0"):
        make_reader(shard_list, lanes=0)
    with pytest.raises(ValueError, match="`window`.*window=0"):
        make_reader(shard_list, window=0)
    with pytest.raises(ValueError, match=r"number of images \(30\)"):
        make_reader(shard_list).steps_per_epoch(31)


# What is written as shards.


def random_images(count, size=6, seed=0):
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_npz(folder, count=20):
    images = random_images(count)
    np.savez(
        folder / "images.npz",
        x_train=images,
        y_train=np.arange(count) % 3,
        x_test=images[:4, ::-1],
        y_test=np.arange(4) % 3,
    )
    return f"npz:{folder / 'images.npz'}", images


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder of the shards of set "tiny", the images of its split train)."""
    folder = tmp_path_factory.mktemp("written")
    source, images = write_npz(folder)
    counts = shards.write_shards(
        source, "tiny", folder, splits=["train", "test"], num_shards=3
    )
    assert counts == {"train": 20, "test": 4}
    return folder, images


def stream(folder, split="train", name="tiny", **options):
    return readers.open_reader(
        f"tfds:{name}", split, data_dir=str(folder), stream=True, **options
    )


def as_set(images):
    return sorted(image.tobytes() for image in images)


def one_epoch(reader):
    steps = reader.steps(reader.num_images, seed=0)
    return next(iter(steps.map(lambda step, what: reader.load(what)))).numpy()


@pytest.mark.core
def test_shards_hold_the_images_bit_for_bit(written):
    folder, images = written
    files = sorted(path.name for path in (folder / "tiny/1.0.0").iterdir())
    assert sum("train.tfrecord" in name for name in files) == 3
    reader = stream(folder, lanes=4)
    assert len(reader.shards) == 3
    assert as_set(one_epoch(reader)) == as_set(images)
    assert as_set(one_epoch(stream(folder, "test", lanes=1))) == as_set(
        images[:4, ::-1]
    )
    # And with an image_size that they already have.
    reader = stream(folder, image_size=6, lanes=1)
    assert as_set(one_epoch(reader)) == as_set(images)


def test_shards_are_an_ordinary_tfds_source(written):
    folder, images = written
    found = sources.load("tfds:tiny", data_dir=str(folder))
    assert as_set(found.images) == as_set(images)
    label_of = {image.tobytes(): i % 3 for i, image in enumerate(images)}
    assert [label_of[image.tobytes()] for image in found.images] == (
        found.labels.tolist()
    )
    assert found.class_names == ("0", "1", "2")
    assert not np.array_equal(found.images, images)  # Shuffled.


def test_parts_of_a_split_are_streamed(written):
    folder, images = written
    in_memory = sources.load("tfds:tiny", "train[:40%]", data_dir=str(folder))
    reader = stream(folder, "train[:40%]", lanes=2)
    assert reader.num_images == 8
    assert as_set(one_epoch(reader)) == as_set(in_memory.images)
    assert stream(folder, "train+test", lanes=1).num_images == 24


@pytest.mark.core
def test_in_memory_readers_are_opened_too(written):
    folder, images = written
    reader = readers.open_reader("tfds:tiny", data_dir=str(folder))
    assert isinstance(reader, readers.MemoryReader)
    assert reader.num_bytes == images.nbytes
    assert as_set(one_epoch(reader)) == as_set(images)


def smooth(height, width):
    small = random_images(1, 5, seed=height * width)[0]
    picture = Image.fromarray(small).resize((width, height))
    return np.asarray(picture)


def write_folder(folder):
    """Two classes: a wide and a high PNG; a gray JPEG, a broken one."""
    for name in ("a", "b"):
        (folder / "train" / name).mkdir(parents=True)
    Image.fromarray(smooth(31, 40)).save(folder / "train/a/wide.png")
    Image.fromarray(smooth(45, 30)).save(folder / "train/a/high.png")
    gray = Image.fromarray(smooth(24, 24)[..., 0])
    gray.save(folder / "train/b/gray.jpg", quality=90)
    Image.fromarray(smooth(24, 25)).convert("CMYK").save(
        folder / "train/b/print.jpg", quality=90
    )
    (folder / "train/b/broken.jpg").write_bytes(b"no image")
    return f"folder:{folder}"


@pytest.mark.parametrize("keep_files", [False, True])
def test_folders_are_written_file_by_file(tmp_path, keep_files):
    source = write_folder(tmp_path / "files")
    with pytest.warns(UserWarning, match="Skipped: .*broken.jpg"):
        counts = shards.write_shards(
            source, "pictures", tmp_path, keep_files=keep_files
        )
    assert counts == {"train": 4}
    with pytest.raises(ValueError, match="`image_size` must be given"):
        stream(tmp_path, name="pictures")
    found = one_epoch(stream(tmp_path, name="pictures", image_size=12, lanes=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sources.load(source, image_size=12).images
    # Pair each with its nearest: the resize differs by a rounding.
    distance = np.abs(
        found.astype(int)[:, None] - expected.astype(int)[None]
    ).max(axis=(2, 3, 4))
    assert sorted(distance.argmin(axis=1)) == [0, 1, 2, 3]
    # TensorFlow's JPEG decoder is not PIL's to the bit.
    assert distance.min(axis=1).max() <= (4 if keep_files else 1)
    labels = sources.load(
        "tfds:pictures", data_dir=str(tmp_path), image_size=12
    )
    assert labels.class_names == ("a", "b")
    assert sorted(labels.labels) == [0, 0, 1, 1]


def test_kept_files_are_the_files_bytes(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(smooth(8, 8)).save(folder / "x.jpg", quality=80)
    shards.write_shards(
        f"folder:{tmp_path}", "kept", tmp_path / "out", keep_files=True
    )
    record = next(
        tf.data.TFRecordDataset(
            stream(tmp_path / "out", name="kept", image_size=8).shards[0].path
        ).as_numpy_iterator()
    )
    assert (folder / "x.jpg").read_bytes() in record


@pytest.mark.parametrize(
    "height, width, size",
    [(31, 40, 12), (45, 30, 12), (33, 40, 33), (9, 12, 20), (40, 41, 40)],
)
def test_resizing_is_that_of_images_in_memory(height, width, size):
    image = smooth(height, width)
    expected = image_files.fit_square(Image.fromarray(image), size)
    found = readers._to_shape(tf.constant(image), (size, size)).numpy()
    difference = np.abs(found.astype(int) - np.asarray(expected, int))
    # PIL rounds to whole levels after each of its two passes.
    assert difference.max() <= 1


def test_channels():
    image = random_images(1)[0]
    keep = readers._to_shape(tf.constant(image), (6, 6)).numpy()
    np.testing.assert_array_equal(keep, image)
    gray = readers._to_shape(tf.constant(image[..., :1]), (6, 6)).numpy()
    np.testing.assert_array_equal(gray, np.repeat(image[..., :1], 3, -1))
    alpha = np.concatenate([image, image[..., :1]], axis=-1)
    found = readers._to_shape(tf.constant(alpha), (6, 6)).numpy()
    np.testing.assert_array_equal(found, image)


@pytest.mark.skipif(not (TFDS / "cifar10").is_dir(), reason="no CIFAR-10 here")
def test_cifar10_is_streamed():
    reader = readers.open_reader(
        "tfds:cifar10", "test", data_dir=str(TFDS), stream=True
    )
    assert reader.num_images == 10000
    in_memory = sources.load("tfds:cifar10", "test", data_dir=str(TFDS))
    known = set(as_set(in_memory.images))
    for _, what in reader.steps(64, seed=0, start_step=150).take(3):
        images = reader.load(what).numpy()
        assert set(as_set(images)) <= known


def test_only_tfds_sources_are_streamed():
    match = r"'tfds:NAME' to be streamed.*tools.make_shards.*source='photos'"
    with pytest.raises(ValueError, match=match):
        readers.open_reader("photos", stream=True)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"name": "Tiny-1"}, "`name` must be lower case.*name='Tiny-1'"),
        ({"name": "taken"}, "`name` must be new.*name='taken'"),
        ({"keep_files": True}, "`keep_files` goes with 'folder:'"),
        ({"splits": ["valid"]}, "`split` must be.*split='valid'"),
        ({"image_size": 0}, "`image_size` must be.*image_size=0"),
    ],
)
def test_bad_arguments_of_write_shards(tmp_path, options, match):
    source, _ = write_npz(tmp_path)
    (tmp_path / "taken").mkdir()
    arguments = {"source": source, "name": "tiny", "folder": tmp_path}
    with pytest.raises(ValueError, match=match):
        shards.write_shards(**{**arguments, **options})
    assert not (tmp_path / "tiny").exists()


def run_tool(*flags):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.run(
        [sys.executable, "-m", "tools.make_shards", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_tool_writes_and_says_how_to_train(tmp_path):
    source, images = write_npz(tmp_path)
    flags = [f"--source={source}", f"--output={tmp_path}", "--name=tiny"]
    result = run_tool(*flags, "--num_shards=2", "--splits=train,test")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "train: 20 images\ntest: 4 images\n"
        "train with --config.data.source=tfds:tiny "
        f"--config.data.data_dir={tmp_path} --config.data.stream=True\n"
    )
    assert as_set(one_epoch(stream(tmp_path, lanes=1))) == as_set(images)

    result = run_tool(*flags)
    assert result.returncode == 2
    assert result.stderr.startswith("error: `name` must be new.")
    assert result.stderr.count("\n") == 1
