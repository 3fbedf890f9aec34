"""The curves of a training, or of several."""

import itertools
import math
import textwrap
from typing import NamedTuple

import numpy as np

from ressl_tf.evaluation.visualize.figures import DPI
from ressl_tf.evaluation.visualize.figures import FAINT_COLOR
from ressl_tf.evaluation.visualize.figures import TEXT_COLOR
from ressl_tf.evaluation.visualize.figures import write_png

_LINE_COLORS = ("#1f4e9c", "#d9772b", "#3f8f5b")
_RUN_COLORS = (
    *_LINE_COLORS,
    "#8a2f5b",
    "#17a2b8",
    "#8c6d31",
    "#7f6fc7",
    "#c23b3b",
)
# Of the runs that have no colour of their own any more.
_RUN_STYLES = ("-", "--", ":", "-.")

KNN_TITLE = "k-NN accuracy"

# Schedules: exact values, which a running mean would only blur.
_SCHEDULES = ("learning_rate", "teacher_momentum", "alpha")

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
    (KNN_TITLE, (("knn_accuracy", "k-NN"),)),
    ("Accuracy of the online linear probe", (("probe_accuracy", "probe"),)),
    ("Deviation of the embeddings", (("embedding_std", "embeddings"),)),
    ("Student and teacher agree", (("agreement", "agreement"),)),
    ("Learning rate", (("learning_rate", "learning rate"),)),
    ("Teacher momentum", (("teacher_momentum", "momentum"),)),
    ("Weight of relation (alpha)", (("alpha", "alpha"),)),
    ("Images per second", (("images_per_second", "images/s"),)),
)


class _Line(NamedTuple):
    label: str
    color: str
    style: str  # of matplotlib
    x: np.ndarray  # sorted
    y: np.ndarray
    smooth: bool  # whether a long one has its running mean on top
    band: bool = False  # broad and pale: as a line it would hide others


class Panel(NamedTuple):
    """What one small picture shows.

    Attributes:
        title: what the curves are of.
        x_label: "step", "epoch" or "row".
        lines: the curves.
    """

    title: str
    x_label: str
    lines: list

    def summary(self):
        """The first and last values in words, for who cannot see them."""
        return f"{self.title}: " + "; ".join(
            f"{line.label} from {line.y[0]:.4g} to {line.y[-1]:.4g}"
            for line in self.lines
        )


def plot_curves(path, metrics_rows, *, title=None):
    """Draws the curves of a training as small panels in one picture.

    Args:
        path: Where to write the PNG; missing folders are made.
        metrics_rows: Dictionaries, the lines of a `metrics.jsonl`. Known keys:
            step, epoch, loss, relation, info_nce, alpha, learning_rate,
            teacher_momentum, target_entropy, student_entropy, embedding_std,
            agreement, images_per_second, knn_accuracy and probe_accuracy (0
            to 1). Any may be missing, in one row or in all; a key that no row
            has gets no panel. From 200 points on, noisy curves have their
            running mean on top.
            Of two rows with the same step, as a resumed run may write, the
            later one counts.
        title: Text above the picture. Defaults to `None`.

    Returns:
        `path`.

    Raises:
        ValueError: If no row has any of the known keys.
    """
    _write_panels(path, make_panels(metrics_rows), title)
    return path


def compare_curves(path, runs, *, title=None):
    """Draws the curves of several trainings over each other.

    One panel for each quantity, with one curve for each run that has it, over
    epochs: runs of other batches compare by what they have seen.

    Args:
        path: Where to write the PNG; missing folders are made.
        runs: {name of a run: rows as in `plot_curves`}.
        title: Text above the picture. Defaults to `None`.

    Returns:
        `path`.

    Raises:
        ValueError: If no row of any run has any of the known keys.
    """
    runs = {name: list(rows) for name, rows in runs.items()}
    every_row = list(itertools.chain.from_iterable(runs.values()))
    x_key = _x_key(every_row, ("epoch", "step"))
    panels = []
    for panel_title, keys in _PANELS:
        for key, key_name in keys:
            lines = []
            for number, (name, rows) in enumerate(runs.items()):
                turn, place = divmod(number, len(_RUN_COLORS))
                line = _Line(
                    name,
                    _RUN_COLORS[place],
                    _RUN_STYLES[turn % len(_RUN_STYLES)],
                    *_curve(rows, x_key, key),
                    smooth=key not in _SCHEDULES,
                )
                if len(line.x):
                    lines.append(line)
            own_title = panel_title
            if len(keys) > 1:
                own_title = f"{panel_title}: {key_name}"
            if lines:
                panels.append(Panel(own_title, x_key, lines))
    _check_panels(panels, every_row)
    _write_panels(path, panels, title, shared_legend=True)
    return path


