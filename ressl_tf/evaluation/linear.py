"""Linear probes on cached features of a frozen backbone.

Shapes use N for images, M for test images, C for features.
"""

import numpy as np
import tensorflow as tf
from tensorflow import keras

from ressl_tf.evaluation.features import check_features
from ressl_tf.evaluation.features import check_labels
from ressl_tf.evaluation.features import check_positive_integer


def linear_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    *,
    num_classes,
    learning_rate=10.0,
    momentum=0.9,
    epochs=100,
    milestones=(60, 80),
    decay=0.1,
    batch_size=256,
    seed=0,
    progress=False,
):
    """Trains a softmax regression by SGD, the paper's small-set protocol.

    The features are used as they come, neither standardised nor normalised.
    SGD in PyTorch's form: v <- momentum * v + gradient, w <- w -
    learning_rate * v, without weight decay. The last, smaller batch of an
    epoch is used. The paper does not say how the weights start or are
    shuffled: `initial_weights` and `epoch_order` are our choice.

    Args:
        train_features: (N, C).
        train_labels: Integers (N,) in [0, num_classes).
        test_features: (M, C).
        test_labels: Integers (M,) in [0, num_classes).
        num_classes: Integer of at least 2.
        learning_rate: Positive float. Defaults to `10.0`.
        momentum: Float in [0, 1). Defaults to `0.9`.
        epochs: Integer of at least 1. Defaults to `100`.
        milestones: Epochs (counted from 0) from whose beginning on the
            learning rate is multiplied by `decay`. Defaults to `(60, 80)`.
        decay: Positive float. Defaults to `0.1`.
        batch_size: Integer of at least 1. Defaults to `256`.
        seed: Integer of at least 0. Defaults to `0`.
        progress: Whether to print a progress bar. Defaults to `False`.

    Returns:
        Dictionary with "accuracy" (top-1 on the test images, 0 to 1),
        "top5_accuracy" (only with more than five classes), "train_accuracy",
        "train_loss" (mean cross-entropy of the final weights) and "weights",
        the float32 arrays kernel (C, num_classes) and bias (num_classes,).

    Raises:
        ValueError: If an argument has the wrong shape, type or range, or if
            training diverges.
    """
    data = _check_data(
        train_features, train_labels, test_features, test_labels, num_classes
    )
    check_positive_integer("epochs", epochs)
    check_positive_integer("batch_size", batch_size)
    if not learning_rate > 0:
        raise ValueError(
            "`learning_rate` should be positive. "
            f"Received: learning_rate={learning_rate!r}"
        )
    if not 0 <= momentum < 1:
        raise ValueError(
            f"`momentum` should lie in [0, 1). Received: momentum={momentum!r}"
        )
    if not decay > 0:
        raise ValueError(
            "`decay` should be positive; leave `milestones` empty for a "
            f"constant learning rate. Received: decay={decay!r}"
        )
    train_features, train_labels = data[:2]
    kernel, bias = initial_weights(train_features.shape[1], num_classes, seed)
    features = tf.convert_to_tensor(train_features)
    labels = tf.convert_to_tensor(train_labels)
    state = tuple(
        tf.convert_to_tensor(value)
        for value in (kernel, bias, np.zeros_like(kernel), np.zeros_like(bias))
    )
    bar = None
    if progress:
        bar = keras.utils.Progbar(epochs, stateful_metrics=["loss"])
    for epoch in range(epochs):
        factor = decay ** sum(epoch >= milestone for milestone in milestones)
        loss, state = _train_epoch(
            features,
            labels,
            tf.convert_to_tensor(epoch_order(len(labels), seed, epoch)),
            state,
            tf.constant(learning_rate * factor, tf.float32),
            tf.constant(momentum, tf.float32),
            tf.constant(batch_size, tf.int32),
        )
        loss = float(loss)
        finite = all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in state)
        if not (np.isfinite(loss) and finite):
            raise ValueError(
                f"The linear probe diverged in epoch {epoch + 1} of {epochs}: "
                "its loss or its weights are not finite. Lower "
                "`learning_rate`, or scale the features down. Received: "
                f"learning_rate={learning_rate} and features of absolute "
                f"values up to {np.abs(train_features).max():.3g}"
            )
        if bar is not None:
            bar.update(epoch + 1, [("loss", loss)])
    return _evaluate(*data, state[0].numpy(), state[1].numpy())


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

    data = _check_data(
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
    return _evaluate(*data, kernel, bias)


def initial_weights(num_features, num_classes, seed):
    """The weights that `linear_probe` starts from, a function of the seed.

    Args:
        num_features: Integer C.
        num_classes: Integer.
        seed: Integer of at least 0.

    Returns:
        Two float32 arrays: the kernel (C, num_classes), normal with mean 0 and
        deviation 0.01, and the bias (num_classes,), zeros.

    Raises:
        ValueError: If `seed` is not an integer of at least 0.
    """
    _check_seed(seed)
    kernel = np.random.default_rng([seed]).normal(
        scale=0.01, size=(num_features, num_classes)
    )
    return kernel.astype(np.float32), np.zeros(num_classes, np.float32)


def epoch_order(num_examples, seed, epoch):
    """The order of the images in one epoch, a function of seed and epoch.

    Args:
        num_examples: Integer N.
        seed: Integer of at least 0.
        epoch: Integer of at least 0.

    Returns:
        int32 array (N,), a permutation of 0 to N - 1.

    Raises:
        ValueError: If `seed` is not an integer of at least 0.
    """
    _check_seed(seed)
    # The 1 keeps epoch 0 apart from the initial weights: numpy's generators
    # take [seed] and [seed, 0] for the same seed.
    generator = np.random.default_rng([seed, epoch, 1])
    return generator.permutation(num_examples).astype(np.int32)


def _check_seed(seed):
    if (
        isinstance(seed, bool)
        or not isinstance(seed, (int, np.integer))
        or seed < 0
    ):
        raise ValueError(
            "`seed` should be an integer of at least 0. "
            f"Received: seed={seed!r}"
        )


def _check_data(
    train_features, train_labels, test_features, test_labels, num_classes
):
    check_positive_integer("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(
            f"`num_classes` should be at least 2. Received: num_classes="
            f"{num_classes}"
        )
    train_features = check_features("train_features", train_features)
    test_features = check_features("test_features", test_features)
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            "`train_features` and `test_features` should have the same number "
            "of columns: take both from the same encoder. Received: "
            f"train_features of shape {train_features.shape} and "
            f"test_features of shape {test_features.shape}"
        )
    train_labels = check_labels(
        "train_labels", train_labels, len(train_features), num_classes
    )
    test_labels = check_labels(
        "test_labels", test_labels, len(test_features), num_classes
    )
    return train_features, train_labels, test_features, test_labels


