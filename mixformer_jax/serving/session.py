"""What one browser does: its video, the targets in it, and the thread that follows them."""

import contextlib
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from mixformer_jax.boxes import check_box_xywh
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import FrameSource, TimedFrame
from mixformer_jax.media.video import open_source
from mixformer_jax.models.config import ConfigError
from mixformer_jax.serving.following import overlay, overlay_choices
from mixformer_jax.serving.video import MOST_FRAMES, EndError, FileFrames, KeptFrames, Video, encode_jpeg
from mixformer_jax.tracking.result_files import rounded
from mixformer_jax.tracking.tracker import Tracked, Tracker

SCHEMES = ("http", "https", "rtsp", "rtmp")
MOST_TARGETS = 8
WIDEST = 1280  # of the pictures that are sent
# Pictures on their way to the browser: further ones are left out until it has shown these.
MOST_ON_THE_WAY = 2
# Of a delay so much is caught up with; after a longer one the next frame comes at its usual distance.
CAUGHT_UP_S = 0.2
# Commands that wait: who sends more, faster than they are done, is cut off.
MOST_WAITING = 64
# Frames of an overlay while a video plays: each costs three steps.
OVERLAY_EVERY = 6
MOST_PIXELS = 1_000_000  # that a number of a box can say

Tell = Callable[[dict[str, Any], bytes | None], None]


class CommandError(ValueError):
    """A command that makes no sense."""


class TooMuchError(Exception):
    """Commands come faster than they are done."""


class Shared(NamedTuple):
    """What sessions have in common."""

    tracker: Tracker
    ready: threading.Event  # set when the tracker's programs are compiled
    most_bytes: int  # of an upload, and of the frames kept of a camera
    folder: Mapping[str, Path]  # by the names that the browser sees
    with_addresses: bool  # whether addresses may be opened
    opens: threading.Lock  # one file at a time is opened, and one video written: that takes memory, and all cores
    writes: threading.Lock


