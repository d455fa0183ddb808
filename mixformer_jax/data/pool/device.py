"""Samples of the pool that the host only numbers: a device holds the pool, and draws and renders them.
Pure functions, to be jitted; sample i of a seed is one thing whatever the batch it is in. Scenes are drawn as on the
host (`scenes`), but the random numbers are others, so sample i of a seed is not the host's sample i."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from mixformer_jax.data.augment import AugmentConfig, Light, Random, draw_crop_look, draw_light, draw_patch
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pool import device_pixels, scenes
from mixformer_jax.data.pool.device_pixels import DevicePool, degrade, greyed, relight, warp
from mixformer_jax.data.samples import Material, TrackingSamples

# Scenes drawn for every sample; the first that serves is taken. The host draws up to 50, one after the other.
CANDIDATES = 8
ROW = 64  # random numbers made at once
CHECKED, MAX_UNSERVED = 2048, 0.01


class DeviceRandom(Random):
    """Random numbers of one key, while a function is traced: the n-th one asked for is the same in every run.

    Whether a branch of the function needs a number must not depend on traced values, so all branches are drawn.

    Attributes:
        usable: whether all that was required holds.
    """

    xp = jnp
    geometry = device_pixels

    def __init__(self, key: PRNGKeyArray) -> None:
        self._key, self._rows = key, 0
        self._left = jnp.zeros(0)
        self._active: Any = True  # whether the branch that is being drawn is the one that is taken
        self.usable: Any = jnp.asarray(True)

    def key(self) -> PRNGKeyArray:
        """A key for somebody who needs many numbers."""
        self._rows += 1
        return jax.random.fold_in(self._key, self._rows - 1)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, shape: tuple[int, ...] | None = None) -> Any:
        count = math.prod(shape or ())
        while len(self._left) < count:
            self._left = jnp.concatenate([self._left, jax.random.uniform(self.key(), (ROW,))])
        taken, self._left = self._left[:count], self._left[count:]
        return low + (high - low) * taken.reshape(shape or ())

    def signed(self, bound: Any, shape: tuple[int, ...] | None = None) -> Any:
        return (2 * self.uniform(shape=shape) - 1) * bound

    def normal(self, shape: tuple[int, ...]) -> Any:
        return jax.scipy.special.ndtri(self.uniform(1e-7, 1.0, shape))  # 0 itself would be minus infinity

    def below(self, count: Any, shape: tuple[int, ...] | None = None) -> Any:
        return jnp.minimum((self.uniform(shape=shape) * count).astype(jnp.int32), count - 1)

    def chance(self, probability: float) -> Any:
        return self.uniform() < probability

    def entry(self, cumulative: Any) -> Any:
        found = jnp.searchsorted(jnp.asarray(cumulative), self.uniform() * cumulative[-1], side="right")
        return jnp.minimum(found, len(cumulative) - 1).astype(jnp.int32)

    def pick(self, mask: Any) -> Any:
        return jnp.argmax(jnp.where(mask, self.uniform(shape=(len(mask),)), -1.0))

    def exp(self, value: Any) -> Any:
        return jnp.exp(value)

    def log(self, value: Any) -> Any:
        return jnp.log(value)

    def require(self, condition: Any, message: str) -> None:
        self.usable &= condition | ~jnp.asarray(self._active)

    def choose(self, condition: Any, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        if isinstance(condition, bool):
            return first() if condition else second()
        outer, results = self._active, []
        for branch, taken in ((first, condition), (second, ~condition)):
            self._active = outer & taken
            results.append(branch())
        self._active = outer
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), *results)

    def repeat(self, count: Any, most: int) -> Iterator[Any]:
        if count is False:
            return
        outer = self._active
        for number in range(most):
            shown = count > number
            self._active = outer & shown
            yield shown
        self._active = outer

    def first(self, draw: Callable[[Any], Any], accept: Callable[[Any], Any], tries: tuple[int, int], what: str) -> Any:
        def attempt(key: PRNGKeyArray) -> tuple[Any, Array]:
            own = DeviceRandom(key)
            value = draw(own)
            return value, accept(value) & own.usable

        values, accepted = jax.vmap(attempt)(jax.random.split(self.key(), tries[1]))
        self.require(accepted.any(), what)
        return jax.tree.map(lambda leaves: leaves[jnp.argmax(accepted)], values)

    def stack(self, items: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items) if items else None


class About(NamedTuple):
    """How a sample came about."""

    source: Int[Array, "*batch"]  # its number among `sources_of`
    served: Bool[Array, "*batch"]  # whether one of the candidates could serve; if not, the first one was rendered


class DeviceSamples:
    """The device form of `TrackingSamples`.

    Attributes:
        resident: what a device must hold, as numpy arrays.
    """

    def __init__(self, material: Material, config: DataConfig, seed: int, names: Sequence[str] | None = None) -> None:
        """`names` are those of the arrays wanted; None for all.
        Raises ValueError where a source of the mix has no material, or more than a device can number."""
        pool = TrackingSamples(material, config, seed).pool
        assert pool is not None  # as `DataConfig` demands
        self.config, self._names = config, names
        self.resident = DevicePool.of(pool)
        self._inspect = inspector(config, seed)

    def sample(self, index: int) -> dict[str, np.ndarray]:
        """The number of sample `index`, uint32 []."""
        return {"index": np.array(index, np.uint32)}

    def render(self, resident: DevicePool, batch: Mapping[str, Array]) -> dict[str, Array]:
        """From a batch of numbers to that of `TrackingSamples.sample`, with a first axis; to be jitted."""
        rendered = self._inspect(resident, batch["index"])[0]
        return rendered if self._names is None else {name: rendered[name] for name in self._names}

    def show(self, numbers: Sequence[int]) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Samples for people to look at, each with its source's name."""
        drawn = jax.jit(self._inspect)(self.resident, jnp.asarray(numbers, jnp.uint32))
        rendered, about = jax.device_get(drawn)
        names = scenes.sources_of(self.config)
        rows = [{name: value[row] for name, value in rendered.items()} for row in range(len(numbers))]
        return [(names[source], row) for source, row in zip(about.source, rows, strict=True)]

    def about(self, resident: DevicePool) -> About:
        """How the first `CHECKED` samples come about; they are drawn and not rendered."""
        numbers = jnp.arange(CHECKED, dtype=jnp.uint32)
        draw = jax.jit(lambda pool: self._inspect(pool, numbers)[1])
        return draw.lower(resident).compile()(resident)

    def check(self, resident: DevicePool) -> None:
        """Looks at `about`; ValueError for a source whose candidates too often cannot serve."""
        source, served = map(np.asarray, self.about(resident))
        for number, name in enumerate(scenes.sources_of(self.config)):
            of_source = served[source == number]
            if len(of_source) and np.mean(~of_source) > MAX_UNSERVED:
                raise ValueError(
                    f"source {name!r}: for {np.mean(~of_source):.0%} of the samples none of {CANDIDATES} candidates "
                    "serves; its material does not suit the crop sizes and jitters of the config"
                )


