"""An interrupted run goes on, to the results of one that nothing interrupted."""

import json

import jax
import numpy as np
import pytest

from mixformer_jax.files import part_path
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import ArrayFrames
from mixformer_jax.media.video import SelectedFrames
from mixformer_jax.tracking import resume
from mixformer_jax.tracking.record import record
from mixformer_jax.tracking.resume import ResumeError, RunState
from mixformer_jax.tracking.tracker import Tracker
from tests.stand_ins import SIDE, PairTracker, square_boxes, square_clip

GIVEN = np.concatenate([square_boxes(1), square_boxes(1) + np.array([SIDE, 0, 0, 0])])
NUM_FRAMES = 24

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Killed(BaseException):
    """As by `kill -9`: nothing that the program could do comes after it."""


def breaking(frames, at, error):
    """The same frames, of which one cannot be had."""

    class Frames(list):
        def __getitem__(self, index):
            if index == at:
                raise error
            return super().__getitem__(index)

    return Frames(frames)


def run(folder, tracker, frames, backward=False, **options):
    source = SelectedFrames(ArrayFrames(frames), stride=2 if not backward else 1, backward=backward)
    boxes = folder / "out.jsonl"
    state = RunState(resume.resume_path(boxes))
    return record(tracker, source, GIVEN, folder / "out.avi", boxes, run_state=state, **options)


@pytest.fixture
def tracker(golden_loop):
    """Every few frames an online template, and targets that are lost and looked for."""
    loop = golden_loop("vit", "online2")
    return loop.tracker(
        update_interval=3,
        candidate_above=0.0,
        lost_below=0.99,
        found_above=0.99,
        lost_after=1,
        redetect_every=1,
        redetect_above=0.0,
    )


@pytest.mark.parametrize("stop", ["interrupted", "broken off", "killed"])
def test_goes_on_to_the_same_results(tmp_path, monkeypatch, tracker, stop):
    clip = square_clip(NUM_FRAMES)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, tracker, clip)
    assert sorted(path.name for path in whole.iterdir()) == ["out.avi", "out.jsonl"], "nothing to go on with is left"
    error = {"interrupted": KeyboardInterrupt(), "broken off": SourceError("frame 15 is missing"), "killed": Killed()}[
        stop
    ]
    monkeypatch.setattr(resume, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(resume, "_LEAST_SHARE", 0)
    if stop == "killed":
        with pytest.raises(Killed):
            run(cut, tracker, breaking(clip, 14, error))
        # A killed run leaves its parts, the last line perhaps not whole.
        (cut / "out.avi").rename(part_path(cut / "out.avi"))
        (cut / "out.jsonl").rename(part_path(cut / "out.jsonl"))
    else:
        assert run(cut, tracker, breaking(clip, 14, error)).stopped_by is error
    resumed = run(cut, tracker, clip, resume=True)
    assert (resumed.resumed, resumed.stopped_by, len(resumed.boxes_xywh)) == (7, None, NUM_FRAMES // 2)
    for name in ("out.jsonl", "out.avi"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(path.name for path in cut.iterdir()) == ["out.avi", "out.jsonl"]
    records = [json.loads(line) for line in (cut / "out.jsonl").read_text().splitlines()]
    assert any(record["lost"] for record in records), "re-detection had its part"


def test_backward_and_twice(tmp_path):
    clip = square_clip(NUM_FRAMES)[::-1]
    run(tmp_path / "whole", PairTracker(), clip, backward=True)
    for at in (16, 8):  # going down
        stopped = run(
            tmp_path / "cut", PairTracker(), breaking(clip, at, KeyboardInterrupt()), backward=True, resume=True
        )
        assert len(stopped.boxes_xywh) == NUM_FRAMES - 1 - at
    run(tmp_path / "cut", PairTracker(), clip, backward=True, resume=True)
    for name in ("out.jsonl", "out.avi"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_run_is_not_gone_on_with(tmp_path, tracker):
    clip = square_clip(NUM_FRAMES)
    run(tmp_path, tracker, breaking(clip, 9, KeyboardInterrupt()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = tracker.with_settings(update_interval=4)
    with pytest.raises(ResumeError, match=r"out\.jsonl\.resume: is of a run with other settings; give"):
        run(tmp_path, other, clip, resume=True)
    with pytest.raises(ResumeError, match="other frames and weights"):
        run(
            tmp_path,
            Tracker(tracker.config, tracker.settings, jax.tree.map(lambda x: x + 1, tracker.variables)),
            clip[1:],
            resume=True,
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    path = tmp_path / "out.jsonl.resume"
    # As a version wrote it that had another setting, and no usual entropy: nothing that a user gives makes up for that.
    arrays = dict(np.load(path))
    about = json.loads(str(arrays.pop("about")))
    settings = json.dumps(json.loads(about["settings"]) | {"corner_entropy": 0.0}, sort_keys=True)
    del arrays["state.memory.usual_entropy"]
    with path.open("wb") as file:
        np.savez(file, about=json.dumps(about | {"version": 1, "settings": settings}), **arrays)
    with pytest.raises(ResumeError, match="another version of this program; remove it and begin again"):
        run(tmp_path, tracker, clip, resume=True)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ResumeError, match="cannot be read"):
        run(tmp_path, tracker, clip, resume=True)


def test_nothing_to_go_on_with_begins(tmp_path):
    assert run(tmp_path, PairTracker(), square_clip(6), resume=True).resumed == 0


@pytest.mark.parametrize("video", ["out.avi", None])
def test_killed_before_the_first_result(tmp_path, video):
    """Its files are there, and are its own; another run's are not."""
    source, boxes = ArrayFrames(square_clip(6)), tmp_path / "out.csv"

    class Compiling(PairTracker):
        def start(self, frame, boxes_xywh):
            if video is not None:
                raise Killed
            return super().start(frame, boxes_xywh)

        def step(self, state, frame):
            raise Killed

    def again(tracker, **options):
        state = RunState(resume.resume_path(boxes))
        return record(tracker, source, GIVEN, video and tmp_path / video, boxes, run_state=state, **options)

    kept = {}
    with pytest.raises(Killed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunState, "discard", lambda state: kept.update({state.path: state.path.read_bytes()}))
        again(Compiling())
    ((path, data),) = [*kept.items()] or [(resume.resume_path(boxes), resume.resume_path(boxes).read_bytes())]
    path.write_bytes(data)
    for name in ("out.csv", "out.avi")[: 1 + bool(video)]:
        part_path(tmp_path / name).touch()
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(FileExistsError, match="another run is writing"):
        again(PairTracker())
    assert path.read_bytes() == data
    found = again(PairTracker(), resume=True)
    assert (len(found.boxes_xywh), found.resumed) == (6, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", *([video] if video else [])}
