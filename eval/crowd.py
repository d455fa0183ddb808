"""A rendered scene of many objects that cross, with exact ground truth and the detections of a detector that errs.

    python -m eval.crowd CROWD --objects 20 --seed 0
    mixformer mot CROWD --video

The first writes the scene in MOTChallenge's layout. Objects are ellipses out of the photographs of `mixformer demo`,
every look twice, on paths that cross and leave the frame; who comes back is somebody else, as in MOT17. Detections miss
objects, for a while at a time and the more the less of them is in view, lie beside them, and see some that are not
there.
"""

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from mixformer_jax.cli.console import positive
from mixformer_jax.cli.demo import NOISE, Cutout, Placed, cut_out, paste, photograph_folder, similarity
from mixformer_jax.datasets.detections import Detections
from mixformer_jax.datasets.mot import DETECTIONS, GROUNDTRUTH, SEQINFO, MotRows
from mixformer_jax.media.images import read_image

HEIGHT, WIDTH, FPS = 540, 960, 30.0
RADIUS = 30  # semi-axis of a cut-out, pixels
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "ihc.png")
# Of the detector: chances that it begins to miss an object that is wholly in view, and that it goes on missing it; the
# deviation of a box's centre and sides, as shares of its sides; false boxes a frame.
MISSES, MISSES_ON, OFF, FALSE = 0.06, 0.65, 0.05, 1.5
LEAST_VISIBLE = 0.25  # of an object that it may see
ONE_BASED = np.array([1, 1, 0, 0])  # MOTChallenge counts pixels from 1


