"""The server: a page, a WebSocket for each session, uploads and downloads of a session."""

import asyncio
import contextlib
import functools
import json
import re
import secrets
import struct
import threading
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from mixformer_jax.extras import is_not_installed
from mixformer_jax.media.decoders import find_pyav
from mixformer_jax.media.sources import TimedFrame
from mixformer_jax.serving.following import Following, overlay, overlay_choices
from mixformer_jax.serving.session import MOST_TARGETS, Session, Shared, TooMuchError
from mixformer_jax.serving.web import Guard, UploadError, discard, list_videos, receive_upload
from mixformer_jax.tracking.result_files import csv_line
from mixformer_jax.tracking.tracker import RECORD_FIELDS, Tracker

_PAGE = Path(str(resources.files("mixformer_jax.serving") / "static"))
_STATIC = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
# Messages that a browser has not taken yet: one that takes none is cut off.
_MOST_UNSENT = 64
# Sessions and compilations have so long to end.
_END_S = 20.0
Message = tuple[dict[str, Any], bytes | None]  # to the browser, with a JPEG or without


class Limits(NamedTuple):
    """What the server gives at most."""

    sessions: int = 8
    upload_bytes: int = 2**30  # and what is kept of a camera


class Server:
    """The sessions of one tracker. `app` is for an ASGI server."""

    def __init__(
        self,
        tracker: Tracker,
        folder: Path | None = None,
        hosts: tuple[str, ...] | None = ("localhost", "127.0.0.1", "::1"),
        token: str | None = None,
        with_addresses: bool = True,
        limits: Limits = Limits(),  # noqa: B008 (a value)
    ) -> None:
        """Prepares to serve; nothing is compiled or bound yet.

        The page may open videos of the `folder`, and `with_addresses` also `https://...`, which the server then asks.
        It may be called by the names `hosts`, None being any, and by who has the `token`, where there is one.
        """
        self._folder, self._limits, self._is_closed = folder, limits, False
        locks = threading.Lock(), threading.Lock()
        self._shared = Shared(tracker, threading.Event(), limits.upload_bytes, {}, with_addresses, *locks)
        self._preparing = threading.Thread(target=self._prepare, name="preparing", daemon=True)
        self.sessions: dict[str, Session] = {}
        self._uploading: set[str] = set()
        routes = [
            *(Route(path, functools.partial(_static, name), methods=["GET"]) for path, name in _STATIC.items()),
            WebSocketRoute("/live", self._serve_session),
            Route("/sessions/{key}/upload", self._take_upload, methods=["POST"]),
            *(
                Route(f"/sessions/{{key}}/boxes.{kind}", functools.partial(self._give_boxes, kind), methods=["GET"])
                for kind in ("csv", "json")
            ),
            Route("/sessions/{key}/tracked.mp4", self._give_video, methods=["GET"]),
        ]
        guard = Middleware(Guard, hosts=hosts, token=token)
        self.app = Starlette(routes=routes, middleware=[guard], lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._preparing.start()
        yield
        await run_in_threadpool(self.close)

    def _prepare(self) -> None:
        """Compiles what the first target needs; then what the second does, and the overlay."""
        tracker, ready = self._shared.tracker, self._shared.ready
        pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
        frames = [TimedFrame(pixels, number, float(number)) for number in range(1, 5)]
        following = Following(tracker, lambda index: frames[index])
        try:
            for first, x in ((0, 40.0), (2, 160.0)):
                following.add(frames[first], np.array([x, 60.0, 80.0, 80.0]))
                following.step(frames[first + 1])
                ready.set()
                if self._is_closed:
                    return
            choices = overlay_choices(tracker.config, tracker.settings.num_online_templates)
            if choices["kinds"]:
                overlay(following, frames[-1], 0, choices["kinds"][0], choices["blocks"][0])
        finally:
            ready.set()  # sessions tell of their own errors

    def close(self) -> None:
        """Ends all sessions, and what is being compiled: a process that ends while JAX computes crashes."""
        self._is_closed = True
        self._shared.ready.set()
        sessions = list(self.sessions.values())
        for session in sessions:
            session.close()
        for session in sessions:
            session.join(_END_S)
        if self._preparing.is_alive():
            self._preparing.join(_END_S)

    async def _serve_session(self, socket: WebSocket) -> None:
        await socket.accept()
        if len(self.sessions) >= self._limits.sessions:
            text = f"this server has its {self._limits.sessions} sessions; close another page, or try again later"
            await socket.send_text(json.dumps({"is": "full", "text": text}))
            await socket.close(1013)
            return
        key, loop = secrets.token_urlsafe(24), asyncio.get_running_loop()
        unsent: asyncio.Queue[Message | None] = asyncio.Queue(_MOST_UNSENT)

        def put(message: Message | None) -> None:
            if unsent.full():
                session.close()
            else:
                unsent.put_nowait(message)

        def tell(message: dict[str, Any], jpeg: bytes | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(put, None if message["is"] == "gone" else (message, jpeg))

        shared = self._shared._replace(folder=await run_in_threadpool(list_videos, self._folder))
        session = self.sessions[key] = Session(shared, tell)
        tasks = [
            asyncio.create_task(_send(socket, _hello(key, shared), unsent)),
            asyncio.create_task(_receive(socket, session)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, TooMuchError):
            pass
        finally:
            for task in tasks:
                task.cancel()
            session.close()
            # Its place is free once its memory is.
            await run_in_threadpool(session.join)
            del self.sessions[key]
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the browser was first
                await socket.close()

    # Uploads and downloads.

    def _session(self, request: Request) -> Session | None:
        return self.sessions.get(request.path_params["key"])

    async def _take_upload(self, request: Request) -> Response:
        session, key, chunks = self._session(request), request.path_params["key"], request.stream()
        try:
            if session is None:
                answer = _no_session()
            elif key in self._uploading:
                answer = PlainTextResponse("an upload is under way already", 409)
            else:
                self._uploading.add(key)
                try:
                    declared, most = request.headers.get("content-length"), self._limits.upload_bytes
                    await receive_upload(_while_open(chunks, session), declared, session.upload, most)
                    return PlainTextResponse("taken")
                except UploadError as error:
                    answer = PlainTextResponse(str(error), error.status, {"connection": "close"})
                finally:
                    self._uploading.discard(key)
            await discard(chunks)
        except ClientDisconnect:
            return PlainTextResponse("the upload broke off", 400)
        return answer

    async def _give_boxes(self, kind: str, request: Request) -> Response:
        session = self._session(request)
        if session is None:
            return _no_session()

        def written() -> str:
            if kind == "json":
                return json.dumps(session.records())
            return "".join(f"{line}\n" for line in (",".join(RECORD_FIELDS), *map(csv_line, session.records())))

        text, name = await run_in_threadpool(written), f"{_plain(session.name)}_boxes.{kind}"
        media_type = "application/json" if kind == "json" else "text/csv"
        return Response(text, 200, {"content-disposition": f'attachment; filename="{name}"'}, media_type)

    async def _give_video(self, request: Request) -> Response:
        session = self._session(request)
        if session is None:
            return _no_session()
        if not session.written.is_file():
            return PlainTextResponse("the video is not written yet", 404)
        return FileResponse(session.written, media_type="video/mp4", filename=f"{_plain(session.name)}_tracked.mp4")


def _hello(key: str, shared: Shared) -> dict[str, Any]:
    config, settings = shared.tracker.config, shared.tracker.settings
    return {
        "is": "hello",
        "session": key,
        "model": config.name,
        "videos": list(shared.folder),
        "addresses": shared.with_addresses,
        "upload_bytes": shared.most_bytes,
        "targets": MOST_TARGETS,
        "templates": settings.num_online_templates > 0,
        "overlay": overlay_choices(config, settings.num_online_templates),
        "note": None if find_pyav() else f"written as MPEG-4 part 2, not H.264: {is_not_installed('av')}",
    }


async def _send(socket: WebSocket, hello: dict[str, Any], unsent: asyncio.Queue[Message | None]) -> None:
    await socket.send_text(json.dumps(hello))
    while (item := await unsent.get()) is not None:
        message, jpeg = item
        text = json.dumps(message)
        if jpeg is None:
            await socket.send_text(text)
        else:
            head = text.encode()
            await socket.send_bytes(struct.pack(">I", len(head)) + head + jpeg)


async def _receive(socket: WebSocket, session: Session) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        if message.get("bytes"):
            data = message["bytes"]
            if len(data) > 4:
                session.post_picture(int.from_bytes(data[:4], "big"), data[4:])
            continue
        try:
            command = json.loads(message.get("text") or "")
        except (json.JSONDecodeError, RecursionError):
            command = None
        session.post(command if isinstance(command, dict) else {"do": "nothing that is known"})


async def _while_open(chunks: AsyncIterator[bytes], session: Session) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        if session.is_closed:
            raise UploadError(410, "the session has ended")
        if chunk:
            yield chunk


def _static(name: str, _request: Request) -> Response:
    return FileResponse(_PAGE / name)


def _no_session() -> Response:
    return JSONResponse({"error": "no such session"}, 404)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:80] or "video"
