"""Embeddings by a model of this file system."""

import hashlib
from pathlib import Path

import tensorflow as tf

from ressl_tf import export
from ressl_tf import workdir as workdir_lib
from ressl_tf.embedding.batch import raise_unreadable
from ressl_tf.embedding.server import SIGNATURE
from ressl_tf.embedding.server import check_output_name
from ressl_tf.export.servable import Servable


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
        check_output_name(output_name)
        self._output_name = output_name
        version = export.find_version(path)
        if version is None:
            self._open_encoder(Path(path), branch, shorter_side)
        else:
            self._open_export(version, branch, shorter_side)
        self.plan["output_name"] = output_name

    def __call__(self, files):
        try:
            outputs = self._serve(tf.constant(files, tf.string))
        except tf.errors.InvalidArgumentError as error:
            raise_unreadable(error.message)
            raise
        return outputs[self._output_name].numpy()

    def _open_export(self, version, branch, shorter_side):
        if shorter_side is not None:
            raise ValueError(
                "`shorter_side` must not be given of an export, which has its "
                f"own. Received: shorter_side={shorter_side}"
            )
        export.read_card(version, branch)  # or says what is wrong with it
        embed, _ = export.load_servable(version, SIGNATURE)
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
            "weights": export.fingerprint(embed.variables),
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
        encoder = export.load_encoder(path, branch or "student")
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
            self.plan["weights"] = export.fingerprint(encoder.weights)
            settings = workdir_lib.read_config(path)["data"]
            self.plan.update({key: settings[key] for key in ("mean", "std")})


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
