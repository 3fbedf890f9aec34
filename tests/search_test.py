"""Tests of ressl_tf.search and tools.search_demo, over real HTTP."""

import base64
import contextlib
import http.client
import io
import json
import select
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pytest
import tiny
from PIL import Image
from PIL import ImageFile
from PIL import ImageOps
from tool_process import assert_mistake
from tool_process import call
from tool_process import finish
from tool_process import start

from ressl_tf import data
from ressl_tf import export
from ressl_tf import recipe
from ressl_tf import search
from ressl_tf import workdir as workdir_lib
from ressl_tf.data import image_files
from ressl_tf.search import upload

SIZE = 8
NUM_IMAGES = 12
LIMITS = search.Limits(max_bytes=5000, max_pixels=600, max_searches=2)


def corner(images):
    """An encoder whose embedding is the colour of the top left pixel."""
    return images[:, 0, 0, :]


def make_images(labels=None):
    """Random images; two are equal, of numbers 3 and 7."""
    images = np.random.default_rng(0).integers(
        1, 256, (NUM_IMAGES, SIZE, SIZE, 3), dtype=np.uint8
    )
    images[7] = images[3]
    names = () if labels is None else ("cat", "dog", "cow")
    return data.ImageSet(images, labels, names)


LABELS = np.array([0, 1, 2, 0, 1, -1, 0, 1, 2, 0, 1, 2])