class Session:
    """One video at a time. `close` ends the thread; what the session held is gone soon after."""

    def __init__(self, shared: Shared, tell: Tell) -> None:
        """Starts the thread. `tell` takes what the browser is to know, with a JPEG or without, from the session's
        threads."""
        self._shared, self._tell = shared, tell
        self._folder = tempfile.TemporaryDirectory(prefix="mixformer_page_")
        self.upload = Path(self._folder.name) / "upload"
        self.written = Path(self._folder.name) / "tracked.mp4"
        self._changed = threading.Condition()
        self._commands: deque[Mapping[str, Any]] = deque()
        self._picture: tuple[int, bytes] | None = None  # the newest of the browser's camera
        self.is_closed = False  # it has ended, or will soon
        self._on_the_way = 0
        self._video: Video | None = None
        self._location: str | None = None  # of the video, on this computer
        self._is_playing, self._is_fast, self._is_at_end = False, False, False
        self._due = 0.0
        self._shown_at: deque[float] = deque(maxlen=30)
        self._overlay: tuple[int, str, str] | None = None
        self._writer: threading.Thread | None = None
        self._stops_writing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self._thread.start()

    # What other threads call.

    def post(self, command: Mapping[str, Any]) -> None:
        """A command of the browser's; TooMuchError where too many wait."""
        with self._changed:
            if command.get("do") == "ack":
                self._on_the_way = max(0, self._on_the_way - 1)
                return
            if self._commands and command.get("do") == self._commands[-1].get("do") == "seek":
                self._commands.pop()
            if len(self._commands) >= MOST_WAITING:
                raise TooMuchError
            self._commands.append(command)
            self._changed.notify_all()

    def post_picture(self, number: int, jpeg: bytes) -> None:
        """A picture of the browser's camera, with its own number; the one before counts no longer."""
        with self._changed:
            self._picture = (number, jpeg)
            self._changed.notify_all()

    def records(self) -> list[dict[str, Any]]:
        """What was found so far, a record a frame and target."""
        video = self._video
        found = {} if video is None else dict(video.following.found)
        return [rounded(record) for index in sorted(found) for record in found[index].records()]

    @property
    def name(self) -> str:
        """Of the video."""
        video = self._video
        return "video" if video is None else video.frames.name

    def close(self) -> None:
        """Ends the session."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def join(self, seconds: float | None = None) -> None:
        """Waits until what it held is gone."""
        self._thread.join(seconds)

    # The session's thread.

    def _run(self) -> None:
        try:
            self._shared.ready.wait()
            self._tell({"is": "ready"}, None)
            while self._wait():
                try:
                    self._work()
                except (CommandError, ConfigError, SourceError, ValueError, OSError) as error:
                    self._is_playing = False
                    self._tell_error(str(error))
                    self._tell_playing()
        finally:
            self.is_closed = True
            self._let_go()
            self._folder.cleanup()
            self._tell({"is": "gone"}, None)

    def _wait(self) -> bool:
        """Until there is something to do; false at the end."""
        with self._changed:
            while not self.is_closed:
                is_camera = self._waits_for_camera()
                rest = self._due - time.monotonic() if self._is_playing and not is_camera else None
                has_picture = self._is_playing and is_camera and self._picture is not None
                if self._commands or has_picture or (rest is not None and rest <= 0):
                    return True
                self._changed.wait(rest)
        return False

    def _work(self) -> None:
        with self._changed:
            command = self._commands.popleft() if self._commands else None
        if command is not None:
            does = _COMMANDS.get(str(command.get("do")))
            if does is None:
                raise CommandError(f"no command {command.get('do')!r}")
            does(self, command)
        elif self._waits_for_camera():
            self._take_picture()
        else:
            self._play()

    def _waits_for_camera(self) -> bool:
        return self._video is not None and self._video.is_camera and self._video.is_up_to_date

    # Commands.

    def _open(self, command: Mapping[str, Any]) -> None:
        kind, name = command.get("kind"), command.get("name")
        if kind == "camera":
            size = (_whole(command, "height", 16_384), _whole(command, "width", 16_384))
            if min(size) < 1:
                raise CommandError("a camera without pixels")
            self._take(self._kept("camera", 30.0, size))
            self._is_playing = True
            self._tell_playing()
            return
        if kind == "upload":
            if not self.upload.is_file():
                raise CommandError("nothing was uploaded")
            location: str | Path = self.upload
        elif kind == "folder":
            if not isinstance(name, str) or name not in self._shared.folder:
                raise CommandError("no such video in the server's folder")
            location = self._shared.folder[name]
        elif kind == "address":
            location = self._checked_address(name)
        else:
            raise CommandError(f"no video of kind {kind!r}")
        self._let_go()
        self._location = None if kind == "address" else str(location)
        with contextlib.nullcontext() if kind == "address" else self._shared.opens:
            source = open_source(location)
        if kind == "upload":  # as its owner calls it; a label, never a path
            source.name = Path(str(name)).stem[:80] or "upload"
        try:
            if source.is_live:
                self._take(self._kept(source.name, source.fps, source.size), source)
            else:
                self._take(FileFrames(source))
        except SourceError:
            source.close()
            raise
        self._play()

    def _checked_address(self, address: object) -> str:
        if not self._shared.with_addresses:
            raise CommandError("this server opens no addresses; mixformer serve --addresses lets it")
        if not isinstance(address, str) or urlsplit(address).scheme not in SCHEMES or "\0" in address:
            raise CommandError(f"expected an address that begins with {'://, '.join(SCHEMES)}://")
        return address

    def _kept(self, name: str, fps: float, size: tuple[int, int]) -> KeptFrames:
        return KeptFrames(name, fps, size, Path(self._folder.name) / "kept", self._shared.most_bytes)

    def _take(self, frames: FileFrames | KeptFrames, live: FrameSource | None = None) -> None:
        self._let_go()
        video = self._video = Video(self._shared.tracker, frames, live)
        self._is_playing, self._is_at_end, self._overlay, self._picture = False, False, None, None
        self._shown_at.clear()
        self._tell({"is": "opened", **video.about()}, None)

    def _let_go(self) -> None:
        if self._writer is not None:
            self._stops_writing.set()
            self._writer.join()
            self._writer = None
        self.written.unlink(missing_ok=True)
        if self._video is not None:
            self._video.close()
        self._video = None

    def _start(self, _command: Mapping[str, Any]) -> None:
        video = self._opened_video()
        if self._is_at_end:
            video.position = -1
        self._is_playing, self._due = True, time.monotonic()
        self._shown_at.clear()
        self._tell_playing()

    def _pause(self, _command: Mapping[str, Any]) -> None:
        self._is_playing = False
        self._tell_playing()
        self._show_again()

    def _seek(self, command: Mapping[str, Any]) -> None:
        video = self._opened_video()
        self._is_playing = False
        self._show(frame := video.at(_whole(command, "frame", MOST_FRAMES)), video.found(frame))
        self._tell_playing()

    def _change(self, command: Mapping[str, Any]) -> None:
        """Adds, corrects or removes a target on a frame, or adds a template of it."""
        video, what = self._opened_video(), command["do"]
        try:
            frame = video.frames.get(_whole(command, "frame", MOST_FRAMES))
        except IndexError:
            raise CommandError("there is no such frame") from None
        following, box_xywh = video.following, [] if what == "remove" else [_marked_box(command, frame)]
        if what == "add":
            if len(following.targets) >= MOST_TARGETS:
                raise CommandError(f"up to {MOST_TARGETS} targets are followed at once; remove one")
            following.add(frame, *box_xywh)
        else:
            changes: dict[str, Any] = {"replace": following.replace, "template": following.add_template}
            changes["remove"] = following.remove
            changes[what](frame, _whole(command, "target", MOST_FRAMES), *box_xywh)
        self._show(frame, video.found(frame))

    def _set_speed(self, command: Mapping[str, Any]) -> None:
        self._is_fast = command.get("fast") is True
        self._due = time.monotonic()

    def _set_overlay(self, command: Mapping[str, Any]) -> None:
        self._overlay = None
        if command.get("target") is not None:
            tracker, kind, block = self._shared.tracker, str(command.get("kind")), str(command.get("block"))
            choices = overlay_choices(tracker.config, tracker.settings.num_online_templates)
            if kind not in choices["kinds"] or block not in choices["blocks"]:
                raise CommandError(f"no overlay of kind {kind[:20]!r} in block {block[:20]!r}")
            self._overlay = (_whole(command, "target", MOST_FRAMES), kind, block)
        if not self._is_playing:
            self._show_again()

    def _write(self, _command: Mapping[str, Any]) -> None:
        if self._writer is not None and self._writer.is_alive():
            raise CommandError("the video is being written already")
        write = self._opened_video().writing(self.written)
        self._stops_writing.clear()
        self._writer = threading.Thread(target=self._write_video, args=(write,), daemon=True)
        self._writer.start()

    def _write_video(self, write: Callable[[], Generator[tuple[int, int], None, None]]) -> None:
        """In a thread of its own."""
        try:
            with self._shared.writes, contextlib.closing(write()) as writing:
                for done, total in writing:
                    if self._stops_writing.is_set():
                        return
                    self._tell({"is": "writing", "done": done, "of": total}, None)
            self._tell({"is": "written"}, None)
        except (SourceError, OSError, IndexError) as error:
            self._tell_error(f"the video could not be written: {error}")

    # Frames.

    def _opened_video(self) -> Video:
        if self._video is None:
            raise CommandError("no video is open")
        return self._video

    def _play(self) -> None:
        """The next frame: found before, or tracked now."""
        video, now = self._opened_video(), time.monotonic()
        try:
            frame, jpeg = video.next()
        except EndError:
            self._is_playing, self._is_at_end = False, True
            self._tell_playing()
            self._show_again()
            return
        found = video.tracked(frame)
        step = 0.0 if self._is_fast or jpeg is not None else 1 / video.frames.fps
        self._due = max(self._due + step, now - CAUGHT_UP_S)
        self._show(frame, found, jpeg)

    def _take_picture(self) -> None:
        """A picture of the browser's camera, which needs no picture back."""
        video = self._opened_video()
        with self._changed:
            (number, jpeg), self._picture = self._picture or (0, b""), None
        frame = video.take(jpeg)
        found = video.tracked(frame)
        video.position = frame.number - 1
        self._shown_at.append(time.monotonic())
        self._tell({"is": "found", "number": number, **self._about(frame, found)}, None)

    def _show_again(self) -> None:
        if self._video is not None and self._video.position >= 0:
            self._show(frame := self._video.at(self._video.position), self._video.found(frame))

    def _show(self, frame: TimedFrame, found: Tracked | None, jpeg: bytes | None = None) -> None:
        video = self._opened_video()
        self._is_at_end = self._is_at_end and frame.number - 1 == video.position
        video.position = frame.number - 1
        if self._is_playing:
            self._shown_at.append(time.monotonic())
            if self._on_the_way >= MOST_ON_THE_WAY:
                return
        if jpeg is None or frame.pixels.shape[1] > WIDEST:
            jpeg = encode_jpeg(frame.pixels, WIDEST)
        self._on_the_way += 1
        self._tell({"is": "picture", **self._about(frame, found)}, jpeg)

    def _about(self, frame: TimedFrame, found: Tracked | None) -> dict[str, Any]:
        targets = [
            {
                "target": record["target"] - 1,
                "box": [round(record[side], 2) for side in "xywh"],
                "score": None if record["score"] is None else round(record["score"], 3),
                "lost": record["lost"],
            }
            for record in ([] if found is None else found.records())
        ]
        times = self._shown_at
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
        following, is_due = self._opened_video().following, not (self._is_playing and frame.number % OVERLAY_EVERY)
        return {
            "frame": frame.number - 1,
            "time": round(frame.seconds, 3),
            "targets": targets,
            "last": following.last,
            "fps": rate if self._is_playing else None,
            "overlay": overlay(following, frame, *self._overlay) if self._overlay is not None and is_due else None,
        }

    def _tell_error(self, text: str) -> None:
        """Paths of this computer are nobody's business: the video's name stands in their place."""
        if self._location is not None:
            text = text.replace(self._location, "the upload" if self._location == str(self.upload) else "the video")
        self._tell({"is": "error", "text": text}, None)

    def _tell_playing(self) -> None:
        self._tell({"is": "playing" if self._is_playing else "paused"}, None)


_COMMANDS: Mapping[str, Callable[[Session, Mapping[str, Any]], None]] = {
    "open": Session._open,
    "play": Session._start,
    "pause": Session._pause,
    "seek": Session._seek,
    **dict.fromkeys(("add", "replace", "template", "remove"), Session._change),
    "speed": Session._set_speed,
    "overlay": Session._set_overlay,
    "write": Session._write,
}


def _marked_box(command: Mapping[str, Any], frame: TimedFrame) -> np.ndarray:
    box = command.get("box")
    numbers: list[Any] = box if isinstance(box, list) and len(box) == 4 else [None]
    if not all(type(value) in (int, float) and abs(value) <= MOST_PIXELS for value in numbers):
        raise CommandError("expected a box: four numbers x, y, w, h in pixels")
    return check_box_xywh(box, frame.pixels.shape[:2])


def _whole(command: Mapping[str, Any], name: str, most: int) -> int:
    value = command.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise CommandError(f"{name}: expected a whole number up to {most}")
    return value
