"""Masks beside boxes: the official loop's numbers, and what `mixformer track --masks` leaves."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.cli import demo
from mixformer_jax.cli.demo import FPS, DemoClip, Placed, render_demo_clip
from mixformer_jax.convert.alpha_refine import from_official, save_alpha_refine
from mixformer_jax.convert.torch_files import OfficialState
from mixformer_jax.crops import box_in_stretched_crop, paste_map, stretched_crop, stretched_rectangle
from mixformer_jax.masks import decode_rle, fit_to_frame, mask_box_xywh
from mixformer_jax.media.images import draw_mask, read_image
from mixformer_jax.models.config import ConfigError
from mixformer_jax.pixels import normalise
from mixformer_jax.tracking.lanes import Lanes
from mixformer_jax.tracking.masks import AlphaRefineSegmenter, MaskSettings, Segmenter, load_segmenter
from mixformer_jax.tracking.tracker import Tracked, Tracker
from tests.stand_ins import box_mask, mask_iou


@pytest.fixture(scope="module")
def tiny(golden):
    arrays = golden("alpha_refine/tiny_model.npz")
    state = {name[6:]: arrays[name] for name in arrays.files if name.startswith("state/")}
    return from_official("golden", OfficialState(state, ()))


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    save_alpha_refine(path, *tiny)
    return path


def test_the_official_loop(golden, tiny):
    arrays = golden("alpha_refine/vot_loop.npz")
    frames, size = arrays["frames"], tiny.config.crop_size
    full = fit_to_frame(arrays["init_mask_as_sent"] > 0, frames.shape[1:3])
    np.testing.assert_array_equal(full, arrays["init_mask_full"] > 0)
    box_xywh = mask_box_xywh(full)
    np.testing.assert_array_equal(box_xywh, arrays["init/region_xywh"])
    patch = normalise(stretched_crop(frames[0], box_xywh, 2.0, size))
    np.testing.assert_allclose(patch, arrays["init/patch_normalised"][0, 0].transpose(1, 2, 0), atol=1e-6)
    in_crop = box_in_stretched_crop(box_xywh, box_xywh, 2.0, size)
    np.testing.assert_allclose(in_crop, arrays["init/box_in_crop_xywh"], atol=1e-5)

    segmenter = AlphaRefineSegmenter(tiny.config, tiny.variables)
    targets = segmenter.start(frames[0], box_xywh[None])
    for number, box_xywh in enumerate(arrays["boxes_xywh"], 1):
        expected = {part: arrays[f"frame{number}/{part}"] for part in ("patch", "prob", "pasted", "final")}
        frame, boxes_xywh = frames[number], box_xywh[None]
        crops = segmenter.crops(frame, boxes_xywh)
        np.testing.assert_array_equal(crops[0], expected["patch"])
        (probability,) = segmenter.probabilities(targets, crops)
        np.testing.assert_allclose(probability, expected["prob"], atol=1e-4)
        rectangle = stretched_rectangle(box_xywh, 2.0)
        np.testing.assert_allclose(paste_map(expected["prob"], rectangle, full.shape), expected["pasted"], atol=1e-6)
        (mask,) = segmenter.segment(targets, frame, boxes_xywh)
        decided = np.abs(expected["pasted"] - segmenter.settings.threshold) > 1e-4
        np.testing.assert_array_equal(mask[decided], expected["final"][decided] == 1)
        assert np.count_nonzero(~decided) < 10 and mask.any() and not mask.all()


class FilledBoxes:
    """Masks the boxes, and row i of the frame's left column where target i began at x = i."""

    variables: tuple[()] = ()
    settings = MaskSettings()
    asked = 0  # boxes at once

    def start(self, frame, boxes_xywh):
        return jnp.asarray(boxes_xywh[:, :1])

    def segment(self, targets, frame, boxes_xywh):
        self.asked = len(boxes_xywh)
        masks = np.stack([box_mask(box_xywh, frame.shape[:2]) for box_xywh in boxes_xywh])
        masks[:, :, 0] = np.arange(frame.shape[0]) == np.round(np.asarray(targets))
        return masks


