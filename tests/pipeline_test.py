"""Tests of full-size images, pieces, and views finished on the device.

What the pipeline does with any images is in data_test.
"""

import io
import logging

import numpy as np
import pytest
import tensorflow as tf
import tiny
from numbered import assert_same
from PIL import Image

from ressl_tf import augment
from ressl_tf import data
from ressl_tf import train
from ressl_tf import workdir
from ressl_tf.data import decoding
from ressl_tf.data import order
from ressl_tf.data import pipeline

NO_CHANGE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
STRONG = augment.strong_view(16, blur_kernel=3)
WEAK = augment.weak_view(12, **NO_CHANGE)
STEPS = 4


def smooth_image(generator, height, width):
    """uint8 (H, W, 3): as JPEG compresses it, its pixels stay what they are."""
    corners = generator.uniform(0, 255, (2, 2, 3))
    down = np.linspace(0, 1, height)[:, None, None]
    across = np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - across) + corners[0, 1] * across
    bottom = corners[1, 0] * (1 - across) + corners[1, 1] * across
    return np.uint8(np.round(top * (1 - down) + bottom * down))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve PNG and JPEG files of as many sizes."""
    path = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(12):
        image = smooth_image(generator, 20 + 3 * number, 50 - 2 * number)
        suffix = "png" if number % 2 else "jpg"
        Image.fromarray(image).save(path / f"{number:02}.{suffix}")
    return path


def open_folder(folder):
    return data.open_reader(f"folder:{folder}", stream=True)


def make(images, **options):
    return data.make_train_dataset(
        images,
        **{
            "batch_size": 6,
            "student_views": (STRONG,),
            "teacher_views": (WEAK,),
            "seed": 3,
            **options,
        },
    )


def batches(images, num_steps=STEPS, **options):
    return [
        tf.nest.flatten(batch)
        for batch in make(images, **options).take(num_steps)
    ]


def key_of(seed, view, step):
    """The seed that the pipeline documents for a view of a step."""
    key = tf.constant([seed, 1], tf.int64)
    for number in (view, step):
        key = order.fold_in(key, tf.constant(number, tf.int64))
    return key


@pytest.mark.core
def test_views_are_cut_from_images_in_full_size(folder):
    reader = open_folder(folder)
    assert reader.image_shape is None
    steps = reader.steps(6, seed=3)
    for (step, rows), batch in zip(
        steps.take(3), make(reader).take(3), strict=True
    ):
        drawn = WEAK.draw(6, key_of(3, 1, int(step)))
        _, names = reader.load(rows)
        for row, name in enumerate(names.numpy()):
            image = np.asarray(Image.open(name.decode()))
            own = {key: value[row : row + 1] for key, value in drawn.items()}
            expected = WEAK.crop_one(tf.constant(image), own) / 255.0
            found = batch["teacher"][0][row]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_full_size_equals_in_memory_for_images_of_one_size(tmp_path):
    generator = np.random.default_rng(1)
    images = np.stack([smooth_image(generator, 24, 24) for _ in range(10)])
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    streamed = batches(open_folder(tmp_path), batch_size=5)
    for one, other in zip(streamed, batches(images, batch_size=5), strict=True):
        for a, b in zip(one, other, strict=True):
            # Two kernels cut; jitter and division by std enlarge the rest.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_pieces_change_no_bit(kind, folder, monkeypatch):
    images = np.random.default_rng(2).integers(
        0, 256, (12, 20, 20, 3), dtype=np.uint8
    )
    source = images if kind == "memory" else open_folder(folder)
    whole = batches(source)
    assert whole[0][0].shape == (6, 16, 16, 3)
    for fitting in (1, 2, 3, 5):  # of which 1, 2, 3, 3 divide the batch
        monkeypatch.setattr(pipeline, "_PIECE_BYTES", fitting * 16 * 16 * 3 * 4)
        assert_same(batches(source), whole)


@pytest.mark.parametrize(
    "num_rows, view_size, expected",
    [
        (256, 32, 256),
        (1024, 32, 256),  # 426 would fit
        (256, 64, 64),  # 106 would fit
        (1024, 224, 8),  # 8.7 would fit
        (7, 224, 7),
        (17, 224, 1),
        (256, None, 256),
        (8, 2000, 1),
    ],
)
def test_piece_size(num_rows, view_size, expected):
    assert pipeline._piece_size(num_rows, view_size) == expected


def test_parts_of_workers_and_replicas(folder):
    whole = batches(open_folder(folder))
    parts = [
        batches(
            open_folder(folder),
            2 * STEPS,
            worker=worker,
            num_workers=3,
            replicas_per_worker=2,
        )
        for worker in range(3)
    ]
    for step, expected in enumerate(whole):
        rows = [part[2 * step + n] for part in parts for n in (0, 1)]
        found = [np.concatenate(view) for view in zip(*rows, strict=True)]
        assert_same([found], [expected])


@pytest.mark.parametrize("parallel_calls", [1, 3])
def test_parallel_calls_and_resuming(folder, parallel_calls):
    whole = batches(open_folder(folder))
    found = batches(
        open_folder(folder),
        STEPS - 1,
        start_step=1,
        num_parallel_calls=parallel_calls,
    )
    assert_same(found, whole[1:])


def damage(folder, target, *numbers):
    """A copy of the folder in which these files are cut short."""
    target.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        content = path.read_bytes()
        if number in numbers:
            content = content[: len(content) // 2]
        (target / path.name).write_bytes(content)
    return target


@pytest.mark.core
@pytest.mark.parametrize("piece_size", [1, 6])
def test_bad_images_are_replaced_and_counted(
    piece_size, folder, tmp_path, caplog, monkeypatch
):
    # One image a piece: none of a bad image's own piece can be read.
    monkeypatch.setattr(pipeline, "_PIECE_BYTES", piece_size * 16 * 16 * 3 * 4)
    bad = damage(folder, tmp_path / "bad", 3, 4)
    count = data.BadImages(2)
    with caplog.at_level(logging.WARNING, "ressl_tf"):
        found = batches(open_folder(bad), 6, bad_images=count)
    assert sorted(name[-6:] for name in count.names) == ["03.png", "04.jpg"]
    skipped = [line for line in caplog.messages if "Skipped" in line]
    assert len(skipped) == 2 and "(2 so far)" in skipped[1]

    # All other rows are what they would be; a bad image's row shows the views
    # of the next readable one.
    reader = open_folder(bad)
    whole = batches(open_folder(folder), 6)
    seen = 0
    for step, rows in reader.steps(6, seed=3).take(6):
        is_bad = np.isin(rows, [3, 4])
        for found_view, whole_view in zip(
            found[int(step)], whole[int(step)], strict=True
        ):
            np.testing.assert_array_equal(
                found_view[~is_bad], whole_view[~is_bad]
            )
        for row in np.flatnonzero(is_bad):
            following = (row + np.arange(6)) % 6
            (source, *_) = following[~is_bad[following]]
            for found_view, whole_view in zip(
                found[int(step)], whole[int(step)], strict=True
            ):
                np.testing.assert_array_equal(
                    found_view[row], whole_view[source]
                )
            seen += 1
    assert seen == 6  # three epochs


def test_too_many_bad_images_end_the_data_set(folder, tmp_path):
    bad = damage(folder, tmp_path / "bad", 1, 5, 8)
    count = data.BadImages(2)
    with pytest.raises(tf.errors.OpError, match="data.max_bad"):
        batches(open_folder(bad), 4, bad_images=count)
    assert "data.max_bad=2 and 3 such images" in str(count.error)


def test_images_of_another_shape_than_the_sets_are_bad():
    wrong = np.zeros((2, 5, 4, 3), np.uint8)
    encoded = [tf.io.encode_png(image) for image in wrong]
    encoded.append(tf.io.encode_png(np.full((4, 4, 3), 7, np.uint8)))
    decode = tf.function(lambda files: pipeline._decode_all(files, (4, 4, 3)))
    images, readable = decode(tf.stack(encoded))
    np.testing.assert_array_equal(readable, [False, False, True])
    np.testing.assert_array_equal(images[2], np.full((4, 4, 3), 7))


def test_a_batch_of_bad_images_is_an_error(folder, tmp_path):
    bad = damage(folder, tmp_path / "bad", *range(12))
    with pytest.raises(tf.errors.OpError, match="No image of a batch"):
        batches(open_folder(bad), 1, bad_images=data.BadImages(12))


@pytest.mark.core
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_views_finished_on_the_device(kind, folder):
    images = np.random.default_rng(2).integers(
        0, 256, (12, 20, 20, 3), dtype=np.uint8
    )
    source = images if kind == "memory" else open_folder(folder)
    host, device = make(source), make(source, augment_on="device")
    packed = device.element_spec["student"][0]
    assert packed["crop"].dtype == tf.uint8
    assert packed["crop"].shape == (6, 16, 16, 3)
    assert set(device.element_spec["teacher"][0]) == {"crop"}
    for whole, halves in zip(host.take(3), device.take(3), strict=True):
        weak = WEAK.finish(halves["teacher"][0])
        # The rounding of the crops to levels, and nothing else.
        np.testing.assert_allclose(
            weak, whole["teacher"][0], rtol=0, atol=0.501 / 255
        )
        strong = STRONG.finish(halves["student"][0])
        difference = np.abs(strong - whole["student"][0])
        # Contrast and saturation of 1.4 and the division by std enlarge it;
        # hue turns grays that are no grays any more.
        assert (
            np.mean(difference) < 0.01 and np.quantile(difference, 0.99) < 0.1
        )


def test_a_run_with_views_finished_on_the_device(tmp_path, monkeypatch):
    tiny.add_backbone(monkeypatch)
    source = tiny.write_images(tmp_path)
    losses = {}
    for place in ("host", "device"):
        config = tiny.make_config(
            source, {"data.augment_on": place, "train.epochs": 1.0}
        )
        run = train.train(config, tmp_path / place)
        assert run.finished
        (*_, last) = workdir.read_metrics(tmp_path / place)
        losses[place] = last["loss"]
        keys = run.model.queue.keys.numpy()
    assert np.isfinite(keys).all()
    np.testing.assert_allclose(losses["device"], losses["host"], rtol=0.02)


def test_a_run_that_meets_too_many_bad_images(folder, tmp_path, monkeypatch):
    tiny.add_backbone(monkeypatch)
    bad = damage(folder, tmp_path / "bad", 1, 5)
    config = tiny.make_config(
        f"folder:{bad}",
        {
            "data.stream": True,
            "data.max_bad": 1,
            "train.batch_size": 4,
            "monitor.eval_every_epochs": 0,
        },
    )
    with pytest.raises(ValueError, match="data.max_bad=1 and 2 such images"):
        train.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"augment_on": "gpu"}, "`augment_on` must be 'host' or 'device'"),
        (
            {"augment_on": "device", "student_views": (tiny.PlainView(0.1),)},
            'must be `augment.View`s with augment_on="device"',
        ),
        (
            {"student_views": (tiny.PlainView(0.1),)},
            "must be `augment.View`s for images of several sizes",
        ),
    ],
)
def test_what_views_must_be(folder, options, match):
    with pytest.raises(ValueError, match=match):
        make(open_folder(folder), **options)


def test_decoding_is_pils(folder):
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        image, readable = tf.function(decoding.decode)(tf.constant(content))
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert readable
        np.testing.assert_array_equal(image, expected)
