"""A picture of the views that a recipe trains on: look at it first.

python -m tools.show_views --config=configs/photos.py --output=views.png
"""

import os

from absl import flags
from ml_collections import config_flags

from tools import command

config_flags.DEFINE_config_file(
    "config", None, "Recipe: a file of configs/, overridden by --config.x.y=z."
)
flags.mark_flag_as_required("config")
NUM_IMAGES = flags.DEFINE_integer(
    "num_images", 8, "Rows: the first images of the batch.", lower_bound=1
)
STEP = flags.DEFINE_integer(
    "step", 0, "Of the training, from 0.", lower_bound=0
)
DRAWS = flags.DEFINE_integer(
    "draws",
    None,
    "How often each view is drawn; default: about nine columns in all.",
    lower_bound=1,
)
OUTPUT = flags.DEFINE_string("output", "views.png", "The picture, a PNG file.")


@flags.validator("output", "must end in .png")
def _is_png(path):
    return path.lower().endswith(".png")


def main():
    import tensorflow as tf

    from ressl_tf.evaluation import visualize

    try:
        tf.io.gfile.makedirs(os.path.dirname(OUTPUT.value) or ".")
    except tf.errors.OpError as error:
        raise ValueError(
            "`--output` must be in a folder that can be made. "
            f"Received: --output={OUTPUT.value} ({error.message})"
        ) from None
    config = flags.FLAGS.config.to_dict()
    recipe = config_flags.get_config_filename(flags.FLAGS["config"])
    path = visualize.plot_views(
        OUTPUT.value,
        config,
        num_images=NUM_IMAGES.value,
        step=STEP.value,
        num_draws=DRAWS.value,
        title=f"What {recipe} trains on: {config['data']['source']}",
    )
    print(path)


if __name__ == "__main__":
    command.run(main)
