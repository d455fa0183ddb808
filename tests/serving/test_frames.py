"""Frames by index, whatever the order in which they are asked for."""

import cv2
import numpy as np
import pytest

from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import ArrayFrames
from mixformer_jax.serving.video import FileFrames, KeptFrames, encode_jpeg, jpeg_size


def clip(count: int = 12) -> np.ndarray:
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None] * 10, (count, 16, 24, 3)).copy()


class Passes(ArrayFrames):
    """Counts how often it is begun."""

    count = 0

    def timed(self):
        self.count += 1
        return super().timed()


@pytest.mark.parametrize("order", [(0, 5, 4, 3, 11, 0, 11), (11, 0), (3, 3, 2, 9, 8, 7)])
def test_a_file_in_any_order(order):
    source = Passes(clip())
    frames = FileFrames(source, recent_bytes=4 * 16 * 24 * 3)
    for index in order:
        frame = frames.get(index)
        assert frame.number == index + 1 and (frame.pixels == index * 10).all()
    assert source.count <= 3, "steps back are had from the last frames"
    with pytest.raises(IndexError):
        frames.get(12)
    assert frames.num_frames == 12 and frames.get(10).number == 11


def test_kept_frames_come_back(tmp_path):
    kept = KeptFrames("camera", 30.0, (16, 24), tmp_path / "kept", most=2000)
    jpegs = [encode_jpeg(pixels) for pixels in clip()]
    for index, jpeg in enumerate(jpegs):
        assert kept.is_full is (index * len(jpegs[0]) >= 2000)
        assert kept.append(jpeg, index / 30) == index
    for index in (11, 0, 5):
        frame = kept.get(index)
        assert frame.number == index + 1 and frame.seconds == index / 30
        assert np.abs(frame.pixels.astype(int) - index * 10).max() < 3
    with pytest.raises(IndexError):
        kept.get(12)


def test_what_is_too_large_is_not_decoded():
    with pytest.raises(SourceError, match="7000x7000"):
        FileFrames(Huge())
    for size in ((16, 24), (1, 1), (480, 640)):
        for options in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]):
            assert jpeg_size(cv2.imencode(".jpg", np.zeros((*size, 3), np.uint8), options)[1].tobytes()) == size
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x00\xff", b"\x89PNG\r\n\x1a\n" + b"\0" * 30):
        with pytest.raises(SourceError):
            jpeg_size(data)


class Huge(ArrayFrames):
    def __init__(self):
        self.name, self.fps, self.num_frames, self.size = "huge", 30.0, 1, (7000, 7000)