def test_answers_carry_masks_and_boxes_do_not_change(golden_loop, quick_compilation):
    loop, segmenter = golden_loop("vit", "plain"), FilledBoxes()
    assert isinstance(segmenter, Segmenter)
    plain, tracker = loop.tracker(), loop.tracker().with_masks(segmenter)
    assert tracker.with_settings(search_factor=5.0).segmenter is segmenter
    frames, start_x = list(loop.frames[:3]), round(loop.box_xywh[0])

    def check(found, *starts):
        assert found.masks.shape == (len(starts), *frames[0].shape[:2])
        for mask, box_xywh, start in zip(found.masks, found.boxes_xywh, starts, strict=True):
            assert np.flatnonzero(mask[:, 0]).tolist() == [start]
            np.testing.assert_array_equal(mask[:, 1:], box_mask(box_xywh, mask.shape)[:, 1:])

    tracked = [found for _, found in tracker.track(frames, loop.box_xywh)]
    for with_masks, (_, without) in zip(tracked, plain.track(frames, loop.box_xywh), strict=True):
        np.testing.assert_array_equal(with_masks.boxes_xywh, without.boxes_xywh)
        check(with_masks, start_x)
        (target,) = with_masks.to_dict()["targets"]
        np.testing.assert_array_equal(decode_rle(target["mask"]), with_masks.masks[0])
        assert without.masks is None and "mask" not in without.records()[0]

    # Targets that come and go: each keeps what is remembered of it.
    state = tracker.start(frames[0], loop.box_xywh)
    state, numbers = tracker.add(state, frames[0], loop.box_xywh + 4.0)
    state, both = tracker.step(state, frames[1])
    check(both, start_x, start_x + 4)
    # Of three targets a fourth row is free: no program is compiled for three.
    of_three, _ = tracker.add(state, frames[1], loop.box_xywh + 6.0)
    boxes_xywh = np.stack([*both.boxes_xywh, loop.box_xywh + 6.0])
    three = Tracked(boxes_xywh, masks=tracker.segment(of_three, frames[1], boxes_xywh))
    check(three, start_x, start_x + 4, start_x + 6)
    assert segmenter.asked == 4
    state, alone = tracker.step(tracker.remove(state, 0), frames[2])
    assert alone.numbers.tolist() == numbers.tolist()
    check(alone, start_x + 4)
    _, none = tracker.step(tracker.remove(state, int(numbers[0])), frames[2])
    check(none)

    lanes = Lanes(tracker, 2)
    state = lanes.start(None, 1, frames[0], loop.box_xywh)
    state, found = lanes.step(lanes.start(state, 0, frames[0], loop.box_xywh + 4.0), {0: frames[1], 1: frames[1]})
    check(found[0], start_x + 4)
    check(found[1], start_x)


