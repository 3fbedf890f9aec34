"""Embeddings on disk: FILE.npy with FILE.paths.txt, or FILE.parquet."""

from pathlib import Path

import numpy as np

from ressl_tf import workdir as workdir_lib
from ressl_tf.embedding import listing


def check_output(output, files=()):
    """Checks where embeddings are to be written.

    Args:
        output: path.
        files: `ImageFile`s that it is to hold.

    Returns:
        `output` as a `Path`.

    Raises:
        ValueError: for another suffix, a folder, .parquet without pyarrow, or
            a path that cannot be a line of a file.
    """
    output = Path(output)
    if output.suffix not in (".npy", ".parquet"):
        raise ValueError(
            f"`output` must end in .npy or .parquet. Received: output={output}"
        )
    if output.is_dir():
        raise ValueError(
            "`output` must be a file, or nothing yet. "
            f"Received: output={output}, which is a folder"
        )
    if output.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "`output` can end in .parquet where pyarrow is installed "
                f"(pip install pyarrow). Received: output={output}"
            ) from error
    if output.suffix == ".npy":
        for file in files:
            if len(file.path.splitlines()) > 1 or file.path.endswith("\n"):
                raise ValueError(
                    "`output` must end in .parquet where a path has a line "
                    f"break. Received: {file.path!r}"
                )
    return output


def write(output, paths, arrays):
    """Writes embeddings; the output appears when it is complete.

    Args:
        output: as `check_output` returns it.
        paths: of the N image files, in the order of the rows.
        arrays: float32 arrays (n, C), together N rows.

    Returns:
        (N, C).
    """
    write_kind = {".npy": _write_npy, ".parquet": _write_parquet}
    return write_kind[output.suffix](output, paths, arrays)


def _write_npy(output, paths, arrays):
    texts = output.with_name(f"{output.stem}.paths.txt")
    # Both are complete before the first is replaced.
    with (
        workdir_lib.replaced(output) as temporary,
        workdir_lib.replaced(texts) as temporary_texts,
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

    schema = pa.schema(
        [("path", pa.string()), ("embedding", pa.list_(pa.float32()))]
    )
    start = 0
    with (
        workdir_lib.replaced(output) as temporary,
        parquet.ParquetWriter(str(temporary), schema) as writer,
    ):
        for rows in _of_one_length(arrays):
            stop = start + len(rows)
            ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
            columns = [
                pa.array([listing.shown(path) for path in paths[start:stop]]),
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
                "A server must have served one model to the end, by its "
                "version: remove the folder OUTPUT.parts. Received: "
                f"embeddings of {length} and of {rows.shape[1]} numbers"
            )
        yield rows
