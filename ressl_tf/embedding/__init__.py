"""Image files to embeddings: by a model here, or by TensorFlow Serving.

A client is called with a list of N image files, as bytes, and returns float32
(N, C). All of them run the signature `serve_bytes`, so that all return the
same: `local`, and of servers `rest` and `grpc_client`, for which `server` has
what they share and `connection` tells them apart. Where files are not readable
they raise `UnreadableImages`, and `batch` leaves those out. `listing` finds the
files of folders, `parts` embeds them and can be continued, `output` writes.
"""

from ressl_tf.embedding.batch import UnreadableImages
from ressl_tf.embedding.batch import embed_readable
from ressl_tf.embedding.connection import connect
from ressl_tf.embedding.grpc_client import GrpcClient
from ressl_tf.embedding.listing import ImageFile
from ressl_tf.embedding.listing import list_files
from ressl_tf.embedding.listing import shown
from ressl_tf.embedding.local import LocalClient
from ressl_tf.embedding.output import check_output
from ressl_tf.embedding.parts import Embedded
from ressl_tf.embedding.parts import embed_files
from ressl_tf.embedding.rest import RestClient
from ressl_tf.embedding.server import ServerError

__all__ = [
    "Embedded",
    "GrpcClient",
    "ImageFile",
    "LocalClient",
    "RestClient",
    "ServerError",
    "UnreadableImages",
    "check_output",
    "connect",
    "embed_files",
    "embed_readable",
    "list_files",
    "shown",
]
