"""Results of any shape as tables of text."""

import math
import re
from typing import NamedTuple

TITLES = {
    "demo": "Beside what needs no training",
    "finetune_1pct": "Fine-tuning, as with 1 % of the labels",
    "finetune_10pct": "Fine-tuning, as with 10 % of the labels",
    "knn": "k nearest neighbours",
    "linear_probe": "Linear probe",
    "low_shot": "Low-shot classification",
    "transfer": "Transfer to other data sets",
}
_BRANCHES = ("teacher",)
# What every tool writes beside its numbers.
_SUBJECT = ("path", "branch", "source", "train_images", "test_images")
_WORDS = {
    "knn": "k-NN",
    "lbfgs": "logistic regression",
    "sgd": "SGD",
    "k": "neighbours (k)",
}
# Shares, written from 0 to 1.
_SHARE = re.compile(r"accuracy|average_precision|^(knn|linear|top_?[15])$")


class Table(NamedTuple):
    """Cells of text.

    Attributes:
        header: words, or () for rows of names and values.
        rows: lists of as many cells, the first one being the row's name.
    """

    header: tuple
    rows: list


def title(name):
    """What a result's file holds, in words; its name for an unknown one."""
    where, separator, stem = name.rpartition(": ")
    for branch in _BRANCHES:
        base = stem.removesuffix(f"_{branch}")
        if base != stem and base in TITLES:
            return f"{where}{separator}{TITLES[base]}, {branch}"
    return f"{where}{separator}{TITLES.get(stem, stem)}"


def subject(result):
    """What was evaluated and on what, in one line; "" if it is not said."""
    if not isinstance(result, dict):
        return ""
    parts = []
    if "branch" in result:
        parts.append(f"the {result['branch']}")
    if "source" in result:
        parts.append(f"on {result['source']}")
    counts = [
        f"{result[f'{split}_images']:,} {word} images"
        for split, word in (("train", "training"), ("test", "test"))
        if isinstance(result.get(f"{split}_images"), int)
    ]
    return " ".join(parts) + (": " * bool(parts) + " and ".join(counts)) * bool(
        counts
    )


def to_tables(result):
    """The tables of a result.

    Args:
        result: what JSON can hold. Dictionaries of plain values make a table
            together, one row each, if they have keys in common; so does a list
            or a dictionary of them. Everything else is a row of names and
            values; deeper ones have names with dots.

    Returns:
        List of `Table`s, names and values first; none for an empty result.
    """
    if not isinstance(result, dict):
        result = {"value": result}
    plain, records, tables = {}, {}, []
    for key, value in result.items():
        if key in _SUBJECT:
            continue
        if _is_record(value):
            records[key] = value
        elif isinstance(value, list) and value and all(map(_is_record, value)):
            numbered = {str(n + 1): row for n, row in enumerate(value)}
            tables.append(_matrix(words(key), numbered))
        elif (
            isinstance(value, dict)
            and value
            and all(map(_is_record, value.values()))
        ):
            tables.append(_matrix(words(key), value))
        elif isinstance(value, dict):
            plain.update(flatten(value, f"{key}."))
        else:
            plain[key] = value
    tables[:0] = [_matrix("", group) for group in _alike(records)]
    if plain:
        rows = [[words(key), cell(key, x)] for key, x in plain.items()]
        tables.insert(0, Table((), rows))
    return tables


def flatten(value, prefix=""):
    """A nested dictionary as one of dotted keys; an empty one stays."""
    flat = {}
    for key, part in value.items():
        if isinstance(part, dict) and part:
            flat.update(flatten(part, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = part
    return flat


def words(key):
    """A key as a reader says it."""
    if re.fullmatch(r"[-+.\de]+", str(key)):  # a number
        return str(key)
    parts = [_WORDS.get(part, part) for part in str(key).split(".")]
    return ", ".join(part.replace("_", " ") for part in parts)


def cell(key, value):
    """A value as text; shares in %."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        last = str(key).rpartition(".")[2]
        if math.isfinite(value) and _SHARE.search(last) and 0 <= value <= 1:
            return percent(value)
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(key, part) for part in value) or "-"
    return str(value) if value != {} else "-"


def percent(share):
    """A share from 0 to 1 as text."""
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"


def _is_record(value):
    return (
        isinstance(value, dict)
        and bool(value)
        and not any(
            isinstance(part, dict)
            for x in value.values()
            for part in (x if isinstance(x, list) else [x])
        )
    )


def _alike(records):
    """The records in groups: each shares a key with another of its group."""
    groups = []
    for name, record in records.items():
        for group in groups:
            if any(not record.keys().isdisjoint(x) for x in group.values()):
                group[name] = record
                break
        else:
            groups.append({name: record})
    return groups


def _matrix(corner, records):
    """One row a record, one column for each key that any has."""
    keys = dict.fromkeys(key for row in records.values() for key in row)
    return Table(
        (corner, *map(words, keys)),
        [
            [words(name), *(cell(key, row.get(key)) for key in keys)]
            for name, row in records.items()
        ],
    )
