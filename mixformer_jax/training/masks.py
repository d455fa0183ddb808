"""Mask networks as objectives of the training loop: Alpha-Refine, and the decoder on a tracker's frozen backbone."""

import abc
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray, Shaped, UInt8

from mixformer_jax.convert.alpha_refine import (
    ALPHA_REFINE_FORMAT,
    AlphaRefineWeights,
    init_resnet,
    is_alpha_refine,
    read_alpha_refine,
    save_alpha_refine,
    shapes_of_alpha_refine,
)
from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.mask_decoder import (
    BACKBONE,
    Backbone,
    MaskDecoderWeights,
    load_mask_decoder,
    read_backbone,
    save_mask_decoder,
    shapes_of_masks,
)
from mixformer_jax.convert.pretrained import Initialisation, flatten
from mixformer_jax.convert.torch_files import is_ours, read_official
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.data.mask_samples import MaskDataConfig, MaskSamples
from mixformer_jax.media.images import draw_mask
from mixformer_jax.models.config import ConfigError, dataclass_from_mapping
from mixformer_jax.models.masks import AlphaRefine, AlphaRefineConfig, MaskDecoderConfig, TokenMasks
from mixformer_jax.pixels import normalise
from mixformer_jax.tracking.masks import MaskSettings
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.objective import Batch, Group, LossAndMore, Objective, Samples, Variables

NETWORKS = {kind.section: kind for kind in (AlphaRefineConfig, MaskDecoderConfig)}
"""By section of a config, by which it is told from a tracker's."""


@dataclasses.dataclass(frozen=True)
class MaskExperiment:
    """A mask network, one of the two, what it trains on, and how."""

    data: MaskDataConfig
    train: RunConfig
    alpha_refine: AlphaRefineConfig | None = None
    mask_decoder: MaskDecoderConfig | None = None

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "MaskExperiment":
        """Reads the sections `data`, `train` and the network's; ConfigError for what is unknown or cannot work."""
        named = [name for name in NETWORKS if name in config]
        if len(named) != 1 or set(config) != {*named, "data", "train"}:
            raise ConfigError(
                f"a config of masks has the sections data, train, and one of {', '.join(NETWORKS)}; this one has "
                f"{', '.join(sorted(config))}"
            )
        network: dict[str, Any] = {name: NETWORKS[name].from_dict(config[name]) for name in named}
        return cls(
            dataclass_from_mapping(MaskDataConfig, config["data"], "data"),
            dataclass_from_mapping(RunConfig, config["train"], "train"),
            **network,
        )


def mask_objective(experiment: MaskExperiment) -> "MaskObjective":
    """The objective of the network that the config names."""
    return AlphaRefineObjective(experiment) if experiment.mask_decoder is None else DecoderObjective(experiment)


