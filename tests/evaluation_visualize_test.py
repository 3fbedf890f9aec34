import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from ressl_tf.evaluation.knn import nearest_neighbours
from ressl_tf.evaluation.visualize import choose_queries
from ressl_tf.evaluation.visualize import compare_curves
from ressl_tf.evaluation.visualize import compare_neighbours
from ressl_tf.evaluation.visualize import curves
from ressl_tf.evaluation.visualize import figures
from ressl_tf.evaluation.visualize import neighbour_grid
from ressl_tf.evaluation.visualize import plot_curves
from ressl_tf.evaluation.visualize import plot_neighbours
from ressl_tf.evaluation.visualize import plot_tsne
from ressl_tf.evaluation.visualize import project
from ressl_tf.evaluation.visualize import tsne


def read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def count_pixels(picture, color):
    """Pixels within 2 of an RGB colour (0-255) or a matplotlib colour."""
    if isinstance(color, str):
        color = np.multiply(to_rgb(color), 255)
    distance = np.abs(picture - np.asarray(color)).max(axis=-1)
    return int((distance <= 2).sum())


def flat_images(colors):
    colors = np.asarray(colors, np.uint8)
    return np.tile(colors[:, None, None, :], (1, 8, 8, 1))


# Five images in the bank; the query is most similar to 3, then 1, then 4.
BANK_COLORS = [
    (10, 20, 200),
    (200, 180, 10),
    (10, 200, 200),
    (200, 10, 200),
    (90, 60, 30),
]
BANK_FEATURES = np.array(
    [[-1.0, 0.0], [2.0, 1.0], [0.0, -1.0], [9.0, 1.0], [1.0, 2.0]]
)
QUERY_FEATURES = np.array([[1.0, 0.0]])


def draw(path, bank_labels, query_labels=(0,), num_neighbours=3, **options):
    plot_neighbours(
        path,
        flat_images([(120, 120, 120)]),
        query_labels,
        flat_images(BANK_COLORS),
        bank_labels,
        QUERY_FEATURES,
        BANK_FEATURES,
        num_queries=1,
        num_neighbours=num_neighbours,
        **options,
    )
    return read(path)


@pytest.mark.core
def test_neighbours_are_ranked_by_cosine_similarity():
    indices, similarities = nearest_neighbours(QUERY_FEATURES, BANK_FEATURES, 3)
    np.testing.assert_array_equal(indices, [[3, 1, 4]])
    np.testing.assert_allclose(
        similarities, [[9 / 82**0.5, 2 / 5**0.5, 1 / 5**0.5]], rtol=1e-6
    )


def test_the_right_neighbours_are_drawn_in_their_order(tmp_path):
    picture = draw(tmp_path / "n.png", None, None)
    places = []
    for color in BANK_COLORS:
        match = np.abs(picture - np.array(color)).max(axis=-1) <= 2
        places.append(np.nonzero(match)[1].mean() if match.sum() > 99 else None)
    assert places[0] is None
    assert places[2] is None
    assert places[3] < places[1] < places[4]


def test_red_frames_only_around_wrong_neighbours(tmp_path):
    red, green = [], []
    # The neighbours are 3, 1 and 4: none, one, then all of another class.
    for labels in ([1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 1, 1]):
        picture = draw(tmp_path / "n.png", labels)
        # Above the footer, which names both colours.
        picture = picture[:-50]
        red.append(count_pixels(picture, neighbour_grid.WRONG_COLOR))
        green.append(count_pixels(picture, neighbour_grid.RIGHT_COLOR))
    assert red[0] == 0
    assert 0 < red[1] == pytest.approx(red[2] / 3, rel=0.05)
    assert green[2] == 0
    assert 0 < green[1] == pytest.approx(green[0] * 2 / 3, rel=0.05)


@pytest.mark.parametrize(
    "query_labels, bank_labels", [(None, None), ([0], None), (None, [0] * 5)]
)
def test_no_frames_without_both_labels(tmp_path, query_labels, bank_labels):
    picture = draw(tmp_path / "n.png", bank_labels, query_labels)
    assert count_pixels(picture, neighbour_grid.WRONG_COLOR) == 0
    assert count_pixels(picture, neighbour_grid.RIGHT_COLOR) == 0


