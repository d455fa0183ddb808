"""Sources give every frame once and in order, say where they break off, and written videos read back."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mixformer_jax.media.images import SourceError, read_image
from mixformer_jax.media.video import (
    CODECS,
    ArrayFrames,
    EncodingError,
    OutputError,
    SelectedFrames,
    VideoWriter,
    open_encoder,
    open_source,
    prepare_output,
    telling_name,
)


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Its grey level tells its number, and its left half is redder: checks order and channels."""
    frame = np.full((height, width, 3), 10 + 8 * number, np.uint8)
    frame[:, : width // 2, 0] += 60
    return frame


def numbers(frames) -> list[int]:
    """The number of each picture, read from its blue channel."""
    return [round((float(frame[..., 2].mean()) - 10) / 8) for frame in frames]


def write_video(path: Path, num_frames: int = 20, height: int = 48, width: int = 64, fps: float = 25.0) -> Path:
    with VideoWriter(path, fps, (height, width)) as writer:
        for number in range(num_frames):
            writer.write(picture(number, height, width))
    return path


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def encoded(suffix: str, frame: np.ndarray) -> bytes:
    return cv2.imencode(suffix, frame[..., ::-1])[1].tobytes()


def read_until_error(source) -> tuple[list[np.ndarray], str]:
    frames = []
    with pytest.raises(SourceError) as caught:
        for frame in source:
            frames.append(frame)
    return frames, str(caught.value)


@pytest.mark.parametrize("suffix", CODECS)
def test_written_video_reads_back(tmp_path, each_library, suffix):
    path = write_video(tmp_path / f"clip{suffix}")
    with open_source(path) as source:
        assert (source.name, source.fps, source.num_frames, source.size) == ("clip", 25.0, 20, (48, 64))
        frames = list(source)
        assert numbers(frames) == list(range(20))
        assert numbers(source) == list(range(20)), "a second pass starts at the first frame again"
    red, green, blue = frames[0][:, 8:24].mean(axis=(0, 1))
    assert red - blue > 40 and abs(green - blue) < 20, "frames are RGB"
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing temporary stays"


def test_written_under_a_name_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_source(write_video(Path("12:30:00.mp4"))) as source:
        assert numbers(source) == list(range(20))


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63), (1, 1)])
def test_odd_sizes_get_one_more_row_or_column(tmp_path, each_library, size):
    path = write_video(tmp_path / "odd.mp4", 3, *size)
    source = open_source(path)
    assert source.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert source.num_frames == 3


@pytest.mark.parametrize("fps", [23.976023976, 59.94005994, 0.5, 1000.0])
def test_odd_rates(tmp_path, each_library, fps):
    assert open_source(write_video(tmp_path / "rate.mp4", 3, fps=fps)).fps == pytest.approx(fps, abs=1e-3)


def test_h264_that_browsers_play(tmp_path, pyav):
    """4:2:0 with its colours named, and the index before the pictures."""
    path = write_video(tmp_path / "clip.mp4", fps=23.976023976)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with pyav.open(str(path)) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_h264_keeps_times(tmp_path, pyav):
    times = [0.0, 0.04, 0.5, 0.5, 2.0, 2.25]
    with VideoWriter(tmp_path / "clip.mp4", 25.0, (48, 64)) as writer:
        for number, seconds in enumerate(times):
            writer.write(picture(number), seconds)
    found = [frame.seconds for frame in open_source(tmp_path / "clip.mp4").timed()]
    np.testing.assert_allclose(found, times, atol=1e-4)
    assert np.diff(found).min() > 0, "no two frames at once"


def test_what_is_written_where(tmp_path, pyav, monkeypatch):
    def codec(name: str) -> str:
        encoder = open_encoder(tmp_path / name, 25.0, (48, 64))
        encoder.close()
        return encoder.codec

    assert (codec("a.mp4"), codec("a.avi")) == ("H.264", "Motion JPEG")
    with pytest.raises(EncodingError, match="libx264 cannot encode 65x48 at 25 Hz"):
        open_encoder(tmp_path / "odd.mp4", 25.0, (48, 65))
    monkeypatch.setattr("mixformer_jax.media.video._H264_ENCODER", "libx264-that-was-left-out")
    assert codec("a.mp4") == "MPEG-4 part 2"


def test_interrupt_leaves_a_finished_video(tmp_path, each_library):
    path = tmp_path / "clip.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 25.0, (48, 64)) as writer:
        for number in range(7):
            writer.write(picture(number))
        raise KeyboardInterrupt
    assert numbers(open_source(path)) == list(range(7))


