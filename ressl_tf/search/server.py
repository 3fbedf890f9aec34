"""One page for one user: an HTTP server for this machine alone.

GET /                     the page; /page.css and /page.js are its parts
GET /gallery.json         what is searched
GET /image/N.png          image N of it
GET /neighbours/N.json    its nearest neighbours
POST /search              an image file, answered by its nearest neighbours

Everything else is 404: an URL is looked up here, never in a file system.
Connections are closed after each answer, and nothing is written to disk.

Other pages in the user's browser can send requests here as well. They cannot
read the answers; by a name of their own that leads here (DNS rebinding) they
could, so that `Host` has to be this server's, and so has `Origin` of a POST.
"""

import base64
import http.server
import io
import json
import logging
import re
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from ressl_tf.search.upload import Refused
from ressl_tf.search.upload import read_square

logger = logging.getLogger("ressl_tf")

ADDRESS = "127.0.0.1"

_FOLDER = Path(__file__).parent
_PARTS = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_NUMBERED = re.compile(
    r"/(?:image/([0-9]{1,9})\.png|neighbours/([0-9]{1,9})\.json)"
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Another gallery may be here tomorrow.
    "Cache-Control": "no-store",
}
_JSON = "application/json"
_PIECE = 65536  # bytes


class Limits(NamedTuple):
    """What a server takes.

    Attributes:
        max_bytes: of an image file.
        max_pixels: of an image.
        max_searches: image files that are received and searched at once.
        idle_seconds: for which a connection may be silent.
        upload_seconds: that an image file may take to arrive.
    """

    max_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
    max_searches: int = 4
    idle_seconds: float = 10.0
    upload_seconds: float = 60.0


class SearchServer(http.server.ThreadingHTTPServer):
    """Has its port at once, and answers from `serve` on.

    Args:
        port: of 127.0.0.1; 0 for any that is free.
        limits: `Limits`. Defaults to `None`, for their defaults.

    Attributes:
        limits: `Limits`.
        url: of the page.

    Raises:
        ValueError: the port is not free.
    """

    daemon_threads = True
    request_queue_size = 128  # a page asks for all its pictures at once

    def __init__(self, port, limits=None):
        self.limits = limits or Limits()
        self.index = self.about = self.num_neighbours = None
        self.parts = {
            path: ((_FOLDER / name).read_bytes(), kind)
            for path, (name, kind) in _PARTS.items()
        }
        self.searches = threading.Semaphore(self.limits.max_searches)
        self.decoding = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise ValueError(
                "`port` must be one that is free, and that you may open. "
                f"Received: port={port} ({error.strerror})"
            ) from error
        self.url = f"http://{ADDRESS}:{self.server_port}/"

    def serve(self, index, about, num_neighbours):
        """Answers until it is interrupted, or `shutdown` is called.

        Args:
            index: `Index`.
            about: text for the page on encoder and images.
            num_neighbours: to show, at most.
        """
        self.index, self.about = index, about
        self.num_neighbours = num_neighbours
        self.serve_forever()

    def server_bind(self):
        # Not HTTPServer's, which asks the network for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]
        names = (ADDRESS, "localhost")
        self.hosts = {f"{name}:{self.server_port}" for name in names}
        if self.server_port == 80:
            self.hosts.update(names)

    def server_close(self):
        super().server_close()
        # TensorFlow does not like to be left in the middle of something.
        for _ in range(self.limits.max_searches):
            self.searches.acquire(timeout=5)

    def handle_error(self, request, client_address):
        # Where the page was closed or reloaded, nobody waits for an answer.
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            logger.exception("a request failed")

    def read_image(self, file):
        """`read_square` of a file for the index."""
        size = self.index.image_set.images.shape[1]
        # One at a time: each may take hundreds of megabytes.
        with self.decoding:
            return read_square(file, size, self.limits.max_pixels)


