"""A tiny interlaced clip that travels with the package, and what becomes of it here.

Some decoders answer an interlaced frame with a picture that is none (see `decoders`): `mixformer doctor` and
`mixformer data check` try. The clip (`assets/interlaced.mp4`, H.264) is made by `tests/clips.py`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mixformer_jax.media.decoders import INTERLACED_CLIP
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.video import open_source

SIDE, NUM_FRAMES = 64, 4
COLOURS = ((200, 40, 40), (40, 180, 60), (50, 60, 190), (210, 200, 90))
# Grey levels of 255 that a codec may change in the middle of a flat area.
TOLERANCE = 20


class Answer(NamedTuple):
    """What became of the clip: whether that is safe, and `right`, `refused` or `WRONG` with what was wrong."""

    is_safe: bool
    told: str


def clip_frames() -> UInt8[np.ndarray, "frames side side 3"]:
    """What the clip shows: a colour in each quarter, and on every frame another one."""
    colours = np.array(COLOURS, np.uint8)
    half = SIDE // 2
    return np.stack(
        [np.roll(colours, index, 0).reshape(2, 2, 3).repeat(half, 0).repeat(half, 1) for index in range(NUM_FRAMES)]
    )


def try_interlaced(path: Path = INTERLACED_CLIP) -> Answer:
    """Decodes the clip as any video."""
    expected = clip_frames()
    try:
        with open_source(path) as source:
            frames = list(source)
    except SourceError:
        return Answer(True, "refused")
    if len(frames) != len(expected) or frames[0].shape != expected[0].shape:
        return Answer(False, f"WRONG ({len(frames)} frames of {len(expected)})")
    middle = slice(SIDE // 8, None, SIDE // 4)
    off = np.abs(np.stack(frames)[:, middle, middle].astype(int) - expected[:, middle, middle]).max()
    return Answer(True, "right") if off <= TOLERANCE else Answer(False, f"WRONG (off by {off} of 255)")
