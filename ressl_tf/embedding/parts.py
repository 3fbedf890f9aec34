"""From a list of image files to a file of embeddings, part by part.

Parts are kept beside the output until it is complete, so that the same call
goes on where another was ended, however it was.
"""

import contextlib
import logging
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm

from ressl_tf import workdir as workdir_lib
from ressl_tf.embedding import listing
from ressl_tf.embedding import output as output_lib
from ressl_tf.embedding.batch import embed_readable

logger = logging.getLogger("ressl_tf")


class Embedded(NamedTuple):
    """What `embed_files` has done.

    Attributes:
        shape: (N, C) of the embeddings; (0, 0) if no file is readable, and
            then there is no output.
        skipped: list of the paths that are not readable.
    """

    shape: tuple
    skipped: list


def embed_files(
    client, files, output, *, batch_size=32, part_size=4096, progress=False
):
    """Embeds image files, and writes what they give.

    Another model, list of files or part size begins anew. Files that cannot be
    read are named and left out.

    Args:
        client: `LocalClient` or `ServerClient`.
        files: list of `ImageFile`s.
        output: path that ends in .npy or .parquet; see `output`.
        batch_size: images of a call of the client.
        part_size: images of a part.
        progress: whether to show a progress bar. Defaults to `False`.

    Returns:
        An `Embedded`.

    Raises:
        ValueError: if `output` is not such a path, or as the client.
        ServerError: as the client.
    """
    output = output_lib.check_output(output, files)
    all_parts = output.with_name(f"{output.name}.parts")
    plan = {
        "model": client.plan,
        "images": {"number": len(files), "digest": listing.digest_of(files)},
        "part_size": part_size,
    }
    folder = workdir_lib.folder_of_plan(all_parts, plan)
    parts = _embed_parts(client, files, folder, batch_size, part_size, progress)
    places = [
        start + place for start, part in parts for place in _read(part, "kept")
    ]
    shape = (0, 0)
    if places:
        paths = [files[place].path for place in places]
        arrays = (_read(part, "rows") for _, part in parts)
        shape = output_lib.write(output, paths, arrays)
    _remove(all_parts)
    skipped = sorted(set(range(len(files))) - set(places))
    return Embedded(shape, [files[place].path for place in skipped])


def _embed_parts(client, files, folder, batch_size, part_size, progress):
    """Embeds the parts that are not there yet.

    Returns:
        [(place of its first image, path)] of all parts.
    """
    parts = [
        (start, folder / f"{number:06}.npz")
        for number, start in enumerate(range(0, len(files), part_size))
    ]
    missing = [(start, path) for start, path in parts if not _is_whole(path)]
    to_do = sum(len(files[start : start + part_size]) for start, _ in missing)
    if len(missing) < len(parts):
        logger.info(
            "going on: %d of %d images are done", len(files) - to_do, len(files)
        )
    with tqdm.tqdm(
        desc="embeddings",
        total=len(files),
        initial=len(files) - to_do,
        unit="image",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for start, path in missing:
            part = files[start : start + part_size]
            _write_part(path, *_embed_part(client, part, batch_size, bar))
    return parts


def _embed_part(client, files, batch_size, bar):
    """(float32 (M, C), places of the M in `files`)."""
    arrays, kept = [], []
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        contents, reasons = {}, {}
        for place, file in enumerate(batch):
            try:
                contents[place] = Path(file.path).read_bytes()
            except OSError as error:
                reasons[place] = f" ({error.strerror})"
        rows, readable = embed_readable(client, [*contents.values()])
        places = [list(contents)[index] for index in readable]
        for place, file in enumerate(batch):
            if place not in places:
                logger.warning(
                    "Skipped: %s cannot be read%s",
                    listing.shown(file.path),
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
    with workdir_lib.replaced(path) as temporary, open(temporary, "wb") as file:
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


def _remove(all_parts):
    """Removes the parts, of other plans too: what is of ours there."""
    for folder in all_parts.iterdir():
        if (folder / "plan.json").is_file():
            shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # something is left
        all_parts.rmdir()
