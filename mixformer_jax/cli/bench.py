"""For `mixformer bench`: decode, crop, model and rest of a frame, measured on the demo clip as a video file."""

import datetime
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
from tqdm import tqdm

from mixformer_jax.cli.demo import render_demo_clip
from mixformer_jax.media.video import VideoWriter, open_source
from mixformer_jax.tracking.step import TrackState
from mixformer_jax.tracking.tracker import Tracker

WARM_UP_STEPS = 3
COLUMNS = (
    *("date", "model", "dtype", "device", "video"),
    *("decode ms", "crop ms", "model ms", "rest ms", "FPS", "warm-up s", "jax"),
)


class Timing(NamedTuple):
    """One measurement. Milliseconds are medians over the frames."""

    model: str  # name of the model's size
    dtype: str  # its compute type
    device: str  # what it ran on, as its maker calls it
    size: tuple[int, int]  # (height, width) of the video
    decode_ms: float  # from the file to an RGB frame
    crop_ms: float  # the search crop, on the host
    model_ms: float  # from the crop to the box, transfers included, until the box is there
    rest_ms: float  # what a whole `step` takes beyond crop and model
    fps: float  # frames a second from the file to the box, over all frames after the warm-up
    warm_up_s: float  # `start` and the first steps, compilation included

    def cells(self, date: datetime.date) -> tuple[str, ...]:
        parts = (self.decode_ms, self.crop_ms, self.model_ms, self.rest_ms)
        return (
            *(date.isoformat(), self.model, self.dtype, self.device, f"{self.size[1]}x{self.size[0]}"),
            *(f"{value:.2f}" for value in parts),
            *(f"{self.fps:.1f}", f"{self.warm_up_s:.1f}", jax.__version__),
        )


def measure(
    tracker: Tracker, num_frames: int = 100, size: tuple[int, int] = (360, 640), progress: bool = False
) -> Timing:
    """Tracks the demo clip, scaled to `size` (height, width), from an mp4 in a temporary folder.

    On each frame the whole step and its two halves are timed, in turns which comes first. For more frames
    than the clip has, it runs back and forth.

    Raises ValueError for no frame to measure, ModuleNotFoundError without scikit-image, as `render_demo_clip`.
    """
    if num_frames < 1:
        raise ValueError(f"{num_frames} frames to measure; expected at least 1")
    clip = render_demo_clip()
    last = len(clip) - 1
    height, width = size
    scale = np.array([width, height] * 2) / np.array(clip[0].shape[1::-1] * 2)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, clip.fps, size) as writer:
            for index in range(1 + WARM_UP_STEPS + num_frames):
                frame = clip[last - abs(last - index % (2 * last))]
                writer.write(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))

        seconds = np.zeros((num_frames, 4))  # decode, crop, model, whole step
        frames = iter(open_source(path))
        began = time.perf_counter()
        state = tracker.start(next(frames), clip.boxes_xywh[0] * scale)
        for _ in range(WARM_UP_STEPS):
            state, _tracked = tracker.step(state, next(frames))
        warm_up_s = time.perf_counter() - began

        for index in tqdm(range(num_frames), unit=" frames", desc=tracker.config.name, disable=not progress or None):
            before = time.perf_counter()
            frame = next(frames)
            seconds[index, 0] = time.perf_counter() - before
            if index % 2:
                seconds[index, 1:3] = _time_halves(tracker, state, frame)
            before = time.perf_counter()
            next_state, _tracked = tracker.step(state, frame)
            seconds[index, 3] = time.perf_counter() - before
            if not index % 2:
                seconds[index, 1:3] = _time_halves(tracker, state, frame)
            state = next_state

    decode, crop, model, step = seconds.T
    parts = decode, crop, model, step - crop - model
    decode_ms, crop_ms, model_ms, rest_ms = (1e3 * float(np.median(part)) for part in parts)
    fps = num_frames / float((decode + step).sum())
    about = tracker.config.name, tracker.config.dtype, device_name(tracker.device), size
    return Timing(*about, decode_ms, crop_ms, model_ms, rest_ms, fps, warm_up_s)


def _time_halves(tracker: Tracker, state: TrackState, frame: np.ndarray) -> tuple[float, float]:
    before = time.perf_counter()
    crops = tracker.search_crops(state, frame)
    between = time.perf_counter()
    tracker.locate(state, crops, frame)
    return between - before, time.perf_counter() - between


def device_name(device: jax.Device) -> str:
    """What the device is called by its maker; for a CPU with the number of cores this process may use."""
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.processor() or platform.machine()])[0]}, {num_cores()} cores"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