def test_masks_of_the_second_stream_alone_are_refused(golden_loop):
    tracker = golden_loop("vit", "plain").tracker()
    alone = dataclasses.replace(tracker.config, second_stream="alone")
    with pytest.raises(ConfigError, match=r"masks are found in colour, and .* reads the second stream alone"):
        Tracker(alone, tracker.settings, tracker.variables).with_masks(FilledBoxes())


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Six frames of a bright ball on noise."""
    folder = tmp_path_factory.mktemp("clip") / "ball"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 90, (72, 96, 3), dtype=np.uint8)
    for index in range(6):
        frame = cv2.circle(noise.copy(), (40 + 2 * index, 36), 10, (40, 60, 250), -1)
        cv2.imwrite(str(folder / f"{index + 1:08d}.png"), frame)
    return folder


def track(clip, weights, *more):
    return cli.main(["track", str(clip), "--box", "30,26,21,21", "--masks", str(weights), "--quiet", *more])


def test_track_draws_and_writes_masks(clip, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert track(clip, weights) == 0
    images = sorted((tmp_path / "ball_masks").iterdir())
    assert [path.name for path in images] == [f"{number:08d}.png" for number in range(1, 7)]
    assert track(clip, weights, "--no-video", "--boxes", "b.jsonl") == 0
    records = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    for path, record in zip(images, records, strict=True):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and labels.shape == (72, 96)
        np.testing.assert_array_equal(labels, decode_rle(record["mask"]))
    assert (tmp_path / "ball_tracked.mp4").is_file() and not (tmp_path / "ball-2_masks").exists()

    # Again: nothing is replaced unasked, and what is asked for is.
    assert track(clip, weights, "--no-video", "--end", "2") == 0
    assert len(list((tmp_path / "ball-2_masks").iterdir())) == 2
    assert track(clip, weights, "--no-video", "--mask-images", "ball-2_masks", "--boxes", "c.txt") == 2
    options = ("--no-video", "--mask-images", "ball_masks", "--boxes", "ball_boxes.txt", "--overwrite", "--end", "3")
    assert track(clip, weights, *options, "--mask-threshold", "0.9") == 0
    assert len(list((tmp_path / "ball_masks").iterdir())) == 3


def test_a_folder_of_frames_is_not_overwritten(clip, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clip, "frames")
    options = ("--no-video", "--mask-images", "frames", "--overwrite")
    assert track(Path("frames/%08d.png"), weights, *options) == 2
    assert "frames: holds 00000001.png, which is no mask of an earlier run" in capsys.readouterr().err
    for path in clip.iterdir():
        assert (tmp_path / "frames" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_an_interrupted_run_goes_on_to_the_same_masks(clip, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert track(clip, weights, "--no-video", "--boxes", "whole.json", "--mask-images", "whole") == 0
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in sorted(clip.iterdir()):
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "00000004.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    options = ("--no-video", "--boxes", "part.json", "--mask-images", "part")
    assert track(broken, weights, *options) == 2
    assert len(list((tmp_path / "part").iterdir())) == 3
    (broken / "00000004.png").write_bytes((clip / "00000004.png").read_bytes())
    assert track(broken, weights, *options, "--resume", "--mask-threshold", "0.5") == 2, "masks of other settings"
    Path("other.mp4").write_text("somebody else's")
    assert track(broken, weights, *options[1:-1], "whole", "--out", "other.mp4", "--resume") == 2
    assert "part.json.resume: is of a run with other output files" in capsys.readouterr().err
    assert len(list((tmp_path / "whole").iterdir())) == 6 and Path("other.mp4").read_text() == "somebody else's"
    assert track(broken, weights, *options, "--resume") == 0
    assert (tmp_path / "part.json").read_text() == (tmp_path / "whole.json").read_text()
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "part" / path.name).read_bytes() == path.read_bytes()


def test_wrong_calls(clip, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["track", str(clip), "--box", "30,26,21,21", "--mask-images", "m"]) == 2
    assert "are for the masks of --masks" in capsys.readouterr().err
    assert track(clip, weights, "--mask-threshold", "1.5") == 2
    assert "a number between 0 and 1" in capsys.readouterr().err
    assert track(clip, clip / "00000001.png") == 2
    assert "00000001.png: not a" in capsys.readouterr().err
    arguments = ["--dataset", "folder", "--root", str(clip.parent), "--out", "results", "--masks", str(weights)]
    assert cli.main(["evaluate", *arguments]) == 2
    assert "masks are for --dataset vot" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_masks_are_drawn(clip):
    frame = read_image(clip / "00000001.png")
    mask = np.zeros(frame.shape[:2], bool)
    mask[10:20, 10:30] = True
    drawn = draw_mask(frame, mask, (80, 255, 60))
    np.testing.assert_array_equal(drawn[~mask], frame[~mask])
    assert (drawn[12:18, 12:28, 1] >= 127).all() and tuple(drawn[10, 10]) == (80, 255, 60)


def test_weights_are_loaded(weights):
    segmenter = load_segmenter(weights, settings=MaskSettings(threshold=0.65))
    assert segmenter.settings.threshold == 0.65


def true_mask(clip: DemoClip, index: int) -> np.ndarray:
    """The cat's pixels on a frame of the demo clip, without what the saucer covers."""

    def inside(placed: Placed) -> np.ndarray:
        picture = np.zeros(clip[index].shape, np.float32)
        demo.paste(picture, placed._replace(cutout=placed.cutout._replace(pixels=np.ones_like(placed.cutout.pixels))))
        return picture[..., 0] > 0.5

    _, target, saucer = clip.layers(index / FPS)
    return inside(target) & ~inside(saucer)


def test_embedded_masks_beat_boxes(tmp_path, monkeypatch):
    """Without a word about weights, from the command line; on the demo clip, whose masks are known."""
    monkeypatch.chdir(tmp_path)
    clip, chosen = render_demo_clip(), (0, 4, 8, 12)
    (tmp_path / "cat").mkdir()
    for number, index in enumerate(chosen):
        cv2.imwrite(f"cat/{number:02d}.png", clip[index][..., ::-1])
    box = ",".join(map(str, clip.boxes_xywh[0].tolist()))
    # In front of the source, of which `--masks W` would make weights.
    assert cli.main(["track", "--quiet", "--no-video", "--box", box, "--boxes", "cat.jsonl", "--masks", "cat"]) == 0
    records = [json.loads(line) for line in Path("cat.jsonl").read_text().splitlines()]
    truth = [true_mask(clip, index) for index in chosen]
    boxes = [box_mask(np.array([record[side] for side in "xywh"]), truth[0].shape) for record in records]
    found = [decode_rle(record["mask"]) for record in records]
    overlaps, of_boxes = (np.array(list(map(mask_iou, masks, truth))) for masks in (found, boxes))
    assert (overlaps > of_boxes).all() and overlaps.mean() > 0.85 > of_boxes.mean(), (overlaps, of_boxes)
    assert cli.main(["track", "--quiet", "--box", box, "--masks"]) == 2
