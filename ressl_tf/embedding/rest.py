"""TensorFlow Serving by REST."""

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request

from ressl_tf.embedding.server import SIGNATURE
from ressl_tf.embedding.server import Refused
from ressl_tf.embedding.server import ServerClient
from ressl_tf.embedding.server import ServerError
from ressl_tf.embedding.server import Unavailable


class RestClient(ServerClient):
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
        except Refused as error:
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
                raise Unavailable(message) from error
            raise Refused(message, error.code == 404) from error
        except urllib.error.URLError as error:
            raise Unavailable(error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{error}" or type(error).__name__) from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerError(f"{self._server} does not answer in JSON.")
        return answer


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
