"""The sections of what was measured and drawn: `Facts` to HTML."""

import math

from ressl_tf.evaluation import collapse
from ressl_tf.evaluation import paper
from ressl_tf.evaluation.report import markup
from ressl_tf.evaluation.report import tables
from ressl_tf.evaluation.visualize import curves as curves_lib
from ressl_tf.evaluation.visualize.figures import to_svg

# What each picture of our tools shows, in the order of the page.
_PICTURES = {
    "tsne": "Embeddings of test images in the plane (t-SNE), one point an "
    "image, coloured by class",
    "neighbours": "Test images beside their nearest training images; red "
    "frames are around those of another class",
    "views": "Images and the views that the training was shown",
}
_DRAWN = ("curves",)  # on the page itself
_OPEN_SCORES = 10  # scores that need no click to be seen
_CARD_COLUMNS = 4  # of a table that half of the page is enough for


def numbers(facts):
    numbers = [*_knn_numbers(facts), *_linear_numbers(facts)]
    if facts.training_rows:
        last = facts.training_rows[-1]
        log_queue = math.log(facts.config["method"]["queue_size"])
        uniform = collapse.uniformity(
            last["target_entropy"], facts.config["method"]["queue_size"]
        )
        numbers += [
            ("Loss", f"{last['loss']:.3f}", f"log K is {log_queue:.2f}"),
            (
                "Entropy of the target",
                f"{100 * uniform:.1f} %",
                "of a uniform one's, which would teach nothing",
            ),
            (
                "Deviation of embeddings",
                f"{last['embedding_std']:.3f}",
                "about 1: spread; 0: all alike",
            ),
        ]
    speed = facts.images_per_second
    if speed is not None:
        numbers.append(("Images per second", f"{speed:,.1f}", "median"))
    if not numbers:
        return markup.paragraph("Nothing was logged or evaluated yet.")
    return (
        '<dl class="numbers">\n'
        + "\n".join(
            f"<div><dt>{markup.escape(name)}</dt>"
            f'<dd class="value">{markup.escape(value)}</dd>'
            f'<dd class="note">{markup.escape(note)}</dd></div>'
            for name, value, note in numbers
        )
        + "\n</dl>"
    )


def _knn_numbers(facts):
    measured = _accuracy(facts.results.get("knn"))
    if measured is not None:
        k = facts.results["knn"].get("k")
        return [("k-NN accuracy", tables.percent(measured), f"k = {k}")]
    monitored = facts.numbers("knn_accuracy")
    if monitored:
        note = "while training, the last one"
        return [("k-NN accuracy", tables.percent(monitored[-1]), note)]
    return []


def _linear_numbers(facts):
    """Linear accuracies, and the paper's if this is a row of its tables."""
    numbers = []
    probe = facts.results.get("linear_probe")
    online = facts.numbers("probe_accuracy")
    if online:
        note = "online probe, the last one"
        numbers.append(("Linear accuracy", tables.percent(online[-1]), note))
    if isinstance(probe, dict):
        for solver, result in probe.items():
            accuracy = _accuracy(result)
            if accuracy is not None:
                name = tables.words(solver)
                numbers.append(
                    ("Linear accuracy", tables.percent(accuracy), name)
                )
    reference = paper.linear_reference(facts.config)
    if reference.accuracy is not None:
        numbers.append(
            (
                "The paper's linear accuracy",
                tables.percent(reference.accuracy / 100),
                f"{reference.what}, after 200 epochs",
            )
        )
    return numbers


def _accuracy(result):
    value = result.get("accuracy") if isinstance(result, dict) else None
    return value if isinstance(value, (int, float)) else None


def _panels(facts):
    """The panels of curves; none if nothing was logged."""
    try:
        return curves_lib.make_panels(facts.rows)
    except ValueError:
        return []


