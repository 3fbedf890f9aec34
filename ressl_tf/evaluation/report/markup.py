"""Text as HTML: everything that is not markup of ours is escaped here."""

import base64
import html
import io

from ressl_tf.evaluation.report.tables import Table

MAX_PICTURE_BYTES = 2_000_000
_LONG = 48  # letters of a cell that may break its line

escape = html.escape


def section(name, heading, body):
    """A section with a heading, which `#name` points to."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-heading">\n'
        f'<h2 id="{name}-heading">{escape(heading)}</h2>\n{body}\n</section>'
    )


def sentence(text):
    """Text in which what stands between backticks is code."""
    parts = [escape(part) for part in text.split("`")]
    parts[1::2] = [f"<code>{part}</code>" for part in parts[1::2]]
    return "".join(parts)


def paragraph(text, kind=""):
    """A paragraph of a `sentence`; `kind` is its class."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{sentence(text)}</p>"


def table(content, label):
    """A `Table`, in a box of its own that scrolls if it is too wide.

    Args:
        content: `Table`.
        label: what it holds, for who cannot see it.
    """
    lines = [
        # Who has no mouse scrolls it, too.
        f'<div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(label)}">',
        "<table>",
    ]
    if content.header:
        corner, *names = content.header
        first = (
            f'<th scope="col">{escape(corner)}</th>' if corner else "<td></td>"
        )
        lines.append(
            f"<thead><tr>{first}"
            + "".join(f'<th scope="col">{escape(x)}</th>' for x in names)
            + "</tr></thead>"
        )
    lines.append("<tbody>")
    for name, *cells in content.rows:
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(map(_cell, cells))
            + "</tr>"
        )
    return "\n".join([*lines, "</tbody>", "</table>", "</div>"])


def pairs(values, label):
    """A table of names and values from a dictionary of text."""
    rows = [[name, value] for name, value in values.items()]
    return table(Table((), rows), label)


def details(summary, body):
    """What opens with a click."""
    return (
        f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"
    )


def card(body, heading=None, is_wide=False):
    """A box, with a heading of the third level."""
    title = f"<h3>{escape(heading)}</h3>\n" if heading else ""
    kind = "card wide" if is_wide else "card"
    return f'<div class="{kind}">\n{title}{body}\n</div>'


def code(text):
    """A command to copy, whose lines break between its words."""
    words = " ".join(f"<span>{escape(word)}</span>" for word in text.split(" "))
    return f"<pre><code>{words}</code></pre>"


def drawing(svg, description):
    """An <svg> element of `figures.to_svg`, on white whatever the page is.

    Args:
        svg: text.
        description: of what it shows, for who cannot see it.
    """
    label = f'<svg role="img" aria-label="{escape(description)}"'
    return svg.replace("<svg", label, 1)


def picture(path, description):
    """An image's file as an <img> that holds its bytes.

    Args:
        path: of a PNG. One of more than `MAX_PICTURE_BYTES` is made smaller.
        description: of what it shows, for who cannot see it.

    Returns:
        (HTML, note in words or "").

    Raises:
        ValueError: if it is not an image that can be read.
    """
    from PIL import Image

    data, note = path.read_bytes(), ""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            width, height = image.size
            kind = image.format.lower()
            while len(data) > MAX_PICTURE_BYTES:
                # Bytes go with the area; a little less, to be done at once.
                scale = 0.95 * (MAX_PICTURE_BYTES / len(data)) ** 0.5
                smaller = [max(1, int(scale * side)) for side in image.size]
                image = image.resize(smaller, Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                image.save(buffer, "PNG", optimize=True)
                data, kind = buffer.getvalue(), "png"
                note = (
                    f"Reduced to {image.width} x {image.height} pixels from "
                    f"{width} x {height}."
                )
            width, height = image.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"`path` must be an image. Received: path={str(path)!r} ({error})"
        ) from error
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<img src="{source}" width="{width}" height="{height}" '
        f'alt="{escape(description)}">'
    ), note


def _cell(text):
    kind = ' class="long"' if len(text) > _LONG else ""
    return f"<td{kind}>{escape(text)}</td>"
