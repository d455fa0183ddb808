"""MixFormer: a backbone of mixed attention and a box head; `build_model` makes one of a config."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixformer_jax.boxes import xyxy_to_cxcywh
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.heads import CornerHead
from mixformer_jax.models.vit import MixViTBackbone, TemplateCache


class Prediction(NamedTuple):
    """What a search crop shows: the target's box, normalised to the crop, and what it was read from.

    `scores` is None as long as the model has no score prediction module.
    """

    boxes_cxcywh: Float[Array, "b 4"]
    top_left_logits: Float[Array, "b h w"]
    bottom_right_logits: Float[Array, "b h w"]
    features: Float[Array, "b h w c"]
    scores: Float[Array, " b"] | None = None


class MixFormer(nn.Module):
    """The end-to-end tracker of the paper's section 3.

    Two calls make a forward pass, in training and in tracking alike: `encode_templates`, then `locate`.
    Images come in normalised (`crops.normalise`), NHWC float32.
    """

    config: MixFormerConfig

    def setup(self) -> None:
        config = self.config
        self.backbone = MixViTBackbone(config)
        self.head = CornerHead(config.head, config.head_width, config.head_norm, jnp.dtype(config.dtype))

    def encode_templates(
        self,
        templates: Float[Array, "b slots T T 3"],
        filled: Bool[Array, "b slots"] | None = None,
        *,
        train: bool = False,
    ) -> TemplateCache:
        """Encodes the templates once, for any number of search regions.

        Args:
            templates: normalised crops, slot 0 the initial template, the others online templates.
            filled: which slots hold a template; None for all. At least one slot must be filled.
            train: whether stochastic depth draws.
        """
        return self.backbone.encode_templates(templates, filled, train=train)

    def locate(self, cache: TemplateCache, search: Float[Array, "b S S 3"], *, train: bool = False) -> Prediction:
        """Finds the cached target in normalised search crops."""
        features = self.backbone.locate(cache, search, train=train)
        corners = self.head(features, train=train)
        return Prediction(
            boxes_cxcywh=xyxy_to_cxcywh(corners.boxes_xyxy),
            top_left_logits=corners.top_left_logits,
            bottom_right_logits=corners.bottom_right_logits,
            features=features,
        )

    def __call__(
        self,
        templates: Float[Array, "b slots T T 3"],
        search: Float[Array, "b S S 3"],
        filled: Bool[Array, "b slots"] | None = None,
        *,
        train: bool = False,
    ) -> Prediction:
        """The training call: both steps for every sample."""
        return self.locate(self.encode_templates(templates, filled, train=train), search, train=train)


def build_model(config: MixFormerConfig) -> MixFormer:
    """The model of a config; its variables come from `init_variables` or a weights file."""
    return MixFormer(config)


def init_variables(model: MixFormer, key: Array) -> dict:
    """Fresh variables (`params`, and `batch_stats` or `constants` of the head's norms) for a model."""
    # Initialisation runs once: on a CPU, where XLA takes long to optimise it, optimising costs more than it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(functools.partial(_init, model), compiler_options=options)(key)


def variable_shapes(model: MixFormer) -> dict:
    """The tree of `init_variables` as shapes and types, at no cost."""
    return jax.eval_shape(functools.partial(_init, model), jax.random.key(0))


def _init(model: MixFormer, key: Array) -> dict:
    config = model.config
    templates = jnp.zeros((1, 1, config.template_size, config.template_size, 3))
    return dict(model.init(key, templates, jnp.zeros((1, config.search_size, config.search_size, 3))))
