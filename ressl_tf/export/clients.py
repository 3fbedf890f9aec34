"""Image files to embeddings: by a model here, or by TensorFlow Serving.

A client is called with a list of N image files, as bytes, and returns float32
(N, C). All of them run the signature `serve_bytes`, so that all return the
same. Where files are not readable they raise `UnreadableImages`, and
`embed_readable` leaves those out.
"""

import base64
import hashlib
import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import tensorflow as tf

from ressl_tf import workdir as workdir_lib
from ressl_tf.export import card as card_lib
from ressl_tf.export import layout
from ressl_tf.export import reading
from ressl_tf.export.servable import Servable

logger = logging.getLogger("ressl_tf")

OUTPUT_NAMES = ("embedding", "projection")
SIGNATURE = "serve_bytes"

_FIRST_WAIT = 0.5  # seconds; twice as long each time
_LONGEST_WAIT = 8.0
# How often a file has to be refused alone before it is left out.
_REFUSALS = 2
# Of the message that `Servable` raises, as servers pass it on.
_INDICES = re.compile(r"by index:\] \[([0-9 ]+)")


class ServerError(RuntimeError):
    """A server that cannot be reached, or does not answer as it should."""


class UnreadableImages(Exception):
    """What a client raises for a batch with files that are not readable.

    Attributes:
        indices: list of their places in the batch; not all, if they are many.
            A server that runs several requests as one counts from the first
            image of them all.
    """

    def __init__(self, indices):
        super().__init__(f"Not readable, by index: {indices}")
        self.indices = indices


class _Unavailable(Exception):
    """Nobody answers, or not now: worth another try."""


class _Refused(Exception):
    """The server's answer is an error."""

    def __init__(self, message, not_found=False):
        super().__init__(message)
        self.not_found = not_found


class LocalClient:
    """A model of this file system.

    Args:
        path: an export or one of its versions; the folder of a run; or a
            `.keras` file.
        branch: "student" or "teacher", of a run. Defaults to the student of a
            run, and to the one branch that an export has.
        output_name: "embedding"; or "projection", of an export that has it.
        shorter_side: of runs and `.keras` files: see `Servable`. An export has
            its own.

    Attributes:
        plan: what JSON can hold: all that the embeddings depend on.

    Raises:
        ValueError: if there is no model at `path`, or not that output of it.
    """

    def __init__(
        self, path, branch=None, *, output_name="embedding", shorter_side=None
    ):
        _check_output_name(output_name)
        self._output_name = output_name
        version = layout.find_version(path)
        if version is None:
            self._open_encoder(Path(path), branch, shorter_side)
        else:
            self._open_export(version, branch, shorter_side)
        self.plan["output_name"] = output_name

    def __call__(self, files):
        try:
            outputs = self._serve(tf.constant(files, tf.string))
        except tf.errors.InvalidArgumentError as error:
            _raise_unreadable(error.message)
            raise
        return outputs[self._output_name].numpy()

    def _open_export(self, version, branch, shorter_side):
        if shorter_side is not None:
            raise ValueError(
                "`shorter_side` must not be given of an export, which has its "
                f"own. Received: shorter_side={shorter_side}"
            )
        if branch is not None:
            exported = card_lib.read_card(version)["branch"]
            if branch != exported:
                raise ValueError(
                    f"`branch` must be what was exported, {exported!r}: "
                    f"export the other one first. Received: branch={branch!r}"
                )
        embed, _ = reading.load_servable(version, SIGNATURE)
        self._loaded = embed.loaded  # the signature would not keep it alive
        signature = self._loaded.signatures[SIGNATURE]
        if self._output_name not in signature.structured_outputs:
            raise ValueError(
                f"`output_name` must be one that {str(version)!r} has, "
                f"{', '.join(sorted(signature.structured_outputs))}: export "
                "it again with `tools.export --projection`. "
                f"Received: output_name={self._output_name!r}"
            )
        self._serve = lambda files: signature(image_bytes=files)
        self.plan = {
            "graph": _digest(version / "saved_model.pb"),
            "weights": card_lib.fingerprint(embed.variables),
        }

    def _open_encoder(self, path, branch, shorter_side):
        if self._output_name != "embedding":
            raise ValueError(
                "`output_name` must be 'embedding' of a run or a .keras file: "
                "export the run with `tools.export --projection`. "
                f"Received: output_name={self._output_name!r}"
            )
        is_file = path.is_file()
        if is_file and branch is not None:
            raise ValueError(
                "`branch` must not be given of a .keras file, which has one "
                f"network. Received: branch={branch!r}"
            )
        encoder = reading.load_encoder(path, branch or "student")
        shape, output_shape = encoder.input_shape, encoder.output_shape
        if (
            not isinstance(shape, tuple)
            or len(shape) != 4
            or shape != (None, shape[1], shape[1], 3)
            or shape[1] is None
            or not isinstance(output_shape, tuple)
            or len(output_shape) != 2
        ):
            raise ValueError(
                "`path` must be an encoder of images (N, H, H, 3) that returns "
                f"features (N, C). Received: path={str(path)!r}, from {shape} "
                f"to {output_shape}"
            )
        if shorter_side is not None and shorter_side < shape[1]:
            raise ValueError(
                f"`shorter_side` must be at least the image size, {shape[1]}. "
                f"Received: shorter_side={shorter_side}"
            )
        servable = Servable(encoder, shorter_side=shorter_side)
        self._serve = servable.embed_bytes
        self.plan = {"shorter_side": servable.shorter_side}
        if is_file:
            self.plan["file"] = _digest(path)
        else:
            self.plan["weights"] = card_lib.fingerprint(encoder.weights)
            settings = workdir_lib.read_config(path)["data"]
            self.plan.update({key: settings[key] for key in ("mean", "std")})


