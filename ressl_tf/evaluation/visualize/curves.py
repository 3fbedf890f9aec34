"""The curves of a training."""

import math

import numpy as np

from ressl_tf.evaluation.visualize.figures import DPI
from ressl_tf.evaluation.visualize.figures import FAINT_COLOR
from ressl_tf.evaluation.visualize.figures import TEXT_COLOR
from ressl_tf.evaluation.visualize.figures import write_png

_LINE_COLORS = ("#1f4e9c", "#d9772b", "#3f8f5b")

# Schedules: exact values, which a running mean would only blur.
_SCHEDULES = ("Learning rate", "Teacher momentum", "Weight of relation (alpha)")

# One panel per tuple: title, keys of metrics.jsonl with their legend.
_PANELS = (
    (
        "Loss",
        (("loss", "total"), ("relation", "relation"), ("info_nce", "InfoNCE")),
    ),
    (
        "Entropy of the similarities (nats)",
        (("target_entropy", "teacher"), ("student_entropy", "student")),
    ),
    ("k-NN accuracy", (("knn_accuracy", "k-NN"),)),
    ("Deviation of the embeddings", (("embedding_std", "embeddings"),)),
    ("Student and teacher agree", (("agreement", "agreement"),)),
    ("Learning rate", (("learning_rate", "learning rate"),)),
    ("Teacher momentum", (("teacher_momentum", "momentum"),)),
    ("Weight of relation (alpha)", (("alpha", "alpha"),)),
    ("Images per second", (("images_per_second", "images/s"),)),
)


def plot_curves(path, metrics_rows, *, title=None):
    """Draws the curves of a training as small panels in one picture.

    Args:
        path: Where to write the PNG; missing folders are made.
        metrics_rows: Dictionaries, the lines of a `metrics.jsonl`. Known keys:
            step, epoch, loss, relation, info_nce, alpha, learning_rate,
            teacher_momentum, target_entropy, student_entropy, embedding_std,
            agreement, images_per_second and knn_accuracy (0 to 1). Any may be
            missing, in one row or in all; a key that no row has gets no panel.
            From 200 points on, noisy curves have their running mean on top.
            Of two rows with the same step, as a resumed run may write, the
            later one counts.
        title: Text above the picture. Defaults to `None`.

    Returns:
        `path`.

    Raises:
        ValueError: If no row has any of the known keys.
    """
    from matplotlib.figure import Figure

    metrics_rows = list(metrics_rows)
    x_key = "row"
    for key in ("step", "epoch"):
        if any(row.get(key) is not None for row in metrics_rows):
            x_key = key
            break
    panels = []
    for panel_title, keys in _PANELS:
        lines = [
            (name, color, *_curve(metrics_rows, x_key, key))
            for (key, name), color in zip(keys, _LINE_COLORS, strict=False)
        ]
        lines = [line for line in lines if len(line[2])]
        if lines:
            panels.append((panel_title, lines))
    if not panels:
        raise ValueError(
            "`metrics_rows` should hold at least one row with a known key, "
            "such as `loss`; pass the rows of a metrics.jsonl. Received: "
            f"{len(metrics_rows)} rows with the keys "
            f"{sorted({key for row in metrics_rows for key in row})}"
        )
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(
        figsize=(14.0, 3.0 * rows + (0.6 if title else 0.1)),
        dpi=DPI,
        layout="constrained",
        facecolor="white",
    )
    figure.get_layout_engine().set(
        w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.04
    )
    if title is not None:
        figure.suptitle(title, fontsize=15, fontweight="bold", color=TEXT_COLOR)
    last = max(line[2][-1] for _, lines in panels for line in lines)
    first = min(line[2][0] for _, lines in panels for line in lines)
    for number, (panel_title, lines) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_panel(axes, panel_title, lines)
        if last > first:
            # The same range everywhere, so that panels compare by eye.
            margin = 0.02 * (last - first)
            axes.set_xlim(first - margin, last + margin)
        if number >= len(panels) - columns:
            axes.set_xlabel(x_key, fontsize=10, color=FAINT_COLOR)
    write_png(figure, path)
    return path


def _curve(metrics_rows, x_key, key):
    """Returns the sorted x values of `key` and its values, two arrays."""
    points = {}
    for number, row in enumerate(metrics_rows):
        x = number if x_key == "row" else row.get(x_key)
        if x is not None and row.get(key) is not None:
            points[float(x)] = float(row[key])
    x_values = np.array(sorted(points))
    return x_values, np.array([points[x] for x in x_values])


def _running_mean(values, half_width):
    """Centred mean over the finite values, shorter windows at both ends."""
    window = np.ones(2 * half_width + 1)
    is_finite = np.isfinite(values)
    total = np.convolve(np.where(is_finite, values, 0.0), window, "full")
    count = np.convolve(is_finite.astype(float), window, "full")
    inner = slice(half_width, half_width + len(values))
    mean = np.full(len(values), np.nan)
    # Where the value itself is missing the curve keeps its hole.
    np.divide(total[inner], count[inner], out=mean, where=is_finite)
    return mean


def _draw_panel(axes, title, lines):
    from matplotlib.ticker import MaxNLocator

    axes.set_title(
        title,
        fontsize=11,
        fontweight="bold",
        color=TEXT_COLOR,
        loc="left",
    )
    for number, (name, color, x_values, values) in enumerate(lines):
        is_long = len(x_values) >= 200 and title not in _SCHEDULES
        # The total loss is a broad band below the others: as a line it would
        # hide the relation loss, which it equals once alpha is 1.
        is_band = title == "Loss" and number == 0 and len(lines) > 1
        if is_long:
            axes.plot(x_values, values, color=color, linewidth=0.6, alpha=0.3)
        axes.plot(
            x_values,
            _running_mean(values, len(values) // 50) if is_long else values,
            color=color,
            linewidth=4.5 if is_band else 1.6,
            alpha=0.4 if is_band else 1.0,
            marker="o" if len(x_values) <= 30 else None,
            markersize=3.5,
            label=name,
        )
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")
    axes.tick_params(labelsize=9, colors=FAINT_COLOR)
    # An offset such as "+9.9e-1" beside the axis is easily overlooked.
    axes.ticklabel_format(axis="both", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=TEXT_COLOR)
