"""What a sample rendered on the device shows: pictures, their places in the crops, and the box; no pixels yet.

The device form of `sampling` and `synthetic`, for one sample. Each function draws one candidate of its source and says
whether it can serve, where the host raises UnusableSampleError; all of them return arrays of the same shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.labelled import MIN_SEEN
from mixformer_jax.data.pool.device_augment import DeviceLight, draw_light
from mixformer_jax.data.pool.device_pool import DevicePool, Folders
from mixformer_jax.data.pool.device_views import (
    DeviceView,
    box_outline,
    linear_map,
    seen_share,
    target_view,
    unpacked,
)
from mixformer_jax.data.pool.draws import Draws
from mixformer_jax.data.pool.synthetic import MIN_TEXTURE
from mixformer_jax.views import CropConfig

TEXTURE_GRID = 8
OTHER_DRAWS = 8  # for a cut-out of another photograph

Tree = TypeVar("Tree")


class Picture(NamedTuple):
    """A picture of the pool and its place in a crop; the arguments of `device_views.warp`."""

    image: Int[Array, "*stack"]
    matrix: Float[Array, "*stack 2 3"]
    finer: Int[Array, "*stack"]
    replicate: Bool[Array, "*stack"]


class Pasted(NamedTuple):
    """A cut-out to be pasted, if it is `shown`."""

    picture: Picture
    light: DeviceLight
    shown: Bool[Array, "*stack"]


class Draft(NamedTuple):
    """A candidate for a sample.

    Attributes:
        usable: whether it can serve.
        box_cxcywh: of the target in the search crop.
        template_base, search_base: what fills the crops; of the templates one for each slot.
        template_target: cut-outs on the templates; None where the mix has no pasted pairs.
        search_pasted: cut-outs on the search crop from the lowest to the highest, which is the target; or None.
        occluder: a cut-out over the target, unless it hides too much; or None.
        origin: what it shows: a clip's group, or a photograph.
        seen_width_height: of the picture in the search crop; 0 where all of the crop shows something.
        distractors_cxcywh: boxes of the other objects in the search crop; 0 where there are none. Or None.
    """

    usable: Bool[Array, ""]
    box_cxcywh: Float[Array, "4"]
    template_base: Picture
    search_base: Picture
    template_target: Pasted | None
    search_pasted: Pasted | None
    occluder: Pasted | None
    origin: Int[Array, ""]
    seen_width_height: Float[Array, "2"]
    distractors_cxcywh: Float[Array, "n 4"] | None


def video_draft(pool: DevicePool, config: DataConfig, draws: Draws, beside: Bool[Array, ""]) -> Draft:
    """Template, online templates and search from frames of one clip, see `sampling.draw_times`; `beside` the target,
    see `sampling.draw_beside`."""
    crops, augment = config.crops, config.augment
    clip = draws.entry(jnp.asarray(pool.clip_cumulative))
    template = pool.clip_first[clip] + draws.below(pool.clip_length[clip])
    first, last = pool.window[template]
    search = first + draws.below(jnp.maximum(last - 1 - first, 1))
    search = search + (search >= template)
    low, high = jnp.minimum(template, search), jnp.maximum(template, search)
    between = jnp.sort(low + draws.below(high + 1 - low, (crops.num_online_templates,)))
    frames = jnp.concatenate([template[None], jnp.where(template < search, between, between[::-1])])
    flip = draws.chance(augment.flip_probability)

    def view(frame: Array, factor: float, size: int, zoom: Array | float, offset_xy: Array | float) -> DeviceView:
        linear = linear_map(flip, aspect=jnp.exp(draws.signed(augment.aspect)))
        return target_view(box_outline(pool.box_xywh[frame]), linear, factor, size, zoom, offset_xy)

    templates = [
        _picture(frame, view(frame, crops.template_factor, crops.template_size, 1.0, 0.0).matrix) for frame in frames
    ]
    zoom, offset_xy = draw_placement(draws, crops)
    usable = last - first >= 2
    if config.positive_share is not None:
        offset_xy = jnp.where(beside, draw_beside(draws, crops), offset_xy)
    found = view(search, crops.search_factor, crops.search_size, zoom, offset_xy)
    width_height = pool.images.width_height[search, 0].astype(jnp.float32)
    if config.positive_share is None:
        usable &= serves(found.box_cxcywh, crops)
    else:
        is_seen = seen_share(found.matrix, crops.search_size, width_height) >= MIN_SEEN
        usable &= jnp.where(beside, is_seen, serves(found.box_cxcywh, crops))
    return Draft(
        usable=usable,
        box_cxcywh=found.box_cxcywh,
        template_base=_stacked(templates),
        search_base=_picture(search, found.matrix),
        origin=pool.clip_origin[clip],
        seen_width_height=width_height,
        **_nothing_pasted(config),
    )


def still_draft(pool: DevicePool, config: DataConfig, draws: Draws, beside: Bool[Array, ""]) -> Draft:
    """Two affine views of an annotated object in its own photograph."""
    target = _cutout(draws, pool.stills)
    return _picture_draft(
        pool, config, draws, pool.cutout_photo[target], pool.cutout_outline_xy[target], turn_search=True
    )


def region_draft(pool: DevicePool, config: DataConfig, draws: Draws, beside: Bool[Array, ""]) -> Draft:
    """The most textured of a few random boxes of any photograph."""
    settings = config.synthetic
    photo = pool.photos[draws.below(len(pool.photos))]
    width_height = pool.images.width_height[photo, 0].astype(jnp.float32)
    count = (settings.region_candidates,)
    low, high = settings.region_area
    area = jnp.exp(draws.uniform(math.log(low), math.log(high), count)) * width_height[0] * width_height[1]
    aspect = jnp.exp(draws.signed(settings.region_aspect, count))
    sides = jnp.stack([jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)], axis=1)
    sides = jnp.minimum(sides, 0.9 * width_height)
    boxes_xywh = jnp.concatenate([draws.uniform(shape=(*count, 2)) * (width_height - sides), sides], axis=1)
    texture = jax.vmap(lambda box_xywh: _texture(pool, photo, box_xywh))(boxes_xywh)
    best = jnp.argmax(texture)
    # The box of a rotated box is larger than what was chosen, so the search view does not turn.
    draft = _picture_draft(pool, config, draws, photo, box_outline(boxes_xywh[best]), turn_search=False)
    return draft._replace(usable=draft.usable & (texture[best] >= MIN_TEXTURE))


def pasted_draft(pool: DevicePool, config: DataConfig, draws: Draws, beside: Bool[Array, ""]) -> Draft:
    """A cut-out on photographs, deformed anew in every crop, among distractors and under an occluder."""
    crops, augment, settings = config.crops, config.augment, config.synthetic
    target = _cutout(draws, pool.pasted)
    image, outline_xy = pool.cutout_image[target], pool.cutout_pasted_outline_xy[target]
    flip = draws.chance(augment.flip_probability)
    light = _object_light(draws, augment)
    background = _draw_background(draws, pool)

    bases, targets = [], []
    for _ in range(crops.slots):
        linear = _deformation(draws, config, flip)
        view = target_view(outline_xy, linear, crops.template_factor, crops.template_size)
        # The template's crop covers this share of what a search crop covers.
        span = crops.template_factor / crops.search_factor
        bases.append(_behind(draws, pool, background, crops.template_size, span))
        targets.append(_pasted(draws, config, image, view.matrix, light))

    zoom, offset_xy = draw_placement(draws, crops)
    linear = _deformation(draws, config, flip)
    view = target_view(outline_xy, linear, crops.search_factor, crops.search_size, zoom, offset_xy)
    usable = serves(view.box_cxcywh, crops)
    is_same, other = draws.chance(settings.same_background), _draw_background(draws, pool)
    background = jax.tree.map(lambda a, b: jnp.where(is_same, a, b), background, other)
    base = _behind(draws, pool, background, crops.search_size, jnp.minimum(zoom, 1.0))

    layers, distractors = [], [jnp.zeros(4)]
    num_distractors = draws.below(settings.max_distractors + 1)
    for number in range(settings.max_distractors):
        centre_xy = draws.uniform(0, crops.search_size, (2,))
        layer, box_cxcywh, found = _other_object(draws, pool, config, target, view, centre_xy, draws.uniform(0.6, 1.6))
        shown = num_distractors > number
        layers.append(layer._replace(shown=shown))
        distractors.append(jnp.where(shown, box_cxcywh, 0.0))
        usable &= found | ~shown
    layers.append(_pasted(draws, config, image, view.matrix, light))
    centre_xy = (view.box_cxcywh[:2] + view.box_cxcywh[2:] * draws.signed(0.7, (2,))) * crops.search_size
    occluder, _box, found = _other_object(draws, pool, config, target, view, centre_xy, draws.uniform(0.5, 1.2))
    shown = draws.chance(settings.occluder)
    return Draft(
        usable=usable & (found | ~shown),
        box_cxcywh=view.box_cxcywh,
        template_base=_stacked(bases),
        search_base=base,
        template_target=_stacked(targets),
        search_pasted=_stacked(layers),
        occluder=occluder._replace(shown=shown),
        origin=pool.cutout_photo[target],
        seen_width_height=jnp.zeros(2),
        distractors_cxcywh=jnp.stack(distractors),
    )


DRAFTS: dict[str, Callable[[DevicePool, DataConfig, Draws, Bool[Array, ""]], Draft]] = {
    "video": video_draft,
    "still": still_draft,
    "pasted": pasted_draft,
    "region": region_draft,
}


def draw_placement(draws: Draws, crops: CropConfig) -> tuple[Float[Array, ""], Float[Array, "2"]]:
    """Zoom and offset of a search crop, see `views.draw_placement`."""
    zoom = jnp.exp(draws.normal((2,)).mean() * crops.scale_jitter)
    return jnp.clip(zoom, 1 / crops.max_zoom, crops.max_zoom), draws.signed(0.5 * crops.centre_jitter, (2,))


def draw_beside(draws: Draws, crops: CropConfig) -> Float[Array, "2"]:
    """Offset of a search crop that shows the target in part at most, see `sampling.draw_beside`."""
    distance = draws.uniform(1.0, 2.0) * crops.search_factor / 2
    along = jnp.where(draws.chance(0.5), distance, -distance)
    offset = jnp.stack([along, draws.signed(distance)])
    return jnp.where(draws.chance(0.5), offset, offset[::-1])


def serves(box_cxcywh: Float[Array, "4"], crops: CropConfig) -> Bool[Array, ""]:
    """Whether the target's centre is inside the search crop and its sides are long enough."""
    inside = ((box_cxcywh[:2] >= 0) & (box_cxcywh[:2] <= 1)).all()
    return inside & (box_cxcywh[2:].min() * crops.search_size >= crops.min_target_pixels)


