"""The sheet: where it lies, which rows it has, what its colours say, and what cannot be drawn."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import mixformer_jax
from mixformer_jax import cli
from mixformer_jax.cli.attention import attention_sheet, draw_sheet
from mixformer_jax.media.images import SourceError, read_image
from mixformer_jax.media.video import ArrayFrames, VideoWriter
from mixformer_jax.models.config import ConfigError, MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.tracking.attention_maps import AttentionMaps, View, looked_at
from mixformer_jax.tracking.tracker import Tracker
from tests.stand_ins import HEIGHT, WIDTH, square_boxes, square_clip

CONFIG = MixFormerConfig(
    name="tiny", search_size=64, template_size=32, width=24, depth=2, num_heads=3, head="corner", head_width=16
)


@pytest.fixture(scope="module")
def tracker():
    variables = init_variables(build_model(CONFIG), jax.random.key(0))
    return Tracker(CONFIG, TrackerConfig(update_interval=2), variables)


def test_sheet_of_a_frame(tracker, tmp_path):
    source = ArrayFrames(square_clip(5), "clip")
    one = attention_sheet(tracker, source, square_boxes(1)[0], 4, tmp_path / "new folder", ["B1"])
    assert one.picture == tmp_path / "new folder" / "clip_frame4_attention.png"
    both = attention_sheet(tracker, source, square_boxes(1)[0], 4, tmp_path, over="queries")
    assert one.maps.blocks == ("B1",) and both.maps.blocks == ("B0", "B1")
    assert one.maps.views["online"].caption == "online template"
    plain = attention_sheet(tracker.with_settings(num_online_templates=0), source, square_boxes(1)[0], 2, tmp_path)
    four, two = read_image(one.picture), read_image(plain.picture)
    assert four.shape[0] - two.shape[0] == 2 * (144 + 18 + 8) and len(np.unique(four)) > 50


def test_arrays_beside_the_sheet(tracker, tmp_path):
    source = ArrayFrames(square_clip(4), "clip")
    sheet = attention_sheet(tracker, source, square_boxes(1)[0], 2, tmp_path)
    assert sheet.maps.views["online"].caption == "online: still the first"
    with np.load(sheet.arrays, allow_pickle=False) as arrays:
        meta = json.loads(str(arrays["meta"]))
        assert (meta["model"], meta["source"], meta["frame"]) == ("tiny", "clip", 2)
        assert set(meta["kinds"]) == {"S-to-T", "S-to-OT", "S-to-S", "OT-to-T"} and meta["blocks"] == ["B0", "B1"]
        assert arrays["pixels/search"].shape == (64, 64, 3) and arrays["box_xyxy/template"].shape == (4,)
        for kind, crops in meta["kinds"].items():
            sides = [arrays[f"pixels/{crops[role]}"].shape[0] // 16 for role in ("queries", "keys")]
            assert arrays[f"{kind}/B1"].shape == (sides[0], sides[0], sides[1], sides[1])
        # The square, 12 pixels wide, lies in the middle of its template of 24 pixels.
        np.testing.assert_allclose(arrays["box_xyxy/template"], [0.25, 0.25, 0.75, 0.75])
        heat = looked_at(arrays["S-to-T/B1"], arrays["box_xyxy/search"])
    assert heat.shape == (2, 2) and 0 < heat.sum() < 1


def test_what_cannot_be_drawn(tracker, tmp_path):
    source = ArrayFrames(square_clip(3), "clip")
    box = square_boxes(1)[0]
    with pytest.raises(SourceError, match="frame 1 has no attention to show"):
        attention_sheet(tracker, source, box, 1, tmp_path)
    with pytest.raises(SourceError, match="clip ends after frame 3; frame 4 was asked for"):
        attention_sheet(tracker, source, box, 4, tmp_path)
    with pytest.raises(ConfigError, match="no blocks 'B7'"):
        attention_sheet(tracker, source, box, 2, tmp_path, ["B7"])
    with pytest.raises(ValueError, match="outside"):
        attention_sheet(tracker, source, np.array([500.0, 500, 10, 10]), 2, tmp_path)
    assert not list(tmp_path.iterdir())


def maps_of(weights):
    view = View(np.full((64, 64, 3), 128, np.uint8), np.array([0.4, 0.4, 0.6, 0.6]), "crop")
    return AttentionMaps({"template": view, "search": view}, tuple(f"B{i}" for i in range(len(weights))), {}, None)


@pytest.mark.parametrize("over", ["keys", "queries"])
def test_colours_follow_the_weights(over):
    # One query and one key, of two by two each, have it all.
    weights = np.zeros((2, 2, 2, 2), np.float32)
    weights[0, 0, 0, 1] = 0.25
    maps = maps_of([weights])
    corner = np.array([0.0, 0.0, 0.4, 0.4]) if over == "keys" else np.array([0.6, 0.0, 1.0, 0.4])
    view = maps.views["search"]._replace(box_xyxy=corner)
    other = maps.views["template"]
    views = {"search": view, "template": other} if over == "keys" else {"search": other, "template": view}
    sheet = draw_sheet(maps._replace(views=views, weights={"S-to-T": (weights,)}), "title", over)
    x, y = 132 + 2 * (144 + 8), 4 * 18 + 18 + 8
    cell = sheet[y : y + 144, x : x + 144].astype(int)
    quarters = {(row, column): cell[36 + 72 * row, 36 + 72 * column] for row in (0, 1) for column in (0, 1)}
    brightest = max(quarters, key=lambda where: quarters[where].sum())
    assert brightest == ((0, 1) if over == "keys" else (0, 0))
    red, green, blue = quarters.pop(brightest)
    assert min(red, green) > 180 and blue < 80  # yellow
    assert all(blue > red > green for red, green, blue in quarters.values())  # violet


def test_many_blocks_go_into_bands():
    weights = np.full((2, 2, 2, 2), 0.25, np.float32)
    nine, ten = (
        draw_sheet(maps_of([weights] * n)._replace(weights={"S-to-T": (weights,) * n}), "title") for n in (9, 10)
    )
    assert nine.shape[1] > ten.shape[1] and ten.shape[0] - nine.shape[0] == 18 + 8 + 144 + 18 + 8


@pytest.fixture
def command(tracker, tmp_path, monkeypatch, capsys):
    """`mixformer attention` in a folder with `clip.mp4`; gives the status and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mixformer_jax, "load", lambda weights=None, device=None, dtype=None: tracker, raising=False)
    with VideoWriter("clip.mp4", 30.0, (HEIGHT, WIDTH)) as writer:
        for frame in square_clip(4):
            writer.write(frame)

    def run(*arguments):
        status = cli.main(["attention", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()[-1] if captured.err else ""

    return run


BOX = "--box=35,42,12,12"


def test_command(command):
    status, out, _ = command("clip.mp4", BOX, "--frame", 3, "--out", "maps", "--blocks", "b1", "--over", "queries")
    assert status == 0 and "S-to-T, S-to-OT, S-to-S, OT-to-T" in out and Path("maps/clip_frame3_attention.png").exists()
    status, out, _ = command("clip.mp4", BOX, "--frame", 2, "--tracker.num_online_templates=0")
    assert status == 0 and "--tracker.num_online_templates=1" in out and Path("clip_frame2_attention.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip.mp4", BOX, "--frame", 1], "expected a frame from 2 on"),
        (["clip.mp4", BOX, "--frame", 5], "clip ends after frame 4; frame 5 was asked for"),
        (["clip.mp4", BOX, "--frame", 2, "--blocks", "B0,B2"], "no blocks 'B2'"),
        (["clip.mp4", BOX, "--frame", 2, "--model", "mixvit_x"], "unknown model 'mixvit_x'"),
        (["clip.mp4", "--box=900,42,12,12", "--frame", 2], "outside the frame"),
        (["clip.mp4", "--box=35,42,12", "--frame", 2], "not four numbers"),
        (["clip.mp4", "--frame", 2], "required: --box"),
        (["damaged.mp4", BOX, "--frame", 2], "cannot be opened as a video"),
        (["missing.mp4", BOX, "--frame", 2], "does not exist"),
        (["clip.mp4", BOX, "--frame", 2, "--out", "clip.mp4"], "cannot write into this folder"),
    ],
)
def test_command_says_what_is_wrong(command, arguments, message):
    Path("damaged.mp4").write_bytes(Path("clip.mp4").read_bytes()[:200])
    status, _, complaint = command(*arguments)
    assert status == 2 and complaint.startswith("mixformer: error: ") and message in complaint
    assert not list(Path().glob("*.png"))
