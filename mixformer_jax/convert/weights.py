"""Our weights files: one .safetensors with all variables, and in its header the settings to rebuild the tracker.

Tensor names are paths of the variable tree (`params/backbone/blocks_0/attention/qkv/kernel`). Conversions keep tensors
of the official checkpoint that no forward pass uses under `official/`: converted back, it is the same, bit for bit.
"""

import contextlib
import dataclasses
import functools
import io
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from mixformer_jax.files import write_atomically
from mixformer_jax.kept_programs import kept
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import Model, build_model, variable_shapes
from mixformer_jax.typed_settings import TypedSettings

DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64"}
FORMAT = "mixformer_jax"
FORMAT_VERSION = "1"
CARRIED_PREFIX = "official/"

NOT_FINITE = "NaN or infinite values, as a training that diverged leaves them, or damage; take an earlier checkpoint:"
Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
NO_TENSORS: Tensors = MappingProxyType({})

Settings = TypeVar("Settings", bound=TypedSettings)


class WeightsError(ValueError):
    """A weights file that cannot be read, or belongs to another model."""


class Weights(NamedTuple):
    """A tracker's weights file: variables as float32 numpy arrays, settings, and unused tensors of an official
    checkpoint by their official names."""

    variables: dict[str, Any]
    model: MixFormerConfig
    tracker: TrackerConfig
    carried: Tensors = NO_TENSORS


def save_weights(
    path: str | Path,
    variables: Mapping[str, Any],
    model: MixFormerConfig,
    tracker: TrackerConfig,
    store: Literal["float32", "float16"] = "float32",
    carried: Tensors = NO_TENSORS,
) -> None:
    """Writes a weights file (`.safetensors`) atomically, without the compute type, which weights do not depend on.

    `float16` halves the file, and loads as float32; `carried` floats are stored likewise, whole numbers as they are.

    Raises WeightsError for a value that is not finite, or does not fit into float16.
    """
    write_variables(path, FORMAT, variables, (dataclasses.replace(model, dtype="float32"), tracker), store, carried)


def write_variables(
    path: str | Path,
    format_name: str,
    variables: Mapping[str, Any],
    settings: Iterable[TypedSettings],
    store: Literal["float32", "float16"] = "float32",
    carried: Tensors = NO_TENSORS,
    **header: str,
) -> None:
    """Writes variables of any model under a header of settings and strings; see `save_weights`."""
    tensors = {name: np.asarray(value, dtype=store) for name, value in flatten_dict(variables, sep="/").items()}
    for name, value in carried.items():
        is_float = np.issubdtype(value.dtype, np.floating)
        tensors[CARRIED_PREFIX + name] = value.astype(store if is_float else value.dtype, copy=False)
    if broken := not_finite(tensors):
        raise WeightsError(f"{path}: not finite as {store}, not saved: {', '.join(broken)}")
    sections = {record.section: json.dumps(record.to_dict()) for record in settings}
    header = {"format": format_name, "version": FORMAT_VERSION, **sections, **header}
    write_atomically(Path(path), to_safetensors(tensors, header))


def load_weights(path: str | Path) -> Weights:
    """Reads a weights file and checks it against the model in its header.

    Raises WeightsError for no such file, not one of ours, or settings, values or tensors that cannot be the model's.
    """
    content = read_variables(path, FORMAT, "weights written by `mixformer train`")
    model, tracker = content.settings(MixFormerConfig), content.settings(TrackerConfig)
    return Weights(content.variables(model.name, expected_shapes(model)), model, tracker, content.carried)


class Content(NamedTuple):
    """A weights file: its header, and tensors by name, floats as float32."""

    path: Path
    header: Mapping[str, str]
    tensors: Tensors
    carried: Tensors

    def settings(self, record: type[Settings]) -> Settings:
        """A section of the header as settings; WeightsError where it is missing or cannot work."""
        try:
            values = json.loads(self.header[record.section])
            if not isinstance(values, dict):
                raise ValueError(f"{record.section} is no JSON object")
            return record.from_dict(values)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            problem = "settings in the header are damaged or of another release"
            raise WeightsError(f"{self.path}: {problem}: {error}") from error

    def variables(self, model_name: str, expected: Shapes) -> dict[str, Any]:
        """The variable tree; WeightsError lists all that is not as expected."""
        complaints = mismatches(self.tensors, expected)
        complaints += [
            f"mistyped {name}: {value.dtype}, expected floats"
            for name, value in self.tensors.items()
            if name in expected and value.dtype != np.float32
        ]
        refuse_weights(f"{self.path}: weights do not belong to the model {model_name!r} of their header", complaints)
        return unflatten_dict(dict(self.tensors), sep="/")


