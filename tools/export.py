"""Exports a run's encoder as a SavedModel for TensorFlow Serving.

python -m tools.export --workdir=DIR
"""

from absl import flags

from tools import command

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run.", required=True
)
NAME = flags.DEFINE_string("name", "encoder", "Name of the export.")
BRANCH = flags.DEFINE_enum(
    "branch", "student", ["student", "teacher"], "Which network."
)
PROJECTION = flags.DEFINE_bool(
    "projection",
    False,
    "Return the projector's output, too, of length 1.",
)
INPUT_DTYPE = flags.DEFINE_enum(
    "input_dtype",
    "float32",
    ["float32", "uint8"],
    "Of images: uint8 is a quarter of the bytes.",
)
SHORTER_SIDE = flags.DEFINE_integer(
    "shorter_side",
    None,
    "Of image files: resized to it before their centre is cut out, as 256 for "
    "encoders of 224; default: the encoder's size.",
    lower_bound=1,
)
LICENCE = flags.DEFINE_string(
    "licence", None, "Of the weights, a text for the model card."
)


def main():
    from ressl_tf import export

    path = export.export(
        WORKDIR.value,
        NAME.value,
        BRANCH.value,
        projection=PROJECTION.value,
        input_dtype=INPUT_DTYPE.value,
        shorter_side=SHORTER_SIDE.value,
        licence=LICENCE.value,
    )
    print(path)


if __name__ == "__main__":
    command.run(main)
