"""Tests of the page of tools.search_demo, in a browser."""

import base64
import contextlib
import io
import json
import threading

import numpy as np
import pytest
from browser import launched
from PIL import Image

from ressl_tf import data
from ressl_tf import search

SIZE = 8
COLORS = {"red": (220, 40, 30), "green": (40, 190, 60), "blue": (40, 60, 210)}
NUM_IMAGES = 99
LIMITS = search.Limits(max_bytes=20_000, max_pixels=100_000)


def average(images):
    """An encoder whose embedding is the mean colour."""
    return images[:, 0, 0, :]


def plain(color):
    return np.tile(np.uint8(color), (SIZE, SIZE, 1))


@contextlib.contextmanager
def running(labelled=True):
    """A server of images of three colours by turns, each one a bit darker."""
    colors = np.array(list(COLORS.values()))
    labels = np.arange(NUM_IMAGES) % len(colors)
    shades = 1 - np.arange(NUM_IMAGES) / 200
    images = np.stack([plain(colors[x]) for x in labels])
    images = (images * shades[:, None, None, None]).astype(np.uint8)
    image_set = data.ImageSet(images, None, ())
    if labelled:
        image_set = data.ImageSet(images, labels, tuple(COLORS))
    with search.SearchServer(0, LIMITS) as server:
        index = search.Index(image_set, average)
        # More than there are of a colour: others follow.
        arguments = index, "images of three colours", 40
        thread = threading.Thread(target=server.serve, args=arguments)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser():
    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def server(browser):
    with running() as server:
        yield server


@contextlib.contextmanager
def opened(browser, server, width=1280, scheme="light", path=""):
    """The page; nothing is asked elsewhere, and nothing complains."""
    page = browser.new_page(
        viewport={"width": width, "height": 844}, color_scheme=scheme
    )
    elsewhere, messages = [], []

    def look(request):
        if not request.url.startswith((server.url, "data:", "blob:")):
            elsewhere.append(request.url)

    page.set_default_timeout(10_000)
    page.on("request", look)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("console", lambda message: messages.append(message.text))
    page.goto(server.url + path)
    page.wait_for_selector("#images img")
    try:
        yield page
    finally:
        page.close()
    assert elsewhere == []
    # Chromium itself notes answers that are refusals, which are meant here.
    assert [x for x in messages if "Failed to load resource" not in x] == []


def to_file(name, image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}


