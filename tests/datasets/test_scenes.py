"""Scenes of the pool are distributed alike whether the host draws them or the device."""

from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.data.augment import AugmentConfig, Random, draw_crop_look, draw_light, draw_patch
from mixformer_jax.data.config import DataConfig, SyntheticConfig
from mixformer_jax.data.pool.device import DeviceRandom
from mixformer_jax.data.pool.device_pixels import DevicePool
from mixformer_jax.data.pool.pool import Clip, HostPool, ImagePool, VideoPool, cut_out
from mixformer_jax.data.pool.scenes import SCENES, draw_kind
from mixformer_jax.views import CropConfig, UnusableSampleError, pyramid

COUNT = 2000
# The distance of two samples of COUNT from one distribution is larger once in a hundred thousand times.
BOUND = 2.47 * np.sqrt(2 / COUNT)
CROPS = CropConfig(template_size=16, search_size=32, num_online_templates=1, min_target_pixels=2.0)
CONFIG = DataConfig(root="in memory", crops=CROPS, max_interval=20, synthetic=SyntheticConfig(max_distractors=2))
AUGMENT = AugmentConfig(separate_gain=0.1, blur_probability=0.3, coarse_probability=0.3, noise_probability=0.3)


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    small = rng.integers(0, 256, (height // 9, width // 9, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def pool() -> HostPool:
    rng = np.random.default_rng(0)
    clips = []
    for name, count in (("a", 9), ("b", 4), ("c", 6)):
        boxes = np.stack([rng.uniform((20, 20, 14, 14), (70, 50, 36, 36)) for _ in range(count)])
        clips.append(Clip(name, tuple(noise(rng, 108, 126) for _ in range(count)), boxes, np.arange(count) * 3))
    photos, cutouts = [], []
    for number, source in enumerate(("cats", "cats", "cats", "dogs", "plain", "plain")):
        photo = noise(rng, 153, 198)
        if source != "plain":
            ellipse = ((95 + 5 * number, 75), (24, 16 + 2 * number), 20.0, 0, 360)
            mask = cv2.ellipse(np.zeros(photo.shape[:2], np.uint8), *ellipse, 1, -1)
            cutouts.append(cut_out(photo, mask, number, source))
        photos.append(pyramid(photo))
    return HostPool(VideoPool(tuple(clips)), ImagePool(tuple(photos), tuple(cutouts), (4, 5)), CONFIG)


def place(xp: Any, name: str, picture: Any) -> dict[str, Any]:
    """A picture and where it lies: of a crop of 1."""
    (a, b, x), (c, d, y) = picture.matrix
    return {
        f"{name} picture": picture.image,
        f"{name} log zoom": xp.log(xp.abs(a * d - b * c)) / 2,
        f"{name} aspect": xp.log(a**2 + c**2) - xp.log(b**2 + d**2),
        f"{name} turn": xp.arctan2(c, xp.abs(a)),
        f"{name} flip": a < 0,
        f"{name} x": x,
        f"{name} y": y,
        f"{name} finer": picture.finer,
    }


def of_scene(xp: Any, scene: Any, is_device: bool) -> dict[str, Any]:
    """What a scene shows, as numbers."""

    def stacked(values: Any, number: int) -> Any:
        return jax.tree.map(lambda leaves: leaves[number], values) if is_device else values[number]

    x, y, w, h = scene.box_cxcywh
    found = {"x": x, "y": y, "log size": xp.log(w * h) / 2, "log aspect": xp.log(w / h), "origin": scene.origin}
    for number in range(CROPS.slots):
        found |= place(xp, f"template {number}", stacked(scene.template_base, number))
    found |= place(xp, "search", scene.search_base)
    if scene.search_pasted is not None:
        found |= place(xp, "target", stacked(scene.search_pasted, -1).picture)
        light = stacked(scene.search_pasted, -1).light
        found |= {"brightness": light.brightness, "contrast": light.contrast, "gamma": light.gamma}
        found |= {"red": light.colour[0], "saturation": light.saturation}
        boxes = xp.asarray(scene.distractors_cxcywh).reshape(-1, 4)
        found |= {"distractors": (boxes[:, 2] > 0).sum(), "distractors' area": (boxes[:, 2] * boxes[:, 3]).sum()}
        found |= {"distractors' x": boxes[:, 0].sum(), "occluder": xp.asarray(0.0)}
        if is_device or scene.occluder:
            occluder = stacked(scene.occluder, 0)
            middle = xp.where(occluder.shown, occluder.picture.matrix[0].sum(), 0.0)
            found["occluder"] = middle
    return found


def of_disturbances(random: Random) -> dict[str, Any]:
    """Everything else that is drawn: looks of a crop, patches, kinds of labelled samples, sources."""
    xp, joint = random.xp, draw_light(random, AUGMENT)
    light, quality = draw_crop_look(random, AUGMENT, joint)
    box = np.array([0.4, 0.6, 0.3, 0.5], np.float32)
    patch = draw_patch(random, box, 64, AUGMENT.max_occluded)
    mix = np.cumsum([getattr(CONFIG.mix, name) for name in SCENES])
    return {
        "brightness": light.brightness,
        "joint contrast": joint.contrast,
        "gamma": light.gamma,
        "saturation": light.saturation,
        "green": light.colour[1],
        **quality._asdict(),
        "patch x": patch.low[0],
        "patch y": patch.centre[1],
        "patch width": xp.log(patch.half[0]),
        "patch height": xp.log(patch.half[1]),
        "ellipse": patch.is_ellipse,
        "source": random.entry(mix),
        "kind": draw_kind(random, 0.4, True),
        "kind without video": draw_kind(random, 0.4, False),
    }


def on_host(draw: Any) -> dict[str, np.ndarray]:
    rng, found = Random(np.random.default_rng(1)), []
    while len(found) < COUNT:
        try:
            found.append(draw(rng))
        except UnusableSampleError:
            continue
    return {name: np.array([each[name] for each in found], float) for name in found[0]}


def on_device(draw: Any) -> dict[str, np.ndarray]:
    """Of more than are wanted, those that are usable."""

    @jax.jit
    @jax.vmap
    def drawn(number: Any) -> Any:
        random = DeviceRandom(jax.random.fold_in(jax.random.key(2), number))
        return draw(random), random.usable

    found, usable = jax.device_get(drawn(np.arange(3 * COUNT)))
    kept = np.flatnonzero(usable)[:COUNT]
    assert len(kept) == COUNT
    return {name: np.asarray(value, float)[kept] for name, value in found.items()}


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance: the greatest one between two cumulative distributions."""
    # The same value may be rounded in two ways.
    first, second = np.round(first, 4), np.round(second, 4)
    at = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(each), at, side="right") / len(each) for each in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.mark.parametrize("name", list(SCENES))
def test_both_draw_the_same_scenes(pool, name):
    device_pool = jax.tree.map(jnp.asarray, DevicePool.of(pool))

    def draw(random: Random) -> dict[str, Any]:
        is_device = isinstance(random, DeviceRandom)
        scene = SCENES[name](random, device_pool if is_device else pool, CONFIG, False)
        return of_scene(random.xp, scene, is_device)

    ours, theirs = on_device(draw), on_host(draw)
    far = {name: distance(value, theirs[name]) for name, value in ours.items()}
    assert max(far.values()) < BOUND, far


@pytest.fixture(scope="module")
def disturbances() -> dict[str, np.ndarray]:
    return on_host(of_disturbances)


def test_both_draw_the_same_disturbances(disturbances):
    ours, theirs = on_device(of_disturbances), disturbances
    far = {name: distance(value, theirs[name]) for name, value in ours.items()}
    assert max(far.values()) < BOUND, far


@pytest.mark.parametrize("method", ["uniform", "signed", "chance", "entry"])
def test_a_changed_distribution_is_far(method, disturbances, monkeypatch):
    """What the bound is worth: one kind of random number is drawn slightly otherwise."""
    drawn = getattr(Random, method)

    def changed(self: Random, *arguments: Any, **named: Any) -> Any:
        value = drawn(self, *arguments, **named)
        return 0.8 * value if method in ("uniform", "signed") else value * int(self.rng.random() < 0.7)

    monkeypatch.setattr(Random, method, changed)
    ours = on_host(of_disturbances)
    assert max(distance(value, disturbances[name]) for name, value in ours.items()) > BOUND
