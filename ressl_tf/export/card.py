"""The model card of an export: what it is and where it comes from."""

import hashlib
import json
import platform
from pathlib import Path

import numpy as np
import tensorflow as tf

from ressl_tf import keras_compat
from ressl_tf import workdir as workdir_lib
from ressl_tf.export import layout
from ressl_tf.version import __version__

# Of the card and the files beside it; a newer one is refused.
FORMAT = 2

LICENCE_NOTE = (
    "No licence is stated for these weights. They were learnt from the images "
    "named under data, whose own terms apply; ressl_tf itself is Apache-2.0."
)

# A result's file: the protocol's name, and where its accuracy is.
_PROTOCOLS = {
    "knn": ("k-NN", lambda result: {"": result}),
    "linear_probe": (
        "linear probe",
        lambda result: {
            name: value
            for name, value in result.items()
            if isinstance(value, dict) and "accuracy" in value
        },
    ),
}


def fingerprint(variables):
    """Hexadecimal digest of weights."""
    digest = hashlib.sha256()
    for variable in variables:
        value = np.ascontiguousarray(variable)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value)
    return digest.hexdigest()


def make_card(
    name, branch, encoder, servable, *, steps, config, results, licence=None
):
    """The card of an export, a dict that JSON can hold.

    Args:
        name: of the export.
        branch: "student" or "teacher".
        encoder: `keras.Model` that is exported.
        servable: its `Servable`.
        steps: done in pre-training.
        config: the recipe, a nested dict.
        results: `find_results`' list.
        licence: text. Defaults to None, for `LICENCE_NOTE`.
    """
    images = servable.embed.input_signature[0]
    outputs = servable.embed.get_concrete_function().structured_outputs
    data = config["data"]
    return {
        "format": FORMAT,
        "name": name,
        "branch": branch,
        "steps": steps,
        "input": {
            "name": "images",
            "dtype": images.dtype.name,
            "shape": images.shape.as_list(),
            "range": [0, 255],
            "mean": data["mean"],
            "std": data["std"],
            # Of image files: see `Servable`.
            "shorter_side": servable.shorter_side,
        },
        "output": {
            key: {"dtype": value.dtype.name, "shape": value.shape.as_list()}
            for key, value in sorted(outputs.items())
        },
        "data": {key: data[key] for key in ("source", "split")},
        "evaluation": results,
        "licence": licence or LICENCE_NOTE,
        "weights": fingerprint(encoder.weights),
        "versions": {
            "ressl_tf": __version__,
            "tensorflow": tf.__version__,
            "keras": keras_compat.version(),
            "python": platform.python_version(),
        },
        "config": config,
    }


def find_results(workdir, branch, weights):
    """What the evaluation tools have measured of these weights.

    Args:
        workdir: folder of the run.
        branch: "student" or "teacher".
        weights: their `fingerprint`; results of others, as of an earlier
            checkpoint, are left out.

    Returns:
        List of {"protocol", "source", "accuracy": 0 to 1}.
    """
    found = []
    for stem, (protocol, parts) in _PROTOCOLS.items():
        path = (
            Path(workdir)
            / "eval"
            / f"{workdir_lib.result_name(stem, branch)}.json"
        )
        try:
            result = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # not measured
        if result.get("encoder") != weights:
            continue
        for part, value in parts(result).items():
            found.append(
                {
                    "protocol": f"{protocol}, {part}" if part else protocol,
                    "source": result["source"],
                    "accuracy": value["accuracy"],
                }
            )
    return found


def read_card(version, branch=None):
    """The model card of an export's version.

    Args:
        version: path of the version.
        branch: that it has to be of. Defaults to None: of either.

    Raises:
        ValueError: if there is none, it is of a newer ressl_tf, or of the
            other branch.
    """
    path = Path(version) / layout.EXTRA / layout.CARD
    if not path.is_file():
        raise ValueError(
            f"The export has no {layout.EXTRA}/{layout.CARD}: it was not "
            "written by `tools.export`, or not copied as a whole. "
            f"Received: path={str(version)!r}"
        )
    card = json.loads(path.read_text())
    if card.get("format", 1) > FORMAT:
        raise ValueError(
            f"The export is of a newer format than this ressl_tf "
            f"{__version__} reads ({FORMAT}): update ressl_tf. Received: "
            f"path={str(version)!r}, of format {card['format']}, written by "
            f"ressl_tf {card['versions']['ressl_tf']}"
        )
    if branch not in (None, card["branch"]):
        raise ValueError(
            f"`branch` must be what was exported, {card['branch']!r}: "
            f"export the other one first. Received: branch={branch!r}"
        )
    return card


def to_markdown(card):
    """The card as a page of text."""
    images, config = card["input"], card["config"]
    backbone = config["backbone"]
    size = images["shape"][1]
    facts = {
        "network": f"{backbone['name']}, width {backbone['width']}, stem "
        f"{backbone['stem']}; the {card['branch']}",
        "trained": f"by ReSSL, without labels, {card['steps']:,} steps of "
        f"{config['train']['batch_size']:,} images",
        "data": f"{card['data']['source']}, split {card['data']['split']}",
        "input": f"`{images['name']}`, {images['dtype']} "
        f"{_shape(images['shape'])}, 0 to 255, RGB; normalised in the graph "
        f"by mean {_numbers(images['mean'])} and deviation "
        f"{_numbers(images['std'])} of 0 to 1",
        "image files": f"`image_bytes`, JPEG, PNG, GIF, BMP or WebP of any "
        f"size; the shorter side is resized to {images['shorter_side']} and "
        f"the centre of {size} x {size} cut out",
        "output": "; ".join(
            f"`{name}`, {value['dtype']} {_shape(value['shape'])}"
            for name, value in card["output"].items()
        ),
        "versions": ", ".join(
            f"{name} {value}" for name, value in card["versions"].items()
        ),
        "weights": f"sha256 {card['weights']}",
    }
    evaluation = [
        f"| {row['protocol']} | {row['source']} | {100 * row['accuracy']:.2f} |"
        for row in card["evaluation"]
    ]
    lines = [
        f"# {card['name']}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in facts.items()),
        "",
        "## Evaluation",
        "",
        *(
            [
                "| protocol | images | accuracy, % |",
                "|---|---|---|",
                *evaluation,
            ]
            if evaluation
            else ["Not evaluated."]
        ),
        "",
        "## Licence",
        "",
        card["licence"],
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(config, indent=2),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _shape(shape):
    return "(" + ", ".join("N" if n is None else str(n) for n in shape) + ")"


def _numbers(values):
    return ", ".join(f"{value:g}" for value in values)
