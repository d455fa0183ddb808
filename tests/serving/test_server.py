"""The server as the page uses it: what it tells, and what it hands out."""

import csv
import io
import itertools
import json
import tempfile
import threading
import time

import cv2
import numpy as np
import pytest

from mixformer_jax.media.sources import LiveSource
from mixformer_jax.media.video import open_source
from mixformer_jax.serving import session
from tests.serving.conftest import wait_until

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_from_a_box_to_boxes_and_a_video(served, tracker, loop, videos, box, tmp_path):
    """As `Tracker.step` finds them on the same video."""
    frames = list(open_source(videos / "more" / "clip.mp4"))
    state, expected = tracker.start(frames[0], box), []
    for frame in frames[1:]:
        state, tracked = tracker.step(state, frame)
        expected.append(tracked.box_xywh)

    with served.page() as page:
        assert page.hello["videos"] == ["more/clip.mp4", "stills/"], "no link that may lead out"
        page.open()
        page.do("add", box=box.tolist(), frame=0)
        first, picture = page.hear("picture")
        assert first["targets"] == [{"target": 0, "box": box.tolist(), "score": 1.0, "lost": False}]
        assert picture.shape == frames[0].shape
        last = page.play_to_the_end()
        assert last["frame"] == len(frames) - 1
        np.testing.assert_allclose(last["targets"][0]["box"], expected[-1], atol=0.02)

        answer = served.ask("GET", f"{page.path}/boxes.csv")
        assert answer.headers["content-disposition"] == 'attachment; filename="clip_boxes.csv"'
        rows = list(csv.DictReader(io.StringIO(answer.text.decode())))
        assert [row["frame"] for row in rows] == [str(number) for number in range(1, len(frames) + 1)]
        found = np.array([[float(row[name]) for name in "xywh"] for row in rows])
        np.testing.assert_allclose(found[1:], expected, atol=0.02)
        records = json.loads(served.ask("GET", f"{page.path}/boxes.json").text)
        given = dict(zip("xywh", box.tolist(), strict=True))
        assert records[0] == {"frame": 1, "time": 0.0, "target": 1, "score": 1.0, "lost": False, **given}

        assert served.ask("GET", f"{page.path}/tracked.mp4").status == 404
        page.do("write")
        page.hear("written")
        video = tmp_path / "tracked.mp4"
        video.write_bytes(served.ask("GET", f"{page.path}/tracked.mp4").text)
        assert len(list(open_source(video))) == len(frames)


def test_changes_on_any_frame(served, box):
    with served.page() as page:
        page.open()
        page.do("add", box=box.tolist(), frame=0)
        page.hear("picture")
        before = page.play_to_the_end()
        page.do("seek", frame=7)
        there = page.hear("picture")[0]
        assert there["frame"] == 7 and there["last"] == before["frame"]
        page.do("add", box=(box + np.array([67, -28, 0, 0])).tolist(), frame=7)
        assert [t["target"] for t in page.hear("picture")[0]["targets"]] == [0, 1]
        page.do("replace", target=1, box=(box + np.array([60, -20, 0, 0])).tolist(), frame=7)
        assert page.hear("picture")[0]["last"] == 7
        page.do("template", target=0, box=box.tolist(), frame=7)
        page.hear("picture")
        page.do("remove", target=0, frame=7)
        assert [t["target"] for t in page.hear("picture")[0]["targets"]] == [1]
        last = page.play_to_the_end()
        assert last["frame"] == before["frame"] and [t["target"] for t in last["targets"]] == [1]
        page.do("remove", target=0, frame=7)
        assert "no target 0" in page.hear("error")[0]["text"]


def test_a_folder_of_images(served):
    """The third is none, which is told without the folder's place on the server."""
    with served.page() as page:
        page.do("open", kind="folder", name="stills/")
        assert page.hear("opened")[0]["frames"] == 3
        page.do("speed", fast=True)
        page.do("play")
        told = page.hear("error")[0]["text"]
        assert told.startswith("the video/3.png") and "served" not in told


