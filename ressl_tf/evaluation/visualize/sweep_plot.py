"""Accuracy over what a comparison varies, beside the paper's."""

import textwrap

from ressl_tf.evaluation.visualize.figures import DPI
from ressl_tf.evaluation.visualize.figures import FAINT_COLOR
from ressl_tf.evaluation.visualize.figures import TEXT_COLOR
from ressl_tf.evaluation.visualize.figures import write_png

_COLORS = ("#1f4e9c", "#d9772b", "#3f8f5b")
_PAPER_COLOR = "#8a2f5b"
_WIDTH = 11.0  # inches
_LABEL_LENGTH = 28  # letters of a bar's label in one line
_TITLE_LENGTH = 90
_LEAST_SPAN = 4.0  # of an axis of accuracies, in points


def plot_sweep(
    path, rows, *, accuracies, title, x_label, best=None, shared_scale=True
):
    """Draws accuracies over the varied value, and the paper's beside them.

    Curves if all values are numbers, bars otherwise; for each data set two
    panels: measured on the left, the paper's on the right.

    Args:
        path: Where to write the PNG; missing folders are made.
        rows: Dictionaries with dataset, value (a number or words), paper
            (accuracy in %, words or `None`) and, for each key of
            `accuracies`, (mean, lowest, highest) in % or `None`.
        accuracies: {key: legend}, up to three.
        title: Text above the picture.
        x_label: What `value` is.
        best: {dataset: the paper's best accuracy}. Defaults to none.
        shared_scale: Whether the paper's accuracies have the same axis as the
            measured ones. Defaults to `True`.

    Returns:
        `path`.

    Raises:
        ValueError: If there are no rows.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError(
            "`rows` should hold at least one row; pass the runs of a "
            "comparison. Received: rows=[]"
        )
    groups = {}
    for row in rows:
        groups.setdefault(row["dataset"], []).append(row)
    is_curve = all(_is_number(row["value"]) for row in rows)
    heights = [
        3.4 if is_curve else 1.0 + 0.5 * len(group) for group in groups.values()
    ]
    figure = Figure(
        figsize=(_WIDTH, sum(heights) + 1.0),
        dpi=DPI,
        layout="constrained",
        facecolor="white",
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    figure.suptitle(
        textwrap.fill(title, _TITLE_LENGTH),
        fontsize=13,
        fontweight="bold",
        color=TEXT_COLOR,
    )
    panels = figure.subplots(
        len(groups), 2, squeeze=False, height_ratios=heights
    )
    for axes, (dataset, group) in zip(panels, groups.items(), strict=True):
        values = [row["value"] for row in group]
        measured = [
            (label, color, [row[key] for row in group])
            for (key, label), color in zip(
                accuracies.items(), _COLORS, strict=False
            )
        ]
        papers = [
            (row["paper"],) * 3 if _is_number(row["paper"]) else row["paper"]
            for row in group
        ]
        paper = [("the paper's (linear)", _PAPER_COLOR, papers)]
        for side, lines, who in zip(
            axes, (measured, paper), ("measured", "the paper"), strict=True
        ):
            _style(side, f"{dataset}, {who}")
            if is_curve:
                is_paper = side is axes[1] and best
                _draw_curves(
                    side, values, lines, best.get(dataset) if is_paper else None
                )
                side.set_xlabel(x_label, fontsize=9, color=FAINT_COLOR)
                side.set_ylabel("accuracy in %", fontsize=9, color=FAINT_COLOR)
            else:
                _draw_bars(side, values, lines)
                side.set_xlabel("accuracy in %", fontsize=9, color=FAINT_COLOR)
        if shared_scale:
            _share_accuracy(axes, "y" if is_curve else "x")
    handles = {}
    for axes in panels.flat:
        for handle, label in zip(
            *axes.get_legend_handles_labels(), strict=True
        ):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(),
            handles,
            loc="outside lower center",
            ncols=len(handles),
            frameon=False,
            fontsize=9,
            labelcolor=TEXT_COLOR,
        )
    write_png(figure, path)
    return path


def _is_number(value):
    return isinstance(value, (int, float))


def _style(axes, title):
    axes.set_title(
        title, fontsize=11, fontweight="bold", color=TEXT_COLOR, loc="left"
    )
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")
    axes.tick_params(labelsize=9, colors=FAINT_COLOR)


def _share_accuracy(axes, name):
    """Gives both panels the limits that hold what is in either."""
    limits = [getattr(each, f"get_{name}lim")() for each in axes]
    for each in axes:
        getattr(each, f"set_{name}lim")(
            min(low for low, _ in limits), max(high for _, high in limits)
        )


def _draw_curves(axes, values, lines, best=None):
    drawn = []
    if best is not None:
        axes.axhline(
            best,
            color=_PAPER_COLOR,
            linestyle="--",
            label="the paper's best, at one of them",
        )
        drawn.append(best)
    for label, color, numbers in lines:
        points = []
        for value, number in zip(values, numbers, strict=True):
            if isinstance(number, str):
                _write(axes, value, 0.03, number, rotation=90, va="bottom")
            elif number:
                points.append((value, *number))
        if not points:
            continue
        x, mean, low, high = zip(*sorted(points), strict=True)
        axes.plot(x, mean, "o-", color=color, markersize=4.5, label=label)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        drawn += [*low, *high]
    low, high = min(values), max(values)
    if high > 20 * low:  # over decades, as queue sizes are
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        axes.set_xlim(low / 1.4, high * 1.4)
    else:
        margin = 0.06 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    if not drawn:
        axes.set_yticks([])
        return
    # Tenths of a point should not look like a cliff.
    middle = (min(drawn) + max(drawn)) / 2
    span = max(1.15 * (max(drawn) - min(drawn)), _LEAST_SPAN)
    axes.set_ylim(middle - span / 2, middle + span / 2)


def _draw_bars(axes, values, lines):
    thickness = 0.8 / len(lines)
    is_empty = True
    for number, (label, color, numbers) in enumerate(lines):
        offset = (number - (len(lines) - 1) / 2) * thickness
        for place, bar in enumerate(numbers):
            y = place + offset
            if bar is None or isinstance(bar, str):
                _write(axes, 0.01, y, bar or "-", va="center", ha="left")
                continue
            mean, low, high = bar
            axes.barh(y, mean, thickness, color=color, label=label)
            if low != high:
                axes.plot([low, high], [y, y], color=TEXT_COLOR)
            text = f" {mean:.1f}"
            axes.text(high, y, text, va="center", fontsize=8, color=TEXT_COLOR)
            is_empty = False
    axes.grid(visible=False, axis="y")
    axes.set_yticks(
        range(len(values)),
        [textwrap.fill(str(value), _LABEL_LENGTH) for value in values],
    )
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.margins(x=0.12)
    if is_empty:
        axes.set_xticks([])


def _write(axes, x, y, text, **style):
    """Words in place of a number: of x and y one is a part of the panel."""
    is_curve = "rotation" in style
    transform = (
        axes.get_xaxis_transform() if is_curve else axes.get_yaxis_transform()
    )
    style = {"ha": "center", **style}
    axes.text(
        x, y, text, transform=transform, fontsize=8, color=FAINT_COLOR, **style
    )
