"""Low-shot classification: linear SVMs on the features of few images.

Shapes use N for images, C for features, K for classes. A target is 1 for an
image that has the class, 0 for one that has not, -1 for one that counts
neither way (`data.MultiLabelSet`).
"""

import warnings
from typing import NamedTuple

import numpy as np

from ressl_tf.evaluation.features import check_features

SHOTS = (4, 8, 16, 32, 64)
INTERPOLATIONS = ("voc2007", "area")


class LowShotResult(NamedTuple):
    """What one draw gives.

    Attributes:
        mean_average_precision: over the classes, 0 to 1.
        average_precisions: (K,) float64.
        not_converged: how many SVMs have used up their iterations.
    """

    mean_average_precision: float
    average_precisions: np.ndarray
    not_converged: int


def low_shot(
    train_features,
    train_targets,
    test_features,
    test_targets,
    *,
    shots=None,
    seed=0,
    cost=1.0,
    interpolation="voc2007",
    max_iterations=2000,
):
    """Trains an SVM for each class on few images; its mean average precision.

    As Goyal et al., "Scaling and Benchmarking Self-Supervised Visual
    Representation Learning" (2019), on VOC2007: features of length 1, linear
    SVMs with squared hinge loss and L2 penalty (scikit-learn's `LinearSVC`),
    positives that weigh twice as much as negatives. They pick the cost by what
    is best on the test images; here it is one number, given beforehand.

    Args:
        train_features: (N, C).
        train_targets: (N, K) of 1, 0 and -1.
        test_features: (M, C).
        test_targets: (M, K).
        shots: k images with the class and k (K - 1) without are drawn for each
            class, or as many as there are. Defaults to `None`: all.
        seed: Integer of at least 0, of the draw. Defaults to `0`.
        cost: C of the SVMs, above 0. Defaults to `1.0`.
        interpolation: as in `average_precision`. Defaults to `"voc2007"`.
        max_iterations: of each SVM. Defaults to `2000`.

    Returns:
        A `LowShotResult`.

    Raises:
        ValueError: If an argument is out of its range, shapes do not fit, or
            a class has no image.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    if not cost > 0:
        raise ValueError(f"`cost` must be above 0. Received: cost={cost}")
    train_features = _normalized("train_features", train_features)
    test_features = _normalized("test_features", test_features)
    train_targets = _checked("train_targets", train_targets, train_features)
    test_targets = _checked("test_targets", test_targets, test_features)
    precisions, not_converged = [], 0
    for number in range(train_targets.shape[1]):
        rows = draw(train_targets, number, shots, seed)
        model = LinearSVC(
            C=cost,
            class_weight={1: 2.0, 0: 1.0},
            dual=True,
            max_iter=max_iterations,
            random_state=0,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(train_features[rows], train_targets[rows, number])
        not_converged += any(
            issubclass(w.category, ConvergenceWarning) for w in caught
        )
        counted = test_targets[:, number] >= 0
        precisions.append(
            average_precision(
                model.decision_function(test_features[counted]),
                test_targets[counted, number],
                interpolation,
            )
        )
    precisions = np.array(precisions)
    return LowShotResult(float(precisions.mean()), precisions, not_converged)


def draw(targets, number, shots=None, seed=0):
    """The training images of one class's SVM.

    Args:
        targets: (N, K) of 1, 0 and -1.
        number: of the class.
        shots: k images with the class and k (K - 1) without are drawn, or as
            many as there are. Defaults to `None`: all that count.
        seed: Integer of at least 0. Defaults to `0`.

    Returns:
        int64 positions, ascending.

    Raises:
        ValueError: If there is no image with the class, or none without, or
            `shots` is below 1.
    """
    positives, negatives = (
        np.flatnonzero(targets[:, number] == value) for value in (1, 0)
    )
    if not (len(positives) and len(negatives)):
        raise ValueError(
            "`targets` must have an image with and one without each class. "
            f"Received: class {number} with {len(positives)} and "
            f"{len(negatives)}"
        )
    if shots is None:
        return np.sort(np.concatenate([positives, negatives]))
    if shots < 1:
        raise ValueError(f"`shots` must be at least 1. Received: {shots}")
    generator = np.random.default_rng([seed, number])
    return np.sort(
        np.concatenate(
            [
                generator.permutation(positives)[:shots],
                generator.permutation(negatives)[
                    : shots * (targets.shape[1] - 1)
                ],
            ]
        )
    )


def average_precision(scores, targets, interpolation="voc2007"):
    """Average precision as VOC defines it.

    Args:
        scores: (N,); images are ranked by it, of equal ones the earlier first.
        targets: (N,) of 1 and 0.
        interpolation: "voc2007": the mean over the recalls 0, 0.1, ..., 1 of
            the highest precision at that recall or a higher one (VOC2007's
            development kit). "area": the area below the precision made
            monotonous (VOC2010 and later). Defaults to `"voc2007"`.

    Returns:
        Float from 0 to 1.

    Raises:
        ValueError: If there is no 1 in `targets`, or for another
            interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"`interpolation` must be one of {', '.join(INTERPOLATIONS)}. "
            f"Received: interpolation={interpolation!r}"
        )
    ranked = np.asarray(targets)[np.argsort(-np.asarray(scores), kind="stable")]
    found = np.cumsum(ranked == 1)
    if not len(found) or found[-1] == 0:
        raise ValueError(
            "`targets` must have an image with the class. Received: none"
        )
    precision = found / np.arange(1, len(found) + 1)
    # The highest precision at this place or a later one.
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    if interpolation == "area":
        # The recall grows by 1 / positives at each image with the class.
        return float(highest[ranked == 1].sum() / found[-1])
    # In whole numbers: 0.1 times 3 is more than 0.3.
    reached = 10 * found >= np.arange(11)[:, None] * found[-1]
    return float(highest[reached.argmax(axis=1)].mean())


def _normalized(name, features):
    """Features of length 1; one that is 0 stays."""
    features = check_features(name, features)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12)


def _checked(name, targets, features):
    targets = np.asarray(targets)
    if targets.ndim != 2 or len(targets) != len(features):
        raise ValueError(
            f"`{name}` must have the shape (N, K), a row for each image. "
            f"Received: shape {targets.shape} and {len(features)} images"
        )
    if not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError(
            f"`{name}` must hold 1, 0 and -1 alone. "
            f"Received: {sorted(set(targets.ravel().tolist()))[:5]}"
        )
    return targets