class _ServerClient:
    """What REST and gRPC share: versions, tries, and what errors mean."""

    def __init__(
        self,
        server,
        name="encoder",
        version=None,
        *,
        output_name="embedding",
        timeout=60.0,
        retries=5,
    ):
        _check_output_name(output_name)
        if not name:
            raise ValueError(
                f"`name` must be that of a model. Received: name={name!r}"
            )
        self._server = server.rstrip("/")
        self._name = name
        self._output_name = output_name
        self._timeout = timeout
        self._retries = retries
        self._version = version
        if version is None:
            self._version = self._ask(self._newest_version)

    @property
    def plan(self):
        """What JSON can hold: all that the embeddings depend on."""
        return {
            "server": self._server,
            "name": self._name,
            "version": self._version,
            "output_name": self._output_name,
        }

    def __call__(self, files):
        outputs = self._ask(lambda: self._predict(files))
        if self._output_name not in outputs:
            raise ValueError(
                f"`output_name` must be one that model {self._name!r} has, "
                f"{', '.join(sorted(outputs))}. "
                f"Received: output_name={self._output_name!r}"
            )
        try:
            rows = np.asarray(outputs[self._output_name], np.float32)
        except (TypeError, ValueError):
            rows = np.empty(0)  # not even an array
        if rows.ndim != 2 or len(rows) != len(files):
            raise ServerError(
                f"{self._server} does not answer with a row of numbers for "
                f"each of {len(files)} images."
            )
        return rows

    def _ask(self, request):
        """What `request` returns, when the server is there."""
        for trial in range(self._retries + 1):
            try:
                return request()
            except _Refused as error:
                raise self._explained(error) from error
            except _Unavailable as error:
                if trial == self._retries:
                    raise ServerError(
                        f"{self._server} cannot be reached, in {trial + 1} "
                        f"tries: {_in_one_line(error)}."
                    ) from error
                seconds = min(_FIRST_WAIT * 2**trial, _LONGEST_WAIT)
                logger.warning(
                    "%s: %s; trying again in %g s",
                    self._server,
                    _in_one_line(error),
                    seconds,
                )
            time.sleep(seconds)

    def _explained(self, error):
        message = _in_one_line(error)
        _raise_unreadable(message)
        asked = f"name={self._name!r}, version={self._version}"
        if error.not_found:
            return ValueError(
                "`name` and `version` must be of a model that the server has. "
                f"Received: {asked}, to which {self._server} says: {message}"
            )
        if re.search("signature.*not found", message, re.IGNORECASE):
            return ValueError(
                f"`name` must be a model with the signature {SIGNATURE!r}: "
                "export it again with `tools.export`. "
                f"Received: {asked}, to which {self._server} says: {message}"
            )
        return ServerError(f"{self._server} refuses: {message}.")

    def _newest_version(self):
        """The version that all requests then name, or None if not said.

        So that all embeddings are of one model, whatever the server loads.
        """
        versions = self._versions()
        if versions is None:
            return None
        available = [
            version for version, state in versions if state == "AVAILABLE"
        ]
        if not available:
            states = ", ".join(f"{number}: {x}" for number, x in versions)
            raise _Unavailable(
                f"no version of {self._name!r} is available ({states})"
            )
        return max(available)


