"""Runs the runs of a table of the paper, and shows them beside its numbers.

    python -m tools.sweep --table=5 --workdir=DIR
    python -m tools.sweep --table=pairs --budget=cpu --workdir=DIR

Each run is `tools.pretrain`, `tools.knn` and `tools.linear_probe` in processes
of their own, in DIR/tableN/NAME. DIR/tableN/results.md, .csv, .json and .png
are written after each. The same command again continues: what is done is left,
what was stopped goes on, what failed is tried again. See docs/ablations.md.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from absl import flags

from tools import command

TABLE = flags.DEFINE_string(
    "table", None, "1 to 6, as in the paper, or pairs.", required=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the tables' folders.", required=True
)
BUDGET = flags.DEFINE_enum(
    "budget",
    "full",
    ["full", "cpu"],
    "The paper's 200 epochs, or what two cores can do.",
)
EPOCHS = flags.DEFINE_float("epochs", None, "With --budget=cpu; default: 4.")
DATASETS = flags.DEFINE_list(
    "datasets",
    None,
    "Only runs on these; default: all, with --budget=cpu cifar10.",
)
ONLY = flags.DEFINE_list(
    "only", None, "Only runs of these names; --dry_run shows them."
)
SEEDS = flags.DEFINE_list("seeds", "0", "One run for each.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "For tfds: sources.")
OVERRIDES = flags.DEFINE_multi_string(
    "override",
    [],
    "KEY=VALUE of every run's recipe, as train.jit_compile=True; may be given "
    "again.",
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show the commands, run none.")


def main():
    from ressl_tf import workdir
    from tools import sweep_tables

    table = sweep_tables.get(TABLE.value)
    plan = {
        "table": table.key,
        "budget": BUDGET.value,
        "epochs": _epochs(sweep_tables.CPU_EPOCHS),
        "override": _overrides(),
    }
    runs, seeds = _select(table, sweep_tables.DATASETS), _seeds()
    folder = Path(WORKDIR.value) / table.folder
    to_run = [_entry(run, seed, folder, plan) for seed in seeds for run in runs]
    # The folder of a table is claimed as that of a run is: for one plan.
    (workdir.check if DRY_RUN.value else workdir.claim)(folder, plan)
    if DRY_RUN.value:
        for entry in to_run:
            _show(entry.job)
    else:
        sys.exit(_run(table, folder, plan, to_run))


class _Entry(NamedTuple):
    run: NamedTuple  # of sweep_tables
    seed: int
    job: NamedTuple  # of sweep_runs


def _epochs(default):
    if BUDGET.value == "cpu":
        epochs = default if EPOCHS.value is None else EPOCHS.value
        if not epochs > 0:
            raise ValueError(
                f"`--epochs` must be above 0. Received: --epochs={epochs:g}"
            )
        return epochs
    if EPOCHS.value is not None:
        raise ValueError(
            "`--epochs` must go with --budget=cpu: the full budget is the "
            f"paper's. Received: --epochs={EPOCHS.value:g}"
        )
    return None


def _overrides():
    overrides = {}
    for text in OVERRIDES.value:
        key, separator, value = text.partition("=")
        if not (key and separator):
            raise ValueError(
                "`--override` must be KEY=VALUE, as in "
                f"train.jit_compile=True. Received: --override={text}"
            )
        overrides[key] = value
    return overrides


def _seeds():
    if not SEEDS.value or not all(x.strip().isdigit() for x in SEEDS.value):
        raise ValueError(
            "`--seeds` must be whole numbers from 0, with commas. "
            f"Received: --seeds={','.join(SEEDS.value)}"
        )
    return list(dict.fromkeys(int(text) for text in SEEDS.value))


def _select(table, datasets):
    """The runs of a table that the flags name."""
    wanted = DATASETS.value
    if wanted is None:
        # A run that is named may be on any.
        is_small = BUDGET.value == "cpu" and ONLY.value is None
        wanted = ["cifar10"] if is_small else list(datasets)
    for flag, values, known in (
        ("datasets", wanted, list(datasets)),
        ("only", ONLY.value or [], [run.name for run in table.runs]),
    ):
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ValueError(
                f"`--{flag}` must be of {', '.join(known)}. "
                f"Received: --{flag}={','.join(unknown)}"
            )
    runs = [
        run
        for run in table.runs
        if run.dataset in wanted
        and (ONLY.value is None or run.name in ONLY.value)
    ]
    if not runs:
        raise ValueError(
            f"`--datasets` and `--only` must leave a run of table {table.key}. "
            f"Received: --datasets={','.join(wanted)}"
            + (f" --only={','.join(ONLY.value)}" if ONLY.value else "")
        )
    return runs


def _name(run, seed):
    return f"{run.name}-seed{seed}" if seed else run.name


def _entry(run, seed, folder, plan):
    from tools import sweep_runs
    from tools import sweep_tables

    changes = sweep_tables.settings(
        run, plan["budget"], plan["epochs"], plan["override"]
    )
    changes["seed"] = seed
    subject = ()
    if DATA_DIR.value:
        changes["data.data_dir"] = DATA_DIR.value
        subject = (f"--data_dir={DATA_DIR.value}",)
    name = _name(run, seed)
    workdir = f"--workdir={folder / name}"
    recipe = os.path.relpath(command.ROOT / run.recipe)
    job = sweep_runs.Job(
        name,
        folder / name,
        (
            sweep_runs.Step(
                "pretrain",
                (
                    f"--config={recipe}",
                    workdir,
                    *(f"--config.{key}={x}" for key, x in changes.items()),
                ),
                "checkpoints",
            ),
            sweep_runs.Step("knn", (workdir, *subject), "eval/knn.json"),
            sweep_runs.Step(
                "linear_probe", (workdir, *subject), "eval/linear_probe.json"
            ),
        ),
    )
    return _Entry(run, seed, job)


def _show(job):
    state, error = job.state()
    print(f"{job.name}: {state}" + (f" ({error})" if error else ""))
    for step in job.to_do():
        print(f"    {shlex.join(step.command(('python', '-m')))}")


def _run(table, folder, plan, to_run):
    """Runs what is left; returns the exit code."""
    import tqdm

    from ressl_tf.evaluation import sweep
    from tools import sweep_runs

    def write():
        rows = [_row(entry) for entry in _present(table, folder, plan, to_run)]
        sweep.write(folder, _sweep(table, plan, rows))

    by_name = {entry.job.name: entry for entry in to_run}
    with tqdm.tqdm(
        total=len(to_run),
        unit="run",
        disable=None,  # Unless stderr is a terminal.
        leave=False,
    ) as bar:

        def watch(job, step):
            place = _progress(job) if step.tool == "pretrain" else ""
            bar.set_description(f"{job.name}, {step.tool}{place}")

        runner = sweep_runs.Runner(watch=watch)
        write()
        for job in runner.run(entry.job for entry in to_run):
            write()
            bar.write(_line(_row(by_name[job.name])))
            sys.stdout.flush()
            bar.update()
    print(f"results: {folder / 'results.md'}, .csv, .json, .png")
    if runner.stopped:
        command.logger.warning("stopped; the same command continues")
    return int(any(entry.job.to_do() for entry in to_run))


def _present(table, folder, plan, to_run):
    """The entries to run and those of earlier calls, in the table's order."""
    chosen = {entry.job.name: entry for entry in to_run}
    entries = []
    for run in table.runs:
        seeds = {entry.seed for entry in to_run if entry.run == run}
        for path in folder.glob(f"{run.name}*"):
            name, _, seed = path.name.partition("-seed")
            if name == run.name:
                seeds.add(int(seed or 0))
        for seed in sorted(seeds):
            entry = chosen.get(_name(run, seed))
            entries.append(entry or _entry(run, seed, folder, plan))
    return entries


