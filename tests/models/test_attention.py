"""The attention function against jax.nn's, whole and in chunks of queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.models import attention
from mixformer_jax.models.attention import attend, query_chunks


@pytest.fixture(scope="module", params=[12, 13])
def tensors(request):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, 3, request.param, 8), (2, 3, 10, 8), (2, 3, 10, 8))
    return tuple(3 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize("limit", [None, 300, 900])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradient(tensors, limit, masked, monkeypatch):
    if limit is not None:
        monkeypatch.setattr(attention, "CPU_MAP_BYTES", limit)
        count = tensors[0].shape[2]
        assert query_chunks((2, 3, count, 8), 10) == {12: 12, 13: 13}[count] if limit == 300 else 4
    mask = jnp.asarray([[True] * 7 + [False] * 3, [True] * 10]) if masked else None

    def expected(queries, keys, values):
        swapped = (jnp.swapaxes(x, 1, 2) for x in (queries, keys, values))
        given = None if mask is None else mask[:, None, None]
        return jnp.swapaxes(jax.nn.dot_product_attention(*swapped, mask=given, scale=0.3), 1, 2)

    def ours(queries, keys, values):
        return attend(queries, keys, values, mask, 0.3)

    np.testing.assert_allclose(jax.jit(ours)(*tensors), expected(*tensors), atol=1e-5)
    gradients = [
        jax.jit(jax.grad(lambda *t, f=function: jnp.sin(f(*t)).sum(), argnums=(0, 1, 2)))(*tensors)
        for function in (ours, expected)
    ]
    for found, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_chunks_are_as_large_as_may_be():
    assert query_chunks((1, 12, 324, 64), 452) == 1
    assert query_chunks((1, 1, 6400, 64), 2112) == 8  # 54 MB in parts of 6.8
    assert query_chunks((8, 12, 401, 64), 401 + 128) == 10  # of the head `query`; 401 is a prime
    assert query_chunks((1, 1, 7, 4), 10**9) == 7
