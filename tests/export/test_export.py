"""Exported functions against the model: in onnxruntime, and in a process that knows nothing of this package."""

import dataclasses
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

import mixformer_jax
from docs import track_onnx
from eval import bench_export
from eval.bench_step import random_variables
from mixformer_jax import cli
from mixformer_jax.boxes import iou, xywh_to_xyxy
from mixformer_jax.cli.demo import render_demo_clip
from mixformer_jax.export import onnx_graph
from mixformer_jax.export.export import Function, export, tracking_functions
from mixformer_jax.files import NameTakenError
from mixformer_jax.media.video import VideoWriter
from mixformer_jax.models import attention
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.pixels import normalise
from mixformer_jax.tracking.tracker import Tracker

VIT = MixFormerConfig(
    "vit", search_size=64, template_size=32, width=32, depth=2, num_heads=2, head_width=16, score_heads=2
)
CONVMAE = dataclasses.replace(
    VIT, name="convmae", depth=1, patch_embed="convmae", early_widths=(8, 16), early_depths=(1, 1)
)
CVT = dataclasses.replace(
    VIT,
    name="cvt",
    depth=1,
    backbone="cvt",
    projection="depthwise",
    head="corner",
    head_norm="frozen",
    early_widths=(8, 16),
    early_depths=(1, 1),
    early_heads=(1, 2),
)
SYMMETRIC = dataclasses.replace(
    CVT, name="symmetric", attention="symmetric", head="query", score_heads=0, second_stream="added"
)
TWO_STREAMS = dataclasses.replace(VIT, name="two", depth=1, second_stream="concatenated", colour_map=True)
SHALLOW = dataclasses.replace(
    VIT, name="shallow", patch_embed="convolutional", cross_attention_blocks=1, mixed_blocks=1, layer_scale=True
)


OUTPUTS = "boxes_cxcywh", "scores", "corner_entropy"


def tracker_of(config, online=2):
    settings = TrackerConfig(num_online_templates=online, entropy_margin=0.0 if config.head == "query" else 1.5)
    return Tracker(config, settings, random_variables(config))


def inputs_of(tracker, targets):
    rng = np.random.default_rng(0)
    config, slots = tracker.config, tracker.settings.num_slots
    templates = rng.integers(0, 256, (targets, slots, *[config.template_size] * 2, config.channels), np.uint8)
    search = rng.integers(0, 256, (targets, *[config.search_size] * 2, config.channels), np.uint8)
    templates[:, :, :16, :, 3:] = search[:, 40:, :, 3:] = 0  # of a second stream: nothing measured
    return templates, search, np.arange(slots) < rng.integers(1, slots + 1, (targets, 1))


def model_answer(tracker, templates, search, filled):
    """What our own model finds: boxes, and scores where it has them."""
    filled = filled if tracker.settings.num_online_templates > 1 else None
    found = jax.jit(tracker.model.apply)(tracker.variables, normalise(templates), normalise(search), filled)
    if tracker.settings.entropy_margin:
        found = found.boxes_cxcywh, found.scores_within(jnp.asarray(limits(len(search)))), found.corner_entropy
    else:
        found = found.boxes_cxcywh, found.scores
    return [np.asarray(x) for x in found if x is not None]


def limits(targets):
    """A little below the entropy of a pyramidal head's maps."""
    return np.full(targets, 10, np.float32)


