"""Writes images as shards, to train from more than memory holds.

python -m tools.make_shards --source=folder:PATH --name=NAME --output=DIR

The result is a prepared TensorFlow Datasets folder. Train from it with
--config.data.source=tfds:NAME --config.data.data_dir=DIR
--config.data.stream=True

Ended on the way, the same command continues with the shards that are missing.
"""

from absl import flags

from tools import command

SOURCE = flags.DEFINE_string(
    "source", None, "photos, tfds:NAME, folder:PATH or npz:PATH.", required=True
)
NAME = flags.DEFINE_string(
    "name", None, "Of the new set: a-z, 0-9 and _.", required=True
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of TensorFlow Datasets to write to.", required=True
)
SPLITS = flags.DEFINE_list("splits", ["train"], "train,test or one of them.")
NUM_SHARDS = flags.DEFINE_integer(
    "num_shards",
    None,
    "Files per split; default: one of every 64 MB of files, or of pixels.",
    lower_bound=1,
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Side of the squares to store; default: as they are.",
    lower_bound=1,
)
KEEP_FILES = flags.DEFINE_bool(
    "keep_files",
    False,
    "Store the JPEG files of a folder as they are, not as lossless PNG.",
)
MAX_BAD = flags.DEFINE_integer(
    "max_bad",
    None,
    "Files that may be skipped because they cannot be read; default: 1 % of "
    "them, at least 10.",
    lower_bound=0,
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "For tfds: sources; default: TensorFlow Datasets' own."
)


def main():
    from ressl_tf.data import shards

    counts = shards.write_shards(
        SOURCE.value,
        NAME.value,
        OUTPUT.value,
        splits=SPLITS.value,
        num_shards=NUM_SHARDS.value,
        image_size=IMAGE_SIZE.value,
        keep_files=KEEP_FILES.value,
        max_bad=MAX_BAD.value,
        data_dir=DATA_DIR.value,
    )
    for split, count in counts.items():
        print(f"{split}: {count} images")
    print(
        f"train with --config.data.source=tfds:{NAME.value} "
        f"--config.data.data_dir={OUTPUT.value} --config.data.stream=True"
    )


if __name__ == "__main__":
    command.run(main)
