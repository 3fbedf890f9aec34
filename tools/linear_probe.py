"""Linear classification accuracy on frozen features: the small-set protocol.

    python -m tools.linear_probe --workdir=DIR

`sgd` is the paper's: 100 epochs, learning rate 10, a tenth of it from epoch
60 and 80. `lbfgs` is multinomial logistic regression on standardised
features, which has no learning rate to choose.
"""

from absl import flags

from tools import command

command.define_subject_flags()
SOLVERS = flags.DEFINE_list("solvers", "sgd,lbfgs", "Any of sgd, lbfgs.")
EPOCHS = flags.DEFINE_integer("epochs", 100, "Of sgd.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 10.0, "Of sgd.")
SEED = flags.DEFINE_integer("seed", 0, "Of sgd: first weights and order.")


def main():
    unknown = set(SOLVERS.value) - {"sgd", "lbfgs"}
    if unknown or not SOLVERS.value:
        raise ValueError(
            "`solvers` must be sgd, lbfgs or both, separated by a comma. "
            f"Received: solvers={','.join(SOLVERS.value)}"
        )
    from ressl_tf.evaluation import linear

    subject = command.open_subject()
    features = command.extract(subject)
    results = {}
    if "sgd" in SOLVERS.value:
        results["sgd"] = linear.linear_probe(
            *features,
            num_classes=subject.num_classes,
            epochs=EPOCHS.value,
            milestones=(EPOCHS.value * 6 // 10, EPOCHS.value * 8 // 10),
            learning_rate=LEARNING_RATE.value,
            seed=SEED.value,
            progress=True,
        )
    if "lbfgs" in SOLVERS.value:
        results["lbfgs"] = linear.logistic_regression(
            *features, num_classes=subject.num_classes
        )
    for result in results.values():
        del result["weights"]  # arrays; the numbers are what is kept
    subject.write("linear_probe", results)
    for solver, result in results.items():
        print(
            f"linear accuracy ({solver}): {100 * result['accuracy']:.2f} % "
            f"(train {100 * result['train_accuracy']:.2f} %)"
        )


if __name__ == "__main__":
    command.run(main)
