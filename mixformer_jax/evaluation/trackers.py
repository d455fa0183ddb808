"""Opens a tracker for a benchmark, and records what decides its numbers: weights, hardware, precision, versions.

Beside ours there are `first-box`, and OpenCV's trackers for comparison, which need no weights.
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import flax
import jax
import jaxlib
import numpy as np
from jaxtyping import Float, Float64

import mixformer_jax
from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.torch_files import TORCH_SUFFIXES
from mixformer_jax.media.decoders import decoder_name, find_pyav
from mixformer_jax.media.video import Frame
from mixformer_jax.models.config import ComputeDtype, ConfigError, TrackerConfig, dataclass_from_mapping
from mixformer_jax.tracking.lanes import Lanes, LanesLike, OneLane
from mixformer_jax.typed_settings import Streams

# Tracker settings by model and benchmark, as in `configs/benchmarks.toml`.
BenchmarkSettings = Mapping[str, Mapping[str, Mapping[str, Any]]]
# Classes of OpenCV by what the user types.
PEERS: Mapping[str, str] = {"opencv:CSRT": "TrackerCSRT", "opencv:KCF": "TrackerKCF", "opencv:MIL": "TrackerMIL"}
MEND = (
    "it is in opencv-contrib-python-headless, which takes the place of opencv-python-headless:\n"
    "    pip install --no-deps --target contrib opencv-contrib-python-headless\n"
    "    PYTHONPATH=contrib mixformer evaluate ..."
)
TRACKERS = ("mixformer", "first-box", *PEERS)
# Suffixes of model names for weights that differ in their training alone.
VARIANTS = ("_1k", "_got", "_1k_got")
BENCHMARK_DTYPE: ComputeDtype = "float32"
# Videos in one step, by JAX's platform; see docs/evaluation.md for what was measured.
DEFAULT_BATCH: Mapping[str, int] = {"cpu": 1, "gpu": 16, "tpu": 16}

# OpenCV comes in four packages, whose versions are more exact than the module's own.
READERS = ("opencv-python-headless", "opencv-contrib-python-headless", "opencv-python", "opencv-contrib-python", "av")


class BoxPrediction(NamedTuple):
    """What other trackers return."""

    box_xywh: Float64[np.ndarray, " 4"]
    score: float | None = None


class FirstBoxTracker:
    """Always returns the given box: a test of the harness without a model, and the floor of a table."""

    def start(self, frame: Frame, box_xywh: Float[np.ndarray, " 4"]) -> Float64[np.ndarray, " 4"]:
        return np.array(box_xywh, np.float64)

    def step(self, state: Float64[np.ndarray, " 4"], frame: Frame) -> tuple[Float64[np.ndarray, " 4"], BoxPrediction]:
        return state, BoxPrediction(state.copy())


class PeerState(NamedTuple):
    """OpenCV's tracker, which each frame changes, and the last box that it found."""

    tracker: Any
    box_xywh: Float64[np.ndarray, "4"]


class OpenCVTracker:
    """One of OpenCV's trackers. Where it loses the target, the last box stands. MIL draws from the C library's `rand`,
    which is seeded for each video, so that the order of videos does not matter."""

    def __init__(self, class_name: str) -> None:
        self._class = getattr(cv2, class_name)

    def start(self, frame: Frame, box_xywh: Float[np.ndarray, "4"]) -> PeerState:
        if os.name == "posix":
            ctypes.CDLL(None).srand(1)
        tracker = self._class.create()
        tracker.init(_bgr(frame), [round(value) for value in box_xywh.tolist()])
        return PeerState(tracker, np.array(box_xywh, np.float64))

    def step(self, state: PeerState, frame: Frame) -> tuple[PeerState, BoxPrediction]:
        is_found, box_xywh = state.tracker.update(_bgr(frame))
        if is_found:
            state = state._replace(box_xywh=np.array(box_xywh, np.float64))
        return state, BoxPrediction(state.box_xywh)


def open_peer(kind: str) -> tuple[OpenCVTracker, dict[str, Any]]:
    """A tracker of OpenCV and its version; ValueError where this build of OpenCV does not have it."""
    if not hasattr(cv2, PEERS[kind]):
        raise ValueError(f"this OpenCV ({cv2.__version__}) has no {PEERS[kind]}: {MEND}")
    return OpenCVTracker(PEERS[kind]), {"opencv": cv2.__version__}


