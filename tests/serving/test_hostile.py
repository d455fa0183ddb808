"""Requests that no page sends: nothing outside is read, nothing crashes, and nothing grows without bound."""

import contextlib
import http.client
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from mixformer_jax.serving import web
from mixformer_jax.serving.app import Limits
from mixformer_jax.serving.web import COOKIE
from tests.serving.conftest import wait_until

pytestmark = pytest.mark.usefixtures("quick_compilation")

OUTSIDE = (
    "../secret.mp4",
    "link.mp4",
    "more/../../secret.mp4",
    "/etc/passwd",
    "more",
    "",
    "\0",
    None,
    5,
    ["more/clip.mp4"],
)
PATHS = (
    *(
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.css/..",
    ),
    *("/sessions/../../etc/passwd/boxes.csv", "/sessions/x/tracked.mp4", "/sessions/%2e%2e/upload", "/app.py", "/%00"),
)
ADDRESSES = (
    "file:///etc/passwd",
    "concat:/etc/passwd|/etc/hosts",
    "/etc/passwd",
    "ftp://localhost/x",
    "data:,x",
    "",
    None,
    3,
)
# What FFmpeg would follow to other files: it is known by its content, whatever the name.
LISTS = (
    b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
)
# The head of a JPEG that says 65,500 x 65,500 pixels.
BOMB = bytes.fromhex("ffd8ffc0001108ffdcffdc03012200021101031101") + b"\0" * 50


def is_well(served) -> bool:
    with served.page() as page:
        page.open()
    return True


def test_only_its_own_page_may(served):
    """A page of another server, or of a name that its owner points here, in the same browser."""
    assert served.ask("GET", "/", headers={"host": "evil.example"}).status == 400
    assert served.ask("GET", "/", headers={"origin": "http://evil.example"}).status == 403
    assert served.ask("POST", "/sessions/x/upload", b"", {"origin": "http://evil.example"}).status == 403
    for origin in ("http://evil.example", "null", None):
        with pytest.raises(InvalidStatus), served.page(origin=origin):
            pass
    headers = served.ask("GET", "/").headers
    assert "default-src 'none'" in headers["content-security-policy"] and "server" not in headers


def test_a_token_where_others_can_connect(start):
    served = start(hosts=None, token="s3cret")
    for path in ("/", "/page.js", "/?token=wrong", "/page.js?token=s3cret"):
        assert served.ask("GET", path).status == 403
    with pytest.raises(InvalidStatus), served.page():
        pass
    answer = served.ask("GET", "/?token=s3cret")
    assert answer.status == 303 and answer.headers["location"] == "/"
    assert "HttpOnly" in answer.headers["set-cookie"] and "samesite=lax" in answer.headers["set-cookie"].lower()
    cookie = {"cookie": f"{COOKIE}=s3cret"}
    assert served.ask("GET", "/", headers=cookie).status == 200
    with served.page(**cookie) as page:
        page.open()
    with pytest.raises(InvalidStatus), served.page(cookie=f"{COOKIE}=s3cre"):
        pass


@pytest.mark.parametrize("path", PATHS)
def test_names_are_no_paths(served, path):
    answer = served.ask("GET", path)
    assert answer.status in (400, 404, 405) and b"root:" not in answer.text


def test_nothing_outside_is_opened(start, videos):
    served = start(with_addresses=True)
    with served.page() as page:
        for name in OUTSIDE:
            page.do("open", kind="folder", name=name)
            assert page.hear("error", "opened")[0]["text"] == "no such video in the server's folder"
        for address in ADDRESSES:
            page.do("open", kind="address", name=address)
            assert "expected an address" in page.hear("error", "opened")[0]["text"]
        page.do("open", kind="upload", name="/etc/passwd")
        assert page.hear("error")[0]["text"] == "nothing was uploaded"
        page.open()
    closed = start(with_addresses=False)
    with closed.page() as page:
        page.do("open", kind="address", name="http://127.0.0.1:1/x.mp4")
        assert "--addresses" in page.hear("error")[0]["text"]


