"""The .safetensors format, written one tensor at a time.

The library's own `save` wants every tensor contiguous beforehand and hands back a second copy of all of them: three
times a model's size where a transposed view of a memory-mapped file would do. Its releases differ in what they make of
arrays that are not contiguous (0.8.0 scrambles them); here they are made contiguous on their way out.
"""

import io
import json
import struct
from collections.abc import Mapping

import numpy as np

DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64"}


def to_safetensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a .safetensors file.

    Args:
        tensors: float32, float16 or int64 arrays of any memory layout.
        metadata: texts for the header.

    Raises:
        KeyError: for an array of another type.
    """
    # Each tensor is asked for twice: it may have to be read from a file.
    specs = {name: (tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in tensors.items()}
    # As the library orders them: wide types first, so that every tensor is aligned without padding.
    names = sorted(specs, key=lambda name: (-specs[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        dtype, shape, size = specs[name]
        start, end = end, end + size
        header[name] = {"dtype": DTYPES[dtype.name], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = io.BytesIO()
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        tensor = tensors[name]
        file.write(np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).data)
    return file.getvalue()