class _Handler(http.server.BaseHTTPRequestHandler):
    server_version = "ressl_tf"
    sys_version = ""

    def setup(self):
        self.timeout = self.server.limits.idle_seconds
        super().setup()

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def _answer(self, make):
        """Sends what `make` returns, (bytes, type), or why it does not."""
        try:
            self._check_host()
            body, kind = make()
            status = HTTPStatus.OK
        except Refused as refusal:
            status, kind = refusal.status, _JSON
            body = _to_json({"error": str(refusal)})
        except (ConnectionError, TimeoutError):
            raise  # nobody is left to be told
        except Exception:
            logger.exception("%s %s failed", self.command, self.path)
            status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, _JSON
            body = _to_json(
                {"error": "The search failed: its terminal says why."}
            )
        self._send(status, kind, body)

    def _send(self, status, kind, body):
        # Headers also where a request is too old or too broken to have any.
        self.request_version = self.protocol_version
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code, message=None, explain=None):
        # Of what is no request that is known here, which the base class finds.
        self.close_connection = True
        phrase = HTTPStatus(code).phrase
        error = f"The request is not understood: {phrase}."
        self._send(code, _JSON, _to_json({"error": error}))

    def log_message(self, format, *args):
        pass  # The page says what went wrong.

    def _check_host(self):
        host = self.headers.get_all("Host", [])
        if len(host) != 1 or host[0].lower() not in self.server.hosts:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"This page is at {self.server.url} and under no other name.",
            )

    def _check_origin(self):
        own = f"http://{self.headers['Host'].lower()}"
        if self.headers.get_all("Origin", [own]) != [own]:
            raise Refused(
                HTTPStatus.FORBIDDEN, "Other pages may not search here."
            )

    def _get(self):
        if self.path in self.server.parts:
            return self.server.parts[self.path]
        if self.path == "/gallery.json":
            return _to_json(self._describe()), _JSON
        numbered = _NUMBERED.fullmatch(self.path)
        if not numbered:
            raise _not_here()
        index, (image, query) = self.server.index, numbered.groups()
        number = int(image or query)
        if number >= index.num_images:
            raise Refused(
                HTTPStatus.NOT_FOUND,
                f"There is no image {number}: they end at "
                f"{index.num_images - 1}.",
            )
        if image:
            return _to_png(index.image_set.images[number]), "image/png"
        found = index.nearest_of(number, self.server.num_neighbours)
        return self._result(found, number), _JSON

    def _post(self):
        self._check_origin()
        if self.path != "/search":
            raise _not_here()
        length = self._content_length()
        if not self.server.searches.acquire(blocking=False):
            # Read, as browsers hear nothing before they have sent it all.
            for _ in self._pieces(length):
                pass
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.server.limits.max_searches} images are being searched "
                "already: try again in a moment.",
            )
        try:
            image = self.server.read_image(b"".join(self._pieces(length)))
            found = self.server.index.nearest(image, self.server.num_neighbours)
        finally:
            self.server.searches.release()
        return self._result(found, image=image), _JSON

    def _content_length(self):
        """Bytes of the image file that the request says to have."""
        values = self.headers.get_all("Content-Length", [])
        if (
            len(values) != 1
            or not re.fullmatch("[0-9]+", values[0])
            or "Transfer-Encoding" in self.headers
        ):
            raise Refused(
                HTTPStatus.LENGTH_REQUIRED,
                "The size of the image must be said first, as Content-Length.",
            )
        digits, limit = values[0].lstrip("0"), self.server.limits.max_bytes
        if len(digits) > len(str(limit)) or int(digits or "0") > limit:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The file is too large: at most {limit / 1e6:g} MB are taken.",
            )
        return int(digits or "0")

    def _pieces(self, length):
        """Yields the body as it comes."""
        end = time.monotonic() + self.server.limits.upload_seconds
        late = Refused(
            HTTPStatus.REQUEST_TIMEOUT, "The image took too long to arrive."
        )
        while length:
            try:
                piece = self.rfile.read1(min(length, _PIECE))
            except TimeoutError as error:
                raise late from error
            if not piece:
                raise Refused(
                    HTTPStatus.BAD_REQUEST, "The image did not arrive whole."
                )
            if time.monotonic() > end:
                raise late
            length -= len(piece)
            yield piece

    def _describe(self):
        server, index = self.server, self.server.index
        numbers = range(index.num_images)
        return {
            "about": server.about,
            "num_images": index.num_images,
            "image_size": index.image_set.images.shape[1],
            "class_names": list(index.image_set.class_names),
            "labels": [index.label(number) for number in numbers],
            "max_bytes": server.limits.max_bytes,
        }

    def _result(self, found, number=None, image=None):
        """The nearest neighbours of image `number`, or of one from outside."""
        index = self.server.index
        label = None if number is None else index.label(number)
        if image is None:
            shown = f"image/{number}.png"
        else:
            code = base64.b64encode(_to_png(image)).decode()
            shown = f"data:image/png;base64,{code}"
        neighbours = []
        for neighbour in found:
            other = index.label(neighbour.number)
            known = label is not None and other is not None
            neighbours.append(
                {
                    "number": neighbour.number,
                    "similarity": neighbour.similarity,
                    "label": other,
                    "same_class": label == other if known else None,
                }
            )
        query = {"number": number, "label": label, "image": shown}
        return _to_json({"query": query, "neighbours": neighbours})


def _not_here():
    return Refused(HTTPStatus.NOT_FOUND, "There is nothing at this address.")


def _to_json(value):
    return json.dumps(value, allow_nan=False).encode()


def _to_png(image):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
