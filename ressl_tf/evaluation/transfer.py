"""Transfer of frozen features to other data sets: logistic regression.

Shapes use N for images, C for features.
"""

import warnings
from typing import NamedTuple

import numpy as np
import tqdm

from ressl_tf import data
from ressl_tf.evaluation.features import check_features
from ressl_tf.evaluation.features import check_labels
from ressl_tf.evaluation.features import check_positive_integer

# Weight of half the squared norm of the weights beside the mean cross-entropy:
# 45 values from 1e-6 to 1e5, logarithmically spaced, as SimCLR (appendix B.8)
# and BYOL have them.
L2_GRID = tuple(np.logspace(-6, 5, 45).tolist())
# Of the training images, where a set has no validation split of its own.
VALIDATION_FRACTION = 0.2


class DataSet(NamedTuple):
    """How a set is used.

    Attributes:
        source: as in `data.load`.
        metric: "top1" or "mean_per_class".
        train: split.
        validation: split, or None to take a part of `train`.
        test: split that is scored.
    """

    source: str
    metric: str
    train: str = "train"
    validation: str | None = None
    test: str = "test"


# The paper's nine, by the names of TensorFlow Datasets.
DATA_SETS = {
    "cifar10": DataSet("tfds:cifar10", "top1"),
    "cifar100": DataSet("tfds:cifar100", "top1"),
    # Its "validation" is the official test split.
    "food101": DataSet("tfds:food101", "top1", test="validation"),
    "cars196": DataSet("tfds:cars196", "top1"),
    "dtd": DataSet("tfds:dtd", "top1", validation="validation"),
    "oxford_iiit_pet": DataSet("tfds:oxford_iiit_pet", "mean_per_class"),
    "oxford_flowers102": DataSet(
        "tfds:oxford_flowers102", "mean_per_class", validation="validation"
    ),
    # Not TensorFlow Datasets' own, but `data.aircraft`'s.
    "fgvc_aircraft": DataSet(
        "tfds:fgvc_aircraft", "mean_per_class", validation="validation"
    ),
    "caltech101": DataSet("tfds:caltech101", "mean_per_class"),
}


class Split(NamedTuple):
    """Features (N, C) of a split and its labels, integers (N,)."""

    features: np.ndarray
    labels: np.ndarray


def transfer(
    train,
    validation,
    test,
    *,
    num_classes,
    metric="top1",
    l2_grid=L2_GRID,
    max_iterations=1000,
    progress=False,
):
    """Scores L2-regularised multinomial logistic regression on features.

    The paper's protocol: L-BFGS (scikit-learn's) on frozen features of images
    that are not augmented. The strength of the regulariser is chosen on the
    validation split, each fit starting from the stronger one's weights; then
    a regression is fitted to the training and validation images together, and
    scored on the test images, which nothing else has looked at. The features
    are taken as they come, not standardised: the paper does not say.

    Args:
        train: `Split`.
        validation: `Split`.
        test: `Split`.
        num_classes: Integer of at least 2.
        metric: "top1" or "mean_per_class", of validation and test. Defaults
            to `"top1"`.
        l2_grid: Positive floats; the objective is the mean cross-entropy plus
            l2 / 2 times the squared norm of the weights.
        max_iterations: Integer of at least 1, of each fit. Defaults to
            `1000`.
        progress: Whether to show a progress bar. Defaults to `False`.

    Returns:
        Dictionary with "accuracy" (the metric on the test images, 0 to 1),
        "validation_accuracy", "l2" (the chosen one), "at_edge" (whether it is
        one of the grid's ends: the best may lie outside) and "not_converged"
        (how many fits have used up their iterations).

    Raises:
        ValueError: If an argument has the wrong shape, type or range.
    """
    score = _metric(metric)
    check_positive_integer("max_iterations", max_iterations)
    if not len(l2_grid) or not all(l2 > 0 for l2 in l2_grid):
        raise ValueError(
            f"`l2_grid` must hold positive numbers. Received: {l2_grid}"
        )
    train, validation, test = (
        _checked(name, split, num_classes)
        for name, split in (
            ("train", train),
            ("validation", validation),
            ("test", test),
        )
    )
    grid = sorted(l2_grid, reverse=True)  # a weaker one starts from a stronger
    model = _Regression(max_iterations)
    found = []
    for l2 in tqdm.tqdm(
        grid,
        "regulariser",
        unit="fit",
        disable=None if progress else True,
        leave=False,
    ):
        model.fit(train, l2)
        predicted = model.predict(validation.features)
        found.append(score(validation.labels, predicted))
    best = int(np.argmax(found))  # of equal ones the strongest
    both = Split(
        np.concatenate([train.features, validation.features]),
        np.concatenate([train.labels, validation.labels]),
    )
    final = _Regression(max_iterations)
    final.fit(both, grid[best])
    return {
        "accuracy": score(test.labels, final.predict(test.features)),
        "validation_accuracy": found[best],
        "l2": grid[best],
        "at_edge": best in (0, len(grid) - 1),
        "not_converged": model.not_converged + final.not_converged,
    }


def split_off(labels, fraction=VALIDATION_FRACTION, seed=0):
    """Which training images become the validation split, class by class.

    Args:
        labels: Integers (N,), at least two of each class.
        fraction: of each class, above 0 and below 1. Defaults to `0.2`.
        seed: Integer of at least 0. Defaults to `0`.

    Returns:
        Two int64 arrays of positions: those that stay, those split off.
    """
    held_out = data.balanced_rows(labels, fraction, seed)
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def top1(labels, predicted):
    """Share of the images that are classified right."""
    return float(np.mean(labels == predicted))


def mean_per_class(labels, predicted):
    """Mean over the classes of the share that is classified right.

    Classes without an image do not count.
    """
    right = (labels == predicted).astype(np.float64)
    counts = np.bincount(labels)
    sums = np.bincount(labels, weights=right)
    return float(np.mean(sums[counts > 0] / counts[counts > 0]))


METRICS = {"top1": top1, "mean_per_class": mean_per_class}


class _Regression:
    """Scikit-learn's, which goes on from its last weights.

    Attributes:
        not_converged: how many fits have used up their iterations.
    """

    def __init__(self, max_iterations):
        from sklearn.linear_model import LogisticRegression

        self.not_converged = 0
        # Between neighbours of the grid the gradient changes by about l2, so
        # a start from the last weights is within scikit-learn's 1e-4 already
        # where l2 is below that, and makes no step.
        self._model = LogisticRegression(
            max_iter=max_iterations, warm_start=True, tol=1e-6
        )

    def fit(self, split, l2):
        from sklearn.exceptions import ConvergenceWarning

        # Scikit-learn minimises C times the sum of the cross-entropies plus
        # half the squared norm.
        self._model.set_params(C=1.0 / (l2 * len(split.labels)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            self._model.fit(split.features, split.labels)
        self.not_converged += any(
            issubclass(w.category, ConvergenceWarning) for w in caught
        )

    def predict(self, features):
        return self._model.predict(features)


def _checked(name, split, num_classes):
    features = check_features(f"{name}.features", split.features)
    return Split(
        features,
        check_labels(
            f"{name}.labels", split.labels, len(features), num_classes
        ),
    )


def _metric(name):
    if name not in METRICS:
        raise ValueError(
            f"`metric` must be one of {', '.join(METRICS)}. "
            f"Received: metric={name!r}"
        )
    return METRICS[name]
