"""Cameras and streams on 127.0.0.1: the newest frame, what was dropped, and connections that break off."""

import contextlib
import http.server
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import mixformer_jax
from mixformer_jax import cli
from mixformer_jax.media import sources
from mixformer_jax.media.decoders import open_decoder
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.video import SelectedFrames, open_source
from mixformer_jax.models.config import size_config
from mixformer_jax.tracking.tracker import Tracked
from tests.clips import write_clip
from tests.test_video import numbers, picture

NUM_FRAMES = 10


class Device:
    """A camera that gives a frame whenever the test lets it, and none after the fourth."""

    allowed = threading.Semaphore(1)  # the first picture, at which it is opened

    def __init__(self, index: int) -> None:
        self.given, self.opened = 0, True

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, np.ndarray | None]:
        assert self.allowed.acquire(timeout=10)
        self.given += 1
        return (True, picture(self.given)[..., ::-1]) if self.given <= 4 else (False, None)

    def get(self, key: int) -> float:
        return 0.0

    def release(self) -> None:
        self.opened = False


def test_camera_gives_the_newest_frame(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Device)
    monkeypatch.setattr(Device, "allowed", threading.Semaphore(1))
    with open_source(0) as camera:
        assert (camera.name, camera.fps, camera.num_frames, camera.size) == ("camera0", 30.0, None, (48, 64))
        frames = camera.timed()
        Device.allowed.release()
        first = next(frames)
        Device.allowed.release(2)
        while camera.dropped < 1:
            time.sleep(0.005)
        newest = next(frames)
        assert numbers([first.pixels, newest.pixels]) == [2, 4]
        assert (first.number, newest.number, camera.dropped) == (1, 3, 1) and newest.seconds > first.seconds
        Device.allowed.release()
        with pytest.raises(SourceError, match="gave no frame 4"):
            next(frames)
        with pytest.raises(ValueError, match="camera0 is live"):
            SelectedFrames(camera, backward=True)


class Stream(http.server.BaseHTTPRequestHandler):
    """Sends a transport stream without saying how long it is; a request for which `answers` has False gets a 404."""

    clip: bytes
    answers: Iterator[bool]

    def do_GET(self) -> None:
        if not next(self.answers):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        if self.path.startswith("/file"):
            self.send_header("Content-Length", str(len(self.clip)))
        if self.path.startswith("/broken"):  # off before its end
            self.send_header("Content-Length", str(2 * len(self.clip)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(self.clip)

    def log_message(self, *arguments: object) -> None:
        return None


@pytest.fixture
def server(tmp_path, pyav, monkeypatch):
    """A class of handlers, to which a test gives answers, and the address at which one serves."""
    path = write_clip(tmp_path / "gate.ts", [picture(number) for number in range(NUM_FRAMES)], bf="0")
    clip_bytes = path.read_bytes()

    class Handler(Stream):
        clip = clip_bytes
        answers = itertools.repeat(True)

    monkeypatch.setattr(sources, "FIRST_WAIT_S", 0.01)
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield Handler, f"http://127.0.0.1:{serving.server_address[1]}"
    serving.shutdown()
    serving.server_close()
    thread.join()


def test_stream_that_breaks_off_is_opened_again(server):
    handler, address = server
    given = []
    with open_source(f"{address}/gate.ts") as stream:
        handler.answers = itertools.chain([True, False, False], itertools.repeat(True))
        assert stream.is_live and stream.name == "gate" and stream.num_frames is None
        for frame in stream.timed():
            given.append(frame)
            if frame.number > NUM_FRAMES:
                break
        assert stream.reconnections >= 3 and stream.dropped >= frame.number - len(given)
    seconds = [frame.seconds for frame in given]
    assert seconds == sorted(seconds), "the stream's clock begins again, ours does not"


def test_attempts_have_a_limit(server):
    handler, address = server
    with open_source(f"{address}/gate.ts", reconnects=2) as stream:
        handler.answers = itertools.chain([True], itertools.repeat(False))
        with pytest.raises(SourceError, match=r"broke off \(.*404.*\), and 2 attempts to open it again gave no frame"):
            list(stream)
        assert stream.reconnections == 2
    handler.answers = itertools.repeat(True)
    with (
        open_source(f"{address}/gate.ts", reconnects=0) as stream,
        pytest.raises(SourceError, match=r"broke off \((it ended|Input.output error)\)$"),
    ):
        list(stream)


def test_file_at_an_address_is_read_whole(server):
    _, address = server
    with open_source(f"{address}/file.ts") as source:
        assert not source.is_live and numbers(source) == list(range(NUM_FRAMES))
    with open_source(f"{address}/gate.ts", live=False) as source:
        frames = iter(source)
        assert numbers(next(frames) for _ in range(NUM_FRAMES)) == list(range(NUM_FRAMES))
        with pytest.raises(
            SourceError, match=rf"gate\.ts: (the stream gave no frame {NUM_FRAMES + 1}|Input/output error)"
        ):
            next(frames)


def test_frames_that_come_after_a_connection_broke_have_times(server):
    """The decoder still holds some: several threads are a frame behind each."""
    _, address = server
    times = [seconds for _, seconds in open_decoder(f"{address}/broken.ts").frames()]
    np.testing.assert_allclose(times, np.arange(NUM_FRAMES) / 25)


def test_a_server_without_ranges_and_an_index_at_the_end(server, tmp_path):
    handler, address = server
    noise = np.random.default_rng(0).integers(0, 256, (8, 160, 160, 3), np.uint8)
    handler.clip = write_clip(tmp_path / "gate.mp4", noise, crf="4").read_bytes()
    with pytest.raises(SourceError, match=r"parts of a file.*download it"):
        open_source(f"{address}/file.mp4")


def test_who_closes_is_not_kept_waiting(server):
    handler, address = server
    stream = open_source(f"{address}/gate.ts", reconnects=99)
    handler.answers = itertools.chain([True], itertools.repeat(False))
    assert next(stream.timed()).pixels.shape == (48, 64, 3)
    stream.close()
    assert list(stream.timed()) == []


class Standing:
    """A tracker whose target stays where it is."""

    has_scores = False
    config = size_config("mixvit_nano")

    def start(self, frame, boxes_xywh):
        return boxes_xywh

    def step(self, state, frame):
        time.sleep(0.005)
        return state, Tracked(state)


def test_track_says_what_was_dropped(server, tmp_path, monkeypatch, capsys):
    handler, address = server
    monkeypatch.setattr(mixformer_jax, "load", lambda *_, **__: Standing(), raising=False)
    monkeypatch.chdir(tmp_path)
    handler.answers = itertools.chain([True] * 3, itertools.repeat(False))
    given = [f"{address}/gate.ts", "--box", "8,8,20,20", "--boxes", "b.jsonl"]
    assert cli.main(["track", *given, "--reconnects", "1"]) == 2
    out, told = capsys.readouterr()
    assert "the stream broke off" in told and "1 attempts to open it again gave no frame" in told
    found = re.search(r"dropped +(\d+) frames that came while another was tracked\nreconnected +(\d+) times\n", out)
    records = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()]
    given_numbers, times = ([record[name] for record in records] for name in ("frame", "time"))
    assert found is not None and int(found[2]) >= 1
    assert int(found[1]) + len(records) == given_numbers[-1] and given_numbers == sorted(set(given_numbers))
    assert times == sorted(times)
    handler.answers = itertools.repeat(True)
    assert cli.main(["track", *given, "--overwrite", "--resume"]) == 2
    assert "is live, and cannot be gone back to" in capsys.readouterr().err
