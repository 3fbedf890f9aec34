import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from ressl_tf.evaluation.knn import nearest_neighbours
from ressl_tf.evaluation.visualize import choose_queries
from ressl_tf.evaluation.visualize import curves
from ressl_tf.evaluation.visualize import neighbours
from ressl_tf.evaluation.visualize import plot_curves
from ressl_tf.evaluation.visualize import plot_neighbours


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
        red.append(count_pixels(picture, neighbours.WRONG_COLOR))
        green.append(count_pixels(picture, neighbours.RIGHT_COLOR))
    assert red[0] == 0
    assert 0 < red[1] == pytest.approx(red[2] / 3, rel=0.05)
    assert green[2] == 0
    assert 0 < green[1] == pytest.approx(green[0] * 2 / 3, rel=0.05)


@pytest.mark.parametrize(
    "query_labels, bank_labels", [(None, None), ([0], None), (None, [0] * 5)]
)
def test_no_frames_without_both_labels(tmp_path, query_labels, bank_labels):
    picture = draw(tmp_path / "n.png", bank_labels, query_labels)
    assert count_pixels(picture, neighbours.WRONG_COLOR) == 0
    assert count_pixels(picture, neighbours.RIGHT_COLOR) == 0


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
