"""What all pictures share: colours, resolution and how a PNG is written.

Drawn on matplotlib's own canvas, without pyplot: nothing global is touched,
no window is opened, and a training may call this from any thread.
"""

import io
import os
import re

import tensorflow as tf

DPI = 100
TEXT_COLOR = "#333333"
FAINT_COLOR = "#777777"


def make_figure(width, height):
    """Returns an empty matplotlib Figure of that many pixels."""
    from matplotlib.figure import Figure

    return Figure(
        figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white"
    )


def write_text(figure, x, y, text, **style):
    """Writes text at a place in pixels from the top left.

    Args:
        figure: matplotlib Figure.
        x: of the text's middle, or as `ha` says.
        y: of its middle, or as `va` says.
        text: string.
        **style: arguments of matplotlib's Text.
    """
    style = {"ha": "center", "va": "center", "color": TEXT_COLOR, **style}
    width, height = figure.bbox.size
    figure.text(x / width, 1.0 - y / height, text, **style)


def write_png(figure, path):
    """Writes a matplotlib Figure; missing folders are made."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    folder = os.path.dirname(os.fspath(path))
    if folder:
        tf.io.gfile.makedirs(folder)
    # tf.io.gfile: a working directory may lie in a cloud bucket.
    with tf.io.gfile.GFile(os.fspath(path), "wb") as file:
        file.write(picture.getvalue())


def to_svg(figure, name):
    """A matplotlib Figure as an <svg> element, to stand in an HTML page.

    Text stays text, in whatever of matplotlib's fonts the reader has.

    Args:
        figure: matplotlib Figure.
        name: letters that no other picture of the page has: ids begin so.

    Returns:
        Text.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    picture = io.StringIO()
    # The salt makes the same figure the same text.
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "ressl_tf"}
    ):
        FigureCanvasSVG(figure).print_svg(
            picture,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    text = picture.getvalue()
    return re.sub(
        r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :]
    )
