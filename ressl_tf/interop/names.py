"""What a layer of a backbone is called in torchvision, timm and detectron2."""

import re
from typing import NamedTuple

# MobileNetV3-Large's blocks by the stages that timm groups them in.
_MOBILENET_STAGES = (1, 2, 3, 4, 2, 3)
_MOBILENET_BLOCKS = [
    f"blocks.{stage}.{index}"
    for stage, depth in enumerate(_MOBILENET_STAGES)
    for index in range(depth)
]


class Layout(NamedTuple):
    """One way to name the parts of a network.

    Attributes:
        name: what the user calls it.
        first: name of a layer that tells that a network is of this kind.
        module: function from a layer's name to that of its torch module, or
            None if it has none.
        classifier: what the names of modules begin with that belong to the
            classifier.
    """

    name: str
    first: str
    module: object
    classifier: tuple


def _torchvision_resnet(layer):
    if layer in ("stem_conv", "stem_bn"):
        return {"stem_conv": "conv1", "stem_bn": "bn1"}[layer]
    match = re.fullmatch(r"layer(\d)_(\d+)_(.+)", layer)
    if not match:
        return None
    stage, index, part = match.groups()
    part = {
        "shortcut_conv": "downsample.0",
        "shortcut_bn": "downsample.1",
    }.get(part, part)
    return f"layer{stage}.{index}.{part}"


def _detectron2_resnet(layer):
    if layer in ("stem_conv", "stem_bn"):
        return {"stem_conv": "stem.conv1", "stem_bn": "stem.conv1.norm"}[layer]
    match = re.fullmatch(r"layer(\d)_(\d+)_(.+)", layer)
    if not match:
        return None
    stage, index, part = match.groups()
    # A normalisation is part of the convolution before it.
    part = part.replace("shortcut_conv", "shortcut")
    part = part.replace("shortcut_bn", "shortcut.norm")
    part = re.sub(r"bn(\d)", r"conv\1.norm", part)
    return f"res{int(stage) + 1}.{index}.{part}"


def _timm_efficientnet(layer):
    outer = {
        "stem_conv": "conv_stem",
        "stem_bn": "bn1",
        "top_conv": "conv_head",
        "top_bn": "bn2",
    }
    if layer in outer:
        return outer[layer]
    match = re.fullmatch(r"block(\d)([a-z])_(.+)", layer)
    if not match:
        return None
    stage, letter, part = match.groups()
    block = f"blocks.{int(stage) - 1}.{ord(letter) - ord('a')}"
    return _timm_part(
        block,
        part,
        expands=stage != "1",
        parts=(
            ("expand_conv", "expand_bn"),
            ("dwconv", "bn"),
            ("project_conv", "project_bn"),
            ("se_reduce", "se_expand"),
        ),
    )


def _timm_mobilenetv3(layer):
    outer = {
        "conv": "conv_stem",
        "conv_bn": "bn1",
        "conv_1": "blocks.6.0.conv",
        "conv_1_bn": "blocks.6.0.bn1",
    }
    if layer in outer:
        return outer[layer]
    match = re.fullmatch(r"expanded_conv_(?:(\d+)_)?(.+)", layer)
    if not match:
        return None
    number, part = match.groups()
    return _timm_part(
        _MOBILENET_BLOCKS[int(number or 0)],
        part,
        expands=number is not None,
        parts=(
            ("expand", "expand_bn"),
            ("depthwise", "depthwise_bn"),
            ("project", "project_bn"),
            ("squeeze_excite_conv", "squeeze_excite_conv_1"),
        ),
    )


def _timm_part(block, part, expands, parts):
    """The module of a layer within an inverted residual block.

    Args:
        block: name of the block's module.
        part: name of the layer within the block.
        expands: whether the block begins with an expansion.
        parts: names of convolution and normalisation of the expansion, the
            depthwise convolution and the projection, and of the two
            convolutions of squeeze and excitation.
    """
    expansion, depthwise, projection, squeeze = parts
    if expands:
        rows = zip(
            (expansion, depthwise, projection),
            ("conv_pw", "conv_dw", "conv_pwl"),
            strict=True,
        )
    else:
        rows = zip((depthwise, projection), ("conv_dw", "conv_pw"), strict=True)
    modules = dict(
        zip(squeeze, ("se.conv_reduce", "se.conv_expand"), strict=True)
    )
    for number, ((convolution, norm), module) in enumerate(rows, start=1):
        modules[convolution] = module
        modules[norm] = f"bn{number}"
    return f"{block}.{modules[part]}" if part in modules else None


# The first of a network's layouts is its default.
_LAYOUTS = (
    Layout("torchvision", "layer1_0_conv1", _torchvision_resnet, ("fc.",)),
    Layout("detectron2", "layer1_0_conv1", _detectron2_resnet, ()),
    Layout("timm", "block1a_dwconv", _timm_efficientnet, ("classifier.",)),
    Layout(
        "timm",
        "expanded_conv_depthwise",
        _timm_mobilenetv3,
        # The hidden layer after the pooling is the classifier's here.
        ("classifier.", "conv_head."),
    ),
)
LAYOUTS = tuple(dict.fromkeys(layout.name for layout in _LAYOUTS))


def layouts_of(backbone):
    """The layouts that a network of `make_backbone` can be named in."""
    names = {layer.name for layer in backbone.layers}
    return [layout for layout in _LAYOUTS if layout.first in names]
