"""Low-shot classification on VOC2007: linear SVMs on frozen features.

    python -m tools.low_shot --workdir=DIR --data_dir=TFDS

k = 4, 8, 16, 32, 64 images of each class, five draws of each, and all images.
Written after each, so the same command goes on where it was stopped.
"""

from absl import flags

from tools import command

command.define_encoder_flags()
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where TensorFlow Datasets keeps voc/2007; default: the pre-training's.",
)
SHOTS = flags.DEFINE_list("shots", "4,8,16,32,64,all", "Images of each class.")
DRAWS = flags.DEFINE_integer("draws", 5, "Of each, but all.", lower_bound=1)
COST = flags.DEFINE_float("cost", 1.0, "Of the SVMs, above 0.")
INTERPOLATION = flags.DEFINE_enum(
    "interpolation",
    "voc2007",
    ["voc2007", "area"],
    "Average precision at eleven recalls, as VOC2007's development kit has "
    "it, or the area, as VOC2010's.",
)
SHORTER_SIDE = flags.DEFINE_integer(
    "shorter_side",
    None,
    "Resize images to this before their centre is cut out; default: 256 for "
    "encoders of 224, and in that proportion.",
    lower_bound=1,
)


def main():
    import numpy as np
    import tqdm

    from ressl_tf.evaluation import low_shot
    from ressl_tf.evaluation import results

    all_shots = [
        shots
        if shots == "all"
        else command.positive_numbers("shots", [shots])[0]
        for shots in SHOTS.value
    ]
    if not all_shots:
        raise ValueError("`--shots` must be at least one. Received: none")
    if not COST.value > 0:
        raise ValueError(
            f"`--cost` must be above 0. Received: --cost={COST.value:g}"
        )
    encoder = command.open_encoder()
    plan = {
        "encoder": encoder.fingerprint(),
        "cost": COST.value,
        "interpolation": INTERPOLATION.value,
        "shorter_side": SHORTER_SIDE.value
        or round(encoder.image_size * 256 / 224),
    }
    # {shots: mAP of each draw}
    earlier = encoder.read("low_shot", plan) or {"shots": {}}
    measured = {key: x["draws"] for key, x in earlier["shots"].items()}
    to_do = [
        (str(shots), draw)
        for shots in dict.fromkeys(all_shots)
        for draw in range(1 if shots == "all" else DRAWS.value)
        if draw >= len(measured.get(str(shots), []))
    ]
    if to_do:
        features = _extract(encoder, plan["shorter_side"])
    for shots, seed in tqdm.tqdm(
        to_do, "SVMs", unit="draw", disable=None, leave=False
    ):
        found = low_shot.low_shot(
            *features,
            shots=None if shots == "all" else int(shots),
            seed=seed,
            cost=COST.value,
            interpolation=INTERPOLATION.value,
        )
        if found.not_converged:
            command.logger.warning(
                "k = %s, draw %d: %d SVMs have not converged",
                shots,
                seed,
                found.not_converged,
            )
        measured.setdefault(shots, []).append(found.mean_average_precision)
        # Means are over all draws; the deviation is that of the draws.
        summary = {
            key: {
                "mean_average_precision": float(np.mean(draws)),
                "deviation": float(np.std(draws)),
                "draws": draws,
            }
            for key, draws in measured.items()
        }
        rows = [
            results.Row(
                f"VOC2007 mAP, k = {key}",
                100 * x["mean_average_precision"],
                deviation=None if key == "all" else 100 * x["deviation"],
            )
            for key, x in summary.items()
        ]
        encoder.write("low_shot", {**plan, "shots": summary}, rows, "Low-shot")
    for shots in map(str, all_shots):
        draws = 100 * np.array(measured[shots])
        deviation = "" if shots == "all" else f" ± {draws.std():.2f}"
        print(f"mAP, k = {shots}: {draws.mean():.2f}{deviation} %")


def _extract(encoder, shorter_side):
    """Features and targets: training, training, test, test."""
    from ressl_tf import data
    from ressl_tf.evaluation import features

    found = []
    for split in ("train+validation", "test"):
        images, targets, _ = data.load_voc2007(
            split,
            image_size=encoder.image_size,
            shorter_side=shorter_side,
            data_dir=DATA_DIR.value or encoder.data_dir,
        )
        found += [
            features.extract_features(encoder, images, progress=True),
            targets,
        ]
    return found


if __name__ == "__main__":
    command.run(main)
