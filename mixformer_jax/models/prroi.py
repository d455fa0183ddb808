"""Precise RoI pooling (Jiang et al. 2018): the mean of a bilinearly interpolated map over the bins of a box.

The bilinear kernel is a product of two hat functions, so the pooled map is two small matrix products, `A_y F A_x^T`,
where A holds the integrals of the hats over the bins. Exact, and differentiable in features and boxes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def hat_integrals(
    start: Float[Array, " b"], end: Float[Array, " b"], bins: int, cells: int
) -> Float[Array, "b bins cells"]:
    """Mean of every cell's hat function over every bin of the intervals from `start` to `end`.

    The hat of cell j rises from 0 at j - 1 to 1 at j and falls to 0 at j + 1; beyond the first and last cell values
    fade to zero. An interval without extent, or with a negative one, has mean 0.
    """
    # Each slope of the hat is integrated over the part of the bin that it covers, as shares of the bin: differences of
    # an antiderivative, or of the bins' ends, would cancel for small bins in float32.
    length = ((end - start) / bins)[:, None, None]
    has_extent = length > 0
    safe_length = jnp.where(has_extent, length, 1.0)
    low = start[:, None, None] + length * jnp.arange(bins)[:, None]
    centre = jnp.arange(cells, dtype=start.dtype)

    def slope(left: Array, height_at_left: float, direction: float) -> Array:
        a, b = (jnp.clip((x - low) / safe_length, 0.0, 1.0) for x in (left, left + 1))
        middle = low - left + 0.5 * (a + b) * safe_length
        return (b - a) * (height_at_left + direction * middle)

    mean = slope(centre - 1, 0.0, 1.0) + slope(centre, 1.0, -1.0)
    return jnp.where(has_extent, mean, 0.0)


def precise_roi_pool(
    features: Float[Array, "b h w c"], boxes_xyxy: Float[Array, "b 4"], bins: tuple[int, int]
) -> Float[Array, "b rows columns c"]:
    """Pools each map over one box of its own.

    Args:
        features: the maps.
        boxes_xyxy: in cells; the integer coordinate (x, y) is the centre of cell (row y, column x).
        bins: rows and columns of the result.
    """
    x1, y1, x2, y2 = boxes_xyxy.astype(jnp.float32).T
    rows = hat_integrals(y1, y2, bins[0], features.shape[1])
    columns = hat_integrals(x1, x2, bins[1], features.shape[2])
    pooled = jnp.einsum("bih,bhwc,bjw->bijc", rows, features.astype(jnp.float32), columns)
    return pooled.astype(features.dtype)