def _sweep(table, plan, rows):
    from ressl_tf.evaluation import sweep
    from tools import sweep_tables

    changes = plan["override"]
    label = ""
    if plan["budget"] == "cpu":
        width = changes.get("backbone.width", sweep_tables.CPU_WIDTH)
        epochs = changes.get("train.epochs", f"{plan['epochs']:g}")
        label = f"cpu budget (width {width}, {epochs} epochs)"
    names = sweep_tables.DATASETS
    present = {row["dataset"] for row in rows}
    best = {names[key]: number for key, number in (table.best or {}).items()}
    return sweep.Sweep(
        title=table.title,
        varies=table.varies,
        label=label,
        changes=", ".join(f"{key}={x}" for key, x in changes.items()),
        runs=rows,
        pairs=table.pairs,
        best={key: best[key] for key in best if key in present},
        is_comparable=plan["budget"] == "full",
    )


def _row(entry):
    from ressl_tf.evaluation import sweep
    from tools import sweep_tables

    state, error = entry.job.state()
    return {
        "name": entry.run.name,
        "dataset": sweep_tables.DATASETS[entry.run.dataset],
        "value": entry.run.value,
        "paper": entry.run.paper,
        "seed": entry.seed,
        "state": state,
        "error": error,
        "minutes": round(entry.job.minutes(), 1),
        **sweep.read_run(entry.job.folder),
    }


def _line(row):
    from ressl_tf.evaluation import results
    from ressl_tf.evaluation import sweep

    name = row["name"] + (f" (seed {row['seed']})" if row["seed"] else "")
    if row["state"] != "done":
        error = f": {row['error']}" if row["error"] else ""
        return f"{row['state']:<11}{name}{error}"
    numbers = ", ".join(
        f"{label} {row[key]:.2f}" for key, label in sweep.ACCURACIES.items()
    )
    paper = results.paper_text(row["paper"])
    minutes = f"{row['minutes']:g} min"
    return f"{'done':<11}{name}: {numbers}, paper {paper} ({minutes})"


def _progress(job):
    """Where its pre-training is."""
    from ressl_tf import workdir

    rows = [x for x in workdir.read_metrics(job.folder) if "loss" in x]
    if not rows:
        return ""
    return f": epoch {rows[-1]['epoch']:.2f}, loss {rows[-1]['loss']:.3f}"


if __name__ == "__main__":
    command.run(main)
