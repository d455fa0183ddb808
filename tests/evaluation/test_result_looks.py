"""What is said of result files that are not x,y,w,h from the given box, and that nothing is said of any other."""

import numpy as np
import pytest

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.metrics import benchmark_rules
from mixformer_jax.evaluation.result_looks import FORMATS, FRACTIONS, OTHER, look_at, warnings
from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.scoring import find_results, score_results

FRAMES = 30
ONE_PIXEL = np.array([1, 1, 0, 0])
CUT = np.array([3, 0, -3, 0])


def _truth(seed, side=40.0):
    """A target that wanders through a frame of 640 x 360, in whole pixels."""
    rng = np.random.default_rng(seed)
    x, y = 150 + rng.normal(0, 3, FRAMES).cumsum(), 90 + rng.normal(0, 3, FRAMES).cumsum()
    w, h = side * (1.3 + 0.01 * np.arange(FRAMES)), side * (0.8 + 0.01 * np.arange(FRAMES))
    return np.stack([x, y, w, h], 1).round()


def _tracked(truth, seed=0, error=2.0):
    """A tracker's boxes: the given one, and then some pixels off."""
    boxes = truth + np.random.default_rng(seed).normal(0, error, truth.shape)
    boxes[0] = truth[0]
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    return boxes


@pytest.mark.parametrize("side", [6.0, 40.0, 120.0])
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_format_is_seen_in_the_first_row_and_in_the_overlap(form, side):
    truth = _truth(1, side)
    boxes = _tracked(truth, error=side / 50)
    written = FORMATS[form].write(boxes)
    assert look_at(written, truth) == (form, 0)
    np.testing.assert_allclose(FORMATS[form].read(written), boxes)
    lost = written.copy()
    lost[1:] = (3, 4, 5, 6)
    assert look_at(lost, truth).format == form
    given_as_it_is = np.concatenate([truth[:1], written[1:]])
    assert look_at(given_as_it_is, truth).format == form


def test_inclusive_corners_are_corners():
    truth = _truth(2)
    written = FORMATS["corners x1,y1,x2,y2"].write(_tracked(truth)) - np.array([0, 0, 1, 1])
    assert look_at(written, truth).format == "corners x1,y1,x2,y2"


@pytest.mark.parametrize("first_too", [True, False])
def test_fractions_of_the_frame(first_too):
    truth = _truth(3)
    written = _tracked(truth) / np.array([640, 360, 640, 360])
    if not first_too:
        written[0] = truth[0]
    assert look_at(written, truth).format == FRACTIONS


@pytest.mark.parametrize("offset", [1, -1])
def test_an_offset_of_one_pixel(offset):
    truth = _truth(4)
    assert look_at(_tracked(truth) + offset * ONE_PIXEL, truth) == (None, offset)


HARMLESS = {
    "as given": lambda boxes, truth: boxes,
    "cut to whole pixels": lambda boxes, truth: np.floor(boxes + 0.7),
    "another format of the same number": lambda boxes, truth: boxes + 1e-4,
    "the given box cut to the frame": lambda boxes, truth: np.concatenate([boxes[:1] + CUT, boxes[1:]]),
    "a tracker that refines the given box": lambda boxes, truth: np.concatenate([boxes[:1] + 1.9, boxes[1:]]),
    "never moves": lambda boxes, truth: np.tile(truth[0], (FRAMES, 1)),
    "lost": lambda boxes, truth: np.concatenate([boxes[:1], np.tile([500.0, 200, 60, 60], (FRAMES - 1, 1))]),
    "lost in the corner of the frame": lambda boxes, truth: np.concatenate([boxes[:1], np.ones((FRAMES - 1, 4))]),
    "gives up": lambda boxes, truth: np.concatenate([boxes[:5], np.zeros((FRAMES - 5, 4))]),
    "starts again on the target": lambda boxes, truth: np.where(
        np.arange(FRAMES)[:, None] % 10 < 5, boxes, [400.0, 20, 9, 9]
    ),
    "half a box off": lambda boxes, truth: np.concatenate(
        [boxes[:1], (boxes + boxes[:, [2, 3, 2, 3]] * [0.2, 0, 0, 0])[1:]]
    ),
    "rows that are no number": lambda boxes, truth: np.concatenate([boxes[:9], np.full((FRAMES - 9, 4), np.nan)]),
    "twice the size": lambda boxes, truth: np.concatenate([boxes[:1], (boxes * [1, 1, 2, 2])[1:]]),
}


@pytest.mark.parametrize("kind", sorted(HARMLESS))
def test_nothing_is_said_of_trackers_that_are_merely_good_or_bad(kind):
    for seed in range(5):
        truth = _truth(seed)
        assert look_at(HARMLESS[kind](_tracked(truth), truth), truth) == (None, 0), seed


