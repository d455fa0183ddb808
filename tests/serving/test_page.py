"""The page in a browser: `mixformer serve` with the embedded weights, and Chromium in front of it."""

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from mixformer_jax.boxes import iou, xywh_to_xyxy
from mixformer_jax.cli.demo import HEIGHT, WIDTH, render_demo_clip
from mixformer_jax.media.video import VideoWriter, open_source
from tests.endings import CODE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")

WAIT_MS = 40_000
expect.set_options(timeout=WAIT_MS)
FRAMES = 12


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of `mixformer serve` in a process of its own."""
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("w") as errors:
        serve = subprocess.Popen(
            [sys.executable, "-c", CODE, "serve", "--port", "0"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    line = serve.stdout.readline()
    assert line.startswith("open http://127.0.0.1:"), log.read_text()
    yield line.removeprefix("open ").strip()
    serve.terminate()
    assert serve.wait(30) == 128 + 15 and "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield started
        started.close()


@pytest.fixture(params=[{"width": 1000, "height": 800}], ids=["desktop"])
def page(browser, address, request):
    """The page, ready; nothing may go wrong in its script, nor be refused by the rules for its content."""
    is_phone = request.param["width"] < 500
    page, wrong = browser.new_page(viewport=request.param, has_touch=is_phone, is_mobile=is_phone), []
    page.set_default_timeout(WAIT_MS)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    page.goto(address)
    expect(page.locator("#status")).not_to_contain_text("…")
    yield page
    page.close()
    assert not wrong


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The beginning of the demo clip, and the target's boxes."""
    path, clip = tmp_path_factory.mktemp("clip") / "my <cat>.mp4", render_demo_clip()
    with VideoWriter(path, 15.0, (HEIGHT, WIDTH)) as writer:
        for index in range(FRAMES):
            writer.write(clip[index])
    return path, clip.boxes_xywh[:FRAMES]


def drag(page, box_xywh):
    """Draws a box with the mouse."""
    place = page.locator("#canvas").bounding_box()
    scale = place["width"] / WIDTH
    x, y, w, h = (float(value) * scale for value in box_xywh)
    page.mouse.move(place["x"] + x, place["y"] + y)
    page.mouse.down()
    page.mouse.move(place["x"] + x + w / 2, place["y"] + y + h / 3)
    page.mouse.move(place["x"] + x + w, place["y"] + y + h)
    page.mouse.up()


def download(page, button, path):
    with page.expect_download() as found:
        page.click(button)
    found.value.save_as(path)
    return found.value.suggested_filename


def test_upload_draw_track_download(page, clip, tmp_path):
    path, boxes_xywh = clip
    page.set_input_files("#file", path)
    expect(page.locator("#title")).to_have_text("my <cat>")
    expect(page.locator("#where")).to_contain_text(f"1 / {FRAMES}")
    expect(page.locator("#csv")).to_be_disabled()
    drag(page, boxes_xywh[0])
    expect(page.locator("#targets li")).to_have_count(1)
    page.click("#play")
    expect(page.locator("#where")).to_contain_text(f"{FRAMES} / {FRAMES}")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    expect(page.locator("#targets .state")).to_have_text("following")

    # Back, another target from there on, and again to the end.
    page.fill("#slider", "5")
    expect(page.locator("#where")).to_contain_text("6 / ")
    drag(page, [450, 40, 90, 90])
    expect(page.locator("#targets li")).to_have_count(2)
    page.click("#play")
    expect(page.locator("#where")).to_contain_text(f"{FRAMES} / {FRAMES}")
    page.click("li[data-target='1'] .remove")
    expect(page.locator("#targets li")).to_have_count(1)

    assert download(page, "#csv", tmp_path / "boxes.csv") == "my_cat_boxes.csv"
    download(page, "#json", tmp_path / "boxes.json")
    rows = list(csv.DictReader((tmp_path / "boxes.csv").open()))
    assert [row["frame"] for row in rows if row["target"] == "1"] == [str(number + 1) for number in range(FRAMES)]
    assert [row["frame"] for row in rows if row["target"] == "2"] == [str(number) for number in range(6, FRAMES)]
    found = np.array([[float(row[name]) for name in "xywh"] for row in rows if row["target"] == "1"])
    assert np.abs(found[0] - boxes_xywh[0]).max() < 1.5, "as it was drawn"
    assert iou(xywh_to_xyxy(found), xywh_to_xyxy(boxes_xywh)).mean() > 0.5
    assert [record["frame"] for record in json.loads((tmp_path / "boxes.json").read_text())] == [
        int(row["frame"]) for row in rows
    ]
    download(page, "#video", tmp_path / "tracked.mp4")
    assert len(list(open_source(tmp_path / "tracked.mp4"))) == FRAMES


def test_the_camera(page):
    """Chromium's own test pattern, followed live; stopped where a box is drawn."""
    page.click("#camera")
    expect(page.locator("#where")).to_contain_text(re.compile("0:0[1-9]"))
    drag(page, [100, 60, 60, 60])
    expect(page.locator("#targets li")).to_have_count(1)
    expect(page.locator("#rate")).to_contain_text("FPS")
    expect(page.locator("#csv")).to_be_enabled()
    page.click("#play")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")


@pytest.mark.parametrize("page", [{"width": 390, "height": 844}], ids=["phone"], indirect=True)
def test_a_finger_draws(page, clip):
    path, boxes_xywh = clip
    page.set_input_files("#file", path)
    expect(page.locator("#where")).to_contain_text(f"1 / {FRAMES}")
    place, devtools = page.locator("#canvas").bounding_box(), page.context.new_cdp_session(page)
    scale = place["width"] / WIDTH

    def touch(kind, *points):
        points = [{"x": place["x"] + x * scale, "y": place["y"] + y * scale} for x, y in points]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    x, y, w, h = boxes_xywh[0]
    touch("touchStart", (x, y))
    for share in (0.2, 0.6, 1.0):
        touch("touchMove", (x + share * w, y + share * h))
    touch("touchEnd")
    expect(page.locator("#targets li")).to_have_count(1)
    page.click("#play")
    expect(page.locator("#where")).to_contain_text(f"{FRAMES} / {FRAMES}")
    assert page.evaluate("() => document.body.scrollWidth") <= 390, "nothing sticks out"


def test_errors_are_sentences(page, tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("not a video at all")
    page.set_input_files("#file", path)
    expect(page.locator("#alert-text")).to_contain_text("this is no video")
    expect(page.locator("#camera")).to_be_enabled()