class Crowd(Sequence):
    """Frames of a scene, rendered when they are asked for; uint8 RGB, HEIGHT x WIDTH.

    Raises ModuleNotFoundError: scikit-image is missing; the message names the extra to install.
    """

    def __init__(self, num_objects: int = 20, num_frames: int = 150, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.num_objects, self.num_frames, self._seed = num_objects, num_frames, seed
        pictures = [read_image(photograph_folder() / name) for name in PHOTOGRAPHS]
        self._looks = [_draw_look(rng, pictures) for _ in range(-(-num_objects // 2))]
        garage = read_image(photograph_folder() / "motorcycle_left.png")
        self._world = cv2.resize(garage, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)
        self._noise = np.rint(rng.normal(0, NOISE, (HEIGHT + 64, WIDTH + 64, 3))).astype(np.float32)
        n = num_objects
        self._reach = rng.uniform(0.25, 0.58, (n, 2)) * (WIDTH, HEIGHT)
        self._turns = 2 * math.pi * rng.uniform(0.08, 0.22, (n, 2)) * rng.choice([-1, 1], (n, 2))  # a second
        self._phases = rng.uniform(0, 2 * math.pi, (n, 4))
        self._sizes = rng.uniform(0.75, 1.25, n)

    def __len__(self) -> int:
        return self.num_frames

    # One frame at a time: a slice would hold as many frames in memory.
    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width 3"]:  # type: ignore[override]
        if not 0 <= index < self.num_frames:
            raise IndexError(f"frame {index} of a scene of {self.num_frames}")
        picture = self._world.copy()
        for placed in self._placed(index):
            paste(picture, placed)
        top, left = np.random.default_rng((self._seed, index)).integers(0, 64, 2)
        picture += self._noise[top : top + HEIGHT, left : left + WIDTH]
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    def _placed(self, index: int) -> list[Placed]:
        """The objects from back to front."""
        time = index / FPS
        angles = self._turns * time + self._phases[:, :2]
        centres = np.array([WIDTH / 2, HEIGHT / 2]) + self._reach * np.sin(angles)
        sizes = self._sizes * (1 + 0.12 * np.sin(time + self._phases[:, 2]))
        degrees = 12 * np.sin(1.3 * time + self._phases[:, 3])
        return [
            Placed(self._looks[i // 2], similarity(float(sizes[i]), float(degrees[i]), centres[i]))
            for i in range(self.num_objects)
        ]

    @functools.cached_property
    def truth(self) -> MotRows:
        """Every object whose centre is in the frame, whole, whatever covers it; `visibility` is what is in view."""
        rows: list[list[float]] = []
        ids, seen, last = np.arange(1, self.num_objects + 1), np.ones(self.num_objects, bool), self.num_objects
        for index in range(self.num_frames):
            placed = self._placed(index)
            for i, share in enumerate(_visible_shares(placed)):
                centre = placed[i].matrix[:, 2]
                is_inside = bool(((centre >= 0) & (centre < (WIDTH, HEIGHT))).all())
                if is_inside and not seen[i]:
                    ids[i] = last = last + 1
                seen[i] = is_inside
                if is_inside:
                    rows.append([index + 1, ids[i], *placed[i].box_xywh(), 1, 1, share])
        table = np.array(rows)
        frames, ids, classes = (table[:, column].astype(np.int64) for column in (0, 1, 7))
        lines = np.arange(1, len(rows) + 1)
        return MotRows(Path("scene"), lines, frames, ids, table[:, 2:6], table[:, 6], classes, table[:, 8])

    @functools.cached_property
    def detections(self) -> dict[int, Detections]:
        """What the detector says, by frame from 1; the same for the same seed."""
        rng, truth = np.random.default_rng((self._seed, 1)), self.truth
        missing: dict[int, bool] = {}
        found = {}
        for number in range(1, self.num_frames + 1):
            boxes, scores = [], []
            for row in np.flatnonzero(truth.frames == number).tolist():
                track, visible = int(truth.ids[row]), float(truth.visibility[row])
                chance = MISSES_ON if missing.get(track, False) else min(1.0, MISSES + 0.5 * (1 - visible))
                missing[track] = bool(rng.random() < chance)
                if missing[track] or visible < LEAST_VISIBLE:
                    continue
                x, y, w, h = truth.boxes_xywh[row]
                sides = np.array([w, h]) * np.exp(rng.normal(0, OFF, 2))
                centre = np.array([x + w / 2, y + h / 2]) + rng.normal(0, OFF, 2) * (w, h)
                boxes.append([*(centre - sides / 2), *sides])
                scores.append(rng.uniform(0.4, 1.0) * (0.5 + 0.5 * visible))
            for _ in range(rng.poisson(FALSE)):
                sides = 2 * RADIUS * np.exp(rng.normal(0, 0.3, 2))
                boxes.append([*(rng.uniform(0, 1, 2) * (WIDTH, HEIGHT) - sides / 2), *sides])
                scores.append(rng.uniform(0.2, 0.8))
            found[number] = Detections(np.array(boxes).reshape(-1, 4), np.array(scores))
        return found

    def write(self, folder: Path) -> None:
        """The scene in MOTChallenge's layout, in which pixels count from 1."""
        for part in (Path("img1"), GROUNDTRUTH.parent, DETECTIONS.parent):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for index in range(self.num_frames):
            path = folder / "img1" / f"{index + 1:06d}.jpg"
            cv2.imwrite(str(path), cv2.cvtColor(self[index], cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
        truth = self.truth
        columns = (truth.frames, truth.ids, truth.boxes_xywh + ONE_BASED, truth.scores, truth.classes, truth.visibility)
        _write_rows(folder / GROUNDTRUTH, np.column_stack(columns))
        detected = [
            np.column_stack([np.full(len(scores), number), np.full(len(scores), -1), boxes + ONE_BASED, scores])
            for number, (boxes, scores) in self.detections.items()
        ]
        _write_rows(folder / DETECTIONS, np.concatenate(detected))
        (folder / SEQINFO).write_text(
            f"[Sequence]\nname={folder.resolve().name}\nimDir=img1\nframeRate={FPS:g}\nseqLength={self.num_frames}\n"
            f"imWidth={WIDTH}\nimHeight={HEIGHT}\nimExt=.jpg\n"
        )


def _draw_look(rng: np.random.Generator, pictures: Sequence[np.ndarray]) -> Cutout:
    """An ellipse out of a photograph, where that is not flat."""
    while True:
        picture = pictures[int(rng.integers(len(pictures)))]
        a, b = int(rng.integers(45, 80)), int(rng.integers(45, 80))
        x, y = int(rng.integers(a, picture.shape[1] - a)), int(rng.integers(b, picture.shape[0] - b))
        if picture[y - b : y + b, x - a : x + a].std() > 35:
            return cut_out(picture, (x, y), (a, b), 0, RADIUS)


def _visible_shares(placed: Sequence[Placed]) -> Float64[np.ndarray, " n"]:
    """Of each ellipse, the share that is inside the frame and that none in front covers."""
    margin = 2 * RADIUS
    shares, cover = np.zeros(len(placed)), np.zeros((HEIGHT + 2 * margin, WIDTH + 2 * margin), np.uint8)
    for i in reversed(range(len(placed))):
        matrix, own = placed[i].matrix, np.zeros_like(cover)
        scale, degrees = float(np.hypot(*matrix[:, 0])), math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))
        centre = tuple(float(value) + margin for value in matrix[:, 2])
        extent = tuple(2 * scale * axis for axis in placed[i].cutout.semi_axes)
        cv2.ellipse(own, (centre, extent, degrees), 1, cv2.FILLED)
        inside = own[margin:-margin, margin:-margin] > cover[margin:-margin, margin:-margin]
        shares[i] = inside.sum() / max(1, own.sum())
        cover |= own
    return shares


def _write_rows(path: Path, table: np.ndarray) -> None:
    formats = ["%d", "%d", *["%.3f"] * 4, *["%.4f"] * (table.shape[1] - 6)]
    np.savetxt(path, table, formats, ",")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=positive, default=20)
    parser.add_argument("--frames", type=positive, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    Crowd(args.objects, args.frames, args.seed).write(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
