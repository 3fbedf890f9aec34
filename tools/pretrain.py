"""Pre-trains a recipe; the same command again continues it.

python -m tools.pretrain --config=configs/photos.py --workdir=DIR
"""

import sys

from absl import flags

from tools import command

command.define_config_flags()
command.define_strategy_flags()


def main():
    # First of all: TensorFlow takes a cluster before anything else alone.
    strategy = command.make_strategy()

    from ressl_tf import cluster
    from ressl_tf import train
    from ressl_tf import workdir

    folder = flags.FLAGS.workdir
    run = train.train(
        flags.FLAGS.config.to_dict(),
        folder,
        strategy=strategy,
        data_service=flags.FLAGS.data_service,
    )
    if not run.finished:
        sys.exit(1)
    if not cluster.is_chief(strategy):
        return
    last = {}
    for row in workdir.read_metrics(folder):
        last.update(row)
    print(f"done: {folder}")
    print(", ".join(f"{name} {value:.6g}" for name, value in last.items()))


if __name__ == "__main__":
    command.run(main)
