"""Targets followed through frames by index: changed on any frame, and tracked again from there; and over a frame the
attention of Figs. 8 and 9: who looks at the target, on the search region's place in the frame."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from mixformer_jax.media.sources import TimedFrame
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.tracking.attention_maps import KINDS, attention_maps, choose_blocks, looking_at, template_box_xyxy
from mixformer_jax.tracking.step import TrackState
from mixformer_jax.tracking.targets import live_numbers, live_rows, row_of, target_alone
from mixformer_jax.tracking.tracker import Tracked, Tracker

# States are kept every so many frames, to go back to; when there are too many, every second one goes.
EVERY, MOST_STATES = 15, 64
# Frames on which targets may be changed: the states after these are kept, too.
MOST_CHANGES = 200

Box = Float[np.ndarray, "4"]


class Following:
    """Who is where on which frame. `frame_of` gives a frame that was passed again. A change on an earlier frame forgets
    what came after it, which is tracked again."""

    def __init__(self, tracker: Tracker, frame_of: Callable[[int], TimedFrame]) -> None:
        self.tracker = tracker
        self.found: dict[int, Tracked] = {}  # by the frame's index
        self.last = -1  # index of the last frame tracked
        self._state: TrackState | None = None  # after that frame
        self._before: tuple[int, TrackState] | None = None  # another frame's, the one before as a rule
        self._kept: dict[int, TrackState] = {}
        self._changes: dict[int, dict[int, Box]] = {}  # by frame: the targets that were given there
        self._every = EVERY
        self._frame_of = frame_of

    @property
    def targets(self) -> list[int]:
        """Numbers of the targets that are followed."""
        return [] if self._state is None else live_numbers(self._state).tolist()

    def step(self, frame: TimedFrame) -> Tracked:
        """Goes on to a later frame."""
        index = frame.number - 1
        assert self._state is not None and index > self.last
        self._before = (self.last, self._state)
        self._state, found = self.tracker.step(self._state, frame.pixels)
        self.found[index] = found._replace(frame=frame.number, time=frame.seconds)
        self.last = index
        if index - max(self._kept) >= self._every:
            self._keep(index)
        return self.found[index]

    def add(self, frame: TimedFrame, box_xywh: Box) -> int:
        """A new target on a frame; returns its number. ValueError, and nothing changes, where the box is unusable."""
        state, numbers = self.tracker.add(self._stand_at(frame), frame.pixels, box_xywh)
        self._change(frame, state, {int(numbers[0]): np.asarray(box_xywh, np.float64)})
        return int(numbers[0])

    def replace(self, frame: TimedFrame, target: int, box_xywh: Box) -> None:
        """Corrects a target on a frame, on which it must be followed; ValueError as `add`."""
        state = self.tracker.replace(self._known(frame, target), target, frame.pixels, box_xywh)
        self._change(frame, state, {target: np.asarray(box_xywh, np.float64)})

    def add_template(self, frame: TimedFrame, target: int, box_xywh: Box) -> None:
        """A further template of a target, from here on; ValueError as `Tracker.add_template`."""
        state = self.tracker.add_template(self._known(frame, target), target, frame.pixels, box_xywh)
        self._change(frame, state, {})

    def remove(self, frame: TimedFrame, target: int) -> None:
        """From this frame on the target is not followed."""
        self._change(frame, self.tracker.remove(self._known(frame, target), target), {})

    def state_before(self, index: int) -> TrackState | None:
        """The state with which a frame was searched; None where none was."""
        earlier = max((at for at in self.found if at < index), default=None)
        return None if earlier is None else self._state_at(earlier)

    def box_given(self, target: int, index: int) -> Box | None:
        """The box from which a target that is followed on a frame had begun; None where it is given on that frame."""
        given = [at for at, boxes in self._changes.items() if target in boxes and at <= index]
        return None if not given or max(given) == index else self._changes[max(given)][target]

    def _known(self, frame: TimedFrame, target: int) -> TrackState:
        state = self._stand_at(frame)
        if state is None:
            raise ValueError("no target is followed on this frame")
        row_of(state, target)
        return state

    def _stand_at(self, frame: TimedFrame) -> TrackState | None:
        """The state on a frame, from which all goes on: what came after it is forgotten."""
        index = frame.number - 1
        if index < self.last:
            state = self._state_at(index)
            for known in (self.found, self._kept, self._changes):
                for later in [at for at in known if at > index]:
                    del known[later]
            self._state, self._before = state, None
            self.last = index if state is not None else -1
        elif index > self.last and self.targets:
            self.step(frame)
        if index not in self._changes and len(self._changes) >= MOST_CHANGES:
            raise ValueError(f"targets were changed on {MOST_CHANGES} frames, which is as many as can be gone back to")
        return self._state

    def _state_at(self, index: int) -> TrackState | None:
        """The state after a frame, by the last one that was kept before it."""
        for at, state in ((self.last, self._state), self._before or (-1, None)):
            if at == index:
                return state
        kept = max((at for at in self._kept if at <= index), default=None)
        if kept is None:
            return None
        state = self._kept[kept]
        for passed in sorted(passed for passed in self.found if kept < passed <= index):
            state, _ = self.tracker.step(state, self._frame_of(passed).pixels)
        return state

    def _change(self, frame: TimedFrame, state: TrackState, given: dict[int, Box]) -> None:
        """Takes a state on a frame; the boxes of targets that were given are certain."""
        index = frame.number - 1
        self._state, self.last = state, index
        before, numbers = self.found.get(index), live_numbers(state)
        boxes_xywh = np.asarray(state.boxes_xywh, np.float64)[live_rows(state)]
        found = Tracked.given(boxes_xywh, self.tracker.has_scores)
        found = self.found[index] = found._replace(numbers=numbers, frame=frame.number, time=frame.seconds)
        if found.scores is not None and found.lost is not None and before is not None:
            assert before.numbers is not None and before.scores is not None and before.lost is not None
            for row, number in enumerate(before.numbers.tolist()):
                if number not in given:
                    at = numbers == number
                    found.scores[at], found.lost[at] = before.scores[row], before.lost[row]
        self._changes[index] = self._changes.get(index, {}) | given
        self._keep(index)

    def _keep(self, index: int) -> None:
        assert self._state is not None
        self._kept[index] = self._state
        between = sorted(at for at in self._kept if at not in self._changes)
        if len(between) > MOST_STATES:
            self._every *= 2
            for at in between[::2]:
                del self._kept[at]


# The kinds whose queries lie in the search region, and so in the frame.
ON_FRAMES = tuple(kind for kind, (queries, _keys) in KINDS.items() if queries == "search")


def overlay_choices(config: MixFormerConfig, num_online_templates: int) -> dict[str, list[str]]:
    """The kinds and blocks of which there are overlays; none for models in which nothing mixes."""
    try:
        blocks = list(choose_blocks(config))
    except ConfigError:
        return {"kinds": [], "blocks": []}
    return {"kinds": [kind for kind in ON_FRAMES if num_online_templates or kind != "S-to-OT"], "blocks": blocks}


def overlay(following: Following, frame: TimedFrame, target: int, kind: str, block: str) -> dict[str, Any] | None:
    """What share of its attention each part of the search region gives to the target; None where there is none.

    `kind` and `block` are of `overlay_choices`; all blocks are computed at once, by one program.

    Returns:
        `x`, `y` and `side` of the search region in pixels of the frame; `levels`, rows of whole numbers up to 255, the
        `most` of which stands for 255.
    """
    tracker, index = following.tracker, frame.number - 1
    state, given_xywh = following.state_before(index), following.box_given(target, index)
    if state is None or given_xywh is None or target not in live_numbers(state):
        return None
    alone = target_alone(state, target)
    maps = attention_maps(tracker, alone, frame.pixels, template_box_xyxy(tracker, given_xywh))
    weights = maps.weights[kind][maps.blocks.index(block)]
    if weights is None:  # cross-attention blocks have no search to search
        return None
    levels = looking_at(weights, maps.views[KINDS[kind][1]].box_xyxy)
    most = max(float(levels.max()), 1e-12)
    x, y, w, h = np.asarray(alone.boxes_xywh, np.float64)[0].tolist()
    side = math.ceil(math.sqrt(w * h) * tracker.settings.search_factor)
    return {
        "target": target,
        "x": round(x + 0.5 * w - side * 0.5),
        "y": round(y + 0.5 * h - side * 0.5),
        "side": side,
        "levels": np.rint(255 * levels / most).astype(int).tolist(),
        "most": round(most, 4),
    }