@tf.function(
    input_signature=[
        tf.TensorSpec((None, None), tf.float32),
        tf.TensorSpec((None,), tf.int64),
        tf.TensorSpec((None,), tf.int32),
        (
            tf.TensorSpec((None, None), tf.float32),
            tf.TensorSpec((None,), tf.float32),
            tf.TensorSpec((None, None), tf.float32),
            tf.TensorSpec((None,), tf.float32),
        ),
        tf.TensorSpec((), tf.float32),
        tf.TensorSpec((), tf.float32),
        tf.TensorSpec((), tf.int32),
    ]
)
def _train_epoch(
    features, labels, order, state, learning_rate, momentum, batch_size
):
    """Returns the mean loss of the epoch, and the state after it."""
    kernel, bias, kernel_velocity, bias_velocity = state
    num_classes = tf.shape(bias)[0]
    num_examples = tf.shape(order)[0]
    total_loss = tf.constant(0.0)
    for start in tf.range(0, num_examples, batch_size):
        batch = order[start : start + batch_size]
        inputs = tf.gather(features, batch)
        targets = tf.one_hot(tf.gather(labels, batch), num_classes)
        logits = tf.matmul(inputs, kernel) + bias
        total_loss += tf.reduce_sum(
            tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        )
        # The gradient of the batch's mean loss to the logits.
        gradient = tf.nn.softmax(logits) - targets
        gradient /= tf.cast(tf.shape(batch)[0], tf.float32)
        kernel_velocity = momentum * kernel_velocity + tf.matmul(
            inputs, gradient, transpose_a=True
        )
        bias_velocity = momentum * bias_velocity + tf.reduce_sum(gradient, 0)
        kernel -= learning_rate * kernel_velocity
        bias -= learning_rate * bias_velocity
    state = (kernel, bias, kernel_velocity, bias_velocity)
    return total_loss / tf.cast(num_examples, tf.float32), state


def _evaluate(
    train_features, train_labels, test_features, test_labels, kernel, bias
):
    train = _score(train_features, train_labels, kernel, bias)
    test = _score(test_features, test_labels, kernel, bias)
    result = {"accuracy": test["top1"], "train_accuracy": train["top1"]}
    if len(bias) > 5:
        result["top5_accuracy"] = test["top5"]
    result["train_loss"] = train["loss"]
    result["weights"] = (kernel, bias)
    return result


def _score(features, labels, kernel, bias, chunk_size=10000):
    """Returns top-1 and top-5 accuracy and mean cross-entropy as floats."""
    sums = np.zeros(3)
    for start in range(0, len(features), chunk_size):
        logits = tf.matmul(features[start : start + chunk_size], kernel) + bias
        targets = labels[start : start + chunk_size]
        best = tf.math.top_k(logits, min(5, len(bias))).indices.numpy()
        hits = best == targets[:, None]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        sums += hits[:, 0].sum(), hits.sum(), losses.numpy().sum(dtype=float)
    top1, top5, loss = (sums / len(features)).tolist()
    return {"top1": top1, "top5": top5, "loss": loss}