def test_unfinished_video_does_not_touch_an_older_one(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 5)
    writer = VideoWriter(path, 25.0, (48, 64))
    writer.write(picture(0))
    assert open_source(path).num_frames == 5
    writer.close()
    writer.close()
    assert open_source(path).num_frames == 1


def test_writer_without_frames_leaves_no_file(tmp_path, each_library):
    with VideoWriter(tmp_path / "none.mp4", 25.0, (48, 64)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_writer_notices_a_file_that_lost_frames(tmp_path, each_library):
    writer = VideoWriter(tmp_path / "clip.mp4", 25.0, (48, 64))
    writer.write(picture(0))
    writer.num_frames = 2  # as if the disk had taken one frame of two
    with pytest.raises(OutputError, match="holds 1 of 2 frames"):
        writer.close()


def test_writer_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(OutputError, match=r"clip\.gif.*\.mp4"):
        VideoWriter(tmp_path / "clip.gif", 25.0, (48, 64))
    for fps, size in ((0.0, (48, 64)), (float("nan"), (48, 64)), (25.0, (0, 64))):
        with pytest.raises(ValueError, match="positive rate and size"):
            VideoWriter(tmp_path / "clip.mp4", fps, size)
    with (
        VideoWriter(tmp_path / "clip.mp4", 25.0, (48, 64)) as writer,
        pytest.raises(ValueError, match="32x24 for a video of 64x48"),
    ):
        writer.write(picture(0, 24, 32))


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for make in (prepare_output, lambda path: VideoWriter(path, 25.0, (48, 64))):
        with pytest.raises(OutputError, match=r"file.*cannot write into this folder"):
            make(tmp_path / "file" / "clip.mp4")
    with pytest.raises(OutputError, match="is a folder"):
        prepare_output(tmp_path)
    assert prepare_output(tmp_path / "new" / "deep" / "clip.mp4").parent.is_dir()


def test_images_come_in_natural_order(tmp_path):
    for number, name in enumerate(["frame2.png", "frame10.PNG", "frame11.jpg", "other1.png"]):
        (tmp_path / name).write_bytes(encoded(Path(name).suffix.lower(), picture(number)))
    (tmp_path / "groundtruth.txt").write_text("1,2,3,4")
    (tmp_path / "._frame2.png").write_text("a file manager's")
    with open_source(str(tmp_path)) as source:
        assert (source.name, source.num_frames, source.size) == (tmp_path.name, 4, (48, 64))
        assert numbers(source) == [0, 1, 2, 3]


def test_grey_and_deep_images_become_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((6, 8), 77, np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((6, 8, 3), 77 * 257, np.uint16))
    for name in ("grey.png", "deep.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), np.full((6, 8, 3), 77, np.uint8))


@pytest.mark.parametrize(("suffix", "bits"), [(".png", 12), (".tif", 12), (".png", 14), (".png", 10)])
def test_few_bits_in_sixteen_are_warned_of(tmp_path, suffix, bits):
    """A sensor's 12 bits look nearly black when the higher 8 of 16 are taken."""
    scene = np.random.default_rng(0).integers(0, 2**bits, (6, 8, 3)).astype(np.uint16)
    scene[0, 0] = 2**bits - 1
    for number in (1, 2):  # the second is darker
        cv2.imwrite(str(tmp_path / f"{number}{suffix}"), scene // number)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        dark = [read_image(tmp_path / f"{number}{suffix}") for number in (1, 2)]
    (warning,) = caught  # once a folder
    assert f"{tmp_path}: images of 16 bits" in str(warning.message)
    assert "12 bits by: magick mogrify -evaluate multiply 16 " in str(warning.message)
    np.testing.assert_array_equal(dark[0], scene[..., ::-1] >> 8)


@pytest.mark.parametrize("peak", [0, 255, 2**15, 2**16 - 1])
def test_sixteen_bits_without_a_warning(tmp_path, peak):
    cv2.imwrite(str(tmp_path / "1.png"), np.full((6, 8, 3), peak, np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(tmp_path / "1.png") == peak >> 8).all()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("walk.mp4", "walk"),
        ("walk.v2.mp4", "walk.v2"),
        ("walk/video.mp4", "walk"),
        ("walk/00000001.avi", "walk"),
        ("walk/img/0001.mp4", "walk"),
        ("walk/Video.MOV", "walk"),
        ("walk/run.mp4", "run"),
        ("walk/../jump/video.mp4", "jump"),
    ],
)
def test_telling_names(tmp_path, monkeypatch, path, name):
    monkeypatch.chdir(tmp_path)
    assert telling_name(Path(path)) == name


def test_links_keep_their_own_names(tmp_path):
    (tmp_path / "stored" / "0001").mkdir(parents=True)
    (tmp_path / "stored" / "0001" / "1.png").write_bytes(encoded(".png", picture(0)))
    (tmp_path / "walk").symlink_to(tmp_path / "stored" / "0001")
    assert open_source(tmp_path / "walk").name == "walk"
    (tmp_path / "clip.mp4").symlink_to(write_video(tmp_path / "stored" / "abc.mp4", 3))
    assert open_source(tmp_path / "clip.mp4").name == "clip"


def test_folder_with_twins_is_ambiguous(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg", picture(0)))
    (tmp_path / "a.png").write_bytes(encoded(".png", picture(0)))
    with pytest.raises(SourceError, match=r"both a\.jpg and a\.png"):
        open_source(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_image_that_ends_early(tmp_path, suffix):
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    whole = encoded(suffix, frame)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(whole)
    assert read_image(path).shape == (48, 64, 3)
    for length in (len(whole) - 1, len(whole) - 40, len(whole) // 2, 12, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=path.name):
            read_image(path)


def test_jpeg_end_is_its_own_not_its_thumbnails(tmp_path):
    whole = encoded(".jpg", np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    thumbnail = encoded(".jpg", picture(0, 8, 8))
    with_thumbnail = b"\xff\xd8\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + whole[2:]
    path = tmp_path / "image.jpg"
    path.write_bytes(with_thumbnail + b"\x00 what a camera appends")
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(with_thumbnail[:-2])
    with pytest.raises(SourceError, match="truncated"):
        read_image(path)


def test_progressive_jpeg_is_whole(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes()
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(data[: data.rfind(b"\xff\xda")])
    with pytest.raises(SourceError, match="truncated"):
        read_image(path)


def test_folder_gives_the_frames_before_a_damaged_one(tmp_path):
    for number in range(4):
        (tmp_path / f"{number:08d}.jpg").write_bytes(encoded(".jpg", picture(number)))
    cut(tmp_path / "00000002.jpg", 0.7)
    frames, message = read_until_error(open_source(tmp_path))
    assert numbers(frames) == [0, 1]
    assert "00000002.jpg" in message and "truncated" in message


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_folder_whose_frames_change_size(tmp_path, suffix):
    for number, size in enumerate([(48, 64), (48, 64), (64, 48)]):
        (tmp_path / f"{number}{suffix}").write_bytes(encoded(suffix, picture(number, *size)))
    frames, message = read_until_error(open_source(tmp_path))
    assert len(frames) == 2
    assert f"2{suffix}: frame 3 has 48x64 pixels, but the first one has 64x48" in message


@pytest.mark.parametrize("keep", [0.7, 0.85])
def test_truncated_video_gives_what_it_holds(tmp_path, keep):
    path = cut(write_video(tmp_path / "clip.avi", 24), keep)
    frames, message = read_until_error(open_source(path))
    assert 2 < len(frames) < 20
    assert numbers(frames) == list(range(len(frames)))
    assert f"promises 24 frames, but frame {len(frames) + 1} cannot be decoded" in message


def test_video_cut_before_its_index(tmp_path):
    with pytest.raises(SourceError, match=r"clip\.mp4.*truncated"):
        open_source(cut(write_video(tmp_path / "clip.mp4"), 0.9))


@pytest.mark.parametrize(
    ("promised", "fps", "short"),
    [
        (20, 25.0, False),
        (25, 25.0, False),  # five frames too many are the container's sloppiness
        (26, 25.0, True),
        (None, 25.0, False),
        (800, 1000.0, False),  # an estimate from a nominal rate: the last frame is where 800 ms end
    ],
)
def test_how_many_frames_may_be_missing(tmp_path, promised, fps, short):
    source = open_source(write_video(tmp_path / "clip.mp4", 20))
    source.num_frames, source.fps = promised, fps
    if short:
        assert len(read_until_error(source)[0]) == 20
    else:
        assert len(list(source)) == 20


def test_missing_and_undecodable_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    (tmp_path / "one.jpg").write_bytes(encoded(".jpg", picture(0)))
    for name, complaint in {
        "nowhere.mp4": "does not exist",
        "empty": "holds no image",
        "empty.mp4": "is empty",
        "text.mp4": "cannot be opened as a video",
        "one.jpg": "single image",
    }.items():
        with pytest.raises(SourceError, match=complaint) as caught:
            open_source(tmp_path / name)
        assert name in str(caught.value)


def test_digits_name_a_camera_unless_a_folder_has_that_name(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="camera 97 gives no picture"):
        open_source("97")
    monkeypatch.chdir(tmp_path)
    Path("97").mkdir()
    Path("97/1.png").write_bytes(encoded(".png", picture(3)))
    assert numbers(open_source("97")) == [3]


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(".png", picture(number)))


def test_pattern_of_images(tmp_path):
    write_images(
        tmp_path / "walk", [f"{number:06d}.png" for number in range(5, 9)] + ["000009.jpg", "other_000010.png"]
    )
    with open_source(str(tmp_path / "walk" / "%06d.png")) as source:
        assert (source.name, source.num_frames, source.size) == ("walk", 4, (48, 64))
        assert numbers(source) == [0, 1, 2, 3]
    write_images(tmp_path / "runs", [f"run-{number}.png" for number in range(8, 13)] + ["run-013.png"])
    with open_source(tmp_path / "runs" / "run-%d.png") as source:
        assert (source.name, numbers(source)) == ("run", [0, 1, 2, 3, 4])


def test_pattern_that_fits_no_file(tmp_path):
    write_images(tmp_path, ["1.png", "2.png", "5.png"])
    for name, complaint in {
        "%d.png": r"3\.png: is missing, but 5\.png is there",
        "%04d.png": r"no file is named so, such as 0001\.png",
        "%d_%d.png": "expected one number",
        "nowhere/%d.png": "there is no folder",
    }.items():
        with pytest.raises(SourceError, match=complaint):
            open_source(tmp_path / name)


@pytest.fixture(params=["video", "images", "small memory"])
def twelve(request, tmp_path, monkeypatch):
    """A source of twelve frames."""
    if request.param == "images":
        write_images(tmp_path / "walk", [f"{number}.png" for number in range(12)])
        return open_source(tmp_path / "walk")
    if request.param == "small memory":
        monkeypatch.setattr("mixformer_jax.media.sources.BACKWARD_BYTES", 4 * 48 * 64 * 3)
    return open_source(write_video(tmp_path / "clip.mp4", 12, fps=30.0))


@given(
    start=st.none() | st.integers(1, 12),
    end=st.none() | st.integers(1, 15),
    stride=st.integers(1, 13),
    backward=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_any_part_of_a_source(twelve, start, end, stride, backward):
    every = list(range(1, 13))
    first, last = start or (12 if backward else 1), end or (1 if backward else 12)
    assume(first >= last if backward else first <= last)
    expected = (
        every[first - 1 : max(last - 2, -1) if last > 1 else None : -stride]
        if backward
        else every[first - 1 : last : stride]
    )
    selected = SelectedFrames(twelve, start, end, stride, backward)
    found = list(selected.timed())
    assert [frame.number for frame in found] == expected and selected.num_frames == len(expected)
    assert [number + 1 for number in numbers(frame.pixels for frame in found)] == expected
    np.testing.assert_allclose([frame.seconds for frame in found], (np.array(expected) - 1) / 30.0, atol=1e-6)
    assert selected.fps == 30.0 / stride


def test_part_that_is_not_there(twelve):
    for backward in (False, True):
        with pytest.raises(SourceError, match="there is no frame 20"):
            list(SelectedFrames(twelve, start=20, backward=backward).timed())
    with pytest.raises(SourceError, match="there is no frame 13"):
        list(SelectedFrames(twelve, end=13, backward=True).timed())
    for start, end, stride, backward in ((0, None, 1, False), (1, None, 0, False), (5, 4, 1, False), (4, 5, 1, True)):
        with pytest.raises(ValueError, match=r"start|stride"):
            SelectedFrames(twelve, start, end, stride, backward)


def test_frames_in_memory():
    stack = np.stack([picture(number) for number in range(3)])
    for frames in (stack, list(stack), tuple(stack)):
        source = open_source(frames)
        assert (source.num_frames, source.size) == (3, (48, 64))
        assert numbers(source) == numbers(source) == [0, 1, 2]
    assert ArrayFrames(stack, "clip", 12.0).fps == 12.0


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        ([], "no frames"),
        ([np.zeros((4, 4, 3), np.float32)], "float32"),
        ([np.zeros((4, 4), np.uint8)], "uint8 RGB"),
        ([np.zeros((4, 4, 4), np.uint8)], "uint8 RGB"),
    ],
)
def test_wrong_frames_in_memory(frames, complaint):
    with pytest.raises(SourceError, match=complaint):
        open_source(frames)


def test_frames_in_memory_that_change_size():
    frames, message = read_until_error(open_source([picture(0), picture(1), picture(2, 24, 32)]))
    assert numbers(frames) == [0, 1]
    assert "frame 3 has 32x24" in message


def test_real_video_frame_for_frame(shared_data):
    path = shared_data / "train" / "videos" / "davis16__blackswan" / "video.mp4"
    source = open_source(path)
    boxes = (path.parent / "groundtruth.txt").read_text().split()
    assert sum(1 for _ in source) == source.num_frames == len(boxes)
