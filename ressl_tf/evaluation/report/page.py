"""The sections of the page."""

import datetime
import shlex
import string
from pathlib import Path

from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation.report import facts as facts_lib
from ressl_tf.evaluation.report import markup
from ressl_tf.evaluation.report import measured
from ressl_tf.evaluation.report import origin
from ressl_tf.evaluation.report import tables
from ressl_tf.version import __version__

_TEMPLATE = Path(__file__).with_name("template.html")

# (what, files or folders of which any will do, the command that makes it).
_MAKERS = (
    ("k-NN accuracy (needs labels)", ("eval/knn*.json",), "knn"),
    (
        "Linear accuracy (needs labels)",
        ("eval/linear_probe*.json",),
        "linear_probe",
    ),
    (
        "Accuracy with few labels (needs labels)",
        ("eval/finetune_*.json",),
        "finetune --fraction=0.1",
    ),
    (
        "Transfer to nine other sets (needs them in --data_dir)",
        ("eval/transfer*.json",),
        "transfer",
    ),
    (
        "Low-shot accuracy on VOC2007 (needs it in --data_dir)",
        ("eval/low_shot*.json",),
        "low_shot",
    ),
    (
        "Pictures: t-SNE and nearest neighbours",
        ("eval/tsne*.png", "eval/neighbours*.png"),
        "visualize",
    ),
    ("SavedModel to serve or to use elsewhere", ("export/*/*",), "export"),
)


def write_report(workdir):
    """Writes DIR/report.html, one page about a run.

    The page holds all that it shows: it opens from disk, without a network
    and without scripts. It says what is there, of an unfinished run too, and
    which command makes what is not.

    Args:
        workdir: folder of the run.

    Returns:
        The path of the page.

    Raises:
        ValueError: if there is no run.
    """
    facts = facts_lib.read_facts(workdir)
    path = facts.folder / "report.html"
    with workdir_lib.replaced(path) as temporary:
        temporary.write_text(to_html(facts), encoding="utf-8")
    return path


def to_html(facts):
    """The page of `Facts` as text."""
    now = datetime.datetime.now(datetime.timezone.utc)
    sections = (
        ("numbers", "Key numbers", measured.numbers),
        ("knn", "k-NN over time", measured.knn),
        ("curves", "Curves", measured.curves),
        ("evaluation", "Evaluation", measured.evaluation),
        ("pictures", "Pictures", measured.pictures),
        ("missing", "Not made yet", _missing),
        ("config", "Config", _config),
        ("machine", "Machine and versions", origin.machine),
        ("time", "Time", origin.time),
    )
    links = "\n".join(
        f'<li><a href="#{name}">{markup.escape(heading)}</a></li>'
        for name, heading, _ in sections
    )
    navigation = f'<nav aria-label="Sections">\n<ul>\n{links}\n</ul>\n</nav>'
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        version=markup.escape(__version__),
        title=markup.escape(f"{_name(facts)} - ReSSL"),
        header=f"{_head(facts)}\n{navigation}",
        main="\n".join(
            markup.section(name, heading, make(facts))
            for name, heading, make in sections
        ),
        footer=markup.paragraph(
            f"Report made on {origin.clock(now)} by ressl_tf {__version__}, "
            "python -m tools.report."
        ),
    )


def _name(facts):
    return facts.folder.resolve().name or str(facts.folder)


def _head(facts):
    config, progress = facts.config, facts.progress
    total = "" if progress.total is None else f" of {progress.total:,}"
    steps = f"{progress.step:,}{total} steps"
    badges = []
    if progress.is_finished:
        badges.append(("good", f"finished: {steps}"))
    elif progress.step:
        share = ""
        if progress.total:
            share = f" ({100 * progress.step // progress.total} %)"
        badges.append(("open", f"not finished: {steps}{share}"))
    else:
        badges.append(("open", "no step logged yet"))
    advice = ""
    if facts.collapsed:
        badges.append(("bad", "embeddings have collapsed"))
        changes = facts_lib.collapse_advice(config)
        advice = (
            '<div class="advice">\n'
            + markup.paragraph(
                "The embeddings are alike, or the target is uniform: there is "
                "nothing to learn from it. Start a new run, and change:"
            )
            + "\n<ul>\n"
            + "\n".join(f"<li>{markup.sentence(x)}</li>" for x in changes)
            + "\n</ul>\n</div>"
        )
    elif facts.collapsed is not None:
        badges.append(("good", "embeddings have not collapsed"))
    items = "\n".join(
        f'<li class="{kind}">{markup.escape(text)}</li>'
        for kind, text in badges
    )
    backbone = config["backbone"]
    what = (
        f"ReSSL pre-training of {backbone['name']} (width "
        f"{backbone['width']}) on {config['data']['source']}, "
        f"{config['data']['image_size']} px; batch "
        f"{config['train']['batch_size']:,}, queue "
        f"{config['method']['queue_size']:,}."
    )
    return "\n".join(
        part
        for part in (
            f"<h1>{markup.escape(_name(facts))}</h1>",
            markup.paragraph(what),
            f'<ul class="status">\n{items}\n</ul>',
            advice,
        )
        if part
    )


def _missing(facts):
    where = f"--workdir={shlex.quote(str(facts.folder))}"
    items = []
    if not facts.progress.is_finished:
        items.append(
            ("The rest of the training", f"pretrain --config=RECIPE {where}")
        )
    if facts.progress.saved:
        items += [
            (what, f"{tool} {where}")
            for what, patterns, tool in _MAKERS
            if not any(
                next(facts.folder.glob(pattern), None) for pattern in patterns
            )
        ]
    if not items:
        return markup.paragraph("Everything that this page knows of is there.")
    lines = "\n".join(
        f"<li>{markup.escape(what)}{markup.code(f'python -m tools.{command}')}"
        "</li>"
        for what, command in items
    )
    note = ""
    if not facts.progress.saved:
        note = markup.paragraph(
            "Evaluation and export need a checkpoint, and there is none yet.",
            "faint",
        )
    return f'{note}<div class="card"><ul class="missing">\n{lines}\n</ul></div>'


def _config(facts):
    settings = tables.flatten(facts.config)
    values = {key: _setting(value) for key, value in settings.items()}
    return markup.card(
        markup.details(
            f"All {len(values)} settings",
            markup.pairs(values, "Settings of the recipe"),
        )
    )


def _setting(value):
    """A setting as --config.x.y= takes it."""
    if isinstance(value, list):
        return f"({', '.join(map(repr, value))})"
    return repr(value) if value == "" else str(value)