def exported_answer(folder, templates, search, filled):
    """The same by onnxruntime, from the files alone."""
    record = json.loads((folder / "onnx.json").read_text())
    given = {"templates": templates, "search": search, "filled": filled, "entropy_limit": limits(len(search))}
    for function in record["functions"].values():
        session = onnxruntime.InferenceSession(folder / function["file"])
        outputs = session.run(list(function["outputs"]), {name: given[name] for name in function["inputs"]})
        for (name, described), output in zip(function["outputs"].items(), outputs, strict=True):
            assert (output.shape, output.dtype) == (tuple(described["shape"]), described["dtype"])
            given[name] = output
    return [given[name] for name in OUTPUTS if name in given]


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [VIT, CONVMAE, CVT, SYMMETRIC, TWO_STREAMS, SHALLOW], ids=lambda config: config.name)
def test_every_family_is_the_same_in_onnxruntime(config, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "CPU_MAP_BYTES", 2**14)  # attention in parts, which only CPUs do
    tracker = tracker_of(config)
    export(tracker, tmp_path, "onnx", targets=2)
    inputs = inputs_of(tracker, 2)
    same(model_answer(tracker, *inputs), exported_answer(tmp_path, *inputs))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The embedded default as ONNX, by the command."""
    folder = tmp_path_factory.mktemp("exported")
    assert cli.main(["export", "--format", "onnx", "--out", str(folder)]) == 0
    return folder


def test_the_default_is_the_same_in_onnxruntime(exported):
    tracker = mixformer_jax.load(device="cpu")
    inputs = inputs_of(tracker, 1)
    same(model_answer(tracker, *inputs), exported_answer(exported, *inputs))


def test_the_example_tracks_as_the_default_does(exported):
    """Each on its own course, through a crossing and two changes of the online template: none sets the other right."""
    clip, tracker = render_demo_clip(), mixformer_jax.load(device="cpu")
    boxes = track_onnx.track(exported, map(clip.__getitem__, range(61)), clip.boxes_xywh[0])
    state = tracker.start(clip[0], clip.boxes_xywh[0])
    for index, (box_xywh, score) in enumerate(boxes, 1):
        state, tracked = tracker.step(state, clip[index])
        np.testing.assert_allclose(box_xywh, tracked.box_xywh, atol=0.05, rtol=0)
        assert abs(score - tracked.score) < 1e-4
    assert index == 60 and int(state.num_refreshes) == 2
    assert len(Path(track_onnx.__file__).read_text().splitlines()) <= 63


def test_the_example_is_a_program(exported, tmp_path, monkeypatch, capsys):
    clip = render_demo_clip()
    with VideoWriter(tmp_path / "clip.mp4", clip.fps, clip[0].shape[:2]) as writer:
        for index in range(4):
            writer.write(clip[index])
    box_xywh = ",".join(map(str, clip.boxes_xywh[0]))
    monkeypatch.setattr(sys, "argv", ["track_onnx.py", str(exported), str(tmp_path / "clip.mp4"), box_xywh])
    runpy.run_path(track_onnx.__file__, run_name="__main__")
    printed = np.loadtxt(io.StringIO(capsys.readouterr().out), delimiter=",")
    assert printed.shape == (3, 4) and (iou(xywh_to_xyxy(printed), xywh_to_xyxy(clip.boxes_xywh[1:4])) > 0.6).all()


ALONE = """
import sys
import jax
import jax.numpy as jnp
import numpy as np

folder, given = sys.argv[1], dict(np.load(sys.argv[2]))
for name in ("encode_templates", "locate"):
    with open(f"{folder}/{name}.stablehlo", "rb") as file:
        exported = jax.export.deserialize(bytearray(file.read()))
    assert exported.platforms == ("cpu", "tpu"), exported.platforms
    names = jax.tree.unflatten(exported.in_tree, range(len(exported.in_avals)))[0][0]
    given.update(exported.call({name: given[name] for name in names}))
