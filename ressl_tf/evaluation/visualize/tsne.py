"""Embeddings in the plane, coloured by class."""

import math
import textwrap

import numpy as np

from ressl_tf.evaluation.features import check_features
from ressl_tf.evaluation.features import check_labels
from ressl_tf.evaluation.visualize.figures import DPI
from ressl_tf.evaluation.visualize.figures import FAINT_COLOR
from ressl_tf.evaluation.visualize.figures import TEXT_COLOR
from ressl_tf.evaluation.visualize.figures import write_png

MAX_LEGEND = 24  # classes that are named
_PERPLEXITY = 30.0
_START_DEVIATION = 1e-4  # of the first places, as scikit-learn has it
_UNLABELLED_COLOR = "#1f4e9c"


def project(features, *, seed=0):
    """Places features in the plane by t-SNE.

    scikit-learn's Barnes-Hut t-SNE of cosine distances, perplexity 30 (less
    for fewer than 91 images), from the first two principal components of the
    normalised features. The same arguments give the same places.

    Args:
        features: (N, C), N at least 5.
        seed: Integer of at least 0. Defaults to `0`.

    Returns:
        float32 array (N, 2).

    Raises:
        ValueError: If `features` has another shape or is not finite.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn needs it, too

    features = check_features("features", features)
    num_images = len(features)
    if num_images < 5:
        raise ValueError(
            "`features` should have at least 5 rows to be placed by t-SNE. "
            f"Received: features of shape {features.shape}"
        )
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    features = features / np.maximum(lengths, 1e-12)
    tsne = TSNE(
        n_components=2,
        metric="cosine",
        perplexity=min(_PERPLEXITY, (num_images - 1) / 3),
        # Not init="pca": on features that are all alike, as a collapsed
        # encoder makes them, it divides by 0 and crashes the process.
        init=_first_places(features, seed),
        random_state=seed,
    )
    # One thread, 10 seconds for 2000 images: on a machine that has other work,
    # scikit-learn's threads wait for each other for minutes.
    with threadpool_limits(1, user_api="openmp"):
        return tsne.fit_transform(features)


def plot_tsne(
    path, places, labels=None, *, class_names=(), notes=None, title=None
):
    """Draws places in the plane, one panel for each encoder.

    Args:
        path: Where to write the PNG; missing folders are made.
        places: {name of an encoder: (N, 2)}, as `project` returns them, of the
            same N images.
        labels: Integers (N,), which colour the points. Defaults to `None`, for
            one colour.
        class_names: Names by label, for the legend, which has the first 24 of
            the classes that are drawn. Defaults to `()`, for the numbers.
        notes: {name of an encoder: text below its name}. Defaults to none.
        title: Text above the picture. Defaults to `None`.

    Returns:
        `path`.

    Raises:
        ValueError: If there is no panel, or an argument has the wrong shape.
    """
    from matplotlib.figure import Figure

    if not places:
        raise ValueError(
            "`places` should have the places of at least one encoder. "
            "Received: places={}"
        )
    places = {
        name: check_features(f"places of {name}", points)
        for name, points in places.items()
    }
    num_images = len(next(iter(places.values())))
    for name, points in places.items():
        if points.shape != (num_images, 2):
            raise ValueError(
                "`places` should have the shape (N, 2), of the same N images "
                f"for each encoder; use `project`. Received: {points.shape} "
                f"for {name!r}, where N is {num_images}"
            )
    present = []
    if labels is not None:
        labels = check_labels(
            "labels",
            labels,
            num_images,
            len(class_names) or np.iinfo(np.int64).max,
        )
        present = np.unique(labels).tolist()
    columns = min(3, len(places))
    rows = math.ceil(len(places) / columns)
    side = 5.6 if columns == 1 else 4.6
    figure = Figure(
        figsize=(
            side * columns + (2.2 if present else 0.0),
            (side + 0.5) * rows + (0.5 if title else 0.0),
        ),
        dpi=DPI,
        layout="constrained",
        facecolor="white",
    )
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    if title is not None:
        figure.suptitle(
            textwrap.fill(title, int(7 * figure.get_figwidth())),
            fontsize=15,
            fontweight="bold",
            color=TEXT_COLOR,
        )
    colors = class_colors(len(present))
    point_colors = [_UNLABELLED_COLOR] * num_images
    if present:
        point_colors = colors[np.searchsorted(present, labels)]
    # Mixed, so that no class lies over all others.
    order = np.random.default_rng(0).permutation(num_images)
    for number, (name, points) in enumerate(places.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.scatter(
            *points[order].T,
            c=np.asarray(point_colors)[order],
            s=float(np.clip(16000 / num_images, 5, 40)),
            alpha=0.8,
            linewidths=0,
        )
        _style(axes, name, (notes or {}).get(name))
    if present:
        _write_legend(figure, present, colors, class_names)
    write_png(figure, path)
    return path


def class_colors(num_classes):
    """RGBA colours (num_classes, 4), as far apart as so many can be."""
    from matplotlib import colormaps

    if num_classes <= 20:
        # The ten strong ones first, then their pale relatives.
        strong_first = [*range(0, 20, 2), *range(1, 20, 2)]
        return colormaps["tab20"](strong_first[:num_classes])
    # Less than the whole circle of hues, whose ends are both red.
    return colormaps["hsv"](np.linspace(0, 0.94, num_classes)) * (
        0.85,
        0.85,
        0.85,
        1.0,
    )


def _first_places(features, seed):
    from sklearn.decomposition import PCA

    generator = np.random.default_rng(seed)
    places = generator.normal(size=(len(features), 2))
    if features.shape[1] > 1 and features.std(axis=0).max() > 1e-6:
        pca = PCA(2, svd_solver="randomized", random_state=seed)
        places = pca.fit_transform(features)
    places *= _START_DEVIATION / np.std(places[:, 0])
    return places.astype(np.float32)


def _style(axes, name, note):
    axes.set_title(
        textwrap.shorten(name, 44, placeholder=" ...") + ("\n" if note else ""),
        fontsize=12,
        fontweight="bold",
        color=TEXT_COLOR,
        loc="left",
    )
    if note:
        axes.text(
            0.0,
            1.02,
            note,
            transform=axes.transAxes,
            fontsize=11,
            color=FAINT_COLOR,
        )
    axes.set_box_aspect(1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.04)
    for spine in axes.spines.values():
        spine.set_color("#cccccc")


def _write_legend(figure, present, colors, class_names):
    from matplotlib.lines import Line2D

    names = [
        str(class_names[label]).replace("_", " ")
        if len(class_names)
        else f"class {label}"
        for label in present[:MAX_LEGEND]
    ]
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=7, color=color)
        for color in colors[: len(names)]
    ]
    if len(present) > len(names):
        handles.append(Line2D([], [], linestyle=""))
        names.append(f"and {len(present) - len(names)} more")
    figure.legend(
        handles,
        [textwrap.shorten(name, 24, placeholder=" ...") for name in names],
        loc="outside right center",
        frameon=False,
        fontsize=10,
        labelcolor=TEXT_COLOR,
        handletextpad=0.2,
        labelspacing=0.45,
    )