class MaskObjective(Objective):
    """What both share: template, its box and a search crop in, the target's mask on that crop out.

    The run's file is what `mixformer track --masks` takes.
    """

    experiment: MaskExperiment

    @property
    def _config(self) -> Any:
        """Of the network."""
        return self.experiment.alpha_refine or self.experiment.mask_decoder

    @property
    @abc.abstractmethod
    def crop_size(self) -> int:
        """Side of the crops, pixels."""

    @abc.abstractmethod
    def logits(self, variables: Variables, batch: Batch, *, train: bool) -> tuple[Float[Array, "b s s"], Variables]:
        """Of the masks, and what a pass in training changes."""

    def losses(self, logits: Float[Array, "b s s"], masks: Array) -> Float[Array, " b"]:
        """Of every sample."""
        return mask_losses(logits, masks)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        size = self.crop_size
        crop = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
        return {
            "template": crop,
            "box_xyxy": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32),
            "search": crop,
            "mask": jax.ShapeDtypeStruct((batch_size, size, size), jnp.uint8),
        }

    def loss(self, variables: Variables, batch: Batch, key: PRNGKeyArray) -> LossAndMore:
        logits, updates = self.logits(variables, batch, train=True)
        mask = jnp.asarray(batch["mask"])
        loss = jnp.mean(self.losses(logits, mask))
        return loss, ({"loss": loss, "iou": jnp.mean(_overlaps(_is_inside(logits), mask > 0))}, updates)

    def measure(self, variables: Variables, batch: Batch) -> dict[str, Float[Array, " b"]]:
        """The loss, the mask's overlap with the true one, and for comparison that of boxes, filled: the true one's, and
        the one that the crop was cut around, as a tracker gives it."""
        logits, mask = self.logits(variables, batch, train=False)[0], jnp.asarray(batch["mask"])
        return {
            "iou": _overlaps(_is_inside(logits), mask > 0),
            "box_iou": _overlaps(_filled_box(mask > 0), mask > 0),
            "given_box_iou": _overlaps(_middle(mask, self.experiment.data.factor), mask > 0),
            "loss": self.losses(logits, mask),
        }

    def rank(self, measured: Mapping[str, float]) -> float:
        return measured["iou"]

    def samples(self) -> Samples:
        return MaskSamples(self.experiment.data, self.crop_size, self.experiment.train.seed)

    def validation_samples(self) -> Samples | None:
        if self.experiment.data.held_out_every == 0:
            return None
        return MaskSamples(self.experiment.data, self.crop_size, seed=0, held_out=True)

    def show(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        return {"found": _is_inside(self.logits(variables, batch, train=False)[0])}

    def draw(self, batch: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
        """Up to 16 samples, a row each: template, search region, the true mask (green) and the found (red) on that."""
        rows = []
        for index in range(min(self.MAX_SAMPLES, len(batch["search"]))):
            image = batch["search"][index]
            true = draw_mask(image, batch["mask"][index] > 0, self.TRUE)
            found = draw_mask(image, shown["found"][index], self.FOUND)
            rows.append(np.concatenate([batch["template"][index], image, true, found], axis=1))
        return np.concatenate(rows, axis=0)


class AlphaRefineObjective(MaskObjective):
    """Alpha-Refine: all parameters train alike, by the cross entropy of every pixel."""

    @functools.cached_property
    def model(self) -> AlphaRefine:
        return AlphaRefine(self._config)

    @property
    def crop_size(self) -> int:
        return int(self._config.crop_size)

    def logits(self, variables: Variables, batch: Batch, *, train: bool) -> tuple[Float[Array, "b s s"], Variables]:
        template, search = normalise(jnp.asarray(batch["template"])), normalise(jnp.asarray(batch["search"]))
        images = (template, jnp.asarray(batch["box_xyxy"]), search)
        if not train:
            return cast(Array, self.model.apply(variables, *images)), {}
        found = self.model.apply(variables, *images, train=True, mutable=["batch_stats"])
        return cast(tuple[Array, Variables], found)

    def start_from(self, source: str | Path) -> Initialisation:
        """Another mask network, ours or official, whole; or a ResNet of torchvision's names, as the backbone."""
        path, config = find_weights(source), self._config
        if not is_ours(ALPHA_REFINE_FORMAT, path) and not is_alpha_refine(read_official(path).tensors):
            return init_resnet(path, config)
        found = read_alpha_refine(path)
        return _whole(f"{path}: a mask network", found, config, shapes_of_alpha_refine(config))

    def export(self, path: Path, variables: Variables) -> None:
        save_alpha_refine(path, variables, self._config)


class DecoderObjective(MaskObjective):
    """The decoder alone, by cross entropy and Dice loss; the tracker's backbone comes with its weights, and stays."""

    @functools.cached_property
    def _backbone(self) -> Backbone:
        return read_backbone(self._config)

    @functools.cached_property
    def model(self) -> TokenMasks:
        return TokenMasks(self._backbone.tracker, self._config)

    @property
    def crop_size(self) -> int:
        return self._backbone.tracker.search_size

    @property
    def identity(self) -> None:
        """The backbone comes from a file."""

    def init(self, key: PRNGKeyArray) -> Variables:
        fresh = flatten_dict(self.model.initial_values(key), sep="/")
        trained = {name: jnp.asarray(value) for name, value in self._backbone.values.items()}
        return unflatten_dict(fresh | trained, sep="/")

    def group(self, path: tuple[str, ...]) -> Group:
        return "frozen" if path[0] == BACKBONE else "rest"

    def logits(self, variables: Variables, batch: Batch, *, train: bool) -> tuple[Float[Array, "b s s"], Variables]:
        return cast(Array, self.model.apply(variables, normalise(jnp.asarray(batch["search"])))), {}

    def losses(self, logits: Float[Array, "b s s"], masks: Array) -> Float[Array, " b"]:
        return super().losses(logits, masks) + dice_losses(logits, masks)

    def start_from(self, source: str | Path) -> Initialisation:
        """Another decoder on the same backbone."""
        path, config = find_weights(source), self._config
        found = load_mask_decoder(path)
        return _whole(f"{path}: a mask decoder", found, config, shapes_of_masks(found.tracker, config))

    def export(self, path: Path, variables: Variables) -> None:
        save_mask_decoder(path, variables, self._config)


def mask_losses(logits: Float[Array, "b h w"], masks: Shaped[Array, "b h w"]) -> Float32[Array, " b"]:
    """Binary cross entropy of a mask's logits, the mean over each sample's pixels; 1: the pixel is the target's."""
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), masks.astype(jnp.float32))
    return jnp.mean(losses, axis=(1, 2))