def encode_file(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def ranked(images, query):
    """Numbers and cosines of all images, the most similar first."""
    vectors = images[:, 0, 0].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = query[0, 0] / np.linalg.norm(query[0, 0].astype(np.float64))
    cosines = vectors @ query
    order = np.argsort(-cosines, kind="stable")
    return order, cosines[order]


def test_nearest_of_an_image_from_outside():
    images = make_images()
    index = search.Index(images, corner)
    query = np.full((SIZE, SIZE, 3), (200, 30, 90), np.uint8)
    order, cosines = ranked(images.images, query)
    found = index.nearest(query, 5)
    assert [x.number for x in found] == order[:5].tolist()
    np.testing.assert_allclose([x.similarity for x in found], cosines[:5], 1e-6)
    assert index.num_images == NUM_IMAGES
    assert len(index.nearest(query, NUM_IMAGES + 1)) == NUM_IMAGES


@pytest.mark.parametrize("number", [0, 3, 7])
def test_nearest_of_one_of_the_images(number):
    """It is not its own neighbour; one that equals it is."""
    images = make_images()
    order, cosines = ranked(images.images, images.images[number])
    others = order != number
    found = search.Index(images, corner).nearest_of(number, 4)
    assert [x.number for x in found] == order[others][:4].tolist()
    np.testing.assert_allclose(
        [x.similarity for x in found], cosines[others][:4], 1e-6
    )


def test_an_only_image_has_no_neighbour():
    images = make_images()
    index = search.Index(images._replace(images=images.images[:1]), corner)
    assert index.nearest_of(0, 3) == []


def test_labels():
    index = search.Index(make_images(LABELS), corner)
    assert [index.label(number) for number in (0, 4, 5, 8)] == [0, 1, None, 2]
    assert search.Index(make_images(), corner).label(0) is None


def test_diverged_weights_are_named():
    with pytest.raises(ValueError, match="`embeddings` should be finite"):
        search.Index(make_images(), lambda images: corner(images) / 0.0)


@pytest.mark.parametrize(
    "kind, suffix",
    [
        ("JPEG", ".jpg"),
        ("PNG", ".png"),
        ("GIF", ".gif"),
        ("BMP", ".bmp"),
        ("WEBP", ".webp"),
    ],
)
def test_a_file_becomes_what_it_is_in_the_gallery(tmp_path, kind, suffix):
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    file = encode_file(image, kind)
    (tmp_path / f"image{suffix}").write_bytes(file)
    expected = data.load(f"folder:{tmp_path}", image_size=SIZE).images[0]
    square = upload.read_square(file, SIZE, 600)
    np.testing.assert_array_equal(square, expected)
    assert upload.find_kind(file).upper() == kind
    with pytest.raises(upload.Refused, match="at most 599 are") as refused:
        upload.read_square(file, SIZE, 599)
    assert refused.value.status == 413


@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_as_their_camera_was(orientation):
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    notes = Image.Exif()
    notes[0x0112] = orientation
    with Image.open(io.BytesIO(encode_file(image, exif=notes))) as opened:
        upright = ImageOps.exif_transpose(opened)
        expected = np.asarray(image_files.fit_square(upright, SIZE))
    found = upload.read_square(encode_file(image, exif=notes), SIZE, 600)
    # A filter's sums are rounded in another order.
    np.testing.assert_allclose(found, expected, atol=1)
    turned = orientation in range(2, 9)
    straight = upload.read_square(encode_file(image), SIZE, 600)
    assert (found.astype(int) - straight).any() == turned


def test_damaged_notes_are_no_damaged_image():
    image = make_images().images[0]
    file = encode_file(image, exif=b"Exif\0\0no notes")
    with Image.open(io.BytesIO(file)) as opened:
        opened.load()
        with pytest.raises(SyntaxError):
            opened.getexif()
    np.testing.assert_array_equal(upload.read_square(file, SIZE, 600), image)


def chunk(kind, content):
    length, check = len(content), zlib.crc32(kind + content)
    return struct.pack(">I", length) + kind + content + struct.pack(">I", check)


def claim(width, height):
    """A PNG whose header claims a size, and which has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("width", [601, 60_000])
def test_too_many_pixels_are_not_decoded(monkeypatch, width):
    def load(_):
        raise RuntimeError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    height = 60_000 if width == 60_000 else 1
    with pytest.raises(upload.Refused, match="too many pixels") as refused:
        upload.read_square(claim(width, height), SIZE, 600)
    assert refused.value.status == 413
    with pytest.raises(upload.Refused, match="PNG image is damaged") as refused:
        upload.read_square(claim(600, 1), SIZE, 600)
    assert refused.value.status == 422


NO_IMAGES = [
    b"",
    b"plain text",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"II*\0" + bytes(50),  # TIFF
    b"%!PS-Adobe-3.0 EPSF-3.0",
    b"RIFF\0\0\0\0WAVE",
    b"\xff\xd8",
]


@pytest.mark.parametrize("file", NO_IMAGES)
def test_other_files_are_refused(file):
    assert upload.find_kind(file) is None
    with pytest.raises(
        upload.Refused, match="Only JPEG, PNG, GIF, BMP and WebP images"
    ) as refused:
        upload.read_square(file, SIZE, 600)
    assert refused.value.status == 415


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_half_an_image_is_damaged(kind):
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    file = encode_file(image, kind)
    with pytest.raises(upload.Refused, match="image is damaged") as refused:
        upload.read_square(file[: len(file) // 2], SIZE, 600)
    assert refused.value.status == 422


def make_card(source, **changes):
    settings = {"source": source, "split": "train", "data_dir": ""}
    return {"config": {"data": {**settings, "stream": False, **changes}}}


def load_gallery(*arguments, num_images=10, **options):
    return search.load_gallery(
        *arguments, image_size=SIZE, num_images=num_images, **options
    )


def test_the_gallery_is_what_the_encoder_learnt_from(tmp_path):
    source = tiny.write_images(tmp_path)
    whole = data.load(source, "train", image_size=SIZE)
    found, *where = load_gallery(make_card(source))
    assert where == [source, "train"]
    # As many of each class as can be, and not sorted by it.
    counts = np.bincount(found.labels)
    assert sorted(counts.tolist()) == [2, 2, 3, 3]
    assert (np.diff(found.labels) < 0).any()
    for image, label in zip(found.images, found.labels, strict=True):
        (row,) = np.flatnonzero((whole.images == image).all(axis=(1, 2, 3)))
        assert whole.labels[row] == label
    assert found.class_names == ("0", "1", "2", "3")
    again, _, _ = load_gallery(make_card(source))
    np.testing.assert_array_equal(again.images, found.images)
    other, _, _ = load_gallery(make_card(source), seed=1)
    assert (other.images != found.images).any()


def test_other_images_and_splits(tmp_path):
    source = tiny.write_images(tmp_path)
    test_card = make_card(source, split="test")
    everything = {"num_images": 1000}
    found, _, split = load_gallery(test_card, **everything)
    assert (len(found.images), split) == (24, "test")
    found, _, split = load_gallery(test_card, None, "train", **everything)
    assert (len(found.images), split) == (64, "train")
    with pytest.raises(ValueError, match="`split` must.*split='nothing'"):
        load_gallery(test_card, None, "nothing")
    card = make_card("tfds:nothing_of_that_name", split="nothing+more")
    found, *where = load_gallery(card, source)
    assert (len(found.images), *where) == (10, source, "train")


def test_of_a_folder_only_the_gallery_is_read(tmp_path, monkeypatch):
    numbers = np.arange(40)
    for number in numbers:
        folder = tmp_path / "train" / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        shade = np.full((SIZE, SIZE, 3), number, np.uint8)
        Image.fromarray(shade).save(folder / f"{number:02}.png")
    asked = []
    decode = image_files.decode_files

    def decode_files(files, *arguments):
        asked.extend(files)
        return decode(files, *arguments)

    monkeypatch.setattr(image_files, "decode_files", decode_files)
    source = f"folder:{tmp_path}"
    (tmp_path / "train" / "a" / "01.png").write_bytes(b"damaged")
    found, _, _ = load_gallery(make_card("photos"), source)
    assert len(asked) == len(found.images) == 10
    np.testing.assert_array_equal(
        found.labels, found.images[:, 0, 0, 0] % 2 ^ 1
    )
    assert found.class_names == ("a", "b")
    with pytest.warns(UserWarning, match="1 of the 40 image files"):
        found, _, _ = load_gallery(make_card("photos"), source, num_images=40)
    np.testing.assert_array_equal(
        np.sort(found.images[:, 0, 0, 0]), np.delete(numbers, 1)
    )
    np.testing.assert_array_equal(
        found.labels, found.images[:, 0, 0, 0] % 2 ^ 1
    )


def test_images_that_memory_does_not_hold(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"`split` must be given.*'train\[:10\]'.*Received: split=None, "
        "source='tfds:huge'",
    ):
        load_gallery(make_card("tfds:huge", stream=True))
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "image.png")
    source = f"folder:{tmp_path}"
    found, _, _ = load_gallery(make_card(source, stream=True))
    assert len(found.images) == 1 and found.labels is None
    assert found.class_names == ()


@contextlib.contextmanager
def running(limits=LIMITS, labels=LABELS):
    """A server of 12 images, and 5 neighbours of each."""
    with search.SearchServer(0, limits) as server:
        index = search.Index(make_images(labels), corner)
        thread = threading.Thread(
            target=server.serve, args=(index, "twelve images", 5)
        )
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def connect(server):
    return http.client.HTTPConnection("127.0.0.1", server.server_port, 20)


def send(server, method, path, body=None, headers=()):
    """An open connection on which a request was sent, with these headers."""
    connection = connect(server)
    headers = list(headers)
    names = {name.lower() for name, _ in headers}
    connection.putrequest(
        method, path, skip_host="host" in names, skip_accept_encoding=True
    )
    if body is not None and "content-length" not in names:
        headers.append(("Content-Length", str(len(body))))
    for name, value in headers:
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    if body:
        connection.send(body)
    return connection


def receive(connection):
    """Status, headers and body, which is an object where it is JSON."""
    with contextlib.closing(connection):
        answer = connection.getresponse()
        body = answer.read()
        if answer.headers["Content-Type"] == "application/json":
            body = json.loads(body)
        return answer.status, answer.headers, body


def ask(*arguments, **options):
    return receive(send(*arguments, **options))


def assert_refused(answer, status, part):
    """One sentence, and the headers that every answer has."""
    found, headers, body = answer
    assert found == status, body
    assert list(body) == ["error"] and part in body["error"]
    assert body["error"].endswith(".")
    assert_safe(headers)


def assert_safe(headers):
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Connection"] == "close"
    assert headers["Server"] == "ressl_tf "
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "path, kind, part",
    [
        ("/", "text/html; charset=utf-8", b"<title>Nearest neighbours"),
        ("/page.js", "text/javascript; charset=utf-8", b'"use strict"'),
        ("/page.css", "text/css; charset=utf-8", b":root {"),
    ],
)
def test_the_page(server, path, kind, part):
    status, headers, body = ask(server, "GET", path)
    assert status == 200 and part in body
    assert headers["Content-Type"] == kind
    assert_safe(headers)
    assert b"style=" not in body and b"onclick" not in body
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in body


def test_the_gallery_over_http(server):
    status, headers, found = ask(server, "GET", "/gallery.json")
    assert status == 200
    assert_safe(headers)
    assert found == {
        "about": "twelve images",
        "num_images": 12,
        "image_size": SIZE,
        "class_names": ["cat", "dog", "cow"],
        "labels": [None if x < 0 else x for x in LABELS.tolist()],
        "max_bytes": 5000,
    }


@pytest.mark.parametrize("number", [0, 11])
def test_images_over_http(server, number):
    status, headers, body = ask(server, "GET", f"/image/{number}.png")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert_safe(headers)
    with Image.open(io.BytesIO(body)) as image:
        expected = make_images().images[number]
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_neighbours_over_http(server):
    images = make_images().images
    status, headers, body = ask(server, "GET", "/neighbours/0.json")
    assert status == 200
    assert_safe(headers)
    assert body["query"] == {"number": 0, "label": 0, "image": "image/0.png"}
    order, cosines = ranked(images, images[0])
    assert order[0] == 0
    found = body["neighbours"]
    assert [x["number"] for x in found] == order[1:6].tolist()
    np.testing.assert_allclose(
        [x["similarity"] for x in found], cosines[1:6], 1e-6
    )
    labels = LABELS[order[1:6]].tolist()
    assert [x["label"] for x in found] == [
        None if label < 0 else label for label in labels
    ]
    assert [x["same_class"] for x in found] == [
        None if label < 0 else label == 0 for label in labels
    ]
    assert {x["same_class"] for x in found} == {True, False, None}


def test_an_unlabelled_image_has_neighbours_of_no_class(server):
    _, _, body = ask(server, "GET", "/neighbours/5.json")
    assert body["query"]["label"] is None
    assert [x["same_class"] for x in body["neighbours"]] == [None] * 5
    assert any(x["label"] is not None for x in body["neighbours"])


def test_a_search_over_http(server):
    images = make_images().images
    file = encode_file(images[7])
    status, headers, body = ask(server, "POST", "/search", file)
    assert status == 200
    assert_safe(headers)
    # It equals both of these; the earlier one is first.
    assert [x["number"] for x in body["neighbours"][:2]] == [3, 7]
    order, cosines = ranked(images, images[7])
    assert [x["number"] for x in body["neighbours"]] == order[:5].tolist()
    np.testing.assert_allclose(
        [x["similarity"] for x in body["neighbours"]], cosines[:5], 1e-6
    )
    assert {x["same_class"] for x in body["neighbours"]} == {None}
    assert body["query"]["number"] is body["query"]["label"] is None
    prefix, _, code = body["query"]["image"].partition("base64,")
    assert prefix == "data:image/png;"
    with Image.open(io.BytesIO(base64.b64decode(code))) as image:
        np.testing.assert_array_equal(np.asarray(image), images[7])


@pytest.mark.parametrize(
    "path",
    [
        "/image/12.png",
        "/image/-1.png",
        "/image/+1.png",
        "/image/1.5.png",
        "/image/1e0.png",
        "/image/١.png",
        "/image/999999999.png",
        "/image/" + "9" * 5000 + ".png",
        "/image/.png",
        "/image/1.jpg",
        "/image/1.png/",
        "/image/1.png?x",
        "/image/1.png%0a",
        "/image/1%00.png",
        "/image/../image/1.png",
        "/neighbours/12.json",
        "/neighbours/1.png",
        "/image",
        "/image/",
        "/page.html",
        "/server.py",
        "/../server.py",
        "/..%2fserver.py",
        "/./page.js",
        "/page.js/..",
        "/etc/passwd",
        "//etc/passwd",
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/favicon.ico",
        "/search",
        "page.js",
        "*",
        "http://example.org/",
    ],
)
def test_nothing_else_is_there(server, path):
    with socket.create_connection(("127.0.0.1", server.server_port)) as raw:
        host = f"127.0.0.1:{server.server_port}"
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        body = json.loads(answer.read())
    outside = path in ("/image/12.png", "/image/999999999.png")
    outside |= path == "/neighbours/12.json"
    part = "they end at 11." if outside else "nothing at this address."
    assert_refused((answer.status, answer.headers, body), 404, part)


@pytest.mark.parametrize("path", ["/", "/search/", "/image/1.png", "/page.js"])
def test_images_are_sent_to_one_address(server, path):
    file = encode_file(make_images().images[0])
    assert_refused(ask(server, "POST", path, file), 404, "nothing at this")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "get"])
def test_other_methods(server, method):
    answer = ask(server, method, "/")
    assert_refused(answer, 501, "Not Implemented")


def test_head_has_no_body(server):
    with contextlib.closing(send(server, "HEAD", "/")) as connection:
        everything = connection.sock.makefile("rb").read()
    assert everything.startswith(b"HTTP/1.0 501 ")
    assert everything.endswith(b"\r\n\r\n")


def hosts(server, names):
    return [name.replace("PORT", str(server.server_port)) for name in names]


@pytest.mark.parametrize("method, path", [("GET", "/"), ("POST", "/search")])
def test_only_its_own_name_is_answered(server, method, path):
    file = encode_file(make_images().images[0]) if method == "POST" else None
    own = ("127.0.0.1:PORT", "localhost:PORT", "LocalHost:PORT")
    for host in hosts(server, own):
        answer = ask(server, method, path, file, [("Host", host)])
        assert answer[0] == 200, host
    others = (
        "127.0.0.1",
        "localhost",
        "127.0.0.1:1",
        "127.0.0.2:PORT",
        "example.org:PORT",
        "localhost.example.org:PORT",
        "example.org",
        "localhost:PORT,example.org",
        "[::1]:PORT",
        "user@localhost:PORT",
        "",
    )
    for host in hosts(server, others):
        answer = ask(server, method, path, file, [("Host", host)])
        assert_refused(answer, 403, f"is at {server.url} and under no other")
    for headers in (
        [("Host", None)],
        [("Host", h) for h in hosts(server, own)],
    ):
        assert_refused(ask(server, method, path, file, headers), 403, "is at")


def test_only_its_own_page_may_search(server):
    file = encode_file(make_images().images[0])
    for host in hosts(server, ("127.0.0.1:PORT", "localhost:PORT")):
        headers = [("Host", host), ("Origin", f"http://{host}")]
        assert ask(server, "POST", "/search", file, headers)[0] == 200
    own = f"http://127.0.0.1:{server.server_port}"
    others = (
        "null",
        "",
        "http://example.org",
        f"https://127.0.0.1:{server.server_port}",
        "http://127.0.0.1",
        f"http://localhost:{server.server_port}",  # not what was asked
        f"{own}.example.org",
        f"{own}/",
    )
    for origin in others:
        answer = ask(server, "POST", "/search", file, [("Origin", origin)])
        assert_refused(answer, 403, "Other pages may not")
    twice = [("Origin", own), ("Origin", own)]
    assert_refused(ask(server, "POST", "/search", file, twice), 403, "Other")


def padded(size):
    """An image's file of so many bytes: what follows an image is ignored."""
    return encode_file(make_images().images[0]).ljust(size, b"\0")[:size]


def test_the_size_of_a_file(server):
    assert ask(server, "POST", "/search", padded(5000))[0] == 200
    # Nothing is sent: it is not waited for, either.
    for length in ("5001", "10000", "9" * 5000, "0005001"):
        answer = ask(
            server, "POST", "/search", headers=[("Content-Length", length)]
        )
        assert_refused(answer, 413, "too large: at most 0.005 MB are taken")
    file = padded(400)
    length = [("Content-Length", "0400")]
    assert ask(server, "POST", "/search", file, length)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-Length", "")],
        [("Content-Length", "-1")],
        [("Content-Length", "+1")],
        [("Content-Length", "1.0")],
        [("Content-Length", "0x10")],
        [("Content-Length", "1_0")],
        [("Content-Length", "ten")],
        [("Content-Length", "10"), ("Content-Length", "10")],
        [("Content-Length", "10"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "chunked")],
    ],
)
def test_a_size_is_needed(server, headers):
    answer = ask(server, "POST", "/search", headers=headers)
    assert_refused(answer, 411, "as Content-Length")


