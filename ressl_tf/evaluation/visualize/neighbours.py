"""Queries beside their nearest neighbours."""

import textwrap

import numpy as np

from ressl_tf.evaluation.features import check_features
from ressl_tf.evaluation.features import check_images
from ressl_tf.evaluation.features import check_labels
from ressl_tf.evaluation.features import check_positive_integer
from ressl_tf.evaluation.knn import nearest_neighbours
from ressl_tf.evaluation.visualize.figures import FAINT_COLOR
from ressl_tf.evaluation.visualize.figures import make_figure
from ressl_tf.evaluation.visualize.figures import write_png
from ressl_tf.evaluation.visualize.figures import write_text

RIGHT_COLOR = "#2e9e4f"
WRONG_COLOR = "#d62728"


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
    write_png(grid.figure, path)
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


class _Grid:
    """The canvas of `plot_neighbours`, measured in pixels from the top left."""

    def __init__(
        self, num_rows, num_neighbours, *, with_labels, with_title, with_frames
    ):
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
        self.figure = make_figure(self.width, self.height)

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
            color=FAINT_COLOR,
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
        write_text(self.figure, x, y, text, **style)


def _check_same_length(kind, images, features):
    if len(images) != len(features):
        raise ValueError(
            f"`{kind}_images` and `{kind}_features` should have one row per "
            f"image. Received: {len(images)} images and {len(features)} rows "
            "of features"
        )
