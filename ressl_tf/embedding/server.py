"""Embeddings by TensorFlow Serving: what REST and gRPC share."""

import logging
import re
import time

import numpy as np

from ressl_tf.embedding.batch import raise_unreadable

logger = logging.getLogger("ressl_tf")

OUTPUT_NAMES = ("embedding", "projection")
SIGNATURE = "serve_bytes"

_FIRST_WAIT = 0.5  # seconds; twice as long each time
_LONGEST_WAIT = 8.0


class ServerError(RuntimeError):
    """A server that cannot be reached, or does not answer as it should."""


class Unavailable(Exception):
    """Nobody answers, or not now: worth another try."""


class Refused(Exception):
    """The server's answer is an error."""

    def __init__(self, message, not_found=False):
        super().__init__(message)
        self.not_found = not_found


class ServerClient:
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
        check_output_name(output_name)
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
            except Refused as error:
                raise self._explained(error) from error
            except Unavailable as error:
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
        raise_unreadable(message)
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
            raise Unavailable(
                f"no version of {self._name!r} is available ({states})"
            )
        return max(available)


def _in_one_line(error):
    return " ".join(str(error).split()).rstrip(".")


def check_output_name(output_name):
    if output_name not in OUTPUT_NAMES:
        raise ValueError(
            f"`output_name` must be one of {', '.join(OUTPUT_NAMES)}. "
            f"Received: output_name={output_name!r}"
        )
