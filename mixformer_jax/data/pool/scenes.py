"""What a sample of the pool shows: pictures, their places in the crops, and the box; no pixels yet.
These are the distributions of both renderers: drawn one by one on the host, or as one traced function on the device, by
the `Random` that is passed. A pool is a `tables.HostPool` or a `device_pixels.DevicePool`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mixformer_jax.boxes import cxcywh_to_xyxy, iou
from mixformer_jax.data.augment import Light, Random, draw_light, draw_placement
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pool.pool import Folders, Tables
from mixformer_jax.views import CENTRED, CropConfig, Placement, box_outline, map_points, target_view

MIN_TEXTURE = 8.0  # deviation of a region in grey levels; sky and walls have less, and nothing to recognise
MAX_IOU = 0.1  # a negative box overlaps the target's by less
SIZE_JITTER = 0.2  # the sides of a box that holds no object: the target's times exp(uniform within +-this)
MIN_SEEN = 0.5  # share of a negative box, and of a crop beside the target, inside the picture
# How often on the host, one after the other, and on the device, at once:
OTHER_CUTOUTS, OTHER_SCENES, OTHER_BOXES = (8, 8), (50, 4), (50, 32)

# What the box of a labelled sample holds (the paper's section 3.5 wants negative samples and says no more of them): the
# templates' target; the target of another sequence, group of sequences or photograph; a distractor or nothing, where
# the target is not; or nothing, in a crop that shows the target in part at most.
KINDS = TARGET, OTHER, ELSEWHERE, BESIDE = range(4)


class Picture(NamedTuple):
    """A picture of the pool and its place in a crop; the arguments of `warp`."""

    image: Any
    matrix: Any  # [2, 3]
    finer: Any = False
    replicate: Any = False


class Pasted(NamedTuple):
    """A cut-out to be pasted, if it is `shown`."""

    picture: Picture
    light: Light
    shown: Any = True


class Scene(NamedTuple):
    """A sample without its pixels. Several of a kind are a list on the host, and stacked on the device."""

    box_cxcywh: Any  # of the target in the search crop
    template_base: Any  # what fills the templates, one for each slot
    search_base: Picture  # what fills the search crop
    origin: Any  # what it shows: a clip's group, or a photograph
    extent: Any  # width and height of the picture in the search crop; 0 where all of the crop shows something
    template_target: Any = None  # cut-outs on the templates
    search_pasted: Any = None  # cut-outs on the search crop from the lowest to the highest, which is the target
    occluder: Any = None  # at most one cut-out over the target, left out if it hides too much
    distractors_cxcywh: Any = None  # boxes of the other objects in the search crop


def video_scene(random: Random, pool: Any, config: DataConfig, beside: Any) -> Scene:
    """Template, online templates and search from frames of one clip; `beside`: the target's centre is outside the
    search crop, by up to half of its side."""
    crops, geometry = config.crops, random.geometry
    clip = random.entry(pool.tables.clip_cumulative)
    frames, search = draw_clip_frames(random, pool.tables, clip, crops.num_online_templates)
    flip = random.chance(config.augment.flip_probability)

    def view(frame: Any, factor: float, size: int, place: Callable[[], Placement] = lambda: CENTRED) -> Any:
        linear = geometry.linear_map(flip, aspect=config.augment.draw_aspect(random))
        return target_view(box_outline(pool.tables.box_xywh[frame]), linear, factor, size, place())

    templates = [Picture(frame, view(frame, crops.template_factor, crops.template_size).matrix) for frame in frames]

    def place() -> Placement:
        placement = draw_placement(random, crops)
        return random.choose(beside, lambda: _draw_beside(random, placement, crops.search_factor), lambda: placement)

    found = view(search, crops.search_factor, crops.search_size, place)
    random.require(random.xp.logical_or(beside, _serves(random, found.box_cxcywh, crops)), "target not in the crop")
    base = Picture(search, found.matrix)
    origin, extent = pool.tables.clip_origin[clip], pool.extent(search)
    scene = Scene(found.box_cxcywh, random.stack(templates), base, origin, extent)
    for _ in random.repeat(beside, 1):
        seen = _seen_share(random, scene, random.xp.array([0.5, 0.5, 1.0, 1.0]), crops)
        random.require(seen >= MIN_SEEN, "too little of a crop beside the target inside the frame")
    return scene


def still_scene(random: Random, pool: Any, config: DataConfig, beside: Any) -> Scene:
    """Two affine views of an annotated object in its own photograph."""
    target = _draw_cutout(random, pool.tables.stills)
    photo = pool.tables.cutout_photo[target]
    return _photo_scene(random, pool, config, photo, pool.outline_xy[target], turn_search=True)


def region_scene(random: Random, pool: Any, config: DataConfig, beside: Any) -> Scene:
    """The most textured of a few random boxes of any photograph: no annotation at all."""
    xp, settings = random.xp, config.synthetic
    photo = pool.tables.photos[random.below(len(pool.tables.photos))]
    width, height = pool.extent(photo)
    low, high = (math.log(share) for share in settings.region_area)
    u = random.uniform(shape=(settings.region_candidates, 4))
    area = random.exp(low + (high - low) * u[:, 0]) * height * width
    aspect = random.exp((2 * u[:, 1] - 1) * settings.region_aspect)
    w, h = xp.minimum(xp.sqrt(area * aspect), 0.9 * width), xp.minimum(xp.sqrt(area / aspect), 0.9 * height)
    boxes_xywh = xp.stack([(width - w) * u[:, 2], (height - h) * u[:, 3], w, h], axis=1)
    texture = xp.stack([pool.texture(photo, box_xywh) for box_xywh in boxes_xywh])
    best = xp.argmax(texture)
    random.require(texture[best] >= MIN_TEXTURE, "flat region")
    # The box of a rotated box is larger than what was chosen, so the search view does not turn.
    outline = box_outline(boxes_xywh[best])
    return _photo_scene(random, pool, config, photo, outline, turn_search=False)


def pasted_scene(random: Random, pool: Any, config: DataConfig, beside: Any) -> Scene:
    """A cut-out on photographs, deformed anew in every crop, among distractors and under an occluder.
    The box bounds the transformed outline of the mask: exact, and whole even where an occluder lies over the object."""
    xp, crops, settings, tables = random.xp, config.crops, config.synthetic, pool.tables
    target = _draw_cutout(random, tables.pasted)
    image, outline = tables.cutout_image[target], pool.pasted_outline_xy[target]
    flip = random.chance(config.augment.flip_probability)
    # One light on the object for the whole sample: its colours vary from sample to sample.
    light = _object_light(random, config)
    background = _draw_background(random, pool)

    def view(factor: float, size: int, placement: Placement = CENTRED) -> Any:
        return target_view(outline, _deformation(random, config, flip), factor, size, placement)

    bases, targets = [], []
    for _ in range(crops.slots):
        matrix = view(crops.template_factor, crops.template_size).matrix
        # The template's crop covers this share of what a search crop covers.
        share = crops.template_factor / crops.search_factor
        bases.append(_behind(random, pool, background, crops.template_size, share))
        targets.append(Pasted(_finer(random, config, image, matrix), light))

    placement = draw_placement(random, crops)
    found = view(crops.search_factor, crops.search_size, placement)
    random.require(_serves(random, found.box_cxcywh, crops), "target not in the crop")
    is_same = random.chance(settings.same_background)
    background = random.choose(is_same, lambda: background, lambda: _draw_background(random, pool))
    base = _behind(random, pool, background, crops.search_size, xp.minimum(placement.zoom, 1.0))

    layers, distractors = [], []
    for shown in random.repeat(random.below(settings.max_distractors + 1), settings.max_distractors):
        other = _draw_other(random, tables, config, target)
        centre_xy = random.uniform(shape=(2,)) * crops.search_size
        ratio = random.uniform(0.6, 1.6)
        layer, box_cxcywh = _placed(random, pool, config, other, found.box_cxcywh, centre_xy, ratio)
        layers.append(layer._replace(shown=shown))
        distractors.append(xp.where(shown, box_cxcywh, 0.0).astype(np.float32))
    layers.append(Pasted(_finer(random, config, image, found.matrix), light))

    occluders = []
    for shown in random.repeat(random.chance(settings.occluder), 1):
        offset_xy = found.box_cxcywh[2:] * random.uniform(-0.7, 0.7, (2,))
        centre_xy = (found.box_cxcywh[:2] + offset_xy) * crops.search_size
        other = _draw_other(random, tables, config, target)
        ratio = random.uniform(0.5, 1.2)
        layer, _ = _placed(random, pool, config, other, found.box_cxcywh, centre_xy, ratio)
        occluders.append(layer._replace(shown=shown))
    return Scene(
        box_cxcywh=found.box_cxcywh,
        template_base=random.stack(bases),
        search_base=base,
        origin=tables.cutout_photo[target],
        extent=xp.zeros(2),
        template_target=random.stack(targets),
        search_pasted=random.stack(layers),
        occluder=random.stack(occluders),
        distractors_cxcywh=random.stack(distractors),
    )


DrawScene = Callable[[Random, Any, DataConfig, Any], Scene]
SCENES: dict[str, DrawScene] = {
    "video": video_scene,
    "still": still_scene,
    "pasted": pasted_scene,
    "region": region_scene,
}


def sources_of(config: DataConfig) -> list[str]:
    """The sources of the mix, by name."""
    return [name for name in SCENES if getattr(config.mix, name) > 0]


def draw_kind(random: Random, positive_share: float | None, is_video: Any) -> Any:
    """What the box of a sample shall hold, one of `KINDS`; without a share the target.
    It is drawn once: what is hard to place is drawn again and stays in its share."""
    if positive_share is None:
        return TARGET

    def in_own_crop() -> Any:
        return random.choose(
            is_video, lambda: random.choose(random.chance(0.5), lambda: BESIDE, lambda: ELSEWHERE), lambda: ELSEWHERE
        )

    def negative() -> Any:
        return random.choose(random.chance(0.5), lambda: OTHER, in_own_crop)

    return random.choose(random.chance(positive_share), lambda: TARGET, negative)


def draw_labelled(random: Random, draw: Callable[[Random, Any], Scene], kind: Any, config: DataConfig) -> Scene:
    """A scene of the source `draw`, its box as the kind says."""
    if config.positive_share is None:
        return draw(random, False)
    scene = draw(random, kind == BESIDE)

    def with_other() -> Scene:
        other = random.first(
            lambda own: draw(own, False),
            lambda other: other.origin != scene.origin,
            OTHER_SCENES,
            "scene of another sequence, group or photograph",
        )
        templates = ("template_base", "template_target", "origin")
        return other._replace(**{name: getattr(scene, name) for name in templates})

    def own_box() -> Any:
        return random.choose(
            kind == TARGET, lambda: scene.box_cxcywh, lambda: _draw_negative_box(random, scene, config.crops)
        )

    return random.choose(kind == OTHER, with_other, lambda: scene._replace(box_cxcywh=own_box()))


def draw_clip_frames(random: Random, tables: Tables, clip: Any, num_between: int) -> tuple[Any, Any]:
    """Frames of template and online templates, and of the search.

    The official three-frame scheme: template and search are at most `max_interval` frames apart, the online templates
    lie between them in time order. Time runs backwards half of the time.
    """
    xp = random.xp
    template = tables.clip_first[clip] + random.below(tables.clip_length[clip])
    first, last = tables.window[template]
    random.require(last - first >= 2, "no second frame within max_interval")
    search = first + random.below(xp.maximum(last - 1 - first, 1))
    search = search + (search >= template)  # any frame but the template's own
    low, high = xp.minimum(template, search), xp.maximum(template, search)
    between = xp.sort(low + random.below(high + 1 - low, (num_between,)))
    between = xp.where(template < search, between, between[::-1])
    return xp.concatenate([template[None], between]), search


def draw_texture_picture(random: Random, tables: Tables) -> Any:
    """The picture that an occluding patch is cut from: a photograph, or a frame where there is none."""
    if len(tables.photos):
        return tables.photos[random.below(len(tables.photos))]
    clip = random.below(len(tables.clip_first))
    return tables.clip_first[clip] + random.below(tables.clip_length[clip])


def _draw_beside(random: Random, placement: Placement, factor: float) -> Placement:
    """A crop as large as `placement`'s, its centre half a side to a whole side from the target's along one axis, and
    at most as far along the other: the target is at most partly in view."""
    distance = random.uniform(1.0, 2.0) * factor / 2
    along = random.choose(random.chance(0.5), lambda: distance, lambda: -distance)
    offset = random.xp.stack([along, random.signed(distance)])
    return placement._replace(offset_xy=random.choose(random.chance(0.5), lambda: offset, lambda: offset[::-1]))


def _photo_scene(random: Random, pool: Any, config: DataConfig, photo: Any, outline: Any, turn_search: bool) -> Scene:
    crops, settings, geometry = config.crops, config.synthetic, random.geometry
    flip = random.chance(config.augment.flip_probability)

    def deformation(turn: bool) -> Any:
        u = random.signed(1.0, (2,))
        rotation = u[0] * math.radians(settings.still_rotation_degrees) if turn else 0.0
        return geometry.linear_map(flip, rotation, random.exp(u[1] * settings.still_aspect))

    linear = deformation(turn_search)
    placement = draw_placement(random, crops)
    view = target_view(outline, linear, crops.search_factor, crops.search_size, placement)
    random.require(_serves(random, view.box_cxcywh, crops), "target not in the crop")
    extent = pool.extent(photo)
    seen = geometry.seen_share(view.matrix, crops.search_size, extent)
    random.require(seen >= settings.min_seen, "too little of the search crop inside the photograph")
    templates = []
    for _ in range(crops.slots):
        template = target_view(outline, deformation(True), crops.template_factor, crops.template_size)
        templates.append(_finer(random, config, photo, template.matrix))
    base = _finer(random, config, photo, view.matrix)
    return Scene(view.box_cxcywh, random.stack(templates), base, photo, extent)


def _serves(random: Random, box_cxcywh: Any, crops: CropConfig) -> Any:
    """Whether the target's centre is inside the search crop and its sides are long enough."""
    box = random.xp.asarray(box_cxcywh, float)
    inside = ((box[:2] >= 0) & (box[:2] <= 1)).all()
    return inside & (box[2:].min() * crops.search_size >= crops.min_target_pixels)


