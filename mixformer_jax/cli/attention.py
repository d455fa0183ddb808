"""For `mixformer attention`: the maps of the paper's Figs. 8 and 9 on a sheet, kinds of attention by blocks.

Over the keys (the default) a map shows where the target's tokens look: their weights, averaged, on the crop whose
tokens they ask. Over the queries it shows who looks at the target: what share of its attention each position gives to
the target's tokens, together. The paper does not say which it draws; its remarks on distractors in the search region
(section 4.3) are about the second.

Beside the picture lies an `.npz` with what it was made of, for figures of one's own:

    S-to-T/B5             float32 [query rows, query columns, key rows, key columns], one array a kind and block
    pixels/search         the crop, uint8 RGB; also `template` and, where there is one, `online`
    box_xyxy/search       the target's box in it, normalised
    meta                  JSON: model, source, frame, blocks, kinds with the crops of their queries and keys, score
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from mixformer_jax.boxes import check_box_xywh
from mixformer_jax.files import whole_file
from mixformer_jax.media.images import RIM, SourceError, draw_box, write_image
from mixformer_jax.media.video import FrameSource, prepare_output
from mixformer_jax.tracking.attention_maps import (
    KINDS,
    MOST_BLOCKS,
    AttentionMaps,
    View,
    attention_maps,
    choose_blocks,
    looked_at,
    looking_at,
    template_box_xyxy,
    token_mask,
)
from mixformer_jax.tracking.tracker import Tracker

Over = Literal["keys", "queries"]
Picture = UInt8[np.ndarray, "_height _width 3"]

_NAMES = {"template": "template", "online": "online template", "search": "search"}
_EXPLAINED = {
    "keys": (
        "Where the tokens marked by dots look: their attention, averaged over them and over the heads, on the crop of "
        "the keys.",
        "Below each map: its maximum, and its sum, the share of all their attention that goes to this crop.",
    ),
    "queries": (
        "Who looks at the tokens marked by dots: the share of its attention that each position gives to them together, "
        "averaged over the heads.",
        "Below each map: its maximum.",
    ),
}
_CELL, _GAP, _LABEL, _LINE = 144, 8, 132, 18  # pixels
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Sheet(NamedTuple):
    """The files of one sheet, and what they show."""

    picture: Path
    arrays: Path
    maps: AttentionMaps


def attention_sheet(
    tracker: Tracker,
    source: FrameSource,
    box_xywh: np.ndarray | Sequence[float],
    frame_number: int,
    folder: str | Path,
    blocks: Sequence[str] | None = None,
    over: Over = "queries",
    progress: bool = False,
) -> Sheet:
    """Tracks up to a frame and leaves its attention in a folder, as NAME_frameN_attention.png and .npz.

    `frame_number` counts from 1; from 2 on, as the first frame is not searched. `blocks` are names as on the sheet, or
    `["all"]`; None for a choice, see `choose_blocks`. Maps are drawn on the crop of the keys, or of the queries
    (`over`).

    Raises ValueError for an unusable box, SourceError for a frame before the second or beyond the source's end,
    ConfigError as `choose_blocks`, OutputError where the folder cannot be written.
    """
    if frame_number < 2:
        raise SourceError(
            f"frame {frame_number} has no attention to show: in the first frame the target is given, and nothing is "
            "searched; expected a frame from 2 on"
        )
    choose_blocks(tracker.config, blocks)
    picture = prepare_output(Path(folder) / f"{source.name}_frame{frame_number}_attention.png")
    arrays = picture.with_suffix(".npz")
    box = check_box_xywh(box_xywh, source.size)
    state, count = None, 0
    first = itertools.islice(source, frame_number)
    with tqdm(first, total=frame_number, unit=" frames", desc=source.name, disable=not progress or None) as frames:
        for count, frame in enumerate(frames, 1):
            if state is None:
                state = tracker.start(frame, box)
            elif count < frame_number:
                state = tracker.step(state, frame)[0]
    if count < frame_number or state is None:
        raise SourceError(f"{source.name} ends after frame {count}; frame {frame_number} was asked for")
    maps = attention_maps(tracker, state, frame, template_box_xyxy(tracker, box), blocks)
    title = f"{tracker.config.name}    {source.name}    frame {frame_number}"
    if maps.score is not None:
        title += f"    score {maps.score:.2f}"
    write_image(picture, draw_sheet(maps, title, over))
    about = {"model": tracker.config.name, "source": source.name, "frame": frame_number}
    with whole_file(arrays) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **_arrays(maps, about))
    return Sheet(picture, arrays, maps)


def draw_sheet(maps: AttentionMaps, title: str, over: Over = "queries") -> Picture:
    """Maps as a picture, each with colours of its own, from 0 to its maximum, which stands below it; blocks beyond
    `MOST_BLOCKS` go into bands below each other."""
    count = len(maps.blocks)
    bands = math.ceil(count / MOST_BLOCKS)
    per_band = math.ceil(count / bands)
    band_height = _LINE + _GAP + len(maps.weights) * (_CELL + _LINE + _GAP)
    top = 4 * _LINE
    header = [(title, 0.55), *((text, 0.42) for text in _EXPLAINED[over])]
    widths = [cv2.getTextSize(text, _FONT, scale, 1)[0][0] + 2 * _GAP for text, scale in header]
    width = max(_LABEL + (2 + per_band) * (_CELL + _GAP), *widths)
    sheet = np.full((top + bands * band_height + 2 * _LINE, width, 3), 255, np.uint8)
    for line, (text, scale) in enumerate(header, 1):
        _write(sheet, (_GAP, line * _LINE + 4), text, scale)
    for band in range(bands):
        chosen = range(band * per_band, min(count, (band + 1) * per_band))
        _draw_band(sheet, top + band * band_height, maps, chosen, over)
    _draw_scale(sheet, top + bands * band_height)
    return sheet


def _draw_band(sheet: Picture, top: int, maps: AttentionMaps, chosen: range, over: Over) -> None:
    step = _CELL + _GAP
    heads = ["queries", "keys", *(maps.blocks[index] for index in chosen)]
    for column, name in enumerate(heads):
        _write(sheet, (_LABEL + column * step, top + _LINE), name, 0.45)
    for row, (kind, weights) in enumerate(maps.weights.items()):
        y = top + _LINE + _GAP + row * (_CELL + _LINE + _GAP)
        asking, asked = KINDS[kind]
        queries, keys = maps.views[asking], maps.views[asked]
        below = y + _CELL + _LINE - 5
        for line, (text, size) in enumerate(((kind, 0.5), (_NAMES[asking], 0.4), (f"to {_NAMES[asked]}", 0.4))):
            _write(sheet, (_GAP, y + _CELL // 2 + (line - 1) * _LINE), text, size)
        # Stages differ in their tokens: the dots are those of the last block.
        shapes = [array.shape for array in weights[chosen.start : chosen.stop] if array is not None]
        side = shapes[-1][0 if over == "keys" else 2] if shapes else 0
        marked = (side, 0) if over == "keys" else (0, side)
        for column, (view, side) in enumerate(zip((queries, keys), marked, strict=True)):
            x = _LABEL + column * step
            _paste(sheet, (x, y), _marked(view, side))
            _write(sheet, (x, below), view.caption, 0.4)
        for column, index in enumerate(chosen, 2):
            x, array = _LABEL + column * step, weights[index]
            if array is None:
                _write(sheet, (x + 4, y + _CELL // 2), "none in this block", 0.4)
                continue
            if over == "keys":
                heat, view = looked_at(array, queries.box_xyxy), keys
            else:
                heat, view = looking_at(array, keys.box_xyxy), queries
            _paste(sheet, (x, y), _overlay(heat, view))
            total = f"  sum {heat.sum():.2f}" if over == "keys" else ""
            _write(sheet, (x, below), f"max {heat.max():.3f}{total}", 0.4)


def _draw_scale(sheet: Picture, top: int) -> None:
    levels = np.tile(np.linspace(0, 1, 256), (_LINE - 4, 1))
    grey = np.full((*levels.shape, 3), 128, np.uint8)
    _write(sheet, (_LABEL, top + _LINE), "0", 0.42)
    _paste(sheet, (_LABEL + 14, top + 6), _blend(levels, grey))
    _write(sheet, (_LABEL + 14 + 256 + 6, top + _LINE), "maximum of the map", 0.42)


def _marked(view: View, side: int) -> Picture:
    """A crop with the target's box, and a dot on each of the tokens in it; `side` tokens a side, 0 for no dots."""
    x1, y1, x2, y2 = view.box_xyxy * _CELL
    picture = draw_box(_resized(view), np.array([x1, y1, x2 - x1, y2 - y1]), thickness=1)
    if side:
        radius = max(1, min(2, _CELL // side // 4))
        for row, column in np.argwhere(token_mask(side, view.box_xyxy)):
            centre = (round((column + 0.5) * _CELL / side), round((row + 0.5) * _CELL / side))
            cv2.circle(picture, centre, radius + 1, RIM, cv2.FILLED, cv2.LINE_AA)
            cv2.circle(picture, centre, radius, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
    return picture


def _overlay(heat: Float[np.ndarray, "side side"], view: View) -> Picture:
    """A map over its crop in grey, one square a token, with the target's box as a thin line."""
    levels = cv2.resize(heat / max(float(heat.max()), 1e-12), (_CELL, _CELL), interpolation=cv2.INTER_NEAREST)
    grey = cv2.cvtColor(cv2.cvtColor(_resized(view), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = _blend(levels, grey)
    x1, y1, x2, y2 = (round(float(value)) for value in np.clip(view.box_xyxy, -1, 2) * _CELL)
    cv2.rectangle(picture, (x1, y1), (x2, y2), (255, 255, 255), 1)
    return picture


def _blend(levels: Float[np.ndarray, "height width"], grey: Picture) -> Picture:
    """Colours for levels in [0, 1]: the higher, the less of the picture below is seen."""
    bytes_ = np.rint(255 * levels).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(bytes_, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    opacity = (0.35 + 0.5 * levels)[..., None]
    return np.rint(opacity * colours + (1 - opacity) * grey).astype(np.uint8)


def _resized(view: View) -> Picture:
    interpolation = cv2.INTER_AREA if len(view.pixels) > _CELL else cv2.INTER_CUBIC
    return cv2.resize(view.pixels, (_CELL, _CELL), interpolation=interpolation)


def _write(sheet: Picture, corner: tuple[int, int], text: str, scale: float) -> None:
    cv2.putText(sheet, text, corner, _FONT, scale, RIM, 1, cv2.LINE_AA)


def _paste(sheet: Picture, corner: tuple[int, int], picture: Picture) -> None:
    x, y = corner
    sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture


def _arrays(maps: AttentionMaps, about: Mapping[str, Any]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for kind, weights in maps.weights.items():
        found = zip(maps.blocks, weights, strict=True)
        arrays |= {f"{kind}/{block}": array for block, array in found if array is not None}
    for name, view in maps.views.items():
        arrays[f"pixels/{name}"], arrays[f"box_xyxy/{name}"] = view.pixels, view.box_xyxy
    kinds = {kind: {"queries": KINDS[kind][0], "keys": KINDS[kind][1]} for kind in maps.weights}
    arrays["meta"] = np.array(json.dumps({**about, "blocks": maps.blocks, "kinds": kinds, "score": maps.score}))
    return arrays