def read_variables(path: str | Path, format_name: str, wanted: str) -> Content:
    """Reads a file of `write_variables`; WeightsError for a missing or other file, or values that are not finite."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected {wanted} (.safetensors)")
    with readable(path), safe_open(path, framework="numpy") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    found_format = header.get("format", "")
    if found_format != format_name:
        found = f"a .safetensors file of another program (its tensors: {', '.join(sorted(tensors)[:3])}, ...)"
        found = f"weights of {what_of(found_format)}" if found_format.startswith(FORMAT) else found
        raise WeightsError(f"{path}: {found}; expected {wanted}")
    if header.get("version") != FORMAT_VERSION:
        found = f"format version {header.get('version')!r}; this release reads {FORMAT_VERSION!r}"
        raise WeightsError(f"{path}: {found}: update mixformer-jax")
    for name, value in tensors.items():
        if value.dtype.kind not in "biu":  # not `issubdtype(..., np.floating)`: bfloat16 is no subtype
            tensors[name] = value.astype(np.float32, copy=False)
    check_finite(path, tensors)
    carried = [name for name in tensors if name.startswith(CARRIED_PREFIX)]
    return Content(path, header, tensors, {name.removeprefix(CARRIED_PREFIX): tensors.pop(name) for name in carried})


def what_of(format_name: str) -> str:
    """What a file of one of our formats has, for messages: `a tracker`, `a mask decoder`."""
    kind = format_name.removeprefix(FORMAT).strip("_").replace("_", " ") or "tracker"
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the library's errors into WeightsError."""
    try:
        yield
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error})") from error


@functools.lru_cache(maxsize=64)  # tracing a large model takes seconds
def expected_shapes(model: MixFormerConfig) -> Shapes:
    """Shape of every variable of a model, by its path (`params/head/top_left/conv5/bias`)."""
    return MappingProxyType(kept("shapes", repr(model), lambda: dict(shapes_of(build_model(model)))))


def flatten(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Variables on the host, by path."""
    return {name: np.asarray(value) for name, value in flatten_dict(variables, sep="/").items()}


def shapes_of(model: Model) -> Shapes:
    variables = flatten_dict(variable_shapes(model), sep="/")
    return MappingProxyType({name: value.shape for name, value in variables.items()})


def mismatches(found: Tensors, expected: Shapes) -> list[str]:
    """Missing, unexpected and misshapen tensors, a line each."""
    lines = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    lines += [f"unexpected {name} {found[name].shape}" for name in found if name not in expected]
    return lines + [
        f"misshapen {name}: {found[name].shape}, expected {expected[name]}"
        for name in found
        if name in expected and found[name].shape != expected[name]
    ]


def refuse_weights(title: str, complaints: list[str]) -> None:
    """Raises WeightsError with all complaints, if there are any."""
    if complaints:
        raise WeightsError(f"{title}:\n  " + "\n  ".join(complaints))


def not_finite(tensors: Tensors, limit: int = 6) -> list[str]:
    """Names of tensors with NaN or infinity; beyond `limit` their number."""
    broken = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    return broken[:limit] + ([f"{len(broken) - limit} more"] if len(broken) > limit else [])


def check_finite(where: object, tensors: Tensors) -> None:
    """Raises WeightsError with the names of tensors that are not finite."""
    if broken := not_finite(tensors):
        raise WeightsError(f"{where}: {NOT_FINITE} {', '.join(broken)}")


def to_safetensors(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a .safetensors file of float32, float16 or int64 arrays, with strings for its header.

    The library's own `save` copies all tensors a second time, and scrambles those that are not contiguous (0.8.0).
    """
    # Sizes first: each tensor may be read from a file on access.
    specs = {name: (tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in tensors.items()}
    # Wide types first, as the library does: every tensor is aligned without padding.
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
