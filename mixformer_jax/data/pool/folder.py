"""A pool in a few small files: shrunk pictures in shards, and tables. Quick to copy to where an accelerator is.
`read_videos` and `read_images` make of it what `VideoPool.load` and `ImagePool.load` make of videos/ and images/."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np

from mixformer_jax.data.pool.pool import Clip, CutOut, ImagePool, VideoPool, chosen_names, fitted_clip, in_threads
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.files import write_atomically
from mixformer_jax.typed_settings import Range, TypedSettings
from mixformer_jax.views import pyramid, shrunk

TABLES = "pool.npz"
VERSION = 1
SHARD_BYTES = 12 * 2**20

Side = Annotated[float, Range(16)]


@dataclass(frozen=True)
class PoolFolderConfig(TypedSettings):
    """What is kept."""

    # Video frames are shrunk until sqrt(w * h) of the target is at most this; crops of 128 pixels with a factor of 4
    # show 32.
    target_side: Side = 40.0
    # Side of what is kept around the target, in sides of the target; crops that are not zoomed need their factor plus
    # the centre jitter.
    context: Annotated[float, Range(2)] = 10.0
    max_frames: Annotated[int, Range(2)] = 96  # of a clip, evenly in time
    photo_side: Annotated[int, Range(16)] = 256  # photographs are shrunk until their longer side is at most this
    cutout_side: Side = 64.0  # cut-outs likewise, sqrt(w * h) of their outline
    quality: Annotated[int, Range(1, 100)] = 70  # of the WebP pictures


class PoolReport(NamedTuple):
    """What was written."""

    clips: int
    frames: int
    frames_left_out: int
    photos: int
    cutouts: int
    files: int
    nbytes: int


def is_pool_folder(root: str | Path) -> bool:
    """Whether `write_pool_folder` wrote this folder."""
    return (Path(root) / TABLES).is_file()


def clip_names(root: str | Path) -> list[str]:
    """The sequences of a pool, packed or not; none where it has no videos.
    Raises DatasetError for a packed one that is damaged or of another version."""
    root = Path(root)
    if is_pool_folder(root):
        return [str(name) for name in _tables(root)["clip_names"]]
    return list(open_dataset("folder", root / "videos").keys) if (root / "videos").is_dir() else []


def write_pool_folder(
    root: str | Path, out: str | Path, config: PoolFolderConfig | None = None, num_threads: int = 2
) -> PoolReport:
    """Reads ROOT/videos and ROOT/images, whichever are there, and puts the folder OUT in place at once.
    Raises DatasetError where OUT is there already, or ROOT has nothing to read."""
    config, root, out = config or PoolFolderConfig(), Path(root), Path(out)
    if out.exists():
        raise DatasetError(f"{out} exists; a pool is written whole: give a new folder, or remove this one")
    if not (root / "videos").is_dir() and not (root / "images").is_dir():
        raise DatasetError(f"{root} has neither videos/ nor images/ to make a pool of")
    videos, images = VideoPool(()), ImagePool((), (), ())
    if (root / "videos").is_dir():
        side, context = config.target_side, config.context
        videos = VideoPool.load(root, max_target_side=side, context=context, num_threads=num_threads)
    if (root / "images").is_dir():
        images = ImagePool.load(root, num_threads=num_threads)
    clips = [_thinned(clip, config.max_frames) for clip in videos.clips]
    photos = [shrunk(photo, config.photo_side / max(photo.shape[:2])) for photo, *_ in images.photos]
    cutouts = [
        _shrunk_cutout(cutout, images.photos[cutout.photo][0], photos[cutout.photo], config.cutout_side)
        for cutout in images.cutouts
    ]

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    if part.exists():  # what a killed run left behind
        shutil.rmtree(part)
    part.mkdir()
    frames = [frame for clip in clips for frame in clip.frames]
    pictures = {"frames": frames, "photos": photos, "cutouts": [cutout.levels[0] for cutout in cutouts]}
    tables: dict[str, np.ndarray] = {
        "version": np.array(VERSION),
        "clip_names": np.array([clip.name for clip in clips], np.str_),
        "clip_lengths": np.array([len(clip) for clip in clips], np.int64),
        "times": np.concatenate([np.zeros(0, np.int64), *(clip.times for clip in clips)]),
        "boxes_xywh": np.concatenate([np.zeros((0, 4)), *(clip.boxes_xywh for clip in clips)]),
        "cutout_photos": np.array([cutout.photo for cutout in cutouts], np.int64),
        "cutout_sources": np.array([cutout.source for cutout in cutouts], np.str_),
        "origins_xy": np.array([cutout.origin_xy for cutout in cutouts], np.float64).reshape(-1, 2),
    }
    for name, kind in (("outlines", "outline_xy"), ("pasted_outlines", "pasted_outline_xy")):
        hulls = [getattr(cutout, kind) for cutout in cutouts]
        tables[name] = np.concatenate([np.zeros((0, 2)), *hulls])
        tables[f"{name}_lengths"] = np.array([len(hull) for hull in hulls], np.int64)
    tables["backgrounds"] = np.array(images.backgrounds, np.int64)
    try:
        for kind, items in pictures.items():
            encoded = list(in_threads(lambda item: _encode(item, config.quality), items, num_threads, kind, "packing"))
            tables[f"{kind}_places"] = _write_shards(part, kind, encoded)
        with (part / TABLES).open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **tables)
        files = list(part.iterdir())
        nbytes = sum(path.stat().st_size for path in files)
        part.rename(out)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:  # of a folder that is gone
            raise OSError(error.errno, error.strerror, str(out)) from error
        raise
    left_out = sum(map(len, videos.clips)) - len(frames)
    return PoolReport(len(clips), len(frames), left_out, len(photos), len(cutouts), len(files), nbytes)


def read_videos(
    root: str | Path,
    include: Collection[str] | None = None,
    exclude: Collection[str] = (),
    max_target_side: float = 64.0,
    min_target_side: float = 8.0,
    context: float = 16.0,
    num_threads: int = 2,
) -> VideoPool:
    """Sequences of a pool folder; the arguments are those of `VideoPool.load`.

    Raises:
        DatasetError: the folder is damaged or of another version.
        ValueError: a name that does not exist, or no usable sequence.
    """
    root = Path(root)
    tables = _tables(root)
    lengths = tables["clip_lengths"]
    ends = np.cumsum(lengths)
    names = [str(name) for name in tables["clip_names"]]
    rows = {name: np.arange(end - n, end) for name, n, end in zip(names, lengths, ends, strict=True)}
    chosen = chosen_names(root, names, include, exclude)
    wanted = np.concatenate([rows[name] for name in chosen]) if chosen else np.zeros(0, np.int64)
    decoded = iter(_read_pictures(root, "frames", tables["frames_places"][wanted], 3, num_threads))
    limits = (max_target_side, min_target_side, context)
    clips = []
    for name in chosen:
        times, boxes_xywh = tables["times"][rows[name]], tables["boxes_xywh"][rows[name]]
        frames = list(itertools.islice(decoded, len(times)))
        clips.append(fitted_clip(name, times, boxes_xywh, frames.__getitem__, *limits))
    return VideoPool.of_usable(clips, root)


def read_images(root: str | Path, num_threads: int = 2) -> ImagePool:
    """Photographs and cut-outs of a pool folder; raises as `read_videos`, and where it has none."""
    root = Path(root)
    tables = _tables(root)
    if not len(tables["photos_places"]):
        raise DatasetError(f"{root} was made without photographs")
    photos = _read_pictures(root, "photos", tables["photos_places"], 3, num_threads)
    levels = _read_pictures(root, "cutouts", tables["cutouts_places"], 4, num_threads)
    outlines, pasted = (
        np.split(tables[name], np.cumsum(tables[f"{name}_lengths"])[:-1]) for name in ("outlines", "pasted_outlines")
    )
    photo_of, sources, origins = tables["cutout_photos"], tables["cutout_sources"], tables["origins_xy"]
    cutouts = tuple(
        CutOut(int(photo_of[i]), str(sources[i]), pyramid(picture), origins[i], outlines[i], pasted[i])
        for i, picture in enumerate(levels)
    )
    return ImagePool(tuple(pyramid(photo) for photo in photos), cutouts, tuple(map(int, tables["backgrounds"])))


def _thinned(clip: Clip, most: int) -> Clip:
    """At most so many frames, the first and the last among them, near even times."""
    if len(clip) <= most:
        return clip
    wanted = np.linspace(clip.times[0], clip.times[-1], most)
    kept = np.unique(np.abs(clip.times[None] - wanted[:, None]).argmin(axis=1))
    return Clip(clip.name, tuple(clip.frames[i] for i in kept), clip.boxes_xywh[kept], clip.times[kept])


def _shrunk_cutout(cutout: CutOut, photo: np.ndarray, small_photo: np.ndarray, side: float) -> CutOut:
    on_photo = np.array(small_photo.shape[1::-1]) / photo.shape[1::-1]
    picture = cutout.levels[0]
    small = shrunk(picture, side / math.sqrt(float(np.prod(np.ptp(cutout.pasted_outline_xy, axis=0)))))
    on_picture = np.array(small.shape[1::-1]) / picture.shape[1::-1]
    return dataclasses.replace(
        cutout,
        levels=(small,),
        origin_xy=cutout.origin_xy * on_photo,
        outline_xy=cutout.outline_xy * on_photo,
        pasted_outline_xy=cutout.pasted_outline_xy * on_picture,
    )


def _encode(picture: np.ndarray, quality: int) -> bytes:
    code = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    done, data = cv2.imencode(".webp", cv2.cvtColor(picture, code), [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not done:
        raise DatasetError(f"OpenCV {cv2.__version__} cannot write WebP pictures of shape {picture.shape}")
    return data.tobytes()


def _shard_name(kind: str, number: int) -> str:
    return f"{kind}_{number:03d}.bin"


def _write_shards(folder: Path, kind: str, encoded: Sequence[bytes]) -> np.ndarray:
    """Places as int64 [n, 3]: shard, first byte, bytes."""
    places, shards = [], [bytearray()]
    for data in encoded:
        if shards[-1] and len(shards[-1]) + len(data) > SHARD_BYTES:
            shards.append(bytearray())
        places.append((len(shards) - 1, len(shards[-1]), len(data)))
        shards[-1] += data
    for number, shard in enumerate(shards if encoded else ()):
        write_atomically(folder / _shard_name(kind, number), bytes(shard))
    return np.array(places, np.int64).reshape(-1, 3)


def _tables(root: Path) -> dict[str, np.ndarray]:
    path = root / TABLES
    try:
        with np.load(path, allow_pickle=False) as opened:
            tables: dict[str, Any] = dict(opened)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); copy it again, or make it anew") from error
    if int(tables.get("version", -1)) != VERSION:
        raise DatasetError(f"{path}: version {tables.get('version')}, expected {VERSION}; make the pool anew")
    return tables


def _read_pictures(root: Path, kind: str, places: np.ndarray, channels: int, num_threads: int) -> list[np.ndarray]:
    shards = {}
    for number in np.unique(places[:, 0]).tolist():
        path = root / _shard_name(kind, number)
        try:
            shards[number] = path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); copy the folder again") from error

    def decode(place: list[int]) -> np.ndarray:
        number, first, length = place
        data = np.frombuffer(shards[number][first : first + length], np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) == length else None
        if picture is None:
            name = _shard_name(kind, number)
            raise DatasetError(f"{root / name}: broken at byte {first}; copy the folder again, or make it anew")
        # WebP drops an alpha that is 255 everywhere.
        if channels == 4 and picture.shape[2] == 3:
            return cv2.cvtColor(picture, cv2.COLOR_BGR2RGBA)
        return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA if channels == 4 else cv2.COLOR_BGR2RGB)

    return list(in_threads(decode, places.tolist(), num_threads, kind))