def test_uploads_are_bounded_and_videos(served, videos, monkeypatch):
    monkeypatch.setattr(web, "IDLE_S", 0.3)
    with served.page() as page:
        (session,) = served.server.sessions.values()

        def send(body, **headers):
            return served.ask("POST", f"{page.path}/upload", body, headers).status

        for body in (*LISTS, b"", b"x", b"\0" * 100, b"<html>" * 10):
            assert send(body) == 415
        clip = (videos / "more" / "clip.mp4").read_bytes()
        assert send(b"", **{"content-length": str(2**40)}) == 413
        assert send(b"", **{"content-length": "-1"}) == 400, "no HTTP"
        # Of unknown length, and still being sent when it is known that they are not taken.
        assert send(clip[:1000] for _ in range(9000)) == 413
        assert send(b"\0" * 1000 for _ in range(9000)) == 415
        assert served.ask("POST", "/sessions/none/upload", (b"\0" * 1000 for _ in range(9000))).status == 404
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        place = f"localhost:{served.port}"
        own = {"Host": place, "Origin": f"http://{place}", "Content-Length": str(len(clip))}
        connection.request("POST", f"{page.path}/upload", clip[: len(clip) // 2], own)
        assert connection.getresponse().status == 408, "it stands still"
        connection.close()
        broken = socket.create_connection(("127.0.0.1", served.port))
        lines = "".join(f"{name}: {value}\r\n" for name, value in own.items())
        broken.sendall(f"POST {page.path}/upload HTTP/1.1\r\n{lines}\r\n".encode() + clip[:500])
        broken.close()
        assert not session.upload.exists()
        # Once it is noticed that the other has gone: whole, but a video that breaks off.
        wait_until(lambda: send(clip[: len(clip) // 2]) == 200)
        page.do("open", kind="upload", name="half.mp4")
        told = page.hear("error", "opened")[0]
        assert told["is"] == "opened" or "/tmp" not in told["text"]
        assert [path.name for path in session.upload.parent.iterdir()] == ["upload"]
        page.do("pause")
    assert is_well(served)


def test_commands_that_make_no_sense(served, box):
    with served.page() as page:
        for text in (
            "",
            "[]",
            "nonsense",
            "5",
            "[" * 5000,
            '{"do": ["open"]}',
            '{"do": {"a": 1}}',
            "{}",
            '{"do": null}',
        ):
            page.socket.send(text)
            assert "no command" in page.hear("error")[0]["text"]
        for command in ("play", "seek", "add", "replace", "remove", "write"):
            page.do(command, frame=0, target=0, box=box.tolist())
            assert page.hear("error")[0]["text"] == "no video is open"
        page.open()
        nothing = float("nan")
        for wrong in (
            [1, 2, 3],
            [nothing] * 4,
            ["1"] * 4,
            [True] * 4,
            {},
            None,
            [0, 0, -1, 5],
            [1e300, 0, 1e300, 1e300],
            [10**400] * 4,
        ):
            page.do("add", frame=0, box=wrong)
            page.hear("error")
        for frame in (-1, 10**9, True, "0", 1.5, None):
            page.do("add", frame=frame, box=box.tolist())
            page.hear("error")
        for target in (0, -1, 10**30, "0", None, [0]):
            page.do("remove", frame=0, target=target)
            page.hear("error")
        page.do("add", frame=0, box=box.tolist())
        assert len(page.hear("picture")[0]["targets"]) == 1
        for kind, block in (("S-to-S'", "B0"), ("OT-to-T", "B0"), (None, None), ("S-to-T", "\0" * 100)):
            page.do("overlay", target=0, kind=kind, block=block)
            assert "no overlay" in page.hear("error", "picture")[0]["text"]
        page.do("pause")
        page.send_picture(0, b"no camera is open")
        for size in ((0, 0), (10**9, 10), (16_000, 16_000), ("640", "480")):
            page.do("open", kind="camera", width=size[0], height=size[1])
            page.hear("error", "opened")
        page.do("open", kind="camera", width=64, height=64)
        for picture in (b"x", b"\xff\xd8", BOMB, b"\xff\xd8\xff\xe0\xff\xff" + b"\0" * 20):
            page.do("play")
            page.hear("playing")
            page.send_picture(1, picture)
            page.hear("error")
    assert is_well(served)


def test_who_sends_too_much_is_cut_off(served):
    with pytest.raises(ConnectionClosed), served.page() as page:
        page.socket.send(b"x" * (9 * 2**20))
        page.hear("nothing")
    with pytest.raises(ConnectionClosed), served.page() as page:
        while True:
            page.do("open", kind="folder", name="more/clip.mp4")
    assert is_well(served)


def test_sessions_are_few_and_apart(start):
    served = start(limits=Limits(2, 2**20))
    with served.page() as first, served.page() as second:
        assert first.path != second.path and len(first.path) > 30
        with pytest.raises(ConnectionClosed, match="1013"), served.page():
            pass
        first.open()
        # The second has no video, whatever the first one opened.
        second.do("play")
        assert second.hear("error")[0]["text"] == "no video is open"
        assert json.loads(served.ask("GET", f"{second.path}/boxes.json").text) == []
    wait_until(lambda: not served.server.sessions)
    assert is_well(served)


def test_who_says_nothing_is_not_waited_for(start, monkeypatch):
    monkeypatch.setattr(web, "HEAD_S", 0.3)
    served = start()
    with served.page() as page:
        for said in (b"", b"GET / HTTP/1.1\r\nhost: local"):
            with socket.create_connection(("127.0.0.1", served.port), timeout=30) as silent:
                silent.sendall(said)
                assert silent.recv(1) == b"", "closed"
        page.open()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_two_hundred_at_once(served):
    """Uploads to nobody, requests that never end, and sessions: some are refused, and all of it is over soon."""
    assert is_well(served)
    before = resident_bytes()

    def ask(number: int) -> None:
        if number % 4 == 0:
            with pytest.raises((AssertionError, InvalidStatus, ConnectionClosed, OSError)), served.page() as page:
                page.open()
                raise OSError("enough")
        elif number % 4 == 1:
            with socket.create_connection(("127.0.0.1", served.port), timeout=30) as half:
                half.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: " + b"y" * 200_000)
        else:
            with contextlib.suppress(OSError, http.client.HTTPException):  # cut off
                served.ask("POST", "/sessions/nobody/upload", b"\0" * 2**20)

    with ThreadPoolExecutor(200) as pool:
        list(pool.map(ask, range(200)))
    wait_until(lambda: not served.server.sessions)
    assert is_well(served)
    assert resident_bytes() - before < 300 * 2**20