def test_files_that_are_no_images(server):
    for file in NO_IMAGES:
        answer = ask(server, "POST", "/search", file)
        assert_refused(answer, 415, "Only JPEG, PNG, GIF, BMP and WebP")
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
    kind = [("Content-Type", "multipart/form-data; boundary=x")]
    for _ in range(2):
        form += encode_file(make_images().images[0]) + b"\r\n--x"
    assert_refused(ask(server, "POST", "/search", form, kind), 415, "Only")
    half = encode_file(make_images().images[0])[:60]
    assert_refused(ask(server, "POST", "/search", half), 422, "is damaged")


@pytest.mark.parametrize("kind", ["image/jpeg", "text/html", None])
def test_what_a_sender_calls_the_file_does_not_count(server, kind):
    file, headers = padded(400), [("Content-Type", kind)]
    assert ask(server, "POST", "/search", file, headers)[0] == 200


def test_pixels_over_http(server):
    file = encode_file(np.zeros((20, 30, 3), np.uint8))
    assert ask(server, "POST", "/search", file)[0] == 200
    for file in (
        encode_file(np.zeros((1, 601, 3), np.uint8)),
        claim(60_000, 60_000),
    ):
        answer = ask(server, "POST", "/search", file)
        assert_refused(answer, 413, "too many pixels: at most 600 are read")


