"""Tests of decoding in the graph, and of what becomes of bad images."""

import io
import logging

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ressl_tf.data import decoding
from ressl_tf.data import image_files
from ressl_tf.data import sources


def picture(height=24, width=32, seed=0):
    """A smooth PIL image, as photographs are."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha(image):
    image = image.convert("RGBA")
    image.putalpha(image.convert("L"))
    return image


def sixteen_bits(channels):
    shape = (24, 32, channels)
    pixels = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    return tf.io.encode_png(pixels).numpy()


def frames(kind, **options):
    first, second = picture(), picture(seed=1)
    more = [second.quantize(64)] if kind == "GIF" else [second]
    first = first.quantize(64) if kind == "GIF" else first
    return encode(first, kind, save_all=True, append_images=more, **options)


JPEG = encode(picture(), "JPEG", quality=90)
PNG = encode(picture(), "PNG")
PALETTE = picture().quantize(16)
FILES = {
    "jpeg": JPEG,
    "jpeg 4:4:4": encode(picture(), "JPEG", subsampling=0),
    "jpeg progressive": encode(picture(), "JPEG", progressive=True),
    "jpeg gray": encode(picture().convert("L"), "JPEG"),
    "jpeg cmyk": encode(picture().convert("CMYK"), "JPEG"),
    "png": PNG,
    "png gray": encode(picture().convert("L"), "PNG"),
    "png bits": encode(picture().convert("1"), "PNG"),
    "png alpha": encode(with_alpha(picture()), "PNG"),
    "png gray alpha": encode(picture().convert("LA"), "PNG"),
    "png palette": encode(PALETTE, "PNG"),
    "png palette alpha": encode(PALETTE, "PNG", transparency=b"\0\1\2"),
    "png 16 gray": sixteen_bits(1),
    "png 16": sixteen_bits(3),
    "png 16 alpha": sixteen_bits(4),
    "gif": encode(PALETTE, "GIF"),
    "gif animated": frames("GIF"),
    "bmp": encode(picture(), "BMP"),
    "bmp alpha": encode(with_alpha(picture()), "BMP"),
}
WEBP = {
    "webp": encode(picture(), "WEBP"),
    "webp lossless": encode(picture(), "WEBP", lossless=True),
    "webp alpha": encode(with_alpha(picture()), "WEBP", exact=True),
    "webp lossless alpha": encode(
        with_alpha(picture()), "WEBP", lossless=True, exact=True
    ),
}
BAD_FILES = {
    "empty": b"",
    "one byte": b"\xff",
    "text": b"No image, whatever its name says. " * 3,
    "magic alone": JPEG[:4],
    "jpeg header": JPEG[:100],
    "jpeg cut": JPEG[: len(JPEG) * 3 // 4],
    "jpeg without its end": JPEG[:-2],
    "png cut": PNG[: len(PNG) * 3 // 4],
    "png damaged": PNG[:200] + bytes(9) + PNG[209:],
    "gif cut": FILES["gif"][:-200],
    "bmp cut": FILES["bmp"][:-200],
    "bmp header": b"BM",
    "bmp palette": encode(PALETTE, "BMP"),
    "webp cut": WEBP["webp"][:-50],
    "webp header": b"RIFF\0\0\0\0WEBP",
    "webp animated": frames("WEBP"),
    "webp animated alpha": encode(
        with_alpha(picture()),
        "WEBP",
        save_all=True,
        append_images=[with_alpha(picture(seed=1))] * 2,
    ),
    "tiff": encode(picture(), "TIFF"),
}


def pil_pixels(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image_files.to_rgb(image))


def decode_all(files):
    """In the function of a data set, as training does."""
    dataset = tf.data.Dataset.from_tensor_slices(list(files))
    dataset = dataset.map(decoding.decode)
    assert [spec.shape.as_list() for spec in dataset.element_spec] == [
        [None, None, 3],
        [],
    ]
    return list(dataset.as_numpy_iterator())


def decodes_webp():
    """Whether this TensorFlow does."""
    try:
        tf.io.decode_image(WEBP["webp"])
    except tf.errors.InvalidArgumentError:
        return False
    return True


@pytest.mark.core
def test_pixels_are_those_of_pil():
    files = {**FILES, **(WEBP if decodes_webp() else {})}
    found = dict(zip(files, decode_all(files.values()), strict=True))
    for name, (image, readable) in found.items():
        assert readable, name
        expected = pil_pixels(files[name])
        assert image.dtype == np.uint8 and image.shape == expected.shape, name
        # Equal where both use the same libjpeg; one level for another one.
        difference = np.abs(image.astype(int) - expected)
        assert difference.max() <= ("jpeg" in name), name
    assert found["png"][0].std() > 30
    np.testing.assert_array_equal(found["png"][0], np.asarray(picture()))
    # The first frame, and not its average with the second or the like.
    second = np.asarray(picture(seed=1), int)
    assert np.abs(found["gif animated"][0] - second).mean() > 20


@pytest.mark.core
def test_bad_files_are_no_error():
    found = decode_all([*BAD_FILES.values(), PNG])
    for name, (image, readable) in zip(BAD_FILES, found, strict=False):
        assert not readable, name
        np.testing.assert_array_equal(image, np.zeros((1, 1, 3)), name)
    assert found[-1][1]


def test_eager_and_compiled_functions_decode_too():
    for decode in (decoding.decode, tf.function(decoding.decode)):
        image, readable = decode(tf.constant(PNG))
        np.testing.assert_array_equal(image, np.asarray(picture()))
        assert readable and not decode(tf.constant(b""))[1]


def test_a_tf_data_service_decodes():
    dispatcher = tf.data.experimental.service.DispatchServer()
    address = dispatcher.target.removeprefix("grpc://")
    worker = tf.data.experimental.service.WorkerServer(
        tf.data.experimental.service.WorkerConfig(dispatcher_address=address)
    )
    dataset = tf.data.Dataset.from_tensor_slices([PNG, b"", JPEG])
    dataset = dataset.map(decoding.decode).apply(
        tf.data.experimental.service.distribute("parallel_epochs", address)
    )
    found = list(dataset.as_numpy_iterator())
    assert [bool(readable) for _, readable in found] == [True, False, True]
    np.testing.assert_array_equal(found[0][0], np.asarray(picture()))
    del worker


def test_damaged_files_never_end_the_process():
    # Cut anywhere, or with wrong bytes in the header: an image or none.
    generator = np.random.default_rng(0)
    files = []
    for encoded in [*FILES.values(), *WEBP.values()]:
        for _ in range(4):
            files.append(encoded[: generator.integers(len(encoded))])
            damaged = bytearray(encoded)
            damaged[generator.integers(60)] = generator.integers(256)
            files.append(bytes(damaged))
    readable = [readable for _, readable in decode_all(files)]
    assert 0 < sum(readable) < len(files)


def check_batches(bad_images, *batches):
    """Runs `check` in a data set; each batch is {name: readable}."""
    names = [list(batch) for batch in batches]
    readable = [list(batch.values()) for batch in batches]
    dataset = tf.data.Dataset.from_tensor_slices((names, readable))

    def check(names, readable):
        bad_images.check(names, readable)
        return names

    return list(dataset.map(check))


@pytest.mark.core
def test_bad_images_are_named_once(caplog):
    bad_images = decoding.BadImages(2)
    batches = check_batches(
        bad_images,
        {"a": True, "b": True, "c": True},
        {"a": False, "b": True, "ü": False},
        {"a": False, "ü": False, "d": True},
    )
    assert len(batches) == 3
    assert bad_images.names == ["a", "ü"] and bad_images.error is None
    assert caplog.record_tuples == [
        (
            "ressl_tf",
            logging.WARNING,
            f"Skipped: {name} cannot be read ({number} so far)",
        )
        for number, name in ((1, "a"), (2, "ü"))
    ]


@pytest.mark.core
@pytest.mark.parametrize("max_bad", [0, 1])
def test_too_many_bad_images_are_an_error(max_bad):
    bad_images = decoding.BadImages(max_bad)
    batches = [{"a": False, "b": True}, {"a": False, "c": False}]
    if max_bad:
        check_batches(bad_images, *batches[:max_bad])
    assert bad_images.error is None
    with pytest.raises(tf.errors.OpError, match="data.max_bad"):
        check_batches(bad_images, *batches)
    message = str(bad_images.error)
    assert message.startswith("`data.max_bad` is the number of images")
    names = "; ".join("ac"[: max_bad + 1])
    assert message.endswith(
        f"data.max_bad={max_bad} and {max_bad + 1} such images: {names}"
    )
    # Once too many, whatever is asked next.
    with pytest.raises(ValueError, match="data.max_bad"):
        bad_images.add("a")


def test_the_error_names_the_first():
    bad_images = decoding.BadImages(11, "max_bad")
    for number in range(11):
        bad_images.add(f"<{number}>")
    with pytest.raises(ValueError, match=r"^`max_bad`.*12 such.*<9>; \.\.\.$"):
        bad_images.add("last")


def test_readable_images_cost_no_python(monkeypatch):
    bad_images = decoding.BadImages(0)

    def add(name):
        raise AssertionError

    monkeypatch.setattr(bad_images, "add", add)
    check_batches(bad_images, {"a": True}, {"b": True})
    with pytest.raises(tf.errors.OpError):
        check_batches(bad_images, {"a": False})


@pytest.mark.parametrize("max_bad", [-1, 0.5, None, True])
def test_bad_max_bad(max_bad):
    match = f"`data.max_bad` must be .*data.max_bad={max_bad}"
    with pytest.raises(ValueError, match=match):
        decoding.BadImages(max_bad)


def test_the_same_error_for_images_in_memory(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(PNG if number < 2 else b"no")
    source = f"folder:{tmp_path}"
    with pytest.raises(ValueError, match="`max_bad` is the number") as error:
        sources.load(source, image_size=8, max_bad=1)
    expected = decoding.too_many_bad(["x", "y"], 1)
    first_words, _, _ = str(expected).rpartition("x; y")
    assert str(error.value).startswith(f"{first_words}{tmp_path / '2.png'} (")
