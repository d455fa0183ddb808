import numpy as np
import pytest

from mixformer_jax.pixels import denormalise, normalise
from mixformer_jax.training.pretraining import GREY, WHITE, reconstruction_sheet


@pytest.mark.parametrize("slots", [0, 2])
def test_rows_of_the_sheet(slots):
    rng = np.random.default_rng(0)
    templates = rng.integers(0, 256, (20, slots, 16, 16, 3), np.uint8) if slots else None
    search, found = rng.integers(0, 256, (2, 20, 32, 32, 3), np.uint8)
    hidden = rng.random((20, 4)) < 0.5
    hidden[1] = [True, False, False, True]
    sheet = reconstruction_sheet(templates, search, hidden, found)
    assert sheet.shape == (18 + 16 * 36, slots * 20 + 3 * 36 - 4, 3)
    assert (sheet[:18] != WHITE).any() and (sheet[-4:] == WHITE).all()
    row = sheet[18 + 36 : 18 + 36 + 32]  # of sample 1
    for slot in range(slots):
        np.testing.assert_array_equal(row[:16, slot * 20 : slot * 20 + 16], templates[1, slot])
    masked, reconstructed, original = (row[:, slots * 20 + 36 * i :][:, :32] for i in range(3))
    np.testing.assert_array_equal(original, search[1])
    np.testing.assert_array_equal(reconstructed, found[1])
    assert (masked[:16, :16] == GREY).all() and (masked[16:, 16:] == GREY).all()
    np.testing.assert_array_equal(masked[:16, 16:], search[1, :16, 16:])
    np.testing.assert_array_equal(masked[16:, :16], search[1, 16:, :16])


def test_bytes_come_back():
    levels = np.arange(256, dtype=np.uint8)
    images = np.stack([levels, levels[::-1], levels], axis=-1)[None, None]
    np.testing.assert_array_equal(denormalise(normalise(images)), images)
    assert denormalise(np.float32([[[[9.0, -9.0, 0.0]]]])).tolist() == [[[[255, 0, 104]]]]
