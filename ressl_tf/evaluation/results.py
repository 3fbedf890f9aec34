"""How numbers are written: JSON for programs, a table beside the paper's."""

from pathlib import Path
from typing import NamedTuple

from ressl_tf import workdir as workdir_lib


class Row(NamedTuple):
    """One measured number beside the paper's.

    Attributes:
        what: in words.
        measured: in %.
        paper: the paper's in %, words, or None where it is not known.
        deviation: standard deviation of `measured`; None for a single number.
    """

    what: str
    measured: float
    paper: float | str | None = None
    deviation: float | None = None


def write(folder, name, result, rows=(), title=""):
    """Writes FOLDER/NAME.json and, with rows, FOLDER/NAME.md.

    Args:
        folder: path; made if it is missing.
        name: of the files.
        result: what JSON can hold.
        rows: of `Row`.
        title: of the table.
    """
    folder = Path(folder)
    workdir_lib.write_json(folder / f"{name}.json", result)
    if rows:
        with workdir_lib.replaced(folder / f"{name}.md") as temporary:
            temporary.write_text(to_markdown(title, rows))


def to_markdown(title, rows):
    """A heading and a table of `Row`s.

    Returns:
        Text, with a line's end at its end.
    """
    lines = []
    for row in rows:
        measured = f"{row.measured:.2f}"
        if row.deviation is not None:
            measured += f" ± {row.deviation:.2f}"
        lines.append([row.what, measured, paper_text(row.paper)])
    return f"# {title}\n\n" + markdown_table(
        ["%", "measured", "the paper"], lines
    )


def markdown_table(header, lines):
    """Cells as a Markdown table.

    Args:
        header: list of words.
        lines: lists of as many cells, turned into text.
    """
    lines = [header, ["---"] * len(header), *lines]
    return "".join(
        "| " + " | ".join(str(cell) for cell in cells) + " |\n"
        for cells in lines
    )


def paper_text(number):
    """The paper's number in words: 90.76, chance or, not known, -."""
    if number is None:
        return "-"
    return number if isinstance(number, str) else f"{number:.2f}"
