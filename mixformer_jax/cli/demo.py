"""For `mixformer demo` and `failures`: tracking a clip that is rendered from photographs of scikit-image."""

import importlib.util
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from mixformer_jax.boxes import iou, xywh_to_xyxy
from mixformer_jax.extras import install_line
from mixformer_jax.media.images import contact_sheet, read_image, write_image
from mixformer_jax.media.video import ArrayFrames, prepare_output
from mixformer_jax.tracking.record import MultiTrackerLike, Recording, annotate, record
from mixformer_jax.tracking.result_files import write_boxes
from mixformer_jax.tracking.tracker import Tracked, Tracker

HEIGHT, WIDTH = 360, 640
FPS = 30.0
SECONDS = 10.0
NUM_FRAMES = round(FPS * SECONDS)
NOISE = 2.0  # grey levels, a quiet sensor

Matrix = Float64[np.ndarray, "2 3"]
Point = Float64[np.ndarray, "2"]


class Cutout(NamedTuple):
    """An ellipse out of a photograph: pixels, a soft mask (0.5 on the outline), and the semi-axes."""

    pixels: Float[np.ndarray, "height width 3"]
    mask: Float[np.ndarray, "height width 1"]
    semi_axes: tuple[float, float]


class Placed(NamedTuple):
    """A cutout on a frame; `matrix` takes its pixels, counted from its centre, to pixels of the frame."""

    cutout: Cutout
    matrix: Matrix

    def box_xywh(self) -> Float64[np.ndarray, "4"]:
        """The tight box around the outline: an ellipse under a linear map keeps a closed form."""
        half = np.linalg.norm(self.matrix[:, :2] * np.asarray(self.cutout.semi_axes), axis=1)
        return np.concatenate([self.matrix[:, 2] - half, 2 * half])


class DemoClip(Sequence):
    """The demo clip, 10 s: its frames, rendered when they are asked for, uint8 RGB, HEIGHT x WIDTH.

    The cat (`chelsea`) moves over the garage (`motorcycle_left`) while the camera pans and zooms; the astronaut passes
    close by, and the saucer (`coffee`) covers half of the cat for half a second. Every path is a formula of time, so
    the ground truth is exact; the seed varies phases, moments and noise. ModuleNotFoundError without scikit-image.
    """

    fps = FPS

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._seed = seed
        self._num_frames = NUM_FRAMES
        self._phases = rng.uniform(-0.35, 0.35, 6)
        self._meeting = 2.8 + rng.uniform(-0.3, 0.3)
        self._covering = 6.4 + rng.uniform(-0.3, 0.3)
        self._noise = np.rint(rng.normal(0, NOISE, (HEIGHT + 64, WIDTH + 64, 3))).astype(np.int16)

        photographs = photograph_folder()
        garage = read_image(photographs / "motorcycle_left.png")
        self._world = cv2.resize(garage, None, fx=1.6, fy=1.6, interpolation=cv2.INTER_CUBIC)
        # Centre, semi-axes and angle (degrees) of each outline in its photograph; then the wanted semi-axis.
        self._cat = cut_out(read_image(photographs / "chelsea.png"), (212, 150), (152, 140), 0, 72)
        self._astronaut = cut_out(read_image(photographs / "astronaut.png"), (227, 113), (58, 82), 0, 45)
        self._saucer = cut_out(read_image(photographs / "coffee.png"), (279, 203), (196, 176), 20, 75)

    def __len__(self) -> int:
        return self._num_frames

    # One frame at a time: a slice would hold as many frames in memory.
    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width 3"]:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of a clip of {len(self)}")
        index %= len(self)
        time = index / FPS
        centre, zoom = self._camera(time)
        to_frame = np.array([[zoom, 0, WIDTH / 2 - zoom * centre[0]], [0, zoom, HEIGHT / 2 - zoom * centre[1]]])
        picture = cv2.warpAffine(self._world, to_frame, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR).astype(np.float32)
        for placed in self.layers(time):
            paste(picture, placed)
        picture *= 1 + 0.08 * math.sin(2 * math.pi * time / 7 + self._phases[5])
        top, left = np.random.default_rng((self._seed, index)).integers(0, 64, 2)
        picture += self._noise[top : top + HEIGHT, left : left + WIDTH]
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    @cached_property
    def boxes_xywh(self) -> Float64[np.ndarray, "n 4"]:
        """The cat's box on every frame."""
        return np.stack([self._target(index / FPS).box_xywh() for index in range(len(self))])

    def layers(self, time: float) -> list[Placed]:
        """What stands in front of the background at `time` (seconds), from back to front."""
        return [
            self._passing(self._astronaut, time, self._meeting, velocity=(-150.0, -40.0), miss=100.0),
            self._target(time),
            self._passing(self._saucer, time, self._covering, velocity=(-160.0, 190.0), miss=66.0),
        ]

    def _camera(self, time: float) -> tuple[Point, float]:
        """Centre of the view on the background, and pixels of the frame to a pixel of the background."""
        turn = 2 * math.pi * time / SECONDS
        middle = np.array(self._world.shape[1::-1]) / 2
        pan = np.array([190 * math.sin(turn + self._phases[0]), 70 * math.sin(2 * turn + self._phases[1])])
        return middle + pan, 1.05 + 0.2 * math.sin(1.5 * turn + self._phases[2])

    def _target(self, time: float) -> Placed:
        turn = 2 * math.pi * time / SECONDS
        x = WIDTH / 2 + 185 * math.sin(1.3 * turn + 0.6 + self._phases[3])
        y = HEIGHT / 2 + 72 * math.sin(2.1 * turn + self._phases[4])
        size = (0.68 + 0.2 * math.sin(1.2 * turn + 0.4)) * self._camera(time)[1]
        return Placed(self._cat, similarity(size, 18 * math.sin(1.7 * turn), np.array([x, y])))

    def _passing(
        self, cutout: Cutout, time: float, moment: float, velocity: tuple[float, float], miss: float
    ) -> Placed:
        """A cutout that comes within `miss` of the target's centre at `moment`, and never closer.

        `velocity` (a second) is relative to the target; it and `miss` are in pixels of the background.
        """
        beside = np.array([velocity[1], -velocity[0]]) / math.hypot(*velocity)
        offset = miss * beside + np.array(velocity) * (time - moment)
        zoom = self._camera(time)[1]
        on_frame = self._target(time).matrix[:, 2] + zoom * offset
        return Placed(cutout, similarity(zoom, 10 * math.sin(time - moment), on_frame))


