"""k-nearest-neighbour accuracy of an encoder.

python -m tools.knn --workdir=DIR
"""

from absl import flags

from tools import command

command.define_subject_flags()
K = flags.DEFINE_integer("k", 200, "Number of neighbours.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.1, "Of the neighbours' weights exp(similarity / it)."
)


def main():
    from ressl_tf.evaluation import knn

    subject = command.open_subject()
    features = command.extract(subject)
    k = min(K.value, len(features[0]))
    accuracy = knn.knn_accuracy(
        *features,
        num_classes=subject.num_classes,
        k=k,
        temperature=TEMPERATURE.value,
    )
    subject.write(
        "knn",
        {"k": k, "temperature": TEMPERATURE.value, "accuracy": accuracy},
    )
    print(f"k-NN accuracy: {100 * accuracy:.2f} % (k = {k})")


if __name__ == "__main__":
    command.run(main)
