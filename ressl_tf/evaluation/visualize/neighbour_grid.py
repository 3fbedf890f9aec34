"""The canvas of the pictures of neighbours."""

import textwrap

import numpy as np

from ressl_tf.evaluation.visualize.figures import FAINT_COLOR
from ressl_tf.evaluation.visualize.figures import make_figure
from ressl_tf.evaluation.visualize.figures import write_text

RIGHT_COLOR = "#2e9e4f"
WRONG_COLOR = "#d62728"


class Grid:
    """Queries and rows of neighbours, in pixels from the top left.

    Each query has a block of as many rows as there are encoders.

    Attributes:
        figure: matplotlib Figure that everything is drawn into.
    """

    def __init__(
        self,
        num_queries,
        num_neighbours,
        num_encoders,
        *,
        with_labels,
        with_title,
        with_frames,
    ):
        self.num_neighbours = num_neighbours
        self.num_encoders = num_encoders
        self.left = 140 if with_labels else 24
        # With several encoders their names stand between query and neighbours.
        self.query_gap = 44 if num_encoders == 1 else 176
        self.gap = 12
        self.row_gap = 30
        self.block_gap = 0 if num_encoders == 1 else 24
        budget = 1480 - self.left - self.query_gap - 24
        cell = budget / (num_neighbours + 1) - self.gap
        # Multiples of 32 enlarge the usual image sizes evenly.
        self.cell = int(np.clip(cell, 48, 192))
        if self.cell >= 64:
            self.cell -= self.cell % 32
        self.header = 66 + (44 if with_title else 0)
        self.footer = 50 + 22 * (num_encoders - 1) if with_frames else 16
        self.width = self._x(num_neighbours) + self.cell + 24
        self.height = (
            self.header
            + num_queries * num_encoders * (self.cell + self.row_gap)
            + (num_queries - 1) * self.block_gap
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

    def draw_query(self, query, image):
        self._draw_image(self._x(0), self._query_y(query), image)

    def write_class(self, query, name):
        text = textwrap.fill(
            name.replace("_", " "), 14, max_lines=4, placeholder=" ..."
        )
        self._write(
            self.left - 14,
            self._query_y(query) + self.cell / 2,
            text,
            ha="right",
            fontsize=11,
        )

    def write_encoder(self, row, name, num_right):
        lines = textwrap.wrap(name, 16, max_lines=3, placeholder=" ...")
        x, middle = self._x(1) - 16, self._y(row) + self.cell / 2
        shift = 0 if num_right is None else 10
        self._write(
            x,
            middle - shift,
            "\n".join(lines),
            ha="right",
            fontsize=11,
            fontweight="bold",
        )
        if num_right is not None:
            self._write(
                x,
                middle + 10 * len(lines) + 2,
                f"{num_right} of {self.num_neighbours}",
                ha="right",
                fontsize=10,
                color=FAINT_COLOR,
            )

    def draw_neighbour(self, row, rank, image, similarity, is_right):
        x, y = self._x(rank + 1), self._y(row)
        self._draw_image(x, y, image, is_right)
        self._write(
            x + self.cell / 2,
            y - 9,
            f"{similarity:.2f}",
            fontsize=9,
            color=FAINT_COLOR,
        )

    def write_footer(self, num_right, num_all):
        y = self.height - 20 - 22 * (self.num_encoders - 1)
        x = self._x(1)
        for text, color in (
            ("same class", RIGHT_COLOR),
            ("other class", WRONG_COLOR),
        ):
            self._write(
                x, y, text, ha="left", fontsize=11, color=color, weight="bold"
            )
            x += 120
        for name, count in num_right.items():
            text = f"{count} of {num_all} have the class of their query"
            if self.num_encoders > 1:
                text = f"{textwrap.shorten(name, 60)}: {text}"
            self._write(self.width - 24, y, text, ha="right", fontsize=11)
            y += 22

    def _draw_image(self, x, y, image, is_right=None):
        enlarged = max(image.shape[:2]) <= self.cell
        axes = self.figure.add_axes(
            (
                x / self.width,
                1.0 - (y + self.cell) / self.height,
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
        blocks = row // self.num_encoders
        return (
            self.header
            + row * (self.cell + self.row_gap)
            + blocks * self.block_gap
        )

    def _query_y(self, query):
        """The top of a query's image: in the middle of its block."""
        rows = self.num_encoders - 1
        first = self._y(query * self.num_encoders)
        return first + rows * (self.cell + self.row_gap) / 2

    def _write(self, x, y, text, **style):
        write_text(self.figure, x, y, text, **style)