def inspector(
    config: DataConfig, seed: int
) -> Callable[[DevicePool, UInt32[Array, " b"]], tuple[dict[str, Array], About]]:
    """The function from numbers to samples, to be jitted, and to what is known about them.

    Samples are those of `TrackingSamples.sample`, with a first axis: templates uint8 [b, slots, T, T, 3], search uint8
    [b, S, S, 3], box_cxcywh float32 [b, 4], and with `DataConfig.positive_share` label float32 [b].
    """

    def inspect(pool: DevicePool, index: UInt32[Array, " b"]) -> tuple[dict[str, Array], About]:
        # By name: the default of `jax.random.key` is the user's to change, and this one may be mapped.
        key = jax.random.key(seed, impl="threefry2x32")
        return jax.vmap(lambda number: _sample(pool, config, DeviceRandom(jax.random.fold_in(key, number))))(index)

    return inspect


def _sample(pool: DevicePool, config: DataConfig, random: DeviceRandom) -> tuple[dict[str, Array], About]:
    names = scenes.sources_of(config)
    source = random.entry(np.cumsum([getattr(config.mix, name) for name in names]).astype(np.float32))
    is_source = {name: source == (names.index(name) if name in names else -1) for name in scenes.SCENES}
    kind = scenes.draw_kind(random, config.positive_share, is_source["video"])

    def draw(random: Random, beside: Any) -> scenes.Scene:
        assert isinstance(random, DeviceRandom)
        drawn = []
        for name in names:
            own = DeviceRandom(random.key())
            drawn.append((_completed(scenes.SCENES[name](own, pool, config, beside), config), own.usable))
        scene, usable = jax.tree.map(lambda *leaves: jnp.stack(leaves)[source], *drawn)
        random.require(usable, "usable scene")
        return scene

    scene = random.first(
        lambda own: scenes.draw_labelled(own, draw, kind, config),
        lambda scene: True,
        (1, CANDIDATES),
        "usable candidate",
    )
    served = random.usable

    size = config.crops.template_size
    bases, targets = scene.template_base, scene.template_target
    templates = jax.vmap(lambda base, target: _pasted(pool, _warped(pool, base, size), target))(bases, targets)
    search = _search(pool, scene, config)
    if config.augment.occluder_probability > 0:
        # Pasted pairs bring occluders of their own.
        hidden = random.chance(config.augment.occluder_probability) & ~is_source["pasted"]
        search = jnp.where(hidden, _occluded(random, pool, search, scene.box_cxcywh, config), search)
    templates, search = disturb(random, templates, search, config.augment)
    sample = {"templates": _bytes(templates), "search": _bytes(search), "box_cxcywh": scene.box_cxcywh}
    if config.positive_share is not None:
        sample["label"] = (kind == scenes.TARGET).astype(jnp.float32)
    return sample, About(source, served)