def wait_for_free(server, number):
    """Waits until so many places for searches are free."""
    end = time.monotonic() + 20
    # Read alone: whoever tries for a place takes it from another's request.
    while server.searches._value != number:
        assert time.monotonic() < end, server.searches
        time.sleep(0.01)


def test_searches_at_once(server):
    """Two may be under way; others are told, and other pages go on."""
    file = padded(400)
    length = [("Content-Length", "400")]
    wait_for_free(server, 2)
    first = send(server, "POST", "/search", file[:100], length)
    wait_for_free(server, 1)
    assert ask(server, "POST", "/search", file)[0] == 200
    wait_for_free(server, 1)
    second = send(server, "POST", "/search", file[:100], length)
    wait_for_free(server, 0)
    answer = ask(server, "POST", "/search", file)
    assert_refused(answer, 503, "2 images are being searched already")
    assert ask(server, "GET", "/neighbours/1.json")[0] == 200
    for connection in (first, second):
        connection.send(file[100:])
        assert receive(connection)[0] == 200
        assert ask(server, "POST", "/search", file)[0] == 200


def test_a_place_is_free_again_after_every_failure(server):
    for file in (b"no image", claim(601, 1), padded(60)):
        for _ in range(LIMITS.max_searches + 1):
            assert ask(server, "POST", "/search", file)[0] not in (200, 503)
    for _ in range(LIMITS.max_searches + 1):
        connection = send(
            server, "POST", "/search", b"half", [("Content-Length", "400")]
        )
        connection.sock.shutdown(socket.SHUT_WR)
        assert_refused(receive(connection), 400, "did not arrive whole")
    assert ask(server, "POST", "/search", padded(400))[0] == 200


