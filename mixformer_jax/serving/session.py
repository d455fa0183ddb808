"""What one browser does: its video, the targets in it, and the thread that follows them."""

import contextlib
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from mixformer_jax.boxes import check_box_xywh
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import FrameSource, TimedFrame
from mixformer_jax.media.video import VideoWriter, open_source
from mixformer_jax.models.config import ConfigError
from mixformer_jax.serving.following import Following
from mixformer_jax.serving.frames import FileFrames, KeptFrames, check_pixels, decode_image, encode_jpeg, jpeg_size
from mixformer_jax.serving.overlay import Overlay, overlay, overlay_choices
from mixformer_jax.tracking.record import annotate
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
MOST_FRAMES = 500_000  # that are followed in one session

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
    one_at_a_time: threading.Lock  # for opening and rendering: they take memory, and all cores


class Session:
    """One video at a time. `close` ends the thread; what the session held is gone soon after."""

    def __init__(self, shared: Shared, tell: Tell) -> None:
        """Starts the thread.

        Args:
            shared: by all sessions.
            tell: takes what the browser is to know, with a JPEG or without; called from the session's threads.
        """
        self._shared, self._tell = shared, tell
        self._folder = tempfile.TemporaryDirectory(prefix="mixformer_page_")
        self.upload = Path(self._folder.name) / "upload"
        self.video = Path(self._folder.name) / "tracked.mp4"
        self._changed = threading.Condition()
        self._commands: deque[Mapping[str, Any]] = deque()
        self._picture: tuple[int, bytes] | None = None  # the newest of the browser's camera
        self._closed = False
        self._on_the_way = 0
        self._frames: FileFrames | KeptFrames | None = None
        self._live: FrameSource | None = None  # where frames come whether or not they are wanted
        self._following: Following | None = None
        self._position, self._is_playing, self._is_fast, self._is_at_end = -1, False, False, False
        self._due = 0.0
        self._shown_at: deque[float] = deque(maxlen=30)
        self._overlay: tuple[int, str, str] | None = None
        self._renderer: threading.Thread | None = None
        self._stops_writing = threading.Event()
        self._passing: Iterator[TimedFrame] = iter(())
        self._began = 0.0
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
        found = {} if self._following is None else dict(self._following.found)
        return [rounded(record) for index in sorted(found) for record in found[index].records()]

    @property
    def name(self) -> str:
        """Of the video."""
        return "video" if self._frames is None else self._frames.name

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, or will soon."""
        return self._closed

    def close(self) -> None:
        """Ends the session."""
        with self._changed:
            self._closed = True
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
                    self._tell({"is": "error", "text": str(error)}, None)
                    self._tell_playing()
        finally:
            self._closed = True
            self._let_go()
            self._folder.cleanup()
            self._tell({"is": "gone"}, None)

    def _wait(self) -> bool:
        """Until there is something to do; false at the end."""
        with self._changed:
            while not self._closed:
                if self._commands:
                    return True
                rest = None
                if self._is_playing and not self._waits_for_camera():
                    rest = self._due - time.monotonic()
                    if rest <= 0:
                        return True
                elif self._is_playing and self._picture is not None:
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
        kept = self._frames
        return isinstance(kept, KeptFrames) and self._live is None and self._position + 1 == kept.num_frames

    # Commands.

    def _open(self, command: Mapping[str, Any]) -> None:
        kind, name = command.get("kind"), command.get("name")
        if kind == "camera":
            size = (_whole(command, "height", 16_384), _whole(command, "width", 16_384))
            if min(size) < 1:
                raise CommandError("a camera without pixels")
            self._take(KeptFrames("camera", 30.0, size, self._kept_path(), self._shared.most_bytes), None)
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
        with self._shared.one_at_a_time:
            source = self._opened(location)
            if kind == "upload":  # as its owner calls it; a label, never a path
                source.name = Path(str(name)).stem[:80] or "upload"
            try:
                if source.is_live:
                    kept = KeptFrames(source.name, source.fps, source.size, self._kept_path(), self._shared.most_bytes)
                    self._take(kept, source)
                else:
                    self._take(FileFrames(source), None)
            except SourceError:
                source.close()
                raise
        self._play()

    def _opened(self, location: str | Path) -> FrameSource:
        try:
            return open_source(location)
        except SourceError as error:
            # The path of an upload is nobody's business.
            raise SourceError(str(error).replace(str(self.upload), "the upload")) from error

    def _checked_address(self, address: object) -> str:
        if not self._shared.with_addresses:
            raise CommandError("this server opens no addresses; mixformer serve --addresses lets it")
        if not isinstance(address, str) or urlsplit(address).scheme not in SCHEMES or "\0" in address:
            raise CommandError(f"expected an address that begins with {'://, '.join(SCHEMES)}://")
        return address

    def _kept_path(self) -> Path:
        return Path(self._folder.name) / "kept"

    def _take(self, frames: FileFrames | KeptFrames, live: FrameSource | None) -> None:
        self._let_go()
        self._frames, self._live = frames, live
        self._passing = iter(()) if live is None else live.timed()
        self._following = Following(self._shared.tracker, frames.get)
        self._position, self._is_playing, self._is_at_end, self._overlay = -1, False, False, None
        self._shown_at.clear()
        self._picture = None
        height, width = frames.size
        is_live = live is not None or isinstance(frames, KeptFrames)
        about = {"name": frames.name, "width": width, "height": height, "fps": frames.fps, "live": is_live}
        self._tell({"is": "opened", "frames": None if is_live else frames.num_frames, **about}, None)

    def _let_go(self) -> None:
        if self._renderer is not None:
            self._stops_writing.set()
            self._renderer.join()
            self._renderer = None
        self.video.unlink(missing_ok=True)
        if self._live is not None:
            self._live.close()
        if self._frames is not None:
            self._frames.close()
        self._frames = self._live = self._following = None

    def _start(self, _command: Mapping[str, Any]) -> None:
        self._opened_frames()
        if self._is_at_end:
            self._position = -1
        self._is_playing, self._due = True, time.monotonic()
        self._shown_at.clear()
        self._tell_playing()

    def _pause(self, _command: Mapping[str, Any]) -> None:
        self._is_playing = False
        self._tell_playing()
        self._show_again()

    def _seek(self, command: Mapping[str, Any]) -> None:
        frames = self._opened_frames()
        self._is_playing = False
        try:
            frame = frames.get(_whole(command, "frame", MOST_FRAMES))
        except IndexError:
            if not frames.num_frames:
                raise SourceError("there is no frame") from None
            frame = frames.get(frames.num_frames - 1)
        self._show(frame, self._found(frame))
        self._tell_playing()

    def _add(self, command: Mapping[str, Any]) -> None:
        frame, box_xywh = self._marked(command)
        following = self._followed()
        if len(following.targets) >= MOST_TARGETS:
            raise CommandError(f"up to {MOST_TARGETS} targets are followed at once; remove one")
        following.add(frame, box_xywh)
        self._show(frame, self._found(frame))

    def _replace(self, command: Mapping[str, Any]) -> None:
        frame, box_xywh = self._marked(command)
        self._followed().replace(frame, _whole(command, "target", MOST_FRAMES), box_xywh)
        self._show(frame, self._found(frame))

    def _add_template(self, command: Mapping[str, Any]) -> None:
        frame, box_xywh = self._marked(command)
        self._followed().add_template(frame, _whole(command, "target", MOST_FRAMES), box_xywh)
        self._show(frame, self._found(frame))

    def _remove(self, command: Mapping[str, Any]) -> None:
        frame = self._frame_of(command)
        self._followed().remove(frame, _whole(command, "target", MOST_FRAMES))
        self._show(frame, self._found(frame))

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

    def _render(self, _command: Mapping[str, Any]) -> None:
        following, frames = self._followed(), self._opened_frames()
        if not following.found:
            raise CommandError("nothing was tracked yet: draw a box around a target first")
        if self._renderer is not None and self._renderer.is_alive():
            raise CommandError("the video is being written already")
        found = dict(following.found)
        self._stops_writing.clear()
        self._renderer = threading.Thread(target=self._write_video, args=(frames.again(), found), daemon=True)
        self._renderer.start()

    # Frames.

    def _opened_frames(self) -> FileFrames | KeptFrames:
        if self._frames is None:
            raise CommandError("no video is open")
        return self._frames

    def _followed(self) -> Following:
        self._opened_frames()
        assert self._following is not None
        return self._following

    def _frame_of(self, command: Mapping[str, Any]) -> TimedFrame:
        """The frame that a command names; a file's position follows it."""
        try:
            return self._opened_frames().get(_whole(command, "frame", MOST_FRAMES))
        except IndexError:
            raise CommandError("there is no such frame") from None

    def _marked(self, command: Mapping[str, Any]) -> tuple[TimedFrame, np.ndarray]:
        frame, box = self._frame_of(command), command.get("box")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_pixels, box))):
            raise CommandError("expected a box: four numbers x, y, w, h in pixels")
        return frame, check_box_xywh(box, frame.pixels.shape[:2])

    def _found(self, frame: TimedFrame) -> Tracked | None:
        return self._followed().found.get(frame.number - 1)

    def _play(self) -> None:
        """The next frame: found before, or tracked now."""
        frames, following = self._opened_frames(), self._followed()
        index, jpeg = self._position + 1, None
        now = time.monotonic()
        try:
            if isinstance(frames, KeptFrames) and index == frames.num_frames:
                if frames.is_full:
                    raise SourceError("as many frames are kept as fit; download, and open it again to go on")
                live = next(self._passing)
                jpeg = encode_jpeg(live.pixels)
                frame = TimedFrame(live.pixels, frames.append(jpeg, live.seconds) + 1, live.seconds)
            else:
                frame = frames.get(index)
        except (IndexError, StopIteration):
            self._is_playing, self._is_at_end = False, True
            self._tell_playing()
            self._show_again()
            return
        found = self._tracked(following, frame)
        step = 0.0 if self._is_fast or self._live is not None else 1 / frames.fps
        self._due = max(self._due + step, now - CAUGHT_UP_S)
        self._show(frame, found, jpeg)

    def _tracked(self, following: Following, frame: TimedFrame) -> Tracked | None:
        index = frame.number - 1
        if index > following.last and following.targets:
            if len(following.found) >= MOST_FRAMES:
                raise CommandError(f"{MOST_FRAMES:,} frames were followed, which is as many as one session holds")
            return following.step(frame)
        return following.found.get(index)

    def _take_picture(self) -> None:
        """A picture of the browser's camera, which needs no picture back."""
        with self._changed:
            (number, jpeg), self._picture = self._picture or (0, b""), None
        frames, following = self._opened_frames(), self._followed()
        assert isinstance(frames, KeptFrames)
        size = jpeg_size(jpeg)
        check_pixels(size)
        if size != frames.size:
            raise SourceError(f"a picture of {size[1]}x{size[0]} from a camera of {frames.size[1]}x{frames.size[0]}")
        if frames.is_full:
            raise SourceError("as many frames are kept as fit; download, and open the camera again to go on")
        pixels, seconds = decode_image(jpeg, "a picture of the camera"), time.monotonic()
        self._began = seconds if frames.num_frames == 0 else self._began
        frame = TimedFrame(pixels, frames.append(jpeg, seconds - self._began) + 1, seconds - self._began)
        self._position = frame.number - 1
        self._shown_at.append(time.monotonic())
        self._tell({"is": "found", "number": number, **self._about(frame, self._tracked(following, frame))}, None)

    def _show_again(self) -> None:
        if self._frames is not None and self._position >= 0:
            frame = self._frames.get(self._position)
            self._show(frame, self._found(frame))

    def _show(self, frame: TimedFrame, found: Tracked | None, jpeg: bytes | None = None) -> None:
        self._is_at_end = self._is_at_end and frame.number - 1 == self._position
        self._position = frame.number - 1
        if self._is_playing:
            self._shown_at.append(time.monotonic())
            if self._on_the_way >= MOST_ON_THE_WAY:
                return
        if jpeg is None or frame.pixels.shape[1] > WIDEST:
            jpeg = encode_jpeg(frame.pixels, WIDEST)
        self._on_the_way += 1
        self._tell({"is": "picture", **self._about(frame, found)}, jpeg)

    def _about(self, frame: TimedFrame, found: Tracked | None) -> dict[str, Any]:
        targets = []
        for row, number in enumerate([] if found is None or found.numbers is None else found.numbers.tolist()):
            assert found is not None
            score = None if found.scores is None else round(float(found.scores[row]), 3)
            lost = None if found.lost is None else bool(found.lost[row])
            box = [round(float(value), 2) for value in found.boxes_xywh[row]]
            targets.append({"target": number, "box": box, "score": score, "lost": lost})
        times = self._shown_at
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
        return {
            "frame": frame.number - 1,
            "time": round(frame.seconds, 3),
            "targets": targets,
            "last": self._followed().last,
            "fps": rate if self._is_playing else None,
            "overlay": self._overlay_on(frame),
        }

    def _overlay_on(self, frame: TimedFrame) -> Overlay | None:
        index, following = frame.number - 1, self._followed()
        if self._overlay is None or (self._is_playing and index % OVERLAY_EVERY):
            return None
        target, kind, block = self._overlay
        return overlay(following, frame, target, kind, block)

    def _tell_playing(self) -> None:
        self._tell({"is": "playing" if self._is_playing else "paused"}, None)

    def _write_video(self, frames: FileFrames | KeptFrames, found: dict[int, Tracked]) -> None:
        """The frames from the first to the last that were tracked, with boxes; in a thread of its own."""
        first, last = min(found), max(found)
        try:
            with self._shared.one_at_a_time, VideoWriter(self.video, frames.fps, frames.size) as writer:
                for index in range(first, last + 1):
                    if self._stops_writing.is_set():
                        return
                    frame = frames.get(index)
                    is_found = index in found
                    writer.write(annotate(frame.pixels, index, found[index]) if is_found else frame.pixels)
                    if index % 10 == 0:
                        self._tell({"is": "writing", "done": index - first, "of": last + 1 - first}, None)
            self._tell({"is": "written"}, None)
        except (SourceError, OSError, IndexError) as error:
            with contextlib.suppress(OSError):
                self.video.unlink(missing_ok=True)
            self._tell({"is": "error", "text": f"the video could not be written: {error}"}, None)


_COMMANDS: Mapping[str, Callable[[Session, Mapping[str, Any]], None]] = {
    "open": Session._open,
    "play": Session._start,
    "pause": Session._pause,
    "seek": Session._seek,
    "add": Session._add,
    "replace": Session._replace,
    "template": Session._add_template,
    "remove": Session._remove,
    "speed": Session._set_speed,
    "overlay": Session._set_overlay,
    "write": Session._render,
}


def _is_pixels(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= MOST_PIXELS  # type: ignore[arg-type]


def _whole(command: Mapping[str, Any], name: str, most: int) -> int:
    value = command.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise CommandError(f"{name}: expected a whole number up to {most}")
    return value