def _completed(scene: scenes.Scene, config: DataConfig) -> scenes.Scene:
    """The scene with the cut-outs that it lacks: not shown, and cheap to look up."""
    if config.mix.pasted == 0:
        return jax.tree.map(jnp.asarray, scene)
    light = Light(colour=jnp.zeros(3))
    nothing = scenes.Pasted(scenes.Picture(jnp.asarray(0), jnp.eye(2, 3), False, False), light, False)

    def several(count: int) -> scenes.Pasted:
        return jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * count), nothing)

    most = config.synthetic.max_distractors
    absent: dict[str, Any] = {
        "template_target": several(config.crops.slots),
        "search_pasted": several(most + 1),
        "occluder": several(1),
        "distractors_cxcywh": jnp.zeros((most, 4)),
    }
    missing = {name: value for name, value in absent.items() if getattr(scene, name) is None}
    return jax.tree.map(jnp.asarray, scene._replace(**missing))


def _warped(pool: DevicePool, picture: scenes.Picture, size: int) -> Float[Array, "s s 3"]:
    return warp(pool.images, picture.image, picture.matrix, size, picture.finer, picture.replicate)[..., :3]


def _pasted(pool: DevicePool, image: Float[Array, "s s 3"], layer: scenes.Pasted | None) -> Float[Array, "s s 3"]:
    return image if layer is None else paste(pool, image, layer)[0]


def _search(pool: DevicePool, scene: scenes.Scene, config: DataConfig) -> Float[Array, "s s 3"]:
    size = config.crops.search_size
    image = _warped(pool, scene.search_base, size)
    if scene.search_pasted is None:
        return image

    def next_layer(carry: tuple[Array, Array], layer: scenes.Pasted) -> tuple[tuple[Array, Array], None]:
        return paste(pool, carry[0], layer), None

    (image, covered), _ = jax.lax.scan(next_layer, (image, jnp.zeros((size, size))), scene.search_pasted)
    occluded, over = paste(pool, image, jax.tree.map(lambda leaves: leaves[0], scene.occluder))
    hidden = jnp.minimum(over, covered).sum()
    return jnp.where(hidden <= config.synthetic.max_occluded * covered.sum(), occluded, image)


def paste(
    pool: DevicePool, image: Float[Array, "s s 3"], layer: scenes.Pasted
) -> tuple[Float[Array, "s s 3"], Float[Array, "s s"]]:
    """An image with a cut-out blended in, and the cut-out's alpha on it, 0 to 1."""
    picture = layer.picture
    rgba = warp(pool.images, picture.image, picture.matrix, image.shape[0], picture.finer)
    alpha = jnp.where(layer.shown, rgba[..., 3] / 255, 0.0)
    return image + (relight(rgba[..., :3], layer.light) - image) * alpha[..., None], alpha


def _occluded(
    random: DeviceRandom, pool: DevicePool, search: Float[Array, "s s 3"], box_cxcywh: Array, config: DataConfig
) -> Float[Array, "s s 3"]:
    """A patch of some picture over the search crop; a third of the picture each way fills it."""
    size = search.shape[0]
    picture = scenes.draw_texture_picture(random, pool.tables)
    third = pool.extent(picture) / 3
    corner = random.uniform(shape=(2,)) * 2 * third
    patch = draw_patch(random, box_cxcywh, size, config.augment.max_occluded)
    scale = jnp.maximum(patch.high - patch.low, 1) / third
    matrix = jnp.concatenate([jnp.diag(scale), (patch.low - corner * scale)[:, None]], axis=1)
    pixels = warp(pool.images, picture, matrix, size, replicate=True)[..., :3]
    pixel = jnp.arange(size)
    at = jnp.stack(jnp.meshgrid(pixel, pixel), axis=-1)
    inside = ((at >= patch.low) & (at < patch.high)).all(axis=-1) & patch.shown
    inside &= ((((at - patch.centre) / patch.half) ** 2).sum(axis=-1) <= 1) | ~patch.is_ellipse
    return jnp.where(inside[..., None], pixels, search)


def disturb(
    random: DeviceRandom, templates: Float[Array, "slots t t 3"], search: Float[Array, "s s 3"], config: AugmentConfig
) -> tuple[Float[Array, "slots t t 3"], Float[Array, "s s 3"]]:
    """See `augment.disturb`. Pixels are floats, rounded once at the end; the host rounds after every disturbance."""
    joint, is_grey = draw_light(random, config), random.chance(config.grey_probability)

    def one(key: PRNGKeyArray, crop: Array) -> Array:
        own = DeviceRandom(key)
        light, quality = draw_crop_look(own, config, joint)
        crop = relight(crop, light)
        if config.grey_probability > 0:
            crop = jnp.where(is_grey, greyed(crop), crop)
        return degrade(crop, quality, own.key(), config)

    keys = jax.random.split(random.key(), len(templates) + 1)
    return jax.vmap(one)(keys[1:], templates), one(keys[0], search)


def _bytes(image: Float[Array, "..."]) -> Array:
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
