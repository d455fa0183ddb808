"""Trackers without a model that work in other processes, and a program that runs them until somebody stops it."""

import functools
import multiprocessing
import os
import signal
import sys
import time

import numpy as np

from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.evaluation.runner import run_dataset
from mixformer_jax.evaluation.trackers import BoxPrediction, FirstBoxTracker, OpenedTracker
from mixformer_jax.evaluation.workers import Alone, Workers
from mixformer_jax.tracking.lanes import OneLane


def processes(diary):
    """Who wrote into it."""
    return {int(line.split()[2]) for line in diary.read_text().splitlines()}


class DiaryTracker(FirstBoxTracker):
    """Writes `start X process` into a file, X of the first box, and takes its time for each frame.

    Starts only when so many processes want to.
    """

    def __init__(self, diary, step_s=0.0, dies_at=None, together=1):
        self.diary, self.step_s, self.dies_at, self.together = diary, step_s, dies_at, together

    def start(self, frame, box_xywh):
        with self.diary.open("a") as file:
            file.write(f"start {box_xywh[0]:.0f} {os.getpid()}\n")
        while len(processes(self.diary)) < self.together:
            time.sleep(0.005)
        if box_xywh[0] == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array(box_xywh, float)

    def step(self, state, frame):
        time.sleep(self.step_s)
        state = state + np.array([1, 0, 0, 0])
        return state, BoxPrediction(state, 0.5)


def open_diary(diary, step_s=0.0, dies_at=None, together=1):
    return OpenedTracker(OneLane(DiaryTracker(diary, step_s, dies_at, together)), "diary", {"tracker": "diary"})


def refuse():
    raise ValueError("no weights today")


def refuse_later(diary):
    """The first process gets a tracker, and others none."""
    if diary.exists():
        raise ValueError("no weights for the second")
    diary.touch()
    return open_diary(diary, 0.001)


class BrokenTracker(OpenedTracker):
    """Cannot compile, as a device without memory."""

    def warm_up(self):
        raise RuntimeError("out of memory\nallocations: 1")


def open_broken():
    return BrokenTracker(OneLane(FirstBoxTracker()), "broken", {"tracker": "broken"})


def open_by_mistake():
    raise KeyError("a bug")


def quick_context():
    """Starts processes as forks of one that has imported everything: spawned ones take seconds for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def main(printed, root, out, diary, workers):
    """A program, with a session of its own: tracks a folder with DiaryTracker, and takes SIGTERM as eval/run.py does.

    Writes the names of the sequences that it has tracked and of those that were there into the file `printed`.
    """
    os.setsid()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    open_tracker = functools.partial(open_diary, diary, 0.01)
    sequences = open_dataset("folder", root)
    try:
        if workers == 1:
            summary = run_dataset(Alone(open_tracker()), sequences, out, "diary", {})
        else:
            with Workers(open_tracker, workers) as crew:
                summary = run_dataset(crew, sequences, out, "diary", {})
    except KeyboardInterrupt:
        # As Python ends by it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    printed.write_text(f"{','.join(summary.finished)}|{','.join(summary.skipped)}")
