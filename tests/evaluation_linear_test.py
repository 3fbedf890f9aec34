import sys

import numpy as np
import pytest

from ressl_tf.evaluation.linear import SoftmaxHeads
from ressl_tf.evaluation.linear import choose_learning_rate
from ressl_tf.evaluation.linear import epoch_order
from ressl_tf.evaluation.linear import initial_weights
from ressl_tf.evaluation.linear import linear_probe
from ressl_tf.evaluation.linear import linear_probes
from ressl_tf.evaluation.linear import logistic_regression


def slow_softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def slow_probe(
    features,
    labels,
    num_classes,
    *,
    learning_rate,
    momentum,
    epochs,
    milestones,
    decay,
    batch_size,
    seed,
):
    """torch.optim.SGD with MultiStepLR, in float64 and one image at a time."""
    features = features.astype(np.float64)
    kernel, bias = initial_weights(features.shape[1], num_classes, seed)
    kernel, bias = kernel.astype(np.float64), bias.astype(np.float64)
    kernel_velocity, bias_velocity = 0.0 * kernel, 0.0 * bias
    for epoch in range(epochs):
        if epoch in milestones:
            learning_rate *= decay
        order = epoch_order(len(features), seed, epoch)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            kernel_gradient, bias_gradient = 0.0 * kernel, 0.0 * bias
            for index in batch:
                logits = features[index] @ kernel + bias
                error = slow_softmax(logits[None])[0]
                error[labels[index]] -= 1.0
                kernel_gradient += np.outer(features[index], error) / len(batch)
                bias_gradient += error / len(batch)
            kernel_velocity = momentum * kernel_velocity + kernel_gradient
            bias_velocity = momentum * bias_velocity + bias_gradient
            kernel = kernel - learning_rate * kernel_velocity
            bias = bias - learning_rate * bias_velocity
    return kernel, bias


def make_blobs(num_train, num_test, num_classes, spread, dim=8, seed=0):
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(num_classes, dim))

    def draw(number):
        labels = np.arange(number) % num_classes
        noise = spread * generator.normal(size=(number, dim))
        return (centers[labels] + noise).astype(np.float32), labels

    return (*draw(num_train), *draw(num_test))


@pytest.mark.core
@pytest.mark.parametrize("batch_size", [5, 8, 100])
def test_probe_equals_the_slow_version(batch_size):
    # 23 images in batches of 5 and 8: a smaller last batch; 3 epochs with a
    # milestone before the second and the third.
    data = make_blobs(23, 10, 3, spread=0.7)
    options = {
        "learning_rate": 0.5,
        "momentum": 0.9,
        "epochs": 3,
        "milestones": (1, 2),
        "decay": 0.1,
        "batch_size": batch_size,
        "seed": 4,
    }
    result = linear_probe(*data, num_classes=3, **options)
    kernel, bias = slow_probe(*data[:2], 3, **options)
    np.testing.assert_allclose(result["weights"][0], kernel, atol=2e-6)
    np.testing.assert_allclose(result["weights"][1], bias, atol=2e-6)
    assert np.abs(kernel - initial_weights(8, 3, 4)[0]).max() > 0.1

    def accuracy(features, labels):
        return np.mean((features @ kernel + bias).argmax(axis=1) == labels)

    assert result["train_accuracy"] == pytest.approx(accuracy(*data[:2]))
    assert result["accuracy"] == pytest.approx(accuracy(*data[2:]))
    probabilities = slow_softmax(data[0] @ kernel + bias)
    loss = -np.log(probabilities[np.arange(23), data[1]]).mean()
    assert result["train_loss"] == pytest.approx(loss, rel=1e-4)
    assert "top5_accuracy" not in result


@pytest.mark.core
def test_separable_data_is_separated_by_the_protocol():
    data = make_blobs(600, 300, 10, spread=0.1)
    result = linear_probe(*data, num_classes=10)
    assert result["accuracy"] == 1.0
    assert result["train_accuracy"] == 1.0
    assert result["top5_accuracy"] == 1.0
    assert logistic_regression(*data, num_classes=10)["accuracy"] == 1.0


@pytest.mark.parametrize("probe", [linear_probe, logistic_regression])
def test_shuffled_labels_stay_at_chance(probe):
    train_features, train_labels, test_features, test_labels = make_blobs(
        600, 2000, 10, spread=1.0, dim=20
    )
    generator = np.random.default_rng(0)
    result = probe(
        train_features,
        generator.permutation(train_labels),
        test_features,
        generator.permutation(test_labels),
        num_classes=10,
    )
    # 2000 trials at 0.1: a deviation of 0.0067.
    assert abs(result["accuracy"] - 0.1) < 0.03
    assert abs(result["top5_accuracy"] - 0.5) < 0.05


