"""The sheet of views: what it holds is what training sees."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

from ressl_tf import augment
from ressl_tf import data
from ressl_tf import recipe
from ressl_tf.data import shards
from ressl_tf.evaluation import visualize
from ressl_tf.evaluation.visualize import views_sheet
from ressl_tf.evaluation.visualize.figures import write_png

ROOT = Path(__file__).resolve().parents[1]
SEED = 7
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
# One layer for many tests: each new one compiles anew.
VIEWS = {
    "teacher": (augment.weak_view(tiny.IMAGE_SIZE, **STATISTICS),),
    "student": (augment.weak_view(12, grayscale=0.5, **STATISTICS),),
}


class PlainView(tiny.PlainView):
    """A view that compiles in no time, with what the sheet asks of one."""

    size = tiny.IMAGE_SIZE
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)


PLAIN_VIEWS = {
    "teacher": (PlainView(0.2),),
    "student": (PlainView(0.5), PlainView(1.0)),
}


def make_config(source, **changes):
    changes = {key.replace("__", "."): v for key, v in changes.items()}
    return {**tiny.make_config(source, changes), "seed": SEED}


def make_columns(config, views, *, step, num_draws=1):
    return views_sheet.make_columns(
        config, views, num_images=3, step=step, num_draws=num_draws
    )


def training_batch(reader, step, views):
    """The whole batch of a step, as training makes it."""
    dataset = data.make_train_dataset(
        reader,
        batch_size=tiny.BATCH_SIZE,
        student_views=views["student"],
        teacher_views=views["teacher"],
        seed=SEED,
        start_step=step,
    )
    return next(iter(dataset))


def assert_show(columns, batch, views):
    """The columns are the first rows, un-normalised by hand."""
    normalised = (*batch["teacher"], *batch["student"])
    views = (*views["teacher"], *views["student"])
    for column, images, view in zip(columns, normalised, views, strict=True):
        assert column.images.dtype == np.uint8
        assert column.images.std() > 10
        for channel, (mean, std) in enumerate(
            zip(view.mean, view.std, strict=True)
        ):
            values = images[: len(column.images), ..., channel] * std + mean
            # Rounded to whole levels.
            np.testing.assert_allclose(
                column.images[..., channel],
                255 * np.clip(values, 0, 1),
                rtol=0,
                atol=0.501,
            )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def shard_folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    shards.write_shards(source, "tiny", folder, num_shards=2)
    return folder


@pytest.mark.core
def test_rows_are_those_of_the_training_batch(source):
    # The second epoch of four steps.
    columns = make_columns(make_config(source), PLAIN_VIEWS, step=5)
    assert [(c.title, c.note) for c in columns] == [
        ("original", ""),
        ("weak 16 px", ""),
        ("strong 16 px", "view 1"),
        ("strong 16 px", "view 2"),
    ]
    reader = data.open_reader(source)
    steps = reader.steps(tiny.BATCH_SIZE, seed=SEED, start_step=5)
    _, rows = next(iter(steps))
    np.testing.assert_array_equal(columns[0].images, reader.load(rows[:3]))
    batch = training_batch(reader, 5, PLAIN_VIEWS)
    assert_show(columns[1:], batch, PLAIN_VIEWS)


def test_rows_of_a_streamed_batch(source, shard_folder):
    config = make_config(source)
    where = {
        "source": "tfds:tiny",
        "data_dir": str(shard_folder),
        "stream": True,
        "lanes": 4,
    }
    config["data"].update(where)
    columns = make_columns(config, VIEWS, step=5)
    assert [c.title for c in columns[1:]] == ["weak 16 px", "strong 12 px"]
    reader = data.open_reader(image_size=tiny.IMAGE_SIZE, **where)
    assert_show(columns[1:], training_batch(reader, 5, VIEWS), VIEWS)
    images = list(data.load(source).images)
    for original in columns[0].images:
        assert any((original == image).all() for image in images)


def test_another_draw_is_that_of_the_next_step(tmp_path):
    # With one image for all, the next step has the same images.
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    path = tmp_path / "same.npz"
    np.savez(path, x_train=np.repeat(image, tiny.NUM_IMAGES, axis=0))
    columns = make_columns(
        make_config(f"npz:{path}"), PLAIN_VIEWS, step=3, num_draws=2
    )
    assert [(c.title, c.note) for c in columns[1:]] == [
        ("weak 16 px", "draw 1"),
        ("weak 16 px", "draw 2"),
        ("strong 16 px", "view 1, draw 1"),
        ("strong 16 px", "view 1, draw 2"),
        ("strong 16 px", "view 2, draw 1"),
        ("strong 16 px", "view 2, draw 2"),
    ]
    reader = data.open_reader(f"npz:{path}")
    for draw in (0, 1):
        batch = training_batch(reader, 3 + draw, PLAIN_VIEWS)
        assert_show(columns[1 + draw :: 2], batch, PLAIN_VIEWS)


def test_other_draws_show_the_same_images(source):
    unchanged = {"teacher": (PlainView(0.0),), "student": (PlainView(0.0),)}
    columns = make_columns(make_config(source), unchanged, step=3, num_draws=3)
    assert len(columns) == 7
    for column in columns[1:]:
        np.testing.assert_array_equal(column.images, columns[0].images)


@pytest.mark.parametrize(
    "batch_size, lanes, num_images, parts",
    [
        (128, None, 8, 16),
        (128, None, 9, 8),
        (256, 8, 5, 8),
        (8, None, 8, 1),
        (12, None, 5, 2),
        (12, None, 7, 1),
        # One image alone would be compiled to other instructions.
        (16, None, 1, 8),
        (1, None, 1, 1),
    ],
)
def test_no_more_of_a_batch_is_made_than_needed(
    batch_size, lanes, num_images, parts
):
    reader = (
        SimpleNamespace() if lanes is None else SimpleNamespace(lanes=lanes)
    )
    assert views_sheet._num_parts(reader, batch_size, num_images) == parts


def flat_columns(num_columns, num_rows, size):
    """Columns of flat images, each of a colour of its own."""
    columns = []
    for number in range(num_columns):
        colors = [(10 + number, 100 + row, 30) for row in range(num_rows)]
        images = np.tile(
            np.array(colors, np.uint8)[:, None, None], (1, size, size, 1)
        )
        columns.append(views_sheet.Column(f"view {number}", "note", images))
    return columns


def read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.core
@pytest.mark.parametrize("size, cell", [(32, 160), (224, 171)])
def test_cells_are_in_their_places(tmp_path, size, cell):
    columns = flat_columns(9, 3, size)
    figure = views_sheet.draw_sheet(columns, ["A caption."], "A title")
    write_png(figure, tmp_path / "sheet.png")
    picture = read(tmp_path / "sheet.png")
    boxes = np.empty((9, 3, 2), int)
    for number, column in enumerate(columns):
        for row, image in enumerate(column.images):
            y, x = np.nonzero((picture == image[0, 0]).all(axis=-1))
            boxes[number, row] = x.min(), y.min()
            assert (np.ptp(x) + 1, np.ptp(y) + 1) == (cell, cell)
            assert len(x) == cell**2
    # The same left edge down a column, the same top edge along a row.
    assert (np.ptp(boxes[..., 0], axis=1) == 0).all()
    assert (np.ptp(boxes[..., 1], axis=0) == 0).all()
    assert (np.diff(boxes[:, 0, 0]) > cell).all()
    assert (np.diff(boxes[0, :, 1]) > cell).all()


@pytest.mark.parametrize(
    "num_columns, size, cell",
    [
        (9, 32, 160),
        (9, 224, 171),
        (7, 224, 222),
        (3, 96, 192),
        (3, 300, 224),
        (41, 32, 128),
        (41, 28, 128),
    ],
)
def test_cell_size(num_columns, size, cell):
    columns = [
        views_sheet.Column("", "", np.zeros((1, size, size, 3), np.uint8))
    ] * num_columns
    assert views_sheet.cell_size(columns) == cell


def test_images_that_fit_a_whole_number_of_times_keep_their_pixels():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    expected = image.repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(views_sheet.fit(image, 12), expected)
    np.testing.assert_array_equal(views_sheet.fit(image, 4), image)
    # Any other is smooth: more levels than there were.
    between = views_sheet.fit(image, 14)
    assert between.shape == (14, 14, 3)
    assert len(np.unique(between)) > len(np.unique(image))


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("num_columns", [2, 7, 30])
def test_texts_do_not_meet_one_another_or_the_edge(num_columns, size):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    image = np.zeros((1, size, size, 3), np.uint8)
    columns = [
        views_sheet.Column(f"strong {size} px", "view 10, draw 10", image)
    ] * num_columns
    caption = [
        "strong: crop to 224 px (area 0.14-1), 192 px (area 0.117-0.86), "
        "160 px (area 0.095-0.715), 128 px (area 0.073-0.571), 96 px (area "
        "0.05-0.429); flip p=0.5; jitter p=0.8 (brightness 0.4)",
        "weak: crop to 224 px (area 0.2-1)",
    ]
    title = "What configs/photos.py trains on: folder:/DATA/" + 9 * "A1b2_" * 4
    figure = views_sheet.draw_sheet(columns, caption, title)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    assert len(boxes) >= 2 * num_columns + 3
    width, height = figure.bbox.size
    for number, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
        for other in boxes[:number]:
            assert not box.overlaps(other)


def test_the_caption_says_how_the_views_were_made():
    config = tiny.make_config("photos", {"data.image_size": 32})
    assert views_sheet.describe(recipe.make_views(config)) == [
        "weak: crop to 32 px (area 0.2-1); flip p=0.5",
        "strong: crop to 32 px (area 0.2-1); flip p=0.5; jitter p=0.8 "
        "(brightness 0.4, contrast 0.4, saturation 0.4, hue 0.1); "
        "grayscale p=0.2; blur p=0.5 (sigma 0.1-2 px)",
    ]


def test_views_that_differ_in_their_crops_share_a_line():
    class Twisted(augment.View):
        def __init__(self, size, *, twist=0, **options):
            super().__init__(size, **options)
            self.twist = twist

    views = {
        "teacher": augment.make_views(64, crops=2, flip=0.0),
        "student": (
            *augment.make_views((48, 32), min_area=(0.2, 0.1), solarize=0.1),
            Twisted(16, twist=3),
            Twisted(8),
        ),
    }
    assert views_sheet.describe(views) == [
        "weak: crop to 64 px (area 0.2-1)",
        "strong: crop to 48 px (area 0.2-1), 32 px (area 0.1-1); flip p=0.5; "
        "solarize p=0.1 (from 0.5 on)",
        # An option that this has no words for is not left out.
        "strong: crop to 16 px (area 0.2-1); flip p=0.5; twist 3",
        "strong: crop to 8 px (area 0.2-1); flip p=0.5",
    ]


def plain_config(source):
    """Views that compile in no time."""
    config = make_config(source)
    config["views"] = {"student": {"flip": 1.0}, "teacher": {"flip": 0.0}}
    return config


def test_nine_columns_unless_told_otherwise(source, tmp_path):
    path = tmp_path / "new" / "sheet.png"
    assert visualize.plot_views(path, plain_config(source)) == path
    # Margins, cells, one gap between any two and more between the kinds.
    assert read(path).shape[1] == 2 * 24 + 9 * 160 + 6 * 5 + 2 * 16


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_images": 0}, "`num_images` .*num_images=0"),
        (
            {"num_images": tiny.BATCH_SIZE + 1},
            "`train.batch_size`=16. Received: num_images=17",
        ),
        ({"step": -1}, "`start_step` .*start_step=-1"),
        ({"num_draws": 0}, "`num_draws` .*num_draws=0"),
    ],
)
def test_wrong_arguments_are_refused(source, tmp_path, change, message):
    path = tmp_path / "sheet.png"
    with pytest.raises(ValueError, match=message):
        visualize.plot_views(path, plain_config(source), **change)
    assert not path.exists()


def test_the_tool_refuses_in_one_line(tmp_path):
    for flag, line in (
        (
            "output=views.jpg",
            "error: flag --output=views.jpg: must end in .png",
        ),
        (
            "num_images=33",
            "error: `num_images` must be at most the batch of a step, "
            "`train.batch_size`=32. Received: num_images=33",
        ),
    ):
        command = [sys.executable, "-m", "tools.show_views", f"--{flag}"]
        result = subprocess.run(
            [*command, f"--config={ROOT}/configs/photos.py:quick"],
            cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
        )
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.splitlines() == [line]
    assert not list(tmp_path.iterdir())