def _picture_draft(
    pool: DevicePool,
    config: DataConfig,
    draws: Draws,
    photo: Int[Array, ""],
    outline_xy: Float[Array, "n 2"],
    turn_search: bool,
) -> Draft:
    crops, settings = config.crops, config.synthetic
    flip = draws.chance(config.augment.flip_probability)

    def deformation(turn: bool) -> Array:
        rotation = draws.signed(math.radians(settings.still_rotation_degrees) if turn else 0.0)
        return linear_map(flip, rotation, jnp.exp(draws.signed(settings.still_aspect)))

    def picture(matrix: Array) -> Picture:
        return _picture(photo, matrix, draws.chance(settings.finer))

    view = target_view(
        outline_xy, deformation(turn_search), crops.search_factor, crops.search_size, *draw_placement(draws, crops)
    )
    width_height = pool.images.width_height[photo, 0].astype(jnp.float32)
    seen = seen_share(view.matrix, crops.search_size, width_height)
    search = picture(view.matrix)
    templates = [
        picture(target_view(outline_xy, deformation(True), crops.template_factor, crops.template_size).matrix)
        for _ in range(crops.slots)
    ]
    return Draft(
        usable=serves(view.box_cxcywh, crops) & (seen >= settings.min_seen),
        box_cxcywh=view.box_cxcywh,
        template_base=_stacked(templates),
        search_base=search,
        origin=photo,
        seen_width_height=width_height,
        **_nothing_pasted(config),
    )