def drop(page, *files):
    """Drags files over the page and drops them there."""
    contents = [
        [x["name"], base64.b64encode(x["buffer"]).decode()] for x in files
    ]
    page.evaluate(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, code] of files) {
                const bytes = Uint8Array.from(atob(code), x => x.charCodeAt());
                transfer.items.add(new File([bytes], name));
            }
            const options = {bubbles: true, cancelable: true};
            options.dataTransfer = transfer;
            const target = document.getElementById("gallery");
            target.dispatchEvent(new DragEvent("drop", options));
        }""",
        contents,
    )


def neighbours(page):
    """[(number, text)] of the images that are shown."""
    return page.eval_on_selector_all(
        "#neighbours li",
        """tiles => tiles.map(tile => [
            Number(tile.querySelector("a").hash.slice("#image-".length)),
            tile.querySelector(".caption").innerText,
        ])""",
    )


def wait_for(page, state):
    page.wait_for_selector(f"body[data-state={state}]")


def error_of(page):
    wait_for(page, "error")
    assert page.is_visible("[role=alert]")
    assert page.is_hidden("#query") and neighbours(page) == []
    return page.inner_text("[role=alert]")


def frames(page):
    """{number: "green" or "red", None where there is no frame}."""
    colors = page.eval_on_selector_all(
        "#neighbours li",
        """tiles => tiles.map(tile => [
            Number(tile.querySelector("a").hash.slice("#image-".length)),
            getComputedStyle(tile.querySelector("img")).borderColor,
        ])""",
    )
    return {number: _name_color(color) for number, color in colors}


def _name_color(color):
    red, green, _, *alpha = json.loads(f"[{color[color.index('(') + 1 : -1]}]")
    if alpha == [0]:
        return None
    return "red" if red > green else "green"


@pytest.mark.parametrize("way", ["choose", "drop"])
def test_an_image_from_outside(browser, server, way):
    with opened(browser, server) as page:
        assert page.inner_text("#about") == "Searches images of three colours."
        assert page.inner_text("#limit") == ", up to 0.02 MB"
        assert page.is_visible("text=Nothing is searched yet")
        assert page.is_hidden("#query") and page.is_hidden("#error")
        file = to_file("my <b>image</b>.png", plain((30, 200, 60)))
        if way == "choose":
            page.set_input_files("#file", file)
        else:
            drop(page, file)
        wait_for(page, "result")
        found = neighbours(page)
        assert len(found) == 40
        assert all(number % 3 == 1 for number, _ in found[:33])
        assert not any(number % 3 == 1 for number, _ in found[33:])
        assert found[0][1].startswith("0.99") and "green" in found[0][1]
        assert page.inner_text("#query strong") == "my <b>image</b>.png"
        assert "sees it, 8 x 8 pixels" in page.inner_text("#query-caption")
        assert (
            page.evaluate("document.getElementById('query-image').naturalWidth")
            == SIZE
        )
        # What class it is, is not known.
        assert set(frames(page).values()) == {None}
        assert page.inner_text("#summary") == "40 images, by cosine similarity."
        assert "✓" not in page.inner_text("#neighbours")
        # The same again: a browser tells of a file that is chosen anew.
        assert page.input_value("#file") == ""
        page.click("#images a >> nth=0")
        page.wait_for_selector("#query strong:text('image 0')")
        page.set_input_files("#file", file)
        page.wait_for_selector("#query strong:text('my <b>')")


def test_images_of_the_gallery(browser, server):
    """Clicked ones are framed by class; back is the one before."""
    with opened(browser, server) as page:
        page.click("#images a >> nth=5")
        wait_for(page, "result")
        assert page.url.endswith("/#image-5")
        found = neighbours(page)
        assert len(found) == 40 and 5 not in dict(found)
        assert found[0][1].startswith("1.000")
        colors = frames(page)
        for number, text in found:
            same = number % 3 == 2
            assert colors[number] == ("green" if same else "red")
            assert ("✓" in text) == same and ("✗" in text) != same
        assert page.inner_text("#query-caption").split("\n") == [
            "image 5",
            "blue",
        ]
        assert "32 of 40 have its class" in page.inner_text("#summary")
        current = page.locator("#images [aria-current]")
        assert current.get_attribute("href") == "#image-5"
        label = page.get_attribute("#neighbours a >> nth=0", "aria-label")
        assert label.startswith(f"image {found[0][0]}, blue, similarity 1.000")
        assert label.endswith(", same class")
        # A neighbour is the next query.
        page.click(f"#neighbours a[href='#image-{found[-1][0]}']")
        page.wait_for_selector(f"#query strong:text('image {found[-1][0]}')")
        page.go_back()
        page.wait_for_selector("#query strong:text('image 5')")
        wait_for(page, "result")
        assert neighbours(page) == found
        page.go_back()
        wait_for(page, "empty")
        assert page.is_hidden("#query") and neighbours(page) == []


def test_without_labels(browser):
    with running(labelled=False) as server:
        with opened(browser, server, path="#image-7") as page:
            wait_for(page, "result")
            assert page.is_hidden("#class")
            assert set(frames(page).values()) == {None}
            assert "class" not in page.inner_text("#summary")
            assert "null" not in page.content()


def test_errors_are_shown(browser, server):
    text = {"name": "a.png", "mimeType": "image/png", "buffer": b"text"}
    half = to_file("b.png", plain((1, 2, 3)))
    half["buffer"] = half["buffer"][:50]
    wide = to_file("c.png", np.zeros((1, 100_001, 3), np.uint8))
    whole = to_file("d.png", plain((1, 2, 3)))
    large = dict(whole, buffer=whole["buffer"].ljust(20_001, b"\0"))
    fitting = dict(whole, buffer=whole["buffer"].ljust(20_000, b"\0"))
    with opened(browser, server) as page:
        for file, message in (
            (text, "Only JPEG, PNG, GIF, BMP and WebP images are read."),
            (half, "The PNG image is damaged: it cannot be read."),
            (wide, "too many pixels: at most 100,000 are read."),
            (large, "The file is too large: at most 0.02 MB are taken."),
        ):
            page.set_input_files("#file", file)
            assert message in error_of(page)
            page.set_input_files("#file", fitting)
            wait_for(page, "result")
            assert page.is_hidden("#error")
        drop(page, whole, whole)
        assert error_of(page) == "One image at a time, please."
        drop(page)
        assert "That is no image file" in error_of(page)
        page.click("#images a >> nth=4")
        wait_for(page, "result")
        page.evaluate("location.hash = '#image-99'")
        assert error_of(page) == "There is no image 99: they end at 98."
        # After it the image that was shown before can be searched again.
        page.click("#images a >> nth=4")
        wait_for(page, "result")
        page.route("**/search", lambda route: route.abort())
        page.set_input_files("#file", whole)
        assert "is its command still running?" in error_of(page)
        page.click("#images a >> nth=4")
        wait_for(page, "result")


def test_while_it_searches(browser, server):
    """It says so, and the search that comes last is the one that counts."""
    file = to_file("slow.png", plain((200, 30, 30)))
    held = []
    with opened(browser, server) as page:
        page.route("**/search", lambda route: held.append(route))
        page.set_input_files("#file", file)
        wait_for(page, "busy")
        assert page.inner_text("#summary") == "Searching."
        assert page.get_attribute("#result", "aria-busy") == "true"
        assert page.inner_text("#query strong") == "slow.png"
        assert (
            page.evaluate("document.getElementById('query-image').naturalWidth")
            == SIZE
        )
        page.click("#images a >> nth=2")
        page.wait_for_selector("#query strong:text('image 2')")
        wait_for(page, "result")
        assert page.get_attribute("#result", "aria-busy") == "false"
        for route in held:
            with contextlib.suppress(Exception):  # It was cancelled.
                route.continue_()
        page.wait_for_timeout(200)
        assert page.inner_text("#query strong") == "image 2"
        assert page.is_hidden("#error")


def test_dragging_is_shown(browser, server):
    drag = """kind => document.body.dispatchEvent(new DragEvent(kind, {
        bubbles: true, cancelable: true, dataTransfer: new DataTransfer(),
    }))"""
    with opened(browser, server) as page:
        assert page.is_hidden("text=Drop it anywhere")
        # False: its default, to show the file in the page's place, is off.
        assert page.evaluate(drag, "dragover") is False
        assert page.is_visible("text=Drop it anywhere")
        page.evaluate(drag, "dragleave")
        assert page.is_hidden("text=Drop it anywhere")


def test_pages_and_classes_of_the_gallery(browser, server):
    with opened(browser, server) as page:

        def numbers():
            links = page.locator("#images a").evaluate_all(
                "links => links.map(link => link.hash)"
            )
            return [int(x.removeprefix("#image-")) for x in links]

        assert numbers() == [*range(60)]
        assert page.inner_text("#range") == "1 to 60 of 99"
        page.click("text=Previous", force=True)
        assert numbers() == [*range(60)]
        page.click("text=Next")
        assert numbers() == [*range(60, 99)]
        assert page.inner_text("#range") == "61 to 99 of 99"
        assert page.get_attribute("#next", "aria-disabled") == "true"
        page.click("text=Next", force=True)
        assert numbers() == [*range(60, 99)]
        page.select_option("#class", label="green")
        assert numbers() == [*range(1, 99, 3)]
        page.select_option("#class", label="all")
        assert numbers() == [*range(60)]


def test_by_keyboard(browser, server):
    with opened(browser, server) as page:

        def focused():
            return page.evaluate("document.activeElement.id")

        page.keyboard.press("Tab")
        assert focused() == "file"
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files(to_file("a.png", plain((200, 30, 30))))
        wait_for(page, "result")
        # What was found is next.
        assert focused() == "result-heading"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#query strong:text('image ')")
        wait_for(page, "result")
        assert focused() == "result-heading"
        for _ in range(len(neighbours(page)) + 1):
            page.keyboard.press("Tab")
        assert focused() == "class"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.inner_text("#range") == "61 to 99 of 99"
        assert focused() == "next"
        page.keyboard.press("Tab")
        outline = page.evaluate(
            "getComputedStyle(document.activeElement).outlineStyle"
        )
        assert outline == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(browser, server, width, scheme):
    name = "a_very_long_name_of_a_file_" * 12 + ".png"
    with opened(browser, server, width, scheme) as page:

        def assert_fits():
            found, wide = page.evaluate(
                "[document.scrollingElement.scrollWidth, innerWidth]"
            )
            assert found <= wide == width

        assert_fits()
        page.set_input_files("#file", to_file(name, plain((30, 200, 60))))
        wait_for(page, "result")
        assert_fits()
        page.click("#images a >> nth=50")
        page.wait_for_selector("#query strong:text('image 50')")
        wait_for(page, "result")
        assert_fits()
        # What was found is in sight, wherever the click was.
        page.wait_for_function(
            """() => {
                const {top} = document.getElementById("neighbours")
                    .getBoundingClientRect();
                return 0 <= top && top < innerHeight / 2;
            }"""
        )
        page.set_input_files(
            "#file", {"name": name, "mimeType": "", "buffer": b"text"}
        )
        error_of(page)
        assert_fits()
        background = page.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        brightness = json.loads(f"[{background[4:-1]}]")
        assert (min(brightness) > 200) == (scheme == "light")