def _bgr(frame: Frame) -> Frame:
    return cv2.cvtColor(frame[..., :3], cv2.COLOR_RGB2BGR)  # of two streams colour


class OpenedTracker(NamedTuple):
    """A tracker and its record."""

    lanes: LanesLike
    name: str  # default name of its results' folder
    settings: dict[str, Any]  # what decides its results, see `results.claim_folder`
    about: Mapping[str, Any] = MappingProxyType({})  # model, table of settings, hardware, versions, decoders
    streams: Streams = "colour"  # what it reads of frames with a second stream

    def warm_up(self) -> None:
        """Compiles the programs, so that no sequence's times include it."""
        if self.settings["tracker"] != "mixformer":
            return
        frame, box_xywh = np.full((64, 64, 6), 127, np.uint8), np.array([24.0, 24.0, 16.0, 16.0])  # of two streams
        state = None
        for _ in range(2):
            state = self.lanes.start(state, 0, frame, box_xywh)
        self.lanes.step(state, {0: frame})


@dataclasses.dataclass(frozen=True)
class TrackerChoice:
    """The user's choice; pickles, so that several processes can open it."""

    kind: str  # one of TRACKERS; the other fields are for "mixformer" alone
    weights: str | None = None  # name, folder, .safetensors file or official checkpoint; None: the embedded tracker
    device: str | None = None
    batch: int | None = None  # videos in one step; None for the device's default
    # Tracker settings by model, in place of the weights' own; see `settings_on`.
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    settings_of: str | None = None  # the model whose settings are taken; None: the weights'
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # single settings, on top
    benchmark: str | None = None  # whose settings these are, for the record
    masks: str | None = None  # weights of a mask network; None: boxes alone
    dtype: ComputeDtype | None = None  # None for float32, as in the published numbers, on every device

    def open(self) -> OpenedTracker:
        """Opens the tracker; ValueError for choices that are unknown, cannot be combined, or cannot be loaded."""
        if self.kind not in TRACKERS:
            raise ValueError(f"unknown tracker {self.kind!r}; known: {', '.join(TRACKERS)}")
        if self.kind != "mixformer":
            given = (self.weights, self.masks, self.device, self.dtype, self.settings_of, self.changes or None)
            if any(option is not None for option in given) or self.batch not in (None, 1):
                raise ValueError(
                    f"{self.kind} has no model: leave weights, masks, device, dtype, batch and tracker settings out"
                )
            tracker, settings = (FirstBoxTracker(), {}) if self.kind == "first-box" else open_peer(self.kind)
            name, about = self.kind.replace(":", "-"), {"versions": versions(), "decoder": decoders()}
            return OpenedTracker(OneLane(tracker), name, {"tracker": self.kind, **settings}, about)
        return self._open_model()

    def _open_model(self) -> OpenedTracker:
        tracker = mixformer_jax.load(self.weights, device=self.device, dtype=self.dtype or BENCHMARK_DTYPE)
        model = self.settings_of or tracker.config.name
        tracker = tracker.with_settings(**{**self.settings.get(model, {}), **self.changes})
        platform, masks = tracker.device.platform, {}
        if self.masks is not None:
            tracker = tracker.with_masks(self.masks)
            assert tracker.segmenter is not None
            masks = {"masks": [file_digest(find_weights(self.masks)), tracker.segmenter.settings.to_dict()]}
        batch = DEFAULT_BATCH.get(platform, 1) if self.batch is None else self.batch
        # These decide the last digits of every box. The default precision may mean TF32 on GPUs and bfloat16 on TPUs.
        precision = jax.config.jax_default_matmul_precision or "default"  # type: ignore[attr-defined]
        settings = {
            "tracker": self.kind,
            "weights": weights_digest(self.weights),
            "device": platform,
            "dtype": tracker.config.dtype,
            "matmul_precision": str(precision),
            "batch": batch,
            "settings": tracker.settings.to_dict(),
            **masks,
        }
        about = {
            "model": tracker.config.name,
            "benchmark": self.benchmark,
            "table": model if model in self.settings else None,
            "changes": dict(self.changes),
            "hardware": tracker.device.device_kind,
            "versions": versions(),
            "decoder": decoders(),
        }
        lanes = OneLane(tracker) if batch == 1 else Lanes(tracker, batch)
        return OpenedTracker(lanes, results_name(self.weights), settings, about, tracker.config.streams)


