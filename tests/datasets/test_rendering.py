"""Samples rendered on the device: independence of the batch, boxes that bind, settings that do what they say."""

import functools
import math
from collections.abc import Callable
from dataclasses import fields, replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax import views
from mixformer_jax.data import augment as host_augment
from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig, Mix, SyntheticConfig
from mixformer_jax.data.pool import device, device_pixels
from mixformer_jax.data.pool.device import DeviceRandom, DeviceSamples, inspector
from mixformer_jax.data.pool.device_pixels import DevicePool, packed_images
from mixformer_jax.data.pool.pool import Clip, HostPool, ImagePool, VideoPool, cut_out
from mixformer_jax.data.pool.scenes import sources_of
from mixformer_jax.data.samples import Material, TrackingSamples
from mixformer_jax.views import CropConfig, pyramid
from tests.compilation import QUICK

quick_jit = functools.partial(jax.jit, compiler_options=QUICK)

CROPS = CropConfig(template_size=32, search_size=64, scale_jitter=0.2, centre_jitter=2.0)
NONE = AugmentConfig.none()
UNDISTURBED = replace(NONE, flip_probability=0.5, aspect=0.08)
ALONE = SyntheticConfig(max_distractors=0, occluder=0.0, finer=0.0, same_source_distractor=0.0)
TARGET, GROUND = np.array([255, 32, 32], np.uint8), np.array([0, 64, 128], np.uint8)
COUNT = 24


def flat_clip(name: str, seed: int) -> Clip:
    """A target of one colour on ground of another."""
    rng = np.random.default_rng(seed)
    frames, boxes = [], []
    for _ in range(8):
        x, y, w, h = rng.integers(50, 80), rng.integers(40, 60), rng.integers(16, 28), rng.integers(16, 28)
        frame = np.empty((140, 160, 3), np.uint8)
        frame[:] = GROUND
        frame[y : y + h, x : x + w] = TARGET
        frames.append(frame)
        boxes.append([x, y, w, h])
    return Clip(name, tuple(frames), np.array(boxes, np.float64), np.arange(8) * 10)


@pytest.fixture(scope="module")
def pools() -> Material:
    photos, cutouts = [], []
    for number, source in enumerate(("cats", "cats", "dogs", "plain", "plain")):
        photo = np.empty((160, 200, 3), np.uint8)
        photo[:] = GROUND
        if source != "plain":
            centre, axes = (95 + 5 * number, 80), (24, 16 + 2 * number)
            mask = cv2.ellipse(np.zeros(photo.shape[:2], np.uint8), centre, axes, 20.0, 0, 360, 1, -1)
            photo[mask > 0] = TARGET
            cutouts.append(cut_out(photo, mask, number, source))
        photos.append(pyramid(photo))
    return Material(VideoPool((flat_clip("a", 0), flat_clip("b", 1))), ImagePool(tuple(photos), tuple(cutouts), (3, 4)))


def config(source: str | None = None, **changes: object) -> DataConfig:
    mix = Mix() if source is None else Mix(**{each.name: float(each.name == source) for each in fields(Mix)})
    base = DataConfig(root="somewhere", crops=CROPS, mix=mix, render="device", max_interval=40)
    return replace(base, **changes)


def bare(source: str) -> DataConfig:
    """Targets of one source, with nothing before, beside or over them."""
    return config(source, augment=UNDISTURBED, synthetic=ALONE)


Render = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def render(pools) -> Render:
    """The first samples of a config, rendered once."""
    kept: dict[str, dict[str, np.ndarray]] = {}

    def rendered(settings: DataConfig, count: int = COUNT) -> dict[str, np.ndarray]:
        name = f"{settings} {count}"
        if name not in kept:
            samples = DeviceSamples(pools, settings, 0)
            numbers = {"index": jnp.arange(count, dtype=jnp.uint32)}
            kept[name] = jax.device_get(quick_jit(samples.render)(samples.resident, numbers))
        return kept[name]

    return rendered


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance: the greatest one between two cumulative distributions."""
    at = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(each), at, side="right") / len(each) for each in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def found_box_cxcywh(image: np.ndarray) -> np.ndarray:
    """Bounds of the target's colour, where it covers half a pixel or more."""
    share = (image[..., 0].astype(float) - GROUND[0]) / (float(TARGET[0]) - GROUND[0])
    rows, columns = np.nonzero(share.max(axis=1) >= 0.5)[0], np.nonzero(share.max(axis=0) >= 0.5)[0]
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
    return np.concatenate([(low + high) / 2, high - low]) / image.shape[0]


