"""What is drawn is where it should be, in its colour, on a copy."""

import numpy as np
import pytest

from mixformer_jax.media.images import GROUND_TRUTH, RIM, TARGET, contact_sheet, draw_box, draw_caption

GREY = np.full((120, 200, 3), 128, np.uint8)


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=-1)


def test_box_lies_on_the_edges_and_only_there():
    picture = draw_box(GREY, np.array([40.0, 30.0, 60.0, 50.0]), thickness=1)
    for row, column in ((30, 70), (80, 70), (55, 40), (55, 100)):
        assert tuple(picture[row, column]) == TARGET
    touched = changed(picture)
    assert not touched[36:75, 46:95].any(), "the target itself stays visible"
    assert not touched[:26].any() and not touched[85:].any() and not touched[:, :36].any()
    assert (GREY == 128).all(), "the caller's frame is untouched"


def test_colours_differ_and_have_a_rim():
    box = np.array([40.0, 30.0, 60.0, 50.0])
    picture = draw_box(GREY, box, GROUND_TRUTH, thickness=2)
    column = {tuple(int(v) for v in pixel) for pixel in picture[25:36, 70]}
    assert GROUND_TRUTH in column and RIM in column and TARGET not in column


def test_label_sits_on_the_box_and_inside_the_frame():
    plain = draw_box(GREY, np.array([40.0, 60.0, 60.0, 50.0]))
    labelled = draw_box(GREY, np.array([40.0, 60.0, 60.0, 50.0]), label="frame 7")
    rows, columns = np.nonzero((plain != labelled).any(axis=-1))
    assert rows.min() > 35 and rows.max() <= 62 and columns.min() > 38
    for box in ([-20.0, -20.0, 60.0, 60.0], [180.0, 100.0, 60.0, 60.0]):
        labelled = draw_box(GREY, np.array(box), label="frame 7")
        plate = (labelled == TARGET).all(axis=-1).sum()
        assert plate > 200, "a label is drawn wherever the box is"


@pytest.mark.parametrize("box", [[np.nan] * 4, [500.0, 500.0, 9.0, 9.0], [-1e9, 1e9, 5.0, 5.0]])
def test_nothing_to_draw(box):
    np.testing.assert_array_equal(draw_box(GREY, np.array(box)), GREY)


def test_huge_box_does_not_wrap_around():
    picture = draw_box(GREY, np.array([-1e6, 30.0, 2e6, 1e6]), thickness=1)
    assert changed(picture)[30].all() and not changed(picture)[40:].any()


def test_caption_in_the_corner():
    touched = changed(draw_caption(GREY, "hello"))
    rows, columns = np.nonzero(touched)
    assert (rows.min(), columns.min()) == (0, 0)
    assert rows.max() < 40 and columns.max() < 120


def test_sheet_places_frames_row_by_row():
    frames = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    sheet = contact_sheet(frames, columns=3, gap=2)
    assert sheet.shape == (22, 64, 3)
    assert [sheet[5, x, 0] for x in (0, 22, 44)] == [10, 20, 30]
    assert sheet[15, 0, 0] == 40 and (sheet[15, 25:] == 255).all() and (sheet[:, 20:22] == 255).all()
    assert contact_sheet(frames[:2], columns=3, gap=2).shape == (10, 42, 3)
    for wrong in ([], [frames[0], frames[1][:5]]):
        with pytest.raises(ValueError, match="one size"):
            contact_sheet(wrong)
