"""The runs of a comparison side by side: read, and written as a table.

results.json, results.csv, results.md and results.png of a folder say the same;
all are written whole, so that they can be read while runs go on. Accuracies
are in %.
"""

import csv
import io
import json
import math
from pathlib import Path
from typing import NamedTuple

from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import collapse
from ressl_tf.evaluation.results import markdown_table
from ressl_tf.evaluation.results import paper_text
from ressl_tf.evaluation.visualize import plot_sweep

ACCURACIES = {
    "knn": "k-NN",
    "lbfgs": "linear (lbfgs)",
    "sgd": "linear (sgd)",
}
NUMBERS = (
    *ACCURACIES,
    "loss",
    "target_entropy",
    "log_queue_size",
    "embedding_std",
    "epochs",
)
_COLUMNS = (
    "budget",
    "name",
    "dataset",
    "value",
    "seed",
    "state",
    *NUMBERS,
    "collapsed",
    "paper",
    "minutes",
    "error",
)


class Sweep(NamedTuple):
    """What is compared.

    Attributes:
        title: one line.
        varies: what differs between the runs.
        label: the budget, if it is not the paper's, for every file; or "".
        runs: list of dictionaries: name, dataset, value (a number or words),
            paper (its accuracy in %, words, or None), seed, state ("done",
            "failed", ...), error, minutes, and what `read_run` returns. Runs
            of the same name differ in their seed.
        pairs: (title, name, name) each.
        best: {dataset: the paper's best accuracy over its runs}.
        is_comparable: whether the runs are as long as the paper's.
        changes: what else was changed about all runs, in words.
    """

    title: str
    varies: str
    label: str
    runs: list
    pairs: tuple = ()
    best: dict | None = None
    is_comparable: bool = True
    changes: str = ""


def read_run(folder):
    """The numbers of a run, finished or not.

    Args:
        folder: of the run; need not exist.

    Returns:
        {name: value}, None where there is none yet: `NUMBERS` and "collapsed".
        Loss, entropy and deviation are those of the last logged steps.
    """
    folder = Path(folder)
    result = dict.fromkeys((*NUMBERS, "collapsed"))
    knn = _read_json(folder / "eval" / "knn.json")
    if knn:
        result["knn"] = 100 * knn["accuracy"]
    probe = _read_json(folder / "eval" / "linear_probe.json")
    for solver in ("lbfgs", "sgd"):
        if solver in probe:
            result[solver] = 100 * probe[solver]["accuracy"]
    rows = [row for row in workdir_lib.read_metrics(folder) if "loss" in row]
    if rows:
        last = rows[-1]
        queue_size = workdir_lib.read_config(folder)["method"]["queue_size"]
        result.update(
            {
                key: last[key]
                for key in ("loss", "target_entropy", "embedding_std")
            },
            epochs=last["epoch"],
            log_queue_size=math.log(queue_size),
            collapsed=collapse.is_collapsed(
                last["embedding_std"], last["target_entropy"], queue_size
            ),
        )
    return result


def summarize(runs):
    """Runs of the same name as one row, in order.

    Returns:
        List of dictionaries: name, dataset, value, paper; states, the set of
        its runs' states; collapsed, how many of how many; of each of
        `NUMBERS` (mean, lowest, highest) over the seeds, or None.
    """
    rows = []
    for name in dict.fromkeys(run["name"] for run in runs):
        same = [run for run in runs if run["name"] == name]
        known = [x["collapsed"] for x in same if x["collapsed"] is not None]
        rows.append(
            {
                **{key: same[0][key] for key in ("name", "dataset", "value")},
                "paper": same[0]["paper"],
                "seeds": len(same),
                "states": sorted({run["state"] for run in same}),
                "collapsed": (sum(known), len(known)),
                **{key: _mean_and_range(same, key) for key in NUMBERS},
            }
        )
    return rows


def write(folder, sweep):
    """Writes results.json, .csv, .md and .png into a folder.

    Args:
        folder: path; made if it is missing.
        sweep: a `Sweep`.
    """
    folder = Path(folder)
    rows = summarize(sweep.runs)
    workdir_lib.write_json(
        folder / "results.json",
        {
            "title": sweep.title,
            "varies": sweep.varies,
            "budget": sweep.label or "full",
            "changes": sweep.changes,
            "unit of accuracies": "%",
            "runs": sweep.runs,
            "summary": rows,
        },
    )
    for name, text in (
        ("results.csv", to_csv(sweep)),
        ("results.md", to_markdown(sweep)),
    ):
        with workdir_lib.replaced(folder / name) as temporary:
            temporary.write_text(text)
    with workdir_lib.replaced(folder / "results.png") as temporary:
        plot_sweep(
            temporary,
            rows,
            accuracies=ACCURACIES,
            title=_title(sweep),
            x_label=sweep.varies,
            best=sweep.best,
            shared_scale=sweep.is_comparable,
        )


