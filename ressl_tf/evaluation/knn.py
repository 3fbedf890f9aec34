"""Weighted k-nearest-neighbour classification, the monitor of a training.

Shapes use Q for queries, N for the bank, C for features, K for neighbours.
"""

import numpy as np
import tensorflow as tf

from ressl_tf.evaluation.features import check_features
from ressl_tf.evaluation.features import check_labels
from ressl_tf.evaluation.features import check_positive_integer


def knn_predict(
    bank,
    bank_labels,
    queries,
    *,
    num_classes,
    k=200,
    temperature=0.1,
    chunk_size=1000,
):
    """Classifies each query by a weighted vote of its nearest neighbours.

    The k-NN protocol of the paper's monitor: the `k` rows of the bank with the
    largest cosine similarity s vote for their class with the weight
    exp(s / temperature). Of equally similar rows the earlier one is taken, and
    of equal votes the lower class wins.

    Args:
        bank: Features of the labelled images, (N, C).
        bank_labels: Integers (N,) in [0, num_classes).
        queries: Features of the images to classify, (Q, C).
        num_classes: Integer.
        k: Number of neighbours that vote, at most N. Defaults to `200`.
        temperature: Positive float. Defaults to `0.1`.
        chunk_size: Queries handled at once; the similarities of a chunk take
            `4 * chunk_size * N` bytes. Does not change the result. Defaults to
            `1000`.

    Returns:
        int64 array (Q,).

    Raises:
        ValueError: If an argument has the wrong shape, type or range.
    """
    bank = check_features("bank", bank)
    queries = check_features("queries", queries)
    check_positive_integer("num_classes", num_classes)
    bank_labels = check_labels(
        "bank_labels", bank_labels, len(bank), num_classes
    )
    check_positive_integer("k", k)
    if k > len(bank):
        raise ValueError(
            "`k` should be at most the number of images in the bank: pass "
            f"`k=min(k, len(bank))`. Received: k={k} and {len(bank)} images"
        )
    if not temperature > 0:
        raise ValueError(
            "`temperature` should be positive. "
            f"Received: temperature={temperature!r}"
        )
    predictions = np.empty(len(queries), np.int64)
    for start, indices, similarities in _neighbours_by_chunk(
        queries, bank, k, chunk_size
    ):
        # The largest similarity as the origin: a common factor of all votes,
        # without which a small temperature would overflow.
        weights = np.exp(
            (similarities - similarities[:, :1]).astype(np.float64)
            / temperature
        )
        rows = np.arange(len(indices))[:, None]
        votes = np.bincount(
            (rows * num_classes + bank_labels[indices]).ravel(),
            weights=weights.ravel(),
            minlength=len(indices) * num_classes,
        ).reshape(len(indices), num_classes)
        predictions[start : start + len(indices)] = votes.argmax(axis=1)
    return predictions


def knn_accuracy(
    train_features,
    train_labels,
    test_features,
    test_labels,
    *,
    num_classes,
    k=200,
    temperature=0.1,
    chunk_size=1000,
):
    """Top-1 accuracy of `knn_predict`, the training set being the bank.

    Args:
        train_features: (N, C).
        train_labels: Integers (N,) in [0, num_classes).
        test_features: (Q, C).
        test_labels: Integers (Q,) in [0, num_classes).
        num_classes: Integer.
        k: Number of neighbours that vote, at most N. Defaults to `200`.
        temperature: Positive float. Defaults to `0.1`.
        chunk_size: Queries handled at once. Defaults to `1000`.

    Returns:
        Float from 0 to 1.

    Raises:
        ValueError: If an argument has the wrong shape, type or range.
    """
    test_features = check_features("test_features", test_features)
    check_positive_integer("num_classes", num_classes)
    test_labels = check_labels(
        "test_labels", test_labels, len(test_features), num_classes
    )
    predictions = knn_predict(
        train_features,
        train_labels,
        test_features,
        num_classes=num_classes,
        k=k,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    return float(np.mean(predictions == test_labels))


def nearest_neighbours(
    query_features, bank_features, num_neighbours, *, chunk_size=1000
):
    """Ranks the bank by cosine similarity to each query.

    Features are L2-normalised here (a row of zeros stays zero) and compared in
    float32. On GPUs with TensorFloat-32, TensorFlow rounds the products to it
    unless `tf.config.experimental.enable_tensor_float_32_execution(False)`
    was called.

    Args:
        query_features: (Q, C).
        bank_features: (N, C).
        num_neighbours: Integer K, at most N.
        chunk_size: Queries handled at once. Defaults to `1000`.

    Returns:
        Two arrays (Q, K), the most similar first, the earlier row of the bank
        first among equals: int32 row numbers, and float32 similarities from
        -1 to 1.

    Raises:
        ValueError: If an argument has the wrong shape, type or range.
    """
    query_features = check_features("query_features", query_features)
    bank_features = check_features("bank_features", bank_features)
    check_positive_integer("num_neighbours", num_neighbours)
    if num_neighbours > len(bank_features):
        raise ValueError(
            "`num_neighbours` should be at most the number of rows in "
            f"`bank_features`. Received: num_neighbours={num_neighbours} and "
            f"{len(bank_features)} rows"
        )
    chunks = list(
        _neighbours_by_chunk(
            query_features, bank_features, num_neighbours, chunk_size
        )
    )
    indices = np.concatenate([chunk[1] for chunk in chunks])
    similarities = np.concatenate([chunk[2] for chunk in chunks])
    return indices, similarities


def _neighbours_by_chunk(queries, bank, num_neighbours, chunk_size):
    """Yields (start, indices, similarities) of each chunk of queries."""
    check_positive_integer("chunk_size", chunk_size)
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(
            "Queries and bank should have the same number of features: take "
            "both from the same encoder. Received: queries of shape "
            f"{queries.shape} and a bank of shape {bank.shape}"
        )
    bank = _normalize(tf.convert_to_tensor(bank))
    for start in range(0, len(queries), chunk_size):
        similarities, indices = _most_similar(
            tf.convert_to_tensor(queries[start : start + chunk_size]),
            bank,
            tf.constant(num_neighbours, tf.int32),
        )
        yield start, indices.numpy(), similarities.numpy()


def _normalize(features):
    return tf.math.l2_normalize(features, axis=1, epsilon=1e-24)


# Bank and k are arguments, not captures: one trace serves every call.
@tf.function(
    input_signature=[
        tf.TensorSpec((None, None), tf.float32),
        tf.TensorSpec((None, None), tf.float32),
        tf.TensorSpec((), tf.int32),
    ]
)
def _most_similar(queries, bank, k):
    similarities = tf.matmul(_normalize(queries), bank, transpose_b=True)
    return tf.math.top_k(similarities, k)
