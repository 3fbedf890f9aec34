"""One tiny run under a strategy, as a program: what it learnt, as numbers.

Each strategy needs a process of its own: TensorFlow takes a second one's
collective operations for the first's.

    python tests/cluster_run.py --source=npz:FILE --workdir=DIR --out=NAME ...
"""

import argparse
import json

import numpy as np


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--strategy", default="default")
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--set", action="append", default=[], help="KEY=JSON of the recipe"
    )
    arguments = parser.parse_args()

    from ressl_tf import cluster

    strategy = cluster.make_strategy(
        arguments.strategy, replicas=arguments.replicas
    )

    import pytest
    import tiny
    from ml_collections import ConfigDict

    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.lighten(monkeypatch)
        config = ConfigDict(tiny.make_config(arguments.source))
        for setting in arguments.set:
            key, _, text = setting.partition("=")
            config.update_from_flattened_dict({key: json.loads(text)})
        from ressl_tf import train

        run = train.train(
            config.to_dict(),
            arguments.workdir,
            stop_at_step=arguments.steps,
            strategy=strategy,
        )
    # By every worker: what each holds a part of, all have to read.
    arrays = state(strategy, run.model)
    worker = "" if cluster.is_chief(strategy) else "-other"
    np.savez(f"{arguments.out}{worker}.npz", **arrays)


def state(strategy, model):
    """Every number of a model; of the queue each replica's own copy."""
    from ressl_tf import keras_compat

    arrays = {"step": value(model.step), "pointer": value(model.queue.pointer)}
    copies = strategy.experimental_local_results(
        keras_compat.tf_variable(model.queue.keys)
    )
    for number, copy in enumerate(copies):
        arrays[f"queue/{number}"] = copy.numpy()
    networks = {
        "student_backbone": model.student.backbone,
        "student_projector": model.student.projector,
        "teacher_backbone": model.teacher.backbone,
        "teacher_projector": model.teacher.projector,
    }
    if model.predictor is not None:
        networks["predictor"] = model.predictor
    for name, network in networks.items():
        for number, weight in enumerate(network.get_weights()):
            arrays[f"{name}/{number}"] = weight
    return arrays


def value(variable):
    import tensorflow as tf

    return tf.convert_to_tensor(variable).numpy()


if __name__ == "__main__":
    main()