def dice_losses(logits: Float[Array, "b h w"], masks: Shaped[Array, "b h w"]) -> Float32[Array, " b"]:
    """1 - Dice coefficient of the probabilities and each mask (Milletari et al. 2016), one pixel added to both sums.

    Small targets count as much as large ones, which in the cross entropy of all pixels they do not.
    """
    found, masks = jax.nn.sigmoid(logits.astype(jnp.float32)), masks.astype(jnp.float32)
    common, both = (jnp.sum(each, axis=(1, 2)) for each in (found * masks, found + masks))
    return 1 - (2 * common + 1) / (both + 1)


def _whole(
    what: str,
    found: AlphaRefineWeights | MaskDecoderWeights,
    config: AlphaRefineConfig | MaskDecoderConfig,
    expected: Iterable[str],
) -> Initialisation:
    """All of another network, which must have the same sizes."""
    if dataclasses.replace(found.config, name=config.name) != config:
        raise WeightsError(f"{what} of other sizes: {found.config}; expected {config}")
    return Initialisation.of(flatten(found.variables), expected, ())


def _is_inside(logits: Float[Array, "b s s"]) -> Bool[Array, "b s s"]:
    """By the threshold with which masks are tracked."""
    return jax.nn.sigmoid(logits) > MaskSettings().threshold


def _overlaps(found: Bool[Array, "#b s s"], mask: Bool[Array, "b s s"]) -> Float[Array, " b"]:
    common, union = (jnp.sum(pixels, axis=(1, 2)) for pixels in (found & mask, found | mask))
    return common / jnp.maximum(union, 1)


def _filled_box(mask: Bool[Array, "b s s"]) -> Bool[Array, "b s s"]:
    def between(line: Bool[Array, "b s"]) -> Bool[Array, "b s"]:
        return (jnp.cumsum(line, axis=1) > 0) & (jnp.cumsum(line[:, ::-1], axis=1)[:, ::-1] > 0)

    return between(mask.any(axis=2))[:, :, None] & between(mask.any(axis=1))[:, None, :]


def _middle(mask: Array, factor: float) -> Bool[Array, "1 s s"]:
    """The box that a crop of this factor was cut around."""
    size = mask.shape[1]
    inside = jnp.abs(jnp.arange(size) + 0.5 - size / 2) < size / factor / 2
    return (inside[:, None] & inside[None, :])[None]
