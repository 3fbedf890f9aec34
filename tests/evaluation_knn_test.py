import numpy as np
import pytest

from ressl_tf.evaluation.knn import knn_accuracy
from ressl_tf.evaluation.knn import knn_predict
from ressl_tf.evaluation.knn import nearest_neighbours


def slow_knn(bank, bank_labels, queries, num_classes, k, temperature):
    predictions = []
    for query in queries.astype(np.float64):
        similarities = []
        for row in bank.astype(np.float64):
            norm = np.linalg.norm(query) * np.linalg.norm(row)
            similarities.append(float(query @ row) / norm)
        ranking = sorted(
            range(len(bank)), key=lambda index: -similarities[index]
        )
        votes = [0.0] * num_classes
        for index in ranking[:k]:
            votes[bank_labels[index]] += np.exp(
                similarities[index] / temperature
            )
        predictions.append(int(np.argmax(votes)))
    return np.array(predictions)


def make_problem(num_bank=120, num_queries=47, num_classes=5, seed=0):
    """Overlapping classes, rows of very different lengths."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(num_classes, 6))

    def draw(number):
        labels = generator.integers(0, num_classes, size=number)
        features = centers[labels] + 1.2 * generator.normal(size=(number, 6))
        features *= generator.uniform(0.1, 10.0, size=(number, 1))
        return features.astype(np.float32), labels

    return (*draw(num_bank), *draw(num_queries))


@pytest.mark.core
@pytest.mark.parametrize("k", [1, 7, 40, 120])
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_prediction_equals_the_slow_version(k, temperature):
    bank, bank_labels, queries, labels = make_problem()
    expected = slow_knn(bank, bank_labels, queries, 5, k, temperature)
    options = {"num_classes": 5, "k": k, "temperature": temperature}
    predicted = knn_predict(bank, bank_labels, queries, **options)
    assert predicted.dtype == np.int64
    np.testing.assert_array_equal(predicted, expected)
    accuracy = knn_accuracy(bank, bank_labels, queries, labels, **options)
    assert accuracy == pytest.approx(np.mean(expected == labels))
    assert 0.2 < accuracy < 1.0


def test_prediction_equals_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    bank, bank_labels, queries, _ = make_problem(400, 200, seed=1)
    # Its weights are a function of the cosine distance, 1 - similarity.
    reference = KNeighborsClassifier(
        n_neighbors=50,
        metric="cosine",
        weights=lambda distances: np.exp((1.0 - distances) / 0.1),
    ).fit(bank, bank_labels)
    np.testing.assert_array_equal(
        knn_predict(bank, bank_labels, queries, num_classes=5, k=50),
        reference.predict(queries),
    )


def unit(degrees):
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


@pytest.mark.core
def test_weights_change_the_winner():
    # Similarities 0.9962, 0.7660 and 0.7431: at 0.1 the votes are
    # exp(9.962) = 21200 against exp(7.660) + exp(7.431) = 2122 + 1687.
    bank = np.array([unit(5), unit(40), unit(-42)]) * [[0.5], [3.0], [7.0]]
    options = {"bank_labels": [0, 1, 1], "num_classes": 2, "k": 3}
    queries = np.array([unit(0)])
    np.testing.assert_array_equal(
        knn_predict(bank, queries=queries, temperature=0.1, **options), [0]
    )
    np.testing.assert_array_equal(
        knn_predict(bank, queries=queries, temperature=10.0, **options), [1]
    )


@pytest.mark.parametrize("chunk_size", [1, 10, 46, 47, 48])
def test_chunks_do_not_change_the_result(chunk_size):
    bank, bank_labels, queries, _ = make_problem()
    options = {"num_classes": 5, "k": 20}
    np.testing.assert_array_equal(
        knn_predict(
            bank, bank_labels, queries, chunk_size=chunk_size, **options
        ),
        knn_predict(bank, bank_labels, queries, **options),
    )


def test_ties_go_to_the_earlier_row_and_to_the_lower_class():
    bank = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    queries = np.array([[1.0, 0.0]])
    indices, similarities = nearest_neighbours(queries, bank, 4)
    np.testing.assert_array_equal(indices, [[1, 2, 3, 0]])
    np.testing.assert_allclose(similarities, [[1.0, 1.0, 1.0, 0.0]])
    # Of three equal rows the first votes; of two equal votes the lower wins.
    for labels, k, winner in (([0, 2, 1, 1], 1, 2), ([0, 2, 1, 0], 2, 1)):
        predicted = knn_predict(bank, labels, queries, num_classes=3, k=k)
        np.testing.assert_array_equal(predicted, [winner])


def test_tiny_temperature_and_tiny_or_zero_features():
    bank, bank_labels, queries, _ = make_problem()
    nearest = bank_labels[nearest_neighbours(queries, bank, 1)[0][:, 0]]
    predicted = knn_predict(
        1e-10 * bank,
        bank_labels,
        1e-10 * queries,
        num_classes=5,
        k=30,
        temperature=1e-6,
    )
    np.testing.assert_array_equal(predicted, nearest)
    zeros = np.zeros((2, 6))
    predicted = knn_predict(bank, bank_labels, zeros, num_classes=5, k=120)
    np.testing.assert_array_equal(
        predicted, [np.bincount(bank_labels).argmax()] * 2
    )


def test_neighbours_equal_a_full_sort():
    bank, _, queries, _ = make_problem()
    indices, similarities = nearest_neighbours(queries, bank, 15, chunk_size=10)
    norms = np.linalg.norm(queries, axis=1)[:, None]
    expected = queries @ bank.T / norms / np.linalg.norm(bank, axis=1)
    order = np.argsort(-expected, axis=1)[:, :15]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(
        similarities, np.take_along_axis(expected, order, 1), atol=1e-6
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 4}, "`k` should be at most .*k=4 and 3 images"),
        ({"k": 0}, "`k` should be .*k=0"),
        ({"k": 1.5}, "`k` should be .*k=1.5"),
        ({"temperature": 0.0}, "`temperature` .*temperature=0.0"),
        ({"chunk_size": 0}, "`chunk_size` .*chunk_size=0"),
        ({"num_classes": 2}, "`bank_labels` .*num_classes=2 .*from 0 to 2"),
        ({"bank_labels": [0, -1, 2]}, "`bank_labels` .*from -1 to 2"),
        ({"bank_labels": [0, 1]}, r"`bank_labels` .*shape \(2,\)"),
        ({"bank_labels": [0.0, 1.0, 2.0]}, "`bank_labels` .*float64"),
        ({"bank_labels": np.eye(3, dtype=int)}, "`bank_labels` .*argmax"),
        ({"queries": np.ones((2, 3))}, r"same number .*\(2, 3\).*\(3, 2\)"),
        ({"queries": np.ones(2)}, r"`queries` .*shape \(2,\)"),
        ({"bank": np.ones((0, 2))}, r"`bank` .*shape \(0, 2\)"),
        (
            {"bank": [[1.0, 2.0], [np.nan, 1.0], [1.0, np.inf]]},
            "`bank` should be finite.*2 of 3 rows, the first at row 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {
        "bank": np.eye(3, 2) + 1.0,
        "bank_labels": [0, 1, 2],
        "queries": np.ones((2, 2)),
        "num_classes": 3,
        "k": 2,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        knn_predict(**arguments)


def test_more_refusals():
    features = np.ones((3, 2))
    with pytest.raises(ValueError, match="num_neighbours=4 and 3 rows"):
        nearest_neighbours(features, features, 4)
    with pytest.raises(ValueError, match="`test_labels` .*from 0 to 5"):
        knn_accuracy(
            features, [0, 1, 2], features, [0, 5, 1], num_classes=3, k=1
        )