def _draw_cutout(random: Random, folders: Folders, folder: Any = None) -> Any:
    if folder is None:
        folder = random.entry(folders.cumulative)
    return folders.members[folders.first[folder] + random.below(folders.size[folder])]


def _finer(random: Random, config: DataConfig, image: Any, matrix: Any) -> Picture:
    return Picture(image, matrix, random.chance(config.synthetic.finer))


def _object_light(random: Random, config: DataConfig) -> Light:
    # On the host saturation costs more than all the rest, and the whole crop gets its own later.
    return draw_light(random, config.augment)._replace(saturation=random.xp.zeros(()))


def _deformation(random: Random, config: DataConfig, flip: Any) -> Any:
    settings, u = config.synthetic, random.signed(1.0, (3,))
    rotation = u[0] * math.radians(settings.rotation_degrees)
    return random.geometry.linear_map(flip, rotation, random.exp(u[1] * settings.aspect), u[2] * settings.shear)


def _draw_other(random: Random, tables: Tables, config: DataConfig, target: Any) -> Any:
    """A cut-out of another photograph: two objects of one may be parts of one thing."""
    is_same_folder = random.chance(config.synthetic.same_source_distractor)

    def draw(own: Random) -> Any:
        folder = own.choose(
            is_same_folder, lambda: tables.cutout_folder[target], lambda: own.entry(tables.pasted.cumulative)
        )
        return _draw_cutout(own, tables.pasted, folder)

    photo = tables.cutout_photo
    return random.first(
        draw, lambda other: photo[other] != photo[target], OTHER_CUTOUTS, "cut-out of another photograph"
    )


