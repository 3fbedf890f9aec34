"""Accuracy after fine-tuning on few labels: the semi-supervised protocol.

    python -m tools.finetune --workdir=DIR --fraction=0.1
    python -m tools.finetune --workdir=DIR --protocol=1pct \
        --source=tfds:imagenet2012_subset/1pct --stream --shorter_side=256

--protocol=1pct trains a head on the frozen backbone, 10pct both; each flag
below replaces one of its values. Labelled images are all of the source's, a
class-balanced --fraction of them, or those that --file_list names.
"""

from absl import flags

from tools import command

command.define_subject_flags()
PROTOCOL = flags.DEFINE_enum(
    "protocol",
    None,
    ["1pct", "10pct"],
    "The paper's for that part of ImageNet's labels; default: 1pct for a "
    "--fraction up to 0.01, else 10pct.",
)
FRACTION = flags.DEFINE_float(
    "fraction", 1.0, "Of each class's training images, above 0 to 1."
)
FILE_LIST = flags.DEFINE_string(
    "file_list",
    None,
    "Text file that names the training images of a folder: source, one a "
    "line; reads them while training, as --stream.",
)
EPOCHS = flags.DEFINE_integer("epochs", None, "Of training.", lower_bound=1)
BACKBONE_LEARNING_RATE = flags.DEFINE_float(
    "backbone_learning_rate", None, "For a batch of 256; 0 freezes it."
)
HEAD_LEARNING_RATE = flags.DEFINE_float(
    "head_learning_rate", None, "For a batch of 256."
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "Images; at most as many as there are.", lower_bound=1
)
SEED = flags.DEFINE_integer(
    "seed", 0, "Which images, first weights, order and crops.", lower_bound=0
)


def main():
    from ressl_tf import workdir
    from ressl_tf.evaluation import finetune
    from ressl_tf.evaluation import paper
    from ressl_tf.evaluation import results
    from ressl_tf.evaluation import supervised

    if FILE_LIST.value is not None and FRACTION.value != 1:
        raise ValueError(
            "`--fraction` must not be given with --file_list, which says what "
            f"is used. Received: --fraction={FRACTION.value:g}"
        )
    name = PROTOCOL.value or ("1pct" if FRACTION.value <= 0.01 else "10pct")
    changes = {
        "epochs": EPOCHS.value,
        "backbone_learning_rate": BACKBONE_LEARNING_RATE.value,
        "head_learning_rate": HEAD_LEARNING_RATE.value,
    }
    protocol = finetune.PROTOCOLS[name]._replace(
        **{key: x for key, x in changes.items() if x is not None}
    )
    subject = command.open_subject(stream=FILE_LIST.value is not None)
    reader = _labelled_part(subject)
    batch_size = min(BATCH_SIZE.value, reader.num_images)
    encoder = subject.encoder
    plan = {
        "encoder": encoder.fingerprint(),
        "source": subject.source,
        "fraction": FRACTION.value,
        "file_list": FILE_LIST.value,
        "stream": flags.FLAGS.stream,
        "batch_size": batch_size,
        "seed": SEED.value,
        **protocol._asdict(),
    }
    result = finetune.finetune(
        encoder.load_model(),
        reader,
        subject.reader("test"),
        protocol,
        view=supervised.random_crops(encoder.image_size),
        batch_size=batch_size,
        seed=SEED.value,
        shorter_side=subject.shorter_side,
        workdir=workdir.folder_of_plan(encoder.folder / "finetune", plan),
        progress=True,
    )
    percent = {"1pct": 1, "10pct": 10}[name]
    reference = None
    if subject.source.startswith("tfds:imagenet2012"):
        reference = paper.semi_supervised_reference(encoder.config, percent)
    accuracy = 100 * result["accuracy"]
    what = f"fine-tuned on {reader.num_images} images, {name}"
    subject.write(
        f"finetune_{name}",
        {"labelled_images": reader.num_images, **plan, **result},
        [results.Row(what, accuracy, reference)],
        "Fine-tuning",
    )
    print(f"accuracy, {what}: {accuracy:.2f} %")


def _labelled_part(subject):
    """A reader of the training images that are used."""
    from ressl_tf import data

    reader = subject.reader("train")
    if FILE_LIST.value is not None:
        if not hasattr(reader, "paths"):
            raise ValueError(
                "`--file_list` must go with a folder: source. "
                f"Received: source={subject.source!r}"
            )
        return reader.subset(data.listed_rows(reader, FILE_LIST.value))
    if FRACTION.value == 1:
        return reader
    if getattr(reader, "labels", None) is None:
        raise ValueError(
            "`--fraction` must be 1 where shards are streamed: name a part as "
            "TensorFlow Datasets has it (tfds:imagenet2012_subset/10pct), or "
            f"leave out --stream. Received: --fraction={FRACTION.value:g}"
        )
    rows = data.balanced_rows(reader.labels, FRACTION.value, SEED.value)
    return reader.subset(rows)


if __name__ == "__main__":
    command.run(main)
