"""From boxes to masks: what a `Tracker` asks for the masks of its targets (`Tracker.with_masks`). They are an answer
beside the boxes, of which nothing returns to the tracker.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, UInt8

from mixformer_jax import DEFAULT_MASKS
from mixformer_jax.boxes import xywh_to_xyxy
from mixformer_jax.convert.alpha_refine import read_alpha_refine
from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.mask_decoder import MASK_DECODER_FORMAT, load_mask_decoder
from mixformer_jax.convert.torch_files import is_ours
from mixformer_jax.crops import box_in_stretched_crop, paste_map, stretched_crop, stretched_rectangle
from mixformer_jax.media.sources import Frame
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.masks import AlphaRefine, AlphaRefineConfig, MaskDecoderConfig, TokenMasks
from mixformer_jax.pixels import normalise
from mixformer_jax.typed_settings import CropFactor, InnerShare, TypedSettings

Boxes = Float64[np.ndarray, "n 4"]
Masks = Bool[np.ndarray, "n height width"]


@runtime_checkable
class Segmenter(Protocol):
    """Frame + boxes -> masks. What it computes depends on its variables and settings alone."""

    @property
    def variables(self) -> Any: ...

    @property
    def settings(self) -> TypedSettings: ...

    def start(self, frame: Frame, boxes_xywh: Boxes) -> Any:
        """What it remembers of targets that boxes mark on a frame: arrays with a row a target, or None."""
        ...

    def segment(self, targets: Any, frame: Frame, boxes_xywh: Boxes) -> Masks:
        """The masks of the targets, which a tracker found at these boxes, on a frame."""
        ...


@dataclasses.dataclass(frozen=True)
class MaskSettings(TypedSettings):
    """How masks are read off crops.

    Attributes:
        factor: sides of the crop over those of the box.
        threshold: probability above which a pixel is the target's: 0.6 in MixFormer's VOT2020 scripts, 0.65 in others.
    """

    section = "masks"

    factor: CropFactor = 2.0
    threshold: InnerShare = 0.6


class _CropSegmenter:
    """What both networks share: crops around the boxes in, maps of probabilities out, which are pasted into the frame.

    An empty mask stays empty: there is neither a fallback nor any morphology.
    """

    def __init__(self, crop_size: int, variables: Any, settings: MaskSettings, device: jax.Device | None) -> None:
        self.crop_size, self.settings = crop_size, settings
        self.variables = jax.device_put(variables, jax.devices()[0] if device is None else device)

    def segment(self, targets: Any, frame: Frame, boxes_xywh: Boxes) -> Masks:
        """The masks of the targets at these boxes; ValueError for boxes that cannot be cropped around."""
        maps = self.probabilities(targets, self.crops(frame, boxes_xywh))
        rectangles = [stretched_rectangle(box_xywh, self.settings.factor) for box_xywh in boxes_xywh]
        size = (frame.shape[0], frame.shape[1])
        pasted = [paste_map(each, rectangle, size) for each, rectangle in zip(maps, rectangles, strict=True)]
        return np.stack(pasted) > self.settings.threshold

    def crops(self, frame: Frame, boxes_xywh: Boxes) -> UInt8[np.ndarray, "n s s 3"]:
        """What the network sees of each target."""
        factor = self.settings.factor
        return np.stack([stretched_crop(frame, box_xywh, factor, self.crop_size) for box_xywh in boxes_xywh])

    def probabilities(self, targets: Any, crops: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, "n s s"]:
        """How probably each pixel of the crops is the target's."""
        raise NotImplementedError


class AlphaRefineSegmenter(_CropSegmenter):
    """Alpha-Refine behind a tracker, as in VOT2020: the template is that of the first frame, and never renewed."""

    def __init__(
        self,
        config: AlphaRefineConfig,
        variables: dict[str, Any],
        settings: MaskSettings = MaskSettings(),
        device: jax.Device | None = None,
    ) -> None:
        super().__init__(config.crop_size, variables, settings, device)
        self.config = config

    def start(self, frame: Frame, boxes_xywh: Boxes) -> Float[Array, "n p p c"]:
        """The targets' pooled features; ValueError for boxes that cannot be cropped around."""
        around = (self.settings.factor, self.crop_size)
        in_crops = np.stack([box_in_stretched_crop(box_xywh, box_xywh, *around) for box_xywh in boxes_xywh])
        return _encode(self.config, self.variables, self.crops(frame, boxes_xywh), xywh_to_xyxy(in_crops))

    def probabilities(
        self, targets: Float[Array, "n p p c"], crops: UInt8[np.ndarray, "n s s 3"]
    ) -> Float32[np.ndarray, "n s s"]:
        return np.asarray(_locate(self.config, self.variables, targets, crops))


class DecoderSegmenter(_CropSegmenter):
    """A mask decoder behind a tracker, any: it brings the backbone on which it was trained. It remembers nothing."""

    def __init__(
        self,
        config: MaskDecoderConfig,
        tracker: MixFormerConfig,
        variables: dict[str, Any],
        settings: MaskSettings = MaskSettings(),
        device: jax.Device | None = None,
    ) -> None:
        super().__init__(tracker.search_size, variables, settings, device)
        self.model = TokenMasks(tracker, config)

    def start(self, frame: Frame, boxes_xywh: Boxes) -> None:
        return None

    def probabilities(self, targets: None, crops: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, "n s s"]:
        return np.asarray(_decode(self.model, self.variables, crops))


@functools.partial(jax.jit, static_argnames="config")
def _encode(
    config: AlphaRefineConfig, variables: Any, crops: UInt8[Array, "n s s 3"], boxes_xyxy: Float[Array, "n 4"]
) -> Float[Array, "n p p c"]:
    kernel = AlphaRefine(config).apply(variables, normalise(crops), boxes_xyxy, method="encode_template")
    return cast(Array, kernel)


@functools.partial(jax.jit, static_argnames="config")
def _locate(
    config: AlphaRefineConfig, variables: Any, targets: Float[Array, "n p p c"], crops: UInt8[Array, "n s s 3"]
) -> Float[Array, "n s s"]:
    logits = AlphaRefine(config).apply(variables, targets, normalise(crops), method="segment")
    return jax.nn.sigmoid(cast(Array, logits))


@functools.partial(jax.jit, static_argnames="model")
def _decode(model: TokenMasks, variables: Any, crops: UInt8[Array, "n s s 3"]) -> Float[Array, "n s s"]:
    return jax.nn.sigmoid(cast(Array, model.apply(variables, normalise(crops))))


def load_segmenter(
    weights: str | Path = DEFAULT_MASKS,
    device: jax.Device | None = None,
    settings: MaskSettings = MaskSettings(),
) -> Segmenter:
    """The masks of a weights file: a mask decoder's, such as the embedded one's, or Alpha-Refine's, ours or an official
    checkpoint, which is converted in memory.

    Raises:
        WeightsError: no such file, one of another kind, or PyTorch is missing for it; a decoder's tracker is missing.
    """
    path = find_weights(weights)
    if is_ours(MASK_DECODER_FORMAT, path):
        decoder = load_mask_decoder(path)
        return DecoderSegmenter(decoder.config, decoder.tracker, decoder.variables, settings, device)
    found = read_alpha_refine(path)
    return AlphaRefineSegmenter(found.config, found.variables, settings, device)
