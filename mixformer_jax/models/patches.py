"""Images as patches of pixels: what a masked autoencoder has to tell, and how well it did (He et al. 2022).

Patches are vectors `[b, cells, patch * patch * channels]`, ordered by row, column, channel; cells are row-major.
"""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Float32

EPSILON = 1e-6  # added to a patch's variance


def patchify(images: Float[Array, "b h w c"], patch: int) -> Float[Array, "b cells pixels"]:
    """Images as patches of `patch * patch` pixels."""
    return rearrange(images, "b (i p) (j q) c -> b (i j) (p q c)", p=patch, q=patch)


def unpatchify(patches: Float[Array, "b cells pixels"], patch: int) -> Float[Array, "b h w c"]:
    """Patches of a square image as the image."""
    grid = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (i j) (p q c) -> b (i p) (j q) c", i=grid, p=patch, q=patch)


def patch_moments(
    patches: Float[Array, "b cells pixels"],
) -> tuple[Float[Array, "b cells 1"], Float[Array, "b cells 1"]]:
    """Mean and deviation of every patch over its pixels and channels; the deviation is never 0.

    The variance is the unbiased one, plus `EPSILON`, as in MAE.
    """
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + EPSILON)


def reconstruction_losses(
    predicted: Float[Array, "b cells pixels"],
    images: Float[Array, "b h w c"],
    hidden: Bool[Array, "b cells"],
    norm_pix_loss: bool,
) -> Float32[Array, " b"]:
    """Mean squared error of each image's hidden patches (He et al. 2022, section 3).

    Args:
        predicted: patches.
        images: the truth.
        hidden: the patches that count.
        norm_pix_loss: the truth is each patch less its mean, over its deviation.
    """
    patches = patchify(images.astype(jnp.float32), _side(predicted, images))
    if norm_pix_loss:
        mean, deviation = patch_moments(patches)
        patches = (patches - mean) / deviation
    errors = jnp.mean((predicted.astype(jnp.float32) - patches) ** 2, axis=-1)
    return jnp.mean(errors, axis=1, where=hidden)


def reconstruction_loss(
    predicted: Float[Array, "b cells pixels"],
    images: Float[Array, "b h w c"],
    hidden: Bool[Array, "b cells"],
    norm_pix_loss: bool,
) -> Float32[Array, ""]:
    """The mean of `reconstruction_losses`: MAE's loss, where every image has as many hidden patches."""
    return reconstruction_losses(predicted, images, hidden, norm_pix_loss).mean()


def reconstruct(
    predicted: Float[Array, "b cells pixels"],
    images: Float[Array, "b h w c"],
    hidden: Bool[Array, "b cells"],
    norm_pix_loss: bool,
) -> Float32[Array, "b h w c"]:
    """The images with predicted patches in place of the hidden ones.

    Predictions of a normalised-pixel loss tell a patch's pattern and not its mean and deviation: these two are taken
    from the truth.
    """
    patch = _side(predicted, images)
    patches, predicted = patchify(images.astype(jnp.float32), patch), predicted.astype(jnp.float32)
    if norm_pix_loss:
        mean, deviation = patch_moments(patches)
        predicted = predicted * deviation + mean
    return unpatchify(jnp.where(hidden[..., None], predicted, patches), patch)


def _side(predicted: Float[Array, "b cells pixels"], images: Float[Array, "b h w c"]) -> int:
    return round((predicted.shape[2] / images.shape[3]) ** 0.5)