def make_panels(metrics_rows):
    """The curves of one training, by panel.

    Args:
        metrics_rows: as in `plot_curves`.

    Returns:
        List of `Panel`s.

    Raises:
        ValueError: If no row has any of the known keys.
    """
    metrics_rows = list(metrics_rows)
    x_key = _x_key(metrics_rows, ("step", "epoch"))
    panels = []
    for title, keys in _PANELS:
        lines = [
            _Line(
                name,
                color,
                "-",
                *_curve(metrics_rows, x_key, key),
                smooth=key not in _SCHEDULES,
            )
            for (key, name), color in zip(keys, _LINE_COLORS, strict=False)
        ]
        lines = [line for line in lines if len(line.x)]
        if title == "Loss" and len(lines) > 1:
            # The total equals the relation loss once alpha is 1.
            lines[0] = lines[0]._replace(band=True)
        if lines:
            panels.append(Panel(title, x_key, lines))
    _check_panels(panels, metrics_rows)
    return panels


def panel_figure(panel, *, width=4.6, height=3.0):
    """Returns a matplotlib Figure, in inches, of one `Panel`."""
    figure = _make_figure(width, height)
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
    axes = figure.add_subplot()
    _draw_panel(axes, panel)
    axes.set_xlabel(panel.x_label, fontsize=10, color=FAINT_COLOR)
    return figure


def _write_panels(path, panels, title, shared_legend=False):
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = {}  # {label: color and style}
    for line in itertools.chain.from_iterable(p.lines for p in panels):
        names.setdefault(line.label, line)
    legend_rows = math.ceil(len(names) / 5) if shared_legend else 0
    figure = _make_figure(
        14.0, 3.0 * rows + 0.3 * legend_rows + (0.6 if title else 0.1)
    )
    if title is not None:
        figure.suptitle(title, fontsize=15, fontweight="bold", color=TEXT_COLOR)
    last = max(line.x[-1] for panel in panels for line in panel.lines)
    first = min(line.x[0] for panel in panels for line in panel.lines)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_panel(axes, panel, with_legend=not shared_legend)
        if last > first:
            # The same range everywhere, so that panels compare by eye.
            margin = 0.02 * (last - first)
            axes.set_xlim(first - margin, last + margin)
        if number >= len(panels) - columns:
            axes.set_xlabel(panel.x_label, fontsize=10, color=FAINT_COLOR)
    if shared_legend:
        _write_legend(figure, names)
    write_png(figure, path)


def _make_figure(width, height):
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width, height),
        dpi=DPI,
        layout="constrained",
        facecolor="white",
    )
    figure.get_layout_engine().set(
        w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.04
    )
    return figure


def _write_legend(figure, names):
    from matplotlib.lines import Line2D

    figure.legend(
        [
            Line2D([], [], color=x.color, linestyle=x.style, linewidth=2.5)
            for x in names.values()
        ],
        [textwrap.shorten(name, 36, placeholder=" ...") for name in names],
        loc="outside lower center",
        ncols=min(5, len(names)),
        frameon=False,
        fontsize=11,
        labelcolor=TEXT_COLOR,
    )


def _x_key(metrics_rows, keys):
    """The first of `keys` that any row has, or "row"."""
    for key in keys:
        if any(row.get(key) is not None for row in metrics_rows):
            return key
    return "row"


def _check_panels(panels, metrics_rows):
    if not panels:
        raise ValueError(
            "`metrics_rows` should hold at least one row with a known key, "
            "such as `loss`; pass the rows of a metrics.jsonl. Received: "
            f"{len(metrics_rows)} rows with the keys "
            f"{sorted({key for row in metrics_rows for key in row})}"
        )


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


def _draw_panel(axes, panel, with_legend=True):
    from matplotlib.ticker import MaxNLocator

    axes.set_title(
        panel.title,
        fontsize=11,
        fontweight="bold",
        color=TEXT_COLOR,
        loc="left",
    )
    for line in panel.lines:
        is_long = len(line.x) >= 200 and line.smooth
        if is_long:
            axes.plot(
                line.x, line.y, color=line.color, linewidth=0.6, alpha=0.3
            )
        axes.plot(
            line.x,
            _running_mean(line.y, len(line.y) // 50) if is_long else line.y,
            color=line.color,
            linestyle=line.style,
            linewidth=4.5 if line.band else 1.6,
            alpha=0.4 if line.band else 1.0,
            marker="o" if len(line.x) <= 30 else None,
            markersize=3.5,
            label=line.label,
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
    if with_legend and len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=TEXT_COLOR)
