"""The web server around the page: who may ask (hosts, origins and the token), bounds, and its end; uploads to disk."""

import asyncio
import contextlib
import itertools
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import uvicorn
import websockets  # noqa: F401 (uvicorn speaks WebSocket by it)
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mixformer_jax.media.images import IMAGE_SUFFIXES

COOKIE = "mixformer_token"
# Scripts, styles and pictures are the server's own; frames are shown from memory.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets through what comes from the server's own page, and, where there is a token, from who has it.

    A page elsewhere, opened in the same browser, cannot use the server: the origin that browsers send must be the
    server's own, and so must the host, which a name of its own that it points here (DNS rebinding) is not.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None, token: str | None) -> None:
        """Around `app`, called by the names `hosts` (None: any) with the `token` (None: none is asked for)."""
        self._app, self._hosts, self._token = app, None if hosts is None else frozenset(hosts), token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._answer(scope)
        if answer is None:
            await self._app(scope, receive, send_with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, send_with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """What to say in place of the server; None where the request may pass."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname
            origin_place = None if origin is None else urlsplit(origin).netloc
        except ValueError:
            return PlainTextResponse("no such host", 400)
        if self._hosts is not None and name not in self._hosts:
            return PlainTextResponse("this server is not known by that name", 400)
        # Browsers send the origin with everything that changes something, and with every WebSocket.
        is_reading = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if origin_place != host and (origin is not None or not is_reading):
            return PlainTextResponse("only the server's own page may do that", 403)
        if self._token is None or self._knows(_cookie(headers)):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["type"] == "http" and scope["path"] == "/" and self._knows(given):
            # Away from the address line.
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, given, httponly=True, samesite="lax")
            return answer
        return PlainTextResponse("open the address that mixformer serve has printed, with its token", 403)

    def _knows(self, token: str) -> bool:
        return self._token is not None and secrets.compare_digest(token.encode(), self._token.encode())


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


MOST_CONNECTIONS = 128
MOST_MESSAGE = 8 * 2**20  # a picture of a camera
# Who connects has so long to say what for.
HEAD_S = 20.0
_ASKING_S = 0.1


class _Http(H11Protocol):
    """Closes connections over which no request comes: they would take the places of others."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        # A WebSocket has another protocol by now.
        if cast(Any, self.cycle) is None and not self.transport.is_closing() and self.transport.get_protocol() is self:
            self.transport.close()


class _Server(uvicorn.Server):
    """Leaves signals to the program."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket that may be listened on; OSError where the address is no one's, or taken."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it lets two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def serve(app: Starlette, bound: socket.socket, is_asked_to_stop: Callable[[], bool]) -> None:
    """Serves until it is asked to stop."""
    config = uvicorn.Config(
        app,
        http=_Http,
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        ws_max_size=MOST_MESSAGE,
        ws_max_queue=4,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)

    async def stop_when_asked() -> None:
        while not is_asked_to_stop():
            await asyncio.sleep(_ASKING_S)
        server.should_exit = True

    async def serve_until_then() -> None:
        asking = asyncio.create_task(stop_when_asked())
        await server.serve(sockets=[bound])
        asking.cancel()

    asyncio.run(serve_until_then())


VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"))
# A browser that sends nothing for so long has gone, and an upload takes no longer than this.
IDLE_S, LONGEST_S = 20.0, 1800.0
# What is still sent of an upload that was not taken is read for so long.
DISCARD_S = 5.0
# Bytes by which a file is known; boxes of ISO media files may begin with others than `ftyp`.
_HEAD = 12
MOST_LISTED = 500


class UploadError(Exception):
    """An upload that was not taken, and the status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_video(head: bytes) -> bool:
    """Whether a file that begins so is of a container of videos.

    FFmpeg itself also takes lists of other files (HLS, `concat`, SDP), by which it could be made to read what lies
    elsewhere on this computer, or in its network.
    """
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
        or head.startswith((b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"))
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or (head[:1] == b"\x47" and not head[:8].isascii())
    )


async def receive_upload(chunks: AsyncIterator[bytes], declared: str | None, path: Path, most_bytes: int) -> None:
    """Takes an upload, whose length the browser has `declared`; `path` appears when all of it is there.

    Raises UploadError: it is larger than `most_bytes`, too slow, no video, or the session has ended. Nothing is left
    behind.
    """
    too_large = UploadError(413, f"the file is larger than the {most_bytes / 2**20:,.0f} MB that this server takes")
    if declared is not None and (not declared.isdecimal() or int(declared) > most_bytes):
        raise too_large
    part, size, head = path.with_name("upload.part"), 0, b""
    try:
        with part.open("wb") as file:
            async with asyncio.timeout(LONGEST_S):
                while True:
                    async with asyncio.timeout(IDLE_S):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        break
                    size += len(chunk)
                    if size > most_bytes:
                        raise too_large
                    if len(head) < _HEAD:
                        head += chunk[: _HEAD - len(head)]
                        if len(head) == _HEAD and not is_video(head):
                            break
                    file.write(chunk)
        if not is_video(head):
            raise UploadError(415, "this is no video (MP4, MOV, MKV, WebM, AVI, MPEG)")
        if declared is not None and size < int(declared):
            raise UploadError(400, "the upload broke off")
        part.replace(path)
    except TimeoutError:
        raise UploadError(408, "the upload took too long") from None
    except FileNotFoundError:
        raise UploadError(410, "the session has ended") from None
    finally:
        part.unlink(missing_ok=True)


async def discard(chunks: AsyncIterator[bytes]) -> None:
    """Reads the rest of an upload that was not taken, for some seconds, or until nothing comes.

    A browser that is still sending when the connection closes shows a broken connection in place of the answer.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while True:
                async with asyncio.timeout(min(1.0, IDLE_S)):
                    if await anext(chunks, None) is None:
                        break


def list_videos(folder: Path | None) -> dict[str, Path]:
    """Videos in a folder and below it, and folders of images (`walk/`), by their names there.

    Links that lead out of it are left out, and so are folders in which images are links.
    """
    if folder is None:
        return {}
    found: dict[str, Path] = {}
    root = folder.resolve()
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(place) / name for name in sorted(names)]
        images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
        if len(images) > 1 and not any(path.is_symlink() for path in images):
            found[f"{Path(place).relative_to(root).as_posix()}/"] = Path(place)
        for path in paths:
            if path.suffix.lower() in VIDEO_SUFFIXES and path.resolve().is_relative_to(root) and path.is_file():
                found[path.relative_to(root).as_posix()] = path
        if len(found) >= MOST_LISTED:
            break
    return dict(itertools.islice(found.items(), MOST_LISTED))