class RestClient(_ServerClient):
    """A model that TensorFlow Serving serves by REST.

    Args:
        server: http://HOST:PORT, or https.
        name: of the model.
        version: of the model. Defaults to None: to the newest one there is
            when the client is made.
        output_name: "embedding"; or "projection", if the model has it.
        timeout: in seconds, of a request.
        retries: how often a request is sent again that nobody answers, or the
            server with its own failure.

    Raises:
        ValueError: for a model that the server does not have.
        ServerError: if it cannot be reached.
    """

    def _predict(self, files):
        body = {
            "signature_name": SIGNATURE,
            "inputs": {
                "image_bytes": [
                    {"b64": base64.b64encode(file).decode()} for file in files
                ]
            },
        }
        answer = self._send(":predict", body)
        if "outputs" not in answer:
            raise ServerError(f"{self._server} answers without `outputs`.")
        outputs = answer["outputs"]
        # Without its name if the model has no other.
        return outputs if isinstance(outputs, dict) else {"embedding": outputs}

    def _versions(self):
        try:
            answer = self._send("")
        except _Refused as error:
            if error.not_found:  # or there is no such address: `_predict` asks
                return None
            raise
        return [
            (int(status["version"]), status["state"])
            for status in answer.get("model_version_status", ())
        ] or None

    def _send(self, method, body=None):
        url = f"{self._server}/v1/models/{urllib.parse.quote(self._name, '')}"
        if self._version is not None:
            url += f"/versions/{self._version}"
        request = urllib.request.Request(
            url + method,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(
                request, timeout=self._timeout
            ) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            message = _read_error(error)
            if error.code >= 500:
                raise _Unavailable(message) from error
            raise _Refused(message, error.code == 404) from error
        except urllib.error.URLError as error:
            raise _Unavailable(error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Unavailable(f"{error}" or type(error).__name__) from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerError(f"{self._server} does not answer in JSON.")
        return answer


class GrpcClient(_ServerClient):
    """A model that TensorFlow Serving serves by gRPC.

    Args, raises: as `RestClient`; the server is grpc://HOST:PORT.
    """

    def __init__(self, server, *args, **kwargs):
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        channel = grpc.insecure_channel(
            urllib.parse.urlsplit(server).netloc,
            options=[
                # 4 MB of embeddings are soon more than that.
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # How long to wait is said here, once.
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.min_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(
            channel
        )
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        super().__init__(server, *args, **kwargs)

    def _predict(self, files):
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._name
        request.model_spec.signature_name = SIGNATURE
        if self._version is not None:
            request.model_spec.version.value = self._version
        tensor = request.inputs["image_bytes"]
        tensor.dtype = tf.string.as_datatype_enum
        tensor.tensor_shape.dim.add().size = len(files)
        tensor.string_val.extend(files)
        response = self._call(self._predictions.Predict, request)
        return {
            key: tf.make_ndarray(value)
            for key, value in response.outputs.items()
        }

    def _versions(self):
        import grpc
        from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

        request = status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._name
        try:
            response = self._call(self._models.GetModelStatus, request)
        except _Refused as error:
            if error.__cause__.code() == grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise
        name_of = status_pb2.ModelVersionStatus.State.Name
        return [
            (status.version, name_of(status.state))
            for status in response.model_version_status
        ] or None

    def _call(self, method, request):
        import grpc

        codes = grpc.StatusCode
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            message = error.details() or error.code().name
            if error.code() in (codes.UNAVAILABLE, codes.DEADLINE_EXCEEDED):
                raise _Unavailable(message) from error
            raise _Refused(message, error.code() == codes.NOT_FOUND) from error


def connect(server, *args, **kwargs):
    """The client of a server, by its address.

    Args:
        server: http://HOST:PORT (or https) for REST, grpc://HOST:PORT for
            gRPC.
        *args, **kwargs: as `RestClient` takes them.

    Returns:
        A `RestClient` or `GrpcClient`.

    Raises:
        ValueError: for another address, and as `RestClient`.
        ServerError: if it cannot be reached.
    """
    kinds = {"http": RestClient, "https": RestClient, "grpc": GrpcClient}
    try:
        parts = urllib.parse.urlsplit(server)
        port = parts.port
    except ValueError:  # its port is no number
        parts = port = None
    if (
        parts is None
        or parts.scheme not in kinds
        or not parts.hostname
        or (parts.scheme == "grpc" and (port is None or parts.path.strip("/")))
    ):
        raise ValueError(
            "`server` must be http://HOST:PORT, https://HOST or "
            f"grpc://HOST:PORT. Received: server={server!r}"
        )
    return kinds[parts.scheme](server, *args, **kwargs)


def embed_readable(client, files):
    """Embeds those of a batch that are readable.

    What is named as unreadable is asked for alone before it is left out: a
    server that runs several requests as one may mean another's image.

    Args:
        client: as this module has them.
        files: list of N image files, as bytes.

    Returns:
        (float32 (M, C), list of the M places in `files`); C is 0 if none is
        readable.
    """
    rows, suspects = {}, []
    waiting = list(range(len(files)))
    while waiting:
        try:
            found = client([files[index] for index in waiting])
        except UnreadableImages as error:
            named = {waiting[x] for x in error.indices if x < len(waiting)}
            named = named or set(waiting)
            suspects += named
            waiting = [index for index in waiting if index not in named]
        else:
            rows.update(zip(waiting, found, strict=True))
            waiting = []
    for index in suspects:
        row = _embed_alone(client, files[index])
        if row is not None:
            rows[index] = row
    places = sorted(rows)
    if not places:
        return np.zeros((0, 0), np.float32), []
    return np.stack([rows[index] for index in places]), places


def _embed_alone(client, file):
    for _ in range(_REFUSALS):
        try:
            return client([file])[0]
        except UnreadableImages:
            pass
    return None


def _raise_unreadable(message):
    """Raises `UnreadableImages` if that is what an error's message says."""
    found = _INDICES.search(message)
    if found:
        indices = [int(text) for text in found.group(1).split()]
        raise UnreadableImages(indices) from None


def _read_error(error):
    """What an HTTPError's body says is wrong."""
    try:
        return str(json.loads(error.read())["error"])
    except (
        OSError,
        http.client.HTTPException,
        ValueError,  # no JSON
        LookupError,
        TypeError,  # JSON, but no object
    ):
        return f"{error.code} {error.reason}"


def _in_one_line(error):
    return " ".join(str(error).split()).rstrip(".")


def _check_output_name(output_name):
    if output_name not in OUTPUT_NAMES:
        raise ValueError(
            f"`output_name` must be one of {', '.join(OUTPUT_NAMES)}. "
            f"Received: output_name={output_name!r}"
        )


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