def _placed(
    random: Random, pool: Any, config: DataConfig, other: Any, box_cxcywh: Any, centre_xy: Any, ratio: Any
) -> tuple[Pasted, Any]:
    """A cut-out at a point of the search crop, `ratio` times the size of the target's box; and its own box."""
    xp, size = random.xp, config.crops.search_size
    target_side = xp.sqrt(xp.asarray(box_cxcywh[2] * box_cxcywh[3], float))
    linear = _deformation(random, config, random.chance(0.5))
    outline = pool.pasted_outline_xy[other]
    matrix = target_view(outline, linear, 1 / (target_side * ratio), size).matrix
    matrix = _shifted(xp, matrix, centre_xy - size / 2)
    light = _object_light(random, config)
    layer = Pasted(_finer(random, config, pool.tables.cutout_image[other], matrix), light)
    points = map_points(matrix, outline) / size
    low, high = points.min(0), points.max(0)
    return layer, xp.concatenate([(low + high) / 2, high - low])


def _shifted(xp: Any, matrix: Any, shift: Any) -> Any:
    return xp.concatenate([matrix[:, :2], (matrix[:, 2] + shift)[:, None]], axis=1)


class _Background(NamedTuple):
    """One photograph behind a sample: every view of it has the same scale and light, and a nearby centre."""

    photo: Any
    side: Any  # photograph pixels across an unzoomed search crop
    centre_xy: Any
    flip: Any


