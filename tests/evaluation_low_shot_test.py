"""Tests of low-shot SVMs, and of VOC2007's images and average precision."""

import numpy as np
import pytest
import small_sets
from sklearn.svm import LinearSVC

from ressl_tf import data
from ressl_tf.evaluation import low_shot


def devkit(scores, targets, interpolation):
    """VOCevaldet's loops, the recalls as fractions."""
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    right, recall, precision = 0, [], []
    for rank, row in enumerate(order):
        right += targets[row] == 1
        recall.append((right, sum(targets)))
        precision.append(right / (rank + 1))
    if interpolation == "voc2007":
        total = 0.0
        for tenth in range(11):
            reached = [
                p
                for p, (found, all_) in zip(precision, recall, strict=True)
                if found * 10 >= tenth * all_
            ]
            total += max(reached) / 11
        return total
    area, last = 0.0, 0.0
    for place, (found, all_) in enumerate(recall):
        area += (found / all_ - last) * max(precision[place:])
        last = found / all_
    return area


def test_average_precision_by_hand():
    # Ranked: right, wrong, right, wrong; precisions 1, 1/2, 2/3, 1/2.
    scores, targets = [0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]
    # Recall 0 to 0.5: 1, six times; 0.6 to 1: 2/3, five times.
    assert low_shot.average_precision(scores, targets) == pytest.approx(
        (6 + 5 * 2 / 3) / 11
    )
    area = low_shot.average_precision(scores, targets, "area")
    assert area == pytest.approx(0.5 + 0.5 * 2 / 3)


@pytest.mark.parametrize("interpolation", low_shot.INTERPOLATIONS)
def test_average_precision_is_the_development_kits(interpolation):
    generator = np.random.default_rng(0)
    for positives in (1, 3, 10, 20):
        targets = np.zeros(20, int)
        targets[:positives] = 1
        for _ in range(5):
            scores = generator.normal(size=20)
            found = low_shot.average_precision(scores, targets, interpolation)
            expected = devkit(scores, targets.tolist(), interpolation)
            assert found == pytest.approx(expected)


def make_set(count, seed, num_classes=4, dim=8, spread=0.5):
    """Features that say which of the classes an image has."""
    directions = np.random.default_rng(9).normal(size=(num_classes, dim))
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, num_classes)) < 0.3).astype(np.int8)
    features = targets @ directions
    features += spread * generator.normal(size=features.shape)
    return features.astype(np.float32), targets


def test_draws():
    _, targets = make_set(200, 0)
    targets[:20, 1] = -1
    for number, shots in ((0, 4), (1, 16), (1, 500)):
        rows = low_shot.draw(targets, number, shots, seed=3)
        drawn = targets[rows, number]
        positives, negatives = (
            (targets[:, number] == value).sum() for value in (1, 0)
        )
        assert (drawn == 1).sum() == min(shots, positives)
        assert (drawn == 0).sum() == min(3 * shots, negatives)
        assert len(set(rows)) == len(rows)
        again = low_shot.draw(targets, number, shots, seed=3)
        np.testing.assert_array_equal(rows, again)
    other = low_shot.draw(targets, 0, 4, seed=4)
    assert list(other) != list(low_shot.draw(targets, 0, 4, seed=3))
    everything = low_shot.draw(targets, 1)
    np.testing.assert_array_equal(everything, np.arange(20, 200))


def test_equals_svms_of_their_own():
    train, test = make_set(80, 0), make_set(60, 1)
    train[1][:5, 2] = -1  # these count neither way
    test[1][:7, 1] = -1
    result = low_shot.low_shot(*train, *test, shots=6, seed=2, cost=0.5)
    features, test_features = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (train[0], test[0])
    )
    for number in range(4):
        rows = low_shot.draw(train[1], number, 6, 2)
        assert not (train[1][rows, number] < 0).any()
        model = LinearSVC(
            C=0.5,
            class_weight={1: 2.0, 0: 1.0},
            random_state=0,
            dual=True,
            max_iter=2000,
        ).fit(features[rows], train[1][rows, number])
        counted = np.arange(60) >= (7 if number == 1 else 0)
        expected = devkit(
            model.decision_function(test_features[counted]),
            test[1][counted, number].tolist(),
            "voc2007",
        )
        assert result.average_precisions[number] == pytest.approx(expected)
    assert result.mean_average_precision == pytest.approx(
        result.average_precisions.mean()
    )
    more = low_shot.low_shot(*train, *test)
    assert more.mean_average_precision > 0.8


def test_shuffled_targets_stay_at_chance():
    train, test = make_set(200, 0), make_set(2000, 1)
    generator = np.random.default_rng(0)
    result = low_shot.low_shot(
        train[0],
        generator.permutation(train[1]),
        test[0],
        generator.permutation(test[1]),
        interpolation="area",
    )
    # The area of a random ranking is the share of positives.
    assert abs(result.mean_average_precision - 0.3) < 0.05


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cost": 0.0}, "`cost` must be above 0. Received: cost=0.0"),
        ({"shots": 0}, "`shots` must be at least 1. Received: 0"),
        ({"interpolation": "11"}, "`interpolation` must be one of voc2007"),
        ({"train_targets": np.zeros((3, 4))}, r"`train_targets`.*\(3, 4\)"),
        ({"test_targets": np.full((30, 4), 2)}, "hold 1, 0 and -1 alone.*2"),
        ({"train_targets": np.ones((30, 4))}, "class 0 with 30 and 0"),
    ],
)
def test_wrong_arguments(change, message):
    names = ("train_features", "train_targets", "test_features", "test_targets")
    values = (*make_set(30, 0), *make_set(30, 1))
    arguments = dict(zip(names, values, strict=True))
    with pytest.raises(ValueError, match=message):
        low_shot.low_shot(**{**arguments, **change})


# --- VOC2007 ----------------------------------------------------------------


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc")
    objects = [
        [("cat", False), ("dog", True)],
        [("dog", False), ("dog", True)],
        [("person", True)],
    ]

    def image(split, number):
        """20 x 12, as bright as its number; the outer columns are white."""
        pixels = np.full((12, 20, 3), 40 * number, np.uint8)
        pixels[:, :3] = pixels[:, -3:] = 255
        return pixels

    small_sets.write_voc2007(
        folder,
        {"train": 2, "validation": 1, "test": 3},
        image,
        lambda split, number: objects[
            2 if split == "validation" else number % 3
        ],
    )
    return str(folder)


def test_voc_targets_and_images(voc):
    images, targets, names = data.load_voc2007(
        "test", image_size=6, shorter_side=8, data_dir=voc
    )
    assert images.shape == (3, 6, 6, 3) and targets.shape == (3, 20)
    assert len(names) == 20
    # JPEG's rounding; the white columns are cut off.
    order = np.argsort(images.mean(axis=(1, 2, 3)))
    for number, row in enumerate(order):
        assert abs(images[row].mean() - 40 * number) < 4
        assert images[row].max() < 40 * number + 30
    found = [
        {names[c]: int(targets[row, c]) for c in np.flatnonzero(targets[row])}
        for row in order
    ]
    assert found == [{"cat": 1, "dog": -1}, {"dog": 1}, {"person": -1}]
    together = data.load_voc2007("train+validation", image_size=6, data_dir=voc)
    assert len(together.images) == 3
    with pytest.raises(ValueError, match="`shorter_side`.*Received: .*=5"):
        data.load_voc2007("test", image_size=6, shorter_side=5, data_dir=voc)