def _drawing(panel, name):
    svg = to_svg(curves_lib.panel_figure(panel), name)
    return f'<div class="paper">{markup.drawing(svg, panel.summary())}</div>'


def knn(facts):
    scores = [row for row in facts.rows if row.get("knn_accuracy") is not None]
    if not scores:
        return markup.paragraph(
            "No score was logged: the images have no labels or are streamed, "
            "`monitor.eval_every_epochs` is 0, or the run has not come to its "
            "first one."
        )
    best = max(
        scores,
        key=lambda row: (
            -1 if math.isnan(row["knn_accuracy"]) else row["knn_accuracy"]
        ),
    )
    drawings = [
        _drawing(panel, "knn-curve")
        for panel in _panels(facts)
        if panel.title == curves_lib.KNN_TITLE
    ]
    rows = [
        [
            f"{row['epoch']:g}",
            f"{row['step']:,}",
            tables.percent(row["knn_accuracy"]),
        ]
        for row in scores
    ]
    all_scores = markup.table(
        tables.Table(("epoch", "step", "k-NN accuracy"), rows),
        "k-NN accuracy by epoch",
    )
    if len(rows) > _OPEN_SCORES:
        all_scores = markup.details(f"All {len(rows)} scores", all_scores)
    text = (
        f"Best: {tables.percent(best['knn_accuracy'])}, after "
        f"{best['epoch']:g} epochs. Last: {rows[-1][-1]}, after {rows[-1][0]}."
    )
    return "\n".join(
        [
            markup.paragraph(text),
            '<div class="curves">',
            *drawings,
            markup.card(all_scores),
            "</div>",
        ]
    )


def curves(facts):
    drawings = [
        _drawing(panel, f"curve-{number}")
        for number, panel in enumerate(_panels(facts))
        if panel.title != curves_lib.KNN_TITLE
    ]
    if not drawings:
        return markup.paragraph("Nothing was logged yet.")
    return '<div class="curves">\n' + "\n".join(drawings) + "\n</div>"


def evaluation(facts):
    if not facts.results:
        return markup.paragraph(
            "Nothing was evaluated yet; see below how it is done."
        )
    cards = [
        _result_card(tables.title(name), result)
        for name, result in facts.results.items()
    ]
    return '<div class="columns">\n' + "\n".join(cards) + "\n</div>"


def _result_card(heading, result):
    if isinstance(result, Exception):
        text = f"Its file cannot be read: {result}"
        return markup.card(markup.paragraph(text), heading)
    found = tables.to_tables(result)
    what = tables.subject(result)
    parts = [markup.paragraph(what, "faint")] if what else []
    parts += [markup.table(each, heading) for each in found]
    columns = max((len(each.header) for each in found), default=0)
    return markup.card(
        "\n".join(parts) or markup.paragraph("It is empty."),
        heading,
        is_wide=columns > _CARD_COLUMNS,
    )


def pictures(facts):
    figures = []
    known = [*_PICTURES]
    for path in sorted(
        (path for path in facts.pictures if path.stem not in _DRAWN),
        key=lambda path: (
            known.index(path.stem) if path.stem in known else len(known)
        ),
    ):
        base = path.stem.removesuffix("_teacher")
        description = _PICTURES.get(base, base.replace("_", " "))
        if base != path.stem:
            description += ", of the teacher"
        try:
            image, note = markup.picture(path, description)
        except (OSError, ValueError) as error:
            figures.append(
                markup.paragraph(f"{path.name} cannot be shown: {error}")
            )
            continue
        caption = f"{description} (eval/{path.name}). {note}".rstrip()
        figures.append(
            '<figure class="picture">\n<div class="paper" role="region" '
            f'tabindex="0" aria-label="{markup.escape(path.stem)}">{image}'
            "</div>\n"
            f"<figcaption>{markup.escape(caption)}</figcaption>\n</figure>"
        )
    return "\n".join(figures) or markup.paragraph("No picture was drawn yet.")