def test_who_is_silent_is_left(server):
    limits = LIMITS._replace(idle_seconds=0.3)
    with running(limits) as hasty:
        length = [("Content-Length", "400")]
        connection = send(hasty, "POST", "/search", b"half", length)
        assert_refused(receive(connection), 408, "took too long to arrive")
        with socket.create_connection(("127.0.0.1", hasty.server_port)) as raw:
            raw.sendall(b"GET / HT")
            raw.settimeout(20)
            assert raw.recv(1) == b""


def test_who_is_slow_is_left():
    """A byte at a time is no silence, but no file, either."""
    limits = LIMITS._replace(upload_seconds=0.5)
    with running(limits) as hasty:
        length = [("Content-Length", "400")]
        connection = send(hasty, "POST", "/search", b"", length)
        # All 400 would take 40 seconds.
        while not select.select([connection.sock], [], [], 0.1)[0]:
            connection.send(b"x")
        assert_refused(receive(connection), 408, "took too long to arrive")


def test_malformed_requests(server):
    host = f"Host: 127.0.0.1:{server.server_port}\r\n"
    for request, status in (
        ("GET / HTTP/9.9\r\n", 505),
        ("GET / more HTTP/1.1\r\n", 400),
        (f"GET /{'a' * 70000} HTTP/1.1\r\n", 414),
        (f"GET / HTTP/1.1\r\nX: {'a' * 70000}\r\n", 431),
    ):
        address = "127.0.0.1", server.server_port
        with socket.create_connection(address) as raw:
            raw.sendall(f"{request}{host}\r\n".encode())
            answer = http.client.HTTPResponse(raw)
            answer.begin()
            body = json.loads(answer.read())
        found = answer.status, answer.headers, body
        assert_refused(found, status, "is not understood")


