"""Writes `mixformer_jax/assets/doctor.npz` anew: needed when the embedded weights have changed.

    python -m tests.store_doctor

The cases come from the goldens of the official code, the boxes from the embedded tracker on this machine, in float32.
"""

import io
import json

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict

from mixformer_jax.cli.doctor import ASSET, track_clip
from mixformer_jax.files import write_atomically
from mixformer_jax.tracking.tracker import load
from tests.conftest import _GOLDEN
from tests.models.conftest import _golden_model

# Between them all that attends, both corner heads, both norms, and the score module.
CASES = {"MixViT": "mixformer_vit_online__corner_up__bn", "MixCvT": "mixformer_cvt__corner__frozenbn"}
OFFICIAL = {"search_features": "feat_search", "template_features": "feat_template"}


def golden_arrays() -> dict[str, np.ndarray]:
    """The cases, as the asset holds them."""
    stored, about = {}, {}
    for name, file in CASES.items():
        with np.load(_GOLDEN / "model" / f"{file}.npz", allow_pickle=False) as arrays:
            model, variables = _golden_model(arrays)
            parts = flatten_dict(variables, sep="/")
            templates = np.stack([arrays[f"in/{key}"][:1] for key in ("template", "online_template")], axis=1)
            parts["templates"] = rearrange(templates, "b s c h w -> b s h w c")
            parts["search"] = rearrange(arrays["in/search"][:1], "b c h w -> b h w c")
            shapes = {key: np.shape(part) for key, part in parts.items()}
            about[name] = {"config": model.config.to_dict(), "shapes": shapes}
            stored[f"{name}/planes"] = bfloat16_planes(np.concatenate([np.ravel(part) for part in parts.values()]))
            for ours, official in OFFICIAL.items():
                if f"cache1/{official}" in arrays:
                    stored[f"{name}/{ours}"] = rearrange(arrays[f"cache1/{official}"], "b c h w -> b h w c")
            corners = [arrays[f"cache1/score_map_{corner}"][:, 0] for corner in ("tl", "br")]
            stored[f"{name}/corner_logits"] = np.stack(corners)
            stored[f"{name}/box_cxcywh"] = arrays["cache1/pred_boxes"][:, 0]
            if "cache1/pred_scores" in arrays:
                stored[f"{name}/score_logit"] = arrays["cache1/pred_scores"]
    return stored | {"about": np.array(json.dumps(about))}


def bfloat16_planes(values: np.ndarray) -> np.ndarray:
    """The higher bytes, then the lower ones: apart they compress better.

    Raises:
        ValueError: bfloat16 does not hold the values exactly.
    """
    narrow = values.astype(jnp.bfloat16)
    if not np.array_equal(narrow.astype(np.float32), values):
        raise ValueError("values that bfloat16 does not hold exactly")
    bits = narrow.view(np.uint16)
    return np.stack([bits >> 8, bits & 255]).astype(np.uint8)


def main() -> None:
    boxes_xywh = track_clip(load(device="cpu", dtype="float32"))
    written = io.BytesIO()
    np.savez_compressed(written, **golden_arrays(), boxes_xywh=boxes_xywh)
    write_atomically(ASSET, written.getvalue())
    print(f"{ASSET}: {len(written.getvalue()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