def to_csv(sweep):
    """One line a run, with all its numbers."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, _COLUMNS, extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    for run in sweep.runs:
        writer.writerow({"budget": sweep.label or "full", **run})
    return text.getvalue()


def to_markdown(sweep):
    """The table, the pairs and the failures as Markdown."""
    rows = summarize(sweep.runs)
    parts = [f"# {_title(sweep)}\n", _explanation(sweep)]
    header = [
        "run",
        "data set",
        sweep.varies,
        *ACCURACIES.values(),
        "paper, linear",
        "loss",
        "target entropy",
        "collapsed",
        "state",
    ]
    if sweep.varies == "run":
        del header[2]
    lines = []
    for row in rows:
        cells = [
            row["name"],
            row["dataset"],
            row["value"],
            *(_cell(row[key]) for key in ACCURACIES),
            paper_text(row["paper"]),
            _cell(row["loss"]),
            _entropy(row),
            _collapsed(row),
            ", ".join(row["states"]),
        ]
        if sweep.varies == "run":
            # The name says less than the words.
            cells[:3] = [f"{row['name']}: {row['value']}", row["dataset"]]
        lines.append(cells)
    parts.append(markdown_table(header, lines))
    if sweep.best:
        parts.append(_best(sweep, rows))
    pairs = _pairs(sweep, rows)
    if pairs:
        parts += ["## Pairs\n", pairs]
    failed = [run for run in sweep.runs if run["error"]]
    if failed:
        parts.append("## Failed\n")
        parts.append(
            "\n".join(
                f"- {run['name']}, seed {run['seed']}: {run['error']}"
                for run in failed
            )
            + "\n"
        )
    return "\n".join(parts)


def _read_json(path):
    return json.loads(path.read_text()) if path.exists() else {}


def _mean_and_range(runs, key):
    values = [run[key] for run in runs if run[key] is not None]
    if not values:
        return None
    return sum(values) / len(values), min(values), max(values)


def _title(sweep):
    return sweep.title + (f" - {sweep.label}" if sweep.label else "")


def _explanation(sweep):
    text = "Accuracies in %, on the test set."
    if sweep.label:
        text += f" All runs: {sweep.label}."
    if sweep.changes:
        text += f" All runs with {sweep.changes}."
    if not sweep.is_comparable:
        text += (
            " The paper's are of width 64 and 200 epochs: only their order "
            "compares, not their height."
        )
    if len({run["seed"] for run in sweep.runs}) > 1:
        text += " Mean and, in brackets, range over the seeds."
    return text + "\n"


def _cell(number):
    if number is None:
        return "-"
    mean, low, high = number
    return (
        f"{mean:.2f}" if low == high else f"{mean:.2f} ({low:.2f}-{high:.2f})"
    )


def _entropy(row):
    if row["target_entropy"] is None:
        return "-"
    return f"{_cell(row['target_entropy'])} of {row['log_queue_size'][0]:.2f}"


def _collapsed(row):
    collapsed, known = row["collapsed"]
    if known == 0:
        return "-"
    if known == 1:
        return "yes" if collapsed else "no"
    return f"{collapsed} of {known}"


def _best(sweep, rows):
    lines = []
    for dataset, paper in sweep.best.items():
        measured = [
            row for row in rows if row["dataset"] == dataset and row["lbfgs"]
        ]
        cells = [dataset, "-", "-", f"{paper:.2f}"]
        if measured:
            top = max(measured, key=lambda row: row["lbfgs"][0])
            cells[1:3] = [_cell(top["lbfgs"]), top["value"]]
        lines.append(cells)
    header = ["data set", "best linear (lbfgs)", f"at {sweep.varies}"]
    return markdown_table([*header, "the paper's best"], lines)


def _pairs(sweep, rows):
    by_name = {row["name"]: row for row in rows}
    lines = []
    for title, *names in sweep.pairs:
        if not all(name in by_name for name in names):
            continue
        first, second = (by_name[name] for name in names)
        lines.append(
            [
                title,
                " - ".join(names),
                *(
                    _difference(*(row[key] and row[key][0] for row in pair))
                    for key in ACCURACIES
                    for pair in [(first, second)]
                ),
                _difference(first["paper"], second["paper"]),
                f"{_collapsed(first)} / {_collapsed(second)}",
            ]
        )
    if not lines:
        return ""
    return markdown_table(
        [
            "pair",
            "runs",
            *ACCURACIES.values(),
            "paper, linear",
            "collapsed",
        ],
        lines,
    )


def _difference(first, second):
    if not all(isinstance(number, float) for number in (first, second)):
        return "-"
    return f"{first:.2f} - {second:.2f} = **{first - second:+.2f}**"
