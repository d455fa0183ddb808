"""What an interrupted run leaves behind so that it can go on: the state after its last frame, and all results so far.

The next run reads the source again up to there, draws what was found and tracks from there on: its files are those of a
run that nothing interrupted.
"""

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64

from mixformer_jax.files import write_atomically
from mixformer_jax.media.sources import FrameSource, TimedFrame
from mixformer_jax.tracking.mot import MotState, Objects
from mixformer_jax.tracking.step import TrackState, encode_templates
from mixformer_jax.tracking.tracker import Tracked, Tracker

# A state is saved so often, but saving takes no more than a hundredth of the time.
SAVE_EVERY_S = 5.0
_LEAST_SHARE = 100
_VERSION = 2  # of what a state holds: its fields, and the settings it goes by


class ResumeError(ValueError):
    """A run that cannot go on as it was asked to."""


def resume_path(boxes: Path) -> Path:
    """Where a run whose boxes go to `boxes` keeps its state."""
    return boxes.with_name(f"{boxes.name}.resume")


def describe_run(
    tracker: Any, source: FrameSource, first: TimedFrame, boxes_xywh: Float64[np.ndarray, "n 4"]
) -> dict[str, str]:
    """What must be the same for a run to go on, by what a message calls it; `first` is the source's first frame."""
    about: dict[str, Any] = {
        "boxes": boxes_xywh.tolist(),
        "frames": [hashlib.sha256(first.pixels.tobytes()).hexdigest(), *source.part()],
    }
    if isinstance(tracker, Tracker):
        about["weights"] = [_digest(tracker.variables), tracker.config.dtype]
        about["settings"] = tracker.settings.to_dict()
        masks = tracker.segmenter
        about["masks"] = None if masks is None else [_digest(masks.variables), masks.settings.to_dict()]
    return {name: json.dumps(value, sort_keys=True) for name, value in about.items()}


def describe_files(state: Path, *files: Path | None) -> dict[str, str]:
    """A run's files beside its results, seen from the folder of its state: going on replaces these and no others."""
    folder = state.absolute().parent
    names = [None if file is None else os.path.relpath(file.absolute(), folder) for file in files]
    return {"output files": json.dumps(names)}


def _digest(variables: Any) -> str:
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class RunState:
    """The file of a run; `write` is called after every frame, and writes when it is time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._about: dict[str, str] = {}
        self._next = time.monotonic() + SAVE_EVERY_S

    def open(self, about: dict[str, str], resume: bool) -> dict[str, np.ndarray] | None:
        """Takes down what the run is (`describe_run`), before anything else.

        Returns:
            The arrays to go on with where it is to `resume`, none from before the first result; None where nothing is.

        Raises ResumeError: they are of another run, or damaged; the message says what differs.
        """
        self._about = about
        if not (resume and self.path.exists()):
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            saved = json.loads(str(arrays.pop("about")))
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ResumeError(f"{self.path}: cannot be read ({error}); remove it and begin again") from error
        if saved.pop("version", None) != _VERSION:
            raise ResumeError(f"{self.path}: is of another version of this program; remove it and begin again")
        if differing := [name for name in about if saved.get(name) != about[name]]:
            raise ResumeError(
                f"{self.path}: is of a run with other {' and '.join(differing)}; "
                "give those again, or begin again without --resume"
            )
        return arrays

    def write(self, arrays: Callable[[], Mapping[str, Any]], now: bool = False) -> None:
        """Writes these arrays, whole or not at all, where `now` or the time since the last one says so."""
        began = time.monotonic()
        if not (now or began >= self._next):
            return
        buffer = io.BytesIO()
        np.savez(buffer, about=json.dumps({"version": _VERSION, **self._about}), **arrays())
        write_atomically(self.path, buffer.getvalue())
        ended = time.monotonic()
        self._next = ended + max(SAVE_EVERY_S, _LEAST_SHARE * (ended - began))

    def discard(self) -> None:
        """Nothing is left to go on with."""
        self.path.unlink(missing_ok=True)


def run_arrays(state: Any, results: Sequence[Tracked]) -> dict[str, Any]:
    """A tracker's state after the last of its results, and these, a frame each with number and time."""
    n = len(results[0].boxes_xywh)
    return {f"state{name}": value for name, value in _leaves(state).items()} | {
        "boxes": np.stack([found.boxes_xywh for found in results]),
        "has_scores": results[0].scores is not None,
        "scores": np.stack([np.zeros(n) if found.scores is None else found.scores for found in results]),
        "lost": np.stack([np.zeros(n, bool) if found.lost is None else found.lost for found in results]),
        "frame": np.array([found.frame for found in results]),
        "time": np.array([found.time for found in results], np.float64),
    }


