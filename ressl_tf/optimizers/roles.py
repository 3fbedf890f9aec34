"""Which variables are biases and normalisation: by what they are."""

from tensorflow import keras

from ressl_tf import keras_compat

# All of whose variables are normalisation (gamma, beta, scale).
NORMALIZATIONS = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",  # Keras 3 alone
        "UnitNormalization",
    )
    if hasattr(keras.layers, name)
)


def bias_and_norm_variables(networks):
    """The biases and normalisation variables of networks, by their role.

    A bias is what a layer calls its `bias`, of whatever rank: that of
    attention has two. Of a normalisation layer it is every trainable variable.
    All others are not: kernels, embeddings, tokens, scales of other layers.

    Args:
        networks: list of built `keras.Model`.

    Returns:
        A list of variables.
    """
    found = []
    for network in networks:
        for layer in network._flatten_layers():
            if isinstance(layer, NORMALIZATIONS):
                found += layer.trainable_variables
            else:
                # Some layers call other things their bias.
                bias = getattr(layer, "bias", None)
                found += [
                    variable
                    for variable in layer.trainable_variables
                    if variable is bias
                ]
    return found


def exclude_by_role(optimizer, networks):
    """Leaves biases and normalisation out, if the optimiser asks for that.

    Those of `make_optimizer` ask by `exclude_bias_and_norm`; any other is left
    as it is. To be called before the optimiser is built.

    Args:
        optimizer: a Keras optimiser.
        networks: list of built `keras.Model`: what it trains.
    """
    optimizer = keras_compat.unwrapped(optimizer)
    if getattr(optimizer, "exclude_bias_and_norm", False):
        optimizer.exclude_from_weight_decay(
            var_list=bias_and_norm_variables(networks)
        )
