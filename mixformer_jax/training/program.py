"""The compiled programs of a run and the abstract arrays they take: all that `train` runs and `plan` weighs.

Nothing here reads data, makes arrays or needs a folder: `train_program(...).step.lower(program.state, program.batch)`
compiles the real step for whatever devices the mesh holds, present or not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.objective import Objective
from mixformer_jax.training.settings import RunConfig
from mixformer_jax.training.sharding import BATCH, batch_axis_size, gather_params, tree_shardings, with_shardings
from mixformer_jax.training.steps import TrainState, make_train_step, make_validation_step, new_train_state


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
    """Clipped AdamW with a lower rate for the backbone (the paper, section 4.1); frozen parameters do not come here.

    Kernels alone decay. The official trainer decays everything, biases, norms and tokens too; at its rates that shrinks
    them by 0.3 to 0.4% in 500 epochs (the sum of rate x decay over the steps), and by a tenth of that in the backbone.
    """
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


class TrainProgram(NamedTuple):
    """Jitted functions with their shardings, and abstract arguments for them.

    Attributes:
        mesh: where it runs.
        init: `key -> state`, every array made where it lives.
        step: `state, batch -> state, report`. The old state's buffers are given up.
        evaluate: `variables, batch, weights -> sums`.
        show: `variables, batch -> what to draw`, whole on every process.
        state: the state as abstract arrays with shardings.
        batch: a global batch of `train.batch_size` samples, likewise.
    """

    mesh: Mesh
    init: Any
    step: Any
    evaluate: Any
    show: Any
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]


def train_program(objective: Objective, settings: RunConfig, mesh: Mesh) -> TrainProgram:
    """The programs of one run on one mesh.

    Raises:
        ConfigError: a batch that does not divide among the mesh's devices and the parts of `train.accumulate`.
    """
    parts = batch_axis_size(mesh) * settings.accumulate
    if settings.batch_size % parts:
        raise ConfigError(
            f"train.batch_size {settings.batch_size} does not divide into {parts} parts: train.accumulate "
            f"{settings.accumulate} for each of {batch_axis_size(mesh)} devices (data x fsdp)"
        )
    optimizer = make_optimizer(settings, objective)
    start = functools.partial(new_train_state, objective, optimizer, settings.ema_decay)
    shapes = jax.eval_shape(start, jax.random.key(settings.seed))
    shardings = tree_shardings(shapes, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, BATCH)
    batch = objective.batch_shapes(settings.batch_size)
    batch_shardings = dict.fromkeys(batch, split)
    shipped = shardings.shipped

    def on_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
        """Traced in the mesh's context: attention is computed by the kernel of its devices, split as the batch is."""

        @functools.wraps(function)
        def traced(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)

        return traced

    gather = functools.partial(gather_params, shardings=shardings.params)
    step = make_train_step(objective, optimizer, gather, settings.ema_decay, settings.accumulate)
    # Initialisation runs once: on a CPU, where XLA takes long to optimise it, optimising costs more than it saves.
    quick = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    return TrainProgram(
        mesh=mesh,
        init=jax.jit(start, out_shardings=shardings, compiler_options=quick),
        step=jax.jit(
            on_mesh(step), in_shardings=(shardings, batch_shardings), out_shardings=(shardings, whole), donate_argnums=0
        ),
        evaluate=jax.jit(
            on_mesh(make_validation_step(objective, gather)),
            in_shardings=(shipped, batch_shardings, split),
            out_shardings=whole,
        ),
        show=jax.jit(on_mesh(objective.show), in_shardings=(shipped, batch_shardings), out_shardings=whole),
        state=with_shardings(shapes, shardings),
        batch=with_shardings(batch, batch_shardings),
    )


def weights_shape(settings: RunConfig, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The abstract `weights` of `TrainProgram.evaluate`."""
    return jax.ShapeDtypeStruct((settings.batch_size,), jnp.float32, sharding=NamedSharding(mesh, BATCH))
