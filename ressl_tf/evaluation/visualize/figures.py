"""What all pictures share: colours, resolution and how a PNG is written.

Drawn on matplotlib's own canvas, without pyplot: nothing global is touched,
no window is opened, and a training may call this from any thread.
"""

import io
import os

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