class AbsenceClip(DemoClip):
    """The demo clip with a target that is out of sight twice, for 0.7 to 2.5 s, and comes back somewhere else."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        rng = np.random.default_rng((seed, 1))
        first, second = rng.uniform([1.5, 5.2], [2.6, 6.2])
        self._absences = np.array([[first, first + rng.uniform(0.7, 2.0)], [second, second + rng.uniform(0.8, 2.5)]])
        self._places = rng.uniform([-190, -60], [190, 60], (3, 2))

    def is_hidden(self, time: float) -> bool:
        """Whether the target is out of sight."""
        return bool(((self._absences[:, 0] <= time) & (time < self._absences[:, 1])).any())

    def layers(self, time: float) -> list[Placed]:
        astronaut, target, saucer = super().layers(time)
        return [astronaut, saucer] if self.is_hidden(time) else [astronaut, target, saucer]

    @cached_property
    def boxes_xywh(self) -> Float64[np.ndarray, "n 4"]:
        """The cat's box on every frame; NaN where it is out of sight."""
        hidden = [self.is_hidden(index / FPS) for index in range(len(self))]
        return np.where(np.array(hidden)[:, None], np.nan, super().boxes_xywh)

    def _target(self, time: float) -> Placed:
        placed = super()._target(time)
        place = self._places[int((time >= self._absences[:, 1]).sum())]
        path = placed.matrix[:, 2] - (WIDTH / 2, HEIGHT / 2)
        placed.matrix[:, 2] = (WIDTH / 2, HEIGHT / 2) + place + path * (0.4, 0.5)
        return placed


class LongClip(AbsenceClip):
    """A clip of any length, whose target goes out of sight again and again and comes back somewhere else.

    It is in sight for 2.5 to 8 s, then away for 1 to 5 s. One of the three is the target, by turns of the seed; the
    other two pass it every 10 s, one beside it and one over it.
    """

    def __init__(self, seed: int, num_frames: int) -> None:
        super().__init__(seed)
        self._num_frames = num_frames
        rng = np.random.default_rng((seed, 2))
        count = math.ceil(num_frames / FPS / 3.5)  # as many as there may be
        stays, aways = rng.uniform(2.5, 8, count), rng.uniform(1, 5, count)
        returns = np.cumsum(stays + aways)
        self._absences = np.stack([returns - aways, returns], axis=1)
        self._places = rng.uniform([-190, -60], [190, 60], (count + 1, 2))
        cutouts, first = (self._cat, self._astronaut, self._saucer), seed % 3
        self._cat, self._astronaut, self._saucer = (*cutouts[first:], *cutouts[:first])

    def _passing(
        self, cutout: Cutout, time: float, moment: float, velocity: tuple[float, float], miss: float
    ) -> Placed:
        nearest = moment + SECONDS * round((time - moment) / SECONDS)
        return super()._passing(cutout, time, nearest, velocity, miss)