def test_the_overlay_lies_on_the_search_region(served, box):
    with served.page() as page:
        page.open()
        page.do("add", box=box.tolist(), frame=0)
        page.do("seek", frame=0)
        page.play_to_the_end()
        choices = page.hello["overlay"]
        page.do("overlay", target=0, kind="S-to-OT", block=choices["blocks"][-1])
        shown = page.hear("picture")[0]
        overlay, (x, y, w, h) = shown["overlay"], shown["targets"][0]["box"]
        assert overlay["x"] < x + w / 2 < overlay["x"] + overlay["side"]
        assert overlay["y"] < y + h / 2 < overlay["y"] + overlay["side"]
        levels = np.array(overlay["levels"])
        assert levels.shape[0] == levels.shape[1] and levels.max() == 255
        page.do("overlay", target=0, kind="S-to-T", block="B99")
        assert "B99" in page.hear("error")[0]["text"]
        page.do("overlay", target=None)
        assert page.hear("picture")[0]["overlay"] is None


def test_the_browsers_camera(served, loop, box):
    """Pictures are answered by boxes; one can go back to them, and download them."""
    height, width = loop.frames.shape[1:3]
    jpegs = [cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes() for frame in loop.frames]
    with served.page() as page:
        page.do("open", kind="camera", width=width, height=height)
        page.hear("playing")
        page.send_picture(7, jpegs[0])
        assert page.hear("found")[0]["number"] == 7
        page.do("add", box=box.tolist(), frame=0)
        page.hear("picture")
        for number, jpeg in enumerate(jpegs[1:6], 8):
            page.send_picture(number, jpeg)
            told = page.hear("found")[0]
            assert told["number"] == number and len(told["targets"]) == 1
        page.do("seek", frame=3)
        assert page.hear("picture")[0]["frame"] == 3
        page.do("write")
        page.hear("written")
        page.do("play")
        while page.hear("picture")[0]["frame"] < 5:
            pass
        page.send_picture(20, jpegs[6])
        assert page.hear("found")[0]["frame"] == 6


class Arriving(LiveSource):
    """A stream that gives the clip over and over."""

    def __init__(self, frames):
        super().__init__()
        self.name, self.fps, self.size, self._clip = "stream", 10.0, frames.shape[1:3], frames

    def _arriving(self):
        for number in itertools.count():
            time.sleep(0.005)
            yield self._clip[number % len(self._clip)], number / 10


def test_a_live_stream(served, loop, box, monkeypatch):
    """Its newest frames are followed and kept, so that one can go back."""
    monkeypatch.setattr(session, "open_source", lambda address: Arriving(loop.frames))
    with served.page() as page:
        page.do("open", kind="address", name="rtsp://camera/1")
        opened = page.hear("opened")[0]
        assert opened["live"] and opened["frames"] is None
        page.do("add", box=box.tolist(), frame=page.hear("picture")[0]["frame"])
        page.hear("picture")
        page.do("play")
        while (shown := page.hear("picture")[0])["frame"] < 8:
            assert [target["target"] for target in shown["targets"]] == [0]
        page.do("pause")
        page.hear("paused")
        page.do("seek", frame=4)
        while (shown := page.hear("picture")[0])["frame"] != 4:
            pass
        assert len(shown["targets"]) == 1 and shown["last"] >= 8
        page.do("write")
        page.hear("written")


def test_an_upload_is_a_label_and_bytes(served, videos):
    with served.page() as page:
        data = (videos / "more" / "clip.mp4").read_bytes()
        assert served.ask("POST", f"{page.path}/upload", data).status == 200
        page.do("open", kind="upload", name="../../etc/a  b.mp4")
        assert page.hear("opened")[0]["name"] == "a  b"
        page.hear("picture")
        answer = served.ask("GET", f"{page.path}/boxes.csv")
        assert answer.headers["content-disposition"] == 'attachment; filename="a_b_boxes.csv"'


def test_what_a_session_held_goes_with_its_connection(served, box, tmp_path, monkeypatch):
    """Its thread, its folder, its frames; also where the page goes in the middle of writing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with served.page() as page:
        page.open()
        page.do("add", box=box.tolist(), frame=0)
        page.play_to_the_end()
        page.do("write")
        (held,) = served.server.sessions.values()
        assert list(tmp_path.glob("mixformer_page_*"))
    held.join(30.0)
    wait_until(lambda: not served.server.sessions)
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name == "session"]
    assert served.ask("GET", f"{page.path}/boxes.csv").status == 404
