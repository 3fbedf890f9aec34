"""Pictures of a training: nearest neighbours and curves, as PNG files.

Drawn on matplotlib's own canvas, without pyplot: nothing global is touched,
no window is opened, and a training may call this from any thread.
"""

import io
import math
import os
import textwrap

import numpy as np
import tensorflow as tf

from ressl_tf.evaluation.features import check_features
from ressl_tf.evaluation.features import check_images
from ressl_tf.evaluation.features import check_labels
from ressl_tf.evaluation.features import check_positive_integer
from ressl_tf.evaluation.knn import nearest_neighbours

RIGHT_COLOR = "#2e9e4f"
WRONG_COLOR = "#d62728"

_DPI = 100
_TEXT_COLOR = "#333333"
_FAINT_COLOR = "#777777"
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


def plot_neighbours(
    path,
    query_images,
    query_labels,
    bank_images,
    bank_labels,
    query_features,
    bank_features,
    *,
    class_names=(),
    num_queries=10,
    num_neighbours=8,
    seed=0,
    title=None,
):
    """Draws queries, one a row, each beside its nearest neighbours.

    The neighbours are those of `nearest_neighbours`, the most similar first,
    with the cosine similarity above each. With labels, a neighbour of another
    class has a red frame and one of the same class a thin green frame. Small
    images are enlarged pixel by pixel; the picture is 1,444 pixels wide by
    default, and never wider than 1,480 with up to 20 neighbours.

    Args:
        path: Where to write the PNG; missing folders are made.
        query_images: uint8 array (Q, H, W, 3). Where queries are also in the
            bank, each is its own first neighbour: keep the two apart.
        query_labels: Integers (Q,), or `None`.
        bank_images: uint8 array (N, H, W, 3); the size may be another one.
        bank_labels: Integers (N,), or `None`.
        query_features: (Q, C).
        bank_features: (N, C).
        class_names: Names by label, drawn beside the queries. Defaults to `()`,
            which draws the number.
        num_queries: Rows, at most Q. Defaults to `10`.
        num_neighbours: Neighbours per row, at most N. Defaults to `8`.
        seed: Integer of at least 0 that chooses the queries, see
            `choose_queries`. Defaults to `0`.
        title: Text above the picture. Defaults to `None`.

    Returns:
        `path`.

    Raises:
        ValueError: If an argument has the wrong shape, type or range.
    """
    query_images = check_images("query_images", query_images)
    bank_images = check_images("bank_images", bank_images)
    query_features = check_features("query_features", query_features)
    bank_features = check_features("bank_features", bank_features)
    _check_same_length("query", query_images, query_features)
    _check_same_length("bank", bank_images, bank_features)
    num_labels = len(class_names) or np.iinfo(np.int64).max
    if query_labels is not None:
        query_labels = check_labels(
            "query_labels", query_labels, len(query_images), num_labels
        )
    if bank_labels is not None:
        bank_labels = check_labels(
            "bank_labels", bank_labels, len(bank_images), num_labels
        )
    chosen = choose_queries(query_labels, len(query_images), num_queries, seed)
    indices, similarities = nearest_neighbours(
        query_features[chosen], bank_features, num_neighbours
    )
    with_frames = query_labels is not None and bank_labels is not None
    grid = _Grid(
        num_queries,
        num_neighbours,
        with_labels=query_labels is not None,
        with_title=title is not None,
        with_frames=with_frames,
    )
    if title is not None:
        grid.write_title(title)
    grid.write_header()
    for row, query in enumerate(chosen):
        grid.draw_image(row, 0, query_images[query])
        if query_labels is not None:
            label = query_labels[query]
            name = class_names[label] if len(class_names) else f"class {label}"
            grid.write_class(row, str(name))
        for rank, index in enumerate(indices[row]):
            is_right = None
            if with_frames:
                is_right = bank_labels[index] == query_labels[query]
            grid.draw_image(row, rank + 1, bank_images[index], is_right)
            grid.write_similarity(row, rank + 1, similarities[row, rank])
    if with_frames:
        same = bank_labels[indices] == query_labels[chosen][:, None]
        grid.write_footer(int(same.sum()), same.size)
    _write_png(grid.figure, path)
    return path


def choose_queries(labels, num_images, num_queries, seed):
    """Picks images at random, spread evenly over the classes.

    Args:
        labels: Integers (num_images,), or `None` for a plain random choice.
        num_images: Integer.
        num_queries: Integer, at most `num_images`.
        seed: Integer of at least 0.

    Returns:
        int64 array (num_queries,) of different image numbers, ordered by
        label. The counts of two classes differ by at most 1 unless one has run
        out of images.

    Raises:
        ValueError: If an argument has the wrong type or range.
    """
    check_positive_integer("num_queries", num_queries)
    if num_queries > num_images:
        raise ValueError(
            "`num_queries` should be at most the number of query images. "
            f"Received: num_queries={num_queries} and {num_images} images"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(num_images)
    if labels is None:
        return order[:num_queries]
    classes = generator.permutation(np.unique(labels))
    # Deal the images out like cards: the n-th of every class before the
    # (n + 1)-th of any.
    turns = np.empty((num_images, 2), np.int64)
    for place, label in enumerate(classes):
        members = order[labels[order] == label]
        turns[members, 0] = np.arange(len(members))
        turns[members, 1] = place
    chosen = np.lexsort((turns[:, 1], turns[:, 0]))[:num_queries]
    return chosen[np.argsort(labels[chosen], kind="stable")]


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
        dpi=_DPI,
        layout="constrained",
        facecolor="white",
    )
    figure.get_layout_engine().set(
        w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.04
    )
    if title is not None:
        figure.suptitle(
            title, fontsize=15, fontweight="bold", color=_TEXT_COLOR
        )
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
            axes.set_xlabel(x_key, fontsize=10, color=_FAINT_COLOR)
    _write_png(figure, path)
    return path