@pytest.fixture(scope="module")
def whole(pools):
    """The whole mix, with all disturbances; but for regions, which one colour has none of."""
    settings = config(augment=AugmentConfig(flip_probability=0.5), mix=Mix(region=0.0))
    pool = DevicePool.of(HostPool(pools.videos, pools.images, settings))
    return pool, quick_jit(inspector(settings, 3))


def test_a_number_is_one_sample_in_any_batch(whole):
    pool, inspect = whole
    numbers = np.arange(8, dtype=np.uint32)
    first, about = inspect(pool, numbers)
    assert first["templates"].shape == (8, 2, 32, 32, 3) and first["search"].shape == (8, 64, 64, 3)
    assert first["templates"].dtype == first["search"].dtype == jnp.uint8
    assert first["box_cxcywh"].shape == (8, 4) and first["box_cxcywh"].dtype == jnp.float32
    again, _ = inspect(pool, np.concatenate([numbers[:3:-1], numbers[:4] + 100]).astype(np.uint32))
    for name, value in first.items():
        np.testing.assert_array_equal(value[7:3:-1], again[name][:4], err_msg=name)
        assert not np.array_equal(value[:4], again[name][4:])
    assert about.served.all()


def test_rendered_samples_are_distributed_as_on_the_host(whole, pools):
    pool, inspect = whole
    settings = config(augment=AugmentConfig(flip_probability=0.5), mix=Mix(region=0.0))
    count, host = 640, TrackingSamples(pools, settings, 1)
    batches = [jax.device_get(inspect(pool, np.arange(8, dtype=np.uint32) + first)[0]) for first in range(0, count, 8)]
    ours = {name: np.concatenate([batch[name] for batch in batches]).astype(float) for name in batches[0]}
    samples = [host.sample(index) for index in range(count)]
    theirs = {name: np.stack([sample[name] for sample in samples]).astype(float) for name in samples[0]}

    def statistics(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        search, template, (x, y, w, h) = batch["search"], batch["templates"][:, 0], batch["box_cxcywh"].T
        return {
            "x": x,
            "y": y,
            "size": np.sqrt(w * h),
            "aspect": w / h,
            "brightness": search.mean((1, 2, 3)),
            "brightness of the template": template.mean((1, 2, 3)),
            "contrast": search.std((1, 2, 3)),
            "colour": (template[..., 0] - template[..., 2]).mean((1, 2)),
            "saturation": np.ptp(template, axis=3).mean((1, 2)),
            "sharpness": np.abs(np.diff(template, axis=2)).mean((1, 2, 3)),
            "black": (search.max(3) < 1).mean((1, 2)),
        }

    theirs, ours = statistics(theirs), statistics(ours)
    far = {name: distance(np.round(value, 3), np.round(theirs[name], 3)) for name, value in ours.items()}
    # Two samples of one distribution are further apart once in a million times.
    assert max(far.values()) < 2.69 * math.sqrt(2 / count), far


def test_the_mix_is_kept_and_its_candidates_serve(pools, monkeypatch):
    settings = config()
    samples = DeviceSamples(pools, settings, 0)
    about = samples.about(samples.resident)
    shares = np.bincount(np.asarray(about.source), minlength=4) / len(about.source)
    np.testing.assert_allclose(shares, [getattr(settings.mix, name) for name in sources_of(settings)], atol=0.04)
    # Regions of one colour have no texture.
    unserved = ~np.asarray(about.served)
    assert set(np.asarray(about.source)[unserved]) <= {sources_of(settings).index("region")}
    monkeypatch.setattr(samples, "about", lambda resident: about)
    with pytest.raises(ValueError, match="source 'region'"):
        samples.check(samples.resident)


@pytest.mark.parametrize("source", ["video", "still", "pasted"])
def test_boxes_bind_the_target(render, source):
    batch = render(bare(source))
    inside = 0
    for image, box in zip(batch["search"], batch["box_cxcywh"], strict=True):
        if (box[:2] - box[2:] / 2 < 0).any() or (box[:2] + box[2:] / 2 > 1).any():
            continue
        inside += 1
        # The edge of what is pasted is soft.
        np.testing.assert_allclose(found_box_cxcywh(image) * 64, box * 64, atol=1.6 if source == "pasted" else 1.1)
    assert inside > COUNT / 2
    for image in batch["templates"].reshape(-1, 32, 32, 3):
        found = found_box_cxcywh(image)
        np.testing.assert_allclose(found[:2], 0.5, atol=1.3 / 32)
        # The template shows twice the target's side.
        np.testing.assert_allclose(math.sqrt(found[2] * found[3]), 0.5, atol=2.5 / 32)


def test_labels_tell_whether_the_box_holds_the_target(render):
    batch = render(config("video", augment=UNDISTURBED, positive_share=0.5), 64)
    assert 16 < batch["label"].sum() < 48
    held = np.zeros(64)
    for row, (image, box) in enumerate(zip(batch["search"], batch["box_cxcywh"], strict=True)):
        low, high = (box[:2] - box[2:] / 2) * 64, (box[:2] + box[2:] / 2) * 64
        (x0, y0), (x1, y1) = np.clip(np.round(low), 0, 64).astype(int), np.clip(np.round(high), 0, 64).astype(int)
        held[row] = (image[y0:y1, x0:x1, 0] > 128).mean()
    assert (held[batch["label"] == 1] > 0.9).all()
    # Half of the negatives show another clip's target, which has the same colour here.
    negatives = held[batch["label"] == 0]
    assert 0.2 < (negatives < 0.3).mean() < 0.8 and ((negatives < 0.3) | (negatives > 0.9)).all()


def test_every_strength_changes_the_light_and_zero_leaves_it():
    for name in ("brightness", "contrast", "gamma", "colour", "saturation"):
        light = host_augment.draw_light(DeviceRandom(jax.random.key(1)), replace(NONE, **{name: 0.3}))
        for other, value in light._asdict().items():
            assert bool(jnp.any(value != 0)) == (other == name)


def test_every_disturbance_changes_pixels_and_zero_leaves_them():
    rng = np.random.default_rng(0)
    search = jnp.asarray(rng.integers(0, 256, (24, 24, 3)), jnp.float32)
    templates = jnp.asarray(rng.integers(0, 256, (2, 16, 16, 3)), jnp.float32)

    def mean_changes(settings: AugmentConfig) -> list[float]:
        disturb = quick_jit(lambda key, *crops: device.disturb(DeviceRandom(key), *crops, settings))
        after = disturb(jax.random.key(0), templates, search)
        return [float(jnp.abs(a - b).mean()) for a, b in zip(after, (templates, search), strict=True)]

    assert max(mean_changes(NONE)) < 1e-4
    bounds = {"max_blur": 1.2, "max_motion_blur": 3.0, "max_noise": 9.0}
    chances = ("grey", "blur", "motion_blur", "coarse", "noise")
    for change in (
        {"brightness": 0.3, "independent": 0.5},
        {"separate_gain": 0.3},
        *({f"{name}_probability": 1.0} | bounds for name in chances),
    ):
        assert min(mean_changes(replace(NONE, **change))) > 0.5, change


def test_occluders_hide_a_part_of_the_target(render):
    whole = render(bare("video"))
    hidden = render(replace(bare("video"), augment=replace(UNDISTURBED, occluder_probability=1.0, max_occluded=0.5)))
    np.testing.assert_array_equal(whole["box_cxcywh"], hidden["box_cxcywh"])
    np.testing.assert_array_equal(whole["templates"], hidden["templates"])
    red = [(batch["search"][..., 0] > 128).sum(axis=(1, 2)) for batch in (whole, hidden)]
    assert (red[1] >= 0.4 * red[0]).all() and (red[1] < 0.95 * red[0]).mean() > 0.5


def test_distractors_and_occluders_are_pasted(render):
    def red(**changes: object) -> np.ndarray:
        settings = replace(bare("pasted"), synthetic=replace(ALONE, **changes))
        return (render(settings)["search"][..., 0] > 128).sum((1, 2))

    alone = red()
    assert (red(max_distractors=3) > alone.max()).sum() > COUNT / 4
    occluded = red(occluder=1.0)
    assert (occluded != alone).mean() > 0.5 and (occluded >= alone).all()


@given(
    flip=st.booleans(),
    rotation=st.floats(-0.4, 0.4),
    log_aspect=st.floats(-0.3, 0.3),
    shear=st.floats(-0.2, 0.2),
    zoom=st.floats(0.5, 2.0),
    offset=st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
)
def test_geometry_is_that_of_the_host(flip, rotation, log_aspect, shear, zoom, offset):
    linear = views.linear_map(flip, rotation, math.exp(log_aspect), shear)
    ours = device_pixels.linear_map(flip, rotation, math.exp(log_aspect), shear)
    np.testing.assert_allclose(ours, linear, atol=1e-6)
    outline = np.array([[30.0, 20.0], [60.0, 25.0], [55.0, 48.0], [28.0, 50.0]])
    theirs = views.target_view(outline, linear, 4.0, 128, views.Placement(zoom, offset))
    view = views.target_view(
        jnp.asarray(outline, jnp.float32), ours, 4.0, 128, views.Placement(zoom, jnp.asarray(offset))
    )
    np.testing.assert_allclose(view.matrix, theirs.matrix, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(view.box_cxcywh, theirs.box_cxcywh, atol=1e-5)
    seen = device_pixels.seen_share(view.matrix, 128, jnp.array([90.0, 70.0]))
    np.testing.assert_allclose(seen, views.seen_share(theirs.matrix, 128, (90, 70)), atol=0.07)


def test_pixels_are_those_of_the_host():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (90, 120, 3), np.uint8), (0, 0), 2.0)
    levels = pyramid(image)
    images = packed_images([levels])
    look_up = jax.jit(device_pixels.warp, static_argnums=3)
    for scale, finer, border in ((2.0, 0, False), (0.6, 0, True), (0.4, 0, False), (0.4, 1, True)):
        linear = views.linear_map(True, 0.3, 1.2, 0.1) * scale
        matrix = np.column_stack([linear, np.array([40.0, -10.0])])
        kind = cv2.BORDER_REPLICATE if border else cv2.BORDER_CONSTANT
        theirs = views.warp(levels, matrix, (64, 64), finer, kind)
        ours = look_up(images, jnp.asarray(0), jnp.asarray(matrix, jnp.float32), 64, finer, border)[..., :3]
        # OpenCV's weights are 32nds.
        assert np.abs(np.asarray(ours) - theirs).max() < 6


