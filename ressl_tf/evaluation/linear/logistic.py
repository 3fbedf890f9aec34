"""Multinomial logistic regression by L-BFGS, scikit-learn's.

Shapes use N for images, M for test images, C for features.
"""

import numpy as np

from ressl_tf.evaluation.features import check_positive_integer
from ressl_tf.evaluation.linear.heads import check_data
from ressl_tf.evaluation.linear.heads import evaluate


def logistic_regression(
    train_features,
    train_labels,
    test_features,
    test_labels,
    *,
    num_classes,
    l2=1.0,
    max_iterations=1000,
):
    """Fits a multinomial logistic regression on standardised features.

    Scikit-learn's `StandardScaler` and `LogisticRegression` (L-BFGS), which
    minimise the sum of the cross-entropies plus l2 / 2 times the squared norm
    of the kernel. Deterministic, and less sensitive to the scale of the
    features than `linear_probe`; not one of the paper's protocols for the
    small sets. Scikit-learn warns if `max_iterations` did not suffice.

    Args:
        train_features: (N, C).
        train_labels: Integers (N,) in [0, num_classes), at least two of them
            different.
        test_features: (M, C).
        test_labels: Integers (M,) in [0, num_classes).
        num_classes: Integer of at least 2.
        l2: Positive float, the inverse of scikit-learn's `C`. Defaults to
            `1.0`.
        max_iterations: Integer of at least 1. Defaults to `1000`.

    Returns:
        Dictionary with the keys of `linear_probe`. The weights apply to the
        features as they came: the standardisation is folded into them. A class
        without a training image has the bias -inf and is never predicted.

    Raises:
        ValueError: If an argument has the wrong shape, type or range.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    data = check_data(
        train_features, train_labels, test_features, test_labels, num_classes
    )
    if not l2 > 0:
        raise ValueError(
            "`l2` should be positive; use a small value for almost no "
            f"regularisation. Received: l2={l2!r}"
        )
    check_positive_integer("max_iterations", max_iterations)
    train_features, train_labels = data[:2]
    if len(np.unique(train_labels)) < 2:
        raise ValueError(
            "`train_labels` should hold at least two different classes. "
            f"Received: train_labels all equal to {train_labels[0]}"
        )
    scaler = StandardScaler()
    model = LogisticRegression(C=1.0 / l2, max_iter=max_iterations)
    model.fit(scaler.fit_transform(train_features), train_labels)
    coefficients = model.coef_.T.astype(np.float64)
    intercept = model.intercept_.astype(np.float64)
    if len(model.classes_) == 2:
        # Scikit-learn keeps one logit for two classes, the second one's.
        coefficients = np.hstack([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    coefficients /= scaler.scale_[:, None]
    intercept -= scaler.mean_ @ coefficients
    kernel = np.zeros((train_features.shape[1], num_classes), np.float32)
    bias = np.full(num_classes, -np.inf, np.float32)
    kernel[:, model.classes_] = coefficients
    bias[model.classes_] = intercept
    return evaluate(*data, kernel, bias)
