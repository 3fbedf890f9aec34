"""Linear classification accuracy on frozen features.

    python -m tools.linear_probe --workdir=DIR

`sgd` is the paper's protocol for small sets: 100 epochs, learning rate 10, a
tenth of it from epoch 60 and 80, on features that are extracted once. `lbfgs`
is multinomial logistic regression on standardised features, which has no
learning rate to choose. `augmented` is the paper's protocol for ImageNet: 90
epochs on the features of random crops, learning rate 0.1 for a batch of 256, a
cosine to 0.

Several learning rates are trained in one pass. Of `sgd` the best on a tenth of
the training images is then trained on all of them, and is the one reported.
"""

from absl import flags

from tools import command

SOLVER_NAMES = ("sgd", "lbfgs", "augmented")

command.define_subject_flags()
SOLVERS = flags.DEFINE_list(
    "solvers", "sgd,lbfgs", f"Any of {', '.join(SOLVER_NAMES)}."
)
EPOCHS = flags.DEFINE_integer(
    "epochs",
    None,
    "Of sgd (default: 100) and augmented (default: 90).",
    lower_bound=1,
)
LEARNING_RATES = flags.DEFINE_list(
    "learning_rate",
    None,
    "Of sgd (default: 10) and augmented (default: 0.1, for a batch of 256); "
    "several with commas.",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images.", lower_bound=1)
SEED = flags.DEFINE_integer(
    "seed", 0, "First weights, order and crops.", lower_bound=0
)


def main():
    unknown = set(SOLVERS.value) - set(SOLVER_NAMES)
    if unknown or not SOLVERS.value:
        raise ValueError(
            f"`--solvers` must be of {', '.join(SOLVER_NAMES)}, separated by "
            f"commas. Received: --solvers={','.join(SOLVERS.value)}"
        )
    rates = LEARNING_RATES.value
    if rates is not None:
        rates = command.numbers("learning_rate", rates, len(rates))
    from ressl_tf.evaluation import linear
    from ressl_tf.evaluation import paper
    from ressl_tf.evaluation import results as results_lib

    subject = command.open_subject()
    features = command.extract(subject)
    results = {}
    if "sgd" in SOLVERS.value:
        results["sgd"] = _sgd(subject, features, rates or [10.0])
    if "lbfgs" in SOLVERS.value:
        results["lbfgs"] = linear.logistic_regression(
            *features, num_classes=subject.num_classes
        )
    if "augmented" in SOLVERS.value:
        results.update(_augmented(subject, features, rates or [0.1]))
    for result in results.values():
        del result["weights"]  # arrays; the numbers are what is kept
    # Other solvers' numbers of the same weights and images stay.
    plan = {
        "encoder": subject.encoder.fingerprint(),
        "source": subject.source,
    }
    earlier = subject.encoder.read("linear_probe", plan) or {}
    results_of_all = {
        **{k: x for k, x in earlier.items() if isinstance(x, dict)},
        **results,
    }
    reference = paper.linear_reference(subject.encoder.config)
    if subject.source != subject.encoder.source:
        reference = paper.Reference(None, "")
    rows = [
        results_lib.Row(
            f"linear, {solver}", 100 * result["accuracy"], reference.accuracy
        )
        for solver, result in results_of_all.items()
    ]
    subject.write("linear_probe", results_of_all, rows, "Linear probe")
    for solver, result in results.items():
        train = result.get("train_accuracy")
        print(
            f"linear accuracy ({solver}): {100 * result['accuracy']:.2f} %"
            + ("" if train is None else f" (train {100 * train:.2f} %)")
        )


def _sgd(subject, features, rates):
    from ressl_tf.evaluation import linear

    epochs = EPOCHS.value or 100
    options = {
        "num_classes": subject.num_classes,
        "epochs": epochs,
        "milestones": (epochs * 6 // 10, epochs * 8 // 10),
        "batch_size": BATCH_SIZE.value,
        "seed": SEED.value,
        "progress": True,
    }
    (rate,) = (
        rates
        if len(rates) == 1
        else [
            linear.choose_learning_rate(
                *features[:2], learning_rates=rates, **options
            )
        ]
    )
    result = linear.linear_probe(*features, learning_rate=rate, **options)
    return {"learning_rate": rate, **result}


def _augmented(subject, features, rates):
    """{name: result}, one for each learning rate that did not diverge."""
    from ressl_tf import workdir
    from ressl_tf.evaluation import linear
    from ressl_tf.evaluation import supervised

    encoder = subject.encoder
    options = {
        "learning_rates": rates,
        "epochs": EPOCHS.value or 90,
        "batch_size": BATCH_SIZE.value,
        "seed": SEED.value,
    }
    # Another encoder, other images or settings begin anew, elsewhere.
    folder = encoder.folder / "linear_probe"
    plan = {
        "encoder": encoder.fingerprint(),
        "source": subject.source,
        **options,
    }
    folder = workdir.folder_of_plan(folder, plan)
    found = linear.augmented_linear_probe(
        encoder,
        subject.reader("train"),
        *features[2:],
        view=supervised.random_crops(encoder.image_size),
        workdir=folder,
        progress=True,
        **options,
    )
    return {
        "augmented" if len(rates) == 1 else f"augmented, {rate:g}": {
            "learning_rate": rate,
            **result,
        }
        for rate, result in zip(rates, found, strict=True)
        if result is not None
    }


if __name__ == "__main__":
    command.run(main)
