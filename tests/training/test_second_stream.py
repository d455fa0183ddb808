"""Training with a second stream: the start from colour's weights, some steps, and the same step on any mesh."""

import dataclasses
import re
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.config_files import load_config
from mixformer_jax.convert.weights import WeightsError, save_weights
from mixformer_jax.export.export import tracking_functions
from mixformer_jax.media.images import read_depth, read_image
from mixformer_jax.media.video import VideoWriter, open_source
from mixformer_jax.models.config import ConfigError, MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, variable_shapes
from mixformer_jax.reports.benchmarks import vot_report
from mixformer_jax.tracking.lanes import Lanes
from mixformer_jax.tracking.tracker import Tracker
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.program import train_program
from mixformer_jax.training.sharding import make_mesh
from mixformer_jax.training.supervised import start_from, tracking_objective
from tests.depth_scenes import render, write_depthtrack

SETTINGS = TrackerConfig(update_interval=3)
CONFIG = Path(__file__).parents[2] / "configs" / "mixvit_tiny_rgbd.py"
SMALL = {
    "search_size": 64,
    "template_size": 32,
    "width": 48,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "head": "corner",
    "head_width": 8,
}


def values(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.abs(rng.normal(0, 0.2, x.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A model of colour alone, its variables, and their file."""
    model = {"name": "colour", "patch_embed": "convolutional", "head_norm": "frozen", "score_heads": 2}
    config = MixFormerConfig.from_dict({**SMALL, **model})
    variables = values(variable_shapes(build_model(config)))
    path = tmp_path_factory.mktemp("colour") / "model.safetensors"
    save_weights(path, variables, config, SETTINGS)
    return config, variables, path


def followed(tracker, frames, box_xywh):
    """Boxes and scores; online templates are renewed on the way."""
    state, rows = tracker.start(frames[0], box_xywh), []
    for frame in frames[1:]:
        state, found = tracker.step(state, frame)
        rows.append([*found.box_xywh, found.score])
    return np.array(rows)


def test_from_colours_weights_come_colours_boxes(colour):
    config, variables, path = colour
    shots = [render(index) for index in range(8)]
    frames, blind = np.stack([shot.frame for shot in shots]), np.stack([shot.frame for shot in shots])
    blind[..., 3:] = 0
    plain = Tracker(config, SETTINGS, variables)
    expected = followed(plain, frames[..., :3], shots[0].box_xywh)
    assert np.ptp(expected[:, 0]) > 0
    np.testing.assert_array_equal(followed(plain, frames, shots[0].box_xywh), expected)

    added = dataclasses.replace(config, second_stream="added")
    start = start_from(path, added, ())
    assert not start.fresh and not start.ignored
    both = Tracker(added, SETTINGS, start.variables)
    # Nothing measured, and, as long as the factors are zero, any depth.
    np.testing.assert_array_equal(followed(both, blind, shots[0].box_xywh), expected)
    np.testing.assert_array_equal(followed(both, frames, shots[0].box_xywh), expected)
    with pytest.raises(ValueError, match=r"shape \(72, 96, 3\); expected uint8 of shape \(height, width, 6\)"):
        both.start(frames[0, ..., :3], shots[0].box_xywh)

    templates, search = (function.inputs for function in tracking_functions(both, 1))
    assert (templates["templates"].shape, search["search"].shape) == ((1, 2, 32, 32, 6), (1, 64, 64, 6))
    # And of factors that are not: the tracker sees depth, in lanes as well.
    start.variables["params"]["backbone"]["second_scale"] += 0.5
    both = Tracker(added, SETTINGS, start.variables)
    found = followed(both, frames, shots[0].box_xywh)
    assert np.abs(found - expected).max() > 1e-3
    lanes = Lanes(both, 2)
    state = lanes.start(None, 1, frames[0], shots[0].box_xywh)
    for index in range(1, 4):
        state, tracked = lanes.step(state, {1: frames[index]})
        np.testing.assert_allclose(tracked[1].box_xywh, found[index - 1, :4], atol=1e-2)


def test_evaluate_follows_both_streams_or_colour_alone(colour, tmp_path, capsys):
    config, _variables, path = colour
    root, results = write_depthtrack(tmp_path / "workspace", frames=6), tmp_path / "results"
    (root / "list.txt").write_text("scene0\n")
    (root / "scene0/sequence").write_text("channels.color=color/%08d.jpg\nchannels.depth=depth/%08d.png\n")
    (root / "scene0/anchor.value").write_text("0\n0\n1\n0\n0\n0\n")
    both = tmp_path / "both.safetensors"
    start = start_from(path, dataclasses.replace(config, second_stream="added"), ())
    save_weights(both, start.variables, dataclasses.replace(config, second_stream="added"), SETTINGS)
    long = "rgbd-unsupervised/scene0/scene0_001"
    for dataset, file in (("depthtrack", f"{long}.txt"), ("vot_rgbd", "baseline/scene0/scene0_00000002.txt")):
        where = ["--dataset", dataset, "--root", str(root), "--out", str(results / dataset)]
        for name, weights in (("colour", path), ("both", both)):
            assert cli.main(["evaluate", *where, "--weights", str(weights), "--tracker-name", name]) == 0
        colours, boths = ((results / dataset / name / file).read_text() for name in ("colour", "both"))
        assert colours == boths and len(set(colours.split())) > 2
    # DepthTrack has the long-term measures of VOT: by the confidence of every frame.
    assert (results / "depthtrack/both" / f"{long}_confidence.value").is_file()
    where = ["--root", str(root), "--results", str(results / "depthtrack"), "--out", str(tmp_path / "report")]
    capsys.readouterr()
    assert cli.main(["report", "--dataset", "depthtrack", *where, "--worst", "1"]) == 0
    assert re.search(r"tracker +F +Pr +Re", capsys.readouterr().out)
    assert cli.main(["track", str(root / "scene0/color"), "--box", "5,5,20,20", "--weights", str(both)]) == 2
    assert "both.safetensors: a model of two streams, RGB and a second one" in capsys.readouterr().err
    report = vot_report(root, results / "vot_rgbd", ["both"], benchmark="vot_rgbd")
    names = [table.name for table in report.tables]
    assert names[:3] == ["overall", "published_vot_rgbd2022", "published_vot_d2022"]


def test_track_reads_a_second_source_in_step(colour, tmp_path, capsys):
    config, _variables, path = colour
    folder, weights = write_depthtrack(tmp_path, frames=6) / "scene0", tmp_path / "both.safetensors"
    both = dataclasses.replace(config, second_stream="added")
    variables = start_from(path, both, ()).variables
    variables["params"]["backbone"]["second_scale"] += 0.5
    save_weights(weights, variables, both, SETTINGS)
    # Colour from its files: JPEG changes it.
    frames = [
        np.concatenate([read_image(each), read_depth(folder / f"depth/{each.stem}.png")], axis=2)
        for each in sorted((folder / "color").iterdir())
    ]
    boxes, box_xywh = tmp_path / "boxes.txt", render(0).box_xywh
    tracker = Tracker(both, SETTINGS, variables)

    def track(*more, weights=weights, sources=(folder / "color", "--second", folder / "depth")):
        sources = [*sources, "--box", ",".join(map(str, box_xywh))]
        options = ["--weights", weights, "--boxes", boxes, "--overwrite", "--quiet", *more]
        return cli.main(["track", *map(str, sources + options)])

    def found():
        return np.loadtxt(boxes, delimiter=",")[1:, :5]

    damaged = folder / "depth/00000004.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    assert track("--out", tmp_path / "out.avi") == 2
    assert "00000004.png" in capsys.readouterr().err and len(found()) == 2
    damaged.write_bytes(whole)
    assert track("--out", tmp_path / "out.avi", "--resume") == 0
    np.testing.assert_allclose(found(), followed(tracker, frames, box_xywh), atol=1e-3)
    assert len(list(open_source(tmp_path / "out.avi"))) == 6
    assert track("--no-video", "--start", 5, "--end", 1, "--stride", 2, "--backward") == 0
    np.testing.assert_allclose(found(), followed(tracker, frames[4::-2], box_xywh), atol=1e-3)

    alone = dataclasses.replace(config, second_stream="alone")
    variables = start_from(path, alone, ()).variables
    save_weights(tmp_path / "alone.safetensors", variables, alone, SETTINGS)
    assert track("--no-video", weights=tmp_path / "alone.safetensors") == 0
    np.testing.assert_allclose(found(), followed(Tracker(alone, SETTINGS, variables), frames, box_xywh), atol=1e-3)

    with VideoWriter(tmp_path / "short.avi", 30, (72, 96)) as writer:
        for frame in frames[:5]:
            writer.write(frame[..., 3:])
    assert track("--no-video", sources=[folder / "color", "--second", tmp_path / "short.avi"]) == 2
    assert "frame 6 would be beside the end of the second stream, short" in capsys.readouterr().err
    assert len(found()) == 4
    assert track(weights=path) == 2
    assert "reads RGB alone" in capsys.readouterr().err
    (folder / "depth/00000006.png").unlink()
    assert track() == 2
    assert "has 5 frames, and scene0 6; expected as many" in capsys.readouterr().err
    cv2.imwrite(str(folder / "depth/00000001.png"), np.zeros((8, 8), np.uint16))
    assert track() == 2
    assert "has 8x8 pixels, and scene0 96x72" in capsys.readouterr().err


def test_starts_that_are_refused(colour, tmp_path):
    config, _variables, path = colour
    alone = dataclasses.replace(config, second_stream="alone")
    assert not start_from(path, alone, ()).fresh
    concatenated = dataclasses.replace(config, second_stream="concatenated")
    start = start_from(path, concatenated, ())
    backbone = start.variables["params"]["backbone"]
    embeds = (backbone[name]["patchify"]["proj"]["kernel"] for name in ("patch_embed", "second_embed"))
    np.testing.assert_array_equal(*embeds)
    other = tmp_path / "other.safetensors"
    save_weights(other, start.variables, concatenated, TrackerConfig())
    with pytest.raises(WeightsError, match="second_stream: 'concatenated' there, 'added' here"):
        start_from(other, dataclasses.replace(config, second_stream="added"), ())


def settings(root):
    config = load_config(CONFIG).to_dict()
    config["model"] |= {**SMALL, "patch_embed": "linear", "second_stream": "concatenated"}
    config["data"]["datasets"] = {"depthtrack": {"root": str(root)}}
    config["train"] |= {"init": None, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0}
    return config


def test_the_config_trains_on_both_streams_alike_on_every_mesh(tmp_path):
    config = Experiment.from_mapping(settings(write_depthtrack(tmp_path)))
    objective = tracking_objective(config)
    samples = [objective.samples().sample(index) for index in range(8)]
    batch = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    assert {name: value.shape for name, value in batch.items()} == {
        name: shape.shape for name, shape in objective.batch_shapes(8).items()
    }
    assert batch["search"].shape[-1] == 6 and batch["search"][..., 3:].any()
    reports, start = [], None
    for mesh in ((1, 1, 1), (2, 2, 2)):
        program = train_program(objective, config.train, make_mesh(mesh))
        start = start or jax.device_get(program.init(jax.random.key(1)))
        state, given = (
            jax.tree.map(lambda x, abstract: jax.device_put(x, abstract.sharding), tree, like)
            for tree, like in ((start, program.state), (batch, program.batch))
        )
        step = program.step.lower(program.state, program.batch).compile()
        state, report = step(state, given)
        reports.append(report)
        last = step(state, jax.tree.map(lambda x, abstract: jax.device_put(x, abstract.sharding), batch, program.batch))
    whole, split = reports
    np.testing.assert_allclose(split.metrics["loss"], whole.metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(split.gradient_squares, whole.gradient_squares, rtol=2e-3, atol=1e-10)
    assert float(last[1].metrics["loss"]) < float(whole.metrics["loss"])
    kernels = (tree["backbone"]["second_embed"]["proj"]["kernel"] for tree in (start.params, last[0].params))
    assert np.abs(np.subtract(*kernels)).max() > 1e-4


def test_the_pool_has_no_second_stream(tmp_path):
    config = settings(tmp_path)
    config["data"] |= {"root": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"the pool under data\.root has colour alone"):
        Experiment.from_mapping(config)
