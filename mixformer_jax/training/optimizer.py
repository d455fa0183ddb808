"""AdamW as the paper trains with it (section 4.1): a lower rate for the backbone, clipped gradients, step decay.

Kernels alone decay. The official trainer decays everything, biases, norms and tokens too; at its rates that shrinks
them by 0.3 to 0.4% in 500 epochs (the sum of rate x decay over the steps), and by a tenth of that in the backbone.
"""

import jax
import optax
from jaxtyping import PyTree

from mixformer_jax.training.objective import Objective
from mixformer_jax.training.settings import RunConfig


def learning_rate_schedule(config: RunConfig) -> optax.Schedule:
    """The head's rate at each step: warm-up, then `step` or `cosine` decay."""
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, config.steps - config.warmup_steps)
    else:
        decay_step = int(config.decay_at * config.steps) - config.warmup_steps
        after = optax.piecewise_constant_schedule(config.learning_rate, {max(decay_step, 0): 0.1})
    if config.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: RunConfig, objective: Objective) -> optax.GradientTransformation:
    """Clipped AdamW with one group for the backbone and one for the rest; frozen parameters do not come here."""
    schedule = learning_rate_schedule(config)

    def adamw(rate: float) -> optax.GradientTransformation:
        return optax.adamw(
            lambda step: rate * schedule(step), b2=config.beta2, weight_decay=config.weight_decay, mask=_has_decay
        )

    def group(path: tuple, _value: object) -> str:
        return objective.group(tuple(key.key for key in path))

    groups = {"backbone": adamw(config.backbone_rate), "rest": adamw(1.0)}
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.multi_transform(groups, lambda params: jax.tree_util.tree_map_with_path(group, params)),
    )


def _has_decay(params: PyTree) -> PyTree:
    # Kernels alone are matrices or more; `table` (learnable positions) is one too, and has no decay.
    return jax.tree_util.tree_map_with_path(lambda path, _value: path[-1].key == "kernel", params)
