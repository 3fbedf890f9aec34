"""The views that a recipe trains on, as one sheet."""

import inspect
import math
import textwrap
from typing import NamedTuple

import numpy as np

from ressl_tf import data
from ressl_tf import recipe
from ressl_tf.evaluation.features import check_positive_integer
from ressl_tf.evaluation.visualize.figures import FAINT_COLOR
from ressl_tf.evaluation.visualize.figures import make_figure
from ressl_tf.evaluation.visualize.figures import write_png
from ressl_tf.evaluation.visualize.figures import write_text

# From the plain to the distorted; what the sheet calls them.
_ROLES = {"teacher": "weak", "student": "strong"}
_VIEW_COLUMNS = 8  # about as many, by default

_FRAME_GRAY = 204
_MARGIN, _GAP, _GROUP_GAP = 24, 5, 16
_WIDTH = 1640
_MIN_CELL, _MAX_CELL = 128, 224  # the least holds the columns' titles
_TITLE_LINE, _CAPTION_LINE, _COLUMN_TITLES = 28, 20, 56

# Options of a view that the caption has words for, or that cannot be seen.
_WORDED = """
    size min_area max_area flip jitter brightness contrast saturation hue
    grayscale blur blur_sigma blur_kernel solarize solarize_threshold
    mean std name seed
""".split()


class Column(NamedTuple):
    """A column of the sheet.

    Attributes:
        title: what the images are.
        note: which view and which draw, where there are several.
        images: uint8 [N, S, S, 3], one a row.
    """

    title: str
    note: str
    images: np.ndarray