@pytest.mark.parametrize("corner", [0.0, 3.0])
def test_targets_at_the_corner_of_the_frame_are_no_corners(corner):
    # There x,y,w,h and corners are nearly the same, and big boxes have positive sizes as both.
    truth = np.tile([corner, corner, 120, 90], (FRAMES, 1)) + np.arange(FRAMES)[:, None] * [0.1, 0.1, 0, 0]
    for error in (1.0, 10.0, 40.0):
        assert look_at(_tracked(truth, error=error), truth).format is None


def test_ground_truth_that_says_nothing():
    truth = np.full((FRAMES, 4), np.nan)
    assert look_at(_truth(0), truth) == (None, 0)
    truth[:2] = (0, 0, 0, 0), (10, 10, 20, 20)
    assert look_at(_truth(0), truth) == (None, 0)


@pytest.fixture
def results(tmp_path):
    """Four sequences, and what writes a tracker's files: a change of the boxes by sequence."""
    sequences = [TrackingSequence(f"s{i}", _truth(i), lambda index: None, 30.0, tmp_path) for i in range(4)]

    def write(tracker, change):
        folder = tmp_path / "results" / tracker
        folder.mkdir(parents=True)
        for i, sequence in enumerate(sequences):
            np.savetxt(folder / f"{sequence.name}.txt", change(i, _tracked(sequence.boxes_xywh, i)), delimiter=",")

    def found():
        return warnings(find_results(tmp_path / "results", [s.name for s in sequences]), sequences)

    return write, found


def test_one_line_a_tracker_that_says_what_to_look_at(results):
    write, found = results
    write("a good", lambda i, boxes: boxes)
    write("b corners", lambda i, boxes: FORMATS["corners x1,y1,x2,y2"].write(boxes))
    write("c some", lambda i, boxes: FORMATS["centres cx,cy,w,h"].write(boxes) if i == 2 else boxes)
    write("d other", lambda i, boxes: np.concatenate([boxes[:1] + 70, boxes[1:]]) if i < 2 else boxes)
    write("e one more", lambda i, boxes: boxes + ONE_PIXEL)
    write("f one less", lambda i, boxes: boxes - ONE_PIXEL)
    write("g once", lambda i, boxes: boxes + ONE_PIXEL if i == 1 else boxes)
    write("h long", lambda i, boxes: np.concatenate([boxes, boxes[: 5 * (i == 3)]]))
    write("i short", lambda i, boxes: boxes[: FRAMES - i])
    lines = found()
    assert [line.split(": ")[1] for line in lines] == [
        *("b corners", "c some", "d other", "e one more", "f one less", "h long", "i short")
    ]
    corners, some, other, more, less, long, short = lines
    assert "4 of 4 result files look like corners x1,y1,x2,y2 and not like x,y,w,h" in corners
    assert "b corners/s0.txt: first row 150,87,202,119, given box 150,87,52,32" in corners
    assert "1 of 4 result files look like centres cx,cy,w,h" in some and "/s2.txt: " in some
    assert "the first row of 2 of 4 result files is not the given box" in other
    assert "4 of 4 result files is a pixel right of and below the given box: they look 1-based" in more
    assert "4 of 4 result files is a pixel left of and above the given box: they look 0-based" in less
    assert "1 of 4 result files have more rows" in long and "/s3.txt: 35 rows for 30 frames" in long
    assert "3 of 4 result files lack rows" in short and "/s1.txt: 29 rows for 30 frames" in short
    assert look_at(_truth(0) + 70, _truth(0)).format == OTHER


@pytest.mark.parametrize(("rows", "said"), [(FRAMES + 5, "the last ones are cut"), (FRAMES - 5, "lack rows")])
def test_lengths_that_are_known_say_so(tmp_path, rows, said):
    sequences = [TrackingSequence(name, _truth(0), lambda index: None, 30.0, tmp_path) for name in ("Boy", "Tiger1")]
    (tmp_path / "t").mkdir()
    for sequence in sequences:
        np.savetxt(tmp_path / "t" / f"{sequence.name}.txt", np.resize(_truth(0), (rows, 4)), delimiter=",")
    files = find_results(tmp_path, ["Boy", "Tiger1"])
    (line,) = warnings(files, sequences, benchmark="otb100")
    assert said in line and "Tiger1.txt: " in line and "known: 354 frames and boxes" in line
    (line,) = warnings(files, sequences)
    assert said in line and "known: " not in line
    toolkit = benchmark_rules("otb100", "lasot-toolkit")
    if rows < FRAMES:
        with pytest.raises(ResultsError, match=r"25 predicted boxes for 30 frames; every frame needs one; known: 354"):
            score_results([files[0]._replace(boxes=files[0].boxes[1:])], "otb100", sequences[1:], toolkit)
