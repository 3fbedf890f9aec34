"""The signatures of a SavedModel: an encoder as a server runs it."""

import tensorflow as tf

from ressl_tf import keras_compat
from ressl_tf import losses
from ressl_tf.data import decoding

INPUT_DTYPES = ("float32", "uint8")


class Servable(tf.Module):
    """A network and its signatures: what a SavedModel holds.

    `embed` takes images, `embed_bytes` image files; both return {"embedding":
    float32 (N, C)} and, with a projector, "projection", float32 (N, D) of
    length 1.

    Args:
        encoder: `keras.Model` from float32 (N, H, W, 3) images in 0-255 to
            features (N, C).
        projector: `keras.Model` from features to embeddings (N, D), for the
            projection. Defaults to None: there is none.
        input_dtype: of `embed`'s images, one of `INPUT_DTYPES`.
        shorter_side: of image files: resized to it, antialiased, before their
            centre is cut out, as in evaluation. Defaults to None, for H.
    """

    def __init__(
        self,
        encoder,
        projector=None,
        *,
        input_dtype="float32",
        shorter_side=None,
    ):
        super().__init__()
        # TensorFlow's variables alone are tracked, not Keras 3's around them:
        # with these, what a session restores (TensorFlow Serving does) are
        # copies, and the signatures find variables without values.
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "projector", projector)
        self.weights = [
            keras_compat.tf_variable(variable)
            for network in (encoder, projector)
            if network is not None
            for variable in network.weights
        ]
        shape = encoder.input_shape
        self.size = shape[1]
        self.shorter_side = shorter_side or self.size
        self.embed = tf.function(
            self._embed,
            input_signature=[tf.TensorSpec(shape, input_dtype, name="images")],
        )
        self.embed_bytes = tf.function(
            self._embed_bytes,
            input_signature=[
                tf.TensorSpec([None], tf.string, name="image_bytes")
            ],
        )

    @property
    def signatures(self):
        """For `tf.saved_model.save`."""
        return {"serving_default": self.embed, "serve_bytes": self.embed_bytes}

    def _embed(self, images):
        features = self.encoder(tf.cast(images, tf.float32), training=False)
        outputs = {"embedding": features}
        if self.projector is not None:
            projection = self.projector(features, training=False)
            outputs["projection"] = losses.normalize(projection)
        return outputs

    def _embed_bytes(self, image_bytes):
        images, readable = decoding.decode_squares(
            image_bytes, self.size, self.shorter_side
        )
        check = tf.debugging.Assert(
            tf.reduce_all(readable),
            [
                "`image_bytes` must be image files (JPEG, PNG, GIF, BMP, "
                "WebP). Not readable, by index:",
                tf.where(~readable)[:, 0],
            ],
            summarize=100,
        )
        # Also where a session runs what the outputs need, and no more.
        with tf.control_dependencies([check]):
            return self._embed(tf.identity(images))