def run_of(arrays: Mapping[str, np.ndarray]) -> tuple[list[Tracked], dict[str, np.ndarray]]:
    """The results of `run_arrays`, and the leaves of the state, see `restored`."""
    columns, results = (arrays[name] for name in ("boxes", "scores", "lost", "frame", "time")), []
    for boxes, scores, lost, frame, seconds in zip(*columns, strict=True):
        found = Tracked(boxes, frame=int(frame), time=float(seconds))
        results.append(found._replace(scores=scores, lost=lost) if arrays["has_scores"] else found)
    return results, {name.removeprefix("state"): arrays[name] for name in arrays if name.startswith("state")}


_COLUMNS = Tracked._fields[:4]  # boxes, scores, lost flags and numbers


def joined(results: Sequence[Tracked], name: str) -> np.ndarray:
    """One column of the results of all frames, of which there is at least one."""
    return np.concatenate([getattr(found, name) for found in results])


def object_arrays(state: MotState, results: Sequence[Tracked]) -> dict[str, np.ndarray]:
    """As `run_arrays`, of a `MotTracker`, whose frames have targets as they come."""
    return {
        **{name: joined(results, name) for name in _COLUMNS},
        "counts": np.array([len(found.boxes_xywh) for found in results]),
        "frame": np.array([found.frame for found in results]),
        "time": np.array([found.time for found in results], np.float64),
        **{f"object {name}": column for name, column in zip(Objects._fields, state.objects, strict=True)},
        "counters": np.array([state.frame_index, state.next_number]),
    }


def objects_of(arrays: Mapping[str, np.ndarray]) -> tuple[MotState, list[Tracked]]:
    """The state and the results of `object_arrays`; templates are encoded again."""
    ends = np.cumsum(arrays["counts"])[:-1]
    columns = [np.split(arrays[name], ends) for name in _COLUMNS]
    results = zip(*columns, arrays["frame"].tolist(), arrays["time"].tolist(), strict=True)
    objects = Objects(*(arrays[f"object {name}"] for name in Objects._fields))
    frame_index, next_number = arrays["counters"].tolist()
    return MotState(objects, frame_index, next_number, {}), [Tracked(*found) for found in results]


def _leaves(state: Any) -> dict[str, np.ndarray]:
    """By path. Encoded templates, which are large, can be made again."""
    if isinstance(state, TrackState):
        state = state._replace(cache=None)
    state = jax.device_get(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def restored(tracker: Any, like: Any, leaves: Mapping[str, np.ndarray]) -> Any:
    """A saved state on the tracker's device; `like` is one of the same run, of which each leaf is replaced.

    Raises ResumeError: the leaves are of a state of another form.
    """
    like = like._replace(cache=None) if isinstance(like, TrackState) else like
    with_leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path) for path, _ in with_leaves]
    if set(names) != set(leaves):
        raise ResumeError("the saved state has another form than the tracker's; begin again without --resume")

    def placed(value: np.ndarray, old: Any) -> Any:
        if isinstance(old, jax.Array):
            return jax.device_put(value.astype(old.dtype), old.sharding)
        return value if isinstance(old, np.ndarray) else type(old)(value)

    values = [placed(leaves[name], old) for name, (_, old) in zip(names, with_leaves, strict=True)]
    state = jax.tree_util.tree_unflatten(tree, values)
    if isinstance(state, TrackState):
        cache = encode_templates(*tracker.parts, state.templates, state.filled)
        state = state._replace(cache=cache)
    return state