def plot_views(
    path, config, *, num_images=8, step=0, num_draws=None, title=None
):
    """Draws the views that a recipe trains on, one image a row.

    Beside each image, its weak views (the teacher's), then its strong ones
    (the student's). A caption says what is shown and how the views were made.
    Images that fit a whole number of times are enlarged pixel by pixel, any
    other is resampled (Lanczos).

    Args:
        path: Where to write the PNG; missing folders are made.
        config: The recipe, a nested dict.
        num_images: Rows: as many images, the first of the batch. Defaults to
            `8`.
        step: Of the training, from 0. Defaults to `0`.
        num_draws: How often each view is drawn for the same images; the first
            draw is what training sees at `step`. Defaults to `None`, which
            makes about nine columns in all.
        title: Text above the picture. Defaults to `None`.

    Returns:
        `path`.

    Raises:
        ValueError: If an argument is out of its range, and as `data` and
            `augment` do for settings of the recipe.
    """
    check_positive_integer("num_images", num_images)
    batch_size = config["train"]["batch_size"]
    if num_images > batch_size:
        raise ValueError(
            "`num_images` must be at most the batch of a step, "
            f"`train.batch_size`={batch_size}. "
            f"Received: num_images={num_images}"
        )
    views = recipe.make_views(config)
    if num_draws is None:
        num_views = sum(len(of_role) for of_role in views.values())
        num_draws = max(1, _VIEW_COLUMNS // num_views)
    check_positive_integer("num_draws", num_draws)
    columns = make_columns(
        config, views, num_images=num_images, step=step, num_draws=num_draws
    )
    rows = f"the {batch_size} images"
    if num_images < batch_size:
        rows = f"the first {num_images} of {rows}"
    caption = [
        f"Rows: {rows} of step {step}, and their views, un-normalised. "
        "The teacher is shown the weak views, the student the strong ones.",
        *describe(views),
    ]
    if num_draws > 1:
        caption[0] += (
            f" Training sees draw 1; the other draws are those of the "
            f"step{'s' * (num_draws > 2)} after it, for the same images."
        )
    write_png(draw_sheet(columns, caption, title), path)
    return path


def make_columns(config, views, *, num_images, step, num_draws):
    """The images of a batch and their views, as a recipe trains on them.

    Args:
        config: the recipe.
        views: its views, as `recipe.make_views` returns them.
        num_images: N, the first images of the batch.
        step: of the training.
        num_draws: draws of each view; the first one is that of `step`, the
            next one has the random numbers of `step` + 1.

    Returns:
        A list of `Column`s: the images, the teacher's views, the student's;
        of each view, all draws. Images that are streamed in their own size
        are shown as squares: squeezed, and beyond 4:3 their centre.

    Raises:
        ValueError: as `data.open_reader` and `data.make_train_dataset`.
    """
    # keras-cv is 500 modules: who draws other pictures does not wait for it.
    from ressl_tf import augment

    original = augment.make_view(
        config["data"]["image_size"],
        min_area=1.0,
        flip=0.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    reader = recipe.open_reader(config)
    batch_size = config["train"]["batch_size"]
    batches = data.make_train_dataset(
        _OneBatch(reader),
        batch_size=batch_size,
        student_views=views["student"],
        # The last: a view's place is part of its seed.
        teacher_views=(*views["teacher"], original),
        seed=config["seed"],
        start_step=step,
        # What the first of several workers gets is the first rows of the
        # batch, and a batch can be larger than memory is.
        num_workers=_num_parts(reader, batch_size, num_images),
        num_parallel_calls=1,
    )
    # [draw][role][view], the images [N, S, S, 3].
    draws = [
        {
            role: [view[:num_images].numpy() for view in batch[role]]
            for role in _ROLES
        }
        for batch in batches.take(num_draws)
    ]
    columns = [
        Column("original", "", to_pixels(original, draws[0]["teacher"][-1]))
    ]
    for role, name in _ROLES.items():
        for number, view in enumerate(views[role]):
            for draw, batch in enumerate(draws):
                notes = []
                if len(views[role]) > 1:
                    notes.append(f"view {number + 1}")
                if num_draws > 1:
                    notes.append(f"draw {draw + 1}")
                columns.append(
                    Column(
                        f"{name} {view.size} px",
                        ", ".join(notes),
                        to_pixels(view, batch[role][number]),
                    )
                )
    return columns


def to_pixels(view, images):
    """Takes a view's normalisation back: float32 -> uint8, same shape."""
    images = images * np.float32(view.std) + np.float32(view.mean)
    return np.rint(255.0 * np.clip(images, 0.0, 1.0)).astype(np.uint8)


def describe(views):
    """How views were made, in words.

    Args:
        views: {"student": views, "teacher": views}.

    Returns:
        A list of strings: a role's views share one if they differ in their
        crops alone.
    """
    lines = []
    for role, name in _ROLES.items():
        crops_of = {}
        for view in views[role]:
            area = f"{view.min_area:g}-{view.max_area:g}"
            crop = f"{view.size} px (area {area})"
            crops_of.setdefault(_operations(view), []).append(crop)
        for operations, crops in crops_of.items():
            # Not twice what two views have in common.
            crops = ", ".join(dict.fromkeys(crops))
            lines.append(f"{name}: crop to {crops}{operations}")
    return lines


def _operations(view):
    """What a view does after its crop, as a string that begins with '; '."""
    jitter = ", ".join(
        f"{name} {getattr(view, name):g}"
        for name in ("brightness", "contrast", "saturation", "hue")
    )
    low, high = view.blur_sigma
    details = {
        "flip": "",
        "jitter": f" ({jitter})",
        "grayscale": "",
        "blur": f" (sigma {low:g}-{high:g} px)",
        "solarize": f" (from {view.solarize_threshold:g} on)",
    }
    words = [
        f"{name} p={getattr(view, name):g}{detail}"
        for name, detail in details.items()
        if getattr(view, name) > 0
    ]
    for name, parameter in inspect.signature(view.__init__).parameters.items():
        if name not in _WORDED and hasattr(view, name):
            value = getattr(view, name)
            if value != parameter.default:
                words.append(f"{name} {value}")
    return "".join(f"; {word}" for word in words)


class _OneBatch:
    """A reader whose every step has the images of the first."""

    def __init__(self, reader):
        self._reader = reader

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def steps(self, *arguments, start_step, **settings):
        first = self._reader.steps(
            *arguments, start_step=start_step, **settings
        ).take(1)
        images = first.map(lambda step, images: images)
        return images.cache().repeat().enumerate(start_step)


def _num_parts(reader, batch_size, num_images):
    """Into how many parts a batch can be cut that hold `num_images` each."""
    # One image alone may get other last bits (`View.apply`).
    least = min(batch_size, max(2, num_images))
    # A reader with lanes deals whole ones to the workers.
    divisible = math.gcd(batch_size, getattr(reader, "lanes", batch_size))
    return max(
        parts
        for parts in range(1, divisible + 1)
        if divisible % parts == 0 and batch_size // parts >= least
    )


def draw_sheet(columns, caption, title=None):
    """Returns a matplotlib Figure of the columns beside each other.

    Args:
        columns: of `Column`s, of as many images each.
        caption: list of strings, paragraphs above the images.
        title: string above them, or None.
    """
    cell = cell_size(columns)
    lefts, x = [], _MARGIN
    for number, column in enumerate(columns):
        starts_group = column.title != columns[number - 1].title
        if number:
            x += _GROUP_GAP if starts_group else _GAP
        lefts.append(x)
        x += cell
    width = x + _MARGIN
    # Letters are that wide on average, or less.
    title_lines = textwrap.wrap(title or "", (width - 2 * _MARGIN) // 15)
    caption_lines = [
        line
        for text in caption
        for line in textwrap.wrap(
            text, (width - 2 * _MARGIN) // 8, subsequent_indent="    "
        )
    ]
    caption_top = _MARGIN + _TITLE_LINE * len(title_lines)
    top = caption_top + _CAPTION_LINE * len(caption_lines) + _COLUMN_TITLES
    num_rows = len(columns[0].images)
    height = top + num_rows * (cell + _GAP) - _GAP + _MARGIN

    figure = make_figure(width, height)
    left = {"ha": "left", "va": "top"}
    for number, line in enumerate(title_lines):
        y = _MARGIN + _TITLE_LINE * number
        write_text(
            figure, _MARGIN, y, line, fontsize=15, fontweight="bold", **left
        )
    for number, line in enumerate(caption_lines):
        y = caption_top + _CAPTION_LINE * number
        write_text(figure, _MARGIN, y, line, fontsize=10, **left)
    for x, column in zip(lefts, columns, strict=True):
        middle = x + cell / 2
        y = top - (28 if column.note else 12)
        write_text(
            figure, middle, y, column.title, fontsize=10, fontweight="bold"
        )
        write_text(
            figure, middle, top - 11, column.note, fontsize=9, color=FAINT_COLOR
        )
    # One image, pixel for pixel, rather than one for each cell.
    sheet = np.full((height, width, 3), 255, np.uint8)
    for x, column in zip(lefts, columns, strict=True):
        for row, image in enumerate(column.images):
            y = top + row * (cell + _GAP)
            # A white image has an edge, too.
            sheet[y - 1 : y + cell + 1, x - 1 : x + cell + 1] = _FRAME_GRAY
            sheet[y : y + cell, x : x + cell] = fit(image, cell)
    figure.figimage(sheet)
    return figure


def cell_size(columns):
    """Height and width of all images in pixels.

    What fits the width of the sheet, within limits; if possible a multiple of
    the largest images' size.
    """
    room = (_WIDTH - 2 * _MARGIN) // len(columns) - _GAP
    cell = min(max(room, _MIN_CELL), _MAX_CELL)
    largest = max(column.images.shape[1] for column in columns)
    multiple = cell // largest * largest
    return multiple if multiple >= _MIN_CELL else cell


def fit(image, cell):
    """Brings a uint8 (S, S, 3) image to (cell, cell, 3)."""
    from PIL import Image

    whole = cell % len(image) == 0
    method = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((cell, cell), method))
