"""A whole sequence on the device: one program, one `lax.scan` over its frames."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.models.mixformer import MixFormer
from mixformer_jax.tracking.state import TrackPrediction, TrackState
from mixformer_jax.tracking.step import Variables, jit_static, start, step


@jit_static
def scan_frames(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    frames: UInt8[Array, "t H W 3"],
) -> tuple[TrackState, TrackPrediction]:
    """Goes on from a state over `t` frames; the prediction has them on a leading axis.

    For a video that does not fit on the device: call it again with the state that it returns.
    """
    return jax.lax.scan(lambda state, frame: step(model, settings, variables, state, frame), state, frames)


@jit_static
def track_sequence(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    frames: UInt8[Array, "t H W 3"],
    boxes_xywh: Float[Array, "n 4"],
) -> TrackPrediction:
    """Tracks `n` targets that `boxes_xywh` mark on the first of `t` frames, RGB; row i of the result is frame i.

    The first row is what was given: score 1, and NaN for `boxes_cxcywh`, as the model made none. A traced box cannot
    be refused: check it with `boxes.check_box_xywh` first.

    The boxes are those of the host loop up to float32 rounding. The host places crops in float64; on the rare frame
    where the two round to squares one pixel apart, boxes differ by a fraction of a pixel.
    """
    state = start(model, settings, variables, frames[0], boxes_xywh)
    _state, found = scan_frames(model, settings, variables, state, frames[1:])
    nobody = jnp.zeros(len(boxes_xywh), bool)
    given = TrackPrediction(
        boxes_xywh=state.boxes_xywh,
        boxes_cxcywh=jnp.full_like(state.boxes_xywh, jnp.nan),
        scores=None if found.scores is None else jnp.ones_like(found.scores, shape=nobody.shape),
        is_candidate=None if found.is_candidate is None else nobody,
        lost=None if found.lost is None else nobody,
    )
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), given, found)