def _draw_background(random: Random, pool: Any) -> _Background:
    photo = pool.tables.backgrounds[random.below(len(pool.tables.backgrounds))]
    extent = pool.extent(photo)
    side = extent.min() * random.uniform(0.5, 1.0)
    return _Background(photo, side, random.uniform(0.3, 0.7, (2,)) * extent, random.chance(0.5))


def _behind(random: Random, pool: Any, background: _Background, size: int, share: Any) -> Picture:
    """A view, `share` of the search crop wide, shifted at random, wholly inside the photograph."""
    xp, extent, side = random.xp, pool.extent(background.photo), background.side * share
    centre = background.centre_xy + random.uniform(-0.25, 0.25, (2,)) * background.side
    centre = xp.clip(centre, side / 2, extent - side / 2)
    linear = random.geometry.linear_map(background.flip) * (size / side)
    shift = size / 2 - linear[:, 0] * centre[0] - linear[:, 1] * centre[1]
    return Picture(background.photo, xp.concatenate([linear, shift[:, None]], axis=1), replicate=True)


def _draw_negative_box(random: Random, scene: Scene, crops: CropConfig) -> Any:
    """A box where the target is not, on a distractor where there is one."""
    xp, target = random.xp, scene.box_cxcywh

    def fits(box_cxcywh: Any) -> Any:
        overlap = xp.asarray(iou(cxcywh_to_xyxy(box_cxcywh), cxcywh_to_xyxy(target)), float)
        serves = _serves(random, box_cxcywh, crops) & (overlap < MAX_IOU)
        return serves & (box_cxcywh[2:].min() > 0) & (_seen_share(random, scene, box_cxcywh, crops) >= MIN_SEEN)

    def draw(own: Random) -> Any:
        sides = target[2:] * own.exp(own.uniform(-SIZE_JITTER, SIZE_JITTER, (2,)))
        return xp.concatenate([own.uniform(shape=(2,)), sides]).astype(np.float32)

    def anywhere() -> Any:
        return random.first(draw, fits, OTHER_BOXES, "place for a box beside the target's")

    distractors = scene.distractors_cxcywh
    if distractors is None or not len(distractors):
        return anywhere()
    fitting = xp.stack([fits(box_cxcywh) for box_cxcywh in distractors])
    return random.choose(fitting.any(), lambda: xp.stack(list(distractors))[random.pick(fitting)], anywhere)


def _seen_share(random: Random, scene: Scene, box_cxcywh: Any, crops: CropConfig) -> Any:
    """Share of a box that shows the picture and not its black surroundings."""
    xp = random.xp
    # The map to a crop that is the box, as wide and high as 1.
    matrix = _shifted(xp, scene.search_base.matrix / crops.search_size, box_cxcywh[2:] / 2 - box_cxcywh[:2])
    matrix = matrix / xp.maximum(box_cxcywh[2:], 1e-3)[:, None]
    is_whole = (scene.extent == 0).all()
    return random.choose(is_whole, lambda: 1.0, lambda: random.geometry.seen_share(matrix, 1, scene.extent))
