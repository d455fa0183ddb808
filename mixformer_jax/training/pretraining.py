"""Masked pre-training (the paper, section 3.4) as an objective of the training loop."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.pretrained import (
    AUTOENCODER_FORMAT,
    Initialisation,
    go_on,
    init_from,
    load_autoencoder,
    save_autoencoder,
    shapes_of_autoencoder,
    start_from_mae,
)
from mixformer_jax.convert.torch_files import is_ours
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.single_images import CentreCrops, ImageSamples, ImagesConfig, open_images
from mixformer_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Reconstruction,
    draw_masking,
    reconstruct,
    reconstruction_losses,
)
from mixformer_jax.models.config import ConfigError, MixFormerConfig, dataclass_from_mapping
from mixformer_jax.models.layers import Masking
from mixformer_jax.pixels import IMAGENET_STD, denormalise, normalise
from mixformer_jax.training.experiment import RunConfig, data_section
from mixformer_jax.training.objective import Batch, Group, LossAndMore, Objective, Samples, Variables
from mixformer_jax.training.samples import training_samples, validation_samples

GREY, WHITE, INK = 128, 255, (40, 40, 40)
_GAP, _LINE = 4, 18  # of a sheet, pixels


@dataclasses.dataclass(frozen=True)
class PretrainExperiment:
    """An autoencoder, what it trains on, and how."""

    autoencoder: AutoencoderConfig  # the model
    data: DataConfig | None  # tracking data: search regions, and with them templates where the autoencoder wants some
    images: ImagesConfig | None  # single images. Exactly one of the two is given.
    train: RunConfig  # the run

    @property
    def model(self) -> MixFormerConfig:
        """The tracker whose encoder is trained."""
        return self.autoencoder.model

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "PretrainExperiment":
        """Reads the sections `autoencoder`, `train`, and either `data` or `images`.

        Raises ConfigError for an unknown section or key (the closest known one is named), or a value that cannot work.
        """
        sources = {"data", "images"} & set(config)
        if set(config) - sources != {"autoencoder", "train"} or len(sources) != 1:
            raise ConfigError(
                "a config for pre-training has the sections autoencoder and train, and one of data (tracking data) and "
                f"images (single images); this one has {', '.join(sorted(config))}"
            )
        autoencoder = AutoencoderConfig.from_dict(config["autoencoder"])
        train = dataclass_from_mapping(RunConfig, config["train"], "train")
        train.check_model(autoencoder.model)
        if "images" in config:
            if autoencoder.num_templates:
                raise ConfigError(
                    f"autoencoder.num_templates is {autoencoder.num_templates}, and single images have no templates: "
                    "give tracking data"
                )
            return cls(autoencoder, None, dataclass_from_mapping(ImagesConfig, config["images"], "images"), train)
        derived = {
            "template_size": autoencoder.model.template_size,
            "search_size": autoencoder.model.search_size,
            "num_online_templates": max(0, autoencoder.num_templates - 1),
        }
        return cls(autoencoder, data_section(config["data"], derived, "the autoencoder does"), None, train)


@dataclasses.dataclass(frozen=True)
class MaskedPretraining(Objective):
    """Reconstruction of masked search regions or images: MAE, TrackMAE or ConvMAE, as the autoencoder has it.

    The run's file is what a training takes as `train.init`.
    """

    experiment: PretrainExperiment

    @functools.cached_property
    def model(self) -> Autoencoder:
        train = self.experiment.train
        return Autoencoder(self.experiment.autoencoder, train.recomputed, train.residual_dtype)

    @property
    def _config(self) -> AutoencoderConfig:
        return self.experiment.autoencoder

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        model, slots = self._config.model, self._config.num_templates
        search = (batch_size, model.search_size, model.search_size, 3)
        shapes = {"search": jax.ShapeDtypeStruct(search, jnp.uint8)}
        if slots:
            templates = (batch_size, slots, model.template_size, model.template_size, 3)
            shapes["templates"] = jax.ShapeDtypeStruct(templates, jnp.uint8)
        return shapes

    def group(self, path: tuple[str, ...]) -> Group:
        frozen_table = path[-1] == "table" and self._config.model.positions == "interpolated_frozen"
        return "frozen" if frozen_table else "rest"

    def loss(self, variables: Variables, batch: Batch, key: PRNGKeyArray) -> LossAndMore:
        search, patches, masking = self._reconstruct(variables, batch, key)
        loss = reconstruction_losses(patches, search, masking.hidden, self._config.norm_pix_loss).mean()
        return loss, ({"loss": loss}, {})

    def measure(self, variables: Variables, batch: Batch) -> dict[str, Float[Array, " b"]]:
        """The loss, and mean squared errors of the hidden pixels, RGB from 0 to 1: of the reconstruction, and of the
        image's mean colour in its place. With `norm_pix_loss`, reconstructions know each patch's mean and deviation.
        """
        norm = self._config.norm_pix_loss
        search, patches, masking = self._reconstruct(variables, batch)
        restored = reconstruct(patches, search, masking.hidden, norm)
        mean = jnp.mean(search, axis=(1, 2), keepdims=True)
        return {
            "loss": reconstruction_losses(patches, search, masking.hidden, norm),
            "pixel_error": _pixel_errors(restored, search, masking),
            "mean_colour_error": _pixel_errors(mean, search, masking),
        }

    def rank(self, measured: Mapping[str, float]) -> float:
        return -measured["loss"]

    def samples(self) -> Samples:
        images = self.experiment.images
        if images is not None:
            opened = open_images(images.root, images.split)
            return ImageSamples(images, opened, self._config.model.search_size, self.experiment.train.seed)
        return training_samples(self.experiment, tuple(self.batch_shapes(1)))

    def validation_samples(self) -> Samples | None:
        images = self.experiment.images
        if images is None:
            return validation_samples(self.experiment, tuple(self.batch_shapes(1)))
        if images.validation_root is None and images.validation_split is None:
            return None
        held = open_images(images.validation_root or images.root, images.validation_split)
        return CentreCrops(held, self._config.model.search_size)

    def show(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        search, patches, masking = self._reconstruct(variables, batch)
        restored = reconstruct(patches, search, masking.hidden, self._config.norm_pix_loss)
        return {"reconstructed": denormalise(restored), "hidden": masking.hidden}

    def draw(self, batch: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
        return reconstruction_sheet(batch.get("templates"), batch["search"], shown["hidden"], shown["reconstructed"])

    def start_from(self, source: str | Path) -> Initialisation:
        """Another pre-training; a checkpoint of MAE, whole or its encoder; or any backbone that trackers start from."""
        path, config = find_weights(source), self._config
        if is_ours(AUTOENCODER_FORMAT, path):
            return go_on(load_autoencoder(path), config)
        model = config.model
        if model.patch_embed == "linear" and model.positions == "sincos" and not model.layer_scale:
            return start_from_mae(path, config)
        backbone, expected = init_from(path, config.encoder), shapes_of_autoencoder(config)
        taken = tuple(name for name in backbone.taken if name in expected)
        fresh = tuple(name for name in expected if name not in set(taken))
        return Initialisation(backbone.variables, taken, fresh, backbone.ignored)

    def export(self, path: Path, variables: Variables) -> None:
        save_autoencoder(path, variables, self._config)

    def _reconstruct(
        self, variables: Variables, batch: Batch, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "b S S 3"], Float[Array, "b cells values"], Masking]:
        """The normalised search regions, what the model makes of their patches, and which are hidden: with a key as in
        training; else the same in every validation, for what changes from one to the next is the model."""
        mask_key, drop_key = (jax.random.key(0), None) if key is None else jax.random.split(key)
        masking = draw_masking(self._config, mask_key, len(batch["search"]))
        search = normalise(jnp.asarray(batch["search"]))
        templates = normalise(jnp.asarray(batch["templates"])) if "templates" in batch else None
        rngs = None if drop_key is None else {"drop_path": drop_key}
        found = self.model.apply(variables, search, masking, templates, train=drop_key is not None, rngs=rngs)
        return search, cast(Reconstruction, found).patches, masking


def _pixel_errors(
    found: Float[Array, "b #S #S 3"], search: Float[Array, "b S S 3"], masking: Masking
) -> Float[Array, " b"]:
    side = search.shape[1] // masking.grid
    hidden = masking.hidden.reshape(-1, masking.grid, masking.grid, 1).repeat(side, 1).repeat(side, 2)
    errors = ((found - search) * jnp.asarray(IMAGENET_STD)) ** 2
    return jnp.mean(errors, axis=(1, 2, 3), where=hidden)


def reconstruction_sheet(
    templates: UInt8[np.ndarray, "b slots T T 3"] | None,
    search: UInt8[np.ndarray, "b S S 3"],
    hidden: Bool[np.ndarray, "b cells"],
    reconstructed: UInt8[np.ndarray, "b S S 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Up to 16 samples, a row each: templates (none of single images), masked search region, reconstruction, original.

    `hidden` cells, row-major on a square grid, are shown grey, and predicted in what is `reconstructed`.
    """
    grid = round(hidden.shape[1] ** 0.5)
    side = search.shape[1]
    covered = hidden.reshape(-1, grid, grid, 1).repeat(side // grid, axis=1).repeat(side // grid, axis=2)
    columns = {"masked": np.where(covered, np.uint8(GREY), search), "reconstruction": reconstructed, "original": search}
    crops = [] if templates is None else list(templates.swapaxes(0, 1))
    named = [*(("template", crop) for crop in crops), *columns.items()]
    count = min(Objective.MAX_SAMPLES, len(search))
    widths = [pictures.shape[2] for _, pictures in named]
    sheet = np.full((_LINE + count * (side + _GAP), sum(widths) + _GAP * (len(widths) - 1), 3), WHITE, np.uint8)
    left = 0
    for name, pictures in named:
        size = pictures.shape[1]
        cv2.putText(sheet, name, (left, _LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
        for row in range(count):
            top = _LINE + row * (side + _GAP)
            sheet[top : top + size, left : left + size] = pictures[row]
        left += size + _GAP
    return sheet
