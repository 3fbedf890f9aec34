"""The sections of where and when: `Facts` to HTML."""

from ressl_tf import environment
from ressl_tf.evaluation.report import markup
from ressl_tf.evaluation.report import tables


def machine(facts):
    machines = {}  # {what: how many starts}
    for entry in facts.environments:
        text = tuple(_describe(entry).items())
        machines[text] = machines.get(text, 0) + 1
    cards = []
    for text, starts in machines.items():
        heading = "Trained on"
        if len(machines) > 1:
            heading += f" ({starts} of {len(facts.environments)} starts)"
        cards.append(markup.card(markup.pairs(dict(text), heading), heading))
    if not cards:
        cards.append(
            markup.card(
                markup.paragraph(
                    "Not recorded: the run has no environment.json."
                ),
                "Trained on",
            )
        )
    here = _describe(environment.describe())
    if (*here.items(),) in machines and len(machines) == 1:
        here = {"machine": "the same, with the same versions"}
    cards.append(
        markup.card(markup.pairs(here, "Report made on"), "Report made on")
    )
    return '<div class="columns">\n' + "\n".join(cards) + "\n</div>"


def _describe(entry):
    """An entry of environment.json as {name: text}."""
    machine, versions = entry.get("machine", {}), entry.get("versions", {})
    memory = machine.get("memory_gib")
    values = {
        "CPU": machine.get("cpu"),
        "cores": machine.get("cores"),
        "memory": None if memory is None else f"{memory} GiB",
        "accelerators": ", ".join(machine.get("accelerators", [])) or "none",
        "system": machine.get("system"),
    }
    if entry.get("replicas", 1) != 1:
        values["replicas"] = entry["replicas"]
    values.update(versions)
    return {name: tables.cell(name, value) for name, value in values.items()}


def time(facts):
    values = {}
    if facts.times is not None:
        sessions = facts.times.sessions
        values["start"] = clock(sessions[0][0])
        end = "end" if facts.progress.is_finished else "last sign of life"
        values[end] = clock(max(end for _, end in sessions))
        values["training"] = _duration(facts.times.hours)
        if len(sessions) > 1:
            values["training"] += f", in {len(sessions)} parts"
    speed = facts.images_per_second
    if speed is not None:
        values["images per second"] = f"{speed:,.1f} (median)"
    memory = facts.numbers("peak_memory_gib")
    if memory:
        values["peak memory"] = f"{max(memory):.2f} GiB (of the host)"
    if not values:
        return markup.paragraph("Nothing was logged yet.")
    body = markup.pairs(values, "Time")
    if facts.times is not None:
        body += "\n" + markup.paragraph(
            f"Start and end are those of {facts.times.origin}.", "faint"
        )
    return markup.card(body)


def _duration(hours):
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours"


def clock(time):
    """A `datetime` of UTC as text."""
    return f"{time:%Y-%m-%d %H:%M} UTC"
