"""Transfer to other data sets: logistic regression on frozen features.

    python -m tools.transfer --workdir=DIR --data_dir=TFDS
    python -m tools.transfer --workdir=DIR --datasets=cifar10,dtd
    python -m tools.transfer --workdir=DIR --source=folder:PATH --metric=top1

The paper's nine sets, or one's own. Written after each, so the same command
goes on where it was stopped; a set that cannot be read is named, the others
go on, and the exit code is 1.
"""

import sys

from absl import flags

from tools import command

command.define_encoder_flags()
DATASETS = flags.DEFINE_list(
    "datasets", None, "Names, with commas; default: the paper's nine."
)
SOURCE = flags.DEFINE_string(
    "source", None, "One's own labelled images, in place of --datasets."
)
METRIC = flags.DEFINE_enum(
    "metric",
    "top1",
    ["top1", "mean_per_class"],
    "Of --source; the nine sets have theirs.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "For tfds: sources; default: the pre-training's."
)
GRID = flags.DEFINE_integer(
    "grid",
    45,
    "How many strengths of the regulariser are tried, from 1e-6 to 1e5.",
    lower_bound=1,
)
MAX_ITERATIONS = flags.DEFINE_integer(
    "max_iterations", 1000, "Of L-BFGS, for each.", lower_bound=1
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Which training images choose, where a set has no validation split.",
    lower_bound=0,
)


def main():
    import tensorflow as tf

    from ressl_tf.evaluation import results

    # Missing and damaged files: TensorFlow's errors are no OSErrors.
    unreadable = (ValueError, OSError, tf.errors.OpError)
    chosen = _data_sets()
    encoder = command.open_encoder()
    plan = {
        "encoder": encoder.fingerprint(),
        "grid": GRID.value,
        "max_iterations": MAX_ITERATIONS.value,
        "seed": SEED.value,
    }
    earlier = encoder.read("transfer", plan)
    measured = earlier["data_sets"] if earlier else {}
    failed = []
    for name, data_set in chosen.items():
        # Of --source the metric is not in the name.
        if measured.get(name, {}).get("metric") != data_set.metric:
            try:
                measured[name] = _measure(encoder, data_set)
            except unreadable as error:
                message = " ".join(str(error).split())
                command.logger.warning("%s: %s", name, message)
                failed.append(name)
                continue
            rows = [
                results.Row(f"{key}, {x['metric']}", 100 * x["accuracy"])
                for key, x in measured.items()
            ]
            encoder.write(
                "transfer", {**plan, "data_sets": measured}, rows, "Transfer"
            )
        found = measured[name]
        print(f"{name}: {100 * found['accuracy']:.2f} % ({found['metric']})")
        sys.stdout.flush()
    if failed:
        command.fail(f"Not measured: {', '.join(failed)}", code=1)


def _data_sets():
    """{name: `DataSet`} that the flags name."""
    from ressl_tf.evaluation import transfer

    if SOURCE.value is not None:
        if DATASETS.value is not None:
            raise ValueError(
                "`--source` must not be given with --datasets. "
                f"Received: --source={SOURCE.value}"
            )
        return {SOURCE.value: transfer.DataSet(SOURCE.value, METRIC.value)}
    names = DATASETS.value or list(transfer.DATA_SETS)
    unknown = [name for name in names if name not in transfer.DATA_SETS]
    if unknown:
        raise ValueError(
            f"`--datasets` must be of {', '.join(transfer.DATA_SETS)}. "
            f"Received: --datasets={','.join(unknown)}"
        )
    return {name: transfer.DATA_SETS[name] for name in names}


def _measure(encoder, data_set):
    import numpy as np

    from ressl_tf import data
    from ressl_tf.evaluation import feature_cache
    from ressl_tf.evaluation import transfer

    def read(split):
        """Features of a split, and the names of its classes."""
        reader = data.open_reader(
            data_set.source,
            split,
            image_size=encoder.image_size,
            data_dir=DATA_DIR.value or encoder.data_dir,
            # Food-101 has 11 GB of pixels at 224.
            stream=data_set.source.startswith(("tfds:", "folder:")),
        )
        data.check_labelled(reader)
        found = feature_cache.cached_streamed_features(
            encoder, reader, progress=True
        )
        return transfer.Split(*found), reader.class_names

    train, class_names = read(data_set.train)
    if data_set.validation is None:
        kept, held_out = transfer.split_off(train.labels, seed=SEED.value)
        train, validation = (
            transfer.Split(train.features[rows], train.labels[rows])
            for rows in (kept, held_out)
        )
    else:
        validation, _ = read(data_set.validation)
    test, _ = read(data_set.test)
    result = transfer.transfer(
        train,
        validation,
        test,
        num_classes=len(class_names),
        metric=data_set.metric,
        l2_grid=np.logspace(-6, 5, GRID.value).tolist(),
        max_iterations=MAX_ITERATIONS.value,
        progress=True,
    )
    counts = {
        f"{key}_images": len(split.labels)
        for key, split in (
            ("train", train),
            ("validation", validation),
            ("test", test),
        )
    }
    return {"metric": data_set.metric, **counts, **result}


if __name__ == "__main__":
    command.run(main)
