"""The PyTorch peer against the numbers and the layouts of the official models: it is worth being measured against."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.torch_peer import MixFormerPeer, precise_roi_pool
from mixformer_jax.convert.convert import Hints, infer_config

LAYOUTS = Path(__file__).resolve().parents[1] / "data" / "golden" / "layouts"
MODELS = [
    f"mixformer_{build}"
    for build in (
        "vit__corner_up__frozenbn",
        "vit_online__corner__frozenbn",
        "vit_online__corner_up__bn",
        "convmae_online__corner__bn",
        "convmae_online__corner_up__frozenbn",
        "cvt__corner__bn",
        "cvt_online__corner__bn",
        "cvt_online__corner__frozenbn",
    )
]


def peer_of(arrays, fused_attention):
    meta = json.loads(str(arrays["meta"]))
    state = {name.removeprefix("state/"): arrays[name] for name in arrays.files if name.startswith("state/")}
    heads = np.atleast_1d(meta["heads"]).tolist()
    hints = Hints(
        num_heads=heads[-1],
        early_heads=tuple(heads[:-1]) or None,
        score_heads=meta["spm_heads"] if "state/score_branch.score_token" in arrays.files else None,
        search_size=meta["search"],
        template_size=meta["template"],
    )
    peer = MixFormerPeer(infer_config(state, hints), fused_attention, meta["num_classes"])
    peer.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return peer.eval()


def close(ours, golden, tolerance):
    scale = max(1.0, np.abs(golden).max())
    np.testing.assert_allclose(ours.numpy() / scale, golden / scale, atol=tolerance, rtol=0)


def check(output, arrays, case, scores):
    close(output.features, arrays[f"{case}/feat_search"], 1e-4)
    close(output.top_left_logits, arrays[f"{case}/score_map_tl"][:, 0], 1e-4)
    close(output.bottom_right_logits, arrays[f"{case}/score_map_br"][:, 0], 1e-4)
    close(output.boxes_cxcywh, arrays[f"{case}/pred_boxes"][:, 0], 1e-5)
    if output.score_logits is not None:
        close(output.score_logits, arrays[f"{case}/{scores}"], 1e-4)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_model(golden, name):
    arrays = golden(f"model/{name}.npz")
    peer = peer_of(arrays, fused_attention="corner_up" in name)
    inputs = ("template", "online_template", "search", "gt_bboxes", "online_template3")
    template, online, search, boxes, online3 = (torch.from_numpy(arrays[f"in/{name}"]) for name in inputs)

    check(peer(template, online[:, None], search), arrays, "train", "pred_scores")
    check(peer(template, online[:, None], search, boxes), arrays, "train", "pred_scores_gt")
    for case, images in (("cache1", online[:1]), ("cache3", online3)):
        peer.set_online(template[:1], images[None])
        check(peer.forward_test(search[:1]), arrays, case, "pred_scores")
        if f"{case}/feat_template" in arrays.files:
            close(peer.template, arrays[f"{case}/feat_template"], 1e-4)
    # Every row of a batch has templates of its own.
    peer.set_online(template, online[:, None])
    check(peer.forward_test(search), arrays, "train", "pred_scores")


def test_a_search_region_needs_a_template(golden):
    peer = peer_of(golden(f"model/{MODELS[0]}.npz"), fused_attention=False)
    with pytest.raises(RuntimeError, match="call set_online first"):
        peer.forward_test(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize("path", sorted(LAYOUTS.iterdir()), ids=lambda path: path.name.partition(".")[0])
def test_layout(path):
    layout = json.loads(gzip.decompress(path.read_bytes()))
    shapes = {name: tuple(shape) for name, shape, _ in layout["entries"]}
    # Broadcast scalars have the shapes and hold no memory.
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        peer = MixFormerPeer(infer_config(state))
    assert {name: tuple(value.shape) for name, value in peer.state_dict().items()} == shapes


def test_precise_roi_pooling(golden):
    arrays = golden("prroi.npz")
    rois = torch.from_numpy(arrays["rois"])
    features = torch.from_numpy(arrays["feat"])[rois[:, 0].long()]
    for name, rows, columns in (("out_4x4", 4, 4), ("out_3x2", 3, 2)):
        close(precise_roi_pool(features, rois[:, 1:], rows, columns), arrays[name], 1e-5)
