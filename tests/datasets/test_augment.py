"""Disturbances: they keep shapes, stay within their limits, and do nothing when switched off."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.data.augment import (
    AugmentConfig,
    Light,
    Random,
    degrade,
    disturb,
    draw_light,
    draw_quality,
    line_kernel,
    occlude,
    relight,
)

OFF = AugmentConfig(**dict.fromkeys(vars(AugmentConfig()), 0.0))


def picture(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def test_nothing_happens_when_everything_is_off():
    rng = Random(np.random.default_rng(0))
    templates, search = np.stack([picture(16), picture(16, 1)]), picture(32, 2)
    new_templates, new_search = disturb(rng, templates, search, OFF)
    np.testing.assert_array_equal(new_templates, templates)
    np.testing.assert_array_equal(new_search, search)
    assert OFF.draw_aspect(rng) == 1.0


def test_light_is_drawn_within_its_bounds():
    config = AugmentConfig(brightness=0.3, contrast=0.2, gamma=0.1, saturation=0.4, colour=0.05)
    rng = Random(np.random.default_rng(0))
    lights = [draw_light(rng, config, strength=0.5) for _ in range(500)]
    for name in ("brightness", "contrast", "gamma", "saturation", "colour"):
        drawn = np.abs([getattr(light, name) for light in lights]).max()
        bound = 0.5 * getattr(config, name)
        assert 0.9 * bound < drawn <= bound


def test_relight_multiplies_and_turns_grey():
    image = np.full((4, 4, 3), (40, 80, 120), np.uint8)
    brighter = relight(image, Light(brightness=float(np.log(2.0))))
    np.testing.assert_array_equal(brighter[0, 0], [80, 160, 240])
    grey = relight(image, Light(saturation=-20.0))
    assert np.ptp(grey[0, 0].astype(int)) <= 1
    flat = relight(image, Light(contrast=-20.0))
    assert np.all(np.abs(flat.astype(int) - 128) <= 1)


def test_grey_is_joint():
    config = AugmentConfig(grey_probability=1.0, noise_probability=0.0)
    templates, search = disturb(
        Random(np.random.default_rng(3)), np.stack([picture(16), picture(16, 1)]), picture(32), config
    )
    for image in (templates, search):
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("name", ["blur", "motion_blur", "coarse", "noise"])
def test_each_degradation_changes_the_picture_and_keeps_its_mean(name):
    values = vars(OFF) | {
        f"{name}_probability": 1.0,
        "max_blur": 1.2,
        "max_motion_blur": 7.0,
        "max_noise": 10.0,
    }
    image = np.clip(picture(48), 40, 215)
    random = Random(np.random.default_rng(0))
    changed = degrade(image, draw_quality(random, AugmentConfig(**values)), random.rng)
    assert changed.shape == image.shape and changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    assert abs(float(changed.mean()) - float(image.mean())) < 2.0


@given(length=st.floats(1.0, 12.0), angle=st.floats(0.0, np.pi))
def test_line_kernel_is_a_symmetric_average(length, angle):
    kernel = line_kernel(length, angle)
    assert kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)


@given(seed=st.integers(0, 10_000))
def test_an_occluder_hides_no_more_than_allowed(seed):
    config = AugmentConfig(max_occluded=0.4)
    search = np.zeros((64, 64, 3), np.uint8)
    box = np.array([0.5, 0.5, 0.5, 0.25], np.float32)
    result = occlude(Random(np.random.default_rng(seed)), search, box, np.full((8, 8, 3), 255, np.uint8), config)
    inside = result[24:40, 16:48, 0] > 0
    assert inside.mean() <= 0.4 + 0.1  # whole pixels
    assert inside.any()
    assert not search.any()


def test_wrong_strengths_are_named():
    with pytest.raises(ValueError, match=r"blur_probability is 1\.5"):
        AugmentConfig(blur_probability=1.5)
    with pytest.raises(ValueError, match="contrast is nan"):
        AugmentConfig(contrast=float("nan"))
