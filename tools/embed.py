"""Embeddings of images, by a model here or by TensorFlow Serving.

    python -m tools.embed --model=DIR/export/encoder --images=FOLDER \\
        --output=embeddings.npy
    python -m tools.embed --server=http://HOST:8501 --images=FOLDER,FILE.jpg \\
        --output=embeddings.parquet
    python -m tools.embed --server=grpc://HOST:8500 --name=encoder ...

The same command goes on where it was stopped. Images that cannot be read are
named and left out. See docs/embedding.md.
"""

from absl import flags

from tools import command

MODEL = flags.DEFINE_string(
    "model",
    None,
    "An export (DIR/export/NAME); or the folder of a run; or a .keras file.",
)
SERVER = flags.DEFINE_string(
    "server",
    None,
    "In place of --model, TensorFlow Serving: http://HOST:8501 for REST, "
    "grpc://HOST:8500 for gRPC.",
)
NAME = flags.DEFINE_string(
    "name", None, "With --server: of the model; default: encoder."
)
VERSION = flags.DEFINE_integer(
    "version",
    None,
    "With --server: of the model; default: the newest at the start.",
    lower_bound=0,
)
IMAGES = flags.DEFINE_list(
    "images",
    None,
    "Folders, searched with all that is in them, and files, with commas.",
    required=True,
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "FILE.npy, with the paths in FILE.paths.txt; or FILE.parquet.",
    required=True,
)
OUTPUT_NAME = flags.DEFINE_enum(
    "output_name",
    "embedding",
    ["embedding", "projection"],
    "What to keep of the model; projection: of exports with --projection.",
)
command.define_branch_flag()
SHORTER_SIDE = flags.DEFINE_integer(
    "shorter_side",
    None,
    "Of a run or a .keras file: images are resized to it before their centre "
    "is cut out; default: the encoder's size. Exports have their own.",
    lower_bound=1,
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Images of a request.", lower_bound=1
)
PART_SIZE = flags.DEFINE_integer(
    "part_size",
    4096,
    "After how many images they are kept for a later start.",
    lower_bound=1,
    upper_bound=65536,
)
TIMEOUT = flags.DEFINE_float(
    "timeout", 60.0, "With --server: of a request, in seconds.", lower_bound=0.1
)
RETRIES = flags.DEFINE_integer(
    "retries",
    5,
    "With --server: how often a request is sent again that nobody answers.",
    lower_bound=0,
)


def main():
    from ressl_tf import embedding

    _check_model_flags()
    try:
        files = embedding.list_files(IMAGES.value)
        # Before a model is opened, which takes a while.
        embedding.check_output(OUTPUT.value, files)
        found = embedding.embed_files(
            _open_client(),
            files,
            OUTPUT.value,
            batch_size=BATCH_SIZE.value,
            part_size=PART_SIZE.value,
            progress=True,
        )
    except embedding.ServerError as error:
        command.fail(f"{error} The same command goes on.", code=1)
    except KeyboardInterrupt:
        command.fail("Stopped; the same command goes on.", code=1)
    if not found.shape[0]:
        command.fail(f"None of {len(files)} images could be embedded.", code=1)
    rows, columns = found.shape
    print(f"{OUTPUT.value}: {rows:,} embeddings of {columns:,} numbers")
    if found.skipped:
        print(f"{len(found.skipped):,} of {len(files):,} images were skipped:")
        for path in found.skipped:
            print(f"    {embedding.shown(path)}")


def _check_model_flags():
    if (MODEL.value is None) == (SERVER.value is None):
        raise ValueError(
            "`--model` or `--server` must be given, and not both. Received: "
            f"--model={MODEL.value}, --server={SERVER.value}"
        )
    if SERVER.value is None:
        needed, others = "--server", (NAME, VERSION)
    else:
        needed, others = (
            "--model",
            (flags.FLAGS["branch"], SHORTER_SIDE),
        )
    for flag in others:
        if flag.value is not None:
            raise ValueError(
                f"`--{flag.name}` must be given with {needed} alone. "
                f"Received: --{flag.name}={flag.value}"
            )


def _open_client():
    from ressl_tf import embedding

    if MODEL.value is not None:
        return embedding.LocalClient(
            MODEL.value,
            flags.FLAGS.branch,
            output_name=OUTPUT_NAME.value,
            shorter_side=SHORTER_SIDE.value,
        )
    return embedding.connect(
        SERVER.value,
        NAME.value or "encoder",
        VERSION.value,
        output_name=OUTPUT_NAME.value,
        timeout=TIMEOUT.value,
        retries=RETRIES.value,
    )


if __name__ == "__main__":
    command.run(main)
