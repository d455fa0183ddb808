"""What a run optimises: the base of the objectives that the one training loop takes. They know nothing of meshes,
optimizers, checkpoints and logs; everything but the samples works on abstract values, without data and folders."""

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from mixformer_jax.convert.pretrained import Initialisation
from mixformer_jax.data.pipeline import Samples
from mixformer_jax.kept_programs import described, is_ours

Variables = dict[str, Any]
"""A model's collections: `params`, and those that no gradient changes (`batch_stats`, `constants`)."""

Batch = Mapping[str, Array | np.ndarray]
"""Arrays by name, samples along the first axis."""

LossAndMore = tuple[Float[Array, ""], tuple[dict[str, Array], Variables]]
"""The loss of a batch, a mean over its samples; with it metrics for the log, among them `loss`, and new values of the
collections that a forward pass changes (`batch_stats`)."""

Group = Literal["backbone", "rest", "frozen"]
"""How a parameter trains: at the backbone's rate, at the full rate, or not at all."""


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """One way to train: a model with its loss. `experiment` holds all settings, those of the run in `train`."""

    experiment: Any

    # Of `draw`: samples in a picture, and RGB of what is annotated and of what the model finds.
    MAX_SAMPLES: ClassVar = 16
    TRUE: ClassVar = (0, 255, 0)
    FOUND: ClassVar = (255, 64, 64)

    @property
    @abc.abstractmethod
    def model(self) -> Any:
        """What is trained."""

    @property
    def identity(self) -> str | None:
        """Tells apart objectives whose traced functions differ; None where the settings do not decide them."""
        return described(self) if is_ours(self) else None

    def init(self, key: PRNGKeyArray) -> Variables:
        """Fresh variables; traced, so that they are made where a mesh wants them."""
        return self.model.initial_values(key)

    @abc.abstractmethod
    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What a batch of samples looks like."""

    def group(self, path: tuple[str, ...]) -> Group:
        """How the parameter at this path (`("backbone", "blocks_0", ...)`) trains."""
        return "rest"

    @abc.abstractmethod
    def loss(self, variables: Variables, batch: Batch, key: PRNGKeyArray) -> LossAndMore:
        """See `LossAndMore`."""

    @abc.abstractmethod
    def measure(self, variables: Variables, batch: Batch) -> dict[str, Float[Array, " b"]]:
        """Metrics of every sample of a validation batch."""

    @abc.abstractmethod
    def rank(self, measured: Mapping[str, float]) -> float:
        """What the best checkpoint has most of, out of the means of `measure`."""

    @abc.abstractmethod
    def samples(self) -> Samples:
        """The training samples; reads data."""

    @abc.abstractmethod
    def validation_samples(self) -> Samples | None:
        """Held-out samples, None where nothing is held out; reads data."""

    @abc.abstractmethod
    def show(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """What `draw` needs to know of a validation batch, by sample."""

    @abc.abstractmethod
    def draw(self, batch: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
        """A picture for people to look at: validation samples and what the model makes of them."""

    @abc.abstractmethod
    def start_from(self, source: str | Path) -> Initialisation:
        """What a pre-trained model gives this one.

        Raises WeightsError for a source that cannot be read, does not fit, or lacks what this objective cannot train.
        """

    @abc.abstractmethod
    def export(self, path: Path, variables: Variables) -> None:
        """Writes a file from which the trained model can be used; `variables` are numpy arrays."""
