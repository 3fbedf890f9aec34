"""Pre-trains a recipe; the same command again continues it.

    python -m tools.pretrain --config=configs/photos.py --workdir=DIR
"""

from absl import flags
from ml_collections import config_flags

from tools import command

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: a file of configs/, overridden by --config.x.y=z."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def main(argv):
    command.refuse_positional(argv)
    from ressl_tf import train
    from ressl_tf import workdir

    config = CONFIG.value.to_dict()
    model = train.train(config, WORKDIR.value)
    rows = workdir.read_metrics(WORKDIR.value)
    print(f"{int(model.step.numpy())} steps done; see {WORKDIR.value}")
    for row in rows[-1:]:
        print(", ".join(f"{key} {value:.6g}" for key, value in row.items()))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
