"""Fused attention kernels: what they compute, where they are chosen, and how they are split over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixformer_jax.models import tpu_attention
from mixformer_jax.models.attention import attend, attend_fused, choose_kernel
from mixformer_jax.models.config import ConfigError
from mixformer_jax.models.tpu_attention import attend_on_tpu, fits_tpu_kernel

HEADS, WIDTH = {"two heads in the lanes": 4, "one": 2, "four": 8}, 256


def plain(qkv, num_heads, num_templates, scale):
    """The same by plain operations, one stream after the other."""
    q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads)
    mixed = attend(q[:, :, num_templates:], k, v, None, scale)
    if num_templates:
        templates = attend(*(x[:, :, :num_templates] for x in (q, k, v)), None, scale)
        mixed = jnp.concatenate([templates, mixed], axis=2)
    return rearrange(mixed, "b h n d -> b n (h d)")


def draw(tokens, seed=0, batch=2):
    return jax.random.normal(jax.random.key(seed), (batch, tokens, 3 * WIDTH))


@pytest.mark.parametrize("num_templates", [0, 16, 21])
@pytest.mark.parametrize("heads", HEADS)
def test_the_tpu_kernel_computes_attention_and_its_gradient(heads, num_templates):
    num_heads, qkv = HEADS[heads], draw(45)
    weights = jax.random.normal(jax.random.key(1), (2, 45, WIDTH))

    def value_and_gradient(function):
        def loss(qkv):
            mixed = function(qkv, num_heads, num_templates, 0.2)
            return (mixed * weights).sum(), mixed

        return jax.jit(jax.grad(loss, has_aux=True))(qkv)

    found = value_and_gradient(functools.partial(attend_on_tpu, interpret=True))
    expected = value_and_gradient(plain)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_the_tpu_kernel_in_bfloat16():
    qkv = draw(45).astype(jnp.bfloat16)
    found = attend_on_tpu(qkv, 4, 16, 0.2, interpret=True)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), plain(qkv.astype(jnp.float32), 4, 16, 0.2), atol=0.03)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_the_tpu_kernel_is_split_as_the_batch_is(shape):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"))
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    qkv = draw(24, batch=8)

    def gradient(qkv):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(lambda x: (attend_on_tpu(x, 4, 8, 0.2, interpret=True) ** 2).sum())(qkv)

    compiled = jax.jit(gradient, in_shardings=split, out_shardings=split).lower(qkv).compile()
    assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()
    expected = jax.jit(jax.grad(lambda x: (plain(x, 4, 8, 0.2) ** 2).sum()))(qkv)
    np.testing.assert_allclose(compiled(jax.device_put(qkv, split)), expected, atol=5e-5)


@pytest.fixture
def as_if_cudnn_were_here(monkeypatch):
    """Lowers for NVIDIA GPUs without one: JAX asks for the library's version and the card's while it traces."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)


@pytest.mark.parametrize(("queries", "keys"), [(16, 24), (9, 25)])
def test_cudnn_gets_even_lengths_and_is_told_which_tokens_count(as_if_cudnn_were_here, queries, keys):
    calls = _fused_calls(queries, keys, None)
    assert len(calls) == 2 and "Backward" in calls[1]
    assert f"tensor<2x{queries + queries % 2}x4x64xbf16>" in calls[0]
    assert ("tensor<2xi32>" in calls[0]) == (queries % 2 == 1)


def test_masked_attention_is_computed_by_plain_operations(as_if_cudnn_were_here):
    assert not _fused_calls(16, 24, jnp.zeros((2, 24), bool))


def _fused_calls(queries, keys, mask):
    """Lines that call cuDNN in a gradient lowered for NVIDIA GPUs."""
    q, k = (jnp.zeros((2, 4, count, 64), jnp.bfloat16) for count in (queries, keys))

    def gradient(q, k):
        return jax.grad(lambda q: attend(q, k, k, mask, 0.2, "cudnn").astype(jnp.float32).sum())(q)

    traced = jax.jit(gradient).trace(q, k)
    assert traced.out_info.shape == q.shape
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return [line for line in text.splitlines() if "__cudnn$fmha" in line]


def test_cudnn_for_both_streams(as_if_cudnn_were_here):
    qkv = jnp.zeros((2, 45, 3 * WIDTH), jnp.bfloat16)
    traced = jax.jit(lambda x: attend_fused(x, 4, 16, 0.2, "cudnn")).trace(qkv)
    assert traced.out_info.shape == (2, 45, WIDTH)
    calls = [
        line for line in traced.lower(lowering_platforms=("cuda",)).as_text().splitlines() if "__cudnn$fmha" in line
    ]
    assert ["tensor<2x16x4x64xbf16>" in call for call in calls] == [False, True]


def test_the_kernel_that_fits_is_chosen():
    assert choose_kernel("auto", "float32", "tpu", 768, 12) == "xla"
    assert choose_kernel("auto", "bfloat16", "cpu", 768, 12) == "xla"
    assert choose_kernel("auto", "bfloat16", "tpu", 768, 12, 452) == "pallas"
    assert choose_kernel("auto", "bfloat16", "tpu", 768, 12, 5000) == "xla", "the map does not fit the scratch memory"
    assert choose_kernel("auto", "bfloat16", "tpu", 192, 4) == "xla", "heads of 48"
    assert choose_kernel("auto", "bfloat16", None, 768, 12) == "xla", "JAX's default platform"
    assert choose_kernel("cudnn", "bfloat16", "gpu", 768, 12) == "cudnn"
    assert choose_kernel("xla", "bfloat16", "tpu", 768, 12) == "xla"
    mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=jax.sharding.AbstractDevice("TPU v5e", 1, "tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert choose_kernel("auto", "bfloat16", None, 768, 12) == "pallas"
        assert choose_kernel("auto", "bfloat16", "cpu", 768, 12) == "xla"
    for asked, dtype, platform, width in (
        ("pallas", "bfloat16", "cpu", 768),
        ("pallas", "float32", "tpu", 768),
        ("pallas", "bfloat16", "tpu", 1000),
        ("cudnn", "float32", "gpu", 768),
        ("cudnn", "bfloat16", "tpu", 768),
    ):
        with pytest.raises(ConfigError, match=f"model.attention_kernel is '{asked}'.*take 'auto' or 'xla'"):
            choose_kernel(asked, dtype, platform, width, 12)


def test_old_gpus_get_plain_operations(monkeypatch):
    class Card:
        def __init__(self, capability):
            self.compute_capability = capability

    for capability, expected in (("7.0", "xla"), ("8.0", "cudnn"), ("9.0", "cudnn"), ("12.0", "cudnn")):
        monkeypatch.setattr(jax, "devices", lambda _platform, c=capability: [Card(c)])
        assert choose_kernel("auto", "bfloat16", "gpu", 768, 12) == expected


def test_maps_that_fit():
    assert fits_tpu_kernel(768, 12, 452) and fits_tpu_kernel(1024, 16, 864)
    assert not fits_tpu_kernel(768, 12, 1300)
    assert tpu_attention.VMEM_BYTES == 32 * 2**20, "the scratch memory of the smallest chip, v4"