np.savez(sys.argv[3], given["boxes_cxcywh"], given["scores"], given["corner_entropy"])
assert not {"mixformer_jax", "flax"} & {name.partition(".")[0] for name in sys.modules}
"""


def test_stablehlo_needs_nothing_but_jax(tmp_path):
    tracker = tracker_of(VIT)
    export(tracker, tmp_path, "stablehlo", targets=2, platforms=("cpu", "tpu"))
    templates, search, filled = inputs_of(tracker, 2)
    inputs = {"templates": templates, "search": search, "filled": filled, "entropy_limit": limits(2)}
    np.savez(tmp_path / "in.npz", **inputs)
    arguments = [str(tmp_path / name) for name in ("", "in.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, cwd=tmp_path)
    with np.load(tmp_path / "out.npz") as found:
        same(model_answer(tracker, templates, search, filled), [found[name] for name in found.files])


def test_stablehlo_may_compute_in_bfloat16(tmp_path):
    tracker = tracker_of(dataclasses.replace(VIT, dtype="bfloat16"), online=1)
    export(tracker, tmp_path, "stablehlo")
    templates, search, filled = inputs_of(tracker, 1)
    encode, locate = (
        jax.export.deserialize(bytearray((tmp_path / f"{name}.stablehlo").read_bytes())).call
        for name in ("encode_templates", "locate")
    )
    cache = encode({"templates": templates})
    assert cache["cache_blocks_0_keys"].dtype == "bfloat16"
    found = locate({"search": search, "entropy_limit": limits(1), **cache})
    for name, ours in zip(OUTPUTS, model_answer(tracker, templates, search, filled), strict=True):
        assert found[name].dtype == "float32"
        np.testing.assert_allclose(found[name], ours, atol=2e-2, rtol=0)


def test_the_record_says_what_a_program_must_know(exported):
    record = json.loads((exported / "onnx.json").read_text())
    tracker = mixformer_jax.load(device="cpu")
    assert TrackerConfig.from_dict(record["tracker"]) == tracker.settings
    assert (record["search_size"], record["template_size"]) == (
        tracker.config.search_size,
        tracker.config.template_size,
    )
    encode, locate = record["functions"].values()
    assert set(locate["inputs"]) == {"search", "entropy_limit", *encode["outputs"]} and "templates" in encode["inputs"]
    assert record["opset"] == onnx_graph.OPSET and record["normalisation"]["mean"] == [0.485, 0.456, 0.406]


def test_files_that_are_there_stay(exported, tmp_path, capsys):
    before = {path: path.read_bytes() for path in exported.iterdir()}
    with pytest.raises(NameTakenError, match=r"locate\.onnx.*--overwrite"):
        export(tracker_of(VIT), exported, "onnx")
    assert {path: path.read_bytes() for path in exported.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "onnx", "--dtype", "bfloat16"], "ONNX files are float32"),
        (["--format", "onnx", "--platforms", "cpu"], "goes with --format stablehlo"),
        (["--format", "stablehlo", "--platforms", "cpu,gpu"], "platforms gpu; expected some of cpu, cuda, rocm, tpu"),
    ],
)
def test_what_a_format_cannot_have_is_refused(options, message, tmp_path, capsys):
    assert cli.main(["export", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_onnxruntime_beside_jax():
    rows = bench_export.bench_model(tracker_of(VIT), 1, num_turns=1)
    cells = [dict(zip(bench_export.COLUMNS, row, strict=True)) for row in rows]
    assert [(row["function"], row["runtime"]) for row in cells] == [
        (function, runtime) for function in ("encode_templates", "locate") for runtime in ("JAX", "onnxruntime")
    ]
    assert all(float(row["least ms"]) > 0 and float(row["difference"]) <= 1e-4 for row in cells)


def test_an_operation_without_translation_is_named():
    function = tracking_functions(tracker_of(VIT), 1)[1]
    other = function._replace(call=lambda variables, inputs: {"scores": jax.numpy.sin(inputs["search"] * 1.0)})
    with pytest.raises(onnx_graph.ExportError, match="operation sin has no translation"):
        onnx_graph.onnx_bytes(tracker_of(VIT), other)


def test_arrays_taken_apart_along_an_axis():
    """As newer releases of JAX index arrays in our models."""
    search = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    shape = jax.ShapeDtypeStruct(search.shape, search.dtype)

    def green(_variables, inputs):
        return {"scores": jax.lax.unstack(inputs["search"] * np.float32(0.5), axis=3)[1].sum((1, 2))}

    function = Function("green", green, {"search": shape}, {"scores": jax.ShapeDtypeStruct((2,), np.float32)})
    session = onnxruntime.InferenceSession(onnx_graph.onnx_bytes(tracker_of(VIT), function))
    np.testing.assert_allclose(session.run(None, {"search": search})[0], search[..., 1].sum((1, 2)) / 2)
