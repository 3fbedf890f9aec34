"""Tests of ressl_tf.embedding and tools.embed, over real REST and gRPC.

The servers here run the exported SavedModel and speak TensorFlow Serving's
protocols, with its own stubs and its own words for errors.
"""

import base64
import contextlib
import functools
import http.server
import io
import json
import os
import shutil
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tool_process import assert_mistake
from tool_process import call
from tool_process import start

from ressl_tf import embedding
from ressl_tf import export
from ressl_tf import losses
from ressl_tf import recipe
from ressl_tf import workdir as workdir_lib
from ressl_tf.data import decoding

SIZES = [(16, 16), (40, 23), (17, 50), (30, 30), (20, 64), (33, 16), (24, 24)]
KERAS_FILE = "export/encoder/1/assets.extra/encoder.keras"
CODES = {  # how TensorFlow Serving says them by REST
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.INTERNAL: 500,
}


class Failure(Exception):
    """What a server answers in place of embeddings."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code
        self.message = message


class Models:
    """What both servers serve, and what they are asked.

    Attributes:
        loaded: {name: {version: SavedModel}}.
        requests: of each, (version or None, number of images).
        before: called with the number of requests so far, before each.
        state: of all versions.
    """

    def __init__(self):
        self.loaded = {}
        self.reset()

    def reset(self):
        self.requests = []
        self.before = lambda count: None
        self.state = "AVAILABLE"

    @property
    def num_images(self):
        return sum(number for _, number in self.requests)

    def predict(self, name, version, signature, files):
        self.requests.append((version, len(files)))
        self.before(len(self.requests))
        versions = self.loaded.get(name, {})
        if version is None and versions:
            version = max(versions)
        if version not in versions:
            asked = f"Specific({name}, {version})" if version else f"({name})"
            raise Failure(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: {asked}",
            )
        signatures = versions[version].signatures
        if signature not in signatures:
            raise Failure(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{signature}" not found.',
            )
        try:
            outputs = signatures[signature](image_bytes=tf.constant(files))
        except tf.errors.InvalidArgumentError as error:
            raise Failure(
                grpc.StatusCode.INVALID_ARGUMENT, error.message[:1024]
            ) from error
        return version, {key: x.numpy() for key, x in outputs.items()}

    def versions(self, name):
        if name not in self.loaded:
            raise Failure(
                grpc.StatusCode.NOT_FOUND,
                f"Could not find any versions of model {name}",
            )
        return sorted(self.loaded[name], reverse=True)


class GrpcModels(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, models):
        self.models = models

    def Predict(self, request, context):
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        files = tf.make_ndarray(request.inputs["image_bytes"]).tolist()
        response = predict_pb2.PredictResponse()
        try:
            version, outputs = self.models.predict(
                spec.name, version, spec.signature_name, files
            )
        except Failure as failure:
            context.abort(failure.code, failure.message)
        response.model_spec.name = spec.name
        response.model_spec.version.value = version
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelStatus(self, request, context):
        response = get_model_status_pb2.GetModelStatusResponse()
        try:
            versions = self.models.versions(request.model_spec.name)
        except Failure as failure:
            context.abort(failure.code, failure.message)
        for version in versions:
            response.model_version_status.add(
                version=version, state=self.models.state
            )
        return response


def make_handler(models):
    """Of the REST API as its documentation has it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name, _ = self._name_and_version(self.path)
            self._answer(
                lambda: {
                    "model_version_status": [
                        {
                            "version": str(version),
                            "state": models.state,
                            "status": {"error_code": "OK", "error_message": ""},
                        }
                        for version in models.versions(name)
                    ]
                }
            )

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            path, _, method = self.path.rpartition(":")
            assert (method, set(body)) == (
                "predict",
                {"signature_name", "inputs"},
            )
            assert set(body["inputs"]) == {"image_bytes"}
            files = []
            for value in body["inputs"]["image_bytes"]:
                assert set(value) == {"b64"}
                files.append(base64.b64decode(value["b64"], validate=True))

            def predict():
                _, outputs = models.predict(
                    *self._name_and_version(path), body["signature_name"], files
                )
                values = {key: x.tolist() for key, x in outputs.items()}
                if len(values) == 1:  # its name is omitted
                    (values,) = values.values()
                return {"outputs": values}

            self._answer(predict)

        def log_message(self, *args):
            pass

        def _name_and_version(self, path):
            _, api, kind, name, *rest = path.split("/")
            assert (api, kind) == ("v1", "models")
            assert rest[:-1] in ([], ["versions"])
            return name, int(rest[1]) if rest else None

        def _answer(self, function):
            code = 200
            try:
                answer = function()
            except Failure as failure:
                code = CODES[failure.code]
                answer = {"error": failure.message}
            body = json.dumps(answer).encode()
            # Who has timed out is gone.
            with contextlib.suppress(ConnectionError):
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

    return Handler


