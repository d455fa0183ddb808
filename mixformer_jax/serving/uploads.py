"""Uploads to disk, bounded in size and time; and which files are videos."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from mixformer_jax.media.images import IMAGE_SUFFIXES

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
    """Takes an upload; `path` appears when all of it is there.

    Args:
        chunks: the body.
        declared: its length as the browser says it.
        path: in a folder of the session's own.
        most_bytes: that it may have.

    Raises:
        UploadError: it is too large, too slow, no video, or the session has ended. Nothing is left behind.
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
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while True:
                async with asyncio.timeout(min(1.0, IDLE_S)):
                    if await anext(chunks, None) is None:
                        break


def list_videos(folder: Path | None) -> dict[str, Path]:
    """Videos in a folder and below it, and folders of images (`walk/`), by their names there.

    Links that lead out of it are left out, and so are folders in which images are links.
    """
    found: dict[str, Path] = {}
    if folder is None:
        return found
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
