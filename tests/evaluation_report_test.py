"""Tests of the page about a run, on folders that no training has made."""

import html.parser
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tiny
from browser import launched
from PIL import Image

from configs import cifar10
from ressl_tf import environment
from ressl_tf import workdir as workdir_lib
from ressl_tf.evaluation import report
from ressl_tf.evaluation.report import facts as facts_lib
from ressl_tf.evaluation.report import markup
from ressl_tf.evaluation.report import tables

SECTIONS = {
    "numbers": "Key numbers",
    "knn": "k-NN over time",
    "curves": "Curves",
    "evaluation": "Evaluation",
    "pictures": "Pictures",
    "missing": "Not made yet",
    "config": "Config",
    "machine": "Machine and versions",
    "time": "Time",
}
NBSP = "\N{NO-BREAK SPACE}"
HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "wbr", "hr", "input"}


class Page(html.parser.HTMLParser):
    """A page taken apart; refuses tags that do not match."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.links, self.texts = [], [], [], []
        self._open, self._sections = [], []
        self.section_texts = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self._open.append(tag)
            if tag == "section":
                self._sections.append(dict(attributes)["id"])

    def handle_startendtag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.links += [
            value
            for name, value in attributes.items()
            if name in ("src", "href", "xlink:href", "action", "srcset")
        ]
        assert not any(name.startswith("on") for name in attributes)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "section":
            self._sections.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)
            for name in self._sections:
                self.section_texts.setdefault(name, []).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).replace(NBSP, " ").split())

    def section(self, name):
        text = " ".join(self.section_texts[name]).replace(NBSP, " ")
        return " ".join(text.split())


def make_rows(num_rows, **changes):
    row = {
        "loss": 3.5,
        "relation": 3.5,
        "info_nce": 3.0,
        "target_entropy": 2.0,
        "student_entropy": 3.0,
        "agreement": 0.5,
        "embedding_std": 0.9,
        "alpha": 1.0,
        "teacher_momentum": 0.99,
        "learning_rate": 0.01,
        "images_per_second": 100.0,
        "peak_memory_gib": 1.5,
        **changes,
    }
    rows = [
        {"step": 2 * n, "epoch": 2 * n / tiny.STEPS_PER_EPOCH, **row}
        for n in range(1, num_rows + 1)
    ]
    return [
        each
        for row in rows
        for each in (
            row,
            {
                "step": row["step"],
                "epoch": row["epoch"],
                "knn_accuracy": row["step"] / 20,
            },
        )[: 1 + (row["step"] % tiny.STEPS_PER_EPOCH == 0)]
    ]


def make_folder(tmp_path, rows=(), *, changes=None, saved=None, name="run"):
    """The folder of a run of 12 steps."""
    folder = tmp_path / name
    config = tiny.make_config("photos", changes)
    workdir_lib.write_json(folder / "config.json", config)
    for row in rows:
        workdir_lib.append_metrics(folder, row)
    if saved:
        tf.train.CheckpointManager(
            tf.train.Checkpoint(x=tf.Variable(1.0)),
            str(folder / "checkpoints"),
            max_to_keep=1,
            checkpoint_name="step",
        ).save(checkpoint_number=saved)
    return folder


def write_result(folder, name, value):
    workdir_lib.write_json(folder / "eval" / f"{name}.json", value)


def make_whole(tmp_path, **options):
    folder = make_folder(tmp_path, make_rows(6), saved=12, **options)
    environment.record(folder, 0)
    subject = {"path": "DIR", "branch": "student", "source": "photos"}
    write_result(folder, "knn", {**subject, "k": 200, "accuracy": 0.6038})
    write_result(
        folder,
        "linear_probe",
        {
            **subject,
            "train_images": 8000,
            "test_images": 1600,
            "sgd": {"accuracy": 0.7, "train_loss": 0.25},
            "lbfgs": {"accuracy": 0.7306, "train_loss": 0.5},
        },
    )
    write_result(folder, "finetune_10pct", {**subject, "accuracy": 0.5021})
    sets = {
        "dtd": {"metric": "top1", "accuracy": 0.6123},
        "caltech101": {"metric": "mean_per_class", "accuracy": 0.7},
    }
    write_result(folder, "transfer", {"data_sets": sets})
    draws = {"mean_average_precision": 0.4321, "deviation": 0.01}
    write_result(folder, "low_shot", {"cost": 1.0, "shots": {"4": draws}})
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for picture in ("tsne", "neighbours", "curves"):
        Image.fromarray(noise).save(folder / "eval" / f"{picture}.png")
    (folder / "export" / "encoder" / "1").mkdir(parents=True)
    return folder


def make_page(folder):
    path = report.write_report(folder)
    assert path == folder / "report.html"
    page = Page(path)
    assert [tag for tag, _ in page.tags if tag == "section"] == (
        ["section"] * len(SECTIONS)
    )
    for name, heading in SECTIONS.items():
        assert page.section(name).startswith(heading), name
        assert f"#{name}" in page.links and name in page.ids
    check_self_contained(page)
    return page


def check_self_contained(page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base"), tag
        assert "url(" not in attributes.get("style", "").replace("url(#", "")
    for link in page.links:
        assert link.startswith(("#", "data:image/")), link
    assert len(set(page.ids)) == len(page.ids)
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)


def test_a_whole_run(tmp_path):
    folder = make_whole(tmp_path)
    page = make_page(folder)
    assert "finished: 12 of 12 steps" in page.text
    assert "embeddings have not collapsed" in page.text
    numbers = page.section("numbers")
    for part in (
        "k-NN accuracy 60.38 % k = 200",
        "Linear accuracy 70.00 % SGD",
        "Linear accuracy 73.06 % logistic regression",
        "Loss 3.500 log K is 3.69",
        "Entropy of the target 54.2 %",
        "Deviation of embeddings 0.900",
        "Images per second 100.0",
    ):
        assert part in numbers
    assert "The paper's" not in numbers  # it has no such run
    assert "Best: 60.00 %, after 3 epochs." in page.section("knn")
    assert "2 8 40.00 %" in page.section("knn")
    evaluation = page.section("evaluation")
    assert "k nearest neighbours the student on photos" in evaluation
    assert "8,000 training images and 1,600 test images" in evaluation
    assert "Fine-tuning, as with 10 % of the labels" in evaluation
    assert "dtd top1 61.23 %" in evaluation.replace(NBSP, " ")
    assert "4 43.21 % 0.01" in evaluation.replace(NBSP, " ")
    assert "accuracy train loss SGD 70.00 % 0.25" in evaluation
    assert page.section("missing") == (
        "Not made yet Everything that this page knows of is there."
    )
    assert "method.queue_size 40" in page.section("config")
    machine = page.section("machine")
    assert f"tensorflow {tf.__version__}" in machine
    assert "machine the same, with the same versions" in machine
    assert "peak memory 1.50 GiB" in page.section("time")
    assert "the times of its files" in page.section("time")


def test_form(tmp_path):
    page = make_page(make_whole(tmp_path))
    tags = dict(reversed(page.tags))
    assert tags["html"]["lang"] == "en"
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert {"charset": "utf-8"} in metas
    contents = {meta.get("name"): meta.get("content") for meta in metas}
    assert contents["viewport"].startswith("width=device-width")
    assert contents["color-scheme"] == "light dark"
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.startswith("<!doctype html>")
    for rule in ("(prefers-color-scheme: dark)", "@media print"):
        assert rule in text
    headings = [int(tag[1]) for tag, _ in page.tags if tag in "h1 h2 h3 h4"]
    assert headings[0] == 1 and headings.count(1) == 1
    assert max(np.diff(headings)) <= 1
    # Text of curves is text, and says what is drawn to who cannot see it.
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 9
    assert drawings[0]["aria-label"] == ("k-NN accuracy: k-NN from 0.2 to 0.6")
    assert "Teacher momentum" in page.section("curves")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    # Not curves.png: those are on the page already. t-SNE comes first.
    assert len(images) == 2
    assert "(t-SNE)" in images[0]["alt"]
    assert "nearest training images" in images[1]["alt"]
    assert (images[0]["width"], images[0]["height"]) == ("60", "40")
    assert tags["details"] == {}


def test_everything_is_escaped(tmp_path):
    name = "a \"run\" & <b>bold</b> 'x'".replace("/", "-")
    folder = make_folder(
        tmp_path,
        make_rows(6),
        changes={"data.source": f"folder:{HOSTILE}"},
        saved=12,
        name=name,
    )
    file_name = HOSTILE.replace("/", "-")
    write_result(
        folder,
        file_name,
        {HOSTILE: {HOSTILE: HOSTILE}, "list": [{HOSTILE: 1}], "&": HOSTILE},
    )
    write_result(folder, "knn", {"source": HOSTILE, "branch": HOSTILE})
    Image.new("RGB", (4, 4)).save(folder / "eval" / f"{file_name}.png")
    (folder / "eval" / f"{file_name}2.json").write_text("{")
    workdir_lib.write_json(
        folder / "environment.json",
        [{"machine": {"cpu": HOSTILE}, "versions": {HOSTILE: HOSTILE}}],
    )
    page = make_page(folder)
    assert page.text.count(HOSTILE) >= 9
    for section in ("evaluation", "config", "machine"):
        assert HOSTILE in page.section(section)
    assert "b" not in {tag for tag, _ in page.tags}
    assert page.text.startswith(name)
    # A command to copy: the shell takes the folder for one word.
    quoted = str(folder).replace("'", "'\"'\"'")
    assert f"python -m tools.linear_probe --workdir='{quoted}'" in page.section(
        "missing"
    )


def test_an_unfinished_run(tmp_path):
    folder = make_folder(tmp_path, make_rows(2), saved=4)
    page = make_page(folder)
    assert "not finished: 4 of 12 steps (33 %)" in page.text
    missing = page.section("missing")
    for tool in (
        "pretrain --config=RECIPE",
        "knn",
        "linear_probe",
        "finetune --fraction=0.1",
        "transfer",
        "low_shot",
        "visualize",
        "export",
    ):
        assert f"python -m tools.{tool} --workdir={folder}" in missing
    assert "Nothing was evaluated yet" in page.section("evaluation")
    assert "No picture" in page.section("pictures")
    assert "k-NN accuracy 20.00 % while training" in page.section("numbers")
    assert "Not recorded" in page.section("machine")


def test_a_run_without_a_checkpoint(tmp_path):
    page = make_page(make_folder(tmp_path, make_rows(1)))
    missing = page.section("missing")
    assert "need a checkpoint" in missing
    assert "tools.pretrain" in missing and "tools.knn" not in missing
    assert "No score was logged" in page.section("knn")


@pytest.mark.parametrize("steps, total", [(0, ""), (30, " of 30")])
def test_a_run_that_has_logged_nothing(tmp_path, steps, total):
    changes = {"train.steps": steps, "train.epochs": 0.0 if steps else 3.0}
    folder = make_folder(tmp_path, changes=changes)
    page = make_page(folder)
    assert "no step logged yet" in page.text
    assert "collapsed" not in page.text
    progress = facts_lib.read_facts(folder).progress
    assert progress == (0, 0.0, steps or None, 0)
    assert not progress.is_finished
    for section in ("numbers", "curves", "time"):
        assert "Nothing was logged" in page.section(section)


def test_a_collapsed_run(tmp_path):
    changes = {
        "predictor.enabled": False,
        "projector.batch_norm": False,
        "method.teacher_temperature": 0.1,
    }
    rows = make_rows(6, embedding_std=0.01)
    page = make_page(make_folder(tmp_path, rows, changes=changes))
    assert "embeddings have collapsed" in page.text
    assert "method.teacher_temperature (it is 0.1, the" in page.text
    assert "predictor.enabled=True" in page.text
    assert "projector.batch_norm=True" in page.text
    # Fresh networks may start so.
    healthy = make_folder(tmp_path, rows[:2] + make_rows(6)[2:], name="healthy")
    assert "have not collapsed" in make_page(healthy).text
    advice = facts_lib.collapse_advice(cifar10.get_config().to_dict())
    assert not any("predictor" in sentence for sentence in advice)


def test_the_online_probe(tmp_path):
    rows = make_rows(6) + [
        {"step": step, "probe_accuracy": accuracy}
        for step, accuracy in ((4, 0.4), (12, 0.55))
    ]
    page = make_page(make_folder(tmp_path, rows, saved=12))
    expected = "Linear accuracy 55.00 % online probe, the last one"
    assert expected in page.section("numbers")
    assert "Accuracy of the online linear probe" in page.section("curves")


def test_numbers_that_are_not_numbers(tmp_path):
    nan = math.nan
    rows = make_rows(6, loss=nan, embedding_std=nan, target_entropy=math.inf)
    rows += [{"step": 12, "epoch": 3.0, "knn_accuracy": nan}]
    folder = make_folder(tmp_path, rows, saved=12)
    write_result(folder, "knn", {"accuracy": nan})
    write_result(folder, "linear_probe", {"sgd": {"accuracy": nan}})
    page = make_page(folder)
    assert "embeddings have collapsed" in page.text
    assert "k-NN accuracy nan" in page.section("numbers")
    assert "Loss nan" in page.section("numbers")
    assert "Best: 60.00 %, after 3 epochs. Last: nan %" in page.section("knn")
    assert "accuracy nan" in page.section("evaluation")


def test_files_that_cannot_be_read_are_named(tmp_path):
    folder = make_folder(tmp_path, make_rows(6), saved=12)
    (folder / "eval").mkdir()
    (folder / "eval" / "knn.json").write_text('{"accuracy": 0.')
    (folder / "eval" / "other.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "metrics.jsonl").write_text(
        (folder / "metrics.jsonl").read_text() + '{"step": 1'
    )
    page = make_page(folder)
    assert "neighbours Its file cannot be read" in page.section("evaluation")
    assert "other.png cannot be shown" in page.section("pictures")
    assert "k-NN accuracy 60.00 % while" in page.section("numbers")


def test_large_pictures_are_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(markup, "MAX_PICTURE_BYTES", 20_000)
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (200, 150, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    assert path.stat().st_size > 60_000
    image, note = markup.picture(path, 'a "picture"')
    assert 5_000 < len(image) < 20_000 * 4 / 3 + 200
    assert note.startswith("Reduced to ") and "from 150 x 200." in note
    assert 'alt="a &quot;picture&quot;"' in image


def test_exports_are_evaluated_too(tmp_path):
    folder = make_folder(tmp_path, make_rows(6), saved=12)
    workdir_lib.write_json(
        folder / "export" / "net" / "eval" / "knn_teacher.json",
        {"accuracy": 0.25},
    )
    evaluation = make_page(folder).section("evaluation")
    assert "export/net: k nearest neighbours, teacher" in evaluation
    assert "25.00 %" in evaluation


def test_the_papers_number(tmp_path):
    folder = make_folder(tmp_path)
    config = cifar10.get_config().to_dict()
    workdir_lib.write_json(folder / "config.json", config)
    assert (
        "The paper's linear accuracy 90.76 % with predictor, after 200 epochs"
        in make_page(folder).section("numbers")
    )


def write_events(folder, number, times):
    path = folder / "tensorboard" / f"events.out.tfevents.{number}"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for time in times:
            event = tf.compat.v1.Event(wall_time=time, step=1)
            writer.write(event.SerializeToString())
    return path


def test_time_is_that_of_the_sessions(tmp_path):
    folder = make_folder(tmp_path, make_rows(6))
    write_events(folder, 2, [90_000.0, 90_100.0, 97_200.0])
    path = write_events(folder, 1, [0.0, 1800.0, 3600.0, 5400.0])
    path.write_bytes(path.read_bytes()[:-3])  # killed in mid-write
    times = facts_lib.read_facts(folder).times
    assert times.hours == 3.0
    spans = [(a.timestamp(), b.timestamp()) for a, b in times.sessions]
    assert spans == [(0.0, 3600.0), (90_000.0, 97_200.0)]
    time = make_page(folder).section("time")
    assert "start 1970-01-01 00:00 UTC end 1970-01-02 03:00 UTC" in time
    assert "training 3.0 hours, in 2 parts" in time


def test_machines_of_a_run_that_moved(tmp_path):
    folder = make_folder(tmp_path)
    entries = [
        {"machine": {"cpu": cpu, "accelerators": ["A card"] * cards}}
        for cpu, cards in (("First CPU", 1), ("Second CPU", 2))
    ]
    workdir_lib.write_json(folder / "environment.json", entries)
    machine = make_page(folder).section("machine")
    assert "Trained on (1 of 2 starts) CPU First CPU" in machine
    assert "CPU Second CPU" in machine and "A card, A card" in machine
    assert "Report made on CPU" in machine


@pytest.mark.parametrize(
    "result, expected",
    [
        ({}, []),
        ({"path": "x", "branch": "student"}, []),
        (
            {"accuracy": 0.5, "k": 20000, "on": True, "no": None},
            [
                (
                    (),
                    [
                        ["accuracy", f"50.00{NBSP}%"],
                        ["neighbours (k)", "20,000"],
                        ["on", "yes"],
                        ["no", "-"],
                    ],
                )
            ],
        ),
        (
            {"a": {"knn": 0.25, "loss": 1.5}, "b": {"knn": 1.0, "x_y": "z"}},
            [
                (
                    ("", "k-NN", "loss", "x y"),
                    [
                        ["a", f"25.00{NBSP}%", "1.5", "-"],
                        ["b", f"100.00{NBSP}%", "-", "z"],
                    ],
                )
            ],
        ),
        (
            {"a": {"u": 1}, "rates": {"0.1": 2.0}},
            [
                (("", "u"), [["a", "1"]]),
                (("", "0.1"), [["rates", "2"]]),
            ],
        ),
        (
            {"runs": [{"seed": 0}, {"seed": 1}], "deep": {"er": {"x": [1, 2]}}},
            [
                (("runs", "seed"), [["1", "0"], ["2", "1"]]),
                (("deep", "x"), [["er", "1, 2"]]),
            ],
        ),
        (
            {"deep": {"er": {"x": {"y": 1}}, "z": 2}},
            [((), [["deep, er, x, y", "1"], ["deep, z", "2"]])],
        ),
        ([1, "a"], [((), [["value", "1, a"]])]),
    ],
)
def test_results_of_any_shape(result, expected):
    assert tables.to_tables(result) == expected


def test_not_a_run(tmp_path):
    with pytest.raises(
        ValueError, match=f"`workdir` must be.*Received: workdir='{tmp_path}'"
    ):
        report.write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(tmp_path, width, scheme):
    """Nothing is requested, nothing complains, nothing sticks out."""
    folder = make_whole(
        tmp_path, changes={"data.source": "folder:" + "long/" * 60 + HOSTILE}
    )
    wide = {f"column_{n}": n / 7 for n in range(30)}
    write_result(folder, "wide", {"a": wide, "b": wide})
    Image.new("RGB", (2000, 300)).save(folder / "eval" / "wide.png")
    path = report.write_report(folder)
    with launched() as browser:
        page = browser.new_page(
            viewport={"width": width, "height": 844}, color_scheme=scheme
        )
        requests, messages = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(path.as_uri())
        sizes = page.evaluate(
            "[document.scrollingElement.scrollWidth, innerWidth]"
        )
        loaded = page.evaluate(
            "[...document.images].every(image => image.naturalWidth > 0)"
        )
        background = page.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        page.click("#config summary")
        is_visible = page.is_visible("text=method.queue_size")
    assert [url for url in requests if not url.startswith("data:")] == [
        path.as_uri()
    ]
    assert messages == []
    assert sizes[0] <= sizes[1] == width
    assert loaded and is_visible
    brightness = json.loads(f"[{background[4:-1]}]")
    assert (min(brightness) > 200) == (scheme == "light")
