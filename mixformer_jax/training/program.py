"""A run's train and validation steps, pure functions of explicit state for any objective, compiled for a mesh. Nothing
here reads data, makes arrays or needs a folder: the steps compile for devices that are not there, too (`plan`)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, PRNGKeyArray, PyTree, UInt32

from mixformer_jax.kept_programs import KeptJit, kept
from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.objective import Batch, LossAndMore, Objective, Variables
from mixformer_jax.training.sharding import BATCH, batch_axis_size, gather_params, tree_shardings, with_shardings


class TrainState(NamedTuple):
    """All that a run carries from step to step."""

    step: Int32[Array, ""]  # steps done
    key: UInt32[Array, " words"]  # of the run; a step's own key is this one, folded with the step
    params: dict[str, Any]  # all parameters, frozen ones too
    model_state: dict[str, Any]  # the model's other collections (batch statistics, constants)
    opt_state: optax.OptState  # the optimizer's, of the trained parameters alone
    ema: Variables  # moving average of all variables; empty where none is kept

    @property
    def variables(self) -> Variables:
        """The model's variables, as the last step left them."""
        return {"params": self.params, **self.model_state}

    @property
    def shipped(self) -> Variables:
        """The variables to validate and to ship: the averaged ones where an average is kept."""
        return self.ema or self.variables


class StepReport(NamedTuple):
    """What a step tells about itself."""

    metrics: dict[str, Float[Array, ""]]  # for the log; among them `loss` and `gradient_norm`
    gradient_squares: Float[Array, " parameters"]  # sums over each trained parameter's, in the order of `trained_names`