def _picture(
    image: Int[Array, ""], matrix: Float[Array, "2 3"], finer: Bool[Array, ""] | int = 0, replicate: bool = False
) -> Picture:
    return Picture(jnp.asarray(image, jnp.int32), matrix, jnp.asarray(finer, jnp.int32), jnp.asarray(replicate))


def _texture(pool: DevicePool, photo: Int[Array, ""], box_xywh: Float[Array, "4"]) -> Float[Array, ""]:
    """Deviation of the green channel on the coarsest level."""
    full, (width, height) = pool.images.width_height[photo, 0], pool.images.width_height[photo, -1]
    at = (jnp.arange(TEXTURE_GRID) + 0.5) / TEXTURE_GRID
    x = ((box_xywh[0] + at * box_xywh[2]) * (width / full[0])).astype(jnp.int32)[None]
    y = ((box_xywh[1] + at * box_xywh[3]) * (height / full[1])).astype(jnp.int32)[:, None]
    place = pool.images.offset[photo, -1] + jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
    return jnp.std(unpacked(pool.images.pixels[place])[..., 1])


def _cutout(draws: Draws, folders: Folders) -> Int[Array, ""]:
    folder = draws.entry(jnp.asarray(folders.cumulative))
    return folders.members[folders.first[folder] + draws.below(folders.size[folder])]


def _object_light(draws: Draws, augment: AugmentConfig) -> DeviceLight:
    return draw_light(draws, augment)._replace(saturation=jnp.zeros(()))