@pytest.fixture(autouse=True)
def light(monkeypatch):
    tiny.lighten(monkeypatch)
    monkeypatch.setattr(embedding.server, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run without training, exported twice, and its projector.

    The exports: encoder, the student with its projection; plain, the teacher.
    """
    folder = tmp_path_factory.mktemp("run")
    workdir = folder / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        config = tiny.make_config(tiny.write_images(folder))
        config = workdir_lib.claim(workdir, config)
        model = recipe.make_model(config)
        # The branches differ, as after training.
        for weight in model.teacher.weights:
            weight.assign(0.9 * weight)
        workdir_lib.checkpoint_manager(workdir, model).save(0)
        export.export(workdir, projection=True, shorter_side=20)
        export.export(workdir, "plain", branch="teacher")
    return workdir, model.student.projector


@pytest.fixture(scope="module")
def run(finished):
    return finished[0]


@pytest.fixture(scope="module")
def opened(run):
    """A function from a path in the run and options to a `LocalClient`."""
    return functools.cache(
        lambda path, **options: embedding.LocalClient(run / path, **options)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images of several kinds and sizes, and what is no image."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    names = ["b/2.png", "a.jpg", "b/1.JPEG", "c.png", "b/c/d.png", "e.jpg"]
    for name, size in zip([*names, "f.gif"], SIZES, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = generator.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(image).save(folder / name)
    (folder / ".hidden").mkdir()
    for name in (".hidden/1.png", ".2.png", "notes.txt", "b/png"):
        (folder / name).write_bytes((folder / "c.png").read_bytes())
    return folder


ORDER = ["a.jpg", "b/1.JPEG", "b/2.png", "b/c/d.png", "c.png", "e.jpg", "f.gif"]


@pytest.fixture(scope="module")
def contents(folder):
    return [(folder / name).read_bytes() for name in ORDER]


@pytest.fixture(scope="module")
def expected(finished, contents):
    """{shorter side, branch: what `load_encoder` says of the squares}.

    And of the encoder that is exported with its projection, "projection".
    """
    run, projector = finished
    squares = {}
    for side in (16, 20):
        images, readable = decoding.decode_squares(
            tf.constant(contents), 16, side
        )
        assert np.all(readable)
        squares[side] = tf.cast(images, tf.float32)
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        student, teacher = (
            export.load_encoder(run, x) for x in export.BRANCHES
        )
    found = {
        (16, "student"): student(squares[16]).numpy(),
        (20, "student"): student(squares[20]).numpy(),
        (16, "teacher"): teacher(squares[16]).numpy(),
    }
    assert found[16, "student"].shape == (len(contents), 8)
    for other in ((20, "student"), (16, "teacher")):
        difference = np.abs(found[16, "student"] - found[other])
        assert np.all(difference.max(axis=1) > 1e-3)
    projection = projector(found[20, "student"], training=False)
    found["projection"] = losses.normalize(projection).numpy()
    return found


@pytest.fixture(scope="module")
def models_and_addresses(run):
    """`Models`, and {"rest": address, "grpc": address}."""
    models = Models()
    service = GrpcModels(models)
    rest = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), make_handler(models)
    )
    thread = threading.Thread(target=rest.serve_forever)
    thread.start()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        service, server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield (
        models,
        {
            "rest": f"http://127.0.0.1:{rest.server_port}",
            "grpc": f"grpc://127.0.0.1:{port}",
        },
    )
    server.stop(None)
    rest.shutdown()
    thread.join()
    rest.server_close()


@pytest.fixture(scope="module")
def saved(run):
    """{name of an export: its loaded SavedModel}."""
    return {
        name: tf.saved_model.load(str(run / "export" / name / "1"))
        for name in ("encoder", "plain")
    }


@pytest.fixture
def models(models_and_addresses, saved):
    models, _ = models_and_addresses
    models.reset()
    models.loaded = {name: {1: model} for name, model in saved.items()}
    return models


@pytest.fixture(params=["rest", "grpc"])
def address(request, models, models_and_addresses):
    return models_and_addresses[1][request.param]


@pytest.fixture
def rest(models, models_and_addresses):
    return models_and_addresses[1]["rest"]


def read_npy(output):
    lines = output.with_name(f"{output.stem}.paths.txt").read_text()
    return np.load(output), lines.splitlines()


def assert_embedded(client, contents, expected):
    for part in (slice(0, None), slice(3, 4)):
        found = client(contents[part])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[part], atol=1e-5)


@pytest.mark.parametrize(
    "path, options, side, branch",
    [
        ("", {}, 16, "student"),
        ("", {"branch": "teacher"}, 16, "teacher"),
        ("export/encoder", {}, 20, "student"),
        ("export/encoder/1", {"branch": "student"}, 20, "student"),
        ("export/plain", {}, 16, "teacher"),
        (KERAS_FILE, {"shorter_side": 20}, 20, "student"),
    ],
)
def test_models_here(opened, contents, expected, path, options, side, branch):
    client = opened(path, **options)
    assert_embedded(client, contents, expected[side, branch])


@pytest.mark.parametrize(
    "name, side, branch", [("encoder", 20, "student"), ("plain", 16, "teacher")]
)
def test_models_of_a_server(address, contents, expected, name, side, branch):
    client = embedding.connect(f"{address}/", name)
    assert_embedded(client, contents, expected[side, branch])


NO_PROJECTION = "`output_name` must be one that .*embedding.*'projection'"


def test_projections_here(opened, contents, expected):
    client = opened("export/encoder", output_name="projection")
    assert_embedded(client, contents, expected["projection"])
    with pytest.raises(ValueError, match=NO_PROJECTION):
        opened("export/plain", output_name="projection")


def test_projections_of_a_server(address, contents, expected):
    client = embedding.connect(address, output_name="projection")
    assert_embedded(client, contents, expected["projection"])
    client = embedding.connect(address, "plain", output_name="projection")
    with pytest.raises(ValueError, match=NO_PROJECTION):
        client(contents)


@pytest.fixture(params=["local", "rest", "grpc"])
def client(request, opened, models, models_and_addresses):
    if request.param == "local":
        return opened("export/encoder")
    return embedding.connect(models_and_addresses[1][request.param])


def test_unreadable_images_are_left_out(client, contents, expected):
    bad = [b"no image", b"", contents[0][:-30]]
    files = [bad[0], *contents[:3], bad[1], *contents[3:], bad[2]]
    rows, places = embedding.embed_readable(client, files)
    assert places == [1, 2, 3, *range(5, 9)]
    np.testing.assert_allclose(rows, expected[20, "student"], atol=1e-5)
    rows, places = embedding.embed_readable(client, bad)
    assert (len(rows), places) == (0, [])
    with pytest.raises(embedding.UnreadableImages) as caught:
        client(files)
    assert caught.value.indices == [0, 4, 9]


def test_more_unreadable_images_than_an_error_names(opened, contents, expected):
    client = opened("export/encoder")
    files = [b"", contents[0], *[b""] * 108, contents[1]]
    with pytest.raises(embedding.UnreadableImages) as caught:
        client(files)
    assert len(caught.value.indices) == 100
    rows, places = embedding.embed_readable(client, files)
    assert places == [1, 110]
    np.testing.assert_allclose(rows, expected[20, "student"][:2], atol=1e-5)


@pytest.mark.parametrize("indices", [[1], [0, 1], [7]])
def test_anothers_unreadable_image_costs_none_of_ours(indices):
    """A server with batching counts from the first image of all requests."""
    batches = []

    def client(files):
        batches.append(files)
        if len(batches) == 1:
            raise embedding.UnreadableImages(indices)
        if b"bad" in files:
            raise embedding.UnreadableImages([files.index(b"bad")])
        return np.array([[len(file)] for file in files], np.float32)

    files = [b"1", b"22", b"bad", b"4444"]
    rows, places = embedding.embed_readable(client, files)
    assert (rows.tolist(), places) == ([[1], [2], [4]], [0, 1, 3])
    # Alone, and again: once may have been another's.
    assert batches.count([b"bad"]) == 2


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]
)
def test_a_server_that_fails_is_asked_again(
    models, address, contents, expected, caplog, code
):
    def fail(count):
        if count < 3:
            raise Failure(code, "queue is\nfull")

    models.before = fail
    client = embedding.connect(address, retries=2)
    if address.startswith("grpc") and code == grpc.StatusCode.INTERNAL:
        # A failure of its own, which no other try mends.
        with pytest.raises(
            embedding.ServerError, match="refuses: queue is full"
        ):
            client(contents)
        assert len(models.requests) == 1
        return
    found = client(contents)
    np.testing.assert_allclose(found, expected[20, "student"], atol=1e-5)
    assert models.requests == [(1, 7)] * 3
    waits = [record.getMessage() for record in caplog.records]
    assert [wait.rpartition("; ")[2] for wait in waits] == [
        "trying again in 0.01 s",
        "trying again in 0.02 s",
    ]
    models.reset()
    models.before = fail
    client = embedding.connect(address, retries=1)
    with pytest.raises(
        embedding.ServerError,
        match=f"^{address} cannot .*2 tries: queue is full",
    ):
        client(contents)
    assert len(models.requests) == 2


def test_a_server_that_takes_too_long(models, address, contents):
    models.before = lambda count: time.sleep(1)
    client = embedding.connect(address, retries=0, timeout=0.2)
    begin = time.monotonic()
    with pytest.raises(
        embedding.ServerError, match="in 1 tries: .*(timed out|Deadline)"
    ):
        client(contents)
    assert time.monotonic() - begin < 0.9


def test_what_a_server_does_not_have(models, address, contents, saved):
    with pytest.raises(ValueError, match="name='nobody'.*nobody"):
        embedding.connect(address, "nobody")(contents)
    with pytest.raises(ValueError, match="name='encoder', version=7.*found"):
        embedding.connect(address, version=7)(contents)
    models.loaded["bare"] = {1: tf.Module()}
    models.loaded["bare"][1].signatures = {}
    with pytest.raises(ValueError, match="'serve_bytes'.*name='bare'.*not fou"):
        embedding.connect(address, "bare")(contents)
    models.state = "LOADING"
    with pytest.raises(
        embedding.ServerError, match=r"no version of 'encoder'.*\(1: LOADING\)"
    ):
        embedding.connect(address, retries=1)


def test_nobody_there(models, rest):
    for address in ("http://127.0.0.1:1", "grpc://127.0.0.1:1"):
        with pytest.raises(
            embedding.ServerError, match=f"^{address} cannot be"
        ):
            embedding.connect(address, retries=1)
    # REST where gRPC is spoken.
    port = rest.rpartition(":")[2]
    with pytest.raises(
        embedding.ServerError, match=f"{port} cannot be reached"
    ):
        embedding.connect(f"grpc://127.0.0.1:{port}", retries=0, timeout=2.0)


@pytest.mark.parametrize(
    "body, message",
    [
        (b"<html>", "does not answer in JSON"),
        (b"[]", "does not answer in JSON"),
        (b"{}", "answers without `outputs`"),
        (b'{"outputs": [[1, 2]]}', "a row of numbers for each of 2 images"),
        (b'{"outputs": [[1], [1, 2]]}', "a row of numbers for each of 2"),
        (b'{"outputs": [1, 2]}', "a row of numbers for each of 2"),
    ],
)
def test_what_is_no_tensorflow_serving(monkeypatch, body, message):
    @contextlib.contextmanager
    def answer(*args, **kwargs):
        yield io.BytesIO(body)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    client = embedding.connect("http://127.0.0.1:1", version=1)
    with pytest.raises(embedding.ServerError, match=message):
        client([b"", b""])


def test_all_requests_name_the_version_of_the_first(
    models, address, contents, expected
):
    client = embedding.connect(address)
    assert client.plan["version"] == 1
    models.loaded["encoder"][2] = models.loaded["plain"][1]
    found = client(contents)
    np.testing.assert_allclose(found, expected[20, "student"], atol=1e-5)
    assert models.requests == [(1, 7)]
    client = embedding.connect(address)
    assert client.plan["version"] == 2
    found = client(contents)
    np.testing.assert_allclose(found, expected[16, "teacher"], atol=1e-5)


def test_a_server_that_does_not_tell_its_versions(
    models, address, contents, expected, monkeypatch
):
    def no_versions(name):
        raise Failure(grpc.StatusCode.UNIMPLEMENTED, "Not Found")

    monkeypatch.setattr(models, "versions", no_versions)
    client = embedding.connect(address)
    assert client.plan["version"] is None
    found = client(contents)
    np.testing.assert_allclose(found, expected[20, "student"], atol=1e-5)
    assert models.requests == [(None, 7)]


def test_the_plan_is_the_models(run, opened, tmp_path):
    def plan(path, **options):
        return embedding.LocalClient(path, **options).plan

    models = [
        opened(""),
        opened("", branch="teacher"),
        opened("export/encoder"),
        opened("export/encoder", output_name="projection"),
        opened("export/plain"),
        opened(KERAS_FILE),
        opened(KERAS_FILE, shorter_side=20),
    ]
    plans = [model.plan for model in models]
    texts = [json.dumps(each, sort_keys=True) for each in plans]
    assert len(set(texts)) == len(texts)
    # The same in another place, and in another moment.
    shutil.copytree(run / "export" / "encoder", tmp_path / "moved")
    shutil.copy(run / KERAS_FILE, tmp_path / "moved.keras")
    assert plan(tmp_path / "moved") == plans[2]
    assert plan(tmp_path / "moved.keras") == plans[5]
    assert plan(run) == plans[0]
    # Another version of that name.
    shutil.copytree(run / "export" / "plain" / "1", tmp_path / "moved" / "2")
    assert plan(tmp_path / "moved") == plans[4]


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("nowhere", {}, "`path` must be .*'.*nowhere'"),
        ("", {"branch": "ema"}, "`branch` must be one of.*'ema'"),
        ("", {"output_name": "projection"}, "export the run.*'projection'"),
        ("", {"output_name": "logits"}, "must be one of embedding, .*'logits'"),
        ("", {"shorter_side": 15}, "at least the image size, 16.*=15"),
        ("export/plain", {"shorter_side": 20}, "`shorter_side` must not .*=20"),
        ("export/plain", {"branch": "student"}, "'teacher'.*'student'"),
        (
            "export/plain/1/assets.extra/encoder.keras",
            {"branch": "student"},
            "`branch` must not be given of a .keras.*'student'",
        ),
    ],
)
def test_wrong_models(run, path, options, message):
    with pytest.raises(ValueError, match=message):
        embedding.LocalClient(run / path, **options)


@pytest.mark.parametrize(
    "server",
    [
        "host:8501",
        "ftp://host",
        "http://",
        "http://h:x",
        "grpc://h",
        "grpc:",
        "",
    ],
)
def test_wrong_addresses(server):
    with pytest.raises(
        ValueError, match=f"`server` must be.*server='{server}'"
    ):
        embedding.connect(server)


@pytest.mark.parametrize("way", ["model", "rest", "grpc"])
def test_the_tool(
    run, models, models_and_addresses, folder, expected, tmp_path, way
):
    flag = f"--model={run / 'export' / 'encoder'}"
    if way != "model":
        flag = f"--server={models_and_addresses[1][way]}"
    output = tmp_path / "new" / "embeddings.npy"
    flags = ("--batch_size=3", "--part_size=5", f"--output={output}")
    images = f"--images={folder / 'c.png'},{folder}"
    code, stdout, lines = call("embed", flag, images, *flags)
    assert (code, lines) == (0, [])
    assert stdout == f"{output}: 7 embeddings of 8 numbers\n"
    embeddings, paths = read_npy(output)
    assert embeddings.dtype == np.float32
    # As named, each once.
    order = [4, 0, 1, 2, 3, 5, 6]
    assert paths == [str(folder / ORDER[number]) for number in order]
    np.testing.assert_allclose(
        embeddings, expected[20, "student"][order], atol=1e-5
    )
    names = {path.name for path in output.parent.iterdir()}
    assert names == {"embeddings.npy", "embeddings.paths.txt"}
    if way != "model":
        assert models.requests == [(1, number) for number in (3, 2, 2)]


def test_the_tool_with_a_keras_file(run, folder, expected, tmp_path):
    output = tmp_path / "embeddings.npy"
    code, _, lines = call(
        "embed",
        f"--model={run / KERAS_FILE}",
        f"--images={folder}",
        f"--output={output}",
        "--shorter_side=20",
    )
    assert (code, lines) == (0, [])
    np.testing.assert_allclose(
        read_npy(output)[0], expected[20, "student"], atol=1e-5
    )


def test_parquet(rest, folder, expected, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    # A path as no text file of lines can have it.
    (images / "f.gif").rename(images / "f\n.gif")
    output = tmp_path / "embeddings.parquet"
    flags = (f"--server={rest}", f"--images={images}")
    result = call("embed", *flags, f"--output={tmp_path / 'x.npy'}")
    assert_mistake(result, "line break", r"f\n.gif")
    code, stdout, lines = call(
        "embed", *flags, f"--output={output}", "--part_size=3"
    )
    assert (code, lines) == (0, [])
    assert stdout == f"{output}: 7 embeddings of 8 numbers\n"
    table = parquet.read_table(output)
    types = {field.name: field.type for field in table.schema}
    assert types == {"path": pa.string(), "embedding": pa.list_(pa.float32())}
    names = [*ORDER[:-1], "f\n.gif"]
    assert table["path"].to_pylist() == [str(images / name) for name in names]
    np.testing.assert_allclose(
        np.array(table["embedding"].to_pylist(), np.float32),
        expected[20, "student"],
        atol=1e-5,
    )
    assert sorted(tmp_path.iterdir()) == [output, images]


def test_the_tool_leaves_bad_images_out(rest, folder, expected, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    (images / "b" / "0.png").write_bytes(b"no image")
    (images / "d.tif").write_bytes(b"")
    (images / "g.png").symlink_to(tmp_path / "nowhere")
    output = tmp_path / "embeddings.npy"
    flags = (f"--server={rest}", f"--output={output}", "--batch_size=4")
    code, stdout, lines = call("embed", f"--images={images}", *flags)
    assert code == 0
    bad = [images / name for name in ("b/0.png", "d.tif", "g.png")]
    reasons = ["", "", " (No such file or directory)"]
    assert lines == [
        f"WARNING: Skipped: {path} cannot be read{reason}"
        for path, reason in zip(bad, reasons, strict=True)
    ]
    assert stdout.splitlines() == [
        f"{output}: 7 embeddings of 8 numbers",
        "3 of 10 images were skipped:",
        *(f"    {path}" for path in bad),
    ]
    embeddings, paths = read_npy(output)
    assert paths == [str(images / name) for name in ORDER]
    np.testing.assert_allclose(embeddings, expected[20, "student"], atol=1e-5)
    # None is left: what was written before stays.
    before = output.read_bytes()
    named = ",".join(map(str, bad[:2]))
    code, stdout, lines = call("embed", f"--images={named}", *flags)
    assert (code, stdout, len(lines)) == (1, "", 3)
    assert lines[-1] == "error: None of 2 images could be embedded."
    assert output.read_bytes() == before
    assert not output.with_name("embeddings.npy.parts").exists()


def test_killed_and_continued(models, rest, folder, expected, tmp_path):
    output = tmp_path / "embeddings.npy"
    flags = (f"--server={rest}", f"--images={folder}", f"--output={output}")
    flags += ("--part_size=2", "--batch_size=2")
    reached, free = threading.Event(), threading.Event()

    def hold(count):
        if count == 3:
            reached.set()
            free.wait(60)

    models.before = hold
    process = start("embed", *flags)
    try:
        assert reached.wait(120)
    finally:
        process.kill()
        process.communicate()
        free.set()
    assert not output.exists()
    models.reset()
    code, stdout, lines = call("embed", *flags)
    assert (code, stdout) == (0, f"{output}: 7 embeddings of 8 numbers\n")
    assert lines == ["INFO: going on: 4 of 7 images are done"]
    assert models.requests == [(1, 2), (1, 1)]
    embeddings, paths = read_npy(output)
    assert paths == [str(folder / name) for name in ORDER]
    np.testing.assert_allclose(embeddings, expected[20, "student"], atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "embeddings.npy",
        "embeddings.paths.txt",
    ]


def test_what_begins_anew_and_what_goes_on(
    models, address, folder, expected, tmp_path
):
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    output = tmp_path / "embeddings.npy"
    parts = tmp_path / "embeddings.npy.parts"

    def run(*flags, answers=None):
        """The number of images that are embedded before the server fails."""
        models.reset()

        def fail(count):
            if answers is not None and count > answers:
                raise Failure(grpc.StatusCode.UNAVAILABLE, "gone")

        models.before = fail
        code, _, lines = call(
            "embed",
            f"--server={address}",
            f"--images={images}",
            f"--output={output}",
            "--part_size=3",
            "--retries=0",
            *flags,
        )
        if answers is None:
            assert code == 0, lines
            return models.num_images
        assert code == 1
        assert lines[-1].startswith(f"error: {address} cannot be reached")
        assert lines[-1].endswith("gone. The same command goes on.")
        return sum(number for _, number in models.requests[:-1])

    assert run(answers=1) == 3
    # A part is kept when it is complete, whatever was asked for at once.
    assert run("--batch_size=2", answers=1) == 2
    # A part that a failing machine has cut off.
    assert run(answers=1) == 3
    path = max(parts.rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:-20])
    assert run("--batch_size=2") == 4
    assert not parts.exists()
    # Complete: there is nothing to go on with.
    assert run(answers=2) == 6
    # A file that was changed, and one more.
    stat = (images / "a.jpg").stat()
    os.utime(images / "a.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert run(answers=2) == 6
    shutil.copy(images / "c.png", images / "z.png")
    assert run(answers=2) == 6
    (images / "z.png").unlink()
    # What is asked for.
    assert run("--output_name=projection", answers=2) == 6
    assert run("--name=plain", answers=2) == 6
    # Another version.
    models.loaded["encoder"][2] = models.loaded["plain"][1]
    assert len(list(parts.iterdir())) == 5
    assert run() == 7
    assert not parts.exists()
    np.testing.assert_allclose(
        read_npy(output)[0], expected[16, "teacher"], atol=1e-5
    )


def test_a_server_that_is_not_there(folder, tmp_path):
    code, stdout, lines = call(
        "embed",
        "--server=http://127.0.0.1:1",
        f"--images={folder}",
        f"--output={tmp_path / 'x.npy'}",
        "--retries=1",
    )
    assert (code, stdout, len(lines)) == (1, "", 2)
    assert lines[0].endswith("Connection refused; trying again in 0.5 s")
    assert lines[1] == (
        "error: http://127.0.0.1:1 cannot be reached, in 2 tries: [Errno 111] "
        "Connection refused. The same command goes on."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, parts",
    [
        ((), ["`--model` or `--server`", "Received: --model=None"]),
        (
            ("--model=a", "--server=http://b"),
            ["not both", "--model=a, --server=http://b"],
        ),
        (("--model=a", "--name=b"), ["with --server alone", "--name=b"]),
        (("--model=a", "--version=0"), ["with --server alone", "--version=0"]),
        (
            ("--server=http://a", "--branch=teacher"),
            ["with --model alone", "--branch=teacher"],
        ),
        (
            ("--server=http://a", "--shorter_side=9"),
            ["with --model alone", "--shorter_side=9"],
        ),
        (("--model=a", "--images=EMPTY"), ["must hold images", ".webp"]),
        (("--model=a", "--images="), ["must hold images", "--images="]),
        (("--model=a", "--images=/n/o"), ["folders and files", "'/n/o'"]),
        (("--model=a", "--output=x.npz"), [".npy or .parquet", "x.npz"]),
        (("--model=a", "--output=DIR.npy"), ["which is a folder"]),
        (("--model=a",), ["`path` must be the folder of a run", "'a'"]),
        (("--server=localhost:8500",), ["grpc://HOST:PORT", "'localhost:85"]),
        (("--model=a", "--batch_size=0"), ["batch_size", "positive"]),
        (("--model=a", "--output_name=x"), ["output_name", "projection"]),
    ],
)
def test_mistakes(folder, tmp_path, flags, parts):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "DIR.npy").mkdir()
    for name in ("EMPTY", "DIR.npy"):
        flags = [flag.replace(name, str(tmp_path / name)) for flag in flags]
    others = [f"--images={folder}", f"--output={tmp_path / 'x.npy'}"]
    assert_mistake(call("embed", *others, *flags), *parts)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_unknown_model_is_a_mistake(address, folder, tmp_path):
    result = call(
        "embed",
        f"--server={address}",
        "--name=nobody",
        f"--images={folder}",
        f"--output={tmp_path / 'x.npy'}",
    )
    assert_mistake(result, "model that the server has", "name='nobody'")
    assert not (tmp_path / "x.npy").exists()
