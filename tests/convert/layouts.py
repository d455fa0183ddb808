"""The layouts of the official state dicts, and weights and PyTorch modules of such layouts."""

import functools
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from mixformer_jax.convert.convert import Hints
from mixformer_jax.convert.names import read_by_table
from mixformer_jax.convert.pretrained import mae_table, shapes_of_autoencoder
from mixformer_jax.models.autoencoder import AutoencoderConfig
from mixformer_jax.models.layers import sincos_positions

LAYOUTS = Path(__file__).resolve().parents[1] / "data" / "golden" / "layouts"
ALL_LAYOUTS = sorted(path.name.removesuffix(".json.gz") for path in LAYOUTS.iterdir())
# The other experiments of a build have the layout of its baseline; `test_layouts` checks that.
BASELINES = [name for name in ALL_LAYOUTS if not name.endswith(("_got", "_1k"))]


@functools.cache
def read_layout(name: str) -> dict[str, Any]:
    """One layout file."""
    return json.loads(gzip.decompress((LAYOUTS / f"{name}.json.gz").read_bytes()))


def read_shallow_layout(name: str, depth: int = 2) -> dict[str, Any]:
    """The layout with so many blocks in the last stage."""
    layout = read_layout(name)
    pattern = re.compile(r"backbone\.(blocks|blocks3|stage2\.blocks)\.(\d+)\.")

    def stays(key: str) -> bool:
        match = pattern.match(key)
        return match is None or int(match[2]) < depth

    return layout | {"entries": [entry for entry in layout["entries"] if stays(entry[0])]}


def shrunk_shape(name: str, shape: list[int], divisor: int) -> tuple[int, ...]:
    """A tensor of the layout when every width is divided; tokens and convolution windows stay."""
    divided = {3: [2], 4: [0, 1]}.get(len(shape), list(range(len(shape))))
    if name.startswith("backbone.head."):
        divided = [1] if len(shape) == 2 else []
    return tuple(size // divisor if axis in divided and size >= divisor else size for axis, size in enumerate(shape))


def random_state(layout: dict[str, Any], divisor: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights for a layout with all widths divided: random, with tiny numbers and negative zeros among them."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, full, dtype in layout["entries"]:
        shape = shrunk_shape(name, full, divisor)
        if dtype == "int64":
            state[name] = np.asarray(rng.integers(1, 1 << 40), np.int64)
        elif re.search("pos_embed_[st]$", name):
            state[name] = sincos_positions(round(shape[1] ** 0.5), shape[2]).astype(np.float32)[None]
        else:
            values = rng.standard_normal(shape).astype(np.float32)
            values[rng.random(shape) < 0.02] = -0.0
            values[rng.random(shape) < 0.02] *= 1e-40
            state[name] = values
    return state


def hints(layout: dict[str, Any]) -> Hints:
    """The numbers of heads, which a divided width no longer tells."""
    early = {"cvt_21": (1, 3), "cvt_24": (3, 12)}.get(layout["vit_type"])
    return Hints(num_heads=layout["hidden_dim"] // 64, early_heads=early, score_heads=layout["spm_num_heads"])


def module_of(torch: Any, layout: dict[str, Any], shapes: dict[str, tuple[int, ...]], device: str) -> Any:
    """A PyTorch module whose state dict has this layout: parameters, frozen parameters, buffers and types."""
    root = torch.nn.Module()
    for name, _, dtype in layout["entries"]:
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        value = torch.empty(shapes[name], dtype=getattr(torch, dtype), device=device)
        if name in layout["buffers"]:
            module.register_buffer(leaf, value)
        else:
            trains = name not in layout["frozen_parameters"]
            module.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=trains))
    assert list(root.state_dict()) == [name for name, _, _ in layout["entries"]]
    return root


def autoencoder_from_mae(state: dict[str, np.ndarray], config: AutoencoderConfig) -> dict[str, Any]:
    """MAE's state dict as the variables of an autoencoder."""
    title = f"MAE's state dict for an autoencoder around {config.model.name!r}"
    return read_by_table(state, mae_table(config), shapes_of_autoencoder(config), title)