def split_params(objective: Objective, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters that train, and the frozen ones, both as trees."""
    flat = flatten_dict(params)
    trained = {path: value for path, value in flat.items() if objective.group(path) != "frozen"}
    frozen = {path: value for path, value in flat.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def trained_names(objective: Objective, params: Mapping[str, Any]) -> list[str]:
    """Names of the trained parameters in the order of the leaves of their tree."""
    leaves = jax.tree_util.tree_leaves_with_path(split_params(objective, params)[0])
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    gather: Callable[[dict[str, Any]], dict[str, Any]],
    settings: RunConfig,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepReport]]:
    """The step `state, batch -> state, report`, not jitted yet; `gather` is of all parameters about to be used.

    With `train.accumulate` the batch goes through the model in so many parts, one after the other, and their mean
    gradient makes the step. It costs one more copy of the gradients while the step runs; unlike an accumulating
    optimizer, nothing in the state and in checkpoints. Batch norms see one part at a time.
    """
    accumulate, ema_decay = settings.accumulate, settings.ema_decay

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        trained, frozen = split_params(objective, state.params)

        def joined(trained: dict[str, Any]) -> dict[str, Any]:
            return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))

        def loss_of(trained: dict[str, Any], model_state: Variables, batch: Batch, key: PRNGKeyArray) -> LossAndMore:
            return objective.loss({"params": gather(joined(trained)), **model_state}, batch, key)

        gradient_of = jax.grad(loss_of, has_aux=True)
        if accumulate == 1:
            gradients, (metrics, updates) = gradient_of(trained, state.model_state, batch, key)
            model_state = {**state.model_state, **updates}
        else:

            def part(carry: tuple[Any, Any], of_part: tuple[Batch, Array]) -> tuple[tuple[Any, Any], Any]:
                total, model_state = carry
                gradients, (metrics, updates) = gradient_of(trained, model_state, *of_part)
                return (jax.tree.map(jnp.add, total, gradients), {**model_state, **updates}), metrics

            # Every part takes each `accumulate`-th sample: then every device has an equal share of it already.
            parts = {name: rearrange(x, "(b k) ... -> k b ...", k=accumulate) for name, x in batch.items()}
            start = jax.tree.map(jnp.zeros_like, trained), state.model_state
            (total, model_state), each = jax.lax.scan(part, start, (parts, jax.random.split(key, accumulate)))
            gradients = jax.tree.map(lambda x: x / accumulate, total)
            metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), each)

        squares = jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradients)])
        metrics = {**metrics, "gradient_norm": jnp.sqrt(jnp.sum(squares))}
        changes, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = joined(optax.apply_updates(trained, changes))
        ema = state.ema
        if ema_decay:
            # A short memory at first: the average forgets the random initialisation.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update({"params": params, **model_state}, ema, 1.0 - decay)
        return TrainState(state.step + 1, state.key, params, model_state, opt_state, ema), StepReport(metrics, squares)

    return step


def learning_rate_schedule(config: RunConfig) -> optax.Schedule:
    """The head's rate at each step: warm-up, then the schedule's decay."""
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, config.steps - config.warmup_steps)
    elif config.schedule == "halving":
        every = max(1, int(config.halve_every * config.steps))
        after = optax.exponential_decay(config.learning_rate, every, 0.5, staircase=True)
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

    def has_decay(params: PyTree) -> PyTree:
        # Kernels alone are matrices or more; `table` (learnable positions) is one too, and has no decay.
        return jax.tree_util.tree_map_with_path(lambda path, _value: path[-1].key == "kernel", params)

    def adamw(rate: float) -> optax.GradientTransformation:
        return optax.adamw(
            lambda step: rate * schedule(step), b2=config.beta2, weight_decay=config.weight_decay, mask=has_decay
        )

    def group(path: tuple, _value: object) -> str:
        return objective.group(tuple(key.key for key in path))

    groups = {"backbone": adamw(config.backbone_rate), "rest": adamw(1.0)}
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.multi_transform(groups, lambda params: jax.tree_util.tree_map_with_path(group, params)),
    )


class TrainProgram(NamedTuple):
    """Jitted functions with their shardings, and abstract arguments for them."""

    mesh: Mesh  # where it runs
    init: Any  # `key -> state`, every array made where it lives
    step: KeptJit  # `state, batch -> state, report`. The old state's buffers are given up.
    evaluate: KeptJit  # `variables, batch, weights -> sums` of every metric; weight 0 leaves a sample out
    show: KeptJit  # `variables, batch -> what to draw`, whole on every process
    state: TrainState  # the state as abstract arrays with shardings
    batch: dict[str, jax.ShapeDtypeStruct]  # a global batch of `train.batch_size` samples, likewise.


def train_program(objective: Objective, settings: RunConfig, mesh: Mesh) -> TrainProgram:
    """The programs of one run on one mesh.

    Raises ConfigError for a batch that does not divide among the mesh's devices and the parts of `train.accumulate`.
    """
    parts = batch_axis_size(mesh) * settings.accumulate
    if settings.batch_size % parts:
        raise ConfigError(
            f"train.batch_size {settings.batch_size} does not divide into {parts} parts: train.accumulate "
            f"{settings.accumulate} for each of {batch_axis_size(mesh)} devices (data x fsdp)"
        )
    optimizer = make_optimizer(settings, objective)

    @functools.partial(jax.jit, inline=True)  # traced once, for its shapes and its values
    def start(key: PRNGKeyArray) -> TrainState:
        """The state before the first step."""
        variables = objective.init(key)
        trained, _frozen = split_params(objective, variables["params"])
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=variables["params"],
            model_state={name: value for name, value in variables.items() if name != "params"},
            opt_state=optimizer.init(trained),
            # The average must own its buffers: the step donates the state.
            ema=jax.tree.map(jnp.copy, variables) if settings.ema_decay else {},
        )

    identity = None if objective.identity is None else f"{objective.identity} {settings}"
    shapes = kept("train_state", identity, lambda: jax.eval_shape(start, jax.random.key(settings.seed)))
    shardings = tree_shardings(shapes, mesh)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, BATCH)
    batch = objective.batch_shapes(settings.batch_size)
    batch_shardings, shipped = dict.fromkeys(batch, split), shardings.shipped

    def program(function: Callable[..., Any], **options: Any) -> KeptJit:
        """Traced in the mesh's context: attention is computed by the kernel of its devices, split as the batch is."""

        @functools.wraps(function)
        def traced(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)

        return KeptJit(traced, identity=identity, **options)

    def sums(variables: Variables, batch: Batch, weights: Float[Array, " b"]) -> dict[str, Array]:
        measured = objective.measure({**variables, "params": gather(variables["params"])}, batch)
        return {name: jnp.sum(value * weights) for name, value in measured.items()}

    gather = functools.partial(gather_params, shardings=shardings.params)
    step = make_train_step(objective, optimizer, gather, settings)
    # Initialisation runs once: on a CPU, where XLA takes long to optimise it, optimising costs more than it saves.
    quick = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    return TrainProgram(
        mesh=mesh,
        init=jax.jit(start, out_shardings=shardings, compiler_options=quick),
        step=program(
            step, in_shardings=(shardings, batch_shardings), out_shardings=(shardings, whole), donate_argnums=0
        ),
        evaluate=program(sums, in_shardings=(shipped, batch_shardings, split), out_shardings=whole),
        show=program(objective.show, in_shardings=(shipped, batch_shardings), out_shardings=whole),
        state=with_shardings(shapes, shardings),
        batch=with_shardings(batch, batch_shardings),
    )