def test_top5_counts_the_five_best():
    # The features are the logits' ranking itself: a kernel near a multiple of
    # the identity, learnt from one-hot rows, ranks classes by the features.
    train_features = np.eye(8, dtype=np.float32)
    test_features = np.tile(np.arange(8.0, dtype=np.float32), (8, 1))
    labels = np.arange(8)
    result = linear_probe(
        train_features, labels, test_features, labels, num_classes=8
    )
    assert result["accuracy"] == 1 / 8
    assert result["top5_accuracy"] == 5 / 8


def test_probe_depends_on_the_seed_alone():
    data = make_blobs(60, 30, 3, spread=0.7)
    options = {"num_classes": 3, "epochs": 2, "batch_size": 16}
    first, again, other = (
        linear_probe(*data, seed=seed, **options)["weights"][0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_order_and_initial_weights():
    orders = {
        tuple(epoch_order(50, seed, epoch))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6
    assert all(sorted(order) == list(range(50)) for order in orders)
    kernel, bias = initial_weights(200, 100, 0)
    assert kernel.dtype == bias.dtype == np.float32
    assert kernel.std() == pytest.approx(0.01, rel=0.03)
    assert abs(kernel.mean()) < 3e-4
    np.testing.assert_array_equal(bias, np.zeros(100))


def test_probe_is_traced_once(monkeypatch):
    traced = []
    step = SoftmaxHeads.step

    def counted(self, *arguments):
        traced.append(arguments)
        return step(self, *arguments)

    monkeypatch.setattr(SoftmaxHeads, "step", counted)
    data = make_blobs(30, 10, 3, spread=0.7)
    linear_probe(*data, num_classes=3, epochs=4, batch_size=8)
    assert len(traced) == 1


@pytest.mark.core
def test_several_learning_rates_are_what_each_is_alone():
    data = make_blobs(50, 30, 6, spread=0.7)
    options = {"num_classes": 6, "epochs": 4, "milestones": (2,), "seed": 3}
    rates = (0.05, 1.0, 3e38, 0.3)
    results = linear_probes(*data, learning_rates=rates, **options)
    assert results[2] is None  # diverged, and took no other with it
    for rate, result in zip(rates, results, strict=True):
        if result is None:
            continue
        alone = linear_probe(*data, learning_rate=rate, **options)
        for name in ("accuracy", "top5_accuracy", "train_accuracy"):
            assert result[name] == alone[name]
        for a, b in zip(result["weights"], alone["weights"], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert (
        np.abs(results[0]["weights"][0] - results[1]["weights"][0]).max() > 0.1
    )


def test_the_learning_rate_is_chosen_without_the_test_images():
    train_features, train_labels, *_ = make_blobs(200, 1, 4, spread=0.5)
    chosen = choose_learning_rate(
        train_features,
        train_labels,
        num_classes=4,
        learning_rates=(1e-7, 0.3, 1e36),
        epochs=20,
    )
    assert chosen == 0.3
    with pytest.raises(ValueError, match="too few images.*Received: 9 images"):
        choose_learning_rate(
            train_features[:9],
            train_labels[:9],
            num_classes=4,
            learning_rates=(1.0,),
        )


def test_nesterov_by_hand():
    """torch.optim.SGD(nesterov=True), two steps of one logit pair."""
    features = np.array([[1.0], [2.0]], np.float32)
    labels = np.array([0, 1])
    heads = SoftmaxHeads(1, 2, (0.5,), momentum=0.9, nesterov=True, seed=1)
    kernel, bias = (w.astype(np.float64) for w in initial_weights(1, 2, 1))
    velocity = [0.0, 0.0]
    for factor in (1.0, 0.5):
        error = slow_softmax(features @ kernel + bias) - np.eye(2)[labels]
        gradients = [features.T @ error / 2, error.mean(axis=0)]
        velocity = [
            0.9 * v + g for v, g in zip(velocity, gradients, strict=True)
        ]
        kernel -= 0.5 * factor * (0.9 * velocity[0] + gradients[0])
        bias -= 0.5 * factor * (0.9 * velocity[1] + gradients[1])
        heads.step(features, labels, factor)
    ((found_kernel, found_bias),) = heads.weights()
    np.testing.assert_allclose(found_kernel, kernel, atol=1e-6)
    np.testing.assert_allclose(found_bias, bias, atol=1e-6)


def test_divergence_names_the_cause():
    train_features, train_labels, test_features, test_labels = make_blobs(
        40, 10, 4, spread=0.7
    )
    with pytest.raises(
        ValueError, match="diverged.*Lower `learning_rate`.*learning_rate=10.0"
    ):
        linear_probe(
            1e20 * train_features,
            train_labels,
            test_features,
            test_labels,
            num_classes=4,
        )


@pytest.mark.parametrize("terminal", [True, False])
def test_probe_progress(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    data = make_blobs(40, 10, 4, spread=0.7)
    linear_probe(*data, num_classes=4, epochs=2, progress=True)
    printed = capsys.readouterr().err
    assert ("0/2" in printed and "loss" in printed) == terminal
    assert terminal or not printed


@pytest.mark.parametrize("num_classes", [2, 4, 7])
@pytest.mark.parametrize("l2", [1.0, 0.05])
def test_logistic_regression_equals_scikit_learn(num_classes, l2):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = make_blobs(200, 150, num_classes, spread=1.2)
    # Scales and offsets that only standardised features can cope with.
    scales = np.logspace(-2, 2, 8).astype(np.float32)
    for features in (data[0], data[2]):
        features *= scales
        features += 3.0 * scales
    result = logistic_regression(*data, num_classes=num_classes, l2=l2)
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=1.0 / l2, max_iter=1000)
    ).fit(*data[:2])
    assert result["accuracy"] == pytest.approx(reference.score(*data[2:]))
    assert result["train_accuracy"] == pytest.approx(reference.score(*data[:2]))
    assert 0.3 < result["accuracy"] < 1.0
    assert ("top5_accuracy" in result) == (num_classes > 5)
    kernel, bias = result["weights"]
    assert kernel.shape == (8, num_classes)
    np.testing.assert_allclose(
        slow_softmax(data[2] @ kernel + bias),
        reference.predict_proba(data[2]),
        atol=1e-4,
    )


def test_logistic_regression_with_an_absent_class():
    data = make_blobs(60, 30, 3, spread=0.3)
    train_labels = np.array([0, 3, 6])[data[1]]
    test_labels = np.array([0, 3, 6])[data[3]]
    result = logistic_regression(
        data[0], train_labels, data[2], test_labels, num_classes=8
    )
    assert result["accuracy"] == 1.0
    assert np.isfinite(result["train_loss"])
    np.testing.assert_array_equal(
        np.isfinite(result["weights"][1]), np.isin(np.arange(8), [0, 3, 6])
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate": 0.0}, "`learning_rate` .*learning_rate=0.0"),
        ({"momentum": 1.0}, "`momentum` .*momentum=1.0"),
        ({"decay": 0.0}, "`decay` .*decay=0.0"),
        ({"epochs": 0}, "`epochs` .*epochs=0"),
        ({"batch_size": 2.5}, "`batch_size` .*batch_size=2.5"),
        ({"seed": -1}, "`seed` .*seed=-1"),
        ({"num_classes": 1}, "`num_classes` .*num_classes=1"),
        ({"num_classes": 2}, "`train_labels` .*num_classes=2"),
        ({"train_labels": [0, 1]}, r"`train_labels` .*shape \(2,\)"),
        ({"test_labels": [0, 1, 3]}, "`test_labels` .*from 0 to 3"),
        ({"test_features": np.ones((3, 5))}, r"same number .*\(3, 5\)"),
        ({"train_features": np.full((3, 2), np.nan)}, "3 of 3 rows"),
    ],
)
def test_wrong_probe_arguments_are_refused(change, message):
    arguments = {
        "train_features": np.eye(3, 2),
        "train_labels": [0, 1, 2],
        "test_features": np.eye(3, 2),
        "test_labels": [0, 1, 2],
        "num_classes": 3,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        linear_probe(**arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"l2": 0.0}, "`l2` .*l2=0.0"),
        ({"max_iterations": 0}, "`max_iterations` .*max_iterations=0"),
        ({"train_labels": [1, 1, 1]}, "two different .*all equal to 1"),
        ({"num_classes": 2}, "`train_labels` .*num_classes=2"),
    ],
)
def test_wrong_regression_arguments_are_refused(change, message):
    arguments = {
        "train_features": np.eye(3, 2),
        "train_labels": [0, 1, 2],
        "test_features": np.eye(3, 2),
        "test_labels": [0, 1, 2],
        "num_classes": 3,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        logistic_regression(**arguments)
