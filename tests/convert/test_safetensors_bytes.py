"""What we write, the library reads."""

import numpy as np
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixformer_jax.convert.weights import to_safetensors

arrays = st.sampled_from(["float32", "float16", "int64", ">f4", ">i8"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), arrays, max_size=5))
def test_the_library_reads_it(tensors):
    tensors = {name: value.T for name, value in tensors.items()}
    written = to_safetensors(tensors, {"format": "pt", "note": "ä"})
    found = safetensors.numpy.load(written)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        expected = np.asarray(value, value.dtype.newbyteorder("="))
        assert found[name].shape == expected.shape and found[name].dtype == expected.dtype
        assert found[name].tobytes() == expected.tobytes()
