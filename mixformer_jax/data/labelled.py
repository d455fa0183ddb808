"""Labelled samples of the pool for stage 2: boxes that hold the templates' target, and boxes that do not."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from mixformer_jax.boxes import cxcywh_to_xyxy, iou
from mixformer_jax.data.sampling import Drawn, Sample, VideoPairs
from mixformer_jax.views import CropConfig, UnusableSampleError, check_target, seen_share

Kind = Literal["target", "other", "elsewhere", "beside"]

MAX_TRIES = 50
# A negative box overlaps the target's by less.
MAX_IOU = 0.1
# The sides of a box that holds no object are those of the target times exp(uniform within +-this).
SIZE_JITTER = 0.2
# Share of a negative box, and of a crop beside the target, that shows the picture and not its black surroundings.
MIN_SEEN = 0.5


@runtime_checkable
class PoolPairs(Protocol):
    """A source of samples of the pool."""

    @property
    def origins(self) -> set[int]:
        """All `Drawn.origin` there are."""
        ...

    def __call__(self, rng: np.random.Generator) -> Sample:
        """One sample."""
        ...

    def draw(self, rng: np.random.Generator) -> Drawn:
        """One sample, and what it shows."""
        ...


class LabelledPairs:
    """Samples of one source with a `label`: 1 for a share `positive_share`, which are as without labels.

    The others have label 0 (the paper, section 3.5, wants negative samples and says no more of them), half of them
    `other`: templates of one draw, search and box of another one from another sequence, group of sequences or
    photograph. In the other half the search is the pair's own and the box is where the target is not (IoU below 0.1):
    on a distractor where there is one, else anywhere, of the target's size up to a jitter (`elsewhere`). Half of those
    of video pairs are cut `beside` the target, which is then at most partly in view.
    """

    def __init__(self, name: str, source: PoolPairs, crops: CropConfig, positive_share: float) -> None:
        if len(source.origins) < 2:
            raise ValueError(
                f"data.positive_share asks for negative samples, and the source {name!r} of the pool has targets of "
                "one sequence, group of sequences or photograph alone; they show two, so give it more (data.include "
                "and data.exclude say which sequences train and which validate), or set its weight in data.mix to 0"
            )
        self.source, self.crops, self.positive_share = source, crops, positive_share

    def draw_kind(self, rng: np.random.Generator) -> Kind:
        """What the box of a sample holds."""
        if rng.random() < self.positive_share:
            return "target"
        if rng.random() < 0.5:
            return "other"
        return "beside" if isinstance(self.source, VideoPairs) and rng.random() < 0.5 else "elsewhere"

    def draw(self, rng: np.random.Generator, kind: Kind) -> Sample:
        """A sample of this kind: that of the source and label float32 [].

        Raises:
            UnusableSampleError: what was drawn does not serve.
        """
        if kind == "beside":
            assert isinstance(self.source, VideoPairs)
            drawn = self.source.draw(rng, beside=True)
        else:
            drawn = self.source.draw(rng)
        sample = drawn.sample
        if kind == "other":
            other = self._draw_other(rng, drawn).sample
            sample = sample | {"search": other["search"], "box_cxcywh": other["box_cxcywh"]}
        elif kind != "target":
            if kind == "beside" and _seen(drawn, np.array([0.5, 0.5, 1.0, 1.0]), self.crops) < MIN_SEEN:
                raise UnusableSampleError("a crop beside the target lies outside the frame")
            sample = sample | {"box_cxcywh": self._draw_box(rng, drawn)}
        return sample | {"label": np.array(kind == "target", np.float32)}

    def _draw_other(self, rng: np.random.Generator, drawn: Drawn) -> Drawn:
        for _ in range(MAX_TRIES):
            other = self.source.draw(rng)
            if other.origin != drawn.origin:
                return other
        raise UnusableSampleError(f"{MAX_TRIES} draws, and none of another sequence, group or photograph")

    def _draw_box(self, rng: np.random.Generator, drawn: Drawn) -> Float32[np.ndarray, "4"]:
        """A box where the target is not: its centre in the crop, its IoU with the target's box below `MAX_IOU`."""
        target = drawn.sample["box_cxcywh"]
        objects = [box for box in drawn.distractors_cxcywh if self._serves(box, drawn)]
        if objects:
            return objects[int(rng.integers(len(objects)))]
        for _ in range(MAX_TRIES):
            sides = target[2:] * np.exp(rng.uniform(-SIZE_JITTER, SIZE_JITTER, 2))
            box = np.concatenate([rng.random(2), sides]).astype(np.float32)
            if self._serves(box, drawn):
                return box
        raise UnusableSampleError("no place in the search crop for a box beside the target's")

    def _serves(self, box_cxcywh: Float32[np.ndarray, "4"], drawn: Drawn) -> bool:
        try:
            check_target(box_cxcywh, self.crops)
        except UnusableSampleError:
            return False
        overlap = float(iou(cxcywh_to_xyxy(box_cxcywh), cxcywh_to_xyxy(drawn.sample["box_cxcywh"])))
        return overlap < MAX_IOU and _seen(drawn, box_cxcywh, self.crops) >= MIN_SEEN


def _seen(drawn: Drawn, box_cxcywh: np.ndarray, crops: CropConfig) -> float:
    """Share of a box that shows the source image."""
    if drawn.width_height is None:
        return 1.0
    # The map to a crop that is the box, as wide and high as 1.
    matrix = drawn.matrix / crops.search_size
    matrix[:, 2] -= box_cxcywh[:2] - box_cxcywh[2:] / 2
    return seen_share(matrix / box_cxcywh[2:, None], 1, drawn.width_height)
