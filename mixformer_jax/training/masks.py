"""Alpha-Refine's mask network as an objective of the training loop: cross entropy of every pixel of the search crop."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from mixformer_jax.convert.alpha_refine import (
    ALPHA_REFINE_FORMAT,
    init_resnet,
    is_alpha_refine,
    read_alpha_refine,
    save_alpha_refine,
    shapes_of_alpha_refine,
)
from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.pretrained import Initialisation
from mixformer_jax.convert.torch_files import read_official
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.crops import normalise
from mixformer_jax.data.mask_samples import MaskDataConfig, MaskSamples
from mixformer_jax.models.alpha_refine import AlphaRefine, AlphaRefineConfig
from mixformer_jax.models.config import ConfigError, dataclass_from_mapping
from mixformer_jax.tracking.masks import MaskSettings
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.losses import mask_losses
from mixformer_jax.training.objective import Batch, Objective, Samples, Variables
from mixformer_jax.training.sheets import mask_sheet
from mixformer_jax.training.start import is_ours


@dataclasses.dataclass(frozen=True)
class MaskExperiment:
    """A mask network, what it trains on, and how."""

    alpha_refine: AlphaRefineConfig
    data: MaskDataConfig
    train: RunConfig

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "MaskExperiment":
        """Reads the sections `alpha_refine`, `data` and `train`; ConfigError for what is unknown or cannot work."""
        sections = {"alpha_refine", "data", "train"}
        if set(config) != sections:
            raise ConfigError(f"a config of masks has the sections {sorted(sections)}; this one has {sorted(config)}")
        return cls(
            AlphaRefineConfig.from_dict(config["alpha_refine"]),
            dataclass_from_mapping(MaskDataConfig, config["data"], "data"),
            dataclass_from_mapping(RunConfig, config["train"], "train"),
        )


@dataclasses.dataclass(frozen=True)
class MaskObjective(Objective):
    """Template, its box and a search crop in, the target's mask on that crop out. All parameters train alike.

    The run's file is what `mixformer track --masks` takes.
    """

    experiment: MaskExperiment

    @functools.cached_property
    def model(self) -> AlphaRefine:
        return AlphaRefine(self._config)

    @property
    def _config(self) -> AlphaRefineConfig:
        return self.experiment.alpha_refine

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        size = self._config.crop_size
        crop = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
        return {
            "template": crop,
            "box_xyxy": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32),
            "search": crop,
            "mask": jax.ShapeDtypeStruct((batch_size, size, size), jnp.uint8),
        }

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[dict[str, Array], Variables]]:
        found = self.model.apply(variables, *_inputs(batch), train=True, mutable=["batch_stats"])
        logits, updates = cast(tuple[Array, dict[str, Any]], found)
        mask = jnp.asarray(batch["mask"])
        loss = jnp.mean(mask_losses(logits, mask))
        return loss, ({"loss": loss, "iou": jnp.mean(_overlaps(_is_inside(logits), mask > 0))}, updates)

    def measure(self, variables: Variables, batch: Batch) -> dict[str, Float[Array, " b"]]:
        """The loss, the mask's overlap with the true one, and for comparison that of the true one's box, filled."""
        logits, mask = self._logits(variables, batch), jnp.asarray(batch["mask"])
        return {
            "iou": _overlaps(_is_inside(logits), mask > 0),
            "box_iou": _overlaps(_filled_box(mask > 0), mask > 0),
            "loss": mask_losses(logits, mask),
        }

    def rank(self, measured: Mapping[str, float]) -> float:
        return measured["iou"]

    def samples(self) -> Samples:
        return MaskSamples(self.experiment.data, self._config.crop_size, self.experiment.train.seed)

    def validation_samples(self) -> Samples | None:
        if self.experiment.data.held_out_every == 0:
            return None
        return MaskSamples(self.experiment.data, self._config.crop_size, seed=0, held_out=True)

    def show(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        return {"found": _is_inside(self._logits(variables, batch))}

    def draw(self, batch: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
        return mask_sheet(batch["template"], batch["search"], batch["mask"] > 0, shown["found"])

    def start_from(self, source: str | Path) -> Initialisation:
        """Another mask network, ours or official, whole; or a ResNet of torchvision's names, as the backbone."""
        path, config = find_weights(source), self._config
        if not is_ours(ALPHA_REFINE_FORMAT, path) and not is_alpha_refine(read_official(path).tensors):
            return init_resnet(path, config)
        found = read_alpha_refine(path)
        if dataclasses.replace(found.config, name=config.name) != config:
            raise WeightsError(f"{path}: a mask network of other sizes: {found.config}; expected {config}")
        values = {name: np.asarray(value) for name, value in flatten_dict(found.variables, sep="/").items()}
        return Initialisation.of(values, shapes_of_alpha_refine(config), ())

    def export(self, path: Path, variables: Variables) -> None:
        save_alpha_refine(path, variables, self._config)

    def _logits(self, variables: Variables, batch: Batch) -> Float[Array, "b s s"]:
        return cast(Array, self.model.apply(variables, *_inputs(batch)))


def _inputs(batch: Batch) -> tuple[Array, Array, Array]:
    template, search = normalise(jnp.asarray(batch["template"])), normalise(jnp.asarray(batch["search"]))
    return template, jnp.asarray(batch["box_xyxy"]), search


def _is_inside(logits: Float[Array, "b s s"]) -> Bool[Array, "b s s"]:
    """By the threshold with which masks are tracked."""
    return jax.nn.sigmoid(logits) > MaskSettings().threshold


def _overlaps(found: Bool[Array, "b s s"], mask: Bool[Array, "b s s"]) -> Float[Array, " b"]:
    common, union = (jnp.sum(pixels, axis=(1, 2)) for pixels in (found & mask, found | mask))
    return common / jnp.maximum(union, 1)


def _filled_box(mask: Bool[Array, "b s s"]) -> Bool[Array, "b s s"]:
    def between(line: Bool[Array, "b s"]) -> Bool[Array, "b s"]:
        return (jnp.cumsum(line, axis=1) > 0) & (jnp.cumsum(line[:, ::-1], axis=1)[:, ::-1] > 0)

    return between(mask.any(axis=2))[:, :, None] & between(mask.any(axis=1))[:, None, :]
