"""What a tracker knows between two frames, as a pytree, and what it says about one."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8

from mixformer_jax.models.backbone import TemplateCache


class ScoreMemory(NamedTuple):
    """What past scores have left behind, for models with a score prediction module.

    Attributes:
        best: the best score since the last renewal of templates, decayed; -1 before the first candidate.
        candidates: the crops that were scored so, or the initial templates.
        lost: whether the targets count as lost.
        streak: frames in a row that spoke against `lost`.
    """

    best: Float[Array, " n"]
    candidates: UInt8[Array, "n T T 3"]
    lost: Bool[Array, " n"]
    streak: Int32[Array, " n"]


class TrackState(NamedTuple):
    """State of `n` targets of one video, all on the leading axis.

    Attributes:
        boxes_xywh: boxes on the last frame, pixels.
        templates: crops in slots: the initial template, then the online templates.
        filled: which slots hold a template; slot 0 and, where there is one, slot 1 always do.
        cache: what search regions need of the templates, encoded when a template changes. None for models whose
            templates have to be encoded with every search region.
        memory: of the scores; None for models without a score prediction module.
        clip_margins: pixels by which each box must reach into the frame; see `TrackerConfig`.
        frame_index: frames tracked since the first.
        num_refreshes: online templates taken so far.
    """

    boxes_xywh: Float[Array, "n 4"]
    templates: UInt8[Array, "n slots T T 3"]
    filled: Bool[Array, "n slots"]
    cache: TemplateCache | None
    memory: ScoreMemory | None
    clip_margins: Float[Array, " n"]
    frame_index: Int32[Array, ""]
    num_refreshes: Int32[Array, ""]


class TrackPrediction(NamedTuple):
    """Where `n` targets are on one frame; the last three are None for models without a score prediction module.

    Attributes:
        boxes_xywh: pixels, clipped to the frame.
        boxes_cxcywh: the same, as the model gave them: normalised to the search crops, not clipped.
        scores: confidence in [0, 1].
        is_candidate: whether the crop around the box is the best candidate for an online template so far.
        lost: whether the target counts as lost (not in the paper).
    """

    boxes_xywh: Float[Array, "*t n 4"]
    boxes_cxcywh: Float[Array, "*t n 4"]
    scores: Float[Array, "*t n"] | None
    is_candidate: Bool[Array, "*t n"] | None
    lost: Bool[Array, "*t n"] | None


class Tracked(NamedTuple):
    """The targets on one frame, on the host, in the order in which their boxes were given.

    `box_xywh`, `score` and `is_lost` are for those who follow one target.

    Attributes:
        boxes_xywh: pixels, clipped to the frame.
        scores: confidence in [0, 1]; None for models without a score prediction module.
        lost: whether the target counts as lost; None as for `scores`. Not in the paper; changes no box.
    """

    boxes_xywh: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"] | None
    lost: Bool[np.ndarray, " n"] | None

    @property
    def box_xywh(self) -> Float[np.ndarray, "4"]:
        """The box of the only target.

        Raises:
            ValueError: there are several.
        """
        self._check_single("box_xywh", "boxes_xywh")
        return self.boxes_xywh[0]

    @property
    def score(self) -> float | None:
        """The score of the only target.

        Raises:
            ValueError: there are several.
        """
        self._check_single("score", "scores")
        return None if self.scores is None else float(self.scores[0])

    @property
    def is_lost(self) -> bool | None:
        """Whether the only target counts as lost.

        Raises:
            ValueError: there are several.
        """
        self._check_single("is_lost", "lost")
        return None if self.lost is None else bool(self.lost[0])

    def _check_single(self, name: str, instead: str) -> None:
        if len(self.boxes_xywh) != 1:
            raise ValueError(f"{name} is for a single target and there are {len(self.boxes_xywh)}; use {instead}")
