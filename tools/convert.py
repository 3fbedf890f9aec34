"""Weights to and from PyTorch; exports to ONNX and LiteRT.

    python -m tools.convert --workdir=DIR --output=resnet50.safetensors
    python -m tools.convert --workdir=DIR --layout=detectron2 --output=r50.pkl
    python -m tools.convert --input=resnet50.pth --backbone=resnet50 \
        --output=encoder.keras
    python -m tools.convert --workdir=DIR/export/encoder --output=encoder.onnx
    python -m tools.convert --workdir=DIR/export/encoder \
        --output=encoder.tflite --float16

The first two write the backbone of a run, an export or a `.keras` file, named
as torchvision, timm or detectron2 do; the third one makes an encoder of
somebody else's weights, for `tools.knn`, `tools.linear_probe` and
`ressl_tf.load_encoder`. The last two write an export with its preprocessing.
"""

import os

from absl import flags

from tools import command

WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "What to write: the folder of a run; an export (DIR/export/NAME); or a "
    ".keras file.",
)
INPUT = flags.DEFINE_string(
    "input",
    None,
    "Or what to read: .safetensors, .npz, or .pth (with torch installed).",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "With --workdir: .safetensors, .npz, .pth (with torch installed) or .pkl "
    "(for detectron2); of an export also .onnx (with tf2onnx installed) or "
    ".tflite. With --input: a .keras file.",
    required=True,
)
LAYOUT = flags.DEFINE_enum(
    "layout",
    None,
    ["torchvision", "timm", "detectron2"],
    "Whose names; default: torchvision's of a ResNet, timm's of others.",
)
BRANCH = flags.DEFINE_enum(
    "branch", "student", ["student", "teacher"], "Which network of a run."
)
FLOAT16 = flags.DEFINE_bool(
    "float16", False, "For .tflite: store weights in half precision."
)
PREFIX = flags.DEFINE_string(
    "prefix",
    "",
    "With --input: what the backbone's names begin with, such as "
    "'module.encoder_q.'.",
)
BACKBONE = flags.DEFINE_string(
    "backbone", None, "With --input: its name, as in make_backbone."
)
STEM = flags.DEFINE_enum(
    "stem", "imagenet", ["imagenet", "small", "cifar"], "With --input."
)
WIDTH = flags.DEFINE_integer(
    "width", 64, "With --input: channels of the first stage.", lower_bound=1
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 224, "With --input: height and width.", lower_bound=1
)
MEAN = flags.DEFINE_list(
    "mean", "0.485,0.456,0.406", "With --input: of the pixels, in 0-1."
)
STD = flags.DEFINE_list("std", "0.229,0.224,0.225", "With --input.")


def main():
    if (WORKDIR.value is None) == (INPUT.value is None):
        raise ValueError(
            "Give either `--workdir`, to write its weights, or `--input`, to "
            "read weights. "
            f"Received: --workdir={WORKDIR.value}, --input={INPUT.value}"
        )
    if FLOAT16.value and not OUTPUT.value.endswith(".tflite"):
        raise ValueError(
            "`--float16` is for an `--output` that ends in .tflite alone. "
            f"Received: --output={OUTPUT.value}"
        )
    if INPUT.value is not None:
        read()
    elif OUTPUT.value.endswith((".onnx", ".tflite")):
        write_format()
    else:
        write()


def write_format():
    from ressl_tf import interop

    if LAYOUT.value is not None:
        raise ValueError(
            "`--layout` is for weights, not for .onnx and .tflite. "
            f"Received: --layout={LAYOUT.value}, --output={OUTPUT.value}"
        )
    if OUTPUT.value.endswith(".onnx"):
        interop.to_onnx(WORKDIR.value, OUTPUT.value)
    else:
        interop.to_litert(WORKDIR.value, OUTPUT.value, FLOAT16.value)
    print(f"{OUTPUT.value}: {os.path.getsize(OUTPUT.value):,} bytes")


def write():
    from ressl_tf import export
    from ressl_tf import interop

    if OUTPUT.value.endswith(".pkl") and LAYOUT.value != "detectron2":
        raise ValueError(
            "`--output` may end in .pkl with --layout=detectron2 alone. "
            f"Received: --layout={LAYOUT.value}, --output={OUTPUT.value}"
        )
    encoder = export.load_encoder(WORKDIR.value, BRANCH.value)
    state_dict = interop.to_state_dict(encoder, LAYOUT.value)
    interop.write_state_dict(OUTPUT.value, state_dict)
    numbers = sum(value.size for value in state_dict.values())
    print(f"{OUTPUT.value}: {len(state_dict)} arrays, {numbers:,} numbers")


def read():
    from ressl_tf import batch_norm
    from ressl_tf import interop
    from ressl_tf import networks
    from ressl_tf import recipe

    if not OUTPUT.value.endswith(".keras"):
        raise ValueError(
            "`--output` must end in .keras, to read weights. "
            f"Received: --output={OUTPUT.value}"
        )
    if BACKBONE.value is None:
        raise ValueError(
            "`--backbone` must name the network, such as resnet50, to read "
            "weights. Received: none"
        )
    size = IMAGE_SIZE.value
    statistics = {
        name: command.numbers(name, texts, count=3)
        for name, texts in (("mean", MEAN.value), ("std", STD.value))
    }
    backbone = networks.make_backbone(
        BACKBONE.value, (size, size, 3), STEM.value, WIDTH.value
    )
    interop.load_state_dict(
        backbone,
        interop.read_state_dict(INPUT.value),
        LAYOUT.value,
        PREFIX.value,
    )
    # Loading it needs no class of ours.
    encoder = recipe.make_encoder(
        {"data": {"image_size": size, **statistics}},
        batch_norm.plain_batch_norm(backbone),
    )
    encoder.save(OUTPUT.value)
    print(f"{OUTPUT.value}: {encoder.count_params():,} numbers")


if __name__ == "__main__":
    command.run(main)
