"""What a tracker knows between two frames, as a pytree."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int32, UInt8

from mixformer_jax.models.backbone import TemplateCache


class TrackState(NamedTuple):
    """State of `n` targets of one video, all on the leading axis.

    Attributes:
        boxes_xywh: boxes on the last frame, pixels.
        templates: crops in slots: the initial template, then the online templates.
        filled: which slots hold a template; slot 0 and, where there is one, slot 1 always do.
        cache: the templates' keys and values, encoded when a template changes.
        frame_index: frames tracked since the first.
        num_refreshes: online templates taken so far.
    """

    boxes_xywh: Float[Array, "n 4"]
    templates: UInt8[Array, "n slots T T 3"]
    filled: Bool[Array, "n slots"]
    cache: TemplateCache
    frame_index: Int32[Array, ""]
    num_refreshes: Int32[Array, ""]


class TrackPrediction(NamedTuple):
    """Where `n` targets are on one frame.

    Attributes:
        boxes_xywh: pixels, clipped to the frame.
        boxes_cxcywh: the same, as the model gave them: normalised to the search crops, not clipped.
        scores: confidence in [0, 1]; None for models without a score prediction module.
    """

    boxes_xywh: Float[Array, "n 4"]
    boxes_cxcywh: Float[Array, "n 4"]
    scores: Float[Array, " n"] | None
