"""The right picture or one sentence, whatever a camera wrote: with PyAV, and with OpenCV alone."""

import http.server
import itertools
import os
import sys
import threading
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from mixformer_jax.datasets.check import check_dataset
from mixformer_jax.datasets.records import Dataset, VideoFrames
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.media import decoders
from mixformer_jax.media.decoders import (
    INTERLACED_CLIP,
    clip_frames,
    decoder_name,
    opencv_converts_interlaced,
    try_interlaced,
)
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.video import open_source
from tests.clips import INTERLACED as INTERLACED_FLAGS
from tests.clips import write_clip

CONVERTS = opencv_converts_interlaced()
HEIGHT, WIDTH, NUM_FRAMES = 64, 96, 10
# Mean over the pixels, of 255.
TOLERANCE = 8.0


def frames(num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """A bright square wanders over a smooth background."""
    rows, columns = np.mgrid[:height, :width]
    made = []
    for index in range(num_frames):
        frame = np.stack([60 + columns // 2, 60 + rows, 60 + 8 * index + 0 * rows], -1).astype(np.uint8)
        frame[height // 4 : height // 2, 8 + 4 * index : 24 + 4 * index] = (230, 60, 60)
        made.append(frame)
    return made


def assert_right(path: Path, expected: list[np.ndarray], tolerance: float = TOLERANCE) -> None:
    with open_source(path) as source:
        found = list(source)
        assert len(found) == len(expected) and source.size == expected[0].shape[:2]
    off = [np.abs(a.astype(float) - b).mean() for a, b in zip(found, expected, strict=True)]
    assert max(off) < tolerance, off


def refusal(path: Path) -> str:
    with pytest.raises(SourceError) as caught, open_source(path) as source:
        list(source)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


ORDINARY = {
    "h264.mp4": {},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "ten_bits.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "x265-params": "log-level=none"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "transport.ts": {},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "varying_rate.mp4": {"times_ms": [index * index * 7 for index in range(NUM_FRAMES)]},
}
INTERLACED = {
    "h264.mp4": {},
    "h264.ts": {},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_both_decoders_give_the_same_bytes(tmp_path, without_pyav, name):
    path = write_clip(tmp_path / name, frames(), **ORDINARY[name])
    expected = frames()
    if name.startswith("grey"):
        expected = [np.repeat(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None], 3, -1) for frame in expected]
    assert_right(path, expected)
    assert decoder_name().startswith("PyAV ")
    with open_source(path) as source:
        ours = source.fps, source.num_frames, source.size, np.stack(list(source))
    without_pyav()
    assert decoder_name() == f"OpenCV {cv2.__version__}"
    with open_source(path) as source:
        theirs = source.fps, source.num_frames, source.size, np.stack(list(source))
    assert ours[:3] == theirs[:3]
    if int(cv2.__version__.partition(".")[0]) >= 5:
        np.testing.assert_array_equal(ours[3], theirs[3])
    else:  # an older FFmpeg, which interpolates colours of ten bits in its own way
        assert np.abs(ours[3].astype(float) - theirs[3]).mean() < 2.0


def test_times_of_a_varying_rate(tmp_path, without_pyav):
    times_ms = ORDINARY["varying_rate.mp4"]["times_ms"]
    path = write_clip(tmp_path / "screen.mp4", frames(), times_ms=times_ms)
    for _ in ("PyAV", "OpenCV"):
        with open_source(path) as source:
            np.testing.assert_allclose(
                [frame.seconds for frame in source.timed()], np.array(times_ms) / 1000, atol=1e-6
            )
        without_pyav()


@pytest.mark.parametrize("shown", [range(NUM_FRAMES), [0, 0, 0]])
def test_colon_in_a_name_begins_no_address(tmp_path, without_pyav, monkeypatch, shown):
    monkeypatch.chdir(tmp_path)
    clip = [frames()[index] for index in shown]
    write_clip(tmp_path / "12:30:00.mp4", clip)
    assert_right(Path("12:30:00.mp4"), clip)
    without_pyav()
    assert_right(Path("12:30:00.mp4"), clip)


def test_ctrl_c_in_a_terminal_is_not_for_the_witness():
    with closing(decoders._Witness(str(INTERLACED_CLIP))) as witness:
        assert os.getpgid(witness._process.pid) != os.getpgid(0)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_by_its_metadata(tmp_path, without_pyav, rotation):
    path = write_clip(tmp_path / "phone.mp4", frames(), rotation=rotation)
    upright = [np.rot90(frame, rotation // 90) for frame in frames()]
    assert_right(path, upright)
    without_pyav()
    assert_right(path, upright)


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced(tmp_path, without_pyav, name):
    path = write_clip(tmp_path / name, frames(), interlaced=True, **INTERLACED[name])
    assert_right(path, frames(), 12.0)
    without_pyav()
    right_or_refused(path, frames())


def test_camcorder(tmp_path, without_pyav):
    clip = frames(3, 576, 720)
    path = write_clip(tmp_path / "dv.avi", clip, codec="dvvideo")
    assert_right(path, clip, 12.0)
    without_pyav()
    right_or_refused(path, clip)


def right_or_refused(path: Path, expected: list[np.ndarray]) -> None:
    """OpenCV up to 4.12 decodes interlaced frames; 5.0.0 gives what is in its memory."""
    if not CONVERTS:
        message = refusal(path)
        assert "interlaced" in message and "pip install av" in message
        assert f"ffmpeg -i {path} -vf yadif -c:v libx264" in message
    else:
        assert_right(path, expected, 12.0)


def write_turning(path: Path, clip: list[np.ndarray], turn: int, av) -> Path:
    """Progressive, and from frame `turn` on from a second encoder, interlaced."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        second = av.CodecContext.create("libx264", "w")
        second.options = {"bf": "0"}
        for encoder in (stream.codec_context, second):
            encoder.height, encoder.width, encoder.pix_fmt = *clip[0].shape[:2], "yuv420p"
            encoder.framerate, encoder.time_base = 25, Fraction(1, 25)
        second.flags |= INTERLACED_FLAGS
        for first, last, encoder in ((0, turn, stream.codec_context), (turn, len(clip), second)):
            packets = []
            for index in range(first, last):
                picture = av.VideoFrame.from_ndarray(clip[index]).reformat(format="yuv420p")
                picture.pts, picture.time_base = index, Fraction(1, 25)
                packets += encoder.encode(picture)
            for packet in packets + encoder.encode():
                packet.stream = stream
                container.mux(packet)
    return path


def test_stream_that_turns_interlaced(tmp_path, pyav, without_pyav):
    """OpenCV 5.0.0 would hand out the last progressive frame again and again."""
    progressive = write_clip(tmp_path / "a.h264", frames()[:5], bf="0")
    interlaced = write_clip(tmp_path / "b.h264", frames()[5:], interlaced=True, bf="0")
    raw = tmp_path / "mixed.h264"
    raw.write_bytes(progressive.read_bytes() + interlaced.read_bytes())
    path = write_turning(tmp_path / "mixed.mkv", frames(), 5, pyav)
    for mixed in (raw, path):
        assert_right(mixed, frames(), 12.0)
    without_pyav()
    for mixed in (raw, path):
        given = []
        try:
            with open_source(mixed) as source:
                given.extend(source)
        except SourceError as error:
            assert "frame 6 of this video (H.264 (h264)) cannot be trusted" in str(error)
        assert len(given) == 5 or CONVERTS
        for frame, expected in zip(given, frames(), strict=False):
            assert np.abs(frame.astype(float) - expected).mean() < 12.0


def test_upside_down_and_interlaced(tmp_path, without_pyav):
    """OpenCV turns by 180 degrees in its buffer, so that frames without a picture differ from each other."""
    path = write_clip(tmp_path / "phone.mp4", frames(), interlaced=True, rotation=180)
    upright = [np.rot90(frame, 2) for frame in frames()]
    assert_right(path, upright, 12.0)
    without_pyav()
    right_or_refused(path, upright)


@pytest.mark.parametrize("shown", [[0] * 6, [0, 0, 1, 1, 1, 2], [0]])
def test_a_picture_that_stands_is_no_fault(tmp_path, without_pyav, shown):
    clip = [frames()[index] for index in shown]
    path = write_clip(tmp_path / "still.mkv", clip, codec="ffv1")  # lossless: the same bytes again
    without_pyav()
    assert_right(path, clip)
    with open_source(path) as source:
        for _ in range(2):  # the second pass need not ask again
            assert len(list(source)) == len(clip)


def test_size_that_changes_inside_a_file(tmp_path, without_pyav):
    small, large = frames()[:4], frames(4, 2 * HEIGHT, 2 * WIDTH)
    parts = [write_clip(tmp_path / f"{len(clip[0])}.h264", clip, bf="0") for clip in (small, large)]
    path = tmp_path / "two_sizes.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_source(path) as source:
        assert [frame.shape[:2] for frame in source] == [source.size] * 8
    without_pyav()
    try:
        with open_source(path) as source:
            assert [frame.shape[:2] for frame in source] == [source.size] * 8
    except SourceError as error:
        assert "OpenCV cannot decode it" in str(error) and cv2.__version__.startswith("4.")


def test_codec_that_opencv_lacks(tmp_path, without_pyav):
    for name in ("screen.mp4", "screen.webm", "my screen.mkv"):
        path = write_clip(tmp_path / name, frames(), codec="libsvtav1")
        assert_right(path, frames())
    without_pyav()
    for path in tmp_path.iterdir():
        message = refusal(path)
        assert "does not decode AV1" in message and "pip install av" in message
        target = path.with_name(f"{path.stem}_h264.mp4")
        quote = "'" if " " in path.name else ""
        assert f"ffmpeg -i {quote}{path}{quote} -c:v libx264 -crf 16 {quote}{target}{quote}" in message


def test_damage_is_told_alike(tmp_path, without_pyav):
    path = write_clip(tmp_path / "clip.mp4", frames(30), bf="0", g="5")
    whole = path.read_bytes()
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 2
    path.write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    told = []
    for _ in ("PyAV", "OpenCV"):
        given = []
        with pytest.raises(SourceError) as caught, open_source(path) as source:
            given.extend(source)
        told.append((len(given), str(caught.value)))
        without_pyav()
    assert told[0] == told[1] and 5 < told[0][0] < 25
    assert f"promises 30 frames, but frame {told[0][0] + 1} cannot be decoded" in told[0][1]


def test_recording_that_begins_anywhere(tmp_path, pyav):
    path = write_clip(tmp_path / "tuner.ts", frames(30), bf="0", g="5")
    data = path.read_bytes()
    path.write_bytes(data[: 3 * 188] + data[12 * 188 :])
    with open_source(path) as source:
        found = list(source)
    assert 10 < len(found) < 30
    assert np.abs(found[-1].astype(float) - frames(30)[-1]).mean() < TOLERANCE


def test_no_video_in_it(tmp_path, without_pyav):
    (tmp_path / "notes.mp4").write_text("no video at all\n" * 100)
    for _ in ("PyAV", "OpenCV"):
        assert "cannot be opened as a video (1600 bytes)" in refusal(tmp_path / "notes.mp4")
        without_pyav()


@pytest.mark.parametrize("address", ["rtsp://127.0.0.1:9/x", "http://me:secret@127.0.0.1:9/clip.mp4?token=1"])
def test_address_that_does_not_open(without_pyav, address):
    for _ in ("PyAV", "OpenCV"):
        with pytest.raises(SourceError) as caught:
            open_source(address)
        assert str(caught.value).startswith(f"{address}: the stream could not be opened")
        without_pyav()


def test_clip_that_travels_along(without_pyav):
    assert INTERLACED_CLIP.stat().st_size < 4000
    assert try_interlaced() == (True, "right")
    without_pyav()
    right_or_refused(INTERLACED_CLIP, list(clip_frames()))
    assert try_interlaced() == (True, "right" if CONVERTS else "refused")


def test_clip_that_is_decoded_wrongly_is_found(tmp_path, pyav):
    other = write_clip(tmp_path / "other.mp4", list(255 - clip_frames()))
    assert not try_interlaced(other)[0]
    short = write_clip(tmp_path / "short.mp4", list(clip_frames()[:2]))
    assert try_interlaced(short)[1] == "WRONG (2 frames of 4)"


def test_broken_installation_is_not_hidden(tmp_path, monkeypatch):
    """What is installed but does not import is no missing extra."""
    (tmp_path / "av.py").write_text("import no_such_library_of_pyav")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "av", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_library_of_pyav"):
        decoder_name()


def test_stream_from_a_server(tmp_path, without_pyav):
    write_clip(tmp_path / "gate.ts", frames(), bf="0")
    write_clip(tmp_path / "field.ts", frames(), interlaced=True, bf="0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with open_source(f"{address}/gate.ts?camera=2") as source:
            assert (source.name, source.size) == ("gate", (HEIGHT, WIDTH))
            found = list(itertools.islice(source, NUM_FRAMES))
        for frame, expected in zip(found, frames(), strict=True):
            assert np.abs(frame.astype(float) - expected).mean() < TOLERANCE
        without_pyav()
        try:
            with open_source(f"{address}/field.ts") as source:
                assert CONVERTS, "an interlaced stream is refused"
        except SourceError as error:
            assert "cannot be trusted" in str(error) and "pip install av" in str(error)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing on stderr."""

    def log_message(self, *arguments) -> None:
        return None


def test_one_door_for_data_sets(tmp_path, without_pyav):
    """Evaluation, training and `data check` read videos as tracking does."""
    (tmp_path / "walk").mkdir()
    path = write_clip(tmp_path / "walk" / "video.mp4", frames(), interlaced=True)
    (tmp_path / "walk" / "groundtruth.txt").write_text("8,16,16,16\n" * NUM_FRAMES)
    (sequence,) = open_dataset("folder", tmp_path)
    assert np.abs(sequence.frame(7).astype(float) - frames()[7]).mean() < 12.0
    assert check_dataset(open_dataset("folder", tmp_path)).faults == ()
    without_pyav()
    if not CONVERTS:
        with pytest.raises(SourceError, match="cannot be trusted"):
            list(open_dataset("folder", tmp_path))
        found = check_dataset(Dataset("late", tmp_path, ["walk"], lambda _: replace(sequence, frame=VideoFrames(path))))
        assert {fault.kind for fault in found.faults} == {"image"} and str(path) in found.faults[0].what


@pytest.mark.skipif(CONVERTS, reason="this OpenCV converts interlaced frames, and nobody is asked")
def test_silent_witnesses_are_not_believed(tmp_path, without_pyav, monkeypatch):
    path = write_clip(tmp_path / "still.mkv", [frames()[0]] * 4, codec="ffv1")
    without_pyav()
    assert_right(path, [frames()[0]] * 4)
    # As if this FFmpeg had been built to say nothing.
    deaf = 'import os\nfor number in range(99):\n    os.write(2, b"passed %d\\n" % number)\n'
    monkeypatch.setattr(decoders, "_WITNESS", deaf)
    decoders._witnesses_speak.cache_clear()
    try:
        assert "cannot be trusted" in refusal(path)
    finally:
        decoders._witnesses_speak.cache_clear()
