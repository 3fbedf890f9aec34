"""Which client an address means."""

import urllib.parse

from ressl_tf.embedding.grpc_client import GrpcClient
from ressl_tf.embedding.rest import RestClient


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