class _Grid:
    """The canvas of `plot_neighbours`, measured in pixels from the top left."""

    def __init__(
        self, num_rows, num_neighbours, *, with_labels, with_title, with_frames
    ):
        from matplotlib.figure import Figure

        self.left = 140 if with_labels else 24
        self.query_gap = 44
        self.gap = 12
        self.row_gap = 30
        budget = 1480 - self.left - self.query_gap - 24
        cell = budget / (num_neighbours + 1) - self.gap
        # Multiples of 32 enlarge the usual image sizes evenly.
        self.cell = int(np.clip(cell, 48, 192))
        if self.cell >= 64:
            self.cell -= self.cell % 32
        self.header = 66 + (44 if with_title else 0)
        self.footer = 50 if with_frames else 16
        self.width = self._x(num_neighbours) + self.cell + 24
        self.height = (
            self.header
            + num_rows * (self.cell + self.row_gap)
            - self.row_gap
            + self.footer
        )
        self.figure = Figure(
            figsize=(self.width / _DPI, self.height / _DPI),
            dpi=_DPI,
            facecolor="white",
        )

    def write_title(self, title):
        self._write(
            self.width / 2, 32, title, fontsize=16, fontweight="bold", wrap=True
        )

    def write_header(self):
        y = self.header - 36
        self._write(self._x(0) + self.cell / 2, y, "query", fontsize=12)
        self._write(self._x(1), y, "nearest neighbours", ha="left", fontsize=12)

    def write_class(self, row, name):
        text = textwrap.fill(
            name.replace("_", " "), 14, max_lines=4, placeholder=" ..."
        )
        self._write(
            self.left - 14,
            self._y(row) + self.cell / 2,
            text,
            ha="right",
            fontsize=11,
        )

    def write_similarity(self, row, column, similarity):
        self._write(
            self._x(column) + self.cell / 2,
            self._y(row) - 9,
            f"{similarity:.2f}",
            fontsize=9,
            color=_FAINT_COLOR,
        )

    def write_footer(self, num_right, num_all):
        y = self.height - 20
        x = self._x(1)
        for text, color in (
            ("same class", RIGHT_COLOR),
            ("other class", WRONG_COLOR),
        ):
            self._write(
                x, y, text, ha="left", fontsize=11, color=color, weight="bold"
            )
            x += 120
        self._write(
            self.width - 24,
            y,
            f"{num_right} of {num_all} have the class of their query",
            ha="right",
            fontsize=11,
        )

    def draw_image(self, row, column, image, is_right=None):
        enlarged = max(image.shape[:2]) <= self.cell
        axes = self.figure.add_axes(
            (
                self._x(column) / self.width,
                1.0 - (self._y(row) + self.cell) / self.height,
                self.cell / self.width,
                self.cell / self.height,
            )
        )
        axes.imshow(
            image, interpolation="nearest" if enlarged else "antialiased"
        )
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(is_right is not None)
            spine.set_color(RIGHT_COLOR if is_right else WRONG_COLOR)
            spine.set_linewidth(1.44 if is_right else 3.6)

    def _x(self, column):
        x = self.left + column * (self.cell + self.gap)
        return x + (self.query_gap - self.gap if column else 0)

    def _y(self, row):
        return self.header + row * (self.cell + self.row_gap)

    def _write(self, x, y, text, **style):
        style = {"ha": "center", "color": _TEXT_COLOR, **style}
        self.figure.text(
            x / self.width, 1.0 - y / self.height, text, va="center", **style
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


def _draw_panel(axes, title, lines):
    from matplotlib.ticker import MaxNLocator

    axes.set_title(
        title,
        fontsize=11,
        fontweight="bold",
        color=_TEXT_COLOR,
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
    axes.tick_params(labelsize=9, colors=_FAINT_COLOR)
    # An offset such as "+9.9e-1" beside the axis is easily overlooked.
    axes.ticklabel_format(axis="both", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=_TEXT_COLOR)


def _check_same_length(kind, images, features):
    if len(images) != len(features):
        raise ValueError(
            f"`{kind}_images` and `{kind}_features` should have one row per "
            f"image. Received: {len(images)} images and {len(features)} rows "
            "of features"
        )


def _write_png(figure, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    folder = os.path.dirname(os.fspath(path))
    if folder:
        tf.io.gfile.makedirs(folder)
    # tf.io.gfile: a working directory may lie in a cloud bucket.
    with tf.io.gfile.GFile(os.fspath(path), "wb") as file:
        file.write(picture.getvalue())