def test_a_failure_of_ours_is_said_and_logged(server, monkeypatch, caplog):
    def nearest(*_):
        raise RuntimeError("secret /path")

    monkeypatch.setattr(server.index, "nearest", nearest)
    answer = ask(server, "POST", "/search", padded(400))
    assert_refused(answer, 500, "its terminal says why")
    assert "secret" not in answer[2]["error"]
    assert "POST /search failed" in caplog.text
    assert "secret /path" in caplog.text


def test_it_is_there_for_this_machine_alone(server):
    assert server.server_address == ("127.0.0.1", server.server_port)
    assert server.url == f"http://127.0.0.1:{server.server_port}/"
    # Of this machine, too, but another: who listens to all has it.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.server_port), 5)


def test_a_port_that_is_taken(server):
    with pytest.raises(
        ValueError,
        match=f"`port` must be one that is free.*port={server.server_port}",
    ):
        search.SearchServer(server.server_port)


WATCHED = {"is_on": False, "written": []}


def _watch(event, arguments):
    if event == "open" and WATCHED["is_on"]:
        mode, flags = arguments[1:]
        if set(mode or "") & set("wax+") or (flags or 0) & 0o3:
            WATCHED["written"].append(str(arguments[0]))


def test_nothing_is_written(server, tmp_path):
    sys.addaudithook(_watch)
    WATCHED["is_on"] = True
    try:
        answers = [
            ask(server, "POST", "/search", padded(5000))[0],
            ask(server, "POST", "/search", padded(60))[0],
            ask(server, "GET", "/neighbours/1.json")[0],
            ask(server, "GET", "/image/1.png")[0],
        ]
        (tmp_path / "this").write_text("is seen")
    finally:
        WATCHED["is_on"] = False
    assert answers == [200, 422, 200, 200]
    assert WATCHED["written"] == [str(tmp_path / "this")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export's folder, of a run on labelled images that has not begun."""
    workdir = tmp_path_factory.mktemp("search") / "run"
    config = tiny.make_config(tiny.write_images(workdir.parent))
    workdir_lib.write_json(workdir / "config.json", config)
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        model = recipe.make_model(config)
        manager = workdir_lib.checkpoint_manager(workdir, model)
        manager.save(checkpoint_number=0)
        return export.export(workdir).parent


def test_open_export(exported):
    found = search.open_export(exported)
    assert found.image_size == tiny.IMAGE_SIZE
    assert found.card["name"] == "encoder"
    images = tiny.random_images(3)
    encode, _ = export.load_servable(exported)
    np.testing.assert_array_equal(found.encode(images), encode(images))


def test_exports_that_are_none(exported, tmp_path):
    with pytest.raises(ValueError, match="`model` must be an export, as.*none"):
        search.open_export(tmp_path / "none")
    for name in ("saved_model.pb", "assets.extra/model_card.json"):
        broken = tmp_path / name.replace("/", "-")
        shutil.copytree(exported / "1", broken)
        (broken / name).write_bytes(b"\xff not what it was")
        with pytest.raises(
            ValueError, match="`model` must be an export, complete. Received:"
        ):
            search.open_export(broken)


def test_the_command(exported):
    """As a user has it: a URL, a search, and Ctrl-C."""
    process = start(
        "search_demo", f"--model={exported}", "--port=0", "--num_images=20"
    )
    try:
        for line in process.stdout:
            if line.startswith("http://"):
                break
        url, _, about = line.partition(" searches ")
        port = int(url.rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, 60)
        connection.request("GET", "/gallery.json")
        _, _, gallery = receive(connection)
        connection.request("GET", "/image/4.png")
        _, _, image = receive(connection)
        connection.request("POST", "/search", image)
        status, _, body = receive(connection)
    finally:
        process.send_signal(signal.SIGINT)
        code, _, lines = finish(process)
    assert (code, lines) == (0, [])
    assert about == (
        "20 images of images.npz (train) with encoder, the student after 0 "
        "steps. Ctrl-C ends it.\n"
    )
    assert gallery["num_images"] == 20
    assert sorted(set(gallery["labels"])) == [0, 1, 2, 3]
    assert gallery["max_bytes"] == 10_000_000
    assert status == 200 and len(body["neighbours"]) == 12
    # The server makes of a file what it made of the gallery.
    assert body["neighbours"][0]["number"] == 4
    assert body["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_mistakes_are_one_line(exported, server):
    port = server.server_port
    assert_mistake(
        call("search_demo", f"--model={exported}", f"--port={port}"),
        "`port` must be one that is free",
        f"Received: port={port}",
    )
    assert_mistake(
        call("search_demo", "--model=/nowhere", "--port=0"),
        "`model` must be an export",
        "Received: model='/nowhere'",
    )
    flags = f"--model={exported}", "--source=folder:/nowhere", "--port=0"
    assert_mistake(
        call("search_demo", *flags),
        "`source` must name an existing folder.",
        "Received: source='folder:/nowhere'",
    )
