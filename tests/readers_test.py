"""Tests of the readers and of the shards that one of them streams."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from tool_process import assert_mistake
from tool_process import call

from ressl_tf.data import decoding
from ressl_tf.data import image_files
from ressl_tf.data import order
from ressl_tf.data import readers
from ressl_tf.data import shards
from ressl_tf.data import sources

ROOT = Path(__file__).resolve().parents[1]
TFDS = ROOT.parent / "shared" / "data" / "tfds"
LENGTHS = (5, 9, 7, 1, 8)  # 30 records
BATCH = 8
LANES = 4
STEPS = 3  # 30 // 8


def record(number):
    """A record whose image file is "NUMBER"."""
    value = tf.train.BytesList(value=[str(number).encode()])
    feature = {"image": tf.train.Feature(bytes_list=value)}
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString()


def write_records(folder, lengths=LENGTHS):
    """Files of records 0, 1, ...; returns the shards."""
    numbers = itertools.count()
    found = []
    for index, length in enumerate(lengths):
        path = str(folder / f"{index}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(length):
                writer.write(record(next(numbers)))
        found.append(readers.Shard(path, 0, length))
    return found


@pytest.fixture(scope="module")
def shard_list(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("shards"))


def make_reader(shard_list, lanes=LANES, window=4, **options):
    return readers.ShardReader(
        shard_list, set_name="set", lanes=lanes, window=window, **options
    )


def numbers_of(reader, what):
    """The numbers of the images that `what` loads."""
    if reader.encoded:
        return [int(text) for text in reader.load(what)[0].numpy()]
    return reader.load(what).numpy()[:, 0, 0, 0].tolist()


def rows_of(reader, num_steps, batch_size=BATCH, **options):
    """[(step, the numbers of the images of its rows), ...]."""
    steps = reader.steps(batch_size, **{"seed": 0, **options})
    return [
        (int(step), numbers_of(reader, what))
        for step, what in steps.take(num_steps)
    ]


def memory_reader(num_images=30):
    images = np.zeros((num_images, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    return readers.MemoryReader(images)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """30 files that hold their number."""
    folder = tmp_path_factory.mktemp("files")
    found = [folder / f"{number}.png" for number in range(30)]
    for number, path in enumerate(found):
        path.write_text(str(number))
    return found


@pytest.fixture(params=["memory", "files", "shards"])
def reader(request, shard_list, paths):
    return {
        "memory": memory_reader,
        "files": lambda: readers.FileReader(paths, cache_bytes=0),
        "shards": lambda: make_reader(shard_list),
    }[request.param]()


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


@pytest.mark.core
def test_files_have_the_order_of_images_in_memory(paths):
    expected = rows_of(memory_reader(), 2 * STEPS, start_step=1)
    for cache_bytes in (0, None):
        reader = readers.FileReader(paths, cache_bytes=cache_bytes)
        assert rows_of(reader, 2 * STEPS, start_step=1) == expected


def test_files_are_kept_in_memory_up_to_the_limit(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path in paths:
        path.write_bytes(b"12345")
    num_path_bytes = 3 * len(str(paths[0]))
    kept = {}
    for limit in (0, 14, 15, None):
        reader = readers.FileReader(paths, cache_bytes=limit)
        kept[limit] = reader.num_bytes - num_path_bytes
        # Whatever is read now was not in memory.
        paths[0].write_bytes(b"other")
        files, names = reader.load(tf.constant([2, 0]))
        is_kept = files.numpy().tolist() == [b"12345", b"12345"]
        assert is_kept == (kept[limit] == 15)
        assert names.numpy().tolist() == [
            str(path).encode() for path in (paths[2], paths[0])
        ]
        paths[0].write_bytes(b"12345")
    assert kept == {0: 0, 14: 0, 15: 15, None: 15}
    with pytest.raises(ValueError, match="`cache_bytes`.*cache_bytes=-1"):
        readers.FileReader(paths, cache_bytes=-1)


@pytest.mark.core
@pytest.mark.parametrize("cache_bytes", [0, None])
def test_files_that_cannot_be_opened_are_empty(tmp_path, cache_bytes):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png")]
    paths[1].mkdir()
    paths[2].write_bytes(b"c")
    paths[3].write_bytes(b"")
    reader = readers.FileReader(paths, cache_bytes=cache_bytes)

    def load(*rows):
        rows = tf.data.Dataset.from_tensors(np.array(rows, np.int32))
        (files, names), *_ = rows.map(reader.load)
        assert [Path(os.fsdecode(name)).name for name in names.numpy()] == [
            f"{'abcd'[row]}.png" for row in rows.get_single_element()
        ]
        return files.numpy().tolist()

    assert load(2, 0, 1, 2, 3) == [b"c", b"", b"", b"c", b""]
    assert load(0, 1) == [b"", b""]
    assert load(2) == [b"c"]


def test_loaded_files_have_a_static_shape(paths):
    reader = readers.FileReader(paths, cache_bytes=0)
    loaded = reader.steps(BATCH, seed=0).map(lambda step, rows: rows)
    loaded = loaded.map(lambda rows: reader.load(tf.ensure_shape(rows, [8])))
    assert [spec.shape for spec in loaded.element_spec] == [[8], [8]]


def test_files_in_memory_are_captured_and_not_written_into_the_graph(paths):
    reader = readers.FileReader(paths * 10)
    load = tf.function(reader.load).get_concrete_function(
        tf.TensorSpec([4], tf.int32)
    )
    captured = [tensor.shape for tensor in load.captured_inputs]
    assert captured == [[300], [300]]


def test_free_memory_is_that_of_the_container(monkeypatch, tmp_path):
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < readers._free_memory() <= machine
    monkeypatch.setattr(readers, "Path", lambda _: tmp_path)
    for limit, used, expected in (("1000", "400", 600), ("10", "11", 0)):
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(used)
        assert readers._free_memory() == expected
    (tmp_path / "memory.max").write_text("max")
    assert 10**6 < readers._free_memory() <= machine


@pytest.mark.core
def test_records_are_called_by_their_names_or_fingerprints(shard_list):
    reader = make_reader(shard_list)
    records = [record(3), record(4)]
    files, names = reader.load(tf.constant(records))
    assert files.numpy().tolist() == [b"3", b"4"]
    prints = tf.fingerprint(tf.constant(records)).numpy()
    assert names.numpy().tolist() == [
        f"record {bytes(digits).hex()} of set".encode() for digits in prints
    ]
    # Any feature of strings can be the name.
    reader = make_reader(shard_list, name_key="image")
    assert reader.load(tf.constant(records))[1].numpy().tolist() == [b"3", b"4"]


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
    key = order.fold_in(order.stream_key(0, 0), 0)
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
    """The images of all rows, in the graph of a data set: [N, H, W, 3]."""
    steps = reader.steps(reader.num_images, seed=0)
    images = steps.map(lambda step, what: reader.load(what))
    if not reader.encoded:
        return next(iter(images)).numpy()
    images = images.unbatch().map(lambda encoded, _: decoding.decode(encoded))
    images, readable = zip(*images.take(reader.num_images), strict=True)
    assert np.all(readable)
    return [image.numpy() for image in images]


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
    # No other size is made of what is streamed.
    reader = stream(folder, image_size=3, lanes=1)
    assert reader.image_shape == (6, 6, 3) and reader.num_bytes == 0
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
    assert reader.image_shape == (6, 6, 3) and not reader.encoded
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


def to_rgb(path):
    with Image.open(path) as image:
        return np.asarray(image_files.to_rgb(image))


READABLE = ("a/high.png", "a/wide.png", "b/gray.jpg", "b/print.jpg")


@pytest.mark.parametrize("keep_files", [False, True])
def test_folders_are_written_file_by_file(tmp_path, caplog, keep_files):
    source = write_folder(tmp_path / "files")
    counts = shards.write_shards(
        source, "pictures", tmp_path, keep_files=keep_files
    )
    assert counts == {"train": 4}
    assert len(caplog.messages) == 1
    broken = tmp_path / "files/train/b/broken.jpg"
    assert caplog.messages == [f"Skipped: {broken} cannot be read (1 so far)"]
    reader = stream(tmp_path, name="pictures", lanes=1)
    assert reader.image_shape is None
    expected = [to_rgb(tmp_path / "files/train" / name) for name in READABLE]
    assert as_set(one_epoch(reader)) == as_set(expected)
    step = next(iter(reader.steps(4, seed=0)))
    assert sorted(reader.load(step[1])[1].numpy().tolist()) == [
        f"train/{name}".encode() for name in READABLE
    ]
    labels = sources.load(
        "tfds:pictures", data_dir=str(tmp_path), image_size=12
    )
    assert labels.class_names == ("a", "b")
    assert sorted(labels.labels) == [0, 0, 1, 1]


@pytest.mark.core
@pytest.mark.parametrize("cache_bytes", [0, None])
def test_folders_are_streamed_as_they_are(tmp_path, cache_bytes):
    source = write_folder(tmp_path)
    (tmp_path / "train/b/broken.jpg").unlink()
    reader = readers.open_reader(
        source, stream=True, image_size=3, cache_bytes=cache_bytes
    )
    assert isinstance(reader, readers.FileReader)
    assert reader.num_images == 4 and reader.image_shape is None
    expected = [to_rgb(tmp_path / "train" / name) for name in READABLE]
    assert as_set(one_epoch(reader)) == as_set(expected)


def test_images_of_the_wanted_size_are_those_in_memory(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        suffix = ("png", "jpg", "bmp")[number % 3]
        picture = Image.fromarray(random_images(1, 16, number)[0])
        picture.save(tmp_path / f"images/{number}.{suffix}")
    source = f"folder:{tmp_path / 'images'}"
    expected = sources.load(source, image_size=16).images
    streamed = readers.open_reader(source, stream=True, image_size=16)
    assert as_set(one_epoch(streamed)) == as_set(expected)
    for keep_files in (False, True):
        name = f"tiny_{keep_files}".lower()
        shards.write_shards(source, name, tmp_path, keep_files=keep_files)
        found = one_epoch(stream(tmp_path, name=name, lanes=1))
        assert as_set(found) == as_set(expected)


def test_kept_files_are_the_files_bytes(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(smooth(8, 8)).save(folder / "x.jpg", quality=80)
    shards.write_shards(
        f"folder:{tmp_path}", "kept", tmp_path / "out", keep_files=True
    )
    reader = stream(tmp_path / "out", name="kept", lanes=1)
    _, records = next(iter(reader.steps(1, seed=0)))
    files, names = reader.load(records)
    assert files.numpy().tolist() == [(folder / "x.jpg").read_bytes()]
    assert names.numpy().tolist() == [b"train/a/x.jpg"]


def numbered_folder(folder, count=20, bad=()):
    """Loose files; those of the numbers in `bad` cannot be read."""
    folder.mkdir()
    for number, image in enumerate(random_images(count)):
        path = folder / f"{number:02}.png"
        Image.fromarray(image).save(path)
        if number in bad:
            path.write_bytes(path.read_bytes()[:80])
    return f"folder:{folder}"


def contents(folder):
    """{name: bytes} of the files of a set."""
    return {
        path.name: path.read_bytes() for path in (folder / "1.0.0").iterdir()
    }


class Killed(BaseException):
    """What nothing catches."""


def kill_at_record(patched, last):
    class Writer(tf.io.TFRecordWriter):
        def write(self, written):
            if next(numbers) == last:
                raise Killed
            super().write(written)

    numbers = itertools.count()
    patched.setattr(tf.io, "TFRecordWriter", Writer)


def kill_at_metadata(patched, _):
    def write_metadata(**arguments):
        raise Killed

    patched.setattr(tfds.folder_dataset, "write_metadata", write_metadata)


@pytest.mark.core
@pytest.mark.parametrize(
    "kill, at, num_left",
    [
        (kill_at_record, 0, 20),
        (kill_at_record, 8, 15),
        (kill_at_record, 17, 5),
        (kill_at_metadata, None, 0),
    ],
)
def test_writing_continues_after_a_kill(
    tmp_path, monkeypatch, kill, at, num_left
):
    source = numbered_folder(tmp_path / "files", bad=(3, 7))
    arguments = {"source": source, "name": "tiny", "num_shards": 4}
    counts = shards.write_shards(folder=tmp_path / "whole", **arguments)
    assert counts == {"train": 18}

    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill(patched, at)
        shards.write_shards(folder=tmp_path / "parts", **arguments)
    with pytest.raises(ValueError, match="not found"):
        sources.load("tfds:tiny", data_dir=str(tmp_path / "parts"))
    assert not (tmp_path / "parts/tiny/1.0.0").exists()

    encoded = []
    encode = shards._encode_file

    def encode_and_count(path, *rest):
        encoded.append(path)
        return encode(path, *rest)

    monkeypatch.setattr(shards, "_encode_file", encode_and_count)
    assert counts == shards.write_shards(folder=tmp_path / "parts", **arguments)
    assert len(encoded) == num_left
    assert [path.name for path in (tmp_path / "parts/tiny").iterdir()] == [
        "1.0.0"
    ]
    found, expected = (
        contents(tmp_path / folder / "tiny") for folder in ("parts", "whole")
    )
    assert len(found) >= 6 and found == expected


def test_shards_are_a_shuffled_order_of_the_files(tmp_path):
    source = numbered_folder(tmp_path / "files", bad=(3,))
    shards.write_shards(source, "tiny", tmp_path, num_shards=3)
    found = stream(tmp_path, lanes=1).shards
    order = np.array_split(np.random.default_rng(0).permutation(20), 3)
    for shard, expected in zip(found, order, strict=True):
        records = tf.data.TFRecordDataset(shard.path)
        names = tf.io.parse_example(
            list(records), {"file_name": tf.io.FixedLenFeature([], tf.string)}
        )["file_name"].numpy()
        assert names.tolist() == [b"%02d.png" % n for n in expected if n != 3]
        assert len(names) == shard.num_records


def test_a_set_begun_otherwise_is_not_continued(tmp_path, monkeypatch):
    source = numbered_folder(tmp_path / "files")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_at_record(patched, 8)
        shards.write_shards(source, "tiny", tmp_path, num_shards=4)
    with pytest.raises(ValueError, match="`name` must be new, or .*plan.json"):
        shards.write_shards(source, "tiny", tmp_path, num_shards=3)
    (tmp_path / "files/00.png").write_bytes(b"another")
    with pytest.raises(ValueError, match="`name` must be new, or .*plan.json"):
        shards.write_shards(source, "tiny", tmp_path, num_shards=4)


def test_too_many_bad_files_end_the_writing(tmp_path, caplog):
    source = numbered_folder(tmp_path / "files", bad=(3, 7, 11))
    arguments = {"source": source, "name": "tiny", "folder": tmp_path}
    with pytest.raises(ValueError, match="`max_bad`.*max_bad=2 and 3 such"):
        shards.write_shards(num_shards=5, max_bad=2, **arguments)
    assert sorted(message[-9:] for message in caplog.messages) == [
        f"{number} so far)"[-9:] for number in (1, 2, 3)
    ]
    # What is done is kept, and its bad files are counted again.
    with pytest.raises(ValueError, match="`max_bad`.*max_bad=2 and 3 such"):
        shards.write_shards(num_shards=5, max_bad=2, **arguments)
    counts = shards.write_shards(num_shards=5, max_bad=3, **arguments)
    assert counts == {"train": 17}
    assert len(one_epoch(stream(tmp_path, lanes=1))) == 17


def test_a_shard_may_hold_no_readable_image(tmp_path):
    order = np.random.default_rng(0).permutation(4).tolist()
    source = numbered_folder(tmp_path / "files", 4, bad=order[1:2])
    shards.write_shards(source, "tiny", tmp_path, num_shards=4)
    found = stream(tmp_path, lanes=1)
    assert found.num_images == 3 and len(one_epoch(found)) == 3
    found = sources.load("tfds:tiny", data_dir=str(tmp_path), image_size=6)
    expected = np.delete(random_images(4), order[1], axis=0)
    assert as_set(found.images) == as_set(expected)


def test_no_readable_image_is_an_error(tmp_path):
    source = numbered_folder(tmp_path / "files", 3, bad=range(3))
    with pytest.raises(ValueError, match=r"readable images.*'train': 0"):
        shards.write_shards(source, "tiny", tmp_path)


@pytest.mark.skipif(not (TFDS / "cifar10").is_dir(), reason="no CIFAR-10 here")
def test_cifar10_is_streamed():
    reader = readers.open_reader(
        "tfds:cifar10", "test", data_dir=str(TFDS), stream=True
    )
    assert reader.num_images == 10000
    in_memory = sources.load("tfds:cifar10", "test", data_dir=str(TFDS))
    known = set(as_set(in_memory.images))
    steps = reader.steps(64, seed=0, start_step=150).take(3)
    loaded = steps.map(lambda step, what: reader.load(what)).unbatch()
    names = {name.numpy() for _, name in loaded}
    images = loaded.map(lambda encoded, _: decoding.decode(encoded)[0])
    images = as_set(images.as_numpy_iterator())
    assert len(set(images)) == len(names) == 3 * 64 and set(images) <= known
    assert all(name.endswith(b" of cifar10") for name in names)


def test_only_files_and_shards_are_streamed():
    match = r"'folder:PATH' or 'tfds:NAME' to be.*make_shards.*source='photos'"
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
        ({"num_shards": 21}, r"`num_shards`.*\(20\).*num_shards=21"),
        ({"max_bad": -1}, "`max_bad` must be.*max_bad=-1"),
    ],
)
def test_bad_arguments_of_write_shards(tmp_path, options, match):
    source, _ = write_npz(tmp_path)
    (tmp_path / "taken").mkdir()
    arguments = {"source": source, "name": "tiny", "folder": tmp_path}
    with pytest.raises(ValueError, match=match):
        shards.write_shards(**{**arguments, **options})
    assert not (tmp_path / "tiny").exists()


def test_the_tool_writes_and_says_how_to_train(tmp_path):
    source, images = write_npz(tmp_path)
    flags = [f"--source={source}", f"--output={tmp_path}", "--name=tiny"]
    code, stdout, lines = call(
        "make_shards",
        *flags,
        "--num_shards=2",
        "--splits=train,test",
        "--max_bad=0",
    )
    assert (code, lines) == (0, [])
    assert stdout == (
        "train: 20 images\ntest: 4 images\n"
        "train with --config.data.source=tfds:tiny "
        f"--config.data.data_dir={tmp_path} --config.data.stream=True\n"
    )
    assert as_set(one_epoch(stream(tmp_path, lanes=1))) == as_set(images)

    assert_mistake(call("make_shards", *flags), "error: `name` must be new.")
