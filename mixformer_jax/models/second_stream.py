"""The pixels of a second stream beside RGB, depth or thermal (Tables 12 and 13 of the paper; the design is ours).

Images of two streams have six channels: RGB, then the second stream's three. A byte of 0 in all three is a pixel at
which nothing was measured: what a depth camera does not see, and what lies outside the frame.
"""

import functools

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, UInt8

from mixformer_jax.pixels import denormalise, normalise


def measured_patches(images: Float[Array, "n h w 3"], patch: int) -> Bool[Array, "n gh gw"]:
    """The patches of normalised images in which anything was measured."""
    is_measured = (denormalise(images) > 0).any(axis=-1)
    return rearrange(is_measured, "n (i p) (j q) -> n i j (p q)", p=patch, q=patch).any(axis=-1)


def colour_mapped(images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Normalised images of three equal channels as those of `jet`."""
    return jnp.asarray(normalise(jet()))[denormalise(images)[..., 0]]


@functools.cache
def jet() -> UInt8[np.ndarray, "256 3"]:
    """The colour map: blue for 1 through green to red for 255; black for 0, where nothing was measured."""
    levels = np.arange(256)[:, None] / 255
    colours = np.rint(255 * np.clip(1.5 - np.abs(4 * levels - [3, 2, 1]), 0, 1)).astype(np.uint8)
    colours[0] = 0
    return colours
