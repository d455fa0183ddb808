"""The command: what it prints, what it leaves, and one clear message for everything that can go wrong."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mixformer_jax
from mixformer_jax import cli
from mixformer_jax.cli import train as training_commands
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.media.video import VideoWriter, open_source
from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.signals import Stopped
from tests.stand_ins import HEIGHT, WIDTH, PairTracker, RedTracker, square_boxes, square_clip

BOX = "--box=35,42,12,12"


@pytest.fixture
def tracker(monkeypatch):
    tracker = RedTracker()
    loaded = []

    def load(weights=None, device=None, dtype=None):
        loaded.append((weights, device))
        tracker.dtype = dtype
        return tracker

    monkeypatch.setattr(mixformer_jax, "load", load, raising=False)
    tracker.loaded = loaded
    return tracker


@pytest.fixture
def video(tmp_path, monkeypatch):
    """`clip.mp4` of 20 frames in the current folder."""
    monkeypatch.chdir(tmp_path)
    with VideoWriter(tmp_path / "clip.mp4", 30.0, (HEIGHT, WIDTH)) as writer:
        for frame in square_clip(20):
            writer.write(frame)
    return tmp_path / "clip.mp4"


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    # Without the progress bar, which goes to stderr as well.
    messages = [line for line in re.split(r"[\r\n]", captured.err) if "frames/s" not in line and line.strip()]
    return status, captured.out, "\n".join(messages)


def fails(capsys, *arguments) -> str:
    """The one message of a call that must fail."""
    status, _, message = run(capsys, *arguments)
    assert status == 2 and message.startswith("mixformer: error: ") and message.count("\n") == 0, message
    return message


def test_track_leaves_video_and_boxes(capsys, tracker, video):
    status, out, message = run(capsys, "track", "clip.mp4", BOX)
    assert (status, message) == (0, "")
    boxes = np.loadtxt("clip_boxes.txt", delimiter=",")
    np.testing.assert_array_equal(boxes[0], [35, 42, 12, 12])
    np.testing.assert_allclose(boxes, square_boxes(20), atol=3)  # the codec blurs edges
    assert open_source("clip_tracked.mp4").num_frames == 20
    assert re.search(r"frames +20\n", out) and "clip_tracked.mp4" in out and "clip_boxes.txt" in out
    assert re.search(r"[0-9.]+ FPS tracking, [0-9.]+ FPS with .*warm-up of [0-9.]+ s", out)
    assert tracker.loaded == [(None, None)]


def test_track_options(capsys, tracker, video):
    options = (
        "--out",
        "new/a.avi",
        "--boxes",
        "new/b.txt",
        "--stride",
        "5",
        "--device",
        "cpu",
        "--weights",
        "w",
        "--dtype",
        "bfloat16",
    )
    status, out, _ = run(capsys, "track", "clip.mp4", BOX, *options)
    assert status == 0 and re.search(r"frames +4\n", out)
    assert open_source("new/a.avi").fps == 6.0
    assert len(Path("new/b.txt").read_text().splitlines()) == 4
    assert tracker.loaded == [("w", "cpu")] and tracker.dtype == "bfloat16"
    assert "choose from" in fails(capsys, "track", "clip.mp4", BOX, "--dtype", "float16")


def test_track_two_targets(capsys, video, monkeypatch):
    monkeypatch.setattr(mixformer_jax, "load", lambda *_, **__: PairTracker(), raising=False)
    status, out, message = run(capsys, "track", "clip.mp4", BOX, "--box", "47,42,12,12")
    assert (status, message) == (0, "")
    assert "clip_boxes_1.txt, clip_boxes_2.txt" in out and re.search(r"lost +0 of 20 frames, 10 of 20 frames\n", out)
    for name in ("clip_boxes_1.txt", "clip_boxes_2.txt"):
        lines = np.loadtxt(name, delimiter=",")
        assert lines.shape == (20, 6) and set(lines[:, 5]) <= {0, 1}
    assert "different files" in fails(capsys, "track", "clip.mp4", BOX, BOX, "--out", "b_2.txt", "--boxes", "b.txt")


def test_track_with_other_settings(capsys, tracker, video, monkeypatch):
    seen = []
    tracker.settings = TrackerConfig()
    tracker.with_settings = lambda **changes: seen.append(changes) or tracker
    assert run(capsys, "track", "clip.mp4", BOX, "--tracker.search_factor=5", "--tracker.update_interval=10")[0] == 0
    assert seen == [{"search_factor": 5.0, "update_interval": 10}]
    assert "did you mean search_factor" in fails(capsys, "track", "clip.mp4", BOX, "--tracker.search_facter=5")
    assert "expected --tracker.SETTING=VALUE" in fails(capsys, "track", "clip.mp4", BOX, "--tracker.search_factor")
    assert "unknown arguments" in fails(capsys, "demo", "--tracker.search_factor=5")


def test_track_a_part_of_a_source(capsys, tracker, video):
    options = ("--start", "4", "--end", "16", "--stride", "3", "--boxes", "b.csv", "--no-video")
    status, out, message = run(capsys, "track", "clip.mp4", box_on(4), *options)
    assert (status, message) == (0, "") and re.search(r"frames +5\n", out) and "video" not in out
    rows = [line.split(",") for line in Path("b.csv").read_text().splitlines()[1:]]
    assert [(int(row[0]), float(row[1])) for row in rows] == [(n, round((n - 1) / 30, 6)) for n in (4, 7, 10, 13, 16)]
    assert run(capsys, "track", "clip.mp4", box_on(20), "--backward", "--end", "15")[0] == 0
    boxes = np.loadtxt("clip_boxes.txt", delimiter=",")
    np.testing.assert_allclose(boxes, square_boxes(20)[:13:-1], atol=3)
    assert open_source("clip_tracked.mp4").num_frames == 6
    assert {path.name for path in Path().iterdir()} == {"b.csv", "clip.mp4", "clip_boxes.txt", "clip_tracked.mp4"}


def box_on(frame: int) -> str:
    return "--box=" + ",".join(f"{number:g}" for number in square_boxes(frame)[-1])


def test_quiet_and_logs_without_bars(capsys, tracker, video):
    assert cli.main(["track", "clip.mp4", BOX]) == 0
    captured = capsys.readouterr()
    assert captured.out and captured.err == "", "this stderr is no terminal"
    assert cli.main(["track", "clip.mp4", BOX, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert "does not exist" in fails(capsys, "track", "nowhere.mp4", BOX, "--quiet")


def test_resume_of_an_interrupted_track(capsys, tracker, video):
    assert run(capsys, "track", "clip.mp4", BOX)[0] == 0
    whole = {end: Path(f"clip{end}").read_bytes() for end in ("_boxes.txt", "_tracked.mp4")}
    tracker.interrupt_at, tracker.error = 9, Stopped(signal.SIGTERM)
    assert run(capsys, "track", "clip.mp4", BOX)[0] == 143
    assert Path("clip-2_boxes.txt.resume").exists() and len(Path("clip-2_boxes.txt").read_text().splitlines()) == 9
    tracker.interrupt_at = None
    assert "other boxes; give those again" in fails(capsys, "track", "clip.mp4", "--box=1,2,30,40", "--resume")
    status, out, _ = run(capsys, "track", "clip.mp4", BOX, "--resume")
    assert status == 0 and re.search(r"frames +20, 9 of them by the run that was interrupted\n", out)
    assert {end: Path(f"clip-2{end}").read_bytes() for end in whole} == whole
    assert len(list(Path().iterdir())) == 5
    assert run(capsys, "track", "clip.mp4", BOX, "--resume")[0] == 0, (
        "nothing to go on with: begins, beside what is there"
    )
    assert Path("clip-3_boxes.txt").read_bytes() == whole["_boxes.txt"]


def test_resume_of_named_files(capsys, tracker, video):
    tracker.interrupt_at = 9
    named = ("track", "clip.mp4", BOX, "--out", "a.mp4", "--boxes", "b.json")
    assert run(capsys, *named)[0] != 0
    tracker.interrupt_at = None
    assert "a.mp4, b.json: there already" in fails(capsys, *named)
    assert run(capsys, *named, "--resume")[0] == 0
    assert {path.name for path in Path().iterdir()} == {"clip.mp4", "a.mp4", "b.json"}
    tracker.interrupt_at = 9
    assert run(capsys, *named, "--overwrite")[0] != 0 and Path("b.json.resume").exists()
    tracker.interrupt_at = None
    assert run(capsys, *named, "--overwrite")[0] == 0, "begins anew"
    assert {path.name for path in Path().iterdir()} == {"clip.mp4", "a.mp4", "b.json"}


def test_boxes_drawn_with_the_mouse(capsys, tracker, video, monkeypatch):
    import cv2

    if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        assert "--select needs an OpenCV with windows: pip" in fails(capsys, "track", "clip.mp4", "--select")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:     QT5")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform == "linux":
        assert "--select needs a screen" in fails(capsys, "track", "clip.mp4", "--select")
    monkeypatch.setenv("DISPLAY", ":0")
    drawn = [[(35, 42, 12, 12), (0, 0, 0, 0)], ()]
    monkeypatch.setattr(cv2, "selectROIs", lambda title, frame, showCrosshair: drawn.pop(0))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    assert run(capsys, "track", "clip.mp4", "--select")[0] == 0
    assert Path("clip_boxes.txt").read_text().startswith("35,42,12,12\n")
    assert "no box was drawn" in fails(capsys, "track", "clip.mp4", "--select")
    assert "give one of them" in fails(capsys, "track", "clip.mp4", "--select", BOX)
    assert "give one of them" in fails(capsys, "track", "clip.mp4", BOX, "--out", "a.mp4", "--no-video")


def test_track_a_folder_of_images(capsys, tracker, video, tmp_path):
    import cv2

    (tmp_path / "walk").mkdir()
    for index, frame in enumerate(square_clip(5)):
        cv2.imwrite(str(tmp_path / "walk" / f"{index}.png"), frame[..., ::-1])
    assert run(capsys, "track", tmp_path / "walk", BOX)[0] == 0
    np.testing.assert_array_equal(np.loadtxt("walk_boxes.txt", delimiter=","), square_boxes(5))


def test_nothing_is_replaced_unasked(capsys, tracker, video):
    for _ in range(3):
        assert run(capsys, "track", "clip.mp4", BOX)[0] == 0
    names = {path.name for path in Path().iterdir()} - {"clip.mp4"}
    stems = ("clip", "clip-2", "clip-3")
    assert names == {f"{stem}{end}" for stem in stems for end in ("_tracked.mp4", "_boxes.txt")}
    Path("clip_boxes.txt").write_text("mine")
    assert run(capsys, "track", "clip.mp4", BOX, "--overwrite")[0] == 0
    assert Path("clip_boxes.txt").read_text().count("\n") == 20
    assert {path.name for path in Path().iterdir()} - {"clip.mp4"} == names

    Path("mine.txt").write_text("mine")
    message = fails(capsys, "track", "clip.mp4", BOX, "--boxes", "mine.txt")
    assert "mine.txt: there already" in message and "--overwrite" in message
    assert "clip_tracked.mp4: there" in fails(capsys, "track", "clip.mp4", BOX, "--out", "clip_tracked.mp4")
    assert Path("mine.txt").read_text() == "mine"
    assert run(capsys, "track", "clip.mp4", BOX, "--out", "o.mp4", "--boxes", "mine.txt", "--overwrite")[0] == 0
    assert Path("mine.txt").read_text().count("\n") == 20


def test_what_a_killed_run_left_stays(capsys, tracker, video):
    Path("clip_boxes.txt.part").write_text("1,2,3,4\n")
    assert run(capsys, "track", "clip.mp4", BOX)[0] == 0
    assert Path("clip_boxes.txt.part").read_text() == "1,2,3,4\n" and Path("clip-2_boxes.txt").is_file()
    assert "there already" in fails(capsys, "track", "clip.mp4", BOX, "--boxes", "clip_boxes.txt")


def test_two_runs_that_start_at_once(capsys, tracker, video, monkeypatch):
    """The other one took the names while this one loaded its weights."""

    def load(weights=None, device=None, dtype=None):
        Path("clip_boxes.txt.part").touch()
        return tracker

    monkeypatch.setattr(mixformer_jax, "load", load)
    status, out, _ = run(capsys, "track", "clip.mp4", BOX)
    assert status == 0 and "clip-2_boxes.txt" in out
    assert {path.name for path in Path().iterdir()} - {"clip.mp4"} == {
        "clip_boxes.txt.part",
        "clip-2_boxes.txt",
        "clip-2_tracked.mp4",
    }
    monkeypatch.setattr(mixformer_jax, "load", lambda *_, **__: Path("mine.txt.part").touch() or tracker)
    assert "mine.txt: there already" in fails(capsys, "track", "clip.mp4", BOX, "--boxes", "mine.txt")


def test_names_that_say_nothing(capsys, tracker, video, tmp_path):
    for folder in ("walk", "jump/color"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "video.mp4").write_bytes(video.read_bytes())
        assert run(capsys, "track", tmp_path / folder / "video.mp4", BOX)[0] == 0
    assert {"walk_boxes.txt", "jump_boxes.txt", "walk_tracked.mp4"} <= {path.name for path in Path().iterdir()}


def test_address_that_does_not_open(capsys, tracker, video):
    message = fails(capsys, "track", "rtsp://127.0.0.1:9/x", BOX)
    assert "rtsp://127.0.0.1:9/x: the stream could not be opened" in message


def test_box_partly_left_of_the_frame(capsys, tracker, video):
    assert run(capsys, "track", "clip.mp4", "--box", "-5,3,40,40")[0] == 0
    assert Path("clip_boxes.txt").read_text().startswith("-5,3,40,40\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_keeps_what_was_computed(capsys, tracker, video, number, status):
    tracker.interrupt_at, tracker.error = 8, Stopped(number)
    result, _, message = run(capsys, "track", "clip.mp4", BOX)
    assert result == status and "8 frames tracked until then are in clip_boxes.txt" in message
    assert len(Path("clip_boxes.txt").read_text().splitlines()) == 8
    assert open_source("clip_tracked.mp4").num_frames == 8


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_end_a_running_command(capsys, tracker, video, monkeypatch, number, status, word):
    outer = signal.signal(number, signal.SIG_IGN)  # as a shell does for jobs in the background

    def step(state, frame):
        if state == 5:
            os.kill(os.getpid(), number)
        return RedTracker.step(tracker, state, frame)

    monkeypatch.setattr(tracker, "step", step)
    result, _, message = run(capsys, "track", "clip.mp4", BOX)
    assert signal.signal(number, outer) is signal.SIG_IGN, "the handler is put back"
    assert result == status and f"{word}; the" in message
    assert len(Path("clip_boxes.txt").read_text().splitlines()) in (5, 6)


def test_truncated_video_keeps_what_was_computed(capsys, tracker, video):
    with VideoWriter("long.avi", 30.0, (HEIGHT, WIDTH)) as writer:
        for frame in square_clip(40):
            writer.write(frame)
    data = Path("long.avi").read_bytes()
    Path("long.avi").write_bytes(data[: int(len(data) * 0.7)])
    message = fails(capsys, "track", "long.avi", BOX)
    count = len(Path("long_boxes.txt").read_text().splitlines())
    assert 5 < count < 36 and open_source("long_tracked.mp4").num_frames == count
    assert f"frame {count + 1} cannot be decoded; the {count} frames tracked until then" in message


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["trak"], "'trak'"),
        (["track"], "SOURCE"),
        (["track", "clip.mp4"], "--box X,Y,W,H is needed"),
        (["track", "nowhere.mp4", BOX], "nowhere.mp4: does not exist"),
        (["track", "clip.mp4", "--box", "1,2,3"], "four numbers"),
        (["track", "clip.mp4", "--box", "1,2,3,wide"], "four numbers"),
        (["track", "clip.mp4", "--box", "1,2,nan,4"], "NaN"),
        (["track", "clip.mp4", "--box", "1,2,0,4"], "no area"),
        (["track", "clip.mp4", "--box", "95,2,10,4"], "outside the frame"),
        (["track", "clip.mp4", BOX, "--stride", "0"], "--stride"),
        (["track", "clip.mp4", BOX, "--stride", "two"], "'two'"),
        (["track", "clip.mp4", BOX, "--device", "abacus"], "abacus"),
        (["track", "clip.mp4", BOX, "--out", "clip.mp4"], "different files"),
        (["track", "clip.mp4", BOX, "--boxes", "./clip.mp4"], "different files"),
        (["track", "clip.mp4", BOX, "--out", "a.txt", "--boxes", "a.txt"], "different files"),
        (["track", "clip.mp4", BOX, "--out", "clip.gif"], "cannot write this kind of video"),
        (["track", "clip.mp4", BOX, "--out", "clip.mp4/a.mp4"], "cannot write into this folder"),
        (["track", "clip.mp4", BOX, "--boxes", "clip.mp4/a.txt"], "cannot write into this folder"),
        (["track", "clip.mp4", BOX, "--frobnicate"], "--frobnicate"),
        (["track", "clip.mp4", BOX, "--config.train.steps=3"], "--config.train.steps=3"),
        (["demo", "--out", "clip.mp4/demo"], "cannot write into this folder"),
        (["bench", "--model", "mixvit_huge"], "mixvit_tiny"),
        (["bench", "--model", "mixvit_b", "--weights", "w"], "not allowed with"),
        (["bench", "--size", "640"], "--size 640"),
        (["train"], "--config"),
        (["train", "--config", "nowhere.py"], "nowhere.py"),
    ],
)
def test_one_clear_message(capsys, tracker, video, arguments, complaint):
    assert complaint in fails(capsys, *arguments)
    assert sorted(path.name for path in Path().iterdir()) == ["clip.mp4"], "and nothing is left behind"


@pytest.mark.parametrize("error", [WeightsError("w: weights of another model"), ValueError("no device of kind 'gpu'")])
def test_errors_of_loading(capsys, video, monkeypatch, error):
    def load(weights=None, device=None, dtype=None):
        raise error

    monkeypatch.setattr(mixformer_jax, "load", load, raising=False)
    assert str(error) in fails(capsys, "track", "clip.mp4", BOX)


def test_bug_keeps_its_traceback(tracker, video):
    tracker.interrupt_at, tracker.error = 3, ValueError
    with pytest.raises(ValueError):
        cli.main(["track", "clip.mp4", BOX])


def test_missing_extra_is_named(capsys, video, monkeypatch):
    def without_optax(name, *rest):
        raise ModuleNotFoundError("No module named 'optax'", name="optax")

    monkeypatch.setattr(training_commands, "run_train", without_optax)
    message = fails(capsys, "train", "--config", "c.py")
    assert "optax is not installed: pip install -e '" in message and "[train]'" in message


def test_train_hands_config_and_folder_on(capsys, tmp_path, monkeypatch):
    from mixformer_jax.training import loop

    seen = []

    def record(objective, out):
        seen.append((objective.experiment.train, out))
        return out / "model.safetensors"

    monkeypatch.setattr(loop, "run", record)
    config = Path(__file__).parents[1] / "configs" / "mixvit_tiny.py"
    status, out, _ = run(capsys, "train", "--config", config, "--config.train.steps=400", "--config.train.seed=2")
    assert status == 0 and str(Path("runs/mixvit_tiny/model.safetensors")) in out
    assert (seen[0][0].steps, seen[0][0].seed) == (400, 2)
    run(capsys, "train", "--config", config, "--out", tmp_path)
    assert seen[1][1] == tmp_path
    assert "did you mean train.steps" in fails(capsys, "train", "--config", config, "--config.train.stpes=4")


def test_help_is_quick():
    # In a fresh interpreter: neither JAX nor OpenCV is imported for it, nor for the help of a command, but for those
    # that list what benchmarks and studies there are.
    code = (
        "import sys\nfrom mixformer_jax import cli\n"
        "those = set(cli.COMMANDS) - {'study', 'evaluate', 'toolkit', 'report', 'pack'}\n"
        "for command in ([], *([name] for name in those)):\n"
        "    try:\n        cli.main([*command, '--help'])\n    except SystemExit as end:\n        assert not end.code\n"
        "    slow = {'jax', 'cv2', 'numpy', 'flax'} & set(sys.modules)\n    assert not slow, (command, slow)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("track", "demo", "bench", "train"):
        assert name in result.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and mixformer_jax.__version__ in capsys.readouterr().out


def test_demo_reports_even_when_interrupted(capsys, tracker, tmp_path):
    tracker.interrupt_at, tracker.error = 4, Stopped(signal.SIGINT)
    status, out, message = run(capsys, "demo", "--out", tmp_path)
    assert status == 130 and "4 frames tracked until then" in message
    assert re.search(r"mean IoU +0\.\d{3}\n", out)
    for name in ("demo.mp4", "boxes.txt", "groundtruth.txt", "demo.png"):
        assert str(tmp_path / name) in out and (tmp_path / name).exists()


def test_bench_prints_and_appends(capsys, tracker, tmp_path, monkeypatch):
    from mixformer_jax.cli import bench

    seen = []

    def measure(tracker, num_frames, size, progress):
        seen.append((tracker, num_frames, size))
        return bench.Timing("mixvit_b", "float32", "abacus", size, 1.0, 2.0, 3.0, 0.0, 150.0, 7.5)

    monkeypatch.setattr(bench, "measure", measure)
    path = tmp_path / "benchmarks.md"
    status, out, _ = run(capsys, "bench", "--frames", "9", "--size", "320x180", "--append", path)
    assert status == 0 and seen == [(tracker, 9, (180, 320))]
    assert "abacus" in out and "7.5 s, not counted" in out
    row = next(line for line in out.splitlines() if "| mixvit_b |" in line)
    assert "| 320x180 |" in row and row in path.read_text()


def test_configs_are_listed_and_printed(capsys):
    status, out, _ = run(capsys, "configs")
    assert status == 0 and re.search(r"^  mixvit_b +MixViT, stage 1: ", out, re.MULTILINE)
    assert out.index("mixvit_tiny ") < out.index("mixformer pretrain") < out.index("trackmae_tiny ")
    configs = Path(__file__).parents[1] / "configs"
    for name, path in (("mixvit_b", "mixvit_b.py"), ("mae_tiny", "pretrain/mae_tiny.py"), ("benchmarks.toml",) * 2):
        assert run(capsys, "configs", "show", name) == (0, (configs / path).read_text(), "")
    assert "did you mean mixvit_b" in fails(capsys, "configs", "show", "mixvit_bb")
    assert "show needs the NAME" in fails(capsys, "configs", "show")


def commands(capsys) -> list[str]:
    """All that `mixformer --help` and the help of its groups name."""
    found = []
    for group in ([], ["data"], ["study"], ["toolkit"]):
        with pytest.raises(SystemExit):
            cli.main([*group, "--help"])
        found += [
            " ".join([*group, name]) for name in re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, re.MULTILINE)
        ]
    return [name for name in found if name not in ("data", "study", "toolkit")]


def test_every_command_s_help_shows_an_example(capsys):
    names = commands(capsys)
    assert {"track", "evaluate", "report", "pack", "train", "configs", "data check", "toolkit vot"} <= set(names)
    for name in names:
        with pytest.raises(SystemExit) as end:
            cli.main([*name.split(), "--help"])
        out = capsys.readouterr().out
        assert end.value.code == 0 and re.search(rf"^examples:\n  mixformer {name}\b", out, re.MULTILINE), name


@pytest.mark.parametrize(
    "arguments", [["configs"], ["train", "--config", "mixvit_tiny"], ["data", "check", ".", "--dataset", "folder"]]
)
def test_unknown_arguments_are_named(capsys, arguments):
    message = fails(capsys, *arguments, "--what", "--tracker.search_factor=5")
    assert "unknown arguments: --what --tracker.search_factor=5" in message
