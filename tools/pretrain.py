"""Pre-trains a recipe; the same command again continues it.

python -m tools.pretrain --config=configs/photos.py --workdir=DIR
"""

import sys

from absl import flags

from tools import command

command.define_config_flags()


def main():
    from ressl_tf import train
    from ressl_tf import workdir

    folder = flags.FLAGS.workdir
    if not train.train(flags.FLAGS.config.to_dict(), folder).finished:
        sys.exit(1)
    last = {}
    for row in workdir.read_metrics(folder):
        last.update(row)
    print(f"done: {folder}")
    print(", ".join(f"{name} {value:.6g}" for name, value in last.items()))


if __name__ == "__main__":
    command.run(main)
