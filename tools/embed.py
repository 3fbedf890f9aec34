"""Embeddings of images, by a model here or by TensorFlow Serving.

    python -m tools.embed --model=DIR/export/encoder --images=FOLDER \\
        --output=embeddings.npy
    python -m tools.embed --server=http://HOST:8501 --images=FOLDER,FILE.jpg \\
        --output=embeddings.parquet
    python -m tools.embed --server=grpc://HOST:8500 --name=encoder ...

The same command goes on where it was stopped. Images that cannot be read are
named and left out. See docs/embedding.md.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
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


class ImageFile(NamedTuple):
    """An image file as it was when it was listed.

    Attributes:
        path: text, as the user named it or its folder.
        size: in bytes.
        modified: nanoseconds.
    """

    path: str
    size: int
    modified: int


def main():
    from ressl_tf.export import clients

    try:
        _embed()
    except clients.ServerError as error:
        command.fail(f"{error} The same command goes on.", code=1)
    except KeyboardInterrupt:
        command.fail("Stopped; the same command goes on.", code=1)


def _embed():
    from ressl_tf import workdir

    output = _check_output(OUTPUT.value)
    _check_model_flags()
    files = list_files(IMAGES.value)
    if output.suffix == ".npy":
        _check_lines(files)
    client = _open_client()
    all_parts = output.with_name(f"{output.name}.parts")
    plan = {
        "model": client.plan,
        "images": {"number": len(files), "digest": _digest(files)},
        "part_size": PART_SIZE.value,
    }
    folder = workdir.folder_of_plan(all_parts, plan)
    parts = _embed_parts(client, files, folder)
    places = [
        start + place for start, part in parts for place in _read(part, "kept")
    ]
    if not places:
        _remove(all_parts)
        command.fail(f"None of {len(files)} images could be embedded.", code=1)
    paths = [files[place].path for place in places]
    arrays = (_read(part, "rows") for _, part in parts)
    if output.suffix == ".npy":
        shape = _write_npy(output, paths, arrays)
    else:
        shape = _write_parquet(output, paths, arrays)
    _remove(all_parts)
    print(f"{output}: {shape[0]:,} embeddings of {shape[1]:,} numbers")
    skipped = sorted(set(range(len(files))) - set(places))
    if skipped:
        print(f"{len(skipped):,} of {len(files):,} images were skipped:")
        for place in skipped:
            print(f"    {_shown(files[place].path)}")


def list_files(names):
    """The images that the user names.

    Args:
        names: of folders, searched with all that is in them, sorted; and of
            files.

    Returns:
        A list of `ImageFile`s, each path once.

    Raises:
        ValueError: if one is not there, or there is no image.
    """
    from ressl_tf.data import image_files

    def is_image(name):
        suffix = os.path.splitext(name)[1].lower()
        hidden = name.startswith(".")
        return not hidden and suffix in image_files.IMAGE_SUFFIXES

    paths = []
    for name in names:
        if not os.path.exists(name):
            raise ValueError(
                "`--images` must be folders and files, with commas. "
                f"Received: {name!r}, which is not there"
            )
        if not os.path.isdir(name):
            paths.append(name)
            continue
        found = []
        for where, folders, others in os.walk(name, followlinks=True):
            folders[:] = [x for x in folders if not x.startswith(".")]
            found += [Path(where, x) for x in others if is_image(x)]
        paths += map(str, sorted(found))
    if not paths:
        raise ValueError(
            "`--images` must hold images "
            f"({' '.join(sorted(image_files.IMAGE_SUFFIXES))}). "
            f"Received: --images={','.join(names)}"
        )
    files = []
    for path in dict.fromkeys(paths):
        try:
            status = os.stat(path)
            about = status.st_size, status.st_mtime_ns
        except OSError:  # a link to nowhere: named where it is to be read
            about = -1, 0
        files.append(ImageFile(path, *about))
    return files


def _check_output(output):
    output = Path(output)
    if output.suffix not in (".npy", ".parquet"):
        raise ValueError(
            "`--output` must end in .npy or .parquet. "
            f"Received: --output={output}"
        )
    if output.is_dir():
        raise ValueError(
            "`--output` must be a file, or nothing yet. "
            f"Received: --output={output}, which is a folder"
        )
    if output.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "`--output` can end in .parquet where pyarrow is installed "
                f"(pip install pyarrow). Received: --output={output}"
            ) from error
    return output


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


def _check_lines(files):
    """Raises ValueError if paths cannot be the lines of a file."""
    for file in files:
        if len(file.path.splitlines()) > 1 or file.path.endswith("\n"):
            raise ValueError(
                "`--output` must end in .parquet where a path has a line "
                f"break. Received: {file.path!r}"
            )


def _open_client():
    from ressl_tf.export import clients

    if MODEL.value is not None:
        return clients.LocalClient(
            MODEL.value,
            flags.FLAGS.branch,
            output_name=OUTPUT_NAME.value,
            shorter_side=SHORTER_SIDE.value,
        )
    return clients.connect(
        SERVER.value,
        NAME.value or "encoder",
        VERSION.value,
        output_name=OUTPUT_NAME.value,
        timeout=TIMEOUT.value,
        retries=RETRIES.value,
    )


def _digest(files):
    digest = hashlib.sha256()
    for file in files:
        digest.update(json.dumps(file).encode() + b"\n")
    return digest.hexdigest()


def _embed_parts(client, files, folder):
    """Embeds the parts that are not there yet.

    Returns:
        [(place of its first image, path)] of all parts.
    """
    import tqdm

    parts = [
        (start, folder / f"{number:06}.npz")
        for number, start in enumerate(range(0, len(files), PART_SIZE.value))
    ]
    missing = [(start, path) for start, path in parts if not _is_whole(path)]
    to_do = sum(
        len(files[start : start + PART_SIZE.value]) for start, _ in missing
    )
    if len(missing) < len(parts):
        command.logger.info(
            "going on: %d of %d images are done", len(files) - to_do, len(files)
        )
    with tqdm.tqdm(
        desc="embeddings",
        total=len(files),
        initial=len(files) - to_do,
        unit="image",
        disable=None,  # Unless stderr is a terminal.
        leave=False,
    ) as bar:
        for start, path in missing:
            part = files[start : start + PART_SIZE.value]
            _write_part(path, *_embed_part(client, part, bar))
    return parts


def _embed_part(client, files, bar):
    """(float32 (M, C), places of the M in `files`)."""
    from ressl_tf.export import clients

    arrays, kept = [], []
    for start in range(0, len(files), BATCH_SIZE.value):
        batch = files[start : start + BATCH_SIZE.value]
        contents, reasons = {}, {}
        for place, file in enumerate(batch):
            try:
                contents[place] = Path(file.path).read_bytes()
            except OSError as error:
                reasons[place] = f" ({error.strerror})"
        rows, readable = clients.embed_readable(client, [*contents.values()])
        places = [list(contents)[index] for index in readable]
        for place, file in enumerate(batch):
            if place not in places:
                command.logger.warning(
                    "Skipped: %s cannot be read%s",
                    _shown(file.path),
                    reasons.get(place, ""),
                )
        if places:
            arrays.append(rows)
            kept += [start + place for place in places]
        bar.update(len(batch))
    if not arrays:
        return np.zeros((0, 0), np.float32), kept
    return np.concatenate(arrays), kept


def _write_part(path, rows, kept):
    from ressl_tf import workdir

    with workdir.replaced(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, rows=rows, kept=np.array(kept, np.int64))


def _read(path, name):
    """`rows` or `kept` of a part."""
    with np.load(path) as part:
        return part[name]


def _is_whole(path):
    try:
        with np.load(path) as part:
            return set(part.files) == {"rows", "kept"}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False  # not there, or cut off by a machine that failed


def _write_npy(output, paths, arrays):
    from ressl_tf import workdir

    texts = output.with_name(f"{output.stem}.paths.txt")
    # Both are complete before the first is replaced.
    with (
        workdir.replaced(output) as temporary,
        workdir.replaced(texts) as temporary_texts,
        open(temporary, "wb") as file,
    ):
        with open(
            temporary_texts, "w", encoding="utf-8", errors="surrogateescape"
        ) as lines:
            lines.writelines(f"{path}\n" for path in paths)
        shape = None
        for rows in _of_one_length(arrays):
            if shape is None:
                shape = len(paths), rows.shape[1]
                header = {
                    "descr": np.lib.format.dtype_to_descr(rows.dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
            file.write(rows.tobytes())
    return shape


def _write_parquet(output, paths, arrays):
    import pyarrow as pa
    from pyarrow import parquet

    from ressl_tf import workdir

    schema = pa.schema(
        [("path", pa.string()), ("embedding", pa.list_(pa.float32()))]
    )
    start = 0
    with (
        workdir.replaced(output) as temporary,
        parquet.ParquetWriter(str(temporary), schema) as writer,
    ):
        for rows in _of_one_length(arrays):
            stop = start + len(rows)
            ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
            columns = [
                pa.array([_shown(path) for path in paths[start:stop]]),
                pa.ListArray.from_arrays(ends, rows.reshape(-1)),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            start = stop
    return start, rows.shape[1]


def _of_one_length(arrays):
    """The arrays that have rows; each has as many columns."""
    length = None
    for rows in arrays:
        if not len(rows):
            continue
        length = length or rows.shape[1]
        if rows.shape[1] != length:
            raise ValueError(
                "`--server` must serve one model to the end, and name its "
                "version: remove the folder OUTPUT.parts. Received: "
                f"embeddings of {length} and of {rows.shape[1]} numbers"
            )
        yield rows


def _shown(path):
    """A path as text, whatever bytes it has."""
    return os.fsencode(path).decode(errors="replace")


def _remove(all_parts):
    """Removes the parts, of other plans too: what is of ours there."""
    for folder in all_parts.iterdir():
        if (folder / "plan.json").is_file():
            shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # something is left
        all_parts.rmdir()


if __name__ == "__main__":
    command.run(main)
