"""Attention of whole crops for TPUs: a Pallas kernel that keeps the attention map in the chip's scratch memory (VMEM).

The streams of a tracker are short (hundreds of tokens), so the map of two heads fits VMEM whole and neither needs the
running sums of flash attention nor its padded tokens. Queries, keys and values are read where the dense layer wrote
them, heads side by side in the channels; nothing is transposed, split or padded in HBM.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

LANES = 128
# Scratch memory that the kernel may take; v4 has 32 MiB, v5e, v5p and v6e more; XLA gives 16 unless asked.
VMEM_BYTES = 32 * 2**20
BATCH_AXES = ("data", "fsdp")  # of the mesh: they split the batch


def fits_tpu_kernel(width: int, num_heads: int, tokens: int = 0) -> bool:
    """Whether the kernel takes these streams: heads that fill 128 lanes, and maps that fit the scratch memory."""
    # The backward pass holds about six maps of one head in float32.
    return LANES % (width // num_heads) == 0 and width % LANES == 0 and 6 * 4 * tokens**2 <= VMEM_BYTES


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def attend_on_tpu(
    qkv: Float[Array, "b n qkv"], num_heads: int, num_templates: int, scale: float, interpret: bool = False
) -> Float[Array, "b n c"]:
    """Attention of a joint stream: the first `num_templates` tokens see each other, the others see all (eq. 2).

    `num_templates` is 0 where every token sees all (eq. 1, or a single stream); `interpret` needs no TPU.
    """
    head_dim = qkv.shape[2] // 3 // num_heads
    kernel = functools.partial(_forward, head_dim=head_dim, num_templates=num_templates, scale=scale)
    return _call(kernel, qkv, (), 1, interpret)[0]


def _attend_forward(qkv: Array, *settings: Any) -> tuple[Array, tuple[Array, Array]]:
    mixed = attend_on_tpu(qkv, *settings)
    return mixed, (qkv, mixed)


def _attend_backward(
    num_heads: int, num_templates: int, scale: float, interpret: bool, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array]:
    qkv, mixed = kept
    head_dim = qkv.shape[2] // 3 // num_heads
    kernel = functools.partial(_backward, head_dim=head_dim, num_templates=num_templates, scale=scale)
    return (jnp.concatenate(_call(kernel, qkv, (mixed, gradient), 3, interpret), axis=2),)


attend_on_tpu.defvjp(_attend_forward, _attend_backward)


def _call(
    kernel: Callable[..., None], qkv: Array, more: tuple[Array, ...], outputs: int, interpret: bool
) -> Sequence[Array]:
    """Runs a kernel for every sample and every group of heads that fills the lanes."""
    # Here, for every tracker would wait for it, on machines without a TPU, too.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    tokens, channels = qkv.shape[1], qkv.shape[2] // 3
    groups = channels // LANES

    def block(first_group: int) -> Any:
        return pl.BlockSpec((None, tokens, LANES), lambda sample, group: (sample, 0, first_group + group))

    def run(qkv: Array, *more: Array) -> Sequence[Array]:
        return pl.pallas_call(
            kernel,
            grid=(len(qkv), groups),
            in_specs=[block(0), block(groups), block(2 * groups), *(block(0) for _ in more)],
            out_specs=[block(0)] * outputs,
            out_shape=[jax.ShapeDtypeStruct((len(qkv), tokens, channels), qkv.dtype)] * outputs,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_BYTES
            ),
            interpret=interpret,
        )(qkv, qkv, qkv, *more)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(qkv, *more)
    # XLA cannot split a kernel by itself. The batch is split, heads are not.
    batch = PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names))
    return jax.shard_map(run, mesh=mesh, in_specs=batch, out_specs=batch, check_vma=False)(qkv, *more)


def _forward(*refs: Any, head_dim: int, num_templates: int, scale: float) -> None:
    q_ref, k_ref, v_ref, mixed_ref = refs
    for rows, seen in _streams(q_ref.shape[0], num_templates):
        q, k, v = q_ref[rows], k_ref[seen], v_ref[seen]
        mixed = jnp.zeros(q.shape, jnp.float32)
        for head in _heads(head_dim):
            weights, total = _weights(jnp.where(head, q, 0), k, scale)
            mixed = jnp.where(head, _product(weights.astype(v.dtype), v, 1, 0) / total, mixed)
        mixed_ref[rows] = mixed.astype(mixed_ref.dtype)


def _backward(*refs: Any, head_dim: int, num_templates: int, scale: float) -> None:
    q_ref, k_ref, v_ref, mixed_ref, gradient_ref, dq_ref, dk_ref, dv_ref = refs
    key_gradients = []
    for rows, seen in _streams(q_ref.shape[0], num_templates):
        q, k, v, gradient = q_ref[rows], k_ref[seen], v_ref[seen], gradient_ref[rows]
        mixed = mixed_ref[rows].astype(jnp.float32)
        dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
        for head in _heads(head_dim):
            own_q, own_gradient = jnp.where(head, q, 0), jnp.where(head, gradient, 0)
            weights, total = _weights(own_q, k, scale)
            weights = weights / total
            inner = jnp.sum(own_gradient.astype(jnp.float32) * mixed, axis=1, keepdims=True)
            dlogits = (weights * (_product(own_gradient, v, 1, 1) - inner) * scale).astype(q.dtype)
            dq = jnp.where(head, _product(dlogits, k, 1, 0), dq)
            dk += _product(dlogits, own_q, 0, 0)
            dv += _product(weights.astype(q.dtype), own_gradient, 0, 0)
        dq_ref[rows] = dq.astype(dq_ref.dtype)
        key_gradients.append((dk, dv))
    # The last stream sees all tokens, the one before it, if any, only the first ones.
    for ref, *first, whole in zip((dk_ref, dv_ref), *key_gradients, strict=True):
        if first:
            ref[:num_templates] = (first[0] + whole[:num_templates]).astype(ref.dtype)
        ref[num_templates:] = whole[num_templates:].astype(ref.dtype)


def _streams(tokens: int, num_templates: int) -> list[tuple[slice, slice]]:
    """Queries of each stream, and the keys that they see."""
    search = (slice(num_templates, tokens), slice(0, tokens))
    return [search] if num_templates == 0 else [(slice(0, num_templates), slice(0, num_templates)), search]


def _heads(head_dim: int) -> list[Array]:
    """The lanes of each head: products go over all lanes, where zeros stand for the other heads'."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return [(lane >= start) & (lane < start + head_dim) for start in range(0, LANES, head_dim)]


def _weights(q: Array, k: Array, scale: float) -> tuple[Array, Array]:
    """The exponentials of the logits, and their sums over the keys."""
    logits = _product(q, k, 1, 1) * scale
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights, weights.sum(axis=1, keepdims=True)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """A matrix product over one axis of each, summed in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
