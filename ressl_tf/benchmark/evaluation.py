"""What the scores cost: k nearest neighbours, and a probe on kept features."""

import numpy as np
import tensorflow as tf

from ressl_tf.benchmark import setup as setup_lib
from ressl_tf.benchmark import timing
from ressl_tf.evaluation import features
from ressl_tf.evaluation import knn
from ressl_tf.evaluation import linear

NUM_CLASSES = 10
NUM_NEIGHBOURS = 200
TEMPERATURE = 0.1


def measure(
    setup,
    rounds=3,
    *,
    num_train=50000,
    num_queries=10000,
    num_images=512,
    epochs=100,
):
    """Times k-NN beside its bare product, and a probe beside recomputing.

    Args:
        setup: `Setup`, for the backbone.
        rounds: how often everything is measured, by turns.
        num_train: N, features that vote.
        num_queries: Q, features that are classified. scikit-learn gets a
            tenth of them, for time, and counts ten times.
        num_images: that the probe is trained on.
        epochs: of the probe.

    Returns:
        The arguments, "num_features", and of wall and of CPU time: "knn",
        {"seconds", and "product" (the similarities alone) and "scikit-learn"
        as ratios to it}; "probe", {"ratio": extracting once and training, to
        training and extracting in each epoch}.
    """
    backbone, _, _ = setup_lib.make_networks(setup)
    num_features = backbone.output_shape[-1]
    generator = np.random.default_rng(0)

    def draw(number):
        labels = generator.integers(0, NUM_CLASSES, number)
        return generator.random((number, num_features), np.float32), labels

    images = setup_lib.make_pictures(num_images, setup.image_size)
    return {
        "setup": setup._asdict(),
        "rounds": rounds,
        "num_features": num_features,
        "num_train": num_train,
        "num_queries": num_queries,
        "num_images": num_images,
        "epochs": epochs,
        "knn": _measure_knn(*draw(num_train), draw(num_queries)[0], rounds),
        "probe": _measure_probe(
            backbone, images, draw(num_images)[1], epochs, rounds
        ),
    }


def table(result):
    """`measure`'s result as text: wall time, and CPU time in brackets."""
    neighbours, probe = result["knn"], result["probe"]

    def pair(value, digits=2):
        return f"{value['wall']:.{digits}f} ({value['cpu']:.{digits}f})"

    sizes = result["setup"]
    return "\n".join(
        [
            f"k-NN, {result['num_queries']} against {result['num_train']}: "
            f"{pair(neighbours['seconds'], 1)} seconds",
            f"  its product alone:  {pair(neighbours['product'])} of that",
            f"  scikit-learn:       {pair(neighbours['scikit-learn'])} of that",
            f"probe of {result['epochs']} epochs on features extracted once: "
            f"{pair(probe['ratio'], 3)} of extracting them in each",
            f"{result['num_features']} features of {sizes['backbone']}, width "
            f"{sizes['width']}, {sizes['image_size']} px; the probe on "
            f"{result['num_images']} images; wall (CPU) time, median of "
            f"{result['rounds']} rounds.",
        ]
    )


def _measure_knn(bank, labels, queries, rounds):
    from sklearn.neighbors import KNeighborsClassifier

    few = queries[: max(1, len(queries) // 10)]
    scale = len(queries) / len(few)
    opponent = KNeighborsClassifier(
        NUM_NEIGHBOURS,
        algorithm="brute",
        metric="cosine",
        weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
    ).fit(bank, labels)

    def predict():
        knn.knn_predict(
            bank,
            labels,
            queries,
            num_classes=NUM_CLASSES,
            k=NUM_NEIGHBOURS,
            temperature=TEMPERATURE,
        )

    def multiply():
        for start in range(0, len(queries), 1000):
            chunk = queries[start : start + 1000]
            tf.matmul(chunk, bank, transpose_b=True).numpy()

    def predict_few():
        clock = timing.Clock()
        opponent.predict(few)
        return timing.Seconds(*(scale * x for x in clock.read()))

    times = timing.interleave(
        {"knn": predict, "product": multiply, "scikit-learn": predict_few},
        rounds,
        warmup=1,
    )
    ratios = timing.median_ratios(times, "knn")
    return {
        "seconds": timing.medians(times["knn"]),
        "product": ratios["product"],
        "scikit-learn": ratios["scikit-learn"],
    }


def _measure_probe(backbone, images, labels, epochs, rounds):
    # One trace for all rounds, as a probe that recomputes would have it.
    extract = features.FeatureExtractor(backbone)
    extracted = extract(images)

    def train():
        linear.linear_probe(
            extracted,
            labels,
            extracted,
            labels,
            num_classes=NUM_CLASSES,
            learning_rate=0.1,
            epochs=epochs,
        )

    times = timing.interleave(
        {"extract": lambda: extract(images), "train": train}, rounds, warmup=1
    )
    once, each = (
        number * times["extract"] + times["train"] for number in (1, epochs)
    )
    return {"ratio": timing.medians(once / each)}
