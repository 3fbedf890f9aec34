"""Pictures of what one or several checkpoints have learnt, side by side.

    python -m tools.visualize --workdir=DIR
    python -m tools.visualize --workdir=DIR_A,DIR_B --output=FOLDER

tsne.png: embeddings of test images in the plane, coloured by class, and k-NN
accuracies. neighbours.png: test images and their nearest training images,
those of another class in red. curves.png: the curves of metrics.jsonl. Images
without labels give the first two without colours and frames. See
docs/evaluation.md.
"""

from pathlib import Path

from absl import flags

from tools import command

PICTURES = ("tsne", "neighbours", "curves")

WORKDIR = flags.DEFINE_list(
    "workdir",
    None,
    "Folders of runs; or exports (DIR/export/NAME); or .keras files; with "
    "commas.",
    required=True,
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder of the pictures; default: DIR/eval of a single checkpoint.",
)
WANTED = flags.DEFINE_list(
    "pictures",
    None,
    f"Any of {','.join(PICTURES)}; default: all that are possible.",
)
LABELS = flags.DEFINE_list(
    "labels",
    None,
    "Names of the checkpoints in the pictures; default: of their folders.",
)
command.define_branch_flag()
command.define_source_flags("Images")
NUM_IMAGES = flags.DEFINE_integer(
    "num_images",
    2000,
    "Of tsne, at most; drawn evenly over the classes.",
    lower_bound=5,
)
NUM_QUERIES = flags.DEFINE_integer(
    "num_queries", 10, "Of neighbours, at most.", lower_bound=1
)
NUM_NEIGHBOURS = flags.DEFINE_integer(
    "num_neighbours", 8, "Of each query.", lower_bound=1, upper_bound=20
)
SEED = flags.DEFINE_integer(
    "seed", 0, "Of which images, and of tsne.", lower_bound=0
)


def main():
    paths = _paths()
    output = _output(paths)
    wanted = _wanted(paths)
    written = []
    if {"tsne", "neighbours"} & set(wanted):
        written += _draw_encoders(paths, output, wanted)
    if "curves" in wanted:
        written.append(_draw_curves(paths, output))
    for path in written:
        print(path)


def _paths():
    """{name in the pictures: path of a checkpoint}."""
    from ressl_tf.evaluation.visualize import gallery

    paths = [Path(path) for path in WORKDIR.value]
    names = LABELS.value or gallery.short_names(paths)
    if len(names) != len(paths) or len(set(names)) != len(names):
        raise ValueError(
            "`--labels` must be as many different names as `--workdir` has "
            f"checkpoints. Received: --workdir={','.join(WORKDIR.value)}, "
            f"with the labels {','.join(names)}"
        )
    if len(set(paths)) != len(paths):
        raise ValueError(
            "`--workdir` must be different checkpoints. "
            f"Received: --workdir={','.join(WORKDIR.value)}"
        )
    return dict(zip(names, paths, strict=True))


def _output(paths):
    from ressl_tf.evaluation import subject

    if OUTPUT.value is not None:
        output = Path(OUTPUT.value)
    elif len(paths) == 1:
        output = subject.result_folder(*paths.values())
    else:
        raise ValueError(
            "`--output` must be the folder of the pictures where there are "
            f"several checkpoints. Received: --output={OUTPUT.value}"
        )
    if output.exists() and not output.is_dir():
        raise ValueError(
            "`--output` must be a folder, or nothing yet. "
            f"Received: --output={output}, which is a file"
        )
    return output


def _wanted(paths):
    """The pictures to draw: those asked for, or those that are possible."""
    from ressl_tf import workdir

    wanted = PICTURES if WANTED.value is None else WANTED.value
    if not wanted or not set(wanted) <= set(PICTURES):
        raise ValueError(
            f"`--pictures` must be of {', '.join(PICTURES)}, with commas. "
            f"Received: --pictures={','.join(wanted)}"
        )
    without_curves = [x for x in paths.values() if not workdir.read_metrics(x)]
    if WANTED.value is not None:
        if "curves" in wanted and without_curves:
            raise ValueError(
                "`--workdir` must be runs that have logged something "
                "(metrics.jsonl), for curves. "
                f"Received: {without_curves[0]}, which has not"
            )
        return wanted
    if without_curves:
        wanted = [name for name in wanted if name != "curves"]
        command.logger.info(
            "no curves: %s has no metrics.jsonl", without_curves[0]
        )
    for path in paths.values():
        is_run = (path / "config.json").exists()
        if is_run and workdir.latest_checkpoint(path)[0] is None:
            command.logger.info("curves alone: %s has no checkpoint yet", path)
            return [name for name in wanted if name == "curves"]
    return wanted


def _draw_encoders(paths, output, wanted):
    from ressl_tf.evaluation import subject
    from ressl_tf.evaluation.visualize import gallery as gallery_lib

    encoders = {
        name: subject.open_encoder(path, flags.FLAGS.branch)
        for name, path in paths.items()
    }
    gallery = gallery_lib.open_gallery(
        encoders,
        flags.FLAGS.source,
        flags.FLAGS.data_dir,
        seed=SEED.value,
        cache=flags.FLAGS.cache_features,
        progress=True,
    )
    for name, accuracy in gallery.accuracies.items():
        print(f"{name}: k-NN accuracy {100 * accuracy:.2f} %")

    def picture(name):
        # One branch's pictures stand beside the other's, as numbers do.
        encoder = next(iter(encoders.values()))
        return output / f"{encoder.file_name(name)}.png"

    written = []
    if "tsne" in wanted:
        written.append(_draw_tsne(gallery, picture("tsne")))
    if "neighbours" in wanted:
        written.append(_draw_neighbours(gallery, picture("neighbours")))
    return written


def _draw_tsne(gallery, path):
    from ressl_tf.evaluation import visualize

    labels, count = gallery.query_labels, len(gallery.query_images)
    chosen = visualize.choose_queries(
        labels, count, min(NUM_IMAGES.value, count), SEED.value
    )
    return visualize.plot_tsne(
        path,
        {
            name: visualize.project(queries[chosen], seed=SEED.value)
            for name, (queries, _) in gallery.features.items()
        },
        None if labels is None else labels[chosen],
        class_names=gallery.class_names,
        notes={
            name: f"k-NN accuracy {100 * accuracy:.1f} %"
            for name, accuracy in gallery.accuracies.items()
        },
        title=f"t-SNE of {len(chosen)} images of {_short(gallery.source)}",
    )


def _draw_neighbours(gallery, path):
    from ressl_tf.evaluation import visualize

    return visualize.compare_neighbours(
        path,
        gallery.query_images,
        gallery.query_labels,
        gallery.bank_images,
        gallery.bank_labels,
        gallery.features,
        class_names=gallery.class_names,
        num_queries=min(NUM_QUERIES.value, len(gallery.query_images)),
        num_neighbours=min(NUM_NEIGHBOURS.value, len(gallery.bank_images)),
        seed=SEED.value,
        title=f"Nearest neighbours in {_short(gallery.source)}",
    )


def _short(source):
    """A source without the folders above it."""
    kind, _, name = source.partition(":")
    return Path(name).name if kind in ("folder", "npz") else source


def _draw_curves(paths, output):
    from ressl_tf import workdir
    from ressl_tf.evaluation import visualize

    runs = {name: workdir.read_metrics(x) for name, x in paths.items()}
    path = output / "curves.png"
    if len(runs) > 1:
        return visualize.compare_curves(path, runs)
    return visualize.plot_curves(path, *runs.values())


if __name__ == "__main__":
    command.run(main)
