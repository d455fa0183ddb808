"""Ends programs at random moments, and looks at what they leave: by hand with many tries, in the tests with few.

    python -m tests.endings track --tries 40            # Ctrl-C while `mixformer track` starts and runs
    python -m tests.endings track-again --tries 10      # kill -9, SIGTERM, Ctrl-C, then --resume: the same boxes?
    python -m tests.endings train --tries 40            # the same for `mixformer train`
    python -m tests.endings resume --tries 20           # kill -9, SIGTERM, Ctrl-C, and on: the same bits at the end?
    python -m tests.endings together --tries 20         # the same with two processes that train one model

A line is printed for each try; the exit status is 1 where one was wrong. --limit says how many seconds an ending may
take (10; 60 for `resume` and `together`); on a busy machine give it more, and look at the seconds.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.weights import load_weights
from mixformer_jax.media.video import VideoWriter, open_source
from tests.stand_ins import HEIGHT, WIDTH, square_boxes, square_clip
from tests.training.conftest import write_sequence
from tests.training.test_survival import config_file

CODE = "import sys; sys.argv[0] = 'mixformer'; from mixformer_jax.cli import main; sys.exit(main())"
# Where Python itself ends by Ctrl-C, before there is a handler.
LISTENS_S = 0.5
FRAMES = 400
METRICS = "metrics.jsonl"
# x264's AVX-512 code reads memory that nobody wrote (macroblock tree, B-frames): its bits differ from run to run, even
# for the same frames in one process. With this, glibc fills what it gives out, and they are the same.
SAME_MEMORY = {"MALLOC_PERTURB_": "85"}


class Ended(NamedTuple):
    """How a program ended: exit status (negative: by a signal), seconds since it was told, what it printed."""

    status: int | None
    seconds: float
    output: str


class Program:
    """`mixformer` in a process, and a session, of its own."""

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        self._log = folder / f"log_{time.monotonic_ns()}.txt"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, *map(str, arguments)],
                cwd=folder,
                env=os.environ | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._told: float | None = None

    def tell(self, number: int, group: bool = True) -> None:
        """Sends a signal, as a terminal and `timeout` do to all of its processes."""
        self._told = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self, limit_s: float) -> Ended:
        """Waits for the end; kills what has none."""
        began = self._told or time.monotonic()
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        seconds = time.monotonic() - began
        if status is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return Ended(status, seconds, self._log.read_text(errors="replace"))


def complaints(ended: Ended, number: int, alive_s: float) -> list[str]:
    """What is wrong with an ending, whatever the program."""
    if ended.status is None:
        return [f"still running after {ended.seconds:.0f} s"]
    if number == signal.SIGKILL:
        return [] if ended.status == -number else [f"status {ended.status}"]
    expected = {0, 128 + number} | ({-number} if alive_s < LISTENS_S else set())
    found = [] if ended.status in expected else [f"status {ended.status}"]
    if "Traceback" in ended.output and alive_s >= LISTENS_S:
        found.append("a traceback")
    return found


def try_track(folder: Path, rng: random.Random, limit_s: float) -> tuple[list[str], str]:
    """Ctrl-C to `mixformer track`."""
    clip = folder.parent / "clip.avi"
    if not clip.exists():
        with VideoWriter(clip, 30.0, (HEIGHT, WIDTH)) as writer:
            for frame in square_clip(FRAMES):
                writer.write(frame)
    box = ",".join(f"{number:g}" for number in square_boxes(1)[0])
    program = Program(folder, "track", clip, "--box", box)
    alive_s = _wait(program, rng, lambda: _lines(folder / "clip_boxes.txt.part"))
    program.tell(signal.SIGINT)
    ended = program.end(limit_s)
    wrong = complaints(ended, signal.SIGINT, alive_s)
    boxes, video = folder / "clip_boxes.txt", folder / "clip_tracked.mp4"
    kept = len(boxes.read_text().splitlines()) if boxes.exists() else 0
    if kept and (not video.exists() or open_source(video).num_frames != kept):
        wrong.append(f"{kept} boxes, and another number of frames in the video")
    if kept and kept < FRAMES and ended.status == 0:
        wrong.append("status 0 before the end")
    if list(folder.glob(".*")):
        wrong.append("a half file is left")
    return wrong, f"after {alive_s:.1f} s: status {ended.status} in {ended.seconds:.1f} s, {kept} frames"


def try_track_again(folder: Path, rng: random.Random, limit_s: float) -> tuple[list[str], str]:
    """An ending of `mixformer track`, then --resume, against a run that nothing ended."""
    clip = folder.parent / "long.avi"
    whole = [folder.parent / name for name in ("whole.csv", "whole.mp4")]
    box = ",".join(f"{number:g}" for number in square_boxes(1)[0])

    def start(boxes: Path, video: Path, *more: str) -> Program:
        outputs = ("--boxes", boxes, "--out", video)
        return Program(folder, "track", clip, "--box", box, *outputs, *more, **SAME_MEMORY)

    if not clip.exists():
        with VideoWriter(clip, 30.0, (HEIGHT, WIDTH)) as writer:
            for frame in square_clip(4 * FRAMES):
                writer.write(frame)
        assert start(*whole).end(600).status == 0
    ours, number = (folder / "a.csv", folder / "a.mp4"), rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    program, lines, began = start(*ours), rng.randrange(4 * FRAMES), time.monotonic()
    while program.process.poll() is None and _lines(folder / "a.csv.part") <= lines:
        time.sleep(0.01)
    alive_s = time.monotonic() - began
    program.tell(number)
    ended = program.end(limit_s)
    wrong = complaints(ended, number, alive_s)
    if ended.status != 0:
        again = start(*ours, "--resume").end(600)
        wrong += [f"status {again.status} of the second run: {again.output[-500:]}"] if again.status != 0 else []
    if not wrong and ours[0].read_bytes() != whole[0].read_bytes():
        wrong.append("other boxes than without a stop")
    if not wrong and ours[1].read_bytes() != whole[1].read_bytes():
        wrong.append("another video than without a stop")
    if (
        left := {path.name for path in folder.iterdir()}
        - {"a.csv", "a.mp4"}
        - {path.name for path in folder.glob("log_*")}
    ):
        wrong.append(f"{left} are left")
    return wrong, f"{number.name} at line {lines}: status {ended.status} in {ended.seconds:.1f} s"


def try_train(folder: Path, rng: random.Random, limit_s: float) -> tuple[list[str], str]:
    """Ctrl-C to `mixformer train`."""
    config = _config(folder, steps=1_000_000, checkpoint_every=1_000_000, validate_every=1_000_000, log_every=1)
    program = Program(folder, "train", "--config", config, "--out", folder / "run")
    alive_s = _wait(program, rng, lambda: _lines(folder / "run" / METRICS))
    steps = _lines(folder / "run" / METRICS)
    program.tell(signal.SIGINT)
    ended = program.end(limit_s)
    wrong = complaints(ended, signal.SIGINT, alive_s)
    saved = _checkpoints(folder / "run")
    if steps and not saved:
        wrong.append(f"{steps} steps, and nothing saved")
    return wrong, f"after {alive_s:.1f} s: status {ended.status} in {ended.seconds:.1f} s, step {max(saved, default=0)}"


def try_resume(folder: Path, rng: random.Random, limit_s: float, processes: int = 1) -> tuple[list[str], str]:
    """Two endings of one run, then the rest of it, against one that nothing ended."""
    config, whole = _config(folder.parent, steps=24), folder.parent / f"whole_{processes}"

    def start(out: Path) -> list[Program]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        arguments = ["train", "--config", config, "--out", out]
        if processes == 1:
            return [Program(folder, *arguments)]
        arguments += ["--config.train.distributed=true", "--config.train.peer_timeout_s=15"]
        where = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
        return [Program(folder, *arguments, **where, JAX_PROCESS_ID=str(i)) for i in range(processes)]

    def to_the_end(out: Path) -> list[str]:
        ends = [program.end(600) for program in start(out)]
        return [f"status {ended.status} of a whole run: {ended.output[-500:]}" for ended in ends if ended.status != 0]

    wrong = [] if whole.exists() else to_the_end(whole)
    told = []
    for _ in range(2):
        number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        before, lines = _lines(folder / "run" / METRICS), rng.randrange(6)
        programs = start(folder / "run")
        chosen = rng.randrange(processes)
        # Half of them once it trains, the others at any moment before.
        waits_s = rng.uniform(1, 20) if rng.random() < 0.5 else 600.0
        began = time.monotonic()
        while time.monotonic() - began < waits_s and _lines(folder / "run" / METRICS) < before + lines:
            if any(program.process.poll() is not None for program in programs):
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        alive_s = time.monotonic() - began
        programs[chosen].tell(number, group=processes == 1 or rng.random() < 0.5)
        ends = [program.end(limit_s) for program in programs]
        told.append(f"{number.name} to {chosen}: {[ended.status for ended in ends]} in {ends[0].seconds:.0f} s")
        for index, ended in enumerate(ends):
            if index == chosen:
                wrong += complaints(ended, number, alive_s)
            elif ended.status is None:
                wrong.append(f"process {index} still running after {ended.seconds:.0f} s")
            elif ended.status not in (0, 2, 128 + number):
                wrong.append(f"process {index}: status {ended.status}: {ended.output[-300:]}")
    wrong += to_the_end(folder / "run")
    if not wrong and not _same_weights(whole, folder / "run"):
        wrong.append("other weights than without a stop")
    return wrong, "; ".join(told)


def try_together(folder: Path, rng: random.Random, limit_s: float) -> tuple[list[str], str]:
    """`try_resume` with two processes."""
    return try_resume(folder, rng, limit_s, processes=2)


TRIES: dict[str, tuple[Callable[[Path, random.Random, float], tuple[list[str], str]], float]] = {
    "track": (try_track, 10.0),
    "track-again": (try_track_again, 10.0),
    "train": (try_train, 10.0),
    "resume": (try_resume, 60.0),
    "together": (try_together, 60.0),
}


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=tuple(TRIES))
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, metavar="S")
    args = parser.parse_args()
    one, limit_s = TRIES[args.what]
    right = 0
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.tries):
            place = Path(folder) / str(index)
            place.mkdir()
            wrong, told = one(place, random.Random(args.seed + index), args.limit or limit_s)
            right += not wrong
            print(f"{index}: {told}{': WRONG: ' + '; '.join(wrong) if wrong else ''}", flush=True)
    print(f"{right} of {args.tries} right")
    return 0 if right == args.tries else 1


def _config(folder: Path, **train: object) -> Path:
    path = folder / "config.py"
    if not path.exists():
        for seed, name in enumerate("ab"):
            write_sequence(folder / "videos" / name, seed)
        config_file(folder, folder, **train)
    return path


def _wait(program: Program, rng: random.Random, lines: Callable[[], int]) -> float:
    """Seconds to a random moment: while Python and JAX are imported, while it compiles, or once there are results."""
    began, kind = time.monotonic(), rng.random()
    if kind < 0.5:
        time.sleep(rng.uniform(0, 1) if kind < 0.25 else rng.uniform(1, 15))
    else:
        count = rng.randrange(20)
        while lines() <= count and program.process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
    return time.monotonic() - began


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


def _checkpoints(run: Path) -> list[int]:
    return [int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]


def _same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (flatten_dict(load_weights(run / "model.safetensors").variables) for run in (one, other))
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


if __name__ == "__main__":
    sys.exit(main())