def announce(choice: TrackerChoice, settings: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What a run prints first: the model, how it computes, and its tracker settings."""
    if choice.kind != "mixformer":
        return f"{choice.kind}, which has no settings"
    model, table, benchmark = about["model"], about["table"], about["benchmark"]
    lines = [f"{model}, {settings['dtype']} on {settings['device']} ({about['hardware']}), batch {settings['batch']}"]
    if table is not None:
        lines.append(f"settings: table [{table}] of benchmarks.toml, {benchmark}")
    else:
        lines.append(f"settings: the weights' own; benchmarks.toml has no table [{model}] with {benchmark}")
    lines[-1] += "" if choice.masks is None else f"; masks of {choice.masks}"
    lines[-1] += f"; changed: {', '.join(choice.changes)}" if choice.changes else ""
    lines.append("  " + ", ".join(f"{name} {value}" for name, value in settings["settings"].items()))
    others = [other for other in choice.settings if other in {f"{table}{variant}" for variant in VARIANTS}]
    if choice.settings_of is None and others:
        lines.append(f"  weights trained otherwise have tables of their own: --settings-of {' or '.join(others)}")
    return "\n".join(lines)


def results_name(weights: str | None) -> str:
    """The default name of the folder of results of some weights."""
    if weights is None:
        return "default"
    name = Path(weights).name
    endings = (".safetensors", *sorted(TORCH_SUFFIXES, key=len, reverse=True))
    return next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), name)


def weights_digest(weights: str | None) -> str:
    """SHA-256 of the weights file: the content behind a path or a name may change."""
    return file_digest(find_weights(weights))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that compute and read."""
    found = {
        "mixformer-jax": mixformer_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    for name in READERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def decoders() -> dict[str, str]:
    """The decoders of images and videos, with the libraries that OpenCV was built with."""
    built_with = cv2.getBuildInformation()
    jpeg, avcodec = (re.search(rf"^\s*{name}:\s*(.+?)\s*$", built_with, re.M) for name in ("JPEG", "avcodec"))
    library = f", avcodec {avcodec[1].removeprefix('YES ') if avcodec else 'unknown'}" if find_pyav() is None else ""
    return {
        "images": f"OpenCV {cv2.__version__}, JPEG {jpeg[1] if jpeg else 'unknown'}",
        "video": f"{decoder_name()}{library}",
    }


def read_benchmark_settings(path: str | Path) -> BenchmarkSettings:
    """Reads a TOML file: a table a model, in it an inline table of `TrackerConfig` settings a benchmark. ConfigError
    for no such file, no TOML, or settings that do not exist or cannot work, with model and benchmark."""
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the settings of benchmarks") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    for model, benchmarks in tables.items():
        for benchmark, settings in benchmarks.items() if isinstance(benchmarks, dict) else [("", benchmarks)]:
            where = f"{path}: [{model}] {benchmark}".rstrip()
            if not isinstance(settings, dict):
                raise ConfigError(f"{where} is {settings!r}; expected [MODEL] and BENCHMARK = {{ SETTING = VALUE }}")
            try:
                dataclass_from_mapping(TrackerConfig, settings)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
    return tables


def settings_on(tables: BenchmarkSettings, benchmark: str, settings_of: str | None = None) -> Mapping[str, Any]:
    """Tracker settings by model on one benchmark, by its reader's name; models without any are left out. ConfigError
    where there is no table `settings_of`, or it has nothing on this benchmark."""
    found = {model: benchmarks[benchmark] for model, benchmarks in tables.items() if benchmark in benchmarks}
    where = "`mixformer configs show benchmarks.toml`"
    if settings_of is not None and settings_of not in tables:
        raise ConfigError(f"--settings-of {settings_of}: not in {where}; known: {', '.join(tables)}")
    if settings_of is not None and settings_of not in found:
        has = ", ".join(tables[settings_of])
        raise ConfigError(f"--settings-of {settings_of}: has no {benchmark} in {where}, but {has}")
    return found
