"""A clip and a tracker without a model: a red square wanders over grey, and the tracker boxes what is red."""

import numpy as np
from jaxtyping import Float

from mixformer_jax.models.config import size_config
from mixformer_jax.tracking.tracker import Tracked

HEIGHT, WIDTH, SIDE = 60, 90, 12


def complaint(capsys, program, arguments) -> str:
    """What a program says of a mistake of the user's, in one line on stderr."""
    capsys.readouterr()
    assert program(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("mixformer: error: ") and told.count("\n") == 1, told
    return told


def square_boxes(num_frames: int) -> Float[np.ndarray, "n 4"]:
    """Where the square is on each frame."""
    time = np.arange(num_frames)
    x, y = np.rint(35 + 25 * np.sin(time / 5)), np.rint(24 + 18 * np.cos(time / 7))
    return np.stack([x, y, np.full(num_frames, SIDE), np.full(num_frames, SIDE)], axis=1).astype(np.float64)


def square_clip(num_frames: int) -> list[np.ndarray]:
    """RGB frames of the wandering square."""
    frames = []
    for x, y, w, h in square_boxes(num_frames).astype(int):
        frame = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
        frame[y : y + h, x : x + w] = (230, 20, 20)
        frames.append(frame)
    return frames


class RedTracker:
    """Boxes the red pixels; state is the number of frames seen. May be told to press Ctrl-C for the user."""

    has_scores = False
    config = size_config("mixvit_nano")

    def __init__(self, interrupt_at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.interrupt_at, self.error = interrupt_at, error

    def start(self, frame: np.ndarray, boxes_xywh: np.ndarray) -> int:
        return 1

    def step(self, state: int, frame: np.ndarray) -> tuple[int, Tracked]:
        if state == self.interrupt_at:
            raise self.error
        rows, columns = np.nonzero(frame[..., 0].astype(int) - frame[..., 1] > 100)
        x, y = columns.min(), rows.min()
        boxes_xywh = np.array([[x, y, columns.max() + 1 - x, rows.max() + 1 - y]], np.float64)
        return state + 1, Tracked(boxes_xywh, None, None)


class PairTracker(RedTracker):
    """Boxes the red pixels, and as a second target, which it counts as lost on odd frames, what lies right of them."""

    has_scores = True

    def step(self, state: int, frame: np.ndarray) -> tuple[int, Tracked]:
        following, found = super().step(state, frame)
        boxes_xywh = np.concatenate([found.boxes_xywh, found.boxes_xywh + np.array([SIDE, 0, 0, 0])])
        return following, Tracked(boxes_xywh, np.array([0.9, 0.125]), np.array([False, state % 2 == 1]))


def box_mask(box_xywh, size) -> np.ndarray:
    """A filled box on a frame of `size` (height, width)."""
    x, y, w, h = np.asarray(box_xywh).tolist()
    left, top, right, bottom = (max(0, round(value)) for value in (x, y, x + w, y + h))
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def mask_iou(one, other) -> float:
    """Intersection over union in pixels; 0 for two empty masks."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0
