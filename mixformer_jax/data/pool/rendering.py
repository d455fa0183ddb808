"""Training samples rendered on the device from a `DevicePool`: the device form of `TrackingSamples`.

Pure functions, to be jitted; sample i of a seed is one thing whatever the batch it is in. Settings mean what they mean
on the host, but the random numbers are others, so sample i of a seed is not the host's sample i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pool.device_augment import disturb, relight
from mixformer_jax.data.pool.device_pool import DevicePool
from mixformer_jax.data.pool.device_views import warp
from mixformer_jax.data.pool.drafts import DRAFTS, Draft, Pasted, Picture
from mixformer_jax.data.pool.draws import Draws
from mixformer_jax.data.pool.negatives import OTHERS, draw_kind, negative

# Drawn for every sample; the first that serves is taken. The host draws up to 50, one after the other.
CANDIDATES = 8

Render = Callable[[DevicePool, Mapping[str, Array]], dict[str, Array]]


class About(NamedTuple):
    """How a sample came about.

    Attributes:
        source: its number among `sources_of`.
        served: whether one of the candidates could serve; if not, the first one was rendered.
    """

    source: Int[Array, "*batch"]
    served: Bool[Array, "*batch"]


def sources_of(config: DataConfig) -> list[str]:
    """The sources of the mix, by name."""
    return [name for name in DRAFTS if getattr(config.mix, name) > 0]


def renderer(config: DataConfig, seed: int) -> Render:
    """The function `pool, {"index": uint32 [b]} -> batch`, to be jitted.

    The batch is that of `TrackingSamples.sample`, with a first axis: templates uint8 [b, slots, T, T, 3], search uint8
    [b, S, S, 3], box_cxcywh float32 [b, 4], and with `DataConfig.positive_share` label float32 [b].
    """
    inspect = inspector(config, seed)

    def render(pool: DevicePool, batch: Mapping[str, Array]) -> dict[str, Array]:
        return inspect(pool, batch["index"])[0]

    return render


def inspector(
    config: DataConfig, seed: int
) -> Callable[[DevicePool, UInt32[Array, " b"]], tuple[dict[str, Array], About]]:
    """As `renderer`, for numbers alone, and with what is known about the samples."""

    def inspect(pool: DevicePool, index: UInt32[Array, " b"]) -> tuple[dict[str, Array], About]:
        # By name: the default of `jax.random.key` is the user's to change, and this one may be mapped.
        key = jax.random.key(seed, impl="threefry2x32")
        return jax.vmap(lambda number: _sample(pool, config, jax.random.fold_in(key, number)))(index)

    return inspect


def _sample(pool: DevicePool, config: DataConfig, key: PRNGKeyArray) -> tuple[dict[str, Array], About]:
    names = sources_of(config)
    weights = np.array([getattr(config.mix, name) for name in names])
    of_source, of_draft, of_pixels = jax.random.split(key, 3)
    draws = Draws(of_source)
    source = draws.entry(jnp.asarray(np.cumsum(weights / weights.sum()), jnp.float32))
    # Drawn once: what is hard to place is drawn again and stays in its share.
    kind = draw_kind(draws, config.positive_share, source == _number(names, "video"))

    def draw(key: PRNGKeyArray, beside: Array) -> Draft:
        keys = jax.random.split(key, len(names))
        drafts = [DRAFTS[name](pool, config, Draws(own), beside) for name, own in zip(names, keys, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[source], *drafts)

    def candidate(key: PRNGKeyArray) -> Draft:
        if config.positive_share is None:
            return draw(key, jnp.asarray(False))
        own, of_others, of_box = jax.random.split(key, 3)
        draft = draw(own, kind.beside)
        others = jax.vmap(lambda key: draw(key, jnp.asarray(False)))(jax.random.split(of_others, OTHERS))
        return negative(Draws(of_box), kind, draft, others, config.crops)

    candidates = jax.vmap(candidate)(jax.random.split(of_draft, CANDIDATES))
    draft = jax.tree.map(lambda leaves: leaves[jnp.argmax(candidates.usable)], candidates)

    templates = jax.vmap(lambda base, target: _template(pool, base, target, config.crops.template_size))(
        draft.template_base, draft.template_target
    )
    search = _search(pool, draft, config)
    draws = Draws(of_pixels)
    if config.augment.occluder_probability > 0:
        # Pasted pairs bring occluders of their own.
        hidden = draws.chance(config.augment.occluder_probability) & (source != _number(names, "pasted"))
        search = jnp.where(hidden, _occluded(draws, pool, search, draft.box_cxcywh, config), search)
    templates, search = disturb(draws.key(), templates, search, config.augment)
    sample = {"templates": _bytes(templates), "search": _bytes(search), "box_cxcywh": draft.box_cxcywh}
    if config.positive_share is not None:
        sample["label"] = kind.target.astype(jnp.float32)
    return sample, About(source, candidates.usable.any())


def _number(names: list[str], name: str) -> int:
    return names.index(name) if name in names else -1


def _template(pool: DevicePool, base: Picture, target: Pasted | None, size: int) -> Float[Array, "t t 3"]:
    image = warp(pool.images, base.image, base.matrix, size, base.finer, base.replicate)[..., :3]
    return image if target is None else paste(pool, image, target)[0]


def _search(pool: DevicePool, draft: Draft, config: DataConfig) -> Float[Array, "s s 3"]:
    base, size = draft.search_base, config.crops.search_size
    image = warp(pool.images, base.image, base.matrix, size, base.finer, base.replicate)[..., :3]
    if draft.search_pasted is None or draft.occluder is None:
        return image

    def next_layer(carry: tuple[Array, Array], layer: Pasted) -> tuple[tuple[Array, Array], None]:
        return paste(pool, carry[0], layer), None

    (image, covered), _ = jax.lax.scan(next_layer, (image, jnp.zeros((size, size))), draft.search_pasted)
    occluded, over = paste(pool, image, draft.occluder)
    hidden = jnp.minimum(over, covered).sum()
    return jnp.where(hidden <= config.synthetic.max_occluded * covered.sum(), occluded, image)


def paste(
    pool: DevicePool, image: Float[Array, "s s 3"], layer: Pasted
) -> tuple[Float[Array, "s s 3"], Float[Array, "s s"]]:
    """An image with a cut-out blended in, and the cut-out's alpha on it, 0 to 1."""
    picture = layer.picture
    rgba = warp(pool.images, picture.image, picture.matrix, image.shape[0], picture.finer)
    alpha = jnp.where(layer.shown, rgba[..., 3] / 255, 0.0)
    return image + (relight(rgba[..., :3], layer.light) - image) * alpha[..., None], alpha