def _deformation(draws: Draws, config: DataConfig, flip: Bool[Array, ""]) -> Float[Array, "2 2"]:
    settings = config.synthetic
    u = draws.signed(1.0, (3,))
    rotation = u[0] * math.radians(settings.rotation_degrees)
    return linear_map(flip, rotation, jnp.exp(u[1] * settings.aspect), u[2] * settings.shear)


def _pasted(
    draws: Draws, config: DataConfig, image: Int[Array, ""], matrix: Float[Array, "2 3"], light: DeviceLight
) -> Pasted:
    return Pasted(_picture(image, matrix, draws.chance(config.synthetic.finer)), light, jnp.asarray(True))


def _other_object(
    draws: Draws,
    pool: DevicePool,
    config: DataConfig,
    target: Int[Array, ""],
    view: DeviceView,
    centre_xy: Float[Array, "2"],
    ratio: Float[Array, ""],
) -> tuple[Pasted, Float[Array, "4"], Bool[Array, ""]]:
    """A cut-out of another photograph at a point of the search crop, `ratio` times the target's size; its box; and
    whether there is one."""
    size, folders = config.crops.search_size, pool.pasted
    is_same_folder = draws.chance(config.synthetic.same_source_distractor)
    folder = jnp.searchsorted(
        folders.cumulative, draws.uniform(shape=(OTHER_DRAWS,)) * folders.cumulative[-1], side="right"
    )
    folder = jnp.minimum(folder, len(folders.cumulative) - 1)
    folder = jnp.where(is_same_folder, pool.cutout_folder[target], folder)
    others = folders.members[folders.first[folder] + draws.below(folders.size[folder], (OTHER_DRAWS,))]
    # Two objects of one photograph may be parts of one thing.
    is_other = pool.cutout_photo[others] != pool.cutout_photo[target]
    other = others[jnp.argmax(is_other)]
    target_side = jnp.sqrt(view.box_cxcywh[2] * view.box_cxcywh[3])
    deformation = _deformation(draws, config, draws.chance(0.5))
    outline_xy = pool.cutout_pasted_outline_xy[other]
    placed = target_view(outline_xy, deformation, 1 / (target_side * ratio), size)
    shift = centre_xy - size / 2
    matrix, box_cxcywh = placed.matrix.at[:, 2].add(shift), placed.box_cxcywh.at[:2].add(shift / size)
    layer = _pasted(draws, config, pool.cutout_image[other], matrix, _object_light(draws, config.augment))
    return layer, box_cxcywh, is_other.any()


class _Background(NamedTuple):
    """One photograph behind a sample, see `synthetic._Background`."""

    photo: Int[Array, ""]
    side: Float[Array, ""]  # photograph pixels across an unzoomed search crop
    centre_xy: Float[Array, "2"]
    flip: Bool[Array, ""]


def _draw_background(draws: Draws, pool: DevicePool) -> _Background:
    photo = pool.backgrounds[draws.below(len(pool.backgrounds))]
    extent = pool.images.width_height[photo, 0]
    side = extent.min() * draws.uniform(0.5, 1.0)
    return _Background(photo, side, draws.uniform(0.3, 0.7, (2,)) * extent, draws.chance(0.5))


def _behind(
    draws: Draws, pool: DevicePool, background: _Background, size: int, span: Float[Array, ""] | float
) -> Picture:
    """A view that is `span` of the search crop wide, shifted at random, wholly inside the photograph."""
    extent, side = pool.images.width_height[background.photo, 0], background.side * span
    centre = background.centre_xy + draws.signed(0.25, (2,)) * background.side
    centre = jnp.clip(centre, side / 2, extent - side / 2)
    linear = linear_map(background.flip) * (size / side)
    # Not a product with a dot, which some devices round.
    shift = size / 2 - linear[:, 0] * centre[0] - linear[:, 1] * centre[1]
    return _picture(background.photo, jnp.concatenate([linear, shift[:, None]], axis=1), replicate=True)


def _nothing_pasted(config: DataConfig) -> dict[str, Any]:
    """The cut-outs of a draft that has none: not shown, and cheap to look up."""
    if config.mix.pasted == 0:
        return dict.fromkeys(("template_target", "search_pasted", "occluder", "distractors_cxcywh"))
    still = jnp.zeros(())
    picture = _picture(jnp.zeros((), jnp.int32), jnp.eye(2, 3))
    light = DeviceLight(still, still, still, still, jnp.zeros(3))
    nothing = Pasted(picture, light, jnp.asarray(False))
    return {
        "template_target": _stacked([nothing] * config.crops.slots),
        "search_pasted": _stacked([nothing] * (config.synthetic.max_distractors + 1)),
        "occluder": nothing,
        "distractors_cxcywh": jnp.zeros((config.synthetic.max_distractors + 1, 4)),
    }


def _stacked(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