def test_disturbances_are_those_of_the_host():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (40, 40, 3), np.uint8), (0, 0), 1.0)
    pixels = jnp.asarray(image, jnp.float32)
    light = host_augment.Light(0.1, -0.2, 0.15, 0.3, (0.1, 0.0, -0.1))
    ours = device_pixels.relight(
        pixels, host_augment.Light(*map(jnp.asarray, (0.1, -0.2, 0.15, 0.3)), jnp.asarray(light.colour))
    )
    assert np.abs(np.asarray(ours) - host_augment.relight(image, light)).max() < 3
    for deviation in (0.5, 1.2):
        matrix = device_pixels.blur_matrix(40, jnp.asarray(deviation))
        theirs = cv2.GaussianBlur(image, (0, 0), deviation)
        assert np.abs(np.einsum("ij,kl,jlc->ikc", matrix, matrix, image) - theirs).max() < 1.6
    for keep in (0.45, 0.8):
        matrix = device_pixels.coarse_matrix(40, jnp.asarray(keep))
        small = cv2.resize(image, (round(40 * keep),) * 2, interpolation=cv2.INTER_AREA)
        theirs = cv2.resize(small, (40, 40), interpolation=cv2.INTER_LINEAR)
        assert np.abs(np.einsum("ij,kl,jlc->ikc", matrix, matrix, image) - theirs).max() < 2.5
    for length, angle in ((3.2, 0.3), (6.5, 2.0)):
        kernel = np.asarray(device_pixels.line_kernel(jnp.asarray(length), jnp.asarray(angle), 3))
        theirs = host_augment.line_kernel(length, angle)
        edge = (7 - len(theirs)) // 2
        np.testing.assert_allclose(kernel, np.pad(theirs, edge), atol=1e-5)


def test_draws_are_uniform_and_never_repeated():
    draws = DeviceRandom(jax.random.key(0))
    drawn = np.concatenate([draws.uniform(shape=(50,)), draws.uniform(shape=(100,)), draws.uniform(2, 3, (50,)) - 2])
    assert len(np.unique(drawn)) > 195 and 0.4 < drawn.mean() < 0.6
    picked = np.asarray(draws.below(3, (300,)))
    assert set(picked) == {0, 1, 2}
    assert abs(float(draws.normal((400,)).std()) - 1) < 0.15
