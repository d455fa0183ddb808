"""A small tracker on a clip of its own, the server with it, and what the page does, without a browser."""

import http.client
import json
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from websockets.sync.client import connect

from mixformer_jax.media.sources import TimedFrame
from mixformer_jax.media.video import VideoWriter
from mixformer_jax.serving.app import Limits, Server
from mixformer_jax.serving.web import bind, serve
from tests.tracking.conftest import golden_loop, quick_compilation  # noqa: F401


@pytest.fixture(scope="session")
def loop(golden_loop):  # noqa: F811
    return golden_loop("vit", "online2")


@pytest.fixture(scope="session")
def tracker(loop):
    return loop.tracker(update_interval=5)


@pytest.fixture(scope="session")
def timed(loop):
    """The frames of the clip as a source gives them."""
    return [TimedFrame(pixels, number, number / 10) for number, pixels in enumerate(loop.frames, 1)]


@pytest.fixture(scope="session")
def box(loop):
    return np.asarray(loop.box_xywh, np.float64)


@pytest.fixture(scope="session")
def videos(loop, tmp_path_factory):
    """A folder with the clip and images, with links that lead out of it, and beside it what they lead to."""
    folder = tmp_path_factory.mktemp("served") / "videos"
    (folder / "more").mkdir(parents=True)
    for path in (folder / "more" / "clip.mp4", folder.parent / "secret.mp4"):
        with VideoWriter(path, 10.0, loop.frames.shape[1:3]) as writer:
            for frame in loop.frames:
                writer.write(frame)
    (folder / "link.mp4").symlink_to(folder.parent / "secret.mp4")
    for name in ("linked", "stills"):
        (folder / name).mkdir()
    for number in range(1, 4):
        cv2.imwrite(str(folder / "stills" / f"{number}.png"), loop.frames[number])
        (folder / "linked" / f"{number}.png").symlink_to(folder / "stills" / f"{number}.png")
    (folder / "stills" / "3.png").write_bytes(b"no picture")
    return folder


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits; AssertionError where it takes longer."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


class Served:
    """A server on a port of its own."""

    def __init__(self, server: Server) -> None:
        self.server, self._bound, self._stops = server, bind("127.0.0.1", 0), threading.Event()
        self.port = self._bound.getsockname()[1]
        self._thread = threading.Thread(target=serve, args=(server.app, self._bound, self._stops.is_set))
        self._thread.start()
        wait_until(lambda: self.ask("GET", "/") is not None)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse | None:
        """The answer, read (`text`); None where the server does not listen yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        own = {"host": f"localhost:{self.port}", "origin": f"http://localhost:{self.port}"}
        try:
            connection.request(method, path, body, own | (headers or {}))
            answer = connection.getresponse()
            answer.text = answer.read()
            return answer
        except ConnectionRefusedError:
            return None
        finally:
            connection.close()

    def page(self, **headers: str) -> "Page":
        return Page(self.port, headers)

    def stop(self) -> None:
        self._stops.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._bound.close()


class Page:
    """What the page does over its WebSocket."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        place = f"localhost:{port}"
        self._connection = connect(
            f"ws://{place}/live",
            origin=headers.pop("origin", f"http://{place}"),
            additional_headers=headers,
            max_size=None,
            proxy=None,
        )

    def __enter__(self) -> "Page":
        self.socket = self._connection.__enter__()
        self.hello = self.hear("hello")[0]
        self.path = f"/sessions/{self.hello['session']}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.__exit__(*exception)

    def do(self, what: str, **arguments: Any) -> None:
        self.socket.send(json.dumps({"do": what, **arguments}))

    def send_picture(self, number: int, jpeg: bytes) -> None:
        self.socket.send(struct.pack(">I", number) + jpeg)

    def hear(self, *kinds: str) -> tuple[dict[str, Any], np.ndarray | None]:
        """The next message of some kinds; what comes before is passed over."""
        while True:
            data = self.socket.recv(timeout=60)
            if isinstance(data, str):
                told, picture = json.loads(data), None
            else:
                (length,) = struct.unpack(">I", data[:4])
                told = json.loads(data[4 : 4 + length])
                picture = cv2.imdecode(np.frombuffer(data[4 + length :], np.uint8), cv2.IMREAD_COLOR)
                self.do("ack")
            if told["is"] in kinds:
                return told, picture
            assert told["is"] != "error", told

    def open(self) -> None:
        self.do("open", kind="folder", name="more/clip.mp4")
        assert self.hear("picture")[0]["frame"] == 0

    def play_to_the_end(self) -> dict[str, Any]:
        """Plays; what is on the last frame."""
        self.do("speed", fast=True)
        self.do("play")
        self.hear("playing")
        self.hear("paused")
        return self.hear("picture")[0]


@pytest.fixture
def start(tracker, videos):
    """Starts servers: `start(token="t")`."""
    started = []

    def start_one(**options: Any) -> Served:
        started.append(Served(Server(tracker, videos, **{"limits": Limits(3, 2**20), **options})))
        return started[-1]

    yield start_one
    for served in started:
        served.stop()


@pytest.fixture
def served(start):
    return start()