def test_default_picture_is_1444_pixels_wide_and_in_a_new_folder(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    features = generator.normal(size=(30, 4))
    labels = np.arange(30) % 10
    path = tmp_path / "eval" / "n.png"
    arguments = (images, labels, images, labels, features, features)
    assert plot_neighbours(path, *arguments) == path
    assert read(path).shape == (66 + 10 * 158 - 30 + 50, 1444, 3)
    names = ["a_rather_long_name_of_a_class"] * 10
    plot_neighbours(path, *arguments, class_names=names, title="Title")
    assert read(path).shape == (44 + 66 + 10 * 158 - 30 + 50, 1444, 3)
    plot_neighbours(path, *arguments, num_neighbours=20, num_queries=2)
    assert read(path).shape[1] <= 1480


def test_large_images_are_reduced(tmp_path):
    images = np.full((3, 300, 200, 3), 99, np.uint8)
    path = tmp_path / "n.png"
    features = np.eye(3)
    plot_neighbours(
        path,
        images,
        None,
        images,
        None,
        features,
        features,
        num_queries=2,
        num_neighbours=2,
    )
    # Six cells of 192 x 128: the shape of the images is kept.
    assert count_pixels(read(path), (99, 99, 99)) == pytest.approx(
        6 * 192 * 128, rel=0.03
    )


def test_pictures_are_reproducible_and_follow_the_seed(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    features = generator.normal(size=(30, 4))
    pictures = []
    for seed in (0, 0, 1):
        plot_neighbours(
            tmp_path / "n.png",
            images,
            None,
            images,
            None,
            features,
            features,
            num_queries=2,
            num_neighbours=2,
            seed=seed,
        )
        pictures.append(read(tmp_path / "n.png"))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_queries_are_spread_over_the_classes(seed):
    labels = np.random.default_rng(9).permutation([0] * 50 + [4] * 3 + [7] * 20)
    chosen = choose_queries(labels, 73, 3, seed)
    np.testing.assert_array_equal(labels[chosen], [0, 4, 7])
    chosen = choose_queries(labels, 73, 12, seed)
    assert len(set(chosen)) == 12
    counts = np.bincount(labels[chosen], minlength=8)
    assert counts[4] == 3
    assert sorted([counts[0], counts[7]]) == [4, 5]
    assert len(set(choose_queries(None, 73, 73, seed))) == 73
    assert not np.array_equal(
        choose_queries(labels, 73, 12, seed),
        choose_queries(labels, 73, 12, seed + 10),
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_queries": 4}, "num_queries=4 and 3 images"),
        ({"num_neighbours": 4}, "num_neighbours=4 and 3 rows"),
        ({"query_images": np.ones((3, 8, 8, 3))}, "`query_images` .*float64"),
        ({"bank_labels": [0, 1]}, r"`bank_labels` .*\(2,\)"),
        ({"class_names": ("a", "b")}, "`query_labels` .*num_classes=2"),
        ({"bank_features": np.eye(2, 3)}, "`bank_images`.*3 images and 2 rows"),
        ({"query_features": np.eye(2)}, "`query_images`.*3 images and 2 rows"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, change, message):
    images = flat_images(BANK_COLORS[:3])
    arguments = {
        "query_images": images,
        "query_labels": [0, 1, 2],
        "bank_images": images,
        "bank_labels": [0, 1, 2],
        "query_features": np.eye(3),
        "bank_features": np.eye(3),
        "num_queries": 2,
        "num_neighbours": 2,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        plot_neighbours(tmp_path / "n.png", **arguments)
    assert not list(tmp_path.iterdir())


def compare(path, features, **options):
    """Two queries of classes 0 and 1, three images of class 1 in the bank."""
    compare_neighbours(
        path,
        flat_images([(120, 120, 120), (60, 60, 60)]),
        [0, 1],
        flat_images(BANK_COLORS[:3]),
        [1, 1, 1],
        features,
        **{"num_queries": 2, "num_neighbours": 3, **options},
    )
    return read(path)


PAIR = (np.eye(2), np.array([[1.0, 0.1], [0.1, 1.0], [1.0, 1.0]]))


def test_encoders_are_compared_on_the_same_queries(tmp_path):
    path = tmp_path / "n.png"
    one = compare(path, {"first": PAIR})
    two = compare(path, {"first": PAIR, "second": PAIR})
    # The second query's neighbours are all right, the first's all wrong;
    # each query is drawn once, whatever the number of encoders.
    above_footer = slice(None, -72)
    for color, times in (
        (neighbour_grid.WRONG_COLOR, 2),
        (neighbour_grid.RIGHT_COLOR, 2),
        ((120, 120, 120), 1),
        ((60, 60, 60), 1),
        (BANK_COLORS[0], 2),
    ):
        expected = times * count_pixels(one[:-50], color)
        assert expected > 1000
        found = count_pixels(two[above_footer], color)
        assert found == pytest.approx(expected, rel=0.1), color
    # Four rows in two blocks, and a footer with a line more.
    assert one.shape[0] == 66 + 2 * (192 + 30) - 30 + 50
    assert two.shape[0] == 66 + 4 * (192 + 30) - 30 + 24 + 50 + 22


def test_one_encoder_is_drawn_as_ever(tmp_path):
    named = compare(tmp_path / "a.png", {"name": PAIR})
    plot_neighbours(
        tmp_path / "b.png",
        flat_images([(120, 120, 120), (60, 60, 60)]),
        [0, 1],
        flat_images(BANK_COLORS[:3]),
        [1, 1, 1],
        *PAIR,
        num_queries=2,
        num_neighbours=3,
    )
    np.testing.assert_array_equal(named, read(tmp_path / "b.png"))


def test_encoders_may_have_features_of_other_sizes(tmp_path):
    wide = tuple(np.pad(x, ((0, 0), (0, 5))) for x in PAIR)
    many = {f"a rather long name of encoder {n}": wide for n in range(4)}
    picture = compare(tmp_path / "n.png", {"narrow": PAIR, **many})
    assert picture.shape[1] <= 1480


@pytest.mark.parametrize(
    "features, message",
    [
        ({}, "`features` .*at least one encoder.*Received: features={}"),
        ({"a": PAIR, "b": (np.eye(3), PAIR[1])}, "`query_features` of b .*3 r"),
        ({"a": (PAIR[0], np.eye(4, 2))}, "`bank_features` of a .*4 rows"),
    ],
)
def test_wrong_features_are_refused(tmp_path, features, message):
    with pytest.raises(ValueError, match=message):
        compare(tmp_path / "n.png", features)


def clusters(num_classes=3, members=12, num_features=6, seed=0):
    """Well separated features and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), members)
    centres = np.eye(num_classes, num_features)
    noise = generator.normal(0, 0.05, (len(labels), num_features))
    return centres[labels] + noise, labels


def test_tsne_keeps_neighbours_and_is_reproducible():
    features, labels = clusters()
    places = project(features)
    assert places.shape == (36, 2)
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(labels[distances.argmin(axis=1)], labels)
    np.testing.assert_array_equal(project(features), places)
    # Lengths do not count: distances are those of directions.
    scales = 2.0 ** np.random.default_rng(1).integers(-3, 4, (36, 1))
    np.testing.assert_array_equal(project(scales * features), places)
    assert not np.array_equal(
        project(np.ones((9, 4)), seed=0), project(np.ones((9, 4)), seed=1)
    )


@pytest.mark.parametrize(
    "features",
    [np.ones((40, 8)), np.zeros((40, 8)), np.ones((40, 1)), np.eye(5)],
    ids=["all alike", "all zero", "one feature", "five images"],
)
def test_tsne_of_what_has_collapsed(features):
    places = project(features)
    assert places.shape == (len(features), 2)
    assert np.isfinite(places).all()


@pytest.mark.parametrize(
    "features, message",
    [
        (np.eye(4), r"at least 5 rows.*Received: features of shape \(4, 4\)"),
        (np.full((9, 2), np.nan), "should be finite.*9 of 9 rows"),
        (np.ones(9), r"the shape \(N, C\)"),
    ],
)
def test_what_tsne_cannot_place_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        project(features)


def test_tsne_points_have_the_colours_of_their_classes(tmp_path):
    path = tmp_path / "eval" / "tsne.png"
    labels = np.repeat([0, 2], 8)  # no image of class 1
    places = np.stack([np.repeat([0.0, 9.0], 8), np.tile(np.arange(8), 2)], 1)
    arguments = {"class_names": ["first_class", "second", "third"]}
    assert plot_tsne(path, {"a": places}, labels, **arguments) == path
    picture = read(path)
    columns = []
    for color in tsne.class_colors(2):
        # Unlike the legend's, they let the white below shine through.
        blended = 255 * (0.8 * color[:3] + 0.2)
        match = np.abs(picture - blended).max(axis=-1) <= 3
        assert match.sum() > 200
        columns.append(np.nonzero(match)[1].mean())
    assert columns[0] + 100 < columns[1]
    # Two panels are wider than one, and four have two rows.
    sizes = []
    for count in (2, 4):
        many = {f"encoder {n}": places for n in range(count)}
        notes = {"encoder 0": "k-NN accuracy 50.0 %"}
        plot_tsne(path, many, labels, notes=notes, title="Title " * 40)
        sizes.append(read(path).shape)
    assert sizes[0][1] > picture.shape[1]
    assert sizes[1][0] > sizes[0][0] and sizes[1][1] > sizes[0][1]


def test_tsne_without_labels_has_one_colour_and_no_legend(tmp_path):
    places = np.random.default_rng(0).normal(size=(50, 2))
    plot_tsne(tmp_path / "a.png", {"a": places})
    plot_tsne(tmp_path / "b.png", {"a": places}, np.zeros(50, np.int64))
    without, with_legend = (read(tmp_path / f"{x}.png") for x in "ab")
    assert without.shape[1] == with_legend.shape[1] - 220
    colored = without[without.max(axis=-1) - without.min(axis=-1) > 60]
    assert len(np.unique(colored, axis=0)) < 300
    assert (colored[:, 2] > colored[:, 0]).all()  # blue, in all its shades


def test_a_hundred_classes(tmp_path):
    colors = tsne.class_colors(100)
    assert colors.shape == (100, 4) and colors[:, 3].min() == 1.0
    assert len(np.unique(colors.round(3), axis=0)) == 100
    assert len(np.unique(tsne.class_colors(20).round(3), axis=0)) == 20
    places = np.random.default_rng(0).normal(size=(300, 2))
    labels = np.arange(300) % 100
    heights = []
    for names in ([], [f"name {n}" for n in range(100)]):
        plot_tsne(tmp_path / "t.png", {"a": places}, labels, class_names=names)
        heights.append(read(tmp_path / "t.png").shape[0])
    assert heights == [610, 610]  # the legend is capped, not the picture grown


@pytest.mark.parametrize(
    "places, labels, message",
    [
        ({}, None, "`places` .*at least one encoder.*Received: places={}"),
        ({"a": np.ones((9, 3))}, None, r"Received: \(9, 3\) for 'a'"),
        (
            {"a": np.ones((9, 2)), "b": np.ones((8, 2))},
            None,
            r"Received: \(8, 2\) for 'b', where N is 9",
        ),
        ({"a": np.ones((9, 2))}, np.zeros(8, int), r"`labels` .*\(8,\)"),
    ],
)
def test_wrong_places_are_refused(tmp_path, places, labels, message):
    with pytest.raises(ValueError, match=message):
        plot_tsne(tmp_path / "t.png", places, labels)
    assert not list(tmp_path.iterdir())


METRICS = (
    "loss relation info_nce alpha learning_rate teacher_momentum "
    "target_entropy student_entropy embedding_std agreement "
    "images_per_second knn_accuracy"
).split()


def make_rows(num_rows, keys=METRICS):
    return [
        {"step": 10 * n, "epoch": n, **{key: 1.0 + n / 9 for key in keys}}
        for n in range(num_rows)
    ]


@pytest.mark.parametrize(
    "keys, height",
    [
        (["loss"], 310),
        (["loss", "relation", "info_nce", "alpha", "knn_accuracy"], 310),
        (["loss", "alpha", "knn_accuracy", "agreement"], 610),
        (METRICS, 910),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 12, 400])
def test_one_panel_per_known_group_of_keys(tmp_path, keys, height, num_rows):
    path = tmp_path / "eval" / "curves.png"
    assert plot_curves(path, make_rows(num_rows, keys)) == path
    assert read(path).shape == (height, 1400, 3)


def test_rows_may_lack_keys_and_hold_missing_values(tmp_path):
    path = tmp_path / "curves.png"
    rows = make_rows(300, ["loss", "agreement"])
    rows[3]["loss"] = None
    rows[4]["loss"] = float("nan")
    rows[5] = {"step": 50, "knn_accuracy": 0.5}
    rows[6] = {}
    plot_curves(path, rows, title="Title")
    assert read(path).shape == (360, 1400, 3)
    plot_curves(path, [{"loss": 2.0}, {"loss": 1.0}])
    plot_curves(path, [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}])


def test_later_rows_replace_earlier_ones_of_the_same_step():
    rows = [
        {"step": 0, "loss": 5.0},
        {"step": 20, "loss": 9.0},
        {"step": 10, "loss": 4.0},
        {"step": 20, "loss": 3.0},
    ]
    x_values, values = curves._curve(rows, "step", "loss")
    np.testing.assert_array_equal(x_values, [0, 10, 20])
    np.testing.assert_array_equal(values, [5, 4, 3])


def test_running_mean_by_hand():
    np.testing.assert_allclose(
        curves._running_mean(np.array([1.0, 4.0, 4.0, np.nan, 8.0]), 1),
        [2.5, 3.0, 4.0, np.nan, 8.0],
    )


@pytest.mark.parametrize("rows", [[], [{"step": 1, "los": 2.0}]])
def test_curves_without_known_keys_are_refused(tmp_path, rows):
    with pytest.raises(
        ValueError, match=f"`metrics_rows` .*Received: {len(rows)} rows"
    ):
        plot_curves(tmp_path / "curves.png", rows)


def test_curves_of_several_runs(tmp_path):
    path = tmp_path / "eval" / "curves.png"
    rows = make_rows(5)
    # Twice the steps an epoch: by epochs it ends where the other one does.
    other = [{**row, "step": 2 * row["step"], "loss": 9.0} for row in rows]
    assert compare_curves(path, {"a": rows, "b": other}) == path
    picture = read(path)
    # A panel a quantity, not three in one; a legend for all.
    assert picture.shape == (1240, 1400, 3)
    first_panel = picture[:300, :460]
    ends = []
    for color in curves._RUN_COLORS[:2]:
        color = np.multiply(to_rgb(color), 255)
        match = np.abs(first_panel - color).max(axis=-1) <= 12
        assert match.sum() > 100
        ends.append(np.nonzero(match)[1].max())
    assert ends[0] == pytest.approx(ends[1], abs=3)
    many = {f"run {n} " * 9: rows[: n % 5 + 1] for n in range(12)}
    compare_curves(path, many, title="Title")
    # Legend of three lines of five, and a title.
    assert read(path).shape == (1350, 1400, 3)


def test_runs_need_not_have_the_same_curves(tmp_path):
    path = tmp_path / "curves.png"
    runs = {"a": make_rows(3, ["loss"]), "b": make_rows(3, ["alpha"]), "c": []}
    compare_curves(path, runs)
    assert read(path).shape == (340, 1400, 3)
    compare_curves(path, {"a": [{"step": 1, "loss": 2.0}], "b": [{"loss": 1}]})
    with pytest.raises(ValueError, match="`metrics_rows` .*Received: 1 rows"):
        compare_curves(path, {"a": [{"step": 1}], "b": []})


def test_panels_say_what_they_show():
    panels = curves.make_panels(make_rows(10))
    assert len(panels) == 9
    assert panels[0].summary() == (
        "Loss: total from 1 to 2; relation from 1 to 2; InfoNCE from 1 to 2"
    )


def test_svg_has_text_and_ids_of_its_own():
    panel = curves.make_panels(make_rows(10))[1]
    texts = [
        figures.to_svg(curves.panel_figure(panel), name) for name in ("a", "b")
    ]
    assert texts[0].startswith("<svg ") and texts[0].endswith("</svg>\n")
    assert ">Entropy of the similarities (nats)</text>" in texts[0]
    assert texts[0] != texts[1]
    assert texts[0].replace('"a-', '"b-').replace("#a-", "#b-") == texts[1]
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in texts]
    assert ids[0] and ids[0].isdisjoint(ids[1])
    used = set(re.findall(r"#([\w.-]+-[\w.-]+)", texts[0]))
    assert used and used <= ids[0]
    assert "<metadata" not in texts[0]