def _occluded(
    draws: Draws, pool: DevicePool, search: Float[Array, "s s 3"], box_cxcywh: Float[Array, "4"], config: DataConfig
) -> Float[Array, "s s 3"]:
    """A rectangle or ellipse of some picture over a part of the target's box, see `augment.occlude`."""
    size = search.shape[0]
    box = box_cxcywh * size
    share = draws.uniform(0.2, 1.0) * config.augment.max_occluded
    # A bar across one side, or a patch: either way width * height * w * h is at most the share.
    width = draws.uniform(share, 1.0)
    centre = jnp.round(box[:2] + draws.signed(0.5, (2,)) * box[2:])
    half = jnp.maximum(1.0, jnp.round(jnp.stack([width, share / width]) * box[2:] / 2))
    low, high = jnp.maximum(0, centre - half), jnp.minimum(size, centre + half)

    number = draws.below(len(pool.photos) or len(pool.box_xywh))
    picture = pool.photos[number] if len(pool.photos) else number
    # A third of the picture each way fills the rectangle.
    third = pool.images.width_height[picture, 0] / 3
    corner = draws.uniform(shape=(2,)) * 2 * third
    scale = jnp.maximum(high - low, 1) / third
    matrix = jnp.concatenate([jnp.diag(scale), (low - corner * scale)[:, None]], axis=1)
    patch = warp(pool.images, picture, matrix, size, replicate=True)[..., :3]

    pixel = jnp.arange(size)
    at = jnp.stack(jnp.meshgrid(pixel, pixel), axis=-1)
    inside = ((at >= low) & (at < high)).all(axis=-1)
    inside &= ((((at - centre) / half) ** 2).sum(axis=-1) <= 1) | draws.chance(0.5)
    inside &= (high - low >= 2).all()
    return jnp.where(inside[..., None], patch, search)


def _bytes(image: Float[Array, "..."]) -> Array:
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
