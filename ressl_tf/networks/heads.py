"""Projector and predictor: g and q of the paper."""

from tensorflow import keras

from ressl_tf.networks import layers


def make_projector(
    input_dim,
    hidden_dim=2048,
    output_dim=128,
    batch_norm=True,
    name="projector",
    bn_splits=None,
):
    """A perceptron with one hidden layer: the paper's g.

    Args:
        input_dim: number of features of the backbone.
        hidden_dim: width of the hidden layer.
        output_dim: D, embedding size.
        batch_norm: whether the hidden layer is batch-normalised.
        name: name of the model.
        bn_splits: as in `make_backbone`.

    Returns:
        A `keras.Model` from (B, input_dim) to (B, D). Its output is float32
        under every precision policy.

    Raises:
        ValueError: if a dimension or `bn_splits` is smaller than 1.
    """
    for argument, value in (
        ("input_dim", input_dim),
        ("hidden_dim", hidden_dim),
        ("output_dim", output_dim),
    ):
        if value < 1:
            raise ValueError(
                f"`{argument}` must be at least 1. Received: {argument}={value}"
            )
    layers.check_bn_splits(bn_splits)
    inputs = keras.Input((input_dim,), name="inputs")
    x = layers.dense(hidden_dim, use_bias=not batch_norm, name="hidden")(inputs)
    if batch_norm:
        x = layers.batch_norm("hidden_bn", bn_splits)(x)
    x = keras.layers.ReLU(name="hidden_relu")(x)
    x = layers.dense(output_dim, dtype="float32", name="output")(x)
    return keras.Model(inputs, x, name=name)


def make_predictor(
    dim=128,
    hidden_dim=2048,
    batch_norm=True,
    name="predictor",
    bn_splits=None,
):
    """A perceptron from embedding to embedding: the paper's q.

    Args:
        dim: D, embedding size.
        hidden_dim: width of the hidden layer.
        batch_norm: whether the hidden layer is batch-normalised.
        name: name of the model.
        bn_splits: as in `make_backbone`.

    Returns:
        A `keras.Model` from (B, D) to (B, D), float32.

    Raises:
        ValueError: if a dimension or `bn_splits` is smaller than 1.
    """
    return make_projector(dim, hidden_dim, dim, batch_norm, name, bn_splits)
