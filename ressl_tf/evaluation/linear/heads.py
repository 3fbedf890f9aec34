"""Softmax regressions by SGD: what every probe trains, and its score.

Shapes use B for images of a batch, C for features, R for learning rates and
N for classes.
"""

import numpy as np
import tensorflow as tf

from ressl_tf.evaluation.features import check_features
from ressl_tf.evaluation.features import check_labels
from ressl_tf.evaluation.features import check_positive_integer


class SoftmaxHeads(tf.Module):
    """Softmax regressions on the same features, one for each learning rate.

    They start from the same weights, see the same batches and know nothing of
    each other: each is what it would be alone. SGD in PyTorch's form, without
    weight decay: v <- momentum v + gradient; w <- w - rate v, or with Nesterov
    w <- w - rate (momentum v + gradient).

    Args:
        num_features: Integer C.
        num_classes: Integer N of at least 2.
        learning_rates: Positive floats, R of them.
        momentum: Float in [0, 1). Defaults to `0.9`.
        nesterov: Whether the momentum is Nesterov's. Defaults to `False`.
        seed: Integer of at least 0, of `initial_weights`. Defaults to `0`.

    Raises:
        ValueError: If an argument has the wrong type or range.
    """

    def __init__(
        self,
        num_features,
        num_classes,
        learning_rates,
        *,
        momentum=0.9,
        nesterov=False,
        seed=0,
    ):
        super().__init__(name="softmax_heads")
        check_learning_rates(learning_rates)
        if not 0 <= momentum < 1:
            raise ValueError(
                "`momentum` should lie in [0, 1). "
                f"Received: momentum={momentum!r}"
            )
        self.learning_rates = tuple(map(float, learning_rates))
        self.momentum = momentum
        self.nesterov = nesterov
        kernel, bias = initial_weights(num_features, num_classes, seed)
        number = len(self.learning_rates)
        kernel = np.repeat(kernel[:, None], number, axis=1)  # (C, R, N)
        bias = np.repeat(bias[None], number, axis=0)  # (R, N)
        self.kernel, self.bias = tf.Variable(kernel), tf.Variable(bias)
        self.velocities = [
            tf.Variable(tf.zeros_like(value)) for value in (kernel, bias)
        ]

    def step(self, features, labels, factor=1.0):
        """One step of all heads.

        Args:
            features: float32 (B, C).
            labels: integers (B,).
            factor: of the learning rates, a scalar.

        Returns:
            (R,) mean cross-entropies of the batch, before the step.
        """
        num_features, number, num_classes = self.kernel.shape
        targets = tf.one_hot(labels, num_classes)[:, None]
        flat = tf.reshape(self.kernel, [num_features, number * num_classes])
        logits = tf.matmul(features, flat)
        logits = tf.reshape(logits, [-1, number, num_classes]) + self.bias
        losses = -tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=-1)
        # The gradient of the batch's mean loss to the logits.
        gradient = tf.nn.softmax(logits) - targets
        gradient /= tf.cast(tf.shape(features)[0], tf.float32)
        by_kernel = tf.matmul(
            features,
            tf.reshape(gradient, [-1, number * num_classes]),
            transpose_a=True,
        )
        gradients = (
            tf.reshape(by_kernel, self.kernel.shape),
            tf.reduce_sum(gradient, axis=0),
        )
        rates = tf.constant(self.learning_rates)[:, None] * factor
        for weight, velocity, gradient in zip(
            (self.kernel, self.bias), self.velocities, gradients, strict=True
        ):
            velocity.assign(self.momentum * velocity + gradient)
            change = velocity
            if self.nesterov:
                change = self.momentum * velocity + gradient
            weight.assign_sub(rates * change)
        return tf.reduce_mean(losses, axis=0)

    def weights(self):
        """[(kernel (C, N), bias (N,)) or None], one for each learning rate.

        None is a head that has diverged: its weights are not finite.
        """
        kernel, bias = self.kernel.numpy(), self.bias.numpy()
        weights = [
            (np.ascontiguousarray(kernel[:, number]), bias[number])
            for number in range(len(bias))
        ]
        return [
            pair if all(np.isfinite(value).all() for value in pair) else None
            for pair in weights
        ]


def initial_weights(num_features, num_classes, seed):
    """The weights that `SoftmaxHeads` start from, a function of the seed.

    Args:
        num_features: Integer C.
        num_classes: Integer N.
        seed: Integer of at least 0.

    Returns:
        Two float32 arrays: the kernel (C, N), normal with mean 0 and
        deviation 0.01, and the bias (N,), zeros.

    Raises:
        ValueError: If `seed` is not an integer of at least 0.
    """
    check_seed(seed)
    kernel = np.random.default_rng([seed]).normal(
        scale=0.01, size=(num_features, num_classes)
    )
    return kernel.astype(np.float32), np.zeros(num_classes, np.float32)


def evaluate(
    train_features, train_labels, test_features, test_labels, kernel, bias
):
    """What the probes return of weights: see `linear_probe`."""
    train = score(train_features, train_labels, kernel, bias)
    test = score(test_features, test_labels, kernel, bias)
    result = {"accuracy": test["top1"], "train_accuracy": train["top1"]}
    if len(bias) > 5:
        result["top5_accuracy"] = test["top5"]
    result["train_loss"] = train["loss"]
    result["weights"] = (kernel, bias)
    return result


def score(features, labels, kernel, bias, chunk_size=10000):
    """Top-1 and top-5 accuracy and mean cross-entropy, a dict of floats."""
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


def check_learning_rates(learning_rates):
    """Raises ValueError unless these are positive numbers, at least one."""
    if not len(learning_rates) or not all(rate > 0 for rate in learning_rates):
        raise ValueError(
            "`learning_rate` should be positive. "
            f"Received: learning_rate={', '.join(map(str, learning_rates))}"
        )


def check_seed(seed):
    """Raises ValueError unless `seed` is an integer of at least 0."""
    if (
        isinstance(seed, bool)
        or not isinstance(seed, (int, np.integer))
        or seed < 0
    ):
        raise ValueError(
            "`seed` should be an integer of at least 0. "
            f"Received: seed={seed!r}"
        )


def check_data(
    train_features, train_labels, test_features, test_labels, num_classes
):
    """Returns the four as arrays, or raises ValueError; see `linear_probe`."""
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
