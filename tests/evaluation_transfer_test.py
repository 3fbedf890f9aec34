"""Tests of logistic regression on other sets' features."""

import numpy as np
import pytest
import small_sets
from sklearn.linear_model import LogisticRegression

from ressl_tf import data
from ressl_tf.evaluation import transfer

GRID = (1e-4, 1e-2, 1.0, 100.0)


def make_split(count, seed, spread=1.5, num_classes=4, dim=6):
    centers = np.random.default_rng(7).normal(size=(num_classes, dim))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, count)
    noise = spread * generator.normal(size=(count, dim))
    return transfer.Split((centers[labels] + noise).astype(np.float32), labels)


@pytest.fixture(scope="module")
def splits():
    return make_split(120, 0), make_split(60, 1), make_split(200, 2)


def fitted(split, l2):
    """On its own, from zero."""
    model = LogisticRegression(
        C=1.0 / (l2 * len(split.labels)), max_iter=5000, tol=1e-6
    )
    return model.fit(split.features, split.labels)


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_the_grid_equals_regressions_of_their_own(splits, metric):
    train, validation, test = splits
    result = transfer.transfer(
        *splits, num_classes=4, metric=metric, l2_grid=GRID
    )
    score = transfer.METRICS[metric]
    scores = [
        score(validation.labels, fitted(train, l2).predict(validation.features))
        for l2 in sorted(GRID, reverse=True)
    ]
    best = int(np.argmax(scores))
    assert result["l2"] == sorted(GRID, reverse=True)[best]
    assert result["validation_accuracy"] == pytest.approx(scores[best])
    assert result["at_edge"] == (best in (0, 3))
    # Refitted to both.
    both = transfer.Split(
        *(np.concatenate(pair) for pair in zip(train, validation, strict=True))
    )
    predicted = fitted(both, result["l2"]).predict(test.features)
    assert result["accuracy"] == pytest.approx(score(test.labels, predicted))
    assert result["not_converged"] == 0
    alone = fitted(train, result["l2"]).predict(test.features)
    assert np.mean(alone != predicted) > 0  # so that the refit is seen


def test_l2_is_beside_the_mean_of_the_losses():
    """The gradient of mean cross-entropy + l2 / 2 |w|^2 is 0."""
    split = make_split(80, 3)
    model = transfer._Regression(5000)
    model._model.set_params(tol=1e-7)
    model.fit(split, 0.05)
    weights = model._model.coef_.T
    logits = split.features @ weights + model._model.intercept_
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = odds / odds.sum(axis=1, keepdims=True)
    error[np.arange(80), split.labels] -= 1
    gradient = split.features.T @ error / 80 + 0.05 * weights
    np.testing.assert_allclose(gradient, 0.0, atol=2e-4)
    assert np.abs(0.05 * weights).max() > 1e-2


def test_weak_regularisers_do_not_stay_at_the_last_weights():
    """A start that is within the tolerance already would make no step."""
    split = make_split(300, 4, spread=0.3)  # separable: weights grow
    model, last = transfer._Regression(5000), 0.0
    for l2 in sorted(transfer.L2_GRID, reverse=True):
        model.fit(split, l2)
        size = np.linalg.norm(model._model.coef_)
        assert size > last, l2
        last = size
        if l2 < 1e-4:
            alone = LogisticRegression(
                C=1.0 / (l2 * 300), max_iter=20000, tol=1e-9
            ).fit(split.features.astype(np.float64), split.labels)
            assert size == pytest.approx(np.linalg.norm(alone.coef_), rel=0.05)


def test_fits_that_do_not_converge_are_counted(splits):
    result = transfer.transfer(
        *splits, num_classes=4, l2_grid=GRID, max_iterations=1
    )
    assert 3 <= result["not_converged"] <= 5


def test_the_test_split_chooses_nothing(splits):
    train, validation, test = splits
    generator = np.random.default_rng(0)
    shuffled = test._replace(labels=generator.permutation(test.labels))
    for labelled in (test, shuffled):
        result = transfer.transfer(
            train, validation, labelled, num_classes=4, l2_grid=GRID
        )
        chosen = result["l2"], result["validation_accuracy"]
        if labelled is test:
            expected = chosen
    assert chosen == expected
    assert abs(result["accuracy"] - 0.25) < 0.1  # a deviation of 0.03


def test_mean_per_class_by_hand():
    labels = np.array([0, 0, 0, 0, 2, 2, 5])
    predicted = np.array([0, 0, 0, 1, 2, 0, 1])
    assert transfer.top1(labels, predicted) == pytest.approx(4 / 7)
    # 3 of 4, 1 of 2, 0 of 1; nobody has the classes 1, 3 and 4.
    assert transfer.mean_per_class(labels, predicted) == pytest.approx(1.25 / 3)


def test_split_off():
    labels = np.repeat([0, 1, 2], [50, 10, 5])
    kept, held_out = transfer.split_off(labels, seed=1)
    assert np.bincount(labels[held_out]).tolist() == [10, 2, 1]
    assert sorted([*kept, *held_out]) == list(range(65))
    other = transfer.split_off(labels, seed=2)[1]
    assert list(other) != list(held_out)


def test_the_papers_nine():
    assert len(transfer.DATA_SETS) == 9
    by_metric = {
        metric: [k for k, x in transfer.DATA_SETS.items() if x.metric == metric]
        for metric in transfer.METRICS
    }
    assert by_metric["top1"] == [
        "cifar10",
        "cifar100",
        "food101",
        "cars196",
        "dtd",
    ]
    assert len(transfer.L2_GRID) == 45
    np.testing.assert_allclose(transfer.L2_GRID[:1], 1e-6)
    np.testing.assert_allclose(transfer.L2_GRID[-1], 1e5)


@pytest.mark.parametrize(
    # That builder is ours: see aircraft_test.py.
    "name",
    sorted(set(transfer.DATA_SETS) - {"fgvc_aircraft"}),
)
def test_sets_are_read_by_their_real_builders(name, tmp_path):
    data_set = transfer.DATA_SETS[name]
    counts = {data_set.train: 4, data_set.test: 3}
    if data_set.validation:
        counts[data_set.validation] = 2
    size = (32, 32) if name.startswith("cifar") else (11, 9)

    def image(split, number):
        return np.full((*size, 3), 10 * number + len(split), np.uint8)

    small_sets.write(
        name, tmp_path, counts, image, lambda split, number: number + 1
    )
    for split, count in counts.items():
        images, labels, names = data.load(
            data_set.source, split, image_size=8, data_dir=str(tmp_path)
        )
        assert images.shape == (count, 8, 8, 3)
        order = np.argsort(labels)
        assert labels[order].tolist() == list(range(1, count + 1))
        for number, row in enumerate(order):
            assert abs(int(images[row].mean()) - 10 * number - len(split)) <= 4
            assert len(names) >= 10


@pytest.mark.parametrize(
    "change, message",
    [
        ({"metric": "f1"}, "`metric` must be one of top1, mean_per_class"),
        ({"l2_grid": (1.0, 0.0)}, "`l2_grid` must hold positive numbers"),
        ({"l2_grid": ()}, "`l2_grid` must hold positive numbers"),
        ({"max_iterations": 0}, "`max_iterations`.*max_iterations=0"),
        ({"num_classes": 3}, "`train.labels`.*num_classes=3"),
    ],
)
def test_wrong_arguments(splits, change, message):
    with pytest.raises(ValueError, match=message):
        transfer.transfer(*splits, **{"num_classes": 4, **change})
