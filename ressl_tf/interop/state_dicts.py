"""From a backbone's variables to a torch state dict, and back."""

import numpy as np
from tensorflow import keras

from ressl_tf.interop import names

# Keras' axes of a kernel in torch's order.
_CONV = (3, 2, 0, 1)  # (height, width, in, out) -> (out, in, height, width)
_DEPTHWISE = (2, 3, 0, 1)  # (height, width, channels, 1) -> (channels, 1, ...)


def to_state_dict(backbone, layout=None):
    """A backbone's weights and batch statistics by torch's names.

    Args:
        backbone: `keras.Model` of `make_backbone`, or one that contains it,
            as `load_encoder` returns it.
        layout: "torchvision" or "detectron2" for a ResNet, "timm" for the
            light networks. Defaults to the first that the network has.

    Returns:
        {name: float32 array}, kernels as (out, in, height, width). BN's
        `num_batches_tracked` is left out; torch's `load_state_dict` does not
        miss it.

    Raises:
        ValueError: if the network is not one of `make_backbone`, or has no
            such layout.
    """
    return {
        entry.name: entry.to_torch(np.array(entry.variable))
        for entry in _entries(*_resolve(backbone, layout))
    }


def load_state_dict(backbone, state_dict, layout=None, prefix=""):
    """Sets a backbone's weights and batch statistics from a torch state dict.

    Either all of them are set or, if anything is missing, too much or of
    another shape, none. The classifier's entries and `num_batches_tracked`
    are passed over.

    Args:
        backbone, layout: as in `to_state_dict`.
        state_dict: {name: array}, as `read_state_dict` returns it.
        prefix: what the backbone's names begin with, such as
            "module.encoder_q."; names that begin otherwise belong to other
            parts of a model and are passed over.

    Raises:
        ValueError: if the network or the layout is not known, or the state
            dict does not fit: names what does not.
    """
    backbone, layout = _resolve(backbone, layout)
    given = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    entries = list(_entries(backbone, layout))
    _check_names(given, entries, layout, state_dict)
    values = []
    for entry in entries:
        value = np.asarray(given[entry.name])
        expected = entry.to_torch(np.empty(entry.variable.shape)).shape
        if value.shape != expected:
            raise ValueError(
                f"`state_dict` does not fit the backbone: {entry.name} must "
                f"be of shape {expected}; is it of another width or stem? "
                f"Received: shape {value.shape}"
            )
        values.append(entry.from_torch(value.astype(np.float32)))
    for entry, value in zip(entries, values, strict=True):
        entry.variable.assign(value)


def find_backbone(network):
    """The network of `make_backbone` that is, or is part of, `network`.

    Raises:
        ValueError: if there is none.
    """
    if names.layouts_of(network):
        return network
    for layer in network.layers:
        if isinstance(layer, keras.Model) and names.layouts_of(layer):
            return layer
    raise ValueError(
        "`backbone` must be a network of ressl_tf.make_backbone, or contain "
        "one: torch's names of another are not known. "
        f"Received: {network.name!r}"
    )


class _Entry:
    """One array of a state dict and the variable that it belongs to."""

    def __init__(self, name, variable, axes=None):
        self.name = name
        self.variable = variable
        self._axes = axes

    def to_torch(self, value):
        return value if self._axes is None else value.transpose(self._axes)

    def from_torch(self, value):
        if self._axes is None:
            return value
        return value.transpose(np.argsort(self._axes))


def _entries(backbone, layout):
    for layer in backbone.layers:
        if not layer.weights:
            continue
        module = layout.module(layer.name)
        if module is None:
            raise ValueError(
                "`backbone` must have the layers that make_backbone gives it: "
                f"torch's name of {layer.name!r} is not known. "
                f"Received: {backbone.name!r}"
            )
        for parameter, variable, axes in _parameters(layer):
            yield _Entry(f"{module}.{parameter}", variable, axes)


def _parameters(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
        yield "weight", layer.gamma, None
        yield "bias", layer.beta, None
        yield "running_mean", layer.moving_mean, None
        yield "running_var", layer.moving_variance, None
        return
    # The class of Keras 2's depthwise convolution is a Conv2D's, too.
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        yield "weight", layer.weights[0], _DEPTHWISE
    else:
        yield "weight", layer.weights[0], _CONV
    if layer.use_bias:
        yield "bias", layer.bias, None


def _resolve(backbone, layout):
    """(backbone, `Layout`) from what the user gave."""
    backbone = find_backbone(backbone)
    known = {each.name: each for each in names.layouts_of(backbone)}
    if layout is None:
        layout = next(iter(known))
    if layout not in known:
        raise ValueError(
            f"`layout` must be one of {', '.join(known)} for "
            f"{backbone.name!r}. Received: layout={layout!r}"
        )
    return backbone, known[layout]


def _check_names(given, entries, layout, state_dict):
    expected = [entry.name for entry in entries]
    missing = [name for name in expected if name not in given]
    if missing:
        some = ", ".join(list(state_dict)[:3])
        raise ValueError(
            f"`state_dict` does not fit the backbone: it lacks {missing[0]}"
            f"{_and_more(missing)}. Is it of this network, and in the layout "
            f"{layout.name!r}; do its names have a prefix? "
            f"Received: {len(state_dict)} names: {some}, ..."
        )
    unknown = [
        name
        for name in sorted(set(given) - set(expected))
        if not name.startswith(layout.classifier)
        and not name.endswith(".num_batches_tracked")
    ]
    if unknown:
        raise ValueError(
            "`state_dict` does not fit the backbone, which has no "
            f"{unknown[0]}{_and_more(unknown)}: is it of a deeper network? "
            f"Received: {len(state_dict)} names"
        )


def _and_more(some):
    return f" and {len(some) - 1} more" if len(some) > 1 else ""
