"""MixFormer: a backbone of mixed attention, a box head, and a score module; `build_model` makes one of a config."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from mixformer_jax.models.attention import Filled
from mixformer_jax.models.backbone import Backbone, Search, SearchFeatures, TemplateCache, Templates
from mixformer_jax.models.config import BackboneKind, ComputeDtype, ConfigError, MixFormerConfig, RematPolicy
from mixformer_jax.models.cvt import MixCvTBackbone
from mixformer_jax.models.heads import ContextAugment, CornerHead, QueryHead, ScorePrediction, map_entropy
from mixformer_jax.models.vit import MixViTBackbone

BACKBONES: Mapping[BackboneKind, type[Backbone]] = MappingProxyType({"vit": MixViTBackbone, "cvt": MixCvTBackbone})

Boxes = Float[Array, "b 4"]


class Prediction(NamedTuple):
    """What a search crop shows: the target's box, normalised to the crop, and what it was read from.

    The corners' maps are None for the query head, `score_logits` for a model without a score prediction module.
    """

    boxes_cxcywh: Boxes
    top_left_logits: Float[Array, "b map_h map_w"] | None
    bottom_right_logits: Float[Array, "b map_h map_w"] | None
    features: Float[Array, "b h w c"]
    score_logits: Float[Array, " b"] | None = None

    @property
    def scores(self) -> Float[Array, " b"] | None:
        """Confidence in [0, 1] that the box holds the target."""
        return None if self.score_logits is None else jax.nn.sigmoid(self.score_logits)

    @property
    def corner_entropy(self) -> Float[Array, " b"] | None:
        """Entropy of both corners' maps together, in nats: how widely the corners are spread; None without maps."""
        if self.top_left_logits is None or self.bottom_right_logits is None:
            return None
        return map_entropy(self.top_left_logits) + map_entropy(self.bottom_right_logits)

    def scores_within(self, entropy_limit: Float[Array, " b"] | None) -> Float[Array, " b"] | None:
        """Scores, whose odds are divided by the exponential of what the corners' entropy is more than this, in nats;
        None: as they are. Not in the paper; for corner heads."""
        if entropy_limit is None or self.score_logits is None:
            return self.scores
        assert self.corner_entropy is not None  # `Tracker` refuses others
        return jax.nn.sigmoid(self.score_logits - jnp.maximum(self.corner_entropy - entropy_limit, 0))


class MixFormer(nn.Module):
    """The end-to-end tracker of the paper's section 3. Images come in normalised (`pixels.normalise`), NHWC float32.

    In tracking, a forward pass is `encode_templates`, then `locate`; in training, and for models whose templates depend
    on the search region (`config.is_cacheable` is False), the joint call. With `train`, stochastic depth draws and
    batch norms learn. `remat`, `platform`, `residual_dtype`: see `Backbone`.
    """

    config: MixFormerConfig
    remat: RematPolicy | None = None
    platform: str | None = None
    residual_dtype: ComputeDtype = "float32"

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.backbone = BACKBONES[config.backbone](config, self.remat, self.platform, self.residual_dtype)
        if config.context_augment_layers:
            self.context_augment = ContextAugment(config.context_augment_layers, dtype)
        corner_head = functools.partial(CornerHead, width=config.head_width, norm=config.head_norm, dtype=dtype)
        self.head = QueryHead(dtype) if config.head == "query" else corner_head(config.head)
        if config.score_heads:
            self.score = ScorePrediction(config.output_width, config.score_heads, dtype)

    def encode_templates(self, templates: Templates, filled: Filled = None, *, train: bool = False) -> TemplateCache:
        """Encodes the templates once, for any number of search regions.

        Slot 0 is the initial template, the others are online ones; at least one must be filled. ConfigError for models
        that have the joint call alone.
        """
        if self.config.context_augment_layers:
            raise ConfigError("context_augment_layers have no template cache: call the model on templates and search")
        return self.backbone.encode_templates(templates, filled, train=train)

    def locate(
        self, cache: TemplateCache, search: Search, score_boxes_xyxy: Boxes | None = None, *, train: bool = False
    ) -> Prediction:
        """Finds the cached target in search crops; `score_boxes_xyxy`, normalised to the crops, are scored instead of
        the predicted boxes."""
        return self._read_off(cache, self.backbone.locate(cache, search, train=train), score_boxes_xyxy, train=train)

    def __call__(
        self,
        templates: Templates,
        search: Search,
        filled: Filled = None,
        score_boxes_xyxy: Boxes | None = None,
        *,
        train: bool = False,
    ) -> Prediction:
        """The joint call: templates and search crops of every sample."""
        cache, found = self.backbone.joint(templates, search, filled, train=train)
        return self._read_off(cache, found, score_boxes_xyxy, train=train)

    def _read_off(
        self, cache: TemplateCache, found: SearchFeatures, score_boxes_xyxy: Boxes | None, *, train: bool
    ) -> Prediction:
        config, features = self.config, found.features
        if config.context_augment_layers:
            features = self.context_augment(cache.features, features, cache.filled)
        if isinstance(self.head, QueryHead):
            assert found.token is not None
            prediction = Prediction(self.head(found.token), None, None, features)
        else:
            corners = self.head(features, train=train)
            boxes_cxcywh = xyxy_to_cxcywh(corners.boxes_xyxy)
            prediction = Prediction(boxes_cxcywh, corners.top_left_logits, corners.bottom_right_logits, features)
        if not config.score_heads:
            return prediction
        boxes_xyxy = cxcywh_to_xyxy(prediction.boxes_cxcywh) if score_boxes_xyxy is None else score_boxes_xyxy
        return prediction._replace(score_logits=self.score(features, cache.features[:, 0], boxes_xyxy))

    @nn.nowrap
    def initial_values(self, key: Array) -> dict:
        """What `init_variables` computes, to be traced."""
        config, channels = self.config, self.config.channels
        templates = jnp.zeros((1, 1, config.template_size, config.template_size, channels))
        return dict(self.init(key, templates, jnp.zeros((1, config.search_size, config.search_size, channels))))


build_model = MixFormer
"""The model of a config; its variables come from `init_variables` or a weights file."""


@runtime_checkable
class Model(Protocol):
    """`MixFormer` and `Autoencoder`."""

    def initial_values(self, key: Array) -> dict: ...


def init_variables(model: Model, key: Array) -> dict:
    """Fresh variables for a model: `params`, and `batch_stats` or `constants` of norms."""
    # Initialisation runs once: on a CPU, where XLA takes long to optimise it, optimising costs more than it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(model.initial_values, compiler_options=options)(key)


def variable_shapes(model: Model) -> dict:
    """The tree of `init_variables` as shapes and types, at no cost."""
    return jax.eval_shape(model.initial_values, jax.random.key(0))
