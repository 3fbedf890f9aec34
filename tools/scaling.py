"""What a run needs on many devices: time, hosts, network, storage, memory.

python -m tools.scaling --images=1.3e6 --epochs=200 --devices=8,64,512

Arithmetic and a small simulation, seconds on any machine; docs/scaling.md says
where its figures come from. --parameters=FILE replaces them: a JSON object with
any of "device", "input" (as `tools.benchmark host --json` writes it) and
"reliability", each with some fields of the tuple of that name in
ressl_tf/scaling/costs.py.
"""

import json
from pathlib import Path

from absl import flags

from tools import command

IMAGES = flags.DEFINE_float("images", 1.3e6, "Images of the set.", 1)
EPOCHS = flags.DEFINE_float("epochs", 200, "Passes over them.", 0)
DEVICES = flags.DEFINE_list("devices", "8,64,512", "Numbers of devices.")
BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", "1024,4096,32768", "Of all devices together."
)
DEVICE = flags.DEFINE_string("device", "a100", "Published figures to use.")
BACKBONE = flags.DEFINE_string("backbone", "resnet50", "At 224 pixels.")
VIEWS = flags.DEFINE_string("views", "one", "one, two or multi (five crops).")
QUEUE_SIZE = flags.DEFINE_integer("queue_size", 65536, "K.", lower_bound=1)
FLOAT32 = flags.DEFINE_bool("float32", False, "Activations, not bfloat16.")
PARAMETERS = flags.DEFINE_string("parameters", None, "JSON file, see above.")
VARIATIONS = flags.DEFINE_bool(
    "variations", False, "Also under other assumptions, and failures."
)
JSON = flags.DEFINE_string("json", None, "File for the numbers.")


def main():
    from ressl_tf import scaling

    devices = command.positive_numbers("devices", DEVICES.value)
    arguments = {
        "images": IMAGES.value,
        "epochs": EPOCHS.value,
        "devices": devices,
        "batch_sizes": command.positive_numbers(
            "batch_sizes", BATCH_SIZES.value
        ),
        "device": DEVICE.value,
        "backbone": BACKBONE.value,
        "views": VIEWS.value,
        "queue_size": QUEUE_SIZE.value,
        "float32": FLOAT32.value,
        "parameters": _parameters(),
    }
    rows = scaling.plans(**arguments)
    print(scaling.table(rows))
    if VARIATIONS.value:
        print()
        print(scaling.variations_table(scaling.variations(**arguments)))
        print()
        print(
            scaling.failures_table(
                scaling.failures(devices, scaling.Reliability())
            )
        )
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(rows, indent=1) + "\n")


def _parameters():
    if PARAMETERS.value is None:
        return {}
    try:
        return json.loads(Path(PARAMETERS.value).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"`--parameters` must name a JSON file: {error}. "
            f"Received: {PARAMETERS.value!r}"
        ) from error


if __name__ == "__main__":
    command.run(main)
