"""Queries beside their nearest neighbours."""

import numpy as np

from ressl_tf.evaluation.features import check_features
from ressl_tf.evaluation.features import check_images
from ressl_tf.evaluation.features import check_labels
from ressl_tf.evaluation.features import check_positive_integer
from ressl_tf.evaluation.knn import nearest_neighbours
from ressl_tf.evaluation.visualize.figures import write_png
from ressl_tf.evaluation.visualize.neighbour_grid import Grid


def plot_neighbours(
    path,
    query_images,
    query_labels,
    bank_images,
    bank_labels,
    query_features,
    bank_features,
    *,
    class_names=(),
    num_queries=10,
    num_neighbours=8,
    seed=0,
    title=None,
):
    """Draws queries, one a row, each beside its nearest neighbours.

    The neighbours are those of `nearest_neighbours`, the most similar first,
    with the cosine similarity above each. With labels, a neighbour of another
    class has a red frame and one of the same class a thin green frame. Small
    images are enlarged pixel by pixel; the picture is 1,444 pixels wide by
    default, and never wider than 1,480 with up to 20 neighbours.

    Args:
        path: Where to write the PNG; missing folders are made.
        query_images: uint8 array (Q, H, W, 3). Where queries are also in the
            bank, each is its own first neighbour: keep the two apart.
        query_labels: Integers (Q,), or `None`.
        bank_images: uint8 array (N, H, W, 3); the size may be another one.
        bank_labels: Integers (N,), or `None`.
        query_features: (Q, C).
        bank_features: (N, C).
        class_names: Names by label, drawn beside the queries. Defaults to `()`,
            which draws the number.
        num_queries: Rows, at most Q. Defaults to `10`.
        num_neighbours: Neighbours per row, at most N. Defaults to `8`.
        seed: Integer of at least 0 that chooses the queries, see
            `choose_queries`. Defaults to `0`.
        title: Text above the picture. Defaults to `None`.

    Returns:
        `path`.

    Raises:
        ValueError: If an argument has the wrong shape, type or range.
    """
    return compare_neighbours(
        path,
        query_images,
        query_labels,
        bank_images,
        bank_labels,
        {"": (query_features, bank_features)},
        class_names=class_names,
        num_queries=num_queries,
        num_neighbours=num_neighbours,
        seed=seed,
        title=title,
    )


def compare_neighbours(
    path,
    query_images,
    query_labels,
    bank_images,
    bank_labels,
    features,
    *,
    class_names=(),
    num_queries=10,
    num_neighbours=8,
    seed=0,
    title=None,
):
    """Draws the neighbours of the same queries for several encoders.

    Each query has one row of neighbours for each encoder, below each other,
    with its name and how many have the class of the query; the rest is as in
    `plot_neighbours`.

    Args:
        path: As in `plot_neighbours`, as all that is not named here.
        query_images: As above.
        query_labels: As above.
        bank_images: As above.
        bank_labels: As above.
        features: {name of an encoder: ((Q, C), (N, C))}, its features of
            queries and bank; each encoder may have another C. The name of a
            single one is not drawn.
        class_names: As above.
        num_queries: As above.
        num_neighbours: As above.
        seed: As above.
        title: As above.

    Returns:
        `path`.

    Raises:
        ValueError: If there is no encoder, or an argument has the wrong shape,
            type or range.
    """
    if not features:
        raise ValueError(
            "`features` should have those of at least one encoder. "
            "Received: features={}"
        )
    query_images = check_images("query_images", query_images)
    bank_images = check_images("bank_images", bank_images)
    features = {
        name: _check_pair(name, pair, query_images, bank_images)
        for name, pair in features.items()
    }
    num_labels = len(class_names) or np.iinfo(np.int64).max
    if query_labels is not None:
        query_labels = check_labels(
            "query_labels", query_labels, len(query_images), num_labels
        )
    if bank_labels is not None:
        bank_labels = check_labels(
            "bank_labels", bank_labels, len(bank_images), num_labels
        )
    chosen = choose_queries(query_labels, len(query_images), num_queries, seed)
    found = {
        name: nearest_neighbours(queries[chosen], bank, num_neighbours)
        for name, (queries, bank) in features.items()
    }
    with_frames = query_labels is not None and bank_labels is not None
    grid = Grid(
        num_queries,
        num_neighbours,
        len(found),
        with_labels=query_labels is not None,
        with_title=title is not None,
        with_frames=with_frames,
    )
    if title is not None:
        grid.write_title(title)
    grid.write_header()
    num_right = dict.fromkeys(found, 0)
    for place, query in enumerate(chosen):
        grid.draw_query(place, query_images[query])
        if query_labels is not None:
            label = query_labels[query]
            name = class_names[label] if len(class_names) else f"class {label}"
            grid.write_class(place, str(name))
        for turn, (name, (indices, similarities)) in enumerate(found.items()):
            row = place * len(found) + turn
            is_right = [None] * num_neighbours
            if with_frames:
                is_right = bank_labels[indices[place]] == query_labels[query]
                num_right[name] += int(is_right.sum())
            if len(found) > 1:
                count = int(is_right.sum()) if with_frames else None
                grid.write_encoder(row, name, count)
            for rank, index in enumerate(indices[place]):
                grid.draw_neighbour(
                    row,
                    rank,
                    bank_images[index],
                    similarities[place, rank],
                    is_right[rank],
                )
    if with_frames:
        grid.write_footer(num_right, num_queries * num_neighbours)
    write_png(grid.figure, path)
    return path


def choose_queries(labels, num_images, num_queries, seed):
    """Picks images at random, spread evenly over the classes.

    Args:
        labels: Integers (num_images,), or `None` for a plain random choice.
        num_images: Integer.
        num_queries: Integer, at most `num_images`.
        seed: Integer of at least 0.

    Returns:
        int64 array (num_queries,) of different image numbers, ordered by
        label. The counts of two classes differ by at most 1 unless one has run
        out of images.

    Raises:
        ValueError: If an argument has the wrong type or range.
    """
    check_positive_integer("num_queries", num_queries)
    if num_queries > num_images:
        raise ValueError(
            "`num_queries` should be at most the number of query images. "
            f"Received: num_queries={num_queries} and {num_images} images"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(num_images)
    if labels is None:
        return order[:num_queries]
    classes = generator.permutation(np.unique(labels))
    # Deal the images out like cards: the n-th of every class before the
    # (n + 1)-th of any.
    turns = np.empty((num_images, 2), np.int64)
    for place, label in enumerate(classes):
        members = order[labels[order] == label]
        turns[members, 0] = np.arange(len(members))
        turns[members, 1] = place
    chosen = np.lexsort((turns[:, 1], turns[:, 0]))[:num_queries]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _check_pair(name, pair, query_images, bank_images):
    """Features of queries and of the bank, checked; an encoder's `name`."""
    of_encoder = f" of {name}" if name else ""
    checked = []
    for kind, images, features in zip(
        ("query", "bank"), (query_images, bank_images), pair, strict=True
    ):
        features = check_features(f"{kind}_features{of_encoder}", features)
        if len(images) != len(features):
            raise ValueError(
                f"`{kind}_images` and `{kind}_features`{of_encoder} should "
                f"have one row per image. Received: {len(images)} images and "
                f"{len(features)} rows of features"
            )
        checked.append(features)
    return tuple(checked)