def render_demo_clip(seed: int = 0, absences: bool = False) -> DemoClip:
    """See `DemoClip`; with `absences` the target is out of sight twice: its box is NaN there."""
    return AbsenceClip(seed) if absences else DemoClip(seed)


def photograph_folder() -> Path:
    """Where scikit-image's photographs are; ModuleNotFoundError where it is missing."""
    # Only its files are wanted: importing scikit-image, and SciPy with it, would take seconds.
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        needed = "the demo clip is rendered from photographs in scikit-image, which is not installed"
        raise ModuleNotFoundError(f"{needed}: {install_line('demo')}", name="skimage")
    return Path(found.origin).parent / "data"


def cut_out(
    photograph: UInt8[np.ndarray, "height width 3"],
    centre: tuple[int, int],
    outline_axes: tuple[int, int],
    degrees: int,
    wanted: int,
) -> Cutout:
    """The ellipse turned upright and scaled so that its first semi-axis is `wanted` pixels long."""
    scale = wanted / outline_axes[0]
    semi_axes = (float(wanted), scale * outline_axes[1])
    # Shrunk before it is turned: area averaging does not alias, a plain bilinear warp would.
    small = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    radius = (math.ceil(semi_axes[0]) + 3, math.ceil(semi_axes[1]) + 3)
    matrix = similarity(1.0, float(-degrees), np.array(radius, np.float64))
    matrix[:, 2] -= matrix[:, :2] @ (scale * np.asarray(centre))
    size = (2 * radius[0] + 1, 2 * radius[1] + 1)
    pixels = cv2.warpAffine(small, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    y, x = np.mgrid[-radius[1] : radius[1] + 1, -radius[0] : radius[0] + 1]
    outline = np.hypot(x / semi_axes[0], y / semi_axes[1])
    mask = np.clip(0.5 + (1 - outline) * min(semi_axes) / 2, 0, 1)
    return Cutout(pixels.astype(np.float32), mask[..., None].astype(np.float32), semi_axes)


def similarity(scale: float, degrees: float, to: Point) -> Matrix:
    """Scales, turns by so many degrees, and puts the origin at `to`."""
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return np.array([[cos, -sin, to[0]], [sin, cos, to[1]]])


def paste(picture: Float[np.ndarray, "height width 3"], placed: Placed) -> None:
    """Blends a cutout into a picture, in place; only the part of the picture under it is touched."""
    x, y, w, h = placed.box_xywh()
    left, top = max(0, math.floor(x) - 4), max(0, math.floor(y) - 4)
    right, bottom = min(picture.shape[1], math.ceil(x + w) + 4), min(picture.shape[0], math.ceil(y + h) + 4)
    if left >= right or top >= bottom:
        return
    matrix = placed.matrix.copy()
    middle = (np.array(placed.cutout.mask.shape[1::-1]) - 1) / 2
    matrix[:, 2] -= matrix[:, :2] @ middle + (left, top)
    size = (right - left, bottom - top)
    pixels = cv2.warpAffine(placed.cutout.pixels, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(placed.cutout.mask, matrix, size, flags=cv2.INTER_LINEAR)[..., None]
    region = picture[top:bottom, left:right]
    region += mask * (pixels - region)


class DemoReport(NamedTuple):
    """What the demo left behind, and how well the target was followed."""

    recording: Recording  # the annotated video, the boxes and the rates
    groundtruth: Path  # text file of the exact boxes, one `x,y,w,h` line a frame
    picture: Path  # PNG of the first, middle and last annotated frame side by side
    # Mean overlap with the ground truth where the target is in sight, without the first frame, whose box is given
    mean_iou: float


def track_demo(
    tracker: MultiTrackerLike, folder: str | Path, seed: int = 0, absences: bool = False, progress: bool = False
) -> DemoReport:
    """Renders the demo clip and tracks it; leaves video, boxes, ground truth and a picture in a folder.

    Its own files of an earlier run are replaced. An interrupt ends the demo early; the report covers the frames tracked
    by then. ModuleNotFoundError without scikit-image, OutputError where the folder cannot be written.
    """
    video = prepare_output(Path(folder) / "demo.mp4")
    boxes_file, groundtruth, picture = (video.with_name(n) for n in ("boxes.txt", "groundtruth.txt", "demo.png"))
    clip = render_demo_clip(seed, absences)
    truth, source = clip.boxes_xywh, ArrayFrames(clip, "demo", FPS)
    recording = record(
        tracker, source, truth[:1], video, boxes_file, groundtruth_xywh=truth, progress=progress, overwrite=True
    )
    write_boxes(groundtruth, truth)
    boxes = recording.boxes_xywh[:, 0]
    write_image(picture, contact_sheet(_annotated(clip, boxes, (0, (len(boxes) - 1) // 2, len(boxes) - 1))))
    overlaps = iou(xywh_to_xyxy(boxes[1:]), xywh_to_xyxy(truth[1 : len(boxes)]))
    mean_iou = float(np.nanmean(overlaps)) if len(overlaps) else math.nan
    return DemoReport(recording, groundtruth, picture, mean_iou)


def _annotated(clip: DemoClip, boxes_xywh: Float[np.ndarray, "n 4"], indices: Sequence[int]) -> list[np.ndarray]:
    """Frames with what was found and what is true."""
    return [annotate(clip[i], i, Tracked(boxes_xywh[i, None]), clip.boxes_xywh) for i in indices]


BOXED = 0.5  # IoU from which a target counts as boxed
OFF = 0.1  # IoU below which a box is not on the target


class Failure(NamedTuple):
    """Frames of one clip, counted from 0."""

    overlap: float  # IoU on the frame `worst`
    before: int  # the last boxed frame before
    worst: int  # the frame with the lowest overlap between `before` and `after`
    after: int  # the first boxed frame after, or the clip's last one


def find_failures(overlaps: Float64[np.ndarray, " n"]) -> list[Failure]:
    """Every stretch of frames that are not boxed, the lowest overlap first.

    Frame 0 is given, and so boxed. An overlap of NaN, where the target is out of sight, is no failure.
    """
    boxed = ~(np.asarray(overlaps) < BOXED)  # NaN: nothing to box
    boxed[0] = True
    found = []
    for start in map(int, np.flatnonzero(boxed[:-1] & ~boxed[1:])):
        later = np.flatnonzero(boxed[start + 1 :])
        after = start + 1 + int(later[0]) if len(later) else len(boxed) - 1
        worst = start + 1 + int(np.argmin(overlaps[start + 1 : after + 1]))
        found.append(Failure(float(overlaps[worst]), start, worst, after))
    return sorted(found)


def draw_failures(tracker: Tracker, sheet: Path, seeds: int, rows: int, absences: bool) -> None:
    """Tracks the clips of the first seeds, prints how well, and leaves a sheet of the worst moments."""
    failures = []
    for seed in range(seeds):
        clip = render_demo_clip(seed, absences)
        boxes_xywh, lost = _follow(tracker, clip)
        overlaps = iou(xywh_to_xyxy(boxes_xywh), xywh_to_xyxy(clip.boxes_xywh))
        failures += [(failure, seed, clip, boxes_xywh) for failure in find_failures(overlaps)]
        below = np.mean(overlaps[1:][~np.isnan(overlaps[1:])] < BOXED)
        told = f"seed {seed}: mean IoU {np.nanmean(overlaps[1:]):.3f}, below {BOXED:g} on {below:.0%} of the frames"
        for name, chosen in (("off", ~(overlaps >= OFF)), ("good", overlaps > BOXED)):
            if lost is not None and chosen[1:].any():
                told += f"; {lost[1:][chosen[1:]].mean():.1%} of {chosen[1:].sum()} {name} ones called lost"
        print(told)
    if not failures:
        print(f"no frame with an IoU below {BOXED:g}, so there is nothing to draw")
        return
    pictures = []
    for failure, seed, clip, boxes_xywh in sorted(failures, key=lambda each: each[:2])[:rows]:
        shown = failure.before, failure.worst, failure.after
        pictures += _annotated(clip, boxes_xywh, shown)
        first, worst, last = (index + 1 for index in shown)  # as drawn
        print(f"seed {seed}, frames {first} to {last}: IoU {failure.overlap:.3f} on {worst}")
    write_image(sheet, contact_sheet(pictures))
    print(f"sheet  {sheet}")


def _follow(tracker: Tracker, clip: DemoClip) -> tuple[Float64[np.ndarray, "n 4"], Bool[np.ndarray, " n"] | None]:
    """The boxes of a whole clip, from the true one on its first frame, and where the target counts as lost."""
    state = tracker.start(clip[0], clip.boxes_xywh[0])
    boxes_xywh = [clip.boxes_xywh[0]]
    lost: list[bool | None] = [False]
    for index in range(1, len(clip)):
        state, found = tracker.step(state, clip[index])
        boxes_xywh.append(np.asarray(found.box_xywh, np.float64))
        lost.append(found.is_lost)
    return np.stack(boxes_xywh), None if None in lost else np.array(lost, bool)
