"""Clips rendered from the pool's photographs: the target is out of sight now and then, and comes back elsewhere.

A cut-out is the target; one to four others pass by. All of them move over a photograph that the camera pans across.
"""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from mixformer_jax.data.pool.pool import ImagePool
from mixformer_jax.datasets.records import Dataset, TrackingSequence

WIDTH, HEIGHT = 512, 288
FRAMES, FPS = 60, 30.0
NOISE = 2.0  # grey levels
MOST_ZOOM = 1.25
LEAST_SEEN = 0.3  # share of the target in view from which it has a box
LEAST_BOXED = 0.2  # share of a clip's frames with a box


def rendered_clips(pool: ImagePool, count: int, seed: int = 0) -> Dataset:
    """`count` sequences `rendered_clip_0`, ...; the same ones for the same seed.

    Raises ValueError where no photograph of the pool has an instance mask.
    """
    if not pool.cutouts:
        raise ValueError(
            "no photograph of the pool has an instance mask NAME.png beside it, so no clip can be rendered"
        )

    def read(name: str) -> TrackingSequence:
        rng = np.random.default_rng((seed, int(name.removeprefix("rendered_clip_"))))
        while True:
            clip = _Clip(pool, rng)
            frames, boxes_xywh = zip(*(clip.render(index / FRAMES) for index in range(FRAMES)), strict=True)
            if np.isfinite(boxes_xywh).all(axis=1).sum() >= LEAST_BOXED * FRAMES:
                return TrackingSequence(name, np.stack(boxes_xywh), frames.__getitem__, FPS, Path(name))

    return Dataset("rendered", Path("rendered"), [f"rendered_clip_{number}" for number in range(count)], read)


class _Actor(NamedTuple):
    """A cut-out and its path; time runs from 0 to 1."""

    premultiplied: np.ndarray  # float32, colours times alpha and alpha (0 to 1)
    centre: np.ndarray
    swing: np.ndarray
    rate: np.ndarray
    phase: np.ndarray
    turn: float


class _Clip:
    def __init__(self, pool: ImagePool, rng: np.random.Generator) -> None:
        self._rng = rng
        photo = pool.photos[rng.choice(pool.backgrounds)][0]
        scale = 1.5 * max(WIDTH / photo.shape[1], HEIGHT / photo.shape[0])
        self._background = cv2.resize(photo, None, fx=scale, fy=scale)
        side = rng.uniform(24, 130)
        self._actors = [self._draw_actor(pool, side * rng.uniform(0.6, 1.5)) for _ in range(rng.integers(1, 5))]
        self._place_of_target = int(rng.integers(len(self._actors) + 1))  # between the others, from back to front
        self._actors.insert(self._place_of_target, self._draw_actor(pool, side))
        self._pan, self._pan_phase = rng.uniform(0, 6, 2), rng.uniform(0, 6, 2)
        self._absences = []  # begin, end, and where the target goes on
        begin = rng.uniform(0.15, 0.35)
        while begin < 1:
            end = begin + rng.uniform(0.08, 0.3)
            self._absences.append((begin, end, self._spot()))
            begin = end + rng.uniform(0.15, 0.3)

    def _spot(self) -> np.ndarray:
        return self._rng.uniform([80, 50], [WIDTH - 80, HEIGHT - 50])

    def _draw_actor(self, pool: ImagePool, side: float) -> _Actor:
        rng = self._rng
        cutout = pool.cutouts[rng.integers(len(pool.cutouts))].levels[0].astype(np.float32)
        alpha = cutout[..., 3:] / 255
        premultiplied = np.concatenate([cutout[..., :3] * alpha, alpha], axis=2)
        # As large as it is ever drawn: a warp does not average.
        scale = MOST_ZOOM * side / max(cutout.shape[:2])
        pixels = cv2.resize(premultiplied, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        swing, rate = rng.uniform([20, 10], [130, 70]), rng.uniform(0.5, 2.2, 2)
        return _Actor(pixels, self._spot(), swing, rate, rng.uniform(0, 2 * math.pi, 4), rng.uniform(5, 25))

    def render(self, time: float) -> tuple[UInt8[np.ndarray, "h w 3"], Float64[np.ndarray, "4"]]:
        """The picture, and the target's box `x, y, w, h`: NaN where too little of it is in view."""
        room = np.array(self._background.shape[1::-1]) - (WIDTH, HEIGHT)
        left, top = (room * (0.5 + 0.5 * np.sin(self._pan * time + self._pan_phase))).astype(int)
        picture = self._background[top : top + HEIGHT, left : left + WIDTH].astype(np.float32)
        seen = target = np.zeros((HEIGHT, WIDTH), bool)
        whole = math.inf
        for number, actor in enumerate(self._actors):
            is_target = number == self._place_of_target
            if is_target and any(begin <= time < end for begin, end, _ in self._absences):
                continue
            matrix = self._matrix(actor, time, is_target)
            drawn = cv2.warpAffine(actor.premultiplied, matrix, (WIDTH, HEIGHT))
            picture += drawn[..., :3] - drawn[..., 3:] * picture
            seen = seen & (drawn[..., 3] < 0.5)
            if is_target:
                seen = target = drawn[..., 3] > 0.5
                whole = (actor.premultiplied[..., 3] > 0.5).sum() * np.linalg.det(matrix[:, :2])
        noisy = picture + self._rng.normal(0, NOISE, (HEIGHT, WIDTH, 1))
        is_seen = seen.sum() > max(LEAST_SEEN * whole, 30)
        box_xywh = np.array(cv2.boundingRect(target.astype(np.uint8)), np.float64)
        return np.clip(noisy, 0, 255).astype(np.uint8), box_xywh if is_seen else np.full(4, np.nan)

    def _matrix(self, actor: _Actor, time: float, is_target: bool) -> np.ndarray:
        centre = actor.centre
        for begin, _, spot in self._absences if is_target else ():
            centre = spot if time >= begin else centre
        centre = centre + actor.swing * np.sin(2 * math.pi * actor.rate * time + actor.phase[:2])
        zoom = (1 + (MOST_ZOOM - 1) * math.sin(5 * time + actor.phase[2])) / MOST_ZOOM
        angle = math.radians(actor.turn * math.sin(7 * time + actor.phase[3]))
        linear = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        middle = np.array(actor.premultiplied.shape[1::-1]) / 2
        return np.column_stack([linear, centre - linear @ middle])
