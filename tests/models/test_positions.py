import numpy as np
import pytest

from mixformer_jax.models.layers import resize_positions, sincos_positions


@pytest.mark.parametrize("grid", [4, 6, 14])
def test_sincos_table(golden, grid):
    expected = golden("posembed.npz")[f"sincos_48_{grid}"]
    np.testing.assert_allclose(sincos_positions(grid, 48), expected, atol=1e-12)


@pytest.mark.parametrize("grid", [8, 18])
def test_bicubic_resize(golden, grid):
    arrays = golden("posembed.npz")
    found = resize_positions(arrays["interp/src_197"][0, 1:], grid)
    np.testing.assert_allclose(found, arrays[f"interp/out_{grid}"][0, 1:], atol=1e-5)


def test_a_table_that_is_no_grid():
    with pytest.raises(ValueError, match="195 rows is no square grid"):
        resize_positions(np.zeros((195, 8), np.float32), 4)
